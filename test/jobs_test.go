//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/devcore"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
)

// followed is what a browser that follows a job has been told.
type followed struct {
	log   strings.Builder
	state providerapi.JobState
}

// follow follows a job until a condition holds.
func (c *cluster) follow(id, what string, until func(f *followed) bool) *followed {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	f := &followed{}
	conn, _, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(c.coreURL, "http")+"/api/jobs", nil)
	c.must(err)
	defer conn.CloseNow()
	conn.SetReadLimit(16 << 20)
	c.must(conn.Write(ctx, websocket.MessageText, fmt.Appendf(nil, `{"call":"jobs.follow","streamId":"0","bearer":%q,"payload":{"id":%q}}`, c.core.Login(c.ada.name), id)))
	for !until(f) {
		_, data, err := conn.Read(ctx)
		if err != nil {
			c.t.Fatalf("%s: %v; the log so far is %q, the state %s", what, err, f.log.String(), f.state)
		}
		var m struct {
			Payload struct {
				Log []struct {
					Stdout, Stderr *string
				}
				NewStatus *struct {
					State providerapi.JobState
				}
			}
		}
		c.must(json.Unmarshal(data, &m))
		for _, p := range m.Payload.Log {
			f.log.WriteString(text(p.Stdout) + text(p.Stderr))
		}
		if m.Payload.NewStatus != nil {
			f.state = m.Payload.NewStatus.State
		}
	}
	return f
}

// TestJobs runs jobs from Core through gateway, server, instance and sbatch, and back.
func TestJobs(t *testing.T) {
	c := newCluster(t, computeSettings{})
	t.Run("at once", func(t *testing.T) {
		for name, run := range map[string]func(*testing.T, *cluster){
			"batch": testBatch, "cancelled": testCancelled, "failed": testFailed, "values": testValues, "outside": testOutside,
			"operator": testOperator, "memory": testMemory, "nodes": testNodes, "project": testProjectJobs,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				run(t, c.on(t))
			})
		}
	})
	t.Run("lost answer", func(t *testing.T) { testLostAnswer(t, c.on(t)) })
	// Usage, when all have ended: what sacct says, in whole core-minutes.
	owner := ident.Owner{User: c.ada.name}
	var want int64
	if !settles(func() bool {
		want = c.coreSeconds(c.account) / 60
		return want > 0 && c.core.Usage(owner, machines) == want
	}) {
		t.Errorf("Core has %d core-minutes, sacct %d", c.core.Usage(owner, machines), want)
	}
}

// testBatch: a job from the queue to its end, with folder, script, log and exit.
func testBatch(t *testing.T, c *cluster) {
	gate := filepath.Join(c.ada.account.Home, "go on")
	spec := c.batch("First run", `echo "begin in $PWD as $(id -un)"; while [ ! -e `+"'"+gate+"'"+` ]; do sleep 0.2; done; echo mid >&2; sleep 6; echo the end`)
	spec.Product = c.product(16)
	id := c.submit(spec)
	j := c.becomes(id, providerapi.JobRunning)
	if j.Status.StartedAt == nil || j.Output.OutputFolder == nil || *j.Output.OutputFolder != c.ada.home()+"/ucloud-jobs/"+id {
		t.Errorf("running: %+v, output %v", j.Status, text(j.Output.OutputFolder))
	}
	if words := told(j); !strings.Contains(words, "Submitted to Slurm as job "+c.slurmID(id)) || !strings.Contains(words, "Started on n") {
		t.Errorf("told:\n%s", words)
	}
	c.follow(id, "the first line", func(f *followed) bool { return strings.Contains(f.log.String(), "begin in ") })
	c.must(os.WriteFile(gate, nil, 0o644))
	f := c.follow(id, "the end of the log", func(f *followed) bool {
		return strings.Contains(f.log.String(), "the end") && f.state == providerapi.JobSuccess
	})
	if log := f.log.String(); !strings.Contains(log, "as "+c.ada.account.Name) || !strings.Contains(log, "mid") {
		t.Errorf("the log is %q", log)
	}
	j = c.becomes(id, providerapi.JobSuccess)
	if got := states(j); got != "RUNNING SUCCESS" {
		t.Errorf("states %s, told:\n%s", got, told(j))
	}
	// The script stays, readable, and a finished job shows its log.
	if script := c.output(id, "job.sbatch"); !strings.Contains(script, "#SBATCH") {
		t.Errorf("the script is\n%s", script)
	}
	c.follow(id, "the log of a finished job", func(f *followed) bool { return strings.Contains(f.log.String(), "the end") })
	files, err := c.browse(c.ada, *j.Output.OutputFolder)
	if err != nil || len(files) < 2 {
		t.Errorf("the folder has %v, %v", files, err)
	}
}

