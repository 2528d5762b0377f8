package files

import (
	"encoding/base64"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"ucloud-im/internal/failure"
)

func TestTokenRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		tok := pageToken{
			order:      order(rapid.IntRange(0, 2).Draw(t, "order")),
			asked:      order(rapid.IntRange(0, 2).Draw(t, "asked")),
			descending: rapid.Bool().Draw(t, "descending"),
			generation: generation{rapid.Uint32().Draw(t, "process"), rapid.Uint64().Draw(t, "serial")},
			shown:      rapid.SliceOfN(rapid.Uint64(), 0, maxShown).Draw(t, "shown"),
			skip:       rapid.Uint64().Draw(t, "skip"),
		}
		if rapid.Bool().Draw(t, "mark") {
			tok.after = &mark{key: rapid.Int64().Draw(t, "key"), name: []byte(fileName().Draw(t, "name"))}
		}
		text := tok.encode()
		if len(text) > maxTokenChars {
			t.Fatalf("%d characters", len(text))
		}
		back, err := parseToken(text)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := parsePosition(text); ok {
			t.Fatalf("%s looks like a position", text)
		}
		if back.encode() != text || back.order != tok.order || back.generation != tok.generation || len(back.shown) != len(tok.shown) || back.skip != tok.skip {
			t.Fatalf("%+v became %+v", tok, back)
		}
	})
}

func TestLargestTokenFits(t *testing.T) {
	t.Parallel()
	tok := pageToken{
		generation: generation{math.MaxUint32, math.MaxUint64},
		after:      &mark{key: math.MinInt64, name: []byte(strings.Repeat("x", 255))},
		shown:      make([]uint64, maxShown),
		skip:       math.MaxUint64,
	}
	if n := len(tok.encode()); n > maxTokenChars {
		t.Fatalf("%d characters", n)
	}
}

func TestBadTokensAreRefused(t *testing.T) {
	t.Parallel()
	good := (&pageToken{after: &mark{name: []byte("a")}}).encode()
	for name, text := range map[string]string{
		"of another program": "50",
		"garbage":            "!!!",
		"random":             base64.RawURLEncoding.EncodeToString([]byte("\x01 this is not a page token")),
		"cut off":            good[:len(good)-2],
		"longer":             good + "AA",
		"padded":             good + "=",
		"changed":            "AR" + good[2:],
		"line break":         good[:4] + "\n" + good[4:],
		"too long":           strings.Repeat("A", maxTokenChars+1),
		"slash in the name":  (&pageToken{after: &mark{name: []byte("a/b")}}).encode(),
		"dots as the name":   (&pageToken{after: &mark{name: []byte("..")}}).encode(),
		"nul in the name":    (&pageToken{after: &mark{name: []byte("a\x00")}}).encode(),
		"unknown order":      (&pageToken{order: 3}).encode(),
	} {
		if tok, err := parseToken(text); !failure.Is(err, failure.Invalid) {
			t.Errorf("%s: %+v, %v", name, tok, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add((&pageToken{}).encode())
	f.Add((&pageToken{order: bySize, after: &mark{key: -5, name: []byte("a\xff")}, shown: []uint64{1, 2}}).encode())
	f.Add("50")
	f.Fuzz(func(t *testing.T, text string) {
		tok, err := parseToken(text)
		if err != nil {
			if !failure.Is(err, failure.Invalid) {
				t.Fatal(err)
			}
			return
		}
		if tok.encode() != text {
			t.Fatalf("%q is a second form of %+v", text, tok)
		}
	})
}
