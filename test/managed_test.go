//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
)

// The scripts of a site, in the way in which sites write them. $1 is the request file.
const (
	locatorScript = `#!/bin/sh
# A project's directory is called like its group.
group=$(sed -n 's/.*"localGroupName":"\([^"]*\)".*/\1/p' "$1")
printf '{"path":"BASE/projects/%s"}' "$group"
`
	quotaScript = `#!/bin/sh
cat "$1" >> BASE/state/quotas; echo >> BASE/state/quotas
stat -c '%a %u' "$1" >> BASE/state/modes
[ -e BASE/state/quota-works ] || { echo "the quota tool is away" >&2; exit 1; }
`
	usageScript = `#!/bin/sh
printf '{"usageInBytes":%s}' "$(cat BASE/state/used)"
`
	removedScript = `#!/bin/sh
cat "$1" >> BASE/state/removed
`
)

// script installs an extension script: it and all directories above belong to root.
func (w *world) script(name, text string) string {
	w.t.Helper()
	dir := filepath.Join(w.base, "scripts")
	w.must(os.MkdirAll(dir, 0o755))
	path := filepath.Join(dir, name)
	w.must(os.WriteFile(path, []byte(strings.ReplaceAll(text, "BASE", w.base)), 0o755))
	w.must(os.Chmod(path, 0o755))
	return path
}

// managed is a provider whose storage is managed by scripts.
func managed(w *world) string {
	return fmt.Sprintf(`
services:
  type: Slurm
  identityManagement:
    type: Manual
    manual:
      tickets: { enabled: true, contact: help@example.invalid }
  fileSystems:
    %s:
      management:
        type: Scripted
        usage: { interval: 10s, timeout: 5s }
        scripted:
          onQuotaUpdated: { path: %s, timeout: 10s, retry: { initial: 1s, max: 2s } }
          onUsageReporting: %s
          onDriveRemoved: %s
      payment: { type: Resource, unit: GB }
      driveLocators:
        work: { entity: Project, script: %s, allowedRoots: [%s/projects], title: "Work of #{ucloudProjectTitle}" }
        home: { entity: User, pattern: "%s", title: Home, freeQuota: 5 }
`, category, w.script("quota", quotaScript), w.script("usage", usageScript), w.script("removed", removedScript),
		w.script("locate", locatorScript), w.base, w.homePattern())
}

// state writes a file that the scripts look at.
func (w *world) state(name, text string) {
	w.t.Helper()
	path := filepath.Join(w.base, "state", name)
	w.must(os.WriteFile(path, []byte(text), 0o644))
}

// localGroup makes a Unix group with members, for the time of the test.
func (w *world) localGroup(name string, members ...*person) ident.GID {
	w.t.Helper()
	run := func(args ...string) {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			w.t.Fatalf("%v: %v %s", args, err, out)
		}
	}
	run("groupadd", name)
	w.t.Cleanup(func() { _ = exec.Command("groupdel", name).Run() })
	for _, p := range members {
		run("usermod", "-a", "-G", name, p.account.Name)
	}
	out, err := exec.Command("getent", "group", name).Output()
	w.must(err)
	gid, err := strconv.ParseUint(strings.Split(string(out), ":")[2], 10, 32)
	w.must(err)
	return ident.GID(gid)
}

// scriptCalls are the calls in the script log.
func (w *world) scriptCalls(args ...string) (calls []struct {
	ID                                int64
	Hook, Result, Message, Key, Owner string
},
) {
	w.t.Helper()
	out, err := w.cli(append([]string{"scripts", "list", "--json"}, args...)...)
	w.must(err)
	var list struct{ Items json.RawMessage }
	w.must(json.Unmarshal([]byte(out), &list))
	w.must(json.Unmarshal(list.Items, &calls))
	return calls
}

