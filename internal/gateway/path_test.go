package gateway

import (
	"net/url"
	"path"
	"strings"
	"testing"

	"ucloud-im/internal/failure"
)

func TestCleanPath(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ in, want string }{ // want "": refused
		{"/ucloud/birch/jobs", "/ucloud/birch/jobs"},
		{"/ucloud/birch/jobs/", "/ucloud/birch/jobs"},
		{"/", "/"},
		{"//", "/"},
		{"//ucloud///birch//jobs//", "/ucloud/birch/jobs"},
		{"/ucloud/./birch/../birch/jobs", "/ucloud/birch/jobs"},
		{"/ucloud/birch/jobs/.", "/ucloud/birch/jobs"},
		{"/ucloud/birch/jobs/..", "/ucloud/birch"},
		{"/a/../..", ""},
		{"/..", ""},
		{"/.hidden/a", "/.hidden/a"},
		{"/%75cloud/birch/%6Aobs", "/ucloud/birch/jobs"},
		{"/a/b%20c", "/a/b c"},
		{"/a/%C3%A9", "/a/é"},
		{"/a/@x:y=$,+!*'()&", "/a/@x:y=$,+!*'()&"},
		{"", ""},
		{"*", ""},
		{"ucloud", ""},
		{"http://x/y", ""},
		{"/a/%2e%2e/b", ""},
		{"/a/%2E./b", ""},
		{"/a/.%2e/b", ""},
		{"/a/%2e/b", ""},
		{"/a%2fb", ""},
		{"/a%2Fb", ""},
		{"/a%5cb", ""},
		{"/a%5Cb", ""},
		{`/a\b`, ""},
		{"/a%00b", ""},
		{"/a%0ab", ""},
		{"/a%7fb", ""},
		{"/a%252fb", ""},
		{"/a;b=c/d", ""},
		{"/a%3bb", ""},
		{"/a%3Fb", ""},
		{"/a%23b", ""},
		{"/a#b", ""},
		{"/a b", ""},
		{"/a\xffb", ""},
		{"/a%ffb", ""},
		{"/aé", ""},
		{"/a%", ""},
		{"/a%2", ""},
		{"/a%zz", ""},
		{"/a%2gb", ""},
		{"/" + strings.Repeat("a", maxPath), ""},
	} {
		got, err := cleanPath(tc.in)
		if got != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%q: got %q, %v; want %q", tc.in, got, err, tc.want)
		}
		if err != nil && !failure.Is(err, failure.Invalid) {
			t.Errorf("%q: kind of %v", tc.in, err)
		}
	}
}

func FuzzCleanPath(f *testing.F) {
	for _, s := range []string{"/ucloud/birch/jobs", "//a/../b/", "/%2e%2e/", "/a%2fb", "/;", "/%C3%A9", "/.%2E", "/a/%00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		got, err := cleanPath(raw)
		if err != nil {
			return
		}
		if got != path.Clean(got) || got[0] != '/' || strings.ContainsAny(got, "\\;%\x00\r\n") {
			t.Fatalf("%q became %q", raw, got)
		}
		// What the upstream will decode is what was decided on, and cleaning it again changes nothing.
		escaped := (&url.URL{Path: got}).EscapedPath()
		back, err := url.PathUnescape(escaped)
		if err != nil || back != got {
			t.Fatalf("%q: forwarded as %q, which is read as %q (%v)", raw, escaped, back, err)
		}
		if again, err := cleanPath(escaped); err != nil || again != got {
			t.Fatalf("%q became %q, then %q, %v", raw, got, again, err)
		}
		// net/http's own reading must lead to the same decision.
		if u, err := url.ParseRequestURI(raw); err == nil && classify(provider, path.Clean(u.Path)) != classify(provider, got) {
			t.Fatalf("%q: net/http routes %q, we route %q", raw, u.Path, got)
		}
	})
}

func TestClassify(t *testing.T) {
	t.Parallel()
	for p, want := range map[string]target{
		"/": targetNone, "/ucloud": targetNone, "/ucloud/birch": targetNone, "/ucloudX/birch/jobs": targetNone,
		"/ucloud/birch/integration": targetServer, "/ucloud/birch/integration/init": targetServer,
		"/ucloud/birch/integrationX/init":                     targetInstance,
		"/ucloud/birch/files/retrieveProducts":                targetServer,
		"/ucloud/birch/files/collections/retrieveProducts":    targetServer,
		"/ucloud/birch/files/retrieveProductsX":               targetInstance,
		"/ucloud/birch/files/XretrieveProducts":               targetInstance,
		"/ucloud/birch/retrieveProducts":                      targetInstance,
		"/ucloud/birch/provider/branding":                     targetServer,
		"/ucloud/birch/provider/branding/retrieveInfo":        targetServer,
		"/ucloud/birch/provider/brandingX":                    targetInstance,
		"/ucloud/birch/authorize-app":                         targetServer,
		"/ucloud/birch/authorize-appX":                        targetInstance,
		"/ucloud/birch/vnc":                                   targetDesktop,
		"/ucloud/birch/vnc/x":                                 targetServer,
		"/ucloud/birch/vncX":                                  targetInstance,
		"/ucloud/birch/files/browse":                          targetInstance,
		"/ucloud/birch/files":                                 targetInstance,
		"/ucloud/birch/upload":                                targetUpload,
		"/ucloud/birch/upload/x":                              targetInstance,
		"/ucloud/birch/files/upload":                          targetInstance,
		"/ucloud/birch/download":                              targetDownload,
		"/ucloud/birch/websocket":                             targetTerminal,
		"/ucloud/birchX/jobs":                                 targetNone,
		"/ucloud/Birch/jobs":                                  targetNone,
		"/ucloud/oak/jobs":                                    targetNone,
		"/ucloud/jobs.provider.birch/websocket":               targetInstance,
		"/ucloud/jobs.provider.birch/websocket/x":             targetNone,
		"/ucloud/jobs.provider.birch":                         targetNone,
		"/ucloud/jobs.provider.oak/websocket":                 targetNone,
		"/ucloud-oidc":                                        targetServer,
		"/ucloud-oidc/x":                                      targetNone,
		"/metrics":                                            targetNone,
		"/api/jobs":                                           targetNone,
		"/ucloud/birch/jobs/integration/init":                 targetInstance,
		"/ucloud/jobs.provider.birch/integration/init":        targetNone,
		"/ucloud/birch/iapps/thing/integration":               targetInstance,
		"/ucloud/birch/files/retrieveProducts/somethingbelow": targetInstance,
	} {
		if got := classify(provider, p); got != want {
			t.Errorf("%s goes to %v, want %v", p, got, want)
		}
	}
}
