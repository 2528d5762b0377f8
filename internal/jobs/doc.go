// Package jobs is the server's side of jobs (contract 20, 22; design D9): it gives instances leave to submit, keeps what is
// known of each job, watches the engine, and tells Core.
//
// # The submission of a job
//
// Core gives up after 5 s and then deletes its record. Instances die, sbatch hangs, the server is restarted. Nothing may run
// twice, and nothing may run unknown:
//
//	             job.begin                    job.submitted, or seen by its comment
//	(nothing) ──────────────▶ begun(n, until) ──────────────────────────────────────▶ submitted
//	                            │    │                                                   │
//	                job.refused │    │ until + settling time is over, and Slurm          │ Core says three times, for
//	                            ▼    ▼ has answered twice that there is no such job      ▼ minutes, that it has no such job
//	                       refused  lost ◀──────────────────────────────────────────── lost (cancelled in Slurm)
//
// A job.begin of a job that is refused or lost begins attempt n+1. Of one that is begun it is refused with 409: an earlier
// sbatch may be under way. Of one that is submitted it gives back the id that it has.
//
// An instance must not start sbatch after until, and kills it soon after. So a job that neither squeue nor sacct knows by its
// comment when until and the settling time are over was never submitted, and never will be.
//
// The server may die between any two steps; all that survives is the row in the database:
//
//   - before begun is stored: the instance has no leave, and Core gets an error. Nothing has happened.
//   - after that, before the instance has heard it: no sbatch; lost after a minute.
//   - while sbatch runs or after it: the job is found by its comment, and adopted; should the instance come back with
//     job.submitted, it is the same id. If sbatch ran in vain, lost.
//   - after submitted is stored, before Core has the answer: Core deletes its record. That is found out by asking Core for
//     the job some seconds later; it is cancelled when Core has denied it three times in five minutes.
//   - between a change of state and its delivery: the update is in the same transaction as the change, and stays until Core
//     has taken it. After a crash in between it is sent again; Core drops the state that it has already.
//
// # What the monitor sees
//
// One round asks squeue and sacct once, whatever the number of jobs. What they say counts; what they do not say counts only
// if both have answered, and not before a job was missing for minutes and sacct has been asked for it by its id. So an
// answer that fails, or is cut, never ends a job (contract 22 section 12.1). A final state is told to Core exactly once:
// rows with a final state are not watched any more.
//
// # Who is trusted
//
// The caller is any program of a mapped user, not our code, and may say what it likes about jobs:
//
//   - Which account, which workspace: the kernel's uid, the mapping, and the members of the project as Core has described
//     it last. A job of others does not exist for the caller (TestForeignJobsDoNotExist).
//   - An id of a job that is somebody else's: rows are kept for each account (TestForgedJobID), and before anything is said
//     to Core about a job, Core is asked whose it is (TestCoreDecidesWhoseJobItIs).
//   - An id of the engine that is somebody else's job: what Slurm says about a job counts only for the account that Slurm
//     names (TestForeignEngineID), so neither states nor nodes of another's job are taken over.
//   - A comment with somebody else's job: the same.
//   - A submission, with crashes and outages everywhere: TestSubmissionModel.
//   - What is in the document: it is kept for display. What the job may have comes from the configuration.
package jobs
