package oidc

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/usermap/consent"
)

type entries struct{ list chan scripts.Entry }

func (e entries) RecordScript(_ context.Context, x scripts.Entry) {
	select {
	case e.list <- x:
	default:
	}
}

// TestProgram runs real programs of a site.
func TestProgram(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		text  string
		stage consent.Stage
		says  string // by the page
	}{
		"found":                {`grep -q '"claims":{' "$1" && grep -q '"issuer":"https://127' "$1" && grep -q '"ucloudUsername":"Ada#1815"' "$1" && grep -q '"existingUid":null' "$1" && echo '{"uid":2001}'`, consent.StageAsk, ""},
		"not permitted":        {`echo '{"userMessage":"Your account has not been opened yet"}'; exit 77`, consent.StageFailed, "Your account has not been opened yet"},
		"not permitted, short": {`exit 77`, consent.StageFailed, "You have no account here"},
		"failed":               {`echo secret-detail >&2; exit 1`, consent.StageFailed, "could not be found out"},
		"temporary":            {`grep -q '"attempt":2' "$1" && echo '{"uid":2001}' || exit 75`, consent.StageAsk, ""},
		"temporary for long":   {`exit 75`, consent.StageFailed, "could not be found out"},
		"no reply":             {`true`, consent.StageFailed, "could not be found out"},
		"no number":            {`echo '{"uid":"root"}'`, consent.StageFailed, "could not be found out"},
		"root":                 {`echo '{"uid":0}'`, consent.StageFailed, "could not be found out"},
		"nobody":               {`echo '{"uid":4294967295}'`, consent.StageFailed, "could not be found out"},
		"a service":            {`echo '{"uid":33}'`, consent.StageFailed, "is not allowed"},
		"unknown account":      {`echo '{"uid":2999}'`, consent.StageFailed, "There is no account"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			dir := testkit.PrivateDir(t)
			record := entries{make(chan scripts.Entry, 10)}
			r, err := scripts.New(scripts.Options{Provider: "demo", Spool: filepath.Join(dir, "spool"), Record: record, Temporary: true, Redact: []string{"claims"}})
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Open(); err != nil {
				t.Fatal(err)
			}
			program := filepath.Join(dir, "find-account")
			if err := os.WriteFile(program, []byte("#!/bin/sh\n"+tc.text+"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			hook, err := r.Hook(scripts.HookOptions{Name: scripts.HookUserConnected, Path: program})
			if err != nil {
				t.Fatal(err)
			}
			w := newWorld(t, func(s *Settings) { s.Map = hook })
			v, o := w.login(ada, "ada")
			if v.Stage != tc.stage || !strings.Contains(v.Message, tc.says) {
				t.Errorf("%+v\n%s", v, w.log)
			}
			if strings.Contains(v.Message, "secret-detail") {
				t.Errorf("the user is told %q", v.Message)
			}
			select {
			case e := <-record.list:
				if raw, _ := json.Marshal(e); strings.Contains(string(raw), "ada@example.org") && strings.Contains(string(raw), `at_hash`) {
					t.Error("the record of the call holds the claims")
				}
			default:
				t.Error("the call is not recorded")
			}
			w.stop()
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			_ = o
		})
	}
}

// TestUnverifiedEmail gives the program no address that nobody has verified.
//
//attack:actor malicious identity
//attack:does Registers a victim's e-mail address at the identity provider without verifying it.
//attack:control The program gets an address only if the identity provider has verified it.
//attack:remove internal/usermap/oidc/verify.go: if p.emailVerified {\n\t\tp.email = c.Email => if true {\n\t\tp.email = c.Email
func TestUnverifiedEmail(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.idp.Lie(lieAboutEmail())
	if v, _ := w.login(ada, "eve"); v.Stage != consent.StageAsk {
		t.Fatalf("%+v\n%s", v, w.log)
	}
	if a := w.mapper.requests(); len(a) != 1 || a[0].Email != "" || a[0].EmailVerified {
		t.Errorf("the program was asked %+v", a)
	}
}

