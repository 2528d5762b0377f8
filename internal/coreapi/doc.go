// Package coreapi is the client for UCloud/Core: it turns the provider's refresh token into access tokens and makes
// the calls of the control API with them.
//
// # Parts
//
// [TokenSource] exchanges the refresh token and hands out access tokens. [Client] makes calls; it has one method per
// call, and each method documents whether the call may be repeated.
//
// # What callers can rely on
//
//   - Nothing is ever sent to Core without an access token, the exchange itself excepted. Without a token a call ends
//     with [ErrNotSent] (contract 01 section 8.6).
//   - Errors say what is known about the outcome. [ErrNotSent]: Core has not seen the request. [StatusError]: Core
//     answered, nothing is in doubt, see [Unanswered] for answers of a proxy in front of a dead Core. [ErrNoAnswer]:
//     the request may have been carried out. Several calls end the Core process when repeated carelessly (contract 05
//     section C), so a caller must look at this difference.
//   - The client repeats a call by itself in one case only: Core refused the token, another one was fetched, and the
//     call is idempotent.
//
// # Trust and limits
//
// Core is trusted to describe users, projects and products, but not with our memory: answers are read up to a limit,
// paging is bounded, texts that end up in logs are cut. Redirects are not followed, since they would carry the token
// elsewhere. Proxy variables of the environment (HTTP_PROXY and friends) are ignored: the token must go where the
// configuration says and nowhere else.
package coreapi
