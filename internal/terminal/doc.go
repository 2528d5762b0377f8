// Package terminal gives users a shell in the browser: in a folder on this machine, or inside a job (contract 21 section 4).
//
// # Processes
//
//	browser ── WebSocket ── gateway ── instance ── socket ── holder ── pseudo-terminal ── shell
//
// The shell belongs to a holder: a small process of the same program in a session of its own, which owns the
// pseudo-terminal and outlives the instance. So a terminal survives a broken connection as well as an upgrade, a restart
// or a crash of the instance: the holder keeps the last output, and the next terminal of the user for the same job and
// rank, or the same folder, takes the shell over, if nobody uses it. A holder that nobody comes back to ends after a while.
//
// # Trust
//
// A browser connects without Core's token. All it has is the identifier of a session, which the server has issued for
// this user and account, which lives for a minute and works once; whose job or which folder it is for stands in the
// session and not in what the browser sends. The job is looked up again when the shell begins.
//
// A holder listens on an abstract socket, whose name every local process can see. The kernel says who connects, and whom
// the instance has reached: both must be the same account (TestHolderRefusesOthers). A holder has no secrets.
//
// # Properties, and the tests that prove them
//
//   - an identifier works once, for its own user, and not at all when it is another's (TestIdentifiers);
//   - bytes are cut anywhere and come whole (TestUTF8); output that nobody takes stops the program that makes it
//     (TestFlowControl); input that nobody takes does not stop the socket (TestDeadShell);
//   - the end of the shell closes the socket at once, after all of its output (TestEnd);
//   - everything that belongs to the shell's terminal ends with it: SIGHUP, then SIGKILL (TestStubborn);
//   - a live terminal is never taken over (TestTakeOver); shells survive the instance (TestSurvivesInstance);
//   - the number of terminals, their idle time and their whole time are bounded (TestLimits).
package terminal
