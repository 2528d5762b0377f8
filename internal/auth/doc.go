// Package auth decides whether a request comes from UCloud/Core, and reads the keys that prove it.
//
// Trust: Core signs its service tokens with a private key that only Core has; the provider was given the public key at
// enrolment (contract 01 section 2). Everything in a request is an attacker's until [Verifier.VerifyCore] has returned
// without error. What it returns is a [Principal], which nothing but this package can make: a handler that wants one
// cannot forget the check.
//
// The same key pair also signs the provider's own access tokens, with the same issuer and audience. So the signature
// alone proves nothing about who is calling: subject and role decide (contract 01 section 3 point 5). The attack table
// in TestVerifyCoreRefuses has one row for each way to get around these rules.
//
// A user's name is not part of the token. Whom Core acts for stands in a header, and trusting that header is trusting
// Core.
package auth
