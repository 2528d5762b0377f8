// Package tasks runs a user's background tasks in their instance: copies, deletions, transfers and whatever else can
// outlast Core's five seconds (contract 14).
//
// # Who does what
//
// The server keeps the tasks, decides which may run when, and talks to Core; see package taskserver. The [Manager] here
// follows the server over one stream: it is handed tasks, runs each with the [Runner] of its kind, and is told when to
// pause, go on or end one. The stream is open only while there is something to do, so an idle instance has neither a
// goroutine nor a timer because of this package.
//
// # What a Runner can rely on
//
//   - It is called again with the same Params and with what it last saved until it has come to an end, over restarts of
//     the instance, the server, the gateway and the machine. So it must be able to continue what it began; between two
//     calls of [Task.Save] work may be done twice.
//   - No second Runner works on the same task at the same time: the server hands a task out again only after it was
//     given back, its process is dead, or, if the server cannot tell, after a grace in which a living instance would
//     have come back.
//   - Its result is reported until the server has it. A report that fails does not repeat the work.
//   - Its context ends when the task is cancelled ([ErrCancelled]) or the instance ends ([ErrInterrupted]);
//     [context.Cause] tells which. [Task.Checkpoint] waits while the task is paused.
//
// # Trust
//
// The server is trusted; Params come back as they were submitted by this same user. Nothing here is a barrier against
// the user, who owns the process: that a user cannot touch another user's tasks is for the server to make sure.
package tasks
