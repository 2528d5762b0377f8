// Package scan measures how much a directory holds by looking at everything in it: the way that works on any file
// system, and the most expensive one. It runs in an instance, as its user, because the server may not look into homes.
//
// A scan is gentle: so many entries per second and no more, in the order of the directory, one directory at a time. It is
// incremental: at any moment its [State] says where it is, in a few bytes per level, and another process can go on from
// there. So a scan of a hundred million files may take days and survive any number of restarts.
//
// What is counted is what du(1) counts: the blocks that are allocated, of files, directories and links, without what lies
// on other file systems. A file with n names counts with a n-th of its blocks for each, so that nothing must be
// remembered. Directories that may not be read are counted in Unreadable, and what they hold is missing from the result.
// Entries that come and go while the scan runs may or may not be counted; each that stays is counted once.
//
// # Trust
//
// Everything in the directory may be changed by others at any time. Everything is reached by descriptors, from one
// directory to an entry of it and never through a link, so that a scan cannot be led out of the tree; going back up, the
// directory must be the one that was left, or the rest of it is left out (TestSwapsStayInside). The process has the
// rights of the user and no others.
package scan
