// Package ticket is the ticket mapper: a UCloud user who presses "Connect" is given a ticket, and whoever completes it
// on the machine binds the user to a local account. An operator completes it for a named account, the user themselves
// for the account in which the kernel says they are logged in.
//
// # What a ticket is
//
// 135 random bits, shown as seven groups of four letters and digits. It is a secret: it proves that its holder has seen
// the page of that UCloud user. Only its SHA-256 is stored, which is enough because nobody can search 2^135 values. It
// can be used once, expires, and is superseded by the user's next one.
//
// # What it protects against
//
// A ticket that was sent to a victim ("please run this command") would bind the attacker's UCloud user to the victim's
// account (contract 03 section 7.1). So completing takes the name of the UCloud user that the person at the keyboard
// has been shown and has confirmed, and is refused if the ticket names another one. The account of an ordinary user is
// the kernel's answer and no part of any request. TestCompleteNeedsTheConfirmedUser and TestSelfServiceUsesTheKernel
// (package operator) prove these.
//
// A signing key may come with a ticket, and UCloud/Core could have put it there. So it becomes usable only if completing
// names its fingerprint, which a person has compared; otherwise the connection is made without it
// (TestKeyNeedsTheConfirmedFingerprint; decision 14 says what comparing proves).
package ticket

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"strings"
	"unicode"
)

// alphabet is Crockford's base 32: no I, L, O and U, so that no two letters look alike and no group spells a word that
// anybody minds.
const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// A ticket has bodyLength random symbols of 5 bits and one check symbol, in groups of groupLength.
const (
	bodyLength  = 27
	length      = bodyLength + 1
	groupLength = 4
	// maxInput bounds what Parse looks at: a ticket pasted with a blank between any two symbols is far shorter.
	maxInput = 256
)

// Ticket is the canonical text of a ticket: [length] symbols of the alphabet. The zero value is no ticket; only
// [New] and [Parse] make others.
type Ticket struct{ s string }

// Errors of [Parse]. Neither quotes the input, which may be a secret.
var (
	ErrShape = errors.New("this is not a ticket: a ticket has seven groups of four letters and digits")
	ErrTypo  = errors.New("the ticket has a typing error: please compare it with the page again")
)

// New makes a ticket.
func New() Ticket {
	var raw [bodyLength]byte
	rand.Read(raw[:]) //nolint:errcheck // never fails, crypto/rand documents it
	return of(raw)
}

// derive makes the ticket that belongs to a secret of at least as many random bits.
func derive(secret string) Ticket {
	sum := sha512.Sum512([]byte("ucloud ticket of\x00" + secret))
	return of([bodyLength]byte(sum[:]))
}

func of(raw [bodyLength]byte) Ticket {
	b := make([]byte, bodyLength, length)
	for i, r := range raw {
		b[i] = alphabet[r&31] // 32 divides 256: every symbol is equally likely
	}
	return Ticket{string(append(b, check(b)))}
}

// Parse reads a ticket as a person gives it: upper or lower case, with hyphens, dashes and blanks of any kind anywhere,
// and with the letters that were left out in place of the digits they resemble.
func Parse(in string) (Ticket, error) {
	if len(in) > maxInput {
		return Ticket{}, ErrShape
	}
	b := make([]byte, 0, length)
	for _, r := range in {
		if unicode.IsSpace(r) || unicode.Is(unicode.Pd, r) || unicode.Is(unicode.Cf, r) || r == '\u2212' {
			continue // Cf: the invisible characters that mail programs put where a line may break
		}
		switch r = unicode.ToUpper(r); r {
		case 'O':
			r = '0'
		case 'I', 'L':
			r = '1'
		}
		if r > unicode.MaxASCII || strings.IndexByte(alphabet, byte(r)) < 0 || len(b) == length {
			return Ticket{}, ErrShape
		}
		b = append(b, byte(r))
	}
	if len(b) != length {
		return Ticket{}, ErrShape
	}
	if check(b[:bodyLength]) != b[bodyLength] {
		return Ticket{}, ErrTypo
	}
	return Ticket{string(b)}, nil
}

// check is the symbol that finds typing errors: 31 of 32 are noticed before anybody is asked. It is no protection.
func check(body []byte) byte {
	sum := sha256.Sum256(append([]byte("ucloud ticket check\x00"), body...))
	return alphabet[sum[0]&31]
}

// String is the ticket as it is shown, in groups joined by hyphens. Whoever sees it can use it.
func (t Ticket) String() string {
	var b strings.Builder
	for i := 0; i < len(t.s); i += groupLength {
		if i > 0 {
			b.WriteByte('-')
		}
		b.WriteString(t.s[i : i+groupLength])
	}
	return b.String()
}

// Hash is what is stored and looked up. Comparing hashes needs no constant time: an attacker cannot choose inputs whose
// hashes approach a stored one.
func (t Ticket) Hash() [32]byte {
	return sha256.Sum256([]byte("ucloud ticket\x00" + t.s))
}

// shortLength is how many symbols of the hash stand for a ticket in lists: 40 bits, so two of a million share one by a
// chance of one half at most.
const shortLength = 8

// Short is a name for a stored ticket that is of no use for connecting.
func Short(hash [32]byte) string {
	b := make([]byte, 0, shortLength)
	for i := range shortLength {
		bit := i * 5
		pair := uint16(hash[bit/8])<<8 | uint16(hash[bit/8+1])
		b = append(b, alphabet[pair>>(11-bit%8)&31])
	}
	return strings.ToLower(string(b))
}
