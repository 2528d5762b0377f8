package gateway

import (
	"strings"
	"unicode/utf8"

	"ucloud-im/internal/failure"
)

// maxPath bounds the path in bytes. The longest path of the API has well under 200.
const maxPath = 4096

// cleanPath turns the path of a request target into the one form that is used from then on, for routing, for
// authorization, for the hop token and for the upstream request.
//
// Repeated slashes are collapsed, dot segments are resolved and a trailing slash is removed (contract 00 section 1).
// Whatever could mean one thing to this process and another to the next one is refused: encoded slashes, backslashes,
// dots that form a dot segment, encoded percent signs, NUL and control characters, ';' parameters, and a ".." that
// leaves the root (contract 02 point 9.2). No path of the API needs any of these.
//
// raw is the path as it came, escapes included and without the query; the result is decoded.
func cleanPath(raw string) (string, error) {
	switch {
	case raw == "" || raw[0] != '/':
		return "", failure.New(failure.Invalid, "The request target is not an absolute path")
	case len(raw) > maxPath:
		return "", failure.New(failure.Invalid, "The path is too long")
	}
	if isPlainPath(raw) {
		return strings.TrimSuffix(raw, "/"), nil
	}
	var out []string
	for segment := range strings.SplitSeq(raw, "/") {
		switch segment {
		case "", ".":
			continue
		case "..":
			if len(out) == 0 {
				return "", failure.New(failure.Invalid, "The path leaves the root")
			}
			out = out[:len(out)-1]
			continue
		}
		decoded, err := decodeSegment(segment)
		if err != nil {
			return "", err
		}
		out = append(out, decoded)
	}
	return "/" + strings.Join(out, "/"), nil
}

// isPlainPath recognises, without allocating, what nearly all requests have: only unreserved characters, no empty and
// no dot segments (a segment that begins with a dot takes the long way).
func isPlainPath(raw string) bool {
	if len(raw) < 2 {
		return false
	}
	previous := byte(0)
	for i := range len(raw) {
		c := raw[i]
		switch {
		case c == '/' && previous == '/', c == '.' && previous == '/':
			return false
		case c != '/' && !isUnreserved(c):
			return false
		}
		previous = c
	}
	return true
}

// rawAllowed are the characters other than unreserved ones that may stand in a path segment without an escape (RFC 3986
// section 3.3), less ';'.
const rawAllowed = "!$&'()*+,=:@"

// decodeSegment decodes one path segment, refusing what is ambiguous.
func decodeSegment(segment string) (string, error) {
	var b strings.Builder
	b.Grow(len(segment))
	for i := 0; i < len(segment); i++ {
		c := segment[i]
		if c == '%' {
			if i+2 >= len(segment) {
				return "", badEscape()
			}
			high, low := unhex(segment[i+1]), unhex(segment[i+2])
			if high < 0 || low < 0 {
				return "", badEscape()
			}
			c = byte(high<<4 | low)
			i += 2
			switch c {
			// These change the structure of the path, or of the URL, for whoever decodes once more or once less.
			case '/', '\\', '%', ';', '?', '#':
				return "", failure.New(failure.Invalid, "The path contains an encoded character that is not allowed")
			}
		} else if !isUnreserved(c) && strings.IndexByte(rawAllowed, c) < 0 {
			return "", failure.New(failure.Invalid, "The path contains a character that is not allowed")
		}
		if c < 0x20 || c == 0x7f {
			return "", failure.New(failure.Invalid, "The path contains a control character")
		}
		b.WriteByte(c)
	}
	decoded := b.String()
	if decoded == "." || decoded == ".." {
		return "", failure.New(failure.Invalid, "The path contains an encoded dot segment")
	}
	if !utf8.ValidString(decoded) {
		return "", failure.New(failure.Invalid, "The path is not valid UTF-8")
	}
	return decoded, nil
}

func badEscape() error {
	return failure.New(failure.Invalid, "The path contains an incomplete escape")
}

func isUnreserved(c byte) bool { // RFC 3986 section 2.3
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// target says who answers a path.
type target uint8

const (
	targetNone     target = iota // nobody: 404
	targetServer                 // IM/Server, whatever the headers
	targetInstance               // the user's instance, verified Core token required
	targetUpload                 // the user's instance, also for browsers with a one-time token
	targetDownload               // likewise
	targetTerminal               // likewise
	targetDesktop                // the desktop of a job, with a one-time token
	targetWeb                    // a web application of a job, by its host name
)

// String is the name in logs and metrics.
func (t target) String() string {
	switch t {
	case targetServer:
		return "server"
	case targetInstance, targetUpload, targetDownload, targetTerminal:
		return "instance"
	case targetDesktop:
		return "desktop"
	case targetWeb:
		return "web"
	}
	return "none"
}

// forBrowsers tells whether the target accepts requests without Core's token. This is the complete allow-list (contract
// 01 section 8.14, contract 02 point 9.23); the instance checks their one-time tokens.
func (t target) forBrowsers() bool {
	return t == targetUpload || t == targetDownload || t == targetTerminal
}

// classify decides by exact segments of a cleaned path (contract 02 section 2). Everything that is not listed as
// IM/Server's belongs to the user's instance; another provider's id, and anything outside /ucloud, is nobody's.
func classify(provider, path string) target {
	if path == "/ucloud-oidc" {
		return targetServer
	}
	rest, ok := strings.CutPrefix(path, "/ucloud/")
	if !ok {
		return targetNone
	}
	first, rest, _ := strings.Cut(rest, "/")
	if id, ok := strings.CutPrefix(first, "jobs.provider."); ok {
		// The provider id stands inside this segment, and only the log stream of jobs has this form (contract 00
		// section 1).
		if id == provider && rest == "websocket" {
			return targetInstance
		}
		return targetNone
	}
	if first != provider || rest == "" {
		return targetNone
	}
	area, below, nested := strings.Cut(rest, "/")
	switch {
	case area == "integration",
		area == "provider" && (below == "branding" || strings.HasPrefix(below, "branding/")),
		area == "authorize-app", area == "vnc" && nested,
		nested && (below == "retrieveProducts" || strings.HasSuffix(below, "/retrieveProducts")):
		return targetServer
	case rest == "vnc":
		return targetDesktop
	case rest == "upload":
		return targetUpload
	case rest == "download":
		return targetDownload
	case rest == "websocket":
		return targetTerminal
	}
	return targetInstance
}
