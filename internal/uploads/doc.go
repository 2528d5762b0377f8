// Package uploads receives files: over the WebSocket protocol V2 for files and folders, from browsers and from other
// providers, and over the older protocols for single files (contract 11 sections 1 to 4).
//
// # Vocabulary
//
// A session is what Core creates on behalf of a user: a place in a drive, a conflict policy and a token. A connection is
// one WebSocket on a session; there may be many. A listed file is one that the client has announced. It is pending until
// we decide to send OK or SKIP, then in flight, then completed: written, skipped or failed.
//
// # Trust
//
// Core is trusted to name the drive and the permissions when a session is made. After that everything comes from
// whoever has the token: a browser, or another provider, which may be hostile. Paths, sizes, times, ids, the order of
// messages and the moment at which they stop are theirs to choose. Other users may write to the same directory and
// exchange anything in it for anything else at any time.
//
// # What is guaranteed, and which test proves it
//
//   - Nothing is written outside of the session's folder, whatever a listing says and whatever is exchanged for a link
//     meanwhile (TestHostileListings, TestSwapRace, FuzzSplitListed).
//   - Every listed file counts exactly once as completed (TestAccounting), because a browser waits for it.
//   - A name shows complete content or what it showed before: data goes to a file without a name, or with a hidden one
//     where the file system cannot do that, is flushed, and takes the name at the end (TestKill, TestFullDisk).
//   - What cannot be stored is never counted and reported as a success: the connection ends with 1011 and the failure is
//     handed to [Options.Failed] (TestFullDisk).
//   - What was listed and is missing when a connection breaks off is handed to [Options.Failed] as well, because a browser
//     shows it as done (TestLostConnection).
//   - Memory is bounded whatever a client sends (TestHostileMemory): data by a budget that stops the reading, listings
//     by compact records of which the excess goes to a file. Reading never stops for a listing, because the data of
//     other files queues behind it.
//   - After a connection nothing stays behind: no goroutine, descriptor or hidden file (TestDisconnect). Hidden files of
//     a process that was killed are removed after a day, on the next upload to the same folder.
//
// # How it works
//
// Each connection has one goroutine that reads, one that writes acknowledgements, one that watches the clock, and a
// few that work on the file system as long as there is something to do. Small files are collected in memory and
// written in one go; large ones are written in pieces as they arrive. See conn for the states and the locking.
package uploads
