//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/accounts"
)

// TestChain is the whole story on both ways sudo can behave: connect, approve, browse, make a folder that belongs to
// the user.
func TestChain(t *testing.T) {
	for _, tc := range []struct {
		name string
		rule accounts.Rule
	}{{"sudo execs directly", accounts.Direct}, {"a PAM session keeps sudo", accounts.PAM}, {"stock rule", accounts.Stock}} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, settings{rule: tc.rule})
			ada := w.addPerson("Ada#1815")
			w.connect(ada)
			if err := os.WriteFile(filepath.Join(ada.account.Home, "notes.txt"), []byte("engine"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(filepath.Join(ada.account.Home, "notes.txt"), int(ada.account.UID), int(ada.account.GID)); err != nil {
				t.Fatal(err)
			}
			files, err := w.browse(ada, ada.home())
			if err != nil || !contains(files, ada.home()+"/notes.txt") {
				t.Fatalf("browse: %+v, %v", files, err)
			}
			if err := w.mkdir(ada, ada.home()+"/a/b/c", providerapi.ConflictReject); err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(filepath.Join(ada.account.Home, "a/b/c"))
			if err != nil {
				t.Fatal(err)
			}
			if uid := info.Sys().(*syscall.Stat_t).Uid; uid != uint32(ada.account.UID) || info.Mode().Perm() != 0o770 {
				t.Errorf("the folder belongs to %d, mode %o", uid, info.Mode().Perm())
			}
			if err := w.mkdir(ada, ada.home()+"/a/b/c", providerapi.ConflictReject); status(err) != http.StatusConflict {
				t.Errorf("a second time with REJECT: %v", err)
			}
			if err := w.mkdir(ada, ada.home()+"/a/b/c", providerapi.ConflictRename); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(ada.account.Home, "a/b/c(1)")); err != nil {
				t.Error(err)
			}
			w.checkProcesses(ada)
		})
	}
}

func contains(files []providerapi.File, id string) bool {
	for _, f := range files {
		if f.ID == id {
			return true
		}
	}
	return false
}

// checkProcesses looks at what runs: the right uids, nothing with a capability, nothing told by arguments or
// environment.
func (w *world) checkProcesses(people ...*person) {
	w.t.Helper()
	for _, p := range people {
		// PAM may have a helper of its own for a moment.
		var pids []int
		testkit.Eventually(w.t, string(p.name)+" has one process, the instance", func() bool {
			pids = accounts.Processes(p.account.UID)
			return len(pids) == 1
		})
		for _, pid := range pids {
			w.checkCapabilities(pid)
			cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			// A detached instance has started itself again by another name.
			if got := strings.TrimRight(string(cmdline), "\x00"); got != w.user && got != "/proc/self/exe" {
				w.t.Errorf("arguments of an instance: %q", got)
			}
		}
	}
	for _, pid := range accounts.Processes(w.site.Service.UID) {
		w.checkCapabilities(pid)
	}
	for _, s := range []*supervised{w.server, w.gateway} {
		var st syscall.Stat_t
		if err := syscall.Stat(fmt.Sprintf("/proc/%d", s.pid()), &st); err != nil || st.Uid != uint32(w.site.Service.UID) {
			w.t.Errorf("the %s runs as %d, %v", s.role, st.Uid, err)
		}
	}
}

func (w *world) checkCapabilities(pid int) {
	w.t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return // has ended meanwhile
	}
	for _, line := range strings.Split(string(data), "\n") {
		for _, set := range []string{"CapInh:", "CapPrm:", "CapEff:", "CapAmb:"} {
			if value, ok := strings.CutPrefix(line, set); ok && strings.Trim(value, " \t0") != "" {
				w.t.Errorf("process %d has capabilities: %s", pid, line)
			}
		}
	}
}