// TestManagedStorage follows an allocation of a project: a group, a located and managed drive, usage, a lock, its end.
func TestManagedStorage(t *testing.T) {
	w := newWorld(t, settings{services: managed})
	p := w.addPerson("Ada#1815")
	other := w.addPerson("Eve#1")
	w.state("used", "0")

	// Until its quota is set, a drive does not exist for UCloud.
	if _, err := w.cli("connect", w.ticket(p), p.account.Name, "--yes"); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the quota script to fail for the home", func() bool { return len(w.scriptCalls("--failures")) > 1 })
	if n := len(w.core.Drives()); n != 0 {
		t.Fatalf("%d drives without a quota", n)
	}
	out, err := w.cli("scripts", "list", "--failures")
	if err != nil || !strings.Contains(out, "onQuotaUpdated") || !strings.Contains(out, "the quota tool is away") {
		t.Errorf("%s, %v", out, err)
	}
	out, err = w.cli("scripts", "show", fmt.Sprint(w.scriptCalls("--failures")[0].ID))
	if err != nil || !strings.Contains(out, "the quota tool is away") || !strings.Contains(out, "recommendedPermissions") {
		t.Errorf("%s, %v", out, err)
	}
	w.state("quota-works", "")
	w.waitDrive(p)

	project := w.core.AddProject("", "Reef", p.name, other.name)
	owner := ident.Owner{Project: project}
	w.must(w.core.Allocate(owner, category, 10))
	testkit.Eventually(t, "the project", func() bool {
		out, err := w.cli("projects", "list", "--ucloud-id", string(project), "-o", "name")
		return err == nil && strings.TrimSpace(out) == string(project)
	})
	group := strings.ReplaceAll(p.account.Name, "u", "g") + "g"
	if len(group) > 30 {
		group = group[len(group)-30:]
	}
	gid := w.localGroup(group, p)
	dir := filepath.Join(w.base, "projects", group)
	w.must(os.Mkdir(dir, 0o770))
	w.must(os.Chown(dir, 0, int(gid)))
	w.must(os.Chmod(dir, 0o770|os.ModeSetgid))
	if out, err := w.cli("projects", "map", "--ucloud-id", string(project), "--local-name", group, "--yes"); err != nil {
		t.Fatal(out, err)
	}
	var work providerapi.Drive
	testkit.Eventually(t, "the project's drive", func() bool {
		for _, d := range w.drives(p) {
			if d.Specification.Title == "Work of Reef" {
				work = d
			}
		}
		return work.ID != ""
	})
	if want := provider + "-" + string(project) + "\n" + dir; work.ProviderGeneratedID != want || work.Owner.Workspace() != owner {
		t.Errorf("the drive is %q of %+v", work.ProviderGeneratedID, work.Owner)
	}
	quotas := w.read("quotas")
	for _, want := range []string{
		`"combinedQuotaInBytes":10000000000`, `"locked":false`, `"filePath":"` + dir + `"`, `"recommendedGroupName":"` + group + `"`,
		`"recommendedPermissions":"2770"`, `"firstTime":true`, `"ucloudProjectId":"` + string(project) + `"`, `"recommendedPermissions":"0700"`,
	} {
		if !strings.Contains(quotas, want) {
			t.Errorf("the quota script was not told %s:\n%s", want, quotas)
		}
	}

	// What it holds is measured and reported, rounded up.
	w.state("used", "2500000001")
	scope := provider + "-" + category + "-work"
	testkit.Eventually(t, "usage at UCloud", func() bool { n, ok := w.core.ScopedUsage(owner, scope); return ok && n == 3 })
	base := "/" + string(work.ID)
	w.must(w.mkdir(p, base+"/before", providerapi.ConflictReject))
	w.must(w.mkdir(p, base+"/doomed", providerapi.ConflictReject))
	if st, err := os.Stat(filepath.Join(dir, "before")); err != nil || st.Sys().(*syscall.Stat_t).Uid != uint32(p.account.UID) || st.Sys().(*syscall.Stat_t).Gid != uint32(gid) {
		t.Errorf("a folder of the project: %+v, %v", st, err)
	}

	// More than the quota: UCloud locks the wallet, and nothing may be added. Everything else goes on.
	w.state("used", "11000000000")
	began := time.Now()
	testkit.Eventually(t, "the lock", func() bool { return status(w.mkdir(p, base+"/during", providerapi.ConflictRename)) == 402 })
	t.Logf("locked %v after the usage had changed", time.Since(began))
	err = w.mkdir(p, base+"/during2", providerapi.ConflictReject)
	if status(err) != 402 || !strings.Contains(err.Error(), "used up or has expired") {
		t.Errorf("a folder in a locked workspace: %v", err)
	}
	item := func(v map[string]any) map[string]any { return map[string]any{"items": []any{v}} }
	for name, body := range map[string]map[string]any{
		"upload": {"id": base + "/new", "type": "FILE", "supportedProtocols": []string{"WEBSOCKET_V2"}, "conflictPolicy": "REJECT"},
		"copy":   {"oldId": base + "/before", "newId": base + "/copy", "conflictPolicy": "REJECT"},
	} {
		if err := w.call(p.name, http.MethodPost, "/api/files/"+name, item(body), nil); status(err) != 402 {
			t.Errorf("%s in a locked workspace: %v", name, err)
		}
	}
	w.must(w.mkdir(p, p.home()+"/elsewhere", providerapi.ConflictRename)) // another wallet
	if err := w.call(p.name, http.MethodPost, "/api/files/move", item(map[string]any{"oldId": p.home() + "/elsewhere", "newId": base + "/moved", "conflictPolicy": "REJECT"}), nil); status(err) != 402 {
		t.Errorf("something was moved into a locked workspace: %v", err)
	}
	if files, err := w.browse(p, base); err != nil || len(files) < 2 {
		t.Errorf("reading in a locked workspace: %+v, %v", files, err)
	}
	if err := w.call(p.name, http.MethodPost, "/api/files/trash", item(map[string]any{"id": base + "/doomed"}), nil); err != nil {
		t.Errorf("trash in a locked workspace: %v", err)
	}
	if err := w.call(p.name, http.MethodPost, "/api/files/move", item(map[string]any{"oldId": base + "/before", "newId": base + "/renamed", "conflictPolicy": "REJECT"}), nil); err != nil {
		t.Errorf("renaming in a locked workspace: %v", err)
	}
	testkit.Eventually(t, "the quota script to hear of the lock", func() bool {
		return strings.Contains(w.read("quotas"), `"combinedQuotaInBytes":10000000000,"locked":true`)
	})

	// Less usage unlocks by itself, without anybody's help.
	w.state("used", "1")
	testkit.Eventually(t, "the end of the lock", func() bool { return w.mkdir(p, base+"/after", providerapi.ConflictReject) == nil })

	// A lock that UCloud decides on its own counts within seconds, in both directions.
	for _, locked := range []bool{true, false} {
		w.must(w.core.SetLocked(ident.Owner{User: p.name}, category, locked))
		began := time.Now()
		testkit.Eventually(t, fmt.Sprint("locked ", locked), func() bool {
			return (status(w.mkdir(p, p.home()+"/x", providerapi.ConflictRename)) == 402) == locked
		})
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("it took %v until a lock counted: %v", took, locked)
		} else {
			t.Logf("locked %v after %v", locked, took)
		}
	}

	// Without an allocation the site's script is told, and the drive stays.
	w.must(w.core.Allocate(owner, category, 0))
	testkit.Eventually(t, "onDriveRemoved", func() bool { return strings.Contains(w.read("removed"), `"filePath":"`+dir+`"`) })
	if _, err := os.Stat(filepath.Join(dir, "after")); err != nil {
		t.Error(err)
	}

	if n := w.core.Calls("/api/accounting/v2/registerProviderGift"); n != 1 {
		t.Errorf("the free quota of one connected user was asked for %d times", n)
	}

	// Requests are private, and gone after the calls.
	for line := range strings.Lines(w.read("modes")) {
		if want := fmt.Sprintf("600 %d\n", w.site.Service.UID); line != want {
			t.Errorf("a request file had %q, want %q", line, want)
		}
	}
	if left, err := os.ReadDir(filepath.Join(w.base, "spool")); err != nil || len(left) != 0 {
		t.Errorf("left in the spool: %v, %v", left, err)
	}
}

