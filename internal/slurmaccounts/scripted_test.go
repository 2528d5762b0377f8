package slurmaccounts

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ucloud-im/internal/driveplan"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
)

type discard struct{}

func (discard) RecordScript(context.Context, scripts.Entry) {}

// site are Bash hooks that write down what they are asked, and answer as the file "answer" says.
type site struct {
	t      *testing.T
	dir    string
	runner *scripts.Runner
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, dir: testkit.PrivateDir(t)}
	for d := filepath.Dir(s.dir); d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	s.runner, err = scripts.New(scripts.Options{Provider: "hpc", Spool: filepath.Join(s.dir, "spool"), Record: discard{}, Temporary: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.runner.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.runner.Close() })
	s.answer("exit 0")
	return s
}

func (s *site) program(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	syscall.ForkLock.RLock() // a forked child must not have it open for writing
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path+".new", []byte(text), 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func (s *site) answer(bash string) { s.program("answer", bash+"\n") }

func (s *site) hook(name string) *scripts.Hook {
	s.t.Helper()
	path := s.program(name, "#!/bin/bash\n(cat \"$1\"; echo) >> "+s.dir+"/journal\n. "+s.dir+"/answer\n")
	h, err := s.runner.Hook(scripts.HookOptions{Name: name, Path: path})
	if err != nil {
		s.t.Fatal(err)
	}
	return h
}

// asked are the requests since the last call, by hook, without what every request has.
func (s *site) asked() (all []string) {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, "journal"))
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		s.t.Fatal(err)
	}
	_ = os.Remove(filepath.Join(s.dir, "journal"))
	for line := range strings.Lines(string(text)) {
		var fields map[string]json.RawMessage
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			s.t.Fatal(err)
		}
		var meta struct{ Hook string }
		if err := json.Unmarshal(fields["_meta"], &meta); err != nil {
			s.t.Fatal(err)
		}
		delete(fields, "_meta")
		out, err := json.Marshal(fields)
		if err != nil {
			s.t.Fatal(err)
		}
		all = append(all, meta.Hook+" "+string(out))
	}
	return all
}

func (s *site) expect(want ...string) {
	s.t.Helper()
	got := s.asked()
	if len(got) != len(want) {
		s.t.Fatalf("asked %q\nnot %q", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			s.t.Errorf("asked\n%s\nnot\n%s", got[i], want[i])
		}
	}
}

// TestScripted: the requests of the three hooks (contract 22 section 7.3, contract 42 sections B.11, B.12, B.14), each
// once, repeated after failures, in the spelling of the reference too.
func TestScripted(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	m := Management{
		Type: Scripted, QuotaUpdated: s.hook(scripts.HookQuotaUpdated), ProjectUpdated: s.hook(scripts.HookProjectUpdated),
		Disconnected: s.hook(scripts.HookUserDisconnected),
	}
	w := newWorld(t, m)
	w.members("Alice#1", "Eve#3")
	w.allocate(reef, "gpu", func(x *store.Wallet) { x.RetiredUsage = 2 })
	w.Pass(t.Context())
	const account = `{"accountName":"p_reef_models_gpu","partition":"gpu","qos":"high","categoryName":"gpu"}`
	quota := func(minutes, locked string) string {
		return `onQuotaUpdated {"account":` + account + `,"owner":{"type":"project","ucloudProjectId":"5b1c0a7e","gid":3001,"localGroupName":"reef_models"},` +
			`"quotaUpdate":{"combinedQuotaInResourceMinutes":` + minutes + `,"locked":` + locked + `,"unit":"Gpu","retiredUsageInResourceMinutes":120}}`
	}
	updated := func(all, added, removed string) string {
		return `onProjectUpdated {"Account":` + account + `,"AllMembers":` + all + `,"MembersAddedToProject":` + added + `,"MembersRemovedFromProject":` + removed +
			`,"account":` + account + `,"allMembers":` + all + `,"membersAddedToProject":` + added + `,"membersRemovedFromProject":` + removed + `}`
	}
	member := func(uid, user, local, role string) string {
		out := `{"uid":` + uid + `,"ucloudUsername":"` + user + `","UCloudUsername":"` + user + `","localUsername":"` + local + `"`
		if role != "" {
			out += `,"role":"` + role + `"`
		}
		return out + "}"
	}
	pi, bobby := member("1001", "Alice#1", "alice01", "PI"), member("1002", "Bob#2", "Bob02", "USER")
	s.expect(quota("60000", "false"), updated("["+pi+"]", "["+pi+"]", "[]"))
	w.look()
	w.restart(m)
	w.look()
	s.expect()

	// A failure is repeated later, with the newest data.
	s.answer("exit 1")
	w.allocate(reef, "gpu", func(x *store.Wallet) { x.RetiredUsage, x.Locked = 2, true })
	w.Pass(t.Context())
	s.expect(quota("60000", "true"))
	w.look()
	s.expect()
	s.answer("exit 0")
	w.allocate(reef, "gpu", func(x *store.Wallet) { x.RetiredUsage, x.CombinedQuota = 2, 2000 })
	w.Pass(t.Context())
	s.expect(quota("120000", "false"))

	// One who is not to be repeated waits for an operator.
	s.answer("exit 65")
	w.members("Alice#1", "Bob#2")
	w.Pass(t.Context())
	s.expect(updated("["+bobby+","+pi+"]", "["+bobby+"]", "[]"))
	if st, err := w.Status(t.Context()); err != nil || st.Parked != 1 {
		t.Errorf("%+v %v", st, err)
	}
	s.answer("exit 0")
	w.look()
	s.expect()
	w.Again(reef)
	w.Pass(t.Context())
	s.expect(quota("120000", "false"), updated("["+bobby+","+pi+"]", "["+bobby+"]", "[]"))

	w.members("Alice#1")
	w.Pass(t.Context())
	s.expect(updated("["+pi+"]", "[]", "["+member("1002", "Bob#2", "Bob02", "")+"]"))

	// Eve connects and disconnects.
	w.people.users["Eve#3"] = driveplan.Account{Name: "eve03", UID: 1003}
	w.connect("Eve#3", 1003, "eve03")
	w.members("Alice#1", "Eve#3")
	w.Pass(t.Context())
	s.asked()
	w.disconnect("Eve#3")
	w.Pass(t.Context())
	s.expect(
		`onUserDisconnected {"account":`+account+`,"localUsername":"eve03","reason":"user","ucloudUsername":"Eve#3","uid":1003}`,
		updated("["+pi+"]", "[]", "["+member("1003", "Eve#3", "eve03", "")+"]"))
}

