package oidc

import (
	"crypto/subtle"
	"errors"
	"net/url"

	"ucloud-im/internal/failure"
)

// Bounds of what a browser brings back. Codes of some identity providers are encrypted documents of some KiB.
const (
	maxQuery = 16 << 10
	maxParam = 12 << 10
)

// answer is what comes back from the authorization endpoint (OpenID Connect Core 1.0 section 3.1.2.5, RFC 9207).
type answer struct {
	state  string
	code   string // or
	err    string // why there is none
	iss    string
	hasIss bool
}

// parseAnswer reads the query of the callback. Each parameter may come once (RFC 6749 section 3.1); unknown ones are
// ignored. The description of an error is ignored too: anybody can write one.
func parseAnswer(raw string) (a answer, err error) {
	invalid := func(cause string) (answer, error) {
		return answer{}, failure.Wrap(errors.New(cause), failure.Invalid, "This is not an answer of the identity provider. Press \"Connect\" in UCloud again")
	}
	if len(raw) > maxQuery {
		return invalid("the query is too long")
	}
	q, err := url.ParseQuery(raw)
	if err != nil {
		return invalid("the query cannot be read")
	}
	for name, field := range map[string]*string{"state": &a.state, "code": &a.code, "error": &a.err, "iss": &a.iss} {
		switch values := q[name]; {
		case len(values) > 1:
			return invalid(name + " comes twice")
		case len(values) == 1:
			if *field = values[0]; *field == "" || len(*field) > maxParam {
				return invalid(name + " is empty or too long")
			}
		}
	}
	a.hasIss = a.iss != ""
	switch {
	case a.state == "":
		return invalid("there is no state")
	case (a.code == "") == (a.err == ""):
		return invalid("there is not exactly one of code and error")
	}
	return a, nil
}

// checkIssuer refuses an answer of another identity provider (RFC 9207 section 2.4).
func (a answer) checkIssuer(issuer string, announced bool) error {
	switch {
	case a.hasIss && a.iss != issuer:
		return refused("the answer is of the issuer " + clip(a.iss))
	case !a.hasIss && announced:
		return refused("the answer does not name its issuer, which it always should")
	}
	return nil
}

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
