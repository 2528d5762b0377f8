// Package signingkeys looks after the public keys with which the browsers of users sign their requests: it takes them in
// while a user connects, makes them usable when the user has proved who they are, and ends them (contract 01 sections 7.2
// and 8.12; decision 14).
//
// # Life cycle
//
//	        upload             usermap.Link, with the key
//	(none) ────────▶ pending ─────────────────────────────▶ active ──────────▶ expired, revoked
//	                    │                                             time, end of the mapping, user, operator
//	                    └──▶ forgotten: no proof in time, interference, a proof without the key
//
// A pending key verifies nothing. There is one way to active, [Service.Activate], and package usermap calls it inside the
// transaction that stores the mapping; what ends a mapping ends the keys in the same transaction ([Service.EndOf]).
//
// # Trust
//
// The address to which the browser sends its key passes through UCloud/Core, so whoever is in Core can send a key of
// their own there. Nothing that arrives here is believed to be the user's; that is what the proof is for, which Core
// cannot complete. What this package adds:
//
//   - A session takes one key. A second one, or a browser that comes without a key after one was sent, means that two
//     parties have the address: the key is forgotten and an operator can read of it in the log (TestOneKeyPerSession,
//     TestBrowserWithoutKeyAfterUpload).
//   - A session is for one user, lives a quarter of an hour, ends with the next one, and is stored as a hash.
//   - A key that somebody has revoked never becomes usable again for this user (TestRevokedStaysRevoked). One that ended
//     with a connection may: the browser still has it, and it takes a new proof.
//   - A user has a bounded number of keys. Flooding a user with keys that are never proved makes the oldest of those
//     give way and leaves the active ones alone (TestBounds).
//   - A key counts for the account it was proved for and for no other (TestKeysAreForTheAccount).
//
// The same key may be one of several users: a browser profile has one pair, and its owner may have several UCloud users.
// It opens nothing, because what is signed names the user, and refusing it would let everybody who has seen a public key
// keep its owner out.
package signingkeys
