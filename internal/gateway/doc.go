// Package gateway is the L7 ingress: it accepts HTTP from the internet, decides whom a request is for, and passes it to
// IM/Server or to the instance of one user. It holds no user data and no database; its only state is the [Table] of
// routes (designs D2, D5, D11; contract 02).
//
// # Life of a request
//
//  1. Sanitise. The path is cleaned once and everything later uses the cleaned form ([cleanPath]); what two parsers could
//     read in two ways is refused with 400. Internal headers are removed on every route. A request that names two users
//     is refused. The Host must be ours.
//  2. Route by exact path segments ([classify]). Calls that only IM/Server has go there whatever the headers say, all
//     other calls go to the instance of the user.
//  3. Authenticate. A token that is present must be Core's and valid, else 401. Without one only the browser endpoints
//     remain, which have a one-time token of their own.
//  4. Find the route, or wake the instance and hold the request with its body unread.
//  5. Forward. Core's token is replaced by a hop token, made for this request and this instance.
//
// # Trust
//
// Everything from the network is hostile until step 3 has verified it. An instance is hostile too: it runs with the
// rights of its user, who may have replaced it. So it never sees Core's token, cookies, or another user's request, its
// response head is bounded, and headers by which it could act on the provider's origin are removed. IM/Server is
// trusted. Local users are hostile: an upstream connection is used only if the kernel says that the listener belongs to
// the service account (Options.CheckListener).
//
// # What is handed over
//
// Core repeats a call on 449 and 503, so these two are answered only when not one byte of the request has reached the
// instance; afterwards a failure is 502 (contract 02 point 9.22). Calls to IM/Server are idempotent by design, so they
// are repeated here when its connection breaks before an answer, and a restart of the server loses none.
//
// A connection to an instance belongs to one generation of one route. [Table.Apply] returns only when no request can be
// written to a connection of an older generation any more; idle ones are then closed, and the others are closed as soon as
// the answer under way has been read. A draining instance may therefore simply wait until the gateway has closed all
// connections.
package gateway
