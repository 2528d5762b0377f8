package intent

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"unicode/utf8"
)

// appendCanonical appends the canonical form of a value, the JSON Canonicalization Scheme of RFC 8785: no white space,
// names in the order of their UTF-16 code units, numbers and texts as ECMAScript writes them.
//
// A browser has it in a few lines: JSON.stringify with the members sorted.
func appendCanonical(b []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case nil:
		return append(b, "null"...), nil
	case bool:
		return strconv.AppendBool(b, v), nil
	case string:
		return appendText(b, v), nil
	case json.Number:
		return appendNumber(b, string(v))
	case []any:
		b = append(b, '[')
		for i, item := range v {
			if i > 0 {
				b = append(b, ',')
			}
			var err error
			if b, err = appendCanonical(b, item); err != nil {
				return nil, err
			}
		}
		return append(b, ']'), nil
	case object:
		sorted := slices.SortedFunc(slices.Values(v), func(x, y field) int { return compareUTF16(x.name, y.name) })
		b = append(b, '{')
		for i, f := range sorted {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(appendText(b, f.name), ':')
			var err error
			if b, err = appendCanonical(b, f.value); err != nil {
				return nil, err
			}
		}
		return append(b, '}'), nil
	}
	return nil, fmt.Errorf("no JSON value: %T", v)
}

// appendText appends a string as JSON.stringify does (RFC 8785 section 3.2.2.2).
func appendText(b []byte, s string) []byte {
	b = append(b, '"')
	for i := range len(s) { // bytes: what is not ASCII stays as it is
		switch c := s[i]; c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\b':
			b = append(b, '\\', 'b')
		case '\t':
			b = append(b, '\\', 't')
		case '\n':
			b = append(b, '\\', 'n')
		case '\f':
			b = append(b, '\\', 'f')
		case '\r':
			b = append(b, '\\', 'r')
		default:
			if c < 0x20 {
				b = append(b, '\\', 'u', '0', '0', "0123456789abcdef"[c>>4], "0123456789abcdef"[c&15])
			} else {
				b = append(b, c)
			}
		}
	}
	return append(b, '"')
}

// appendNumber appends a number as ECMAScript writes it (RFC 8785 section 3.2.2.3). An integer that is not the same for
// everybody is refused (RFC 7493 section 2.2): programs read it exactly, and a browser does not.
func appendNumber(b []byte, text string) ([]byte, error) {
	if n, err := strconv.ParseInt(text, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		if err != nil || n > maxInteger || n < -maxInteger {
			return nil, fmt.Errorf("%.30s is not an integer that everybody reads alike", text)
		}
		return strconv.AppendInt(b, n, 10), nil
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsInf(f, 0) || math.IsNaN(f) {
		return nil, fmt.Errorf("%.30s is not a number", text)
	}
	if a := math.Abs(f); a > maxInteger && a < 1e21 { // it would be written without an exponent
		return nil, fmt.Errorf("%.30s is not an integer that everybody reads alike", text)
	}
	return appendDouble(b, f), nil
}

// appendDouble appends a finite double.
func appendDouble(b []byte, f float64) []byte {
	if f == 0 {
		return append(b, '0') // and so for -0
	}
	if abs := math.Abs(f); abs >= 1e-6 && abs < 1e21 {
		return strconv.AppendFloat(b, f, 'f', -1, 64)
	}
	start := len(b)
	b = strconv.AppendFloat(b, f, 'e', -1, 64)
	// Go writes at least two digits of the exponent, ECMAScript as few as there are.
	if n := len(b); n-start >= 4 && b[n-4] == 'e' && b[n-2] == '0' {
		b[n-2] = b[n-1]
		b = b[:n-1]
	}
	return b
}

// compareUTF16 compares two texts by their UTF-16 code units. That is the order of code points but for those from
// U+E000 to U+FFFF, which come behind the ones that need two units.
func compareUTF16(x, y string) int {
	for x != "" && y != "" {
		r, n := utf8.DecodeRuneInString(x)
		s, m := utf8.DecodeRuneInString(y)
		if r != s {
			return cmp.Compare(unitOf(r), unitOf(s))
		}
		x, y = x[n:], y[m:]
	}
	return cmp.Compare(len(x), len(y))
}

// unitOf gives a number that is ordered as the UTF-16 code units of a rune are.
func unitOf(r rune) rune {
	if r >= 0xE000 && r <= 0xFFFF {
		return r + 0x110000
	}
	return r
}
