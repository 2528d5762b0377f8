package cli

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/testkit"
)

type noScriptLog struct{}

func (noScriptLog) RecordScript(context.Context, scripts.Entry) {}

// siteScripts are three hooks with real programs: one that looks, one that changes something unless it is told not to, and
// one that anybody could change. Those that run leave a file called "ran-" and the name of the hook, those that change
// something another one called "changed".
func siteScripts(dir string) ([]*scripts.Hook, error) {
	r, err := scripts.New(scripts.Options{Provider: "example", Spool: filepath.Join(dir, "private", "spool"), Record: noScriptLog{}, Temporary: true})
	if err != nil {
		return nil, err
	}
	if err := r.Open(); err != nil { // closed by the end of the process
		return nil, err
	}
	request := filepath.Join(dir, "request.json")
	if err := errors.Join(os.WriteFile(request, []byte(`{"ucloudUsername":"Alice#1234","_meta":{"hook":"x"}}`), 0o600), os.Chmod(request, 0o644)); err != nil {
		return nil, err
	}
	var hooks []*scripts.Hook
	for _, s := range []struct {
		name, at, body string
		mode           os.FileMode
		form           scripts.Form
	}{
		{scripts.HookDriveLocator, "services.fileSystems.home.locator", `echo '{"path":"/etc"}'; printf 'say \e[2J\n' >&2`, 0o700, scripts.FormLocator},
		{
			scripts.HookUserConnected, "services.identityManagement.connect",
			`grep -q '"dryRun":true' "$1" || touch ` + dir + `/private/changed; echo '{"uid":5}'`, 0o700, scripts.FormConnect,
		},
		{scripts.HookUsage, "services.fileSystems.home.usage", `echo '{"usageInBytes":5}'`, 0o722, scripts.FormDriveUsage},
		{scripts.HookUsage, "services.fileSystems.work.usage", `echo '{"usageInBytes":5}'`, 0o700, scripts.FormDriveUsage},
	} {
		path := filepath.Join(dir, "private", s.at)
		syscall.ForkLock.RLock() // a forked child must not have it open for writing
		err := os.WriteFile(path, []byte("#!/bin/bash\ntouch "+dir+"/private/ran-"+s.name+"\n"+s.body+"\n"), 0o700)
		syscall.ForkLock.RUnlock()
		if err := errors.Join(err, os.Chmod(path, s.mode)); err != nil {
			return nil, err
		}
		purpose := scripts.Purpose{At: s.at, Form: s.form}
		if s.form == scripts.FormLocator {
			purpose.Accept = func(context.Context, any, bool) error {
				return errors.New("path \"/etc\" is not below an allowed root")
			}
		}
		h, err := r.Hook(scripts.HookOptions{Name: s.name, Path: path, Purpose: purpose, Timeout: testkit.Patience})
		if err != nil {
			return nil, err
		}
		hooks = append(hooks, h)
	}
	return hooks, nil
}

// scriptRequest is a file that everybody may read, with a request for onUserConnected.
func (w *world) scriptRequest() string { return filepath.Join(filepath.Dir(w.socket), "request.json") }

func (w *world) scriptFile(name string) bool {
	_, err := os.Stat(filepath.Join(filepath.Dir(w.socket), "private", name))
	return err == nil
}

func (w *world) scriptsHaveRun() bool {
	return w.scriptFile("ran-"+scripts.HookUserConnected) || w.scriptFile("ran-"+scripts.HookUsage) || w.scriptFile("ran-"+scripts.HookDriveLocator)
}

