package websession

import (
	"regexp"
	"testing"

	"ucloud-im/internal/store"
)

var hostLabel = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// FuzzHost: whatever a job calls its interface, the host name and the cookie are ones that browsers accept, below the
// operator's domain and of that job.
func FuzzHost(f *testing.F) {
	for _, target := range []string{"", "Dashboard", "a.b/../c", "日本", "--", "x\x00y", "ÆØÅ", "a--b", "very long name of an interface that goes on and on and on for ever"} {
		f.Add(target, false)
		f.Add(target, true)
	}
	token := regexp.MustCompile(`^ucloud-compute-session-512-0(-[a-z0-9-]+)?$`)
	f.Fuzz(func(t *testing.T, target string, exact bool) {
		w := &store.WebInterface{Job: "512", Target: target}
		host := hostOf("app-", ".apps.example.org", w, exact)
		const tail = ".apps.example.org"
		if len(host) < len(tail) || host[len(host)-len(tail):] != tail {
			t.Fatalf("%q is at %q", target, host)
		}
		label := host[:len(host)-len(tail)]
		if !hostLabel.MatchString(label) || len(label) < 9 || label[:9] != "app-512-0" {
			t.Errorf("%q is at %q", target, host)
		}
		if name := cookieOf(w); !token.MatchString(name) {
			t.Errorf("%q has the cookie %q", target, name)
		}
	})
}
