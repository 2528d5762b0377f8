package gateway

import (
	"net/http"
	"net/url"
	"testing"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
)

func TestExtractIdentity(t *testing.T) {
	t.Parallel()
	a, b := alice.HeaderValue(), bob.HeaderValue()
	odd := ident.UCloudUser("??>>~~ü#1") // its encoding differs between the alphabets
	for _, tc := range []struct {
		name   string
		header []string
		query  string
		want   identity
		ok     bool
	}{
		{"nothing", nil, "", identity{}, true},
		{"header", []string{a}, "", identity{alice, true}, true},
		{"hint", nil, "usernameHint=" + a, identity{alice, false}, true},
		{"hint, alphabet of URLs", nil, "usernameHint=" + odd.HintValue(), identity{odd, false}, true},
		{"hint, standard alphabet unescaped", nil, "usernameHint=" + odd.HeaderValue(), identity{odd, false}, true},
		{"hint, escaped", nil, "usernameHint=" + url.QueryEscape(odd.HeaderValue()), identity{odd, false}, true},
		{"both, same user", []string{odd.HeaderValue()}, "usernameHint=" + odd.HintValue(), identity{odd, true}, true},
		{"hint twice, same user", nil, "usernameHint=" + odd.HintValue() + "&usernameHint=" + odd.HeaderValue(), identity{odd, false}, true},
		{"two headers", []string{a, b}, "", identity{}, false},
		{"two equal headers", []string{a, a}, "", identity{}, false},
		{"list in one header", []string{a + ", " + b}, "", identity{}, false},
		{"header and hint differ", []string{a}, "usernameHint=" + b, identity{}, false},
		{"two hints", nil, "usernameHint=" + a + "&usernameHint=" + b, identity{}, false},
		{"empty header", []string{""}, "", identity{}, false},
		{"header in the other alphabet", []string{odd.HintValue()}, "", identity{}, false},
		{"header without padding", []string{"QWxpY2UjMTIzNA"}, "", identity{}, false},
		{"header not base64", []string{"Alice#1234"}, "", identity{}, false},
		{"header not UTF-8", []string{"/w=="}, "", identity{}, false},
		{"empty hint", nil, "usernameHint=", identity{}, false},
		{"bad hint beside a good header", []string{a}, "usernameHint=%25", identity{}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			h := http.Header{}
			for _, v := range tc.header {
				h.Add("ucloud-USERNAME", v)
			}
			q, err := parseQuery(tc.query)
			if err != nil {
				t.Fatal(err)
			}
			got, err := extractIdentity(h, q)
			if (err == nil) != tc.ok || got != tc.want {
				t.Fatalf("got %+v, %v", got, err)
			}
			if err != nil && !failure.Is(err, failure.Invalid) {
				t.Fatalf("kind of %v", err)
			}
		})
	}
}

func FuzzExtractIdentity(f *testing.F) {
	f.Add("QWxpY2UjMTIzNA==", "usernameHint=Qm9iIzE=")
	f.Add("", "usernameHint=QWxpY2UjMTIzNA&usernameHint=QWxpY2UjMTIzNA==")
	f.Fuzz(func(t *testing.T, header, query string) {
		q, err := parseQuery(query)
		if err != nil {
			return
		}
		h := http.Header{}
		if header != "" {
			h[ident.HeaderUser] = []string{header}
		}
		id, err := extractIdentity(h, q)
		if err != nil {
			return
		}
		if header != "" && (!id.header || id.user.HeaderValue() != header) {
			t.Fatalf("header %q was read as %+v", header, id)
		}
		for _, v := range q[ident.QueryUserHint] {
			if u, err := ident.DecodeUserHint(v); err != nil || u != id.user {
				t.Fatalf("hint %q was ignored: %+v", v, id)
			}
		}
		if id.user == "" && (header != "" || len(q[ident.QueryUserHint]) > 0) {
			t.Fatal("an identity became none")
		}
	})
}

func TestRemoveInternalHeaders(t *testing.T) {
	t.Parallel()
	h := http.Header{}
	for _, name := range []string{
		"ucloud-secret", "X-JWT-Payload", "X-Ucloud-Hop", "x-ucloud-not-read", "X-UCLOUD-ANYTHING", "X-Request-Id",
		"ucloud_secret", "x_ucloud_hop", "ucloud_username", "X-Ucloud_Hop", "authorization_", "AUTHORIZATION",
	} {
		h.Add(name, "x")
	}
	h.Set("Content-Type", "x")
	h.Set("X_Other", "x")
	removeInternalHeaders(h)
	for name := range h {
		switch name {
		case "Content-Type", "X_other", "Authorization", "Authorization_":
		default:
			t.Errorf("%s is still there", name)
		}
	}
	if len(h) != 4 {
		t.Errorf("left: %v", h)
	}
}
