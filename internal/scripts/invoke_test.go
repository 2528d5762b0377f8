package scripts

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/testkit"
)

func asError(t *testing.T, err error) *Error {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("%v (%T) is no error of a script", err, err)
	}
	return e
}

// TestInvocation looks at everything that a program sees.
func TestInvocation(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	// A descriptor without close-on-exec, as a careless library would leave it.
	leak, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	clearCloexec(t, leak)
	h := s.hook(t, HookUsage, `
		file="${@: -1}"
		fds=; for n in {0..300}; do [ -e /proc/$$/fd/$n ] && fds+="$n "; done
		secret=$(cat <&"$UCLOUD_SECRET_GPFS_PASSWORD_FD")
		jq -n --arg file "$file" --arg mode "$(stat -c %a:%u "$file")" --arg name "$(basename "$file")" --arg args "$*" --arg pwd "$PWD" \
			--arg fds "$fds" --arg secret "$secret" --argjson env "$(jq -n env)" --slurpfile fromFile "$file" --slurpfile fromStdin /dev/stdin \
			--arg pgid "$(ps -o pgid= $$)" --arg pid $$ --arg self "$0" \
			'{usageInBytes: 1, $file, $mode, $name, $args, $pwd, $fds, $secret, $env, $fromFile, $fromStdin, $pgid, $pid, $self}'`,
		func(o *HookOptions) {
			o.Args = []string{"-a", "b c", "$(x)"}
			o.Environment = map[string]string{"SITE": "x y", "LANG": "C"}
			o.Secrets = []Secret{{Name: "other", Value: "unused"}, {Name: "gpfs.password", Value: "geh$im"}}
		})
	var got struct {
		UsageReply
		File, Mode, Name, Args, Pwd, Fds, Secret, Pgid, Pid, Self string
		Env                                                       map[string]string
		FromFile, FromStdin                                       []json.RawMessage
	}
	before := time.Now().Add(-time.Second)
	request := UsageRequest{LocatorName: "home", FilePath: "/home/x", Owner: WorkspaceOf(ident.Owner{User: "A'#1"})}
	if err := h.Call(t.Context(), Call{Key: "drive/1", Request: request, Attempt: 3, Reason: "test"}, &got); err != nil {
		t.Fatal(err)
	}
	if filepath.Dir(got.File) != s.spool || !spoolName().MatchString(got.Name) {
		t.Errorf("request file %s", got.File)
	}
	for name, pair := range map[string][2]string{
		"mode":      {got.Mode, "600:" + ident.UID(os.Geteuid()).String()},
		"arguments": {got.Args, "-a b c $(x) " + got.File},
		"directory": {got.Pwd, "/"},
		"secret":    {got.Secret, "geh$im"},
		"own path":  {got.Self, h.Path()},
		"group":     {strings.TrimSpace(got.Pgid), got.Pid},
		"stdin":     {string(got.FromStdin[0]), string(got.FromFile[0])},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s is %q, want %q", name, pair[0], pair[1])
		}
	}
	// 255 is Bash's own, for the program text.
	if fds := strings.Fields(got.Fds); !slices.Equal(fds, []string{"0", "1", "2", "3", "4", "255"}) {
		t.Errorf("descriptors %q", fds)
	}
	deadline, err := time.Parse(time.RFC3339, got.Env["UCLOUD_DEADLINE"])
	if err != nil || deadline.Before(before.Add(testkit.Patience-time.Second)) || deadline.After(time.Now().Add(testkit.Patience)) {
		t.Errorf("deadline %q", got.Env["UCLOUD_DEADLINE"])
	}
	for _, own := range []string{"UCLOUD_DEADLINE", "UCLOUD_INVOCATION_ID", "PWD", "SHLVL", "_"} { // Bash's, and the changing ones
		delete(got.Env, own)
	}
	if d := cmp.Diff(map[string]string{
		"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C", "HOME": "/nonexistent", "SITE": "x y", "UCLOUD_PROVIDER_ID": "prov",
		"UCLOUD_HOOK": HookUsage, "UCLOUD_PROTOCOL": "1", "UCLOUD_ATTEMPT": "3", "UCLOUD_SECRET_OTHER_FD": "3", "UCLOUD_SECRET_GPFS_PASSWORD_FD": "4",
	}, got.Env); d != "" {
		t.Error(d)
	}
	e := s.log.last(t)
	if e.Result != "ok" || e.Key != "drive/1" || e.Attempt != 3 || *e.Exit != 0 || len(e.FileHash) != 64 || e.Path != h.Path() || e.UID != ident.UID(os.Geteuid()) {
		t.Errorf("%+v", e)
	}
	if strings.Contains(e.Stdout, "geh$im") || !strings.Contains(e.Stdout, "[redacted]") {
		t.Errorf("the secret that the program printed is kept: %s", e.Stdout)
	}
	if n := s.spooled(t); n != 0 {
		t.Errorf("%d request files are left", n)
	}
}

