// Package oidc is the proof of identity by OpenID Connect: the authorization code flow with PKCE at one identity provider,
// whose answer a program of the site turns into a local account (contract 03 sections 3.2 and 7.8, contract 42 section B.2).
// Package consent binds the login to a browser and asks the person; this package talks to the identity provider.
//
//	Core      Begin     a one-time URL of our own first page
//	browser   Open      cookie, redirect to the identity provider
//	browser   Return    code and state come back: exchange, checks, program → consent
//
// # Trust
//
// The identity provider is trusted about who its own users are, and nothing else: not to answer in time, not to answer
// briefly, not to be honest about what it was asked. An attacker may sit at the browser, send links to victims, swap answers
// between browsers, and read our database.
//
//   - Everything in an ID token is checked: signature by a key of the issuer with one of four asymmetric algorithms that
//     the issuer announces, iss, aud, azp, exp, iat, nonce, at_hash (TestLies). Userinfo must be about the same subject.
//   - State counts once and with the cookie of the browser that began (package consent), the code with the PKCE verifier of
//     that login, so that an injected code is refused by the identity provider (TestInjectedCode). An issuer that does not
//     announce S256 is refused (TestNoPKCE). An iss parameter (RFC 9207) must be that of the issuer (TestMixUp).
//   - Each answer of the identity provider is bounded in bytes and time; redirects are not followed (TestLies).
//   - Keys are read again when an unknown one is named, at most once in a while (TestKeyRotation, TestUnknownKeysAreRare).
//   - The client secret goes to the token endpoint and nowhere else; errors that quote an answer have it removed
//     (TestSecretIsNotShown).
//   - An identity provider that is away stops nothing: it is asked again, in the background and when somebody needs it
//     (TestIssuerDownAtStart).
package oidc
