package ident

import (
	"errors"
	"net/url"
	"strings"
	"testing"
)

func TestParseUCloudUser(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, in string
		ok       bool
	}{
		{"usual", "Alice#1234", true},
		{"umlauts and blanks", "Zoë van Dyk#1", true},
		{"empty", "", false},
		{"newline", "a\nb", false},
		{"invalid utf8", "a\xffb", false},
		{"too long", strings.Repeat("x", MaxUserLength+1), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := ParseUCloudUser(tc.in)
			if (err == nil) != tc.ok {
				t.Fatalf("ParseUCloudUser(%q) error = %v, want ok = %v", tc.in, err, tc.ok)
			}
			if tc.ok && string(got) != tc.in {
				t.Fatalf("got %q", got)
			}
			if !tc.ok && !errors.Is(err, ErrBadUser) {
				t.Fatalf("error %v is not ErrBadUser", err)
			}
		})
	}
}

func TestHeaderIsStrict(t *testing.T) {
	t.Parallel()
	if u, err := DecodeUserHeader("QWxpY2UjMTIzNA=="); err != nil || u != "Alice#1234" {
		t.Fatalf("got %q, %v", u, err)
	}
	for _, bad := range []string{"", "QWxpY2UjMTIzNA", "QWxpY2UjMTIzNA==\n", "!!!", "QWxpY2UjMTIzNB==", "_w==", "/w=="} {
		if u, err := DecodeUserHeader(bad); err == nil {
			t.Errorf("%q was accepted as %q", bad, u)
		}
	}
}

func TestHintAcceptsBothAlphabets(t *testing.T) {
	t.Parallel()
	// The name is chosen so that its encoding holds both characters in which the alphabets differ.
	const user = UCloudUser("??>>~~ü#1")
	if !strings.ContainsAny(user.HeaderValue(), "+/") {
		t.Fatalf("%q does not exercise the alphabets", user.HeaderValue())
	}
	std := user.HeaderValue()
	for _, form := range []string{
		std, strings.TrimRight(std, "="), user.HintValue(), strings.TrimRight(user.HintValue(), "="),
	} {
		// raw, as the web client appends it, and percent-encoded
		for _, query := range []string{"usernameHint=" + form, "usernameHint=" + url.QueryEscape(form)} {
			v, err := url.ParseQuery(query)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := DecodeUserHint(v.Get(QueryUserHint)); err != nil || got != user {
				t.Errorf("%s: got %q, %v", query, got, err)
			}
		}
	}
}

func FuzzDecodeUserHint(f *testing.F) {
	f.Add("QWxpY2UjMTIzNA==")
	f.Add("_-8")
	f.Fuzz(func(t *testing.T, s string) {
		if u, err := DecodeUserHint(s); err == nil {
			if back, err := DecodeUserHint(u.HintValue()); err != nil || back != u {
				t.Fatalf("%q -> %q -> %q, %v", s, u, back, err)
			}
			if back, err := DecodeUserHeader(u.HeaderValue()); err != nil || back != u {
				t.Fatalf("%q -> %q -> %q, %v", s, u, back, err)
			}
		}
	})
}
