package software

import (
	"cmp"
	"strings"
)

// maxComponents bounds the work on a version that nobody means.
const maxComponents = 32

// components takes a version apart: the words version and Version and a leading v are not part of it, and of each component only
// what stands before a hyphen counts.
func components(version string) []string {
	version = strings.NewReplacer("version", "", "Version", "").Replace(version)
	version = strings.TrimSpace(version)
	version = strings.TrimPrefix(version, "v")
	parts := strings.SplitN(version, ".", maxComponents)
	for i, p := range parts {
		p, _, _ = strings.Cut(p, "-")
		parts[i] = strings.TrimSpace(p)
	}
	return parts
}

// Compare orders versions: negative if a is older than b. A version is older than the same with a further component.
func Compare(a, b string) int {
	x, y := components(a), components(b)
	for i := range min(len(x), len(y)) {
		if c := compareComponent(x[i], y[i]); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(x), len(y))
}

// Matches tells whether version is what was requested, where missing components count as equal: 1.2 matches 1.2.93.
func Matches(requested, version string) bool {
	x, y := components(requested), components(version)
	for i := range min(len(x), len(y)) {
		if compareComponent(x[i], y[i]) != 0 {
			return false
		}
	}
	return true
}

// compareComponent compares numbers as numbers, of any length, and everything else as text. A number is older than text.
func compareComponent(a, b string) int {
	x, aIsNumber := number(a)
	y, bIsNumber := number(b)
	switch {
	case aIsNumber && bIsNumber:
		if c := cmp.Compare(len(x), len(y)); c != 0 {
			return c
		}
		return strings.Compare(x, y)
	case aIsNumber:
		return -1
	case bIsNumber:
		return 1
	}
	return strings.Compare(a, b)
}

// number is the decimal number s without leading zeros.
func number(s string) (string, bool) {
	if s == "" {
		return "", false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return "", false
		}
	}
	return strings.TrimLeft(s, "0"), true
}
