// Package files answers Core's calls about files: listing, searching, describing one entry, making folders, moving, copying
// and removing. Uploads and downloads are elsewhere.
//
// Every call works with the identity of the process, which is the user's own account, so the kernel decides what is
// allowed. Reaching a file is left to package drives; nothing here joins paths.
//
// # Listing
//
// A listing is sorted, and a page must come quickly even where a directory holds a million entries. Small directories are
// read anew for every page. For larger ones one pass over the directory makes an [index]: all names in one block of
// memory outside the garbage collected heap, distributed into buckets that are sorted when a page needs them. Indexes are
// shared by all requests, bounded in bytes and dropped when idle.
//
// A page token holds the last entry shown, not a position, so that it stays right whatever happens to the index, to the
// directory or to the instance (contract 10 section 5.1): entries that are there all the time are shown exactly once.
//
// # Changing
//
// A move that the kernel can do in one piece is done in the request, as are trashing and the removal of single files.
// Everything else is a task (package tasks): copier copies and merges, mover removes what was copied for a move to another
// file system, remover removes. All three walk by a [tree], with a bounded number of descriptors at any depth, and take
// single names in open directories only. tally counts for them, and words the end. What a task is about is stored with
// the inodes that were meant, so that it never works on something else that has the name by its turn. Copies and moves are
// explained in docs/decisions/0008, what the trash remembers in 0007.
//
// # Time
//
// Core waits 5 seconds. An operation runs in a goroutine of its own, at most a few per drive; when a file system hangs the
// request is answered without it and the drive refuses further work until the kernel comes back (see gate).
package files