// TestEnvelopes: protocol 1 is that of the reference, with one field more; protocol 2 has envelopes both ways.
func TestEnvelopes(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	for _, tc := range []struct {
		name     string
		protocol int
		body     string // prints the request in the reply's remark
		want     string
	}{
		{"1", 1, `jq -c '{usageInBytes: .n, message: (del(._meta) | tostring), rest: ._meta}'`, `{"n":7}`},
		{"2", 2, `jq -c '{output: {usageInBytes: .input.n, message: (.input | tostring), rest: .meta}}'`, `{"n":7}`},
	} {
		h := s.hook(t, HookUsage, tc.body, func(o *HookOptions) { o.Protocol = tc.protocol; o.Path = s.script(t, "p"+tc.name, tc.body) })
		var got struct {
			UsageReply
			Rest meta `json:"rest"`
		}
		if err := h.Call(t.Context(), Call{Request: map[string]int{"n": 7}, Reason: "r", DryRun: true}, &got); err != nil {
			t.Fatal(err)
		}
		if *got.UsageInBytes != 7 || s.log.last(t).Message != tc.want {
			t.Errorf("protocol %s: %d, request %s", tc.name, *got.UsageInBytes, s.log.last(t).Message)
		}
		m := got.Rest
		if m.Time.IsZero() || m.InvocationID != s.log.last(t).Invocation {
			t.Errorf("%+v", m)
		}
		m.Time, m.InvocationID = time.Time{}, ""
		if want := (meta{Hook: HookUsage, Protocol: tc.protocol, Attempt: 1, DryRun: true, Reason: "r", ProviderID: "prov"}); m != want {
			t.Errorf("%+v, want %+v", m, want)
		}
	}
}

