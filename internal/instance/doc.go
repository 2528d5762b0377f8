// Package instance is the life of one user's instance: it takes its identity and listener from the server, serves
// requests as the user, and ends when it is told to, is idle, or has lost the server for too long.
//
// # Life
//
//	harden → read the socket's path → connect → hello ─┬─ start: take the listener, serve, say ready
//	                                                   ├─ detach: run again outside sudo, end
//	                                                   └─ kill: end a hung process of the same user, end
//	serving → drain (finish what is under way) or stop (at once) → end
//	serving → server lost → hello with the listener in hand, for as long as the grace allows
//
// # What is trusted
//
// The kernel's word that the other end of the IPC socket is the account that started us (SUDO_UID is set by sudo; a
// line on standard input from somebody else leads nowhere), and the documents that come from there. Nothing is read
// from arguments, and from the environment only SUDO_UID.
//
// What an attacker controls: everything the user can do, the user's other programs can do too. They may signal and
// stop the process, but must not read its memory, which holds the key of the route: it is not dumpable. Other users
// can connect to the port: a connection is served only if its other end belongs to the service account, which is
// checked before a byte is read (TestOnlyTheServiceAccountIsServed).
//
// # Invariants
//
//   - never as root, never with a capability, never with mixed user ids;
//   - no timer runs while the instance is idle, but the one that ends it; the garbage collector is off then,
//     and what the work has left was given back to the system (TestQuietGivesMemoryBack);
//   - writing a log line never blocks and never fails the process, also without a reader.
package instance
