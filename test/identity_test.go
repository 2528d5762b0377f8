//go:build e2e

package e2e

import (
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/accounts"
)

const (
	// connectScript makes accounts as a site would: the service account may not, so there is one sudo rule for one program.
	connectScript = `#!/bin/sh
case $(cat "$1") in *'"ucloudUsername":"Eve#6666"'*) echo '{"userMessage":"Eve has no account here"}'; exit 77;; esac
user=$(sed -n 's/.*"suggestedUsername":"\([a-z0-9_]*\)".*/\1/p' "$1")
[ -n "$user" ] || exit 65
uid=$(sudo -n BASE/bin/make-account "$user") || exit 75
printf '{"uid":%s,"message":"account of %s"}\n' "$uid" "$user"
`
	// makeAccount runs as root. It is slow when it has something to do, as a directory would be: slower than Core waits.
	makeAccount = `#!/bin/sh
case "$1" in *[!a-z0-9_]*|"") exit 64;; esac
name=%[1]s-$1
if ! id -u "$name" 2>/dev/null; then
	sleep 6
	flock %[3]s useradd -U -M -d %[2]s/home/$name -s /bin/bash -G %[1]s "$name" >&2 || exit 1
	mkdir -m 0700 %[2]s/home/$name && chown "$name:$name" %[2]s/home/$name || exit 1
	id -u "$name"
fi
`
	disconnectScript = `#!/bin/sh
cat "$1" >> BASE/state/disconnected
`
)

func scriptedServices(w *world) string {
	w.must(os.WriteFile(filepath.Join(w.base, "bin", "make-account"),
		fmt.Appendf(nil, makeAccount, w.site.Group, w.site.Dir, "/run/lock/imt-accounts"), 0o755))
	w.must(os.Chmod(filepath.Join(w.base, "bin", "make-account"), 0o755))
	rule := fmt.Sprintf("/etc/sudoers.d/%s-make", w.site.Group)
	w.must(os.WriteFile(rule, fmt.Appendf(nil, "%s ALL=(root) NOPASSWD: %s/bin/make-account\n", w.site.Service.Name, w.base), 0o440))
	w.t.Cleanup(func() { os.Remove(rule) })
	return fmt.Sprintf(`
services:
  type: Slurm
  identityManagement:
    type: Scripted
    projectGroups: "off"
    scripted:
      onUserConnected: %s
      onUserDisconnected: %s
  fileSystems:
    %s:
      management: { type: Posix }
      payment: { type: Resource, unit: GB }
      driveLocators:
        home: { entity: User, pattern: "%s", title: Home, freeQuota: 0 }
`, w.script("connect", connectScript), w.script("disconnect", disconnectScript), category, w.homePattern())
}

// visitor is a browser without JavaScript.
type visitor struct {
	w *world
	c *http.Client
}

func (w *world) visitor() *visitor {
	jar, err := cookiejar.New(nil)
	w.must(err)
	return &visitor{w, &http.Client{Transport: w.trust, Jar: jar}}
}

// read sends a request and gives the page and its address.
func (v *visitor) read(req *http.Request) (page, at string) {
	v.w.t.Helper()
	res, err := v.c.Do(req)
	v.w.must(err)
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	v.w.must(err)
	return html.UnescapeString(string(data)), res.Request.URL.String()
}

func (v *visitor) get(address string) (page, at string) {
	v.w.t.Helper()
	req, err := http.NewRequest(http.MethodGet, address, nil)
	v.w.must(err)
	return v.read(req)
}

// wait reloads a page, as its browser would, until it says something.
func (v *visitor) wait(address, says string) (page string) {
	v.w.t.Helper()
	testkit.Eventually(v.w.t, "the page to say "+says, func() bool {
		page, _ = v.get(address)
		return strings.Contains(page, says)
	})
	return page
}

var formSecret = regexp.MustCompile(`name="form" value="([^"]+)"`)

// agree presses the button of the question on a page.
func (v *visitor) agree(address, page, origin string) (status int) {
	v.w.t.Helper()
	m := formSecret.FindStringSubmatch(page)
	if m == nil {
		v.w.t.Fatalf("the page has no question:\n%s", page)
	}
	req, err := http.NewRequest(http.MethodPost, address, strings.NewReader(url.Values{"form": {m[1]}, "answer": {"connect"}}.Encode()))
	v.w.must(err)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Origin", origin)
	res, err := v.c.Do(req)
	v.w.must(err)
	res.Body.Close()
	return res.StatusCode
}

