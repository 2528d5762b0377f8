package files

import (
	"bytes"
	"encoding/binary"
	"math"
	"unicode"
	"unicode/utf8"

	"ucloud-im/internal/drives"
)

// compareNames is the order of a listing by PATH: the lower-cased escaped names byte by byte, and the raw names where
// these are equal (contract 10 section 5.1). Entries of one directory share the rest of their paths, so that comparing
// names is comparing paths. The order is total: only identical names are equal.
func compareNames(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		x, y := a[i], b[i]
		if x|y >= utf8.RuneSelf {
			// Everything before was ASCII, so that this is the beginning of a character in both.
			return compareUnicode(a, b, i)
		}
		if x == y {
			continue
		}
		if x, y = lowerASCII(x), lowerASCII(y); x != y {
			return int(x) - int(y)
		}
	}
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	return bytes.Compare(a, b)
}

// compareUnicode continues where one of the names has its first character beyond ASCII.
func compareUnicode(a, b []byte, from int) int {
	i, j := from, from
	for i < len(a) && j < len(b) {
		x, n := drives.FoldRune(a[i:], unicode.ToLower)
		y, m := drives.FoldRune(b[j:], unicode.ToLower)
		if x != y {
			return int(x) - int(y) // code point order is the byte order of UTF-8
		}
		i, j = i+n, j+m
	}
	if left, right := len(a)-i, len(b)-j; left != 0 || right != 0 {
		return left - right // one of them is zero: the shorter one comes first
	}
	return bytes.Compare(a, b)
}

func lowerASCII(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// keyer condenses names to numbers whose order agrees with [compareNames], as far as it goes: key(a) < key(b) implies
// a < b. A number holds the eight bytes after a prefix that most of the names have in common.
type keyer struct {
	prefix []byte // lower-cased and escaped
}

// key is the number of a name. Names without the prefix get the smallest or largest one.
func (k keyer) key(name []byte) uint64 {
	for i, want := range k.prefix {
		if i == len(name) {
			return 0
		}
		c := name[i]
		if c >= utf8.RuneSelf {
			return k.keyUnicode(name)
		}
		if c = lowerASCII(c); c != want {
			if c < want {
				return 0
			}
			return math.MaxUint64
		}
	}
	var key uint64
	rest := name[len(k.prefix):]
	for i := range 8 {
		key <<= 8
		if i < len(rest) {
			if rest[i] >= utf8.RuneSelf {
				return k.keyUnicode(name)
			}
			key |= uint64(lowerASCII(rest[i]))
		}
	}
	return key
}

func (k keyer) keyUnicode(name []byte) uint64 {
	var buf [2 * drives.MaxName]byte
	folded := foldName(buf[:0], name, len(k.prefix)+8)
	n := min(len(folded), len(k.prefix))
	switch c := bytes.Compare(folded[:n], k.prefix); {
	case c < 0:
		return 0
	case c > 0:
		return math.MaxUint64
	}
	var tail [8]byte
	copy(tail[:], folded[n:])
	return binary.BigEndian.Uint64(tail[:])
}

// foldName appends the lower-cased escaped form of the name, stopping after limit bytes.
func foldName(dst, name []byte, limit int) []byte {
	for i := 0; i < len(name) && len(dst) < limit; {
		r, size := drives.FoldRune(name[i:], unicode.ToLower)
		dst = utf8.AppendRune(dst, r)
		i += size
	}
	return dst
}

// commonPrefix is the longest prefix of the folded forms of all names.
func commonPrefix(names func(yield func([]byte) bool)) []byte {
	var buf [2 * drives.MaxName]byte
	var prefix []byte
	first := true
	for name := range names {
		folded := foldName(buf[:0], name, len(buf))
		if first {
			prefix, first = bytes.Clone(folded), false
			continue
		}
		n := 0
		for n < len(prefix) && n < len(folded) && prefix[n] == folded[n] {
			n++
		}
		prefix = prefix[:n]
	}
	return prefix
}
