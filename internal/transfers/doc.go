// Package transfers moves files and folders between providers (contract 13 section 2). It is both sides: what a user
// sends to another provider, and what they receive from one.
//
// # How a transfer goes
//
// Core makes three calls in the name of one user, who has an account on either side: the source says with which
// protocols it can send ([Service.Routes], InitiateSource), the destination makes an upload session and answers with its
// address (InitiateDestination), the source begins (Start). From then on Core has nothing to do with it: the source
// connects to the destination as a client of the upload protocol.
//
// The source is a background task of the kind "transfer". It works in passes. A pass walks the tree, lists every regular
// file, and sends those that the destination wants; what the destination has already it does not want. A pass in which
// nothing was wanted is the proof that everything is there, and the end. So a transfer can be interrupted anywhere, by
// anybody, and goes on with the next pass; nothing but a few numbers is kept about it.
//
// The destination is a session of package uploads, and a task of the kind "receive", which shows it and can cancel it.
//
// # Trust
//
// Core is trusted to name the user, the drive and the permissions. The other provider is not: as destination it chooses
// the address (package dial decides whether it is connected to), wants whatever it likes in any order, and may stall,
// refuse, or claim what is not so. It gets nothing but the files below the folder that the user chose: a file is opened
// by name, beneath the descriptor of that folder and without following links (TestSwapRace), and only if it was listed.
// As source it is a client of package uploads, which keeps it inside of the session's folder.
//
// # What is guaranteed, and which test proves it
//
//   - The other side ends up with the same bytes under the same names, whatever is cut or killed in between (TestCuts,
//     TestKills), or the task says what is missing (TestReported).
//   - With a destination of our own kind, every file is compared by hash before it gets its name (TestDamaged), and an
//     interruption costs at most one chunk (TestResume).
//   - It ends: passes go on only as long as they bring something about (TestNeverSatisfied, TestFileThatKeepsChanging).
//   - Memory and descriptors are bounded, whatever the size of the tree and whatever the other side does
//     (TestLargeTree, TestHostileDestination).
//   - A session belongs to its user: nobody else can start it (TestStartOfOthers). Repeating any of the calls is harmless
//     (TestStartTwice).
package transfers
