// Package drives turns what UCloud/Core says about a file into a handle on that file, and keeps every handle inside the
// drive that Core authorised.
//
// # Who is trusted
//
// Core is trusted to say which drive a user may use: the drive object in a request names the local directory (contract
// 10 section 2). Paths, names, the contents of the directory and every symbolic link in it are chosen by users, and may
// change between any two system calls, because a project is a directory that many people write to.
//
// # What is guaranteed
//
//   - A path is checked on its text with the rules that Core used to authorise it, before the disk is touched ([Ref.Path]).
//   - Everything on disk is reached from the descriptor of the drive's base directory, never from a joined string. With
//     [FollowDrive] the kernel keeps the resolution below it (openat2, RESOLVE_BENEATH); a link that leaves gives
//     [ErrOutside]. TestSwapRaceNeverLeavesTheDrive proves it while directories are being exchanged for links.
//   - A name that is not valid UTF-8 has exactly one form in JSON and back ([Escape], [Unescape]).
//   - Opening never blocks on a FIFO and never touches a device ([Local.OpenRegular]).
//
// [Root], [Dir] and [Local] have no exported fields: code that holds one got it from the checks here.
//
// Nothing here raises privileges. The process has the user's own identity, and the kernel's permissions decide about
// everything inside the drive.
package drives
