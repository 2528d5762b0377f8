// Package events receives the stream in which UCloud/Core tells a provider about wallets, projects and their members
// (contract 31). It is the only source of that knowledge.
//
// # Life of a record
//
// One goroutine reads messages and queues them; another decodes what is queued and stores it, all records of one or
// several whole messages in one transaction. After the commit the parts of the program that derive something from the
// stored state are told through [Options.Changed]; nothing slow happens before that. A record that cannot be stored
// ends the session, and the next session has Core send it again.
//
// # The position in the stream
//
// Core replays what changed after a time that we name when we connect. That time is kept in the database and follows
// Core's own time stamps, not our clock. Three things keep it honest:
//
//   - It moves in the transaction that stores the records, never before.
//   - It does not move while Core is still replaying, because a replay is not in the order of time: a session that
//     breaks in the middle starts the replay again from where it began. There is no marker for its end; silence for
//     [settleQuiet], or an age of [settleAge], has to do.
//   - [margin] is subtracted when connecting, since Core drops events for slow readers and orders nothing between
//     wallets and projects.
//
// Once a night everything is replayed, whatever the position.
//
// # Trust
//
// Core is trusted to tell the truth about users and projects. Its bytes are still checked: lengths against the rest of
// the message (package eventwire), references against those introduced in the session, names against what a user name can be.
package events
