// Package taskserver keeps the background tasks of all users at the server: it stores them, hands them out to the users'
// instances, and shows them at UCloud/Core (contract 14). The work itself is done by package tasks in the instances.
//
// # States
//
//	                 hand-out                 end of the work
//	submit → queued ──────────→ running ────────────────────────→ succeeded, failed, cancelled
//	           ↑ │                 │ │
//	           │ └─ pause ─→ suspended ←┘ pause, once the work stands still
//	           └─ resume, interruption, passing error
//
// The database refuses to leave the last three. A hand-out has a number, the attempt; what an instance says about an
// older one is refused. So a task has one truth: its row, and the memory of this package mirrors it. Everything that
// changes a task happens while [Service] has its turn, one after the other; the database would not do more at a time
// either.
//
// # What Core sees
//
// A task is stored together with the order to create its record at Core, and its final state together with the order to
// post it: both go through the outbox under one key, so that they arrive in that order, and for certain. States in
// between are posted from memory, the newest only, by poster; when a task has ended, its poster is silenced before the
// final state goes out, and where an earlier post may still be on its way, the final state is posted once more
// half a minute later. Nothing is posted for a task whose user Core has never named.
//
// Core cannot be asked for tasks, and each creation makes another record. When the outcome of a creation is not known it
// is repeated only after six minutes: by then a record that nobody has posted to has left the user's list, which holds
// five minutes. So the user never sees a task twice.
//
// # What becomes of a task when …
//
//   - its instance ends: it is given back and handed out again, if need be to an instance that is woken for it;
//   - its instance is killed: the same, and after five times in a row without progress the task has failed;
//   - its instance cannot be started: it waits, and is tried again with growing pauses of at most ten minutes;
//   - the server restarts: instances come back and claim what they have; what nobody claims within the grace is queued;
//   - its user is disconnected: it is cancelled. The account may belong to somebody else tomorrow;
//   - it is paused for seven days: it is cancelled;
//   - there is no sign of progress for thirty days: it has failed;
//   - it ended thirty days ago: it is forgotten.
//
// # Trust
//
// Every call comes from a program of a local user, not necessarily from our instance. The owner of a task is the
// kernel's uid together with the UCloud user it is mapped to; to everybody else a task does not exist
// (TestTasksOfOthersDoNotExist). Sizes, numbers and rates are bounded, texts are cut and cleaned here
// (TestLimits, FuzzLine). What a user can do to their own tasks by lying is to have wrong things shown to themselves.
package taskserver
