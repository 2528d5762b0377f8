//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/devcore"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/intentkit"
)

// TestForgedJobs: the same for jobs. No forged request brings a job into Slurm, changes one, or opens a session in one; seen in
// the queue, in the accounting and in the files.
//
//attack:actor compromised core
//attack:does Submits a job in a user's name with what the user signed for extending one.
//attack:control Submitting has a name of its own.
//attack:remove internal/jobrunner/routes.go: signed("jobs.create", "items[]") => signed("jobs.extend", "items[]")
//attack:run intent of extending
//attack:actor compromised core
//attack:does Opens a shell in a folder of a user, by a call that today's browsers cannot sign.
//attack:control Calls without a name in today's client need an intent as well.
//attack:remove internal/jobrunner/routes.go: sessions(r.OpenFolders), OpenTerminalIntent) => sessions(r.OpenFolders), intent.Rule{Exempt: "none"})
//attack:run terminal in a folder
func TestForgedJobs(t *testing.T) {
	c := newCluster(t, computeSettings{intents: intent.ModeRequire, slurm: "    web: { enabled: true, prefix: app-, suffix: .apps.localhost, portRange: 15000-16999 }\n"})
	eve := c.addPerson("Eve#6666")
	c.connectSigned(eve)
	home := c.ada.account.Home
	gate := filepath.Join(home, "gate")
	victim := c.submit(c.batch("Victim", "echo begun; while [ ! -e "+gate+" ]; do sleep 0.2; done; echo done"))
	c.becomes(victim, providerapi.JobRunning)
	c.follow(victim, "the first line", func(f *followed) bool { return strings.Contains(f.log.String(), "begun") })
	key := c.signers[c.ada.name]
	created := c.captured("/jobs")
	state := func() string {
		return c.slurm.Run(t, "squeue", "-h", "-A", c.account, "-o", "%i %T %l %j %k")
	}
	queue := state()
	job, ok := c.core.Job(victim)
	if !ok {
		t.Fatal("Core has lost the job")
	}
	sign := func(call string, project ident.ProjectID) []string {
		return []string{key.Form1(key.claims(c.ada.name, call, project))}
	}
	number := 900_000_000
	// another is a job that ada never wanted: her own one, with another number and another script.
	another := func() string {
		number++
		body := strings.ReplaceAll(created.Body, `"id":"`+victim+`"`, fmt.Sprintf(`"id":"%d"`, number))
		body = strings.ReplaceAll(body, "echo begun", "touch "+filepath.Join(home, "pwned"))
		if body == created.Body {
			t.Fatalf("nothing was replaced in %s", body)
		}
		return body
	}
	text := func(v any) string {
		data, err := json.Marshal(v)
		c.must(err)
		return string(data)
	}
	forge := func(path, body string, intents ...string) devcore.Forgery {
		return devcore.Forgery{Method: "POST", Path: "/ucloud/" + provider + "/jobs" + path, User: c.ada.name, Body: body, Intents: intents}
	}
	one := text(map[string]any{"items": []any{job}})
	wrapped := func(members ...any) string { return text(bulkOf(append([]any{"job", job}, members...)...)) }
	now := time.Now()
	for _, a := range []struct {
		name    string
		want    []int
		forgery devcore.Forgery
	}{
		{"stripped", unsigned, forge("", another())},
		{"captured intent for another script", replayed, forge("", another(), created.Intents...)},
		{"captured call in another project", contradicts, forge("", strings.Replace(another(), `"createdBy":"`+string(c.ada.name)+`"`, `"createdBy":"`+string(c.ada.name)+`","project":"5b0f7c1e-3a52-4d0e-9a5b-0c9f3f6f2a11"`, 1), sign("jobs.create", "")...)},
		{"intent of extending", unsigned, forge("", another(), sign("jobs.extend", "")...)},
		{"intent for files", unsigned, forge("", another(), sign("files.createUpload", "")...)},
		{"intent in a project", unsigned, forge("", another(), sign("jobs.create", "5b0f7c1e-3a52-4d0e-9a5b-0c9f3f6f2a11")...)},
		{"intent of another user", unsigned, forge("", another(), c.sign(eve, "jobs.create"))},
		{"expired", clocks, forge("", another(), key.Form1(intentkit.Claims{Call: "jobs.create", Username: string(c.ada.name), At: now.Add(-time.Hour)}))},
		{"two intents", unsigned, forge("", another(), append(sign("jobs.create", ""), sign("jobs.create", "")...)...)},
		{"terminate", unsigned, forge("/terminate", one)},
		{"terminate by the intent of the submission", unsigned, forge("/terminate", one, created.Intents...)},
		{"extend", unsigned, forge("/extend", wrapped("requestedTime", map[string]int{"hours": 1, "minutes": 0, "seconds": 0}))},
		{"extend by an intent to terminate", unsigned, forge("/extend", wrapped("requestedTime", map[string]int{"hours": 1, "minutes": 0, "seconds": 0}), sign("jobs.terminate", "")...)},
		{"suspend", unsigned, forge("/suspend", wrapped())},
		{"unsuspend", unsigned, forge("/unsuspend", wrapped())},
		{"terminal in the job", unsigned, forge("/interactiveSession", wrapped("rank", 0, "sessionType", "SHELL", "target", nil))},
		{"web interface of the job", unsigned, forge("/interactiveSession", wrapped("rank", 0, "sessionType", "WEB", "target", nil), sign("jobs.retrieve", "")...)},
		{"terminal in a folder", nameless, forge("/openTerminalInFolder", text(bulkOf("folder", c.ada.home())))},
		{"terminal in a folder by the intent of one in a job", unsigned, forge("/openTerminalInFolder", text(bulkOf("folder", c.ada.home())), sign("jobs.openInteractiveSession", "")...)},
		{"parameters", nameless, forge("/requestDynamicParameters", text(map[string]any{"owner": job.Owner, "application": json.RawMessage(`{}`)}))},
		{"resource", append([]int{http.StatusBadRequest}, nameless...), forge("/attachResource", text(map[string]any{"job": job, "resource": map[string]any{}}))},
		{"labels", nameless, forge("/onUpdatedLabels", one)},
	} {
		t.Run(a.name, func(t *testing.T) {
			sub := c.on(t)
			before := sub.tree(home)
			res, err := c.core.Forge(t.Context(), a.forgery)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(a.want, res.Status) {
				t.Errorf("status %d, want %v: %s", res.Status, a.want, res.Body)
			}
			if strings.Contains(res.Body, "sessionIdentifier") || strings.Contains(res.Body, "token=") {
				t.Errorf("a session was opened: %s", res.Body)
			}
			if d := differences(before, sub.tree(home)); len(d) > 0 {
				t.Errorf("files have changed:\n%s", strings.Join(d, "\n"))
			}
		})
	}
	if now := state(); now != queue {
		t.Errorf("the queue is %q, was %q", now, queue)
	}
	t.Run("log", func(t *testing.T) {
		// Today's browsers may not sign that they follow a job; what is signed must be right nevertheless.
		ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
		defer cancel()
		first := text(map[string]any{
			"call": "jobs.provider." + provider + ".follow", "streamId": "ignored", "payload": map[string]any{"type": "init", "job": job},
			"signedIntent": c.sign(eve, "jobs.follow"),
		})
		res, err := c.core.ForgeSocket(ctx, c.ada.name, "/ucloud/jobs.provider."+provider+"/websocket", []string{first}, func(m string) bool { return strings.Contains(m, "begun") })
		if err != nil {
			t.Error(err)
		}
		if strings.Contains(strings.Join(res.Messages, "\n"), "begun") {
			t.Errorf("the log was shown: %+v", res)
		}
	})
	// The honest call, once more and to the letter: Slurm gets no second job. And the honest user can go on.
	if _, err := c.core.Forge(t.Context(), devcore.Forgery{Replay: created.ID}); err != nil {
		t.Error(err)
	}
	honest := c.submit(c.batch("Honest", "echo fine"))
	c.must(os.WriteFile(gate, nil, 0o644))
	c.becomes(honest, providerapi.JobSuccess)
	c.becomes(victim, providerapi.JobSuccess)
	want := []string{"ucloud:" + provider + ":" + honest, "ucloud:" + provider + ":" + victim}
	slices.Sort(want)
	var have []string
	if !settles(func() bool {
		have = strings.Fields(c.slurm.Run(t, "sacct", "-X", "-D", "-n", "-P", "-S", "now-1hour", "-A", c.account, "-o", "comment"))
		slices.Sort(have)
		return slices.Equal(have, want)
	}) {
		t.Errorf("Slurm has the jobs %q, want %q", have, want)
	}
	if _, err := os.Stat(filepath.Join(home, "pwned")); err == nil {
		t.Error("a forged job has run")
	}
}

// captured is the newest call of ada's with this operation.
func (c *cluster) captured(operation string) devcore.Captured {
	c.t.Helper()
	list := c.core.Captured()
	slices.Reverse(list)
	for _, call := range list {
		if call.Path == "/ucloud/"+provider+operation && call.User == c.ada.name && len(call.Intents) > 0 {
			return call
		}
	}
	c.t.Fatalf("ada has not called %s, but made %d calls", operation, len(list))
	return devcore.Captured{}
}
