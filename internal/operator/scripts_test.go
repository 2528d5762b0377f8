package operator

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
)

// noRecords is a script log that keeps nothing.
type noRecords struct{}

func (noRecords) RecordScript(context.Context, scripts.Entry) {}

// connectHook gives the option that has one hook, onUserConnected, with a Bash program.
func connectHook(t *testing.T, body string) func(*Options) {
	t.Helper()
	dir := testkit.PrivateDir(t)
	path := filepath.Join(dir, "connect")
	syscall.ForkLock.RLock() // a forked child must not have it open for writing
	err := os.WriteFile(path, []byte("#!/bin/bash\n"+body+"\n"), 0o700)
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Fatal(err)
	}
	for d := filepath.Dir(dir); d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r, err := scripts.New(scripts.Options{Provider: "example", Spool: filepath.Join(dir, "spool"), Record: noRecords{}, Temporary: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	h, err := r.Hook(scripts.HookOptions{
		Name: scripts.HookUserConnected, Path: path, Concurrency: 10, Timeout: testkit.Patience, Environment: map[string]string{"PASSWORD": "geh!im"},
		Purpose: scripts.Purpose{At: "connect", Form: scripts.FormConnect},
	})
	if err != nil {
		t.Fatal(err)
	}
	return func(o *Options) { o.Scripts = func() []*scripts.Hook { return []*scripts.Hook{h} } }
}

// TestScriptTrials: a script that is called by hand is audited, and its answer connects nobody.
func TestScriptTrials(t *testing.T) {
	t.Parallel()
	w := newWorld(t, connectHook(t, fmt.Sprintf(`jq -c '{uid: %d, message: (.ucloudUsername + " " + (._meta.dryRun|tostring) + " " + ._meta.reason)}'`, uidKay)))
	list := must(t, w, ipcapi.ScriptHooks, ipcapi.Empty{}).Items
	if len(list) != 1 || list[0].Key != "connect" || !list[0].Changes || list[0].Problem != "" || list[0].FileMode != "0700" || list[0].TimeoutMs == 0 {
		t.Fatalf("%+v", list)
	}
	if raw, err := json.Marshal(list); err != nil || strings.Contains(string(raw), "geh!im") || !strings.Contains(string(raw), "PASSWORD") {
		t.Errorf("%s, %v", raw, err)
	}
	for _, dry := range []bool{true, false} {
		got := must(t, w, ipcapi.ScriptTry, ipcapi.ScriptTrialRequest{
			Key: "connect", DryRun: dry, Input: json.RawMessage(`{"ucloudUsername":"Mary#0001"}`), Reason: "new\nscript",
		})
		want := fmt.Sprintf("%s %t by hand, uid %d", mary, dry, os.Getuid())
		if got.Status != ipcapi.ScriptOK || got.Call.Message != want || *got.Call.Exit != 0 || got.Call.Result != "ok" {
			t.Errorf("%+v %+v", got, got.Call)
		}
		line := fmt.Sprintf(`action=script.try result=ok byUid=%d`, os.Getuid())
		if log := w.audit.String(); !strings.Contains(log, line) || !strings.Contains(log, `hook=connect dryRun=`+fmt.Sprint(dry)+` reason="new script" invocation=`+got.Call.Invocation) {
			t.Errorf("audit:\n%s", log)
		}
	}
	if err := w.store.View(t.Context(), func(tx *store.Tx) error {
		all, err := tx.MappingHistory()
		if len(all) > 0 {
			t.Errorf("a trial has connected somebody: %+v", all)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := invoke(t, w, ipcapi.ScriptTry, ipcapi.ScriptTrialRequest{Key: "other"}); !failure.Is(err, failure.NotFound) {
		t.Error(err)
	}
	if _, err := invoke(t, w, ipcapi.ScriptTry, ipcapi.ScriptTrialRequest{Key: "connect", Input: json.RawMessage(`7`)}); !failure.Is(err, failure.Invalid) {
		t.Error(err)
	}
	if log := w.audit.String(); strings.Count(log, "level=WARN") != 2 {
		t.Errorf("refusals are not in the audit log:\n%s", log)
	}
}

// TestScriptTrialsAreFew: operators cannot fill the machine with scripts by accident.
func TestScriptTrialsAreFew(t *testing.T) {
	t.Parallel()
	dir := testkit.PrivateDir(t)
	w := newWorld(t, connectHook(t, `touch "`+dir+`/$UCLOUD_INVOCATION_ID"; while ! [ -e "`+dir+`/gate" ]; do sleep 0.05; done; echo '{"uid":5}'`))
	running := func() int {
		names, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	try := func(n int) error {
		_, err := invoke(t, w, ipcapi.ScriptTry, ipcapi.ScriptTrialRequest{Key: "connect", Input: json.RawMessage(fmt.Sprintf(`{"ucloudUsername":"U#%d"}`, n))})
		return err
	}
	var wg sync.WaitGroup
	for n := range maxTrials {
		wg.Go(func() {
			if err := try(n); err != nil {
				t.Error(err)
			}
		})
	}
	testkit.Eventually(t, "the first scripts run", func() bool { return running() == maxTrials })
	if err := try(maxTrials); !failure.Is(err, failure.Unavailable) {
		t.Errorf("one more: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "gate"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if err := try(0); err != nil { // there is room again
		t.Error(err)
	}
}