// TestOutcomes is the table of contract 42 section A.3.
func TestOutcomes(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(o *Options) { o.MaxOutput = 4096 })
	for _, tc := range []struct {
		name     string
		hook     string
		protocol int
		body     string
		kind     Kind // empty: success
		message  string
		user     string
		after    time.Duration
		retry    bool
	}{
		{name: "nothing said", hook: HookQuotaUpdated, body: `exit 0`},
		{name: "blank", hook: HookQuotaUpdated, body: `echo "  "`},
		{name: "more than asked for", hook: HookQuotaUpdated, body: `echo '{"new": 1, "message": "done"}'`, message: "done"},
		{name: "nothing said but needed", hook: HookUsage, body: `exit 0`, kind: InvalidReply, message: "the reply is empty", retry: true},
		{name: "no object", hook: HookUsage, body: `echo '[1]'`, kind: InvalidReply, retry: true},
		{name: "null", hook: HookUsage, body: `echo null`, kind: InvalidReply, retry: true},
		{name: "text after it", hook: HookUsage, body: `echo '{"usageInBytes":1} done'`, kind: InvalidReply, retry: true},
		{name: "two", hook: HookUsage, body: `echo '{"usageInBytes":1}{"usageInBytes":1}'`, kind: InvalidReply, retry: true},
		{name: "wrong type", hook: HookUsage, body: `echo '{"usageInBytes":"1"}'`, kind: InvalidReply, retry: true},
		{name: "fraction", hook: HookUsage, body: `echo '{"usageInBytes":1.5}'`, kind: InvalidReply, retry: true},
		{name: "too large", hook: HookUsage, body: `echo '{"usageInBytes":9223372036854775808}'`, kind: InvalidReply, retry: true},
		{name: "negative", hook: HookUsage, body: `echo '{"usageInBytes":-1}'`, kind: InvalidReply, message: "the reply has a negative usage", retry: true},
		{name: "missing", hook: HookUsage, body: `echo '{}'`, kind: InvalidReply, message: "the reply has no usageInBytes", retry: true},
		{name: "not UTF-8", hook: HookUsage, body: `printf '{"usageInBytes":1,"message":"\xff"}'`, kind: InvalidReply, retry: true},
		{name: "too long", hook: HookUsage, body: `printf '{"usageInBytes":1,"x":"'; head -c 5000 /dev/zero | tr '\0' x; printf '"}'`, kind: InvalidReply, message: "the reply has 5025 bytes, allowed are 4096", retry: true},
		{name: "1", hook: HookUsage, body: `echo first >&2; echo "last words" >&2; exit 1`, kind: Failed, message: "last words", retry: true},
		{name: "its own words", hook: HookUsage, body: `echo '{"message":"m\u001b[2J","userMessage":"u","retryAfterSeconds":90}'; exit 2`, kind: Failed, message: "m [2J", user: "u", after: 90 * time.Second, retry: true},
		{name: "64", hook: HookUsage, body: `exit 64`, kind: Permanent},
		{name: "65", hook: HookUsage, body: `exit 65`, kind: Permanent},
		{name: "78", hook: HookUsage, body: `exit 78`, kind: Permanent},
		{name: "75", hook: HookUsage, body: `exit 75`, kind: Temporary, retry: true},
		{name: "77", hook: HookUsage, body: `echo '{"userMessage":"no"}'; exit 77`, kind: NotPermitted, user: "no"},
		{name: "126", hook: HookUsage, body: `exit 126`, kind: Technical, retry: true},
		{name: "127", hook: HookUsage, body: `no-such-program`, kind: Technical, retry: true},
		{name: "99", hook: HookUsage, body: `exit 99`, kind: Failed, retry: true},
		{name: "signal", hook: HookUsage, body: `kill -SEGV $$`, kind: Technical, retry: true},
		{name: "reply of a failure counts for nothing", hook: HookUsage, body: `echo '{"usageInBytes":1}'; exit 3`, kind: Failed, retry: true},
		{name: "protocol 2 failure", hook: HookUsage, protocol: 2, body: `echo '{"error":{"code":"X","message":"m","userMessage":"u","retryable":true}}'`, kind: Failed, message: "m", user: "u", retry: true},
		{name: "protocol 2 permanent", hook: HookUsage, protocol: 2, body: `echo '{"error":{"code":"X","message":"m"}}'`, kind: Permanent, message: "m"},
		{name: "protocol 2 neither", hook: HookUsage, protocol: 2, body: `echo '{}'`, kind: InvalidReply, retry: true},
		{name: "protocol 2 both", hook: HookUsage, protocol: 2, body: `echo '{"error":{},"output":{}}'`, kind: InvalidReply, retry: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := s.hook(t, tc.hook, tc.body, func(o *HookOptions) { o.Protocol = tc.protocol })
			var reply any
			if tc.hook == HookUsage {
				reply = &UsageReply{}
			}
			err := h.Call(t.Context(), Call{Key: "k"}, reply)
			entry := s.log.last(t)
			if tc.kind == "" {
				if err != nil || entry.Result != "ok" || entry.Message != tc.message {
					t.Errorf("%v, %+v", err, entry)
				}
				return
			}
			e := asError(t, err)
			if e.Kind != tc.kind || (tc.message != "" && e.Message != tc.message) || e.UserMessage != tc.user || e.RetryAfter != tc.after || e.Kind.Retryable() != tc.retry {
				t.Errorf("%+v", e)
			}
			if entry.Result != string(tc.kind) || entry.Invocation != e.Invocation || entry.Message != e.Message {
				t.Errorf("written down: %+v", entry)
			}
		})
	}
}

// TestReferenceScriptRunsUnchanged: file argument, protocol 1, jq on the file, exit status 0.
func TestReferenceScriptRunsUnchanged(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	h := s.hook(t, HookDriveLocator, `
		set -euo pipefail
		request="$1"
		project=$(jq -r .ucloudProjectId "$request")
		gid=$(jq -r .gid "$request")
		[ "$(jq -r '.gid | type' "$request")" = string ]
		echo "looking for $project" >&2
		echo "{\"path\": \"/projects/$gid\"}"`, nil)
	type vars map[string]string
	where := Locator[vars](h, nil)
	found, err := where(t.Context(), vars{"locatorName": "work", "categoryName": "disk", "ucloudProjectId": "p-1", "gid": "30417"})
	if err != nil || found != (Location{Path: "/projects/30417"}) {
		t.Errorf("%+v, %v", found, err)
	}
	e := s.log.last(t)
	if e.Owner != (ident.Owner{Project: "p-1"}) || e.Stderr != "looking for p-1\n" || e.StderrBytes != 16 {
		t.Errorf("%+v", e)
	}
}

