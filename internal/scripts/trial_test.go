package scripts

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/testkit"
)

// trialHook makes a hook that can be tried.
func (s *site) trialHook(t *testing.T, f Form, body string, change func(*HookOptions)) *Hook {
	t.Helper()
	name := map[Form]string{
		FormLocator: HookDriveLocator, FormDriveQuota: HookQuotaUpdated, FormDriveRemoved: HookDriveRemoved, FormDriveUsage: HookUsage,
		FormDriveUsages: HookUsage, FormAccount: HookAccountMapper, FormAccountQuota: HookQuotaUpdated, FormAccountMembers: HookProjectUpdated,
		FormAccountDisconnected: HookUserDisconnected, FormAccountUsage: HookUsage, FormConnect: HookUserConnected, FormLogin: HookUserConnected,
		FormDisconnected: HookUserDisconnected, FormTicket: HookTicketCreated,
	}[f]
	return s.hook(t, name, body, func(o *HookOptions) {
		o.Purpose = Purpose{At: "a." + name, Form: f, Category: "cat", Locator: "loc", Drive: func(w ident.Owner, p string) string { return w.Reference() + p }}
		if change != nil {
			change(o)
		}
	})
}

// TestEveryFormCanBeTried: each sample is a request as real use makes it, with dryRun, and each reply is judged by the rules
// of the hook.
func TestEveryFormCanBeTried(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	replies := map[Form]struct{ good, bad, key string }{
		FormLocator:             {`{"path":"/w/x"}`, `{}`, "owner/OskarLind#2291/cat/loc"},
		FormDriveQuota:          {``, `[]`, "drive/5b1c0a7e-0d0f-4f5e-9b51-2f0d1f7e77aa/ucloud-sample/reef_models"},
		FormDriveRemoved:        {``, `[]`, "drive/5b1c0a7e-0d0f-4f5e-9b51-2f0d1f7e77aa/ucloud-sample/reef_models"},
		FormDriveUsage:          {`{"usageInBytes":1}`, `{"usageInBytes":-1}`, "drive/5b1c0a7e-0d0f-4f5e-9b51-2f0d1f7e77aa/ucloud-sample/reef_models"},
		FormDriveUsages:         {`{"drives":[]}`, `{}`, "category/cat"},
		FormAccount:             {`{"account":"a"}`, `{}`, "owner/OskarLind#2291/cat"},
		FormAccountQuota:        {``, `7`, "account/p_reef_models"},
		FormAccountMembers:      {``, `7`, "account/p_reef_models"},
		FormAccountDisconnected: {``, `7`, "account/p_reef_models"},
		FormAccountUsage:        {`{"usage":[]}`, `{}`, ""},
		FormConnect:             {`{"uid":20119}`, `{"uid":0}`, "user/OskarLind#2291"},
		FormLogin:               {`{"uid":20119}`, `{"uid":"x"}`, "user/OskarLind#2291"},
		FormDisconnected:        {``, `x`, "user/OskarLind#2291"},
		FormTicket:              {`{"decision":"approve","uid":5}`, `{"decision":"maybe"}`, "user/OskarLind#2291"},
	}
	for f := range forms {
		want, ok := replies[f]
		if !ok {
			t.Errorf("%s is not tested", f)
			continue
		}
		for reply, result := range map[string]string{want.good: resultOK, want.bad: string(InvalidReply)} {
			h := s.trialHook(t, f, `[ "$(jq ._meta.dryRun)" = true ] || exit 9; printf %s '`+reply+`'`, nil)
			got, err := h.Try(t.Context(), nil, true, "test")
			if err != nil || got.Result != result || got.Key != want.key || got.Stdout != reply || got.Objection != "" {
				t.Errorf("%s, reply %q: %v %+v", f, reply, err, got)
			}
			if e := s.log.last(t); e.Invocation != got.Invocation {
				t.Errorf("%s: the call is not written down", f)
			}
			// The same request is taken from a file as well.
			if again, err := h.Try(t.Context(), json.RawMessage(got.Request), true, "test"); f != FormLogin && (err != nil || again.Result != result || again.Key != want.key) {
				t.Errorf("%s, its own request: %v %+v", f, err, again)
			}
		}
	}
}

func TestTryWithInput(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	for _, protocol := range []int{1, 2} {
		h := s.trialHook(t, FormConnect, `jq -c '(.input // .) as $in | ._meta // .meta | {uid: $in.existingUid, message: "\($in.ucloudUsername) \(.dryRun)"}
			| if $ENV.UCLOUD_PROTOCOL == "2" then {output: .} else . end'`, func(o *HookOptions) { o.Protocol = protocol })
		for _, input := range []string{
			`{"ucloudUsername":"A#1","existingUid":7}`,
			`{"ucloudUsername":"A#1","existingUid":7,"_meta":{"dryRun":true}}`, // of a record of protocol 1
			`{"meta":{"dryRun":true},"input":{"ucloudUsername":"A#1","existingUid":7}}`,
		} {
			got, err := h.Try(t.Context(), json.RawMessage(input), false, "test")
			if err != nil || got.Result != resultOK || got.Message != "A#1 false" || got.Key != "user/A#1" {
				t.Errorf("protocol %d, %s: %v %+v", protocol, input, err, got)
			}
		}
		before := s.log.count()
		for _, bad := range []string{`[]`, `null`, `7`, `{"existingUid":"seven"}`, `{"meta":{},"input":[]}`, `{`, `{"ucloudUsername":"` + strings.Repeat("a", maxTrialKey) + `"}`} {
			if _, err := h.Try(t.Context(), json.RawMessage(bad), false, "test"); err == nil {
				t.Errorf("%s is taken", bad)
			}
		}
		if s.log.count() != before {
			t.Error("a request that does not fit was sent")
		}
	}
}