func TestScriptsTest(t *testing.T) {
	t.Parallel()
	w := testWorld(t)
	code, out, _ := w.run(t, nil, "scripts", "test", "--json")
	var doc envelope[ipcapi.ScriptTrial]
	if err := json.Unmarshal([]byte(out), &doc); err != nil || doc.Schema != "ucloud.cli/scripts.test/1" || doc.Total != 4 {
		t.Fatalf("%v\n%s", err, out)
	}
	got := map[string]string{}
	for _, s := range doc.Items {
		got[s.Key] = s.Status
		if (s.Call != nil) != (s.Status == ipcapi.ScriptOK || s.Objection != "") {
			t.Errorf("%+v", s)
		}
	}
	for key, want := range map[string]string{
		"services.fileSystems.home.locator": ipcapi.ScriptFailed, "services.identityManagement.connect": ipcapi.ScriptSkipped,
		"services.fileSystems.home.usage": ipcapi.ScriptFailed, "services.fileSystems.work.usage": ipcapi.ScriptOK,
	} {
		if got[key] != want {
			t.Errorf("%s is %q, want %q", key, got[key], want)
		}
	}
	if code != ExitPartial || w.scriptFile("ran-"+scripts.HookUserConnected) {
		t.Errorf("exit code %d; the script that changes something: called %t", code, w.scriptFile("ran-"+scripts.HookUserConnected))
	}

	code, out, _ = w.run(t, nil, "scripts", "test", "driveLocator")
	for _, part := range []string{"mode 0700", "limit\t" + testkit.Patience.String(), "objection\tpath \"/etc\" is not", "exit\t0", "--- request\n{", `"dryRun":true`, "--- stdout\n{\"path\"", "say ?[2J"} {
		if !strings.Contains(out, part) {
			t.Errorf("%q is not in\n%s", part, out)
		}
	}
	if code != ExitFailed {
		t.Errorf("exit code %d", code)
	}
	for _, tc := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"onUserConnected"}, ExitUsage, "add --force"},
		{[]string{"onUserConnected", "--force"}, ExitUsage, "add --yes"},
		{[]string{"onUsageReporting"}, ExitAmbiguous, "services.fileSystems.work.usage"},
		{[]string{"services.fileSystems.home.usage"}, ExitFailed, "problem\t"},
		{[]string{"onJobSubmit"}, ExitNoMatch, "there is no script"},
		{[]string{"--input", w.scriptRequest()}, ExitUsage, "needs the name"},
		{[]string{"driveLocator", "--input", "/nonexistent"}, ExitUsage, "no such file"},
		{[]string{"driveLocator", "--input", "/dev/null"}, ExitUsage, "is not JSON"},
		{[]string{"driveLocator", "--input", "/dev/zero"}, ExitUsage, "has more than"},
	} {
		code, out, errs := w.run(t, nil, append([]string{"scripts", "test"}, tc.args...)...)
		if code != tc.code || !strings.Contains(out+errs, tc.says) {
			t.Errorf("%q: %d\n%s%s", tc.args, code, out, errs)
		}
	}
	if w.scriptFile("ran-" + scripts.HookUserConnected) {
		t.Error("a script that changes something was called without --force and --yes")
	}
	code, out, errs := w.run(t, nil, "scripts", "test", "onUserConnected", "--force", "--yes", "--input", w.scriptRequest())
	if code != ExitOK || !strings.Contains(errs, "change something at the site") || !strings.Contains(out, "Alice#1234") || !w.scriptFile("ran-"+scripts.HookUserConnected) || w.scriptFile("changed") {
		t.Errorf("%d\n%s%s", code, out, errs)
	}
}

func TestScriptsRun(t *testing.T) {
	t.Parallel()
	w := testWorld(t)
	args := []string{"scripts", "run", "onUserConnected", "--input", w.scriptRequest()}
	if code, out, errs := w.run(t, nil, args[:3]...); code != ExitUsage || w.scriptsHaveRun() {
		t.Errorf("without input: %d\n%s%s", code, out, errs)
	}
	if code, out, errs := w.run(t, nil, args...); code != ExitUsage || !strings.Contains(errs, "--yes") || w.scriptsHaveRun() {
		t.Errorf("unasked: %d\n%s%s", code, out, errs)
	}
	if code, out, errs := w.run(t, nil, append(args, "--dry-run")...); code != ExitOK || !strings.Contains(out, "status\tnot executed") || w.scriptsHaveRun() {
		t.Errorf("dry run: %d\n%s%s", code, out, errs)
	}
	code, out, errs := w.run(t, nil, append(args, "--yes")...)
	if code != ExitOK || !strings.Contains(out, "status\tok") || !strings.Contains(out, `"dryRun":false`) || !w.scriptFile("changed") {
		t.Errorf("%d\n%s%s", code, out, errs)
	}
}
