package jobrunner

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/jobrender"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/scripts"
)

// scriptBench is a bench whose site allows the programs of a directory, but for one that is called "other".
func scriptBench(t *testing.T, programs map[string]string) (b *bench, dir, spool string) {
	t.Helper()
	dir, spool = t.TempDir(), filepath.Join(t.TempDir(), "spool")
	r, err := scripts.New(scripts.Options{Provider: provider, Spool: spool, MaxOutput: MaxTemplateOutput, Record: noLog{}, Temporary: true})
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
	var allowed []string
	for name, text := range programs {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/bash\n"+text+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		if name != "other" {
			allowed = append(allowed, path)
		}
	}
	b = newBench(t, func(b *bench) {
		b.o.Site = func() (jobrender.Site, error) {
			return jobrender.Site{Provider: provider, JobEngine: jobrender.EngineLocal, AllowScripts: allowed}, nil
		}
		b.o.Script = TemplateScripts(r)
	})
	return b, dir, spool
}

// templateJob is a job whose application is a template, with a parameter.
func templateJob(t *testing.T, id, template, value string) *providerapi.Job {
	t.Helper()
	raw, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	job := newJob(id)
	inv := &job.Status.ResolvedApplication.Invocation
	inv.Invocation = []providerapi.InvocationParameter{{Type: providerapi.PartJinja, Template: template}}
	inv.Parameters = []providerapi.ApplicationParameter{{Type: "text", Name: "title"}}
	job.Specification.Parameters["title"] = providerapi.AppParameterValue{Type: "text", Value: raw}
	return job
}

// late is what programs are told to be that do not end.
const late = "did not end in time"

// patient creates a job. A busy machine may not start a program in the two seconds that it has, which is what only some tests want.
func patient(b *bench, job *providerapi.Job, wanted bool) (id string, err error) {
	for range 10 {
		if id, err = b.Create(context.Background(), time.Now(), job); wanted || err == nil || !strings.Contains(failure.Why(err), late) {
			break
		}
	}
	return id, err
}

// A template's script() starts a real program with the variables in a private file, and puts what it answers into the script.
func TestTemplateScript(t *testing.T) {
	t.Parallel()
	const value = `it's "$(touch pwned)" æ`
	b, dir, spool := scriptBench(t, map[string]string{
		"tell.sh": `stat -c '%a %F' "$1" > "${0%/*}/mode"; cat "$1" > "${0%/*}/request"; env > "${0%/*}/environment"
[ "$(ps -o pgid= -p $$ | tr -d ' ')" = $$ ] && [ $# = 1 ] && echo '{"output":"echo from the site"}'`,
	})
	job := templateJob(t, "1", `{{ script("`+dir+`/tell.sh") }}`, value)
	if _, err := patient(b, job, false); err != nil {
		t.Fatal(err)
	}
	b.awaitState("1", providerapi.JobSuccess)
	if got := b.file("1", "stdout.txt"); got != "from the site\n" {
		t.Errorf("the job printed %q", got)
	}
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if got := read("mode"); got != "600 regular file\n" {
		t.Errorf("the variables lie in a file with %q", got)
	}
	var request struct {
		Title  string
		UCloud struct {
			JobID string
		}
	}
	if err := json.Unmarshal([]byte(read("request")), &request); err != nil || request.Title != value || request.UCloud.JobID != "1" {
		t.Errorf("the program was told %s (%v)", read("request"), err)
	}
	for line := range strings.Lines(read("environment")) {
		name, _, _ := strings.Cut(line, "=")
		switch name {
		case "PATH", "LANG", "HOME", "PWD", "SHLVL", "_":
		default:
			if !strings.HasPrefix(name, "UCLOUD_") {
				t.Errorf("the program has %s", line)
			}
		}
	}
	if left, err := os.ReadDir(spool); err != nil || len(left) > 0 {
		t.Errorf("%d files are left (%v)", len(left), err)
	}
}

// A program that is not allowed is not started; one that fails, hangs, floods or forks ends the submission with a sentence that
// names it, within the time that Core waits, and leaves nothing behind.
func TestHostileTemplateScript(t *testing.T) {
	t.Parallel()
	programs := map[string]struct{ text, why string }{
		"other":    {`touch "${0%/*}/started"; echo '{"output":""}'`, "only programs that the provider has allowed"},
		"fails":    {`echo secret >&2; exit 1`, "The provider's program fails failed"},
		"says":     {`echo '{"userMessage":"There is no such data set"}'; exit 77`, "The provider's program says says: There is no such data set"},
		"rubbish":  {`echo rubbish`, "The provider's program rubbish gave an answer that cannot be used"},
		"silent":   {`:`, "The provider's program silent gave an answer that cannot be used"},
		"outputs":  {`echo '{"output":5}'`, "The program outputs gave no output"},
		"floods":   {`printf '{"output":"'; head -c 100000 /dev/zero | tr '\0' x; printf '"}'`, "The provider's program floods gave an answer that cannot be used"},
		"hangs":    {`trap '' TERM; echo $$ > "${0%/*}/hangs.pid"; while :; do sleep 1; done`, late},
		"forks":    {`for i in {1..20}; do (trap '' TERM; echo $BASHPID > "${0%/*}/forks.pid"; exec sleep 1000) & done; wait`, late},
		"endless":  {`yes`, late},
		"no-start": {`:`, "The provider's program no-start could not be started"},
	}
	texts := map[string]string{}
	for name, p := range programs {
		texts[name] = p.text
	}
	b, dir, spool := scriptBench(t, texts)
	if err := os.Chmod(filepath.Join(dir, "no-start"), 0o722); err != nil { //nolint:gosec // others may write it, so it is not started
		t.Fatal(err)
	}
	for name, p := range programs {
		_, err := patient(b, templateJob(t, "1-"+name, `true {{ script("`+filepath.Join(dir, name)+`") }}`, "x"), p.why == late)
		why := failure.Why(err)
		if !failure.Is(err, failure.Invalid) || !strings.Contains(why, p.why) || strings.Contains(why, dir) || strings.Contains(why, "secret") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(b.folder("1-" + name)); err == nil {
			t.Errorf("%s: there is a folder", name)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "started")); err == nil {
		t.Error("a program was started that is not allowed")
	}
	for _, name := range []string{"hangs", "forks"} {
		text, err := os.ReadFile(filepath.Join(dir, name+".pid"))
		if err != nil {
			t.Log(err) // the machine did not come to it within two seconds
			continue
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, func() bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }, func() string { return name + " has left a process" })
	}
	if left, err := os.ReadDir(spool); err != nil || len(left) > 0 {
		t.Errorf("%d files are left (%v)", len(left), err)
	}
}

// The time of all programs of a template together is bounded, not only that of each.
func TestManyTemplateScripts(t *testing.T) {
	t.Parallel()
	b, dir, _ := scriptBench(t, map[string]string{"slow": `sleep 0.5; echo x >> "${0%/*}/calls"; echo '{"output":""}'`})
	_, err := b.Create(t.Context(), time.Now(), templateJob(t, "1", `true {% for i in range(50) %}{{ script("`+dir+`/slow") }}{% endfor %}`, "x"))
	if !failure.Is(err, failure.Invalid) || !strings.Contains(failure.Why(err), "The provider's program slow did not end in time") {
		t.Error(err)
	}
	if calls, _ := os.ReadFile(filepath.Join(dir, "calls")); len(calls) > 2*6 {
		t.Errorf("it was started %d times", len(calls)/2)
	}
}
