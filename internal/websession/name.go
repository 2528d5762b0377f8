package websession

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"
	"unicode"

	"ucloud-im/internal/store"
)

// maxLabel is the longest label of a host name (RFC 1035 section 2.3.4).
const maxLabel = 63

// letters are what becomes of letters outside of ASCII that occur in names of interfaces. Others are left out.
var letters = map[rune]string{
	'æ': "ae", 'ø': "o", 'å': "a", 'ä': "a", 'ö': "o", 'ü': "u", 'ß': "ss", 'é': "e", 'è': "e", 'ê': "e", 'ë': "e", 'á': "a", 'à': "a",
	'â': "a", 'ã': "a", 'í': "i", 'ì': "i", 'î': "i", 'ï': "i", 'ó': "o", 'ò': "o", 'ô': "o", 'õ': "o", 'ú': "u", 'ù': "u", 'û': "u",
	'ý': "y", 'ÿ': "y", 'ç': "c", 'ñ': "n", 'ð': "d", 'þ': "th", 'œ': "oe", 'š': "s", 'ž': "z", 'č': "c", 'ł': "l", 'ń': "n", 'ś': "s",
}

// safe makes the name of an interface fit for a host name (contract 21 section 5.2).
func safe(target string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(target) {
		switch {
		case 'a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '-':
			b.WriteRune(r)
		case unicode.IsSpace(r):
			b.WriteByte('-')
		default:
			b.WriteString(letters[r])
		}
	}
	return strings.Trim(b.String(), "-")
}

// digest tells names apart that look the same in a host name.
func digest(target string) string {
	sum := sha256.Sum256([]byte(target))
	return hex.EncodeToString(sum[:4])
}

// jobName tells whether an id of a job can stand in a host name. Core's are numbers.
func jobName(id string) bool {
	if id == "" || len(id) > 20 {
		return false
	}
	for i := range len(id) {
		if id[i] < '0' || id[i] > '9' {
			return false
		}
	}
	return true
}

// suffixOf is what stands for the target in host name and cookie, short enough for the label. With exact it names this
// target and no other.
func suffixOf(target string, room int, exact bool) string {
	if target == "" {
		return ""
	}
	name := safe(target)
	if name == "" || exact || len(name) > room {
		d := digest(target)
		if keep := room - len(d) - 1; name != "" && keep > 0 {
			return strings.TrimRight(name[:min(len(name), keep)], "-") + "-" + d
		}
		return d
	}
	return name
}

// hostOf is the host name of a web application: <prefix><jobId>-<rank>[-<target>]<suffix>.
func hostOf(prefix, suffix string, w *store.WebInterface, exact bool) string {
	base := strings.ToLower(prefix) + w.Job + "-" + strconv.Itoa(w.Rank)
	after, _, _ := strings.Cut(strings.ToLower(suffix), ".")
	if s := suffixOf(w.Target, maxLabel-len(base)-1-len(after), exact); s != "" {
		base += "-" + s
	}
	return base + strings.ToLower(suffix)
}

// cookieOf is the name of the cookie of a web application (contract 21 section 5.3).
func cookieOf(w *store.WebInterface) string {
	name := "ucloud-compute-session-" + w.Job + "-" + strconv.Itoa(w.Rank)
	if s := suffixOf(w.Target, maxLabel, false); s != "" {
		name += "-" + s
	}
	return name
}

// idOf names an interface inside the provider.
func idOf(w *store.WebInterface) string {
	return strings.ToLower(w.Kind) + "/" + w.Job + "/" + w.UID.String() + "/" + strconv.Itoa(w.Rank) + "/" + w.Target
}

// nodeName tells whether the name of a node is a host name or an address, and nothing else.
func nodeName(s string) bool {
	if s == "" || len(s) > 253 || s[0] == '-' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_') {
			return false
		}
	}
	return true
}
