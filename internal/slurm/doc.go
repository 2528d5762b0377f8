// Package slurm speaks with Slurm through its commands (contract 22): lists jobs, submits and changes them, looks at
// partitions, and keeps accounts. It has no state and decides nothing about UCloud, except for the table that says
// what a state of Slurm means ([States]).
//
// Promises, and the tests that prove them:
//
//   - An answer is whole or an error. A command that fails, is killed, prints no header or stops in the middle of a row
//     never looks like an empty list (contract 22 section 12.1; TestIncompleteAnswers, TestOutage).
//   - Users choose names, comments and directories of jobs, with line breaks and separators in them. Rows are separated by
//     a word that is new for every call, so that nobody can write a row about the job of somebody else (TestForgedRow).
//   - Listing is streaming, in one process, with bounded rows, and linear (contract 22 section 12.2; BenchmarkRound).
//   - Every command has a time limit, a bounded output, a clean environment and a process group, which ends with it
//     (TestTimeLimit).
//   - A submission is refused, or accepted with an id, or its outcome is unknown ([ErrUnknownOutcome]); doubt is never
//     called a refusal (TestSubmitOutcomes).
//
// Who runs what: submissions and cancellations run as the user, in an instance; everything else in the server.
package slurm
