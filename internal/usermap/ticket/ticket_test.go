package ticket

import (
	"errors"
	"strings"
	"testing"
)

func TestNewParseRoundTrip(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	for range 1000 {
		tk := New()
		if seen[tk.String()] {
			t.Fatal("a ticket came twice")
		}
		seen[tk.String()] = true
		back, err := Parse(tk.String())
		if err != nil || back != tk || back.Hash() != tk.Hash() {
			t.Fatalf("%s came back as %s, %v", tk, back, err)
		}
	}
}

func TestEnoughBits(t *testing.T) {
	t.Parallel()
	if bits := bodyLength * 5; bits < 128 {
		t.Fatalf("%d bits", bits)
	}
	// Every symbol occurs: a narrower alphabet would mean fewer bits than counted.
	used := make(map[rune]bool)
	for range 500 {
		for _, r := range New().s {
			used[r] = true
		}
	}
	if len(used) != 32 {
		t.Fatalf("%d symbols in use", len(used))
	}
}

func TestParseAcceptsWhatPeopleDo(t *testing.T) {
	t.Parallel()
	// A fixed body, so that the letters with look-alikes certainly occur.
	body := []byte("0123456789ABCDEFGHJKMNPQRST")
	tk := Ticket{string(append(body, check(body)))}
	s := tk.String()
	for name, in := range map[string]string{
		"as shown":          s,
		"lower case":        strings.ToLower(s),
		"no hyphens":        strings.ReplaceAll(s, "-", ""),
		"blanks":            strings.ReplaceAll(s, "-", "  "),
		"line break":        s[:10] + "\r\n  " + s[10:],
		"en dashes":         strings.ReplaceAll(s, "-", "–"),
		"minus signs":       strings.ReplaceAll(s, "-", "−"),
		"no-break blanks":   strings.ReplaceAll(s, "-", "\u00a0"),
		"zero width blanks": strings.ReplaceAll(s, "-", "-\u200b"),
		"letter O for zero": strings.ReplaceAll(s, "0", "o"),
		"letter l for one":  strings.ReplaceAll(s, "1", "l"),
		"letter I for one":  strings.ReplaceAll(s, "1", "I"),
	} {
		if got, err := Parse(in); err != nil || got != tk {
			t.Errorf("%s: %q gave %v, %v", name, in, got, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	s := New().String()
	wrong := byte('A')
	if s[0] == wrong {
		wrong = 'B'
	}
	for name, tc := range map[string]struct {
		in   string
		want error
	}{
		"empty":      {"", ErrShape},
		"too short":  {s[:len(s)-1], ErrShape},
		"too long":   {s + "A", ErrShape},
		"letter U":   {"U" + s[1:], ErrShape},
		"other text": {"connect me please", ErrShape},
		"umlaut":     {"Ä" + s[1:], ErrShape},
		"long blank": {s + strings.Repeat(" ", maxInput), ErrShape},
	} {
		if got, err := Parse(tc.in); !errors.Is(err, tc.want) {
			t.Errorf("%s: %q gave %v, %v", name, tc.in, got, err)
		}
	}
	// One wrong symbol is noticed in 31 of 32 cases; of 31 wrong symbols in one place, nearly all.
	typos := 0
	for _, r := range alphabet {
		if _, err := Parse(string(r) + s[1:]); errors.Is(err, ErrTypo) {
			typos++
		}
	}
	if typos < 20 {
		t.Errorf("only %d of 31 typing errors were noticed", typos)
	}
}

func TestShortIsNotTheTicket(t *testing.T) {
	t.Parallel()
	tk := New()
	short := Short(tk.Hash())
	if len(short) != shortLength || strings.Contains(strings.ToLower(tk.s), short) {
		t.Fatalf("short form %q of %s", short, tk)
	}
	if Short(tk.Hash()) != short || Short(New().Hash()) == short {
		t.Fatal("the short form does not identify the ticket")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(New().String())
	f.Add(strings.ToLower(New().String()))
	f.Add("0000-0000-0000-0000-0000-0000-0000")
	f.Add("–−\u200b\u00a0")
	f.Add("")
	f.Fuzz(func(t *testing.T, in string) {
		tk, err := Parse(in)
		if err != nil {
			if tk != (Ticket{}) {
				t.Fatalf("%q gave a ticket and %v", in, err)
			}
			return
		}
		if len(tk.s) != length || strings.Trim(tk.s, alphabet) != "" {
			t.Fatalf("%q gave %q, which is not canonical", in, tk.s)
		}
		if back, err := Parse(tk.String()); err != nil || back != tk {
			t.Fatalf("%q -> %s -> %v, %v", in, tk, back, err)
		}
	})
}
