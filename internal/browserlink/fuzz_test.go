package browserlink

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// FuzzOrigin: an origin is accepted only if a browser at that page would send it.
func FuzzOrigin(f *testing.F) {
	for _, s := range []string{
		"https://cloud.example.org", "https://CLOUD.example.org:443/", "https://cloud.example.org.evil.example", "https://x@cloud.example.org", "null",
		"https://cloud.example.org:8443", "http://cloud.example.org", "https://[::1]:443", "https://cloud.example.org\\.evil.example", "https:cloud.example.org", "//cloud.example.org",
	} {
		f.Add(s)
	}
	l := &Links{PublicURL: "https://provider.example.org", Origins: []string{"https://cloud.example.org"}}
	f.Fuzz(func(t *testing.T, origin string) {
		normal := normalOrigin(origin)
		if normal != "" && normalOrigin(normal) != normal {
			t.Errorf("%q becomes %q, and that %q", origin, normal, normalOrigin(normal))
		}
		r := &http.Request{Header: http.Header{"Origin": {origin}}, URL: &url.URL{}}
		got, err := l.Origin(r)
		if err != nil {
			return
		}
		u, err := url.Parse(got)
		if err != nil || u.User != nil || !strings.EqualFold(u.Scheme, "https") || u.Port() != "" && u.Port() != "443" ||
			!strings.EqualFold(u.Hostname(), "cloud.example.org") && !strings.EqualFold(u.Hostname(), "provider.example.org") {
			t.Errorf("%q is accepted", origin)
		}
	})
}

// FuzzToken: a request has one token, or none.
func FuzzToken(f *testing.F) {
	f.Add("token=abc", "abc")
	f.Add("token=abc&token=abd", "")
	f.Add("token=%00;token=x", "x")
	f.Fuzz(func(t *testing.T, query, header string) {
		r := &http.Request{Header: http.Header{}, URL: &url.URL{RawQuery: query}}
		if header != "" {
			r.Header.Set("Chunked-Upload-Token", header)
		}
		token, err := Token(r, "Chunked-Upload-Token")
		if err != nil {
			return
		}
		if token == "" || len(token) > 256 {
			t.Errorf("a token of %d bytes", len(token))
		}
		for _, other := range append(r.URL.Query()["token"], r.Header.Values("Chunked-Upload-Token")...) {
			if other != token {
				t.Errorf("%q and %q in one request", token, other)
			}
		}
	})
}