// TestProgramsOfOneUser: programs are kept apart by the key of their calls, which must be the one that package sitehooks
// uses (contract 42 SCR-9). Otherwise an account could be opened and closed at the same time.
func TestProgramsOfOneUser(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if v, _ := w.login(ada, "ada"); v.Stage != consent.StageAsk {
		t.Fatalf("%+v\n%s", v, w.log)
	}
	w.mapper.mu.Lock()
	defer w.mapper.mu.Unlock()
	if want := "user/" + string(ada); len(w.mapper.keys) != 1 || w.mapper.keys[0] != want {
		t.Errorf("the program was called for %q, want %q", w.mapper.keys, want)
	}
}

// TestShareOfLogins: while the program of the site hangs, the logins of one user leave room for those of others.
//
//attack:actor local user
//attack:does Logs in many times while the program of the site hangs, so that nobody else can log in.
//attack:control Only two logins of one user are checked at a time.
//attack:remove internal/usermap/oidc/method.go: case m.busy[user] >= perUser: => case m.busy[user] < 0:
func TestShareOfLogins(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.m.o.Patience = 1 // nanosecond: the browser does not wait
	w.mapper.hold = make(chan struct{})
	stages := map[consent.Stage]int{}
	var waits []string
	for range perUser + 2 {
		o := w.open(mallory)
		if err := w.returned(w.query(o, "eve"), o.Cookie); err != nil {
			t.Fatal(err)
		}
		v, err := w.m.View(t.Context(), o.Cookie)
		if err != nil {
			t.Fatal(err)
		}
		if stages[v.Stage]++; v.Stage == consent.StageChecking {
			waits = append(waits, o.Cookie)
		} else if !strings.Contains(v.Message, "still being checked") {
			t.Errorf("the user is told %q", v.Message)
		}
	}
	if stages[consent.StageChecking] != perUser || stages[consent.StageFailed] != 2 {
		t.Fatalf("stages %v", stages)
	}
	o := w.open(ada)
	if err := w.returned(w.query(o, "ada"), o.Cookie); err != nil {
		t.Fatal(err)
	}
	if v, err := w.m.View(t.Context(), o.Cookie); err != nil || v.Stage != consent.StageChecking {
		t.Fatalf("another user: %+v, %v", v, err)
	}
	close(w.mapper.hold)
	for _, cookie := range append(waits, o.Cookie) {
		if v := w.view(cookie); v.Stage != consent.StageAsk {
			t.Errorf("%+v", v)
		}
	}
	testkit.Eventually(t, "the checks have ended", func() bool {
		w.m.mu.Lock()
		defer w.m.mu.Unlock()
		return len(w.m.busy) == 0
	})
	if v, _ := w.login(mallory, "eve"); v.Stage != consent.StageAsk {
		t.Errorf("afterwards: %+v", v)
	}
}

// TestSlowProgram shows a page while the program works, and ends the program with the service.
func TestSlowProgram(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.m.o.Patience = 1 // nanosecond: the browser does not wait
	w.mapper.hold = make(chan struct{})
	o := w.open(ada)
	if err := w.returned(w.query(o, "ada"), o.Cookie); err != nil {
		t.Fatal(err)
	}
	v, err := w.m.View(t.Context(), o.Cookie)
	if err != nil || v.Stage != consent.StageChecking || v.User != ada {
		t.Fatalf("%+v, %v", v, err)
	}
	testkit.Eventually(t, "the program to be asked", func() bool { return len(w.mapper.requests()) == 1 })
	w.stop() // waits for the check
	if v, err := w.m.View(t.Context(), o.Cookie); err != nil || v.Stage != consent.StageFailed {
		t.Errorf("after the end: %+v, %v", v, err)
	}
	// What comes back now is told to try again.
	o, err = func() (consent.Opened, error) {
		session := w.begin(ada)
		return w.m.Open(t.Context(), session)
	}()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.returned(w.query(o, "ada"), o.Cookie); err != nil && !failure.Is(err, failure.Unavailable) {
		t.Errorf("%v", err)
	}
	if v, err := w.m.View(t.Context(), o.Cookie); err != nil || v.Stage != consent.StageFailed {
		t.Errorf("after the end: %+v, %v", v, err)
	}
}