// TestTryObjects: an answer of the right form that real use would refuse is no success, and answers of nothing are not asked
// about.
func TestTryObjects(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	for _, tc := range []struct {
		form   Form
		reply  string
		object bool
	}{
		{FormLocator, `{"path":"/etc"}`, true},
		{FormLocator, `{"path":null}`, false},
		{FormAccount, `{"accountName":"a;b"}`, true},
		{FormAccount, `{"accountName":""}`, false},
		{FormConnect, `{"uid":20119}`, true},
		{FormConnect, `{}`, false}, // invalid as it is
		{FormTicket, `{"decision":"approve","uid":5}`, true},
		{FormTicket, `{"decision":"reject","uid":5}`, false},
	} {
		h := s.trialHook(t, tc.form, `echo '`+tc.reply+`'`, func(o *HookOptions) {
			o.Purpose.Accept = func(context.Context, any, bool) error { return errors.New("not this one") }
		})
		if got, err := h.Try(t.Context(), nil, true, "test"); err != nil || got.Objection == "not this one" != tc.object {
			t.Errorf("%s %s: %v %+v", tc.form, tc.reply, err, got)
		}
	}
}

// TestTryKeepsItsTurn: a call by hand and one of real use for the same user never overlap (contract 42 SCR-9).
func TestTryKeepsItsTurn(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	gate := filepath.Join(testkit.PrivateDir(t), "gate")
	h := s.trialHook(t, FormConnect, `[ "$(jq -r .ucloudUsername)" = A#1 ] && { touch `+gate+`.up; while ! [ -e `+gate+` ]; do sleep 0.05; done; }; echo '{"uid":5}'`,
		func(o *HookOptions) { o.Concurrency = 2 })
	first := make(chan error, 1)
	go func() {
		var reply UIDReply
		first <- h.Call(context.WithoutCancel(t.Context()), Call{Key: "user/A#1", Request: ConnectRequest{UCloudUsername: "A#1"}}, &reply)
	}()
	testkit.Eventually(t, "the first call runs", func() bool { _, err := os.Stat(gate + ".up"); return err == nil })
	// Another user's call runs beside it.
	if got, err := h.Try(t.Context(), json.RawMessage(`{"ucloudUsername":"B#1"}`), false, "test"); err != nil || got.Result != resultOK {
		t.Errorf("%v %+v", err, got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := h.Try(ctx, json.RawMessage(`{"ucloudUsername":"A#1"}`), false, "test"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second call for the user went ahead: %v", err)
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-first; err != nil {
		t.Error(err)
	}
}

func TestTryRefusedPrograms(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	h := s.trialHook(t, FormConnect, `echo '{"uid":5}'`, nil)
	if i := h.Inspect(); i.Problem != "" || i.Mode != 0o700 || i.Owner != ident.UID(os.Geteuid()) || len(i.Hash) != 64 { //nolint:gosec // a uid
		t.Errorf("%+v", i)
	}
	if err := os.Chmod(h.Path(), 0o722); err != nil {
		t.Fatal(err)
	}
	if i := h.Inspect(); i.Problem == "" || i.Hash != "" {
		t.Errorf("%+v", i)
	}
	if got, err := h.Try(t.Context(), nil, true, "test"); err != nil || got.Result != string(Refused) || got.Exit != nil {
		t.Errorf("%v %+v", err, got)
	}
}

// TestSecretVariablesAreHidden: a variable that is called like a field to be redacted is not shown when a program prints it.
//
//attack:actor malicious script
//attack:does Prints a password from its environment, which is then kept in the script log.
//attack:control Values of variables that are called like the fields of scripts.redact are masked in what is kept.
//attack:remove internal/scripts/runner.go: if value != "" && secretName(name, v.h.r.defaults.Load().Redact) { => if value == "\x00" && name == "" {
func TestSecretVariablesAreHidden(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	h := s.trialHook(t, FormConnect, `echo "$LDAP_PASSWORD $PLAIN" >&2; echo '{"uid":5,"message":"'$LDAP_PASSWORD'"}'`, func(o *HookOptions) {
		o.Environment = map[string]string{"LDAP_PASSWORD": "geh!im", "PLAIN": "visible"}
	})
	got, err := h.Try(t.Context(), nil, true, "test")
	if err != nil || got.Result != resultOK || !strings.Contains(got.Stderr, "visible") || !strings.Contains(got.Message, "[redacted]") {
		t.Errorf("%v %+v", err, got)
	}
	if strings.Contains(got.Stdout+got.Stderr+got.Message, "geh!im") {
		t.Errorf("a secret is kept: %+v", got)
	}
}

// TestSamplesOfLocators: a locator is asked about the owners that it is for.
func TestSamplesOfLocators(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	for entity, want := range map[string]string{
		"": "user", "User": "user", "Project": "project", "MemberFiles": "user project",
	} {
		h := s.trialHook(t, FormLocator, `jq -c '{path: "/x", message: ([if .localUsername then "user" else empty end, if .localGroupName then "project" else empty end] | join(" "))}'`,
			func(o *HookOptions) { o.Purpose.Entity = entity })
		if got, err := h.Try(t.Context(), nil, true, "test"); err != nil || got.Result != resultOK || got.Message != want || !got.Owner.Valid() {
			t.Errorf("%s: %v %+v", entity, err, got)
		}
	}
}