// testCancelled: ended by its user, a job is a success; the same again is harmless.
func testCancelled(t *testing.T, c *cluster) {
	id := c.submit(c.batch("To be cancelled", "sleep 300"))
	c.becomes(id, providerapi.JobRunning)
	c.must(c.terminate(id))
	c.must(c.terminate(id))
	j := c.becomes(id, providerapi.JobSuccess)
	if got := states(j); got != "RUNNING SUCCESS" {
		t.Errorf("states %s, told:\n%s", got, told(j))
	}
	c.slurm.WaitState(t, c.slurmID(id), "CANCELLED")
	c.must(c.terminate(id))
}

// testFailed: an exit code, and a time limit that runs out (Slurm counts in minutes).
func testFailed(t *testing.T, c *cluster) {
	late := c.batch("Too long", "sleep 300")
	late.TimeAllocation = &providerapi.SimpleDuration{Minutes: 1}
	lateID := c.submit(late)
	id := c.submit(c.batch("Failing", "echo reason >&2; exit 3"))
	j := c.becomes(id, providerapi.JobFailure)
	if !strings.Contains(told(j), "failed") {
		t.Errorf("told:\n%s", told(j))
	}
	// Slurm ends jobs up to half a minute after their time.
	for deadline := time.Now().Add(4 * time.Minute); !c.at(lateID).Status.State.Final(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the late job is %s:\n%s", c.at(lateID).Status.State, told(c.at(lateID)))
		}
	}
	if j := c.at(lateID); states(j) != "RUNNING EXPIRED" {
		t.Errorf("states %s, told:\n%s", states(j), told(j))
	}
}

// testValues: what users type reaches the program as it was typed, and nothing of it is executed.
func testValues(t *testing.T, c *cluster) {
	witness := filepath.Join(c.ada.account.Home, "pwned")
	for i, value := range []string{
		"$(touch " + witness + ")", "`touch " + witness + "`", "'; touch " + witness + "; '", "\"; touch " + witness + "; \"",
		"a\n#SBATCH --comment=x\ntouch " + witness, "{{ 1 + 1 }} {% raw %} \\ * ~ ü名", "%j%x", "-n", "\ttab ", "EOF\ntouch " + witness + "\n",
	} {
		spec := c.batch(value, "")
		spec.Parameters["command"] = textValue("printf '%s' " + "'" + strings.ReplaceAll(value, "'", `'"'"'`) + "'" + " > value")
		id := c.submit(spec)
		defer func() {
			j := c.becomes(id, providerapi.JobSuccess)
			got := ""
			for _, name := range []string{filepath.Join("ucloud-jobs", id, "value")} {
				data, err := os.ReadFile(filepath.Join(c.ada.account.Home, name))
				if err != nil {
					t.Errorf("value %d: %v; told:\n%s", i, err, told(j))
				}
				got = string(data)
			}
			if got != value {
				t.Errorf("value %d: the program got %q, not %q", i, got, value)
			}
			if _, err := os.Stat(witness); err == nil {
				t.Errorf("value %d was executed", i)
			}
		}()
	}
}

