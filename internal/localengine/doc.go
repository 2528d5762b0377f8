// Package localengine runs jobs as processes of the user on this machine: for trying out, for demonstrations and for
// laptops, where there is no Slurm. It schedules nothing and limits nothing but time.
//
// # Jobs outlive the instance
//
// A job is a session of its own (setsid(2)). Its leader is a small shell, supervise.sh, that starts the script, ends it
// when its time is over, and writes down its exit code. What is known of a job stands in files of a directory that belongs
// to the user, so that the next instance finds it again:
//
//	job.json, script
//	           what was asked for; written before anything starts
//	claim      a directory; whoever makes it decides: the supervisor that the job starts, or [Engine.Recover] that it never does
//	process    pid, start time and boot id of the supervisor; written before the script starts
//	expired, cancelled, suspended
//	           marks, written before the signals that they explain
//	exit       the exit code
//
// A pid alone says nothing: it may belong to another process by now. Start time and boot id make it certain
// (TestForeignProcessIsLeftAlone). Between any two steps the instance may die: either the job has started and is found, or
// it has not and never will (TestKilledBetweenSteps).
//
// # Cost
//
// Nothing ticks. A running job costs a goroutine that waits for a pidfd in the runtime's poller and holds no thread.
package localengine
