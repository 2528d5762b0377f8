package drives

import (
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// tortureNames are file names that have broken programs before.
var tortureNames = []string{
	"a", "Ä", "ß", "İ", "ǅ", "e\u0301", "é", "日本語", "👩‍👩‍👧", "a b", " a ", "a\nb", "a\tb", "a\rb", "-rf", "--", "~", "*", "?", "$(id)",
	"`id`", "a;b", "a'b", `a"b`, `a\b`, `..\..\x`, `C:\x`, "...", ".hidden", "..a", "a.", "%2e%2e", "%00", "&amp;", "<script>",
	"\x01", "\x7f", "\u200b", "\u202eabc", "\ufeff", "\ufffd", "\x80", "\xff", "a\xffb", "\xc3", "\xc3\x28", "\xe2\x82", "\xed\xa0\x80",
	"\xf4\x90\x80\x80", "\xc0\xaf", "\U0010FE80", "\U0010FEFF", "a\U0010FE80\xffb", "\U0010FE7F", "\U0010FF00", "\U0010FFFF",
	strings.Repeat("x", 255), strings.Repeat("ä", 127), strings.Repeat("\xff", 255), "con", "nul", "Trash", "null", "{}", "[]", "0",
}

func TestEscapeTorture(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for _, name := range tortureNames {
		text := Escape(name)
		if !utf8.ValidString(text) {
			t.Errorf("Escape(%q) is not valid UTF-8", name)
		}
		if back, ok := Unescape(text); !ok || back != name {
			t.Errorf("Unescape(Escape(%q)) = %q, %v", name, back, ok)
		}
		if other, taken := seen[text]; taken {
			t.Errorf("%q and %q have the same form", name, other)
		}
		seen[text] = name
	}
}

func TestEscapeForms(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, want string }{
		{"plain.txt", "plain.txt"},
		{"\ufffd", "\ufffd"}, // a real replacement character is an ordinary one
		{"a\xffb", "a\U0010FEFFb"},
		{"\xed\xa0\x80", "\U0010FEED\U0010FEA0\U0010FE80"},
		{"\U0010FE80", "\U0010FEF4\U0010FE8F\U0010FEBA\U0010FE80"}, // the four bytes of the code point itself
		{"\U0010FE7F\U0010FF00", "\U0010FE7F\U0010FF00"},           // the neighbours are free
	} {
		if got := Escape(tc.name); got != tc.want {
			t.Errorf("Escape(%q) = %+q, want %+q", tc.name, got, tc.want)
		}
	}
	for _, bad := range []string{
		"\U0010FEC3\U0010FEA9",           // would be a second name for "é"
		"\U0010FEF4\U0010FE8F\U0010FEBA", // fine: three bytes that are no character …
		"a\xff",                          // not JSON text at all
		"\U0010FEF4\U0010FE8F\U0010FEBA\U0010FE80\xff", // nor this
	} {
		name, ok := Unescape(bad)
		if want := bad == "\U0010FEF4\U0010FE8F\U0010FEBA"; ok != want {
			t.Errorf("Unescape(%+q) = %q, %v", bad, name, ok)
		}
	}
}

// anyName generates byte strings with many of the byte sequences that matter.
func anyName() *rapid.Generator[string] {
	piece := rapid.OneOf(
		rapid.StringN(0, 3, -1),
		rapid.SampledFrom(tortureNames),
		rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 4), func(b []byte) string { return string(b) }),
		rapid.Map(rapid.Int32Range(0x10FE70, 0x10FF10), func(r int32) string { return string(r) }),
	)
	return rapid.Map(rapid.SliceOfN(piece, 0, 4), func(p []string) string { return strings.Join(p, "") })
}

func TestEscapeIsBijective(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b := anyName().Draw(t, "a"), anyName().Draw(t, "b")
		ea, eb := Escape(a), Escape(b)
		if !utf8.ValidString(ea) {
			t.Fatalf("Escape(%q) is not valid", a)
		}
		if back, ok := Unescape(ea); !ok || back != a {
			t.Fatalf("Unescape(Escape(%q)) = %q, %v", a, back, ok)
		}
		if (a == b) != (ea == eb) {
			t.Fatalf("%q and %q become %q and %q", a, b, ea, eb)
		}
		// Separators stay where they are: a path may be escaped as a whole.
		if Escape(a+"/"+b) != ea+"/"+eb {
			t.Fatalf("%q/%q is not escaped by components", a, b)
		}
	})
}

func FuzzUnescape(f *testing.F) {
	for _, n := range tortureNames {
		f.Add(n)
		f.Add(Escape(n))
	}
	f.Fuzz(func(t *testing.T, text string) {
		name, ok := Unescape(text)
		if ok && Escape(name) != text {
			t.Fatalf("%q is a second form of %q", text, name)
		}
		if back, ok := Unescape(Escape(text)); !ok || back != text {
			t.Fatalf("Unescape(Escape(%q)) = %q, %v", text, back, ok)
		}
	})
}

// TestFoldRuneAgreesWithLowerCase compares the order by folded characters with that of the lower-cased escaped names,
// which is how the contract words it.
func TestFoldRuneAgreesWithLowerCase(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		name := []byte(anyName().Draw(t, "name"))
		var folded []rune
		for rest := name; len(rest) > 0; {
			r, size := FoldRune(rest, unicode.ToLower)
			folded, rest = append(folded, r), rest[size:]
		}
		want := []rune(strings.ToLower(Escape(string(name))))
		if !slices.Equal(folded, want) {
			t.Fatalf("%q folds to %+q, want %+q", name, string(folded), string(want))
		}
	})
}
