// Package computeusage counts what workspaces use of machines, from Slurm's accounting to the reports to UCloud/Core
// (contract 22 section 7.2, contract 30 section 3).
//
// # Counting
//
// The ledger is in the database: for each workspace and category the units times seconds since the beginning. It is made
// of runs, as sacct tells of them with -X and -D: one for each allocation of a job, several for one that was requeued. A
// run is known by its job and its start; the ledger moves by the difference between what the run has used now and what it
// was charged with before, in one transaction with the run. So an answer that comes twice changes nothing, one that does
// not come changes nothing, and when sacct has told of all runs the ledger is the sum over sacct's rows
// (TestDay). A row of sacct that vanishes takes nothing back.
//
// Runs are looked for in a short window that reaches back beyond the last success, and every hour, at the start and
// after each failure in the long one of the configuration: slurmctld hands in late what slurmdbd has missed. Runs that
// ended before all windows are folded into the ledger and never taken again. The whole history of an account is asked for once.
//
// A run without an end counts on only while slurmctld itself has the job: as long as slurmctld is away slurmdbd goes on
// calling jobs running that ended long ago.
//
// A run belongs to the category of its partition and QoS, if its account has that category, or else to the only one that
// the account has. To whom it was charged first it stays charged.
//
// # Reporting
//
// What Core should know follows from the ledger: whole periods of the product, rounded down, less retired usage. The
// difference to what Core has confirmed is sent, absolute and without scope, by [usage.Reporter]: a report of unknown
// outcome is sent again and changes nothing (TestCrashes).
package computeusage