// hostileScript does what the file "mode" says.
const hostileScript = `#!/bin/sh
case "$(cat BASE/state/mode)" in
fail) echo "no space in the vault for $UCLOUD_HOOK" >&2; exit 3 ;;
permanent) echo "this site has no vault" >&2; exit 78 ;;
slow) (trap '' TERM; while :; do echo still >> BASE/state/alive; sleep 0.1; done) & trap '' TERM; sleep 600 & wait ;;
flood) head -c 40000000 /dev/zero | tr '\\0' x; head -c 3000000 /dev/zero | tr '\\0' y >&2 ;;
nonsense) echo 'done!' ;;
esac
`

// TestScriptsExplainThemselves: whatever a script does, the server stays as it is, and the log of scripts says what
// happened.
func TestScriptsExplainThemselves(t *testing.T) {
	w := newWorld(t, settings{services: func(w *world) string {
		return strings.Replace(managed(w), w.script("quota", quotaScript)+", timeout: 10s", w.script("hostile", hostileScript)+", timeout: 1s", 1)
	}})
	p := w.addPerson("Ada#1815")
	w.state("used", "0")
	w.state("mode", "fail")
	if _, err := w.cli("connect", w.ticket(p), p.account.Name, "--yes"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ mode, result, shown string }{
		{"fail", "failed", "no space in the vault for onQuotaUpdated"},
		{"nonsense", "invalid reply", "not a JSON object"},
		{"flood", "invalid reply", "allowed are 4194304"},
		{"slow", "timeout", "did not end within 1s"},
		{"permanent", "permanent", "this site has no vault"},
	} {
		w.state("mode", tc.mode)
		var id int64
		testkit.Eventually(t, tc.mode, func() bool {
			for _, c := range w.scriptCalls("--failures", "--hook", "onQuotaUpdated") {
				if c.Result == tc.result && strings.Contains(c.Message, tc.shown) {
					id = c.ID
					return true
				}
			}
			return false
		})
		out, err := w.cli("scripts", "show", fmt.Sprint(id))
		for _, want := range []string{tc.result, tc.shown, "combinedQuotaInBytes"} {
			if err != nil || !strings.Contains(out, want) {
				t.Errorf("%s: scripts show has no %q: %v\n%.2000s", tc.mode, want, err, out)
			}
		}
		if len(out) > 400_000 {
			t.Errorf("%s: scripts show gives %d bytes", tc.mode, len(out))
		}
	}
	// What the slow one left running was killed with it.
	before := len(w.read("alive"))
	time.Sleep(500 * time.Millisecond)
	if after := len(w.read("alive")); before == 0 || after != before {
		t.Errorf("a child of a killed script lives on: %d, then %d bytes", before, after)
	}
	// A permanent failure waits for the operator, and status says so.
	out, err := w.cli("status")
	if !strings.Contains(out, "wait for you") || !strings.Contains(out, "this site has no vault") || err == nil {
		t.Errorf("status: %v\n%s", err, out)
	}
	if n := len(w.core.Drives()); n != 0 {
		t.Errorf("%d drives were registered", n)
	}
	// Put right and told so, it goes on.
	w.state("mode", "good")
	if _, err := w.cli("config", "reload"); err != nil {
		t.Fatal(err)
	}
	w.waitDrive(p)
	if left, err := os.ReadDir(filepath.Join(w.base, "spool")); err != nil || len(left) != 0 {
		t.Errorf("left in the spool: %v, %v", left, err)
	}
}

