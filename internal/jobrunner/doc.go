// Package jobrunner is the instance's side of jobs (contract 20, 22; design D9): it makes the job's folder and script, runs
// sbatch and its kin as the user, and opens the way to what a job shows. The server keeps the jobs; nothing here is remembered.
//
// # Exactly once
//
// Core waits 5 s for the answer to create and deletes its record if there is none, so a submission has three steps
// (package ipcapi, [ipcapi.JobBegin]): the server stores the job, sbatch runs, the server hears of the result. Between the
// steps anything may die.
//
//   - sbatch does not start without the server's leave, and not after the leave has ended. So a job that nobody has heard of
//     by then, and that Slurm does not know by its comment, was never submitted.
//   - Once it runs, sbatch is not interrupted because Core has given up; the result is told to the server either way. Core
//     has then deleted its record, so the job is cancelled at once ([Runner.create]).
//   - An error of [Engine.Submit] says whether nothing runs for certain ([RefusedError]). Only then the server is told so,
//     and the folder goes away.
//
// TestKilledDuringSubmission kills the instance at every step; the job has then run once or never, and the server knows.
//
// # Who is trusted
//
// Of Core's documents only the id of a job counts where a job is looked up: the record is the server's, and it says whose
// process it is. The folder lies in a place that other members of a project may write to. It is reached through
// descriptors and without following links, and what runs is what was rendered, not what stands in the folder: sbatch reads
// the script from a descriptor of its own, and the local engine keeps a copy. TestStrangersFolder, TestScriptIsNotReadAgain.
//
// Secrets that Core sends for the lifetime of a call (api_server values) are dropped while decoding; TestSecretsAreDropped.
//
// # Bulk calls
//
// create takes one job per request, as Core sends it: two submissions do not fit into its 5 s, and a failure of the second
// would delete both records. terminate, extend, suspend and unsuspend try all items and give the first error. Of
// interactiveSession the browser asks for all interfaces of a job at once, so an item that fails is answered with a session
// that leads nowhere as long as another one succeeds, and the whole call fails only if all items do (contract 21 section 8
// point 10).
package jobrunner
