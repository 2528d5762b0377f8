// Package devcore simulates UCloud/Core: for the demo, for trying things by hand and for tests. It is linked into
// ucloud-dev alone and never shipped.
//
// It behaves like the Core of the recordings where a provider can notice: who it says it is, what it sends and in
// which spelling, how long it waits, when it retries, what it answers. It is stricter than Core in one respect.
// Whatever would make a real Core process exit is recorded as a [Violation], and the simulator then behaves like a
// Core that is going down: it gives no answer and closes the connection. Tests end with a check that there are none.
//
// To keep the simulator from inheriting a bug of the implementation it imports nothing of it but the wire types.
//
// What is simplified: one provider, state in memory, one password for everybody, grants are given by a development
// call. Those calls live under /api/dev and exist in no real Core.
package devcore