// read is a file that a script has written; empty if it is not there.
func (w *world) read(name string) string {
	data, _ := os.ReadFile(filepath.Join(w.base, "state", name))
	return string(data)
}

// posix is a provider whose directories somebody else makes, and which measures them.
func posix(w *world) string {
	w.must(os.MkdirAll(filepath.Join(w.base, "members"), 0o755))
	return fmt.Sprintf(`
services:
  type: Slurm
  identityManagement:
    type: Manual
    manual:
      tickets: { enabled: true, contact: help@example.invalid }
  fileSystems:
    %s:
      management: { type: Posix, usage: { interval: 10s } }
      payment: { type: Resource, unit: GB }
      driveLocators:
        home: { entity: User, pattern: "%s", title: Home, freeQuota: 0 }
        members: { entity: MemberFiles, pattern: "%s/members/#{localGroupName}-#{localUsername}", title: "Member Files: #{ucloudUsername}" }
`, category, w.homePattern(), w.base)
}

// TestPosixStorage: directories are used when they are there and belong to the right account, and an instance measures
// what the server may not look into.
func TestPosixStorage(t *testing.T) {
	w := newWorld(t, settings{services: posix})
	p := w.addPerson("Ada#1815")
	big := filepath.Join(w.site.Dir, "home", p.account.Name, "big")
	w.must(os.WriteFile(big, make([]byte, 5<<20), 0o600))
	w.must(os.Chown(big, int(p.account.UID), int(p.account.GID)))
	w.connect(p)
	project := w.core.AddProject("", "Reef", p.name)
	w.must(w.core.Allocate(ident.Owner{Project: project}, category, 10))
	group := "g" + p.account.Name
	gid := w.localGroup(group, p)
	testkit.Eventually(t, "the project to be mapped", func() bool {
		_, err := w.cli("projects", "map", "--ucloud-id", string(project), "--local-name", group, "--yes")
		return err == nil
	})
	dir := filepath.Join(w.base, "members", group+"-"+p.account.Name)
	says := func(what string, words ...string) {
		t.Helper()
		testkit.Eventually(t, what, func() bool {
			out, err := w.cli("drives", "list", "--locator", "members", "-o", "wide")
			for _, word := range words {
				if err != nil || !strings.Contains(out, word) {
					return false
				}
			}
			return true
		})
	}
	says("word about the missing directory", "as root: install -d -o "+p.account.Name+" -g "+group+" -m 0700 '"+dir+"'", string(p.name))
	w.must(os.Mkdir(dir, 0o700)) // of root
	says("word about the wrong owner", "belongs to uid 0 and must belong to "+p.account.Name)
	if titles(w.drives(p))["Member Files: Ada#1815"] {
		t.Error("a directory of somebody else was registered")
	}
	w.must(os.Chown(dir, int(p.account.UID), int(gid)))
	testkit.Eventually(t, "the member's drive", func() bool { return titles(w.drives(p))["Member Files: Ada#1815"] })
	for _, d := range w.drives(p) {
		if strings.HasPrefix(d.Specification.Title, "Member") && (d.Owner.CreatedBy != p.name || d.Owner.Workspace().Project != project) {
			t.Errorf("%+v", d.Owner)
		}
	}

	// The instance is awake, so that it can measure.
	if _, err := w.browse(p, p.home()); err != nil {
		t.Fatal(err)
	}
	scope := provider + "-" + category + "-home"
	began := time.Now()
	for time.Since(began) < 2*time.Minute {
		if n, ok := w.core.ScopedUsage(ident.Owner{User: p.name}, scope); ok {
			if n != 1 { // 5 MiB are one GB, rounded up
				t.Errorf("%d units were reported", n)
			}
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	out, err := w.cli("drives", "list", "--locator", "home", "-o", "wide")
	if err != nil || !strings.Contains(out, "scan") || !strings.Contains(out, "5.") {
		t.Errorf("%v\n%s", err, out)
	}
	t.Logf("measured after %v", time.Since(began))
}

// titles are the titles of drives.
func titles(list []providerapi.Drive) map[string]bool {
	out := map[string]bool{}
	for _, d := range list {
		out[d.Specification.Title] = true
	}
	return out
}

// TestKillsWhileStorageIsManaged: the server is killed again and again while scripts run, drives are registered and usage
// is reported. Nothing is lost, nothing is done that Core cannot bear, and nothing is left lying about.
func TestKillsWhileStorageIsManaged(t *testing.T) {
	w := newWorld(t, settings{services: managed})
	w.state("used", "7000000000")
	var people []*person
	for i := range 4 {
		p := w.addPerson(ident.UCloudUser(fmt.Sprintf("Ada#%d", i)))
		if _, err := w.cli("connect", w.ticket(p), p.account.Name, "--yes"); err != nil {
			t.Fatal(err)
		}
		people = append(people, p)
	}
	testkit.Eventually(t, "the quota script to be called for all", func() bool {
		text := w.read("quotas")
		for _, p := range people {
			if !strings.Contains(text, `"ucloudUsername":"`+string(p.name)+`"`) {
				return false
			}
		}
		return true
	})
	starts := w.server.startCount()
	for i := range 20 {
		if i == 5 {
			w.state("quota-works", "")
		}
		time.Sleep(time.Duration(100+rand.IntN(1200)) * time.Millisecond)
		w.server.signal(syscall.SIGKILL)
	}
	testkit.Eventually(t, "the server to be back", func() bool { _, err := w.cli("drives", "list"); return err == nil })
	if n := w.server.startCount() - starts; n < 15 {
		t.Errorf("only %d of the kills hit", n)
	}
	for _, p := range people {
		w.waitDrive(p)
		if n := len(w.drives(p)); n != 1 {
			t.Errorf("%s has %d drives", p.name, n)
		}
		testkit.Eventually(t, "the usage of "+string(p.name), func() bool {
			n, ok := w.core.ScopedUsage(ident.Owner{User: p.name}, provider+"-"+category+"-home")
			return ok && n == 7
		})
	}
	if n := w.core.Calls("/api/accounting/v2/registerProviderGift"); n > len(people) {
		t.Errorf("%d gifts were asked for %d users", n, len(people))
	}
	testkit.Eventually(t, "an empty spool", func() bool {
		left, err := os.ReadDir(filepath.Join(w.base, "spool"))
		return err == nil && len(left) == 0
	})
	out, err := w.cli("scripts", "list", "--json", "--limit", "0")
	if err != nil || !strings.Contains(out, `"result":"ok"`) {
		t.Errorf("%v: %.500s", err, out)
	}
}