// testOutside: a job that was submitted by hand, and an array, are registered and watched.
func testOutside(t *testing.T, c *cluster) {
	number := c.slurm.Submit(t, c.ada.account.Name, "sleep 4", "--account="+c.account, "--partition=normal", "--qos=normal", "--job-name=by hand", "--time=5")
	array := c.slurm.Submit(t, c.ada.account.Name, "sleep 3; [ $SLURM_ARRAY_TASK_ID = 1 ]", "--account="+c.account, "--partition=normal", "--qos=normal", "--job-name=array", "--time=5", "--array=0-2")
	j := c.becomes(c.registered(number), providerapi.JobSuccess)
	if j.Owner.CreatedBy != c.ada.name || j.Owner.Workspace() != (ident.Owner{User: c.ada.name}) || !strings.Contains(j.Specification.Name, "by hand") ||
		j.Specification.Application.Name != "unknown" {
		t.Errorf("registered as %+v of %+v", j.Specification, j.Owner)
	}
	j = c.becomes(c.registered(array), providerapi.JobFailure) // two of three tasks fail
	n := 0
	for _, j := range c.core.Jobs() {
		if m := generated.FindStringSubmatch(j.ProviderGeneratedID); m != nil && m[2] == array {
			n++
		}
	}
	if n != 1 {
		t.Errorf("the array is %d jobs, told:\n%s", n, told(j))
	}
}

// testLostAnswer: Core gives up before the answer and deletes its record, or loses the answer. Whatever has come of it was
// submitted once. (That the provider ends such a job takes minutes, and is tested in the package jobs.)
func testLostAnswer(t *testing.T, c *cluster) {
	var lost []string
	for _, f := range []devcore.JobFaults{
		{GiveUpAfter: 2 * time.Millisecond}, {GiveUpAfter: 5 * time.Millisecond}, {GiveUpAfter: 10 * time.Millisecond}, {GiveUpAfter: 20 * time.Millisecond}, {DropAnswer: true},
	} {
		c.core.SetJobFaults(f)
		if _, err := c.core.Submit(t.Context(), c.ada.name, "", c.batch("Lost", "sleep 20")); err != nil {
			sent := c.core.SentJobs()
			lost = append(lost, sent[len(sent)-1])
		} else if f.DropAnswer {
			t.Error("the answer was not lost")
		}
	}
	c.core.SetJobFaults(devcore.JobFaults{})
	// One that is heard of ends the wait: whatever was under way before it has come to its end.
	c.becomes(c.submit(c.batch("Heard of", "true")), providerapi.JobSuccess)
	dropped := lost[len(lost)-1]
	testkit.Eventually(t, "the job whose answer was lost to be in sacct", func() bool { return c.inSlurm(dropped) == 1 })
	for _, id := range lost {
		if n := c.inSlurm(id); n > 1 {
			t.Errorf("job %s was submitted %d times", id, n)
		}
	}
	t.Logf("%d answers were lost", len(lost))
	c.slurm.Run(t, "scancel", "--account="+c.account)
}

// TestJobKills: server, gateway and instance are killed while jobs are submitted and run. Each job runs exactly once, and Core
// hears of its end.
func TestJobKills(t *testing.T) {
	c := newCluster(t, computeSettings{})
	kills := []func(){
		func() { c.server.signal(syscall.SIGKILL) }, func() { c.gateway.signal(syscall.SIGKILL) },
		func() {
			if i, ok := c.instances()[c.ada.name]; ok && i.PID > 0 {
				_ = syscall.Kill(i.PID, syscall.SIGKILL)
			}
		},
	}
	var submitted []string
	for i := range 9 {
		var wg sync.WaitGroup
		kill := kills[i%3]
		wg.Go(func() {
			time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
			if i%3 == 2 {
				// The command needs the server, which may be starting.
				if _, err := c.cli("status"); err != nil {
					return
				}
			}
			kill()
		})
		if id, err := c.core.Submit(t.Context(), c.ada.name, "", c.batch(fmt.Sprintf("Killed %d", i), "sleep 2; echo done")); err == nil {
			submitted = append(submitted, id)
		}
		wg.Wait()
		testkit.Eventually(t, "the server to be back", func() bool { _, err := c.cli("status"); return err == nil })
	}
	t.Logf("%d of 9 jobs were submitted while parts were killed", len(submitted))
	submitted = append(submitted, c.submit(c.batch("After all", "true")))
	for _, id := range submitted {
		j := c.becomes(id, providerapi.JobSuccess)
		if n := strings.Count(states(j), "SUCCESS"); n != 1 {
			t.Errorf("job %s: states %s", id, states(j))
		}
	}
	for _, id := range c.core.SentJobs() {
		if n := c.inSlurm(id); n > 1 {
			t.Errorf("job %s was submitted %d times", id, n)
		}
	}
}