// TestMapperScript: the request of the hook, and the names that its answer may have.
func TestMapperScript(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	hook := s.hook(scripts.HookAccountMapper)
	ask := func() (string, error) {
		return scripts.MapAccount(t.Context(), hook, alice, map[string]string{"categoryName": "cpu"})
	}
	for answer, want := range map[string]string{
		`{"accountName":"a"}`: "a", `{"account":"b"}`: "b", `{"accountName":null}`: "", `{"account":""}`: "", `{"accountName":"c","account":"d"}`: "c",
	} {
		s.answer("echo '" + answer + "'")
		if got, err := ask(); err != nil || got != want {
			t.Errorf("%s: %q, %v", answer, got, err)
		}
	}
	for _, answer := range []string{"", "{}", `{"accountName":7}`} {
		s.answer("echo '" + answer + "'")
		if got, err := ask(); err == nil {
			t.Errorf("%s: %q", answer, got)
		}
	}
	s.asked()
	s.answer("exit 75") // somebody waits: once more
	if _, err := ask(); err == nil {
		t.Error("no error")
	}
	s.expect(`accountMapper {"categoryName":"cpu"}`, `accountMapper {"categoryName":"cpu"}`)
}

// TestUsageScript: a reply is whole or refused (contract 42 section B.13).
func TestUsageScript(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	hook := s.hook(scripts.HookUsage)
	for answer, good := range map[string]bool{
		`{"usage":[{"account":"a","usageInResourceMinutes":5128}]}`: true, `{"usage":[]}`: true, `{}`: false,
		`{"usage":[{"account":"a"}]}`: false, `{"usage":[{"account":"a","usageInResourceMinutes":-1}]}`: false,
		`{"usage":[{"usageInResourceMinutes":1}]}`: false,
	} {
		s.answer("echo '" + answer + "'")
		var reply scripts.AccountUsageReply
		if err := hook.Call(t.Context(), scripts.Call{Request: scripts.AccountUsageRequest{Accounts: []string{"a"}}}, &reply); (err == nil) != good {
			t.Errorf("%s: %v", answer, err)
		}
	}
}

// TestOverview: accounts with what should be and what is, and allocations without one.
func TestOverview(t *testing.T) {
	t.Parallel()
	w := newWorld(t, automatic())
	w.members("Alice#1", "Bob#2")
	w.allocate(reef, "cpu", nil)
	w.allocate(alice, "gpu", func(x *store.Wallet) { x.Locked = true })
	w.slurm.accounts = map[string]State{"u_alice01_gpu": {Organization: "physics"}}
	delete(w.people.groups, kelp.Project)
	w.allocate(kelp, "cpu", nil)
	w.Pass(t.Context())
	update(t, w.db, func(tx *store.Tx) error { return tx.CountCompute(reef, "cpu", 17, 3, time.Now()) })
	all, err := w.Overview(t.Context())
	if err != nil || len(all) != 3 {
		t.Fatalf("%+v %v", all, err)
	}
	byCategory := map[string]Entry{}
	for _, e := range all {
		byCategory[e.Owner.Reference()] = e
	}
	if e := byCategory[reef.Reference()]; e.Account != "p_reef_models_cpu" || e.Members != 2 || e.Minutes != 1000 || e.AppliedMinutes != 1000 || e.Problem != "" ||
		e.AppliedAt.IsZero() || e.Used.Minutes != 17 || e.Foreign {
		t.Errorf("%+v", e)
	}
	if e := byCategory[alice.Reference()]; e.Account != "u_alice01_gpu" || !e.Foreign || !e.Locked || e.AppliedLock || !strings.Contains(e.Problem, "not made by this module") {
		t.Errorf("%+v", e)
	}
	if e := byCategory[kelp.Reference()]; e.Account != "" || !strings.Contains(e.Problem, "there is no account yet") {
		t.Errorf("%+v", e)
	}
}
