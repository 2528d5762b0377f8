package drives

import (
	"strings"
	"unicode/utf8"
)

// Names on disk are byte strings, names in JSON are Unicode. A byte b (0x80 to 0xFF) that is not part of valid UTF-8 is
// shown as the private use code point escapeBase+b. A name that really contains such a code point has its four bytes
// escaped one by one, so that the mapping stays one to one (contract 10 section 2, rule 4).
const (
	escapeBase  = 0x10FE00
	escapeFirst = escapeBase + 0x80
	escapeLast  = escapeBase + 0xFF
)

// isEscape tells whether the code point stands for one byte.
func isEscape(r rune) bool { return r >= escapeFirst && r <= escapeLast }

// plain tells whether the name is its own escaped form. All escape code points begin with the byte 0xF4 in UTF-8.
func plain(name string) bool {
	return utf8.ValidString(name) && (strings.IndexByte(name, 0xF4) < 0 || !strings.ContainsFunc(name, isEscape))
}

// Escape is the form of a file name, or of a whole local path, in JSON. It is valid UTF-8, differs for different names,
// and is the name itself for every usual name.
func Escape(name string) string {
	if plain(name) {
		return name
	}
	return string(AppendEscaped(make([]byte, 0, 4*len(name)), name))
}

// AppendEscaped appends the escaped form of name to dst.
func AppendEscaped(dst []byte, name string) []byte {
	for i := 0; i < len(name); {
		r, size := utf8.DecodeRuneInString(name[i:])
		switch {
		case (r == utf8.RuneError && size == 1) || isEscape(r):
			for _, b := range []byte(name[i : i+size]) {
				dst = utf8.AppendRune(dst, escapeBase+rune(b))
			}
		default:
			dst = append(dst, name[i:i+size]...)
		}
		i += size
	}
	return dst
}

// Unescape is the reverse of [Escape]. It reports false for a text that Escape never produces: such a text would be a
// second name for a file that has one already.
func Unescape(text string) (string, bool) {
	if !utf8.ValidString(text) {
		return "", false
	}
	if strings.IndexByte(text, 0xF4) < 0 || !strings.ContainsFunc(text, isEscape) {
		return text, true
	}
	var b strings.Builder
	b.Grow(len(text))
	for _, r := range text {
		if isEscape(r) {
			b.WriteByte(byte(r - escapeBase))
		} else {
			b.WriteRune(r)
		}
	}
	name := b.String()
	return name, Escape(name) == text
}

// FoldRune gives the code point that the first character of name contributes to the sort order, and its length in
// bytes. The order is that of the lower-cased escaped name (contract 10 section 5.1). name must not be empty.
func FoldRune(name []byte, lower func(rune) rune) (r rune, size int) {
	r, size = utf8.DecodeRune(name)
	if (r == utf8.RuneError && size == 1) || isEscape(r) {
		return escapeBase + rune(name[0]), 1
	}
	return lower(r), size
}