func TestLocators(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	answer := filepath.Join(s.dir, "answer")
	h := s.hook(t, HookDriveLocator, `cat `+answer, nil)
	cache := &Locations{}
	where := Locator[map[string]string](h, cache)
	vars := func(user string) map[string]string {
		return map[string]string{"locatorName": "home", "categoryName": "disk", "ucloudUsername": user}
	}
	ask := func(reply, user, want string, fails bool) {
		t.Helper()
		if err := os.WriteFile(answer, []byte(reply), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := where(t.Context(), vars(user))
		if got.Path != want || (err != nil) != fails {
			t.Errorf("%s: %+v, %v", reply, got, err)
		}
	}
	ask(`{}`, "a", "", true) // says nothing: a broken script must not make drives vanish
	ask(`{"path": 1}`, "a", "", true)
	ask(`{"path": null}`, "a", "", false)
	ask(`{"path": "/x"}`, "a", "", false) // remembered
	cache.Forget(ident.Owner{User: "b"})
	ask(`{"path": "/x"}`, "a", "", false)
	cache.Forget(ident.Owner{User: "a"})
	ask(`{"path": "/x", "title": "T", "readOnly": true}`, "a", "/x", false)
	if got, err := where(t.Context(), vars("a")); err != nil || got != (Location{"/x", "T", true}) {
		t.Errorf("%+v, %v", got, err)
	}
	ask(`{"path": "/x", "title": 7}`, "b", "", true)
	ask(`{"path": "/x", "readOnly": "no"}`, "b", "", true)
	ask(`{"path": ""}`, "b", "", false)
	ask(`{"path": "/y"}`, "a", "/x", false)
	other := vars("a")
	other["uid"] = "7" // another account now
	if got, err := where(t.Context(), other); err != nil || got != (Location{Path: "/y"}) {
		t.Errorf("%+v, %v", got, err)
	}
	cache.Keep(h)
	ask(`{"path": "/z"}`, "b", "", false)
	cache.Keep()
	ask(`{"path": "/z"}`, "b", "/z", false)
}

func TestRedaction(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	h := s.hook(t, HookQuotaUpdated, `cat >/dev/null`, nil)
	request := map[string]any{"password": "p1", "deep": []any{map[string]any{"Client_Secret": "p2", "bindPassword": map[string]any{"x": "p3"}}}, "n": json.Number("9223372036854775807")}
	if err := h.Call(t.Context(), Call{Request: request}, nil); err != nil {
		t.Fatal(err)
	}
	got := s.log.last(t).Request
	for _, secret := range []string{"p1", "p2", "p3"} {
		if strings.Contains(got, secret) {
			t.Errorf("%s is in %s", secret, got)
		}
	}
	if !strings.Contains(got, "9223372036854775807") || strings.Count(got, "[redacted]") != 3 {
		t.Error(got)
	}
}

func TestHookOptions(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	good := HookOptions{Name: HookUsage, Path: "/x"}
	for name, change := range map[string]func(*HookOptions){
		"unknown":       func(o *HookOptions) { o.Name = "x" },
		"no path":       func(o *HookOptions) { o.Path = "" },
		"protocol":      func(o *HookOptions) { o.Protocol = 3 },
		"long":          func(o *HookOptions) { o.Timeout = 2 * time.Hour },
		"ours":          func(o *HookOptions) { o.Environment = map[string]string{"UCLOUD_HOOK": "x"} },
		"bad variable":  func(o *HookOptions) { o.Environment = map[string]string{"A=B": "x"} },
		"empty secret":  func(o *HookOptions) { o.Secrets = []Secret{{Name: "x"}} },
		"secrets clash": func(o *HookOptions) { o.Secrets = []Secret{{"a-b", "x"}, {"a.b", "y"}} },
	} {
		o := good
		change(&o)
		if _, err := s.Hook(o); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	h, err := s.Hook(good)
	if err != nil {
		t.Fatal(err)
	}
	if h.o.Timeout != 60*time.Second || h.o.Concurrency != 4 || h.o.Protocol != 1 {
		t.Errorf("%+v", h.o)
	}
}

func TestRetryPauses(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		r        Retry
		failures int
		asked    time.Duration
		want     time.Duration
	}{
		{Retry{}, 1, 0, 10 * time.Second},
		{Retry{}, 2, 0, 20 * time.Second},
		{Retry{}, 9, 0, 2560 * time.Second},
		{Retry{}, 10, 0, time.Hour},
		{Retry{}, 1 << 30, 0, time.Hour},
		{Retry{Initial: time.Minute, Max: 3 * time.Minute}, 3, 0, 3 * time.Minute},
		{Retry{}, 5, 90 * time.Second, 90 * time.Second},
		{Retry{}, 5, time.Nanosecond, time.Second},
		{Retry{}, 5, 9 * time.Hour, time.Hour},
	} {
		if got := tc.r.Pause(tc.failures, tc.asked); got != tc.want {
			t.Errorf("%+v: %v", tc, got)
		}
	}
}