// TestScriptedIdentity: the account of a user is made by a script while the browser waits, both accounts are named, and
// nothing is connected before the user agrees. Disconnecting ends everything, and coming back finds the same account.
func TestScriptedIdentity(t *testing.T) {
	w := newWorld(t, settings{services: scriptedServices, tls: true})
	const nina, eve = ident.UCloudUser("NinaHolm#2207"), ident.UCloudUser("Eve#6666")
	login := w.site.Group + "-nholm"
	t.Cleanup(func() {
		out, err := exec.Command("id", "-u", login).Output()
		if err != nil {
			return
		}
		if uid, err := ident.ParseUID(strings.TrimSpace(string(out))); err == nil {
			accounts.KillAll(uid)
		}
		accounts.Admin(t, "userdel", login)
	})
	for _, u := range []ident.UCloudUser{nina, eve} {
		w.core.AddUser(u)
		w.must(w.core.Allocate(ident.Owner{User: u}, category, 1000))
	}
	connect := func(u ident.UCloudUser) string {
		t.Helper()
		var res providerapi.ConnectResponse
		began := time.Now()
		w.must(w.call(u, http.MethodPost, "/api/providers/integration/connect", map[string]string{"provider": provider}, &res))
		t.Logf("Core waited %v", time.Since(began))
		return res.RedirectTo
	}

	v, link := w.visitor(), connect(nina)
	page, at := v.get(link)
	if strings.ContainsAny(at, "?") || !strings.Contains(page, string(nina)) || !strings.Contains(page, "looked up") || !strings.Contains(page, `http-equiv="refresh"`) {
		t.Fatalf("the first page at %s:\n%s", at, page)
	}
	if _, again := w.visitor().get(link); again != link { // somebody else has the link, too late
		t.Errorf("another browser was taken to %s", again)
	}
	page = v.wait(at, `value="connect"`)
	if !strings.Contains(page, string(nina)) || !strings.Contains(page, login) {
		t.Errorf("the question does not name both accounts:\n%s", page)
	}
	if out, err := w.cli("users", "list"); err != nil || strings.Contains(out, login) {
		t.Errorf("connected without consent: %s %v", out, err)
	}
	if code := v.agree(at, page, "https://evil.example.org"); code != http.StatusForbidden {
		t.Errorf("a form of another site: %d", code)
	}
	if code := v.agree(at, page, w.gateURL); code != http.StatusOK {
		t.Errorf("the form: %d", code)
	}
	v.wait(at, "Connected.")

	p := &person{name: nina}
	w.waitDrive(p)
	out, err := exec.Command("id", "-u", login).Output()
	w.must(err)
	uid, err := ident.ParseUID(strings.TrimSpace(string(out)))
	w.must(err)
	w.must(w.mkdir(p, p.home()+"/data", "REJECT"))
	if files, err := w.browse(p, p.home()); err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	if len(accounts.Processes(uid)) == 0 {
		t.Error("no instance runs")
	}

	// The end, and back again to the same account.
	w.must(w.call(nina, http.MethodPost, "/api/providers/integration/clearConnection", map[string]string{"provider": provider}, nil))
	testkit.Eventually(t, "Nina's instance to end", func() bool { return len(accounts.Processes(uid)) == 0 })
	testkit.Eventually(t, "the script to be told", func() bool {
		told, _ := os.ReadFile(filepath.Join(w.base, "state", "disconnected"))
		return strings.Contains(string(told), `"localUsername":"`+login+`"`) && strings.Contains(string(told), `"reason":"core"`)
	})
	v = w.visitor()
	_, at = v.get(connect(nina))
	page = v.wait(at, `value="connect"`)
	if code := v.agree(at, page, w.gateURL); code != http.StatusOK {
		t.Errorf("the form: %d", code)
	}
	v.wait(at, "Connected.")
	testkit.Eventually(t, "Nina's files", func() bool { files, err := w.browse(p, p.home()); return err == nil && len(files) == 1 })
	if out, err := w.cli("scripts", "list", "--hook", "onUserConnected"); err != nil || strings.Count(out, "account of nholm") != 2 {
		t.Errorf("%v\n%s", err, out)
	}

	// The script decides who may come.
	v = w.visitor()
	_, at = v.get(connect(eve))
	v.wait(at, "Eve has no account here")

	// An operator moves Nina to another account: her instance ends, Core hears nothing, and she works on.
	other := w.site.User(t)
	if out, err := w.cli("users", "change", string(nina), "--local-name", other.Name, "--yes"); err != nil || !strings.Contains(out, other.Name) {
		t.Fatalf("%s %v", out, err)
	}
	testkit.Eventually(t, "Nina's old instance to end", func() bool { return len(accounts.Processes(uid)) == 0 })
	testkit.Eventually(t, "Nina's drive of the other account", func() bool {
		for _, d := range w.drives(p) {
			p.drive = d.ID
			if err := w.mkdir(p, p.home()+"/new", "REJECT"); err == nil {
				return true
			}
		}
		return false
	})
	if _, err := os.Stat(filepath.Join(other.Home, "new")); err != nil {
		t.Error(err)
	}
}
