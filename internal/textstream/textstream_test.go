package textstream

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// join decodes what a Decoder makes of pieces.
func join(t interface{ Fatalf(string, ...any) }, pieces [][]byte) string {
	var d Decoder
	var out strings.Builder
	add := func(doc []byte) {
		var s string
		if err := json.Unmarshal(doc, &s); err != nil {
			t.Fatalf("%q is not JSON: %v", doc, err)
		}
		out.WriteString(s)
	}
	for _, p := range pieces {
		add(d.AppendQuoted(nil, p))
		if d.Held() >= utf8.UTFMax {
			t.Fatalf("%d bytes are held back", d.Held())
		}
	}
	add(d.AppendRest(nil))
	return out.String()
}

// want is the text with each invalid byte replaced.
func want(text []byte) string { return string([]rune(string(text))) }

// TestAnyCut: however the bytes are cut, the text is the same.
func TestAnyCut(t *testing.T) {
	t.Parallel()
	part := rapid.OneOf(
		rapid.SampledFrom([][]byte{[]byte("æøå"), []byte("日本"), []byte("🎉"), {0xe2, 0x82}, {0xf0, 0x9f, 0x8e}, {0xff}, {0xc3}, {0x80}, {0xed, 0xa0, 0x80}, {0xf4, 0x90}, []byte("x\n\r\t\"\\\x1b[0m\x00\x7f")}),
		rapid.SliceOfN(rapid.Byte(), 0, 6),
	)
	rapid.Check(t, func(t *rapid.T) {
		var text []byte
		for _, p := range rapid.SliceOfN(part, 0, 8).Draw(t, "parts") {
			text = append(text, p...)
		}
		var pieces [][]byte
		for rest := text; len(rest) > 0; {
			n := rapid.IntRange(1, min(7, len(rest))).Draw(t, "cut")
			pieces = append(pieces, rest[:n])
			rest = rest[n:]
		}
		if got := join(t, pieces); got != want(text) {
			t.Fatalf("%q in %q: %q, want %q", text, pieces, got, want(text))
		}
	})
}

func TestHoldsBack(t *testing.T) {
	t.Parallel()
	var d Decoder
	if got := string(d.AppendQuoted(nil, []byte("a\xe2\x82"))); got != `"a"` || d.Held() != 2 {
		t.Errorf("%s, %d held", got, d.Held())
	}
	if got := string(d.AppendQuoted(nil, []byte("\xac5"))); got != `"€5"` || d.Held() != 0 {
		t.Errorf("%s, %d held", got, d.Held())
	}
	d.AppendQuoted(nil, []byte("\xf0"))
	d.Reset()
	if got := string(d.AppendRest(nil)); got != `""` {
		t.Errorf("%s after a reset", got)
	}
}

func FuzzQuote(f *testing.F) {
	f.Add([]byte("plain"), 2)
	f.Add([]byte("\xf0\x9f\x8e\x89\xf0\x9f"), 3)
	f.Add([]byte("\xe2\x28\xa1\x00\"\\"), 1)
	f.Fuzz(func(t *testing.T, text []byte, cut int) {
		cut = max(0, min(cut, len(text)))
		if got := join(t, [][]byte{text[:cut], text[cut:]}); got != want(text) {
			t.Fatalf("%q at %d: %q", text, cut, got)
		}
		var s string
		if err := json.Unmarshal(AppendString(nil, string(text)), &s); err != nil || s != want(text) {
			t.Fatalf("%q: %q, %v", text, s, err)
		}
	})
}
