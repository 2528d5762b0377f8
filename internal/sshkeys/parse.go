package sshkeys

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"strings"
)

const (
	// maxKeyText bounds the text of a key. One of RSA with 16384 bits has 2.8 KiB.
	maxKeyText = 8 << 10
	// maxKeys bounds the keys of a user.
	maxKeys = 100
	// maxTitle bounds what is kept of a title.
	maxTitle = 60
)

// Policy says which keys are installed: ed25519, ecdsa, rsa, rsa>=bits, sk-*.
type Policy []string

// allows tells whether a kind of key with a number of bits is allowed.
func (p Policy) allows(kind string, bits int) bool {
	for _, rule := range p {
		if least, ok := strings.CutPrefix(rule, "rsa>="); ok && kind == "rsa" {
			if n, err := strconv.Atoi(least); err == nil && bits >= n {
				return true
			}
		}
		if rule == kind {
			return true
		}
	}
	return false
}

// kinds are the names of key types (RFC 4253, RFC 5656, RFC 8709, OpenSSH's PROTOCOL.u2f) and their kinds.
var kinds = map[string]string{
	"ssh-ed25519": "ed25519", "ssh-rsa": "rsa",
	"ecdsa-sha2-nistp256": "ecdsa", "ecdsa-sha2-nistp384": "ecdsa", "ecdsa-sha2-nistp521": "ecdsa",
	"sk-ssh-ed25519@openssh.com": "sk-*", "sk-ecdsa-sha2-nistp256@openssh.com": "sk-*",
}

var errKey = errors.New("not a public key")

// parse checks a key and gives it in its plain form, without options and comment. Core's only check is how it begins: there
// may be options, line breaks, and anything else in it (contract 23 section 4).
func parse(text string, policy Policy) (string, error) {
	text = strings.Trim(text, " \t\r\n")
	if len(text) > maxKeyText || strings.ContainsAny(text, "\r\n\x00") {
		return "", fmt.Errorf("%w: it is not one line", errKey)
	}
	fields := strings.Fields(text)
	if len(fields) < 2 {
		return "", fmt.Errorf("%w: it has no data", errKey)
	}
	kind, known := kinds[fields[0]]
	if !known {
		return "", fmt.Errorf("%w: it begins with options, or its type is not known", errKey)
	}
	blob, err := base64.StdEncoding.Strict().DecodeString(fields[1])
	if err != nil {
		return "", fmt.Errorf("%w: %w", errKey, err)
	}
	bits, err := look(fields[0], blob)
	if err != nil {
		return "", err
	}
	if !policy.allows(kind, bits) {
		return "", fmt.Errorf("keys of type %s with %d bits are not allowed", fields[0], bits)
	}
	return fields[0] + " " + base64.StdEncoding.EncodeToString(blob), nil
}

// look reads the binary form of a key, which must be complete, and gives its bits.
func look(name string, blob []byte) (bits int, err error) {
	r := bytes.NewReader(blob)
	next := func() []byte {
		var n uint32
		if err != nil {
			return nil
		}
		if err = binary.Read(r, binary.BigEndian, &n); err == nil && int64(n) > int64(r.Len()) {
			err = errors.New("it ends early")
		}
		if err != nil {
			return nil
		}
		p := make([]byte, n)
		r.Read(p) //nolint:errcheck // there is enough
		return p
	}
	odd := func(what string) { err = errors.Join(err, errors.New(what)) }
	if string(next()) != name {
		odd("its data are of another type")
	}
	points := map[string]int{"nistp256": 65, "nistp384": 97, "nistp521": 133}
	switch kinds[name] {
	case "rsa":
		e, n := new(big.Int).SetBytes(next()), new(big.Int).SetBytes(next())
		bits = n.BitLen()
		if e.BitLen() < 2 || e.BitLen() > 64 || e.Bit(0) == 0 || bits > 16384 || n.Bit(0) == 0 {
			odd("its numbers make no sense")
		}
	case "ecdsa":
		curve := string(next())
		if point := next(); name != "ecdsa-sha2-"+curve || len(point) != points[curve] || len(point) > 0 && point[0] != 4 {
			odd("its curve makes no sense")
		}
		bits = (points[curve] - 1) * 4
	case "ed25519":
		if len(next()) != 32 {
			odd("its length is wrong")
		}
		bits = 256
	default: // on a token
		want := 32
		if strings.HasPrefix(name, "sk-ecdsa") {
			want = points[string(next())]
		}
		if point := next(); want == 0 || len(point) != want {
			odd("its length is wrong")
		}
		if len(next()) == 0 { // the application
			odd("it is for no application")
		}
		bits = 256
	}
	if err == nil && r.Len() > 0 {
		odd("there is something behind it")
	}
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errKey, err)
	}
	return bits, nil
}

// plainTitle is what may stand in a comment.
func plainTitle(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune("@._-+", r):
			return r
		}
		return '_'
	}, s)
	return s[:min(len(s), maxTitle)]
}
