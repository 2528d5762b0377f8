// Package drivelookup answers instances that know nothing of a drive but its id.
//
// Core sends the whole drive with most calls. Deleting files and searching name it by id only, so an instance that has
// not seen the drive asks the server ([ipcapi.DriveFind]). The server has the drives it has registered itself; all others
// it asks Core for, and remembers the answer for a while. A drive that its owner has shared with somebody outside of its
// workspace, by Core's access list, is not found here: an instance knows it after a call that came with it.
//
// # Trust
//
// The caller is any program of a mapped user, not our code. It sends an id and nothing else, so it cannot poison the
// answers that others get (contract 12, cache poisoning; TestNothingButTheIDIsTaken). A drive is given away only if its
// workspace is the user's own, or a project of which the user is a member now, by what Core has said last; the answer is
// otherwise the same as for a drive that does not exist (TestWhoMayFind). Questions that reach Core are bounded for each
// account and in all (TestCoreIsNotFlooded).
package drivelookup
