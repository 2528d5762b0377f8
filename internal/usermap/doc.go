// Package usermap binds UCloud users to local accounts: it owns the life cycle of a mapping, from the moment both
// sides are known until it is removed, and answers who is who.
//
// # Life cycle
//
//	          Link                outbox                 at once
//	(none) ─────────▶ pending ─────────────▶ approved ──────────▶ active
//	                     ▲    clear + approve          hooks run    │
//	                     │ Link, same uid                           │ Unlinked, Expire, time
//	                     └────────────────── expired ◀──────────────┘
//
// Link writes the mapping and the delivery to UCloud/Core in one transaction, so there is no pending mapping that
// nobody works on. Repair closes the gaps that a crash can leave (contract 05 section D). An expired mapping keeps its
// uid: the user may come back to the same account without anybody's help, and to no other. Remove ends it for good.
//
// Only an active mapping counts for [Service.User] and [Service.Account], and so for launching instances and for
// identity over IPC.
//
// Signing keys of a user (package signingkeys) become usable in the transaction of Link and end, by Options.Ended, in the
// transaction that ends the mapping, so there is no moment at which a key counts without the proof that came with it.
//
// # What Core cannot bear
//
// A second approveConnection for a connected user, and one for a user whom Core does not know, end the Core process
// (contract 03 section 2.4). So:
//
//   - clearConnection and approveConnection are one delivery and always sent as a pair. The outbox notes the attempt
//     before it begins, so that even a crash of this process is followed by half a minute of silence before the pair
//     is repeated.
//   - Only users whom Core itself has named are ever approved. Link refuses all others.
//
// # Trust
//
// Core is trusted about which user presses "Connect", nothing else: what binds the account is the proof that a
// [Method] collects. The account policy is asked at every Link and every Resolve; an error there means no. One uid
// belongs to one user and one user to one uid, enforced by constraints of the database inside the transaction and not
// by a check before it. TestOneUIDOneUser, TestOnlyUsersCoreHasNamed and TestCrashes prove these.
package usermap
