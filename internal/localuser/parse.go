package localuser

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"ucloud-im/internal/ident"
)

// Account is a record of the passwd database (passwd(5)).
type Account struct {
	Name  string
	UID   ident.UID
	GID   ident.GID // primary group
	Home  string
	Shell string // empty means /bin/sh
}

// Group is a record of the group database (group(5)). Members lists supplementary members only, and directories may
// leave it empty for large groups.
type Group struct {
	Name    string
	GID     ident.GID
	Members []string
}

// Shadow is what the policy needs from a record of the shadow database (shadow(5)). The password itself is not kept.
type Shadow struct {
	Name string
	// LockedHash tells that a password hash is there and was disabled by a "!" in front of it, which is what
	// usermod -L does. A bare "!" or "*" means "has no password" and is usual where people log in with keys.
	LockedHash bool
	// Expires is the day after 1970-01-01 from which the account is closed; -1 means never.
	Expires int64
}

var errMalformed = errors.New("malformed record")

const maxNameLength = 256

// ValidName tells whether s can be a login or group name that is safe to look up. It refuses what NSS tools would
// take for something else: numbers, options ("-x") and forced numeric ids ("+5").
func ValidName(s string) bool {
	if s == "" || len(s) > maxNameLength || !utf8.ValidString(s) {
		return false
	}
	if s[0] == '-' || s[0] == '+' || s[0] == '#' || s[0] == '%' || s == "." || s == ".." {
		return false
	}
	digits := true
	for _, r := range s {
		if r == ':' || r == '/' || r == ',' || unicode.IsSpace(r) || unicode.IsControl(r) {
			return false
		}
		digits = digits && r >= '0' && r <= '9'
	}
	return !digits
}

// oneLine returns the only line of out. NSS tools print one record for each match; two records for one key would mean
// that the key is ambiguous.
func oneLine(out []byte) (string, error) {
	line, rest, found := bytes.Cut(out, []byte{'\n'})
	if !found || len(rest) != 0 {
		return "", fmt.Errorf("%w: expected exactly one line", errMalformed)
	}
	if !utf8.Valid(line) || bytes.IndexByte(line, 0) >= 0 {
		return "", fmt.Errorf("%w: not text", errMalformed)
	}
	return string(line), nil
}

func parseID(s string) (uint32, error) {
	// ParseUint accepts no sign; underscores only with base 0. "007" is refused because nothing prints it.
	if len(s) > 1 && s[0] == '0' {
		return 0, fmt.Errorf("%w: id %q", errMalformed, s)
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%w: id %q", errMalformed, s)
	}
	return uint32(n), nil
}

func parsePasswd(out []byte) (Account, error) {
	line, err := oneLine(out)
	if err != nil {
		return Account{}, err
	}
	f := strings.Split(line, ":")
	if len(f) != 7 {
		return Account{}, fmt.Errorf("%w: passwd record has %d fields", errMalformed, len(f))
	}
	uid, err := parseID(f[2])
	if err != nil {
		return Account{}, err
	}
	gid, err := parseID(f[3])
	if err != nil {
		return Account{}, err
	}
	if f[0] == "" {
		return Account{}, fmt.Errorf("%w: no name", errMalformed)
	}
	return Account{Name: f[0], UID: ident.UID(uid), GID: ident.GID(gid), Home: f[5], Shell: f[6]}, nil
}

func parseGroup(out []byte) (Group, error) {
	line, err := oneLine(out)
	if err != nil {
		return Group{}, err
	}
	f := strings.Split(line, ":")
	if len(f) != 4 || f[0] == "" {
		return Group{}, fmt.Errorf("%w: group record has %d fields", errMalformed, len(f))
	}
	gid, err := parseID(f[2])
	if err != nil {
		return Group{}, err
	}
	g := Group{Name: f[0], GID: ident.GID(gid)}
	for m := range strings.SplitSeq(f[3], ",") {
		if m != "" {
			g.Members = append(g.Members, m)
		}
	}
	return g, nil
}

func parseGroups(out []byte) ([]ident.GID, error) {
	line, err := oneLine(out)
	if err != nil {
		return nil, err
	}
	var gids []ident.GID
	for f := range strings.SplitSeq(line, " ") {
		n, err := parseID(f)
		if err != nil {
			return nil, err
		}
		gids = append(gids, ident.GID(n))
	}
	return gids, nil
}

func parseShadow(out []byte) (Shadow, error) {
	line, err := oneLine(out)
	if err != nil {
		return Shadow{}, err
	}
	f := strings.Split(line, ":")
	if len(f) != 9 || f[0] == "" {
		return Shadow{}, fmt.Errorf("%w: shadow record has %d fields", errMalformed, len(f))
	}
	s := Shadow{Name: f[0], Expires: -1}
	// "!" + hash is a locked password. "!", "!!", "!*" and "*" hold no hash.
	if hash := strings.TrimLeft(f[1], "!"); hash != f[1] && hash != "" && hash != "*" {
		s.LockedHash = true
	}
	if f[7] != "" {
		days, err := strconv.ParseInt(f[7], 10, 64)
		if err != nil {
			return Shadow{}, fmt.Errorf("%w: expiry %q", errMalformed, f[7])
		}
		s.Expires = days
	}
	return s, nil
}
