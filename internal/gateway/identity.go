package gateway

import (
	"net/http"
	"net/url"
	"strings"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
)

// identity is what a request says about its user. It proves nothing: only together with a verified Core token does the
// header, or the hint, say who the user is.
type identity struct {
	user   ident.UCloudUser // empty: none was named
	header bool             // named by the header; otherwise by the hint
}

// extractIdentity reads the user of a request, strictly: what cannot be decoded, or names two users, is refused, and
// never becomes "no user" (contract 00 point 9.8, contract 02 point 9.3). A hint that is present several times with the
// same user is accepted, since the web client appends its own (contract 11 section 5.1).
func extractIdentity(h http.Header, query url.Values) (identity, error) {
	var id identity
	switch values := h[ident.HeaderUser]; len(values) {
	case 0:
	case 1:
		u, err := ident.DecodeUserHeader(values[0])
		if err != nil {
			return identity{}, failure.Wrap(err, failure.Invalid, "The %s header is not valid", ident.HeaderUser)
		}
		id = identity{user: u, header: true}
	default:
		return identity{}, failure.New(failure.Invalid, "There are several %s headers", ident.HeaderUser)
	}
	for _, hint := range query[ident.QueryUserHint] {
		u, err := ident.DecodeUserHint(hint)
		if err != nil {
			return identity{}, failure.Wrap(err, failure.Invalid, "The parameter %s is not valid", ident.QueryUserHint)
		}
		if id.user != "" && id.user != u {
			return identity{}, failure.New(failure.Invalid, "The request names several users")
		}
		id.user = u
	}
	return id, nil
}

// parseQuery parses the query string and refuses what net/url cannot parse, among others ';' as separator: the next
// parser might take it for one.
func parseQuery(raw string) (url.Values, error) {
	if raw == "" {
		return nil, nil
	}
	q, err := url.ParseQuery(raw)
	if err != nil {
		return nil, failure.Wrap(err, failure.Invalid, "The query string is not valid")
	}
	return q, nil
}

// internalPrefix starts the names of all headers of our own (canonical form).
const internalPrefix = "X-Ucloud-"

// isInternalHeader tells whether a header, in canonical form, has a meaning inside the provider and must never come
// from outside: ours, and those of the reference implementation (contract 01 section 8.4).
func isInternalHeader(name string) bool {
	switch name {
	case "Ucloud-Secret", "X-Jwt-Payload", "X-Request-Id":
		return true
	}
	return strings.HasPrefix(name, internalPrefix)
}

// removeInternalHeaders removes them from a request or a response. net/http has put all names into canonical form,
// except those with characters that are not legal in a name, which it refuses. Names that turn into an internal one in a
// program that takes '_' for '-' (CGI, some frameworks) are removed too.
func removeInternalHeaders(h http.Header) {
	for name := range h {
		if isInternalHeader(name) {
			delete(h, name)
			continue
		}
		if strings.IndexByte(name, '_') >= 0 {
			dashed := http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))
			if isInternalHeader(dashed) || dashed == ident.HeaderUser || dashed == "Authorization" {
				delete(h, name)
			}
		}
	}
}
