// Package textstream turns bytes that are cut anywhere into text for JSON: logs and terminals (contract 21 section 8 rule 5).
//
// An incomplete UTF-8 sequence at the end of a piece is held back until the rest has come. Only what can never become
// valid is replaced by U+FFFD. TestAnyCut proves that the cuts leave no trace; FuzzQuote that what comes out is JSON.
package textstream

import "unicode/utf8"

// Decoder holds back what is incomplete. The zero value is ready for use.
type Decoder struct {
	held [utf8.UTFMax]byte
	n    int
}

// AppendQuoted appends the text of p, and of what was held back, as a JSON string. It is "" if everything is held back.
func (d *Decoder) AppendQuoted(dst, p []byte) []byte {
	dst = append(dst, '"')
	if d.n > 0 {
		var joint [2 * utf8.UTFMax]byte
		held := copy(joint[:], d.held[:d.n])
		n := held + copy(joint[held:held+utf8.UTFMax], p)
		d.n = 0
		if n-held == len(p) { // all of it
			whole := n - incomplete(joint[:n])
			d.n = copy(d.held[:], joint[whole:n])
			return append(appendText(dst, joint[:whole]), '"')
		}
		pos := 0
		for pos < held { // there are enough bytes for each of these
			_, size := utf8.DecodeRune(joint[pos:n])
			pos += size
		}
		dst = appendText(dst, joint[:pos])
		p = p[pos-held:]
	}
	whole := len(p) - incomplete(p)
	d.n = copy(d.held[:], p[whole:])
	return append(appendText(dst, p[:whole]), '"')
}

// AppendRest appends what is held back as a JSON string, because nothing more comes, and forgets it.
func (d *Decoder) AppendRest(dst []byte) []byte {
	dst = append(appendText(append(dst, '"'), d.held[:d.n]), '"')
	d.n = 0
	return dst
}

// Held tells how many bytes are held back.
func (d *Decoder) Held() int { return d.n }

// Reset forgets what is held back.
func (d *Decoder) Reset() { d.n = 0 }

// incomplete is the length of an incomplete sequence at the end of p.
func incomplete(p []byte) int {
	for i := 1; i < utf8.UTFMax && i <= len(p); i++ {
		tail := p[len(p)-i:]
		if utf8.RuneStart(tail[0]) {
			if utf8.FullRune(tail) {
				return 0
			}
			return i
		}
	}
	return 0
}

// AppendString appends s as a JSON string; invalid bytes become U+FFFD.
func AppendString(dst []byte, s string) []byte {
	return append(appendText(append(dst, '"'), s), '"')
}

// appendText appends the inner part of a JSON string (RFC 8259 section 7).
func appendText[T string | []byte](b []byte, s T) []byte {
	const hex = "0123456789abcdef"
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(string(s[i:min(i+utf8.UTFMax, len(s))])) // on the stack
			if r == utf8.RuneError && size == 1 {
				b = append(append(b, s[start:i]...), `\ufffd`...)
				start = i + 1
			}
			i += size
			continue
		}
		if c >= ' ' && c != '"' && c != '\\' && c != 0x7f {
			i++
			continue
		}
		b = append(b, s[start:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		i++
		start = i
	}
	return append(b, s[start:]...)
}