// TestTwoUsers: neither sees the other's private directory, whatever is asked.
func TestTwoUsers(t *testing.T) {
	w := newWorld(t, settings{})
	ada, grace := w.addPerson("Ada#1815"), w.addPerson("Grace#1906")
	w.connect(ada, grace)
	secret := filepath.Join(ada.account.Home, "secret")
	if err := os.Mkdir(secret, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(secret, int(ada.account.UID), int(ada.account.GID)); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*person{ada, grace} {
		if _, err := w.browse(p, p.home()); err != nil {
			t.Fatal(err)
		}
	}
	w.checkProcesses(ada, grace)

	// Core refuses a drive that is not shared.
	if _, err := w.browse(grace, ada.home()); status(err) != http.StatusForbidden {
		t.Errorf("through Core: %v", err)
	}
	// A Core that is wrong, or taken over, sends it nevertheless: the kernel refuses.
	drive := w.driveOf(ada)
	body := providerapi.FilesBrowse{ResolvedCollection: drive, Browse: providerapi.BrowseParams{Flags: providerapi.FileFlags{Path: ptr(ada.home())}}}
	if got := w.raw(grace.name, "/files/browse", body, nil); got.status == http.StatusOK {
		t.Errorf("Grace lists Ada's home: %s", got.body)
	}
	if got := w.raw(ada.name, "/files/browse", body, nil); got.status != http.StatusOK {
		t.Errorf("Ada does not list her own home: %d %s", got.status, got.body)
	}
	// A link to it does not help either.
	link := filepath.Join(grace.account.Home, "link")
	if err := os.Symlink(secret, link); err != nil {
		t.Fatal(err)
	}
	if _, err := w.browse(grace, grace.home()+"/link"); status(err) < 400 {
		t.Errorf("through a link: %v", err)
	}
	for _, path := range []string{"/../" + string(ada.drive), grace.home() + "/../../" + string(ada.drive), grace.home() + "/..", grace.home() + "/%2e%2e"} {
		body := providerapi.FilesBrowse{ResolvedCollection: w.driveOf(grace), Browse: providerapi.BrowseParams{Flags: providerapi.FileFlags{Path: ptr(path)}}}
		if got := w.raw(grace.name, "/files/browse", body, nil); got.status < 400 {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
}

func ptr[T any](v T) *T { return &v }

func (w *world) driveOf(p *person) providerapi.Drive {
	w.t.Helper()
	for _, d := range w.drives(p) {
		if d.ID == p.drive {
			return d
		}
	}
	w.t.Fatalf("%s has no drive %s", p.name, p.drive)
	return providerapi.Drive{}
}

// TestDisconnectAndReconnect: the uid is remembered, and only for the same user.
func TestDisconnectAndReconnect(t *testing.T) {
	w := newWorld(t, settings{})
	ada, eve := w.addPerson("Ada#1815"), w.addPerson("Eve#6666")
	w.connect(ada)
	if _, err := w.browse(ada, ada.home()); err != nil {
		t.Fatal(err)
	}
	if err := w.call(ada.name, http.MethodPost, "/api/providers/integration/clearConnection", map[string]string{"provider": provider}, nil); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "Ada's instance to end", func() bool { return len(accounts.Processes(ada.account.UID)) == 0 })
	if _, err := w.browse(ada, ada.home()); status(err) != 449 || !strings.Contains(err.Error(), "onnect") {
		t.Errorf("browse while disconnected: %v", err)
	}
	// Unknown users can be unlinked too: an error would make Core put the connection back.
	if err := w.core.Call(t.Context(), "", http.MethodPost, "/ucloud/"+provider+"/integration/unlinked", providerapi.FindByUser{Username: "Nobody#1"}, nil); err != nil {
		t.Errorf("unlinked for an unknown user: %v", err)
	}
	if out, err := w.cli("connect", w.ticket(eve), ada.account.Name, "--yes"); err == nil {
		t.Errorf("Eve was connected to Ada's account: %s", out)
	}
	if out, err := w.cli("connect", w.ticket(ada), eve.account.Name, "--yes"); err == nil {
		t.Errorf("Ada was connected to another account: %s", out)
	}
	w.connect(ada)
	if _, err := w.browse(ada, ada.home()); err != nil {
		t.Error(err)
	}
	if got := len(w.drives(ada)); got != 1 {
		t.Errorf("%d drives after a second connection", got)
	}
}

// TestSelfService: the user completes the ticket after a login; the account is the kernel's answer.
func TestSelfService(t *testing.T) {
	w := newWorld(t, settings{})
	ada, grace := w.addPerson("Ada#1815"), w.addPerson("Grace#1906")
	run := func(p *person, args ...string) (string, error) {
		cmd := p.account.Command(w.ucloud, append([]string{"--socket", w.socket()}, args...)...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	ticket := w.ticket(ada)
	// An ordinary user may not choose an account.
	if out, err := run(grace, "connect", ticket, ada.account.Name, "--yes"); err == nil {
		t.Errorf("an ordinary user named an account: %s", out)
	}
	// Without a terminal and without --yes nothing happens.
	if out, err := run(ada, "connect", ticket); err == nil {
		t.Errorf("nobody confirmed: %s", out)
	}
	out, err := run(ada, "connect", ticket, "--yes")
	if err != nil || !strings.Contains(out, "Ada#1815") {
		t.Fatalf("%v: %s", err, out)
	}
	w.waitDrive(ada)
	if _, err := w.browse(ada, ada.home()); err != nil {
		t.Error(err)
	}
	if out, err := run(grace, "connect", ticket, "--yes"); err == nil {
		t.Errorf("a ticket was used twice: %s", out)
	}
	// Operators' calls are refused to them.
	for _, args := range [][]string{{"users", "list"}, {"instances", "stop", "--all", "--yes"}, {"gateway", "dump"}, {"users", "remove", "Ada#1815", "--yes"}} {
		out, err := run(grace, args...)
		if exit := exitCode(err); exit != 77 {
			t.Errorf("%v: exit %d, %s", args, exit, out)
		}
	}
}

// TestProjectDrive: a project's directory is shared as the centre's permissions say.
func TestProjectDrive(t *testing.T) {
	w := newWorld(t, settings{})
	ada, grace := w.addPerson("Ada#1815"), w.addPerson("Grace#1906")
	w.connect(ada, grace)
	const id = ident.ProjectID("5b0f7c1e-3a52-4d0e-9a5b-0c9f3f6f2a11")
	dir := filepath.Join(w.base, "projects", string(id))
	w.must(os.Mkdir(dir, 0o770))
	w.must(os.Chown(dir, 0, int(w.site.GID)))
	w.must(os.Chmod(dir, 0o770|os.ModeSetgid))
	w.core.AddProject(id, "Analytical engines", ada.name, grace.name)
	w.must(w.core.Allocate(ident.Owner{Project: id}, category, 10))
	var drive string
	testkit.Eventually(t, "the project's drive", func() bool {
		for _, d := range w.drives(grace) {
			if d.Specification.Title == "Work" {
				drive = "/" + string(d.ID)
			}
		}
		return drive != ""
	})
	w.must(w.mkdir(ada, drive+"/shared", providerapi.ConflictReject))
	w.must(w.mkdir(grace, drive+"/shared/by-grace", providerapi.ConflictReject))
	files, err := w.browse(ada, drive+"/shared")
	if err != nil || !contains(files, drive+"/shared/by-grace") {
		t.Errorf("%+v, %v", files, err)
	}
	info, err := os.Stat(filepath.Join(dir, "shared/by-grace"))
	if err != nil || info.Sys().(*syscall.Stat_t).Gid != uint32(w.site.GID) || info.Mode()&os.ModeSetgid == 0 {
		t.Errorf("%v, %v", info, err)
	}
}

// TestCommands: what an operator sees.
func TestCommands(t *testing.T) {
	w := newWorld(t, settings{})
	ada := w.addPerson("Ada#1815")
	w.connect(ada)
	_, err := w.browse(ada, ada.home())
	w.must(err)
	for _, tc := range []struct {
		args []string
		want []string
	}{
		{[]string{"users", "list"}, []string{"Ada#1815", ada.account.Name}},
		{[]string{"users", "list", "--json"}, []string{`"schema"`, `"ucloudName":"Ada#1815"`}},
		{[]string{"users", "show", "Ada#1815"}, []string{ada.account.Name}},
		{[]string{"instances", "list", "--json"}, []string{`"Ada#1815"`}},
		{[]string{"status", "--json"}, []string{`"schema"`}},
		{[]string{"drives", "list"}, []string{ada.account.Home}},
		{[]string{"gateway", "dump"}, []string{"Ada#1815"}},
		{[]string{"version"}, []string{"ucloud"}},
	} {
		out, err := w.cli(tc.args...)
		if err != nil {
			t.Errorf("%v: %v", tc.args, err)
		}
		compact := strings.ReplaceAll(strings.ReplaceAll(out, `": `, `":`), "\n", "")
		for _, want := range tc.want {
			if !strings.Contains(compact, want) {
				t.Errorf("%v: no %q in %s", tc.args, want, out)
			}
		}
	}
	if _, err := w.cli("users", "remove", "Ada#1815", "--yes"); err != nil {
		t.Error(err)
	}
	testkit.Eventually(t, "the connection to be gone at Core", func() bool { return !w.core.Connected(ada.name) })
	testkit.Eventually(t, "the instance to end", func() bool { return len(accounts.Processes(ada.account.UID)) == 0 })
}
