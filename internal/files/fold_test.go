package files

import (
	"bytes"
	"cmp"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"ucloud-im/internal/drives"
)

// fileName generates names as they can stand on disk, many of them similar.
func fileName() *rapid.Generator[string] {
	piece := rapid.SampledFrom([]string{
		"a", "A", "b", "B", "file-", "FILE-", "1", "2", "10", ".", "_", "Z", "[", "é", "É", "e\u0301", "ß", "ẞ", "K", "İ", "i", "\xff", "\x80",
		"\U0010FE80", "日", "\u0001", "~", "{", "\ufffd", "\U0010ffff", "common-prefix-of-many-names-",
	})
	name := rapid.Map(rapid.SliceOfN(piece, 1, 6), func(p []string) string { return strings.Join(p, "") })
	return name.Filter(func(n string) bool { return drives.CheckName(n) == nil })
}

// modelCompare is the order as the contract words it.
func modelCompare(a, b string) int {
	return cmp.Or(
		strings.Compare(strings.ToLower(drives.Escape(a)), strings.ToLower(drives.Escape(b))),
		strings.Compare(a, b))
}

func sign(n int) int { return cmp.Compare(n, 0) }

func TestCompareNamesAgreesWithTheContract(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b := fileName().Draw(t, "a"), fileName().Draw(t, "b")
		if got, want := sign(compareNames([]byte(a), []byte(b))), modelCompare(a, b); got != want {
			t.Fatalf("compareNames(%q, %q) = %d, want %d", a, b, got, want)
		}
	})
}

// TestKeysAgreeWithNames: a smaller key never belongs to a later name.
func TestKeysAgreeWithNames(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SliceOfN(fileName(), 2, 6).Draw(t, "names")
		inSample := rapid.IntRange(1, len(names)).Draw(t, "sample")
		prefix := commonPrefix(func(yield func([]byte) bool) {
			for _, n := range names[:inSample] {
				if !yield([]byte(n)) {
					return
				}
			}
		})
		k := keyer{prefix: prefix}
		slices.SortFunc(names, modelCompare)
		for i := 1; i < len(names); i++ {
			if k.key([]byte(names[i-1])) > k.key([]byte(names[i])) {
				t.Fatalf("with prefix %q the key of %q is larger than that of %q", prefix, names[i-1], names[i])
			}
		}
	})
}

func FuzzCompareNames(f *testing.F) {
	f.Add([]byte("a"), []byte("A"))
	f.Add([]byte("\xff"), []byte("\U0010FEFF"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if len(a) > drives.MaxName || len(b) > drives.MaxName {
			return
		}
		if got, want := sign(compareNames(a, b)), modelCompare(string(a), string(b)); got != want {
			t.Fatalf("compareNames(%q, %q) = %d, want %d", a, b, got, want)
		}
		if (compareNames(a, b) == 0) != bytes.Equal(a, b) {
			t.Fatalf("%q and %q are mixed up", a, b)
		}
		k := keyer{}
		if x, y := k.key(a), k.key(b); (x < y) != (x != y && compareNames(a, b) < 0) {
			t.Fatalf("keys of %q and %q: %x, %x", a, b, x, y)
		}
	})
}
