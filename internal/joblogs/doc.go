// Package joblogs lets UCloud/Core follow the logs of jobs (contract 21 section 3): from the queue to the end and beyond, for
// all ranks, live, and again from the start whenever Core connects anew.
//
// # Where the text comes from
//
// The job's folder holds stdout.txt and stderr.txt, which are those of rank 0, and for each rank std-<rank>.out and .err,
// if the application writes them (contract 22 section 5). A follower looks at a file when inotify says that it has changed.
// Changes made on other machines cannot be seen that way: on a network file system, or where no watch is to be had, it
// looks by itself, more rarely the longer nothing has changed. Nothing of a file is kept in memory but the piece that is
// on its way, and a peer that does not read stops the reading.
//
// Of a long file only the end is sent, with a sentence that says so; the same when the peer has fallen far behind.
//
// # Trust
//
// Core connects; which job it means is the only thing taken from it. Whether the user may see the job, and where its
// folder is, the server says. Everything in the folder is written by the job, and with a shared drive perhaps by others:
// no link is followed and nothing but regular files is opened (TestNothingButTheJobsFiles).
//
// # Properties, and the tests that prove them
//
//   - what was written before the end of the job is sent before the final frame (TestDrain);
//   - truncated, replaced and late files (TestTruncated, TestLateFiles);
//   - a UTF-8 sequence is never cut (TestWholeRunes);
//   - the socket stays open after the final frame until Core closes it, with frames that let Core notice that its browser
//     has left (TestStaysOpen).
package joblogs
