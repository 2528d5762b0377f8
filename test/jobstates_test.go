//go:build e2e

package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
)

// registered waits until Core knows a job of Slurm, and gives its id there.
func (c *cluster) registered(number string) (id string) {
	c.t.Helper()
	testkit.Eventually(c.t, "job "+number+" to be registered", func() bool {
		for _, j := range c.core.Jobs() {
			if m := generated.FindStringSubmatch(j.ProviderGeneratedID); m != nil && m[2] == number {
				id = j.ID
			}
		}
		return id != ""
	})
	return id
}

// testOperator: jobs that operators end, with our command or with Slurm's, and what their user is told.
func testOperator(t *testing.T, c *cluster) {
	ours, theirs := c.submit(c.batch("Ended by ucloud", "sleep 300")), c.submit(c.batch("Ended by scancel", "sleep 300"))
	c.becomes(ours, providerapi.JobRunning)
	c.becomes(theirs, providerapi.JobRunning)
	if out, err := c.cli("jobs", "cancel", ours, "--yes", "--reason", "maintenance"); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	c.slurm.Run(t, "scancel", c.slurmID(theirs))
	for id, want := range map[string]string{
		ours: "An operator of the provider has cancelled this job: maintenance", theirs: "The job was cancelled by an operator of the cluster",
	} {
		c.slurm.WaitState(t, c.slurmID(id), "CANCELLED")
		if j := c.becomes(id, providerapi.JobSuccess); states(j) != "RUNNING SUCCESS" || !strings.Contains(told(j), want) {
			t.Errorf("states %s, told:\n%s", states(j), told(j))
		}
	}
}

// testMemory: a job that needed more memory than it had.
func testMemory(t *testing.T, c *cluster) {
	id := c.submit(c.batch("Too large", "sleep 300"))
	c.becomes(id, providerapi.JobRunning)
	c.slurm.OutOfMemory(t, c.slurmID(id))
	if j := c.becomes(id, providerapi.JobFailure); states(j) != "RUNNING FAILURE" || !strings.Contains(told(j), "more memory than it had") {
		t.Errorf("states %s, told:\n%s", states(j), told(j))
	}
}

// testNodes: jobs on a node that is drained and fails, and one that waits for it. The node is the last one, on which
// others have jobs only if the cluster is full; nothing is done to it while they do.
func testNodes(t *testing.T, c *cluster) {
	const node = "n3"
	var waits, again string // numbers of Slurm
	home := c.ada.account.Home
	submit := func(name, script string, args ...string) string {
		return c.slurm.Submit(t, c.ada.account.Name, script,
			append([]string{"--account=" + c.account, "--partition=normal", "--qos=normal", "--job-name=" + name, "--time=10", "--nodelist=" + node}, args...)...)
	}
	gate := func(name string) (script string, open func()) {
		path := filepath.Join(home, name)
		return "while [ ! -e '" + path + "' ]; do sleep 0.2; done", func() { c.must(os.WriteFile(path, nil, 0o644)) }
	}
	t.Run("out of service", func(t *testing.T) { // the node is back at its end
		c := c.on(t)
		script, open := gate("drained")
		runs := submit("runs on", script)
		lost := submit("is lost", "sleep 600", "--no-requeue")
		script, openAgain := gate("again")
		again = submit("starts again", script, "--requeue")
		for _, number := range []string{runs, lost, again} {
			c.becomes(c.registered(number), providerapi.JobRunning)
		}
		c.slurm.Drain(t, node)
		waits = submit("waits", "true")
		c.becomes(c.registered(waits), providerapi.JobInQueue)
		if s := c.at(c.registered(runs)).Status.State; s != providerapi.JobRunning {
			t.Errorf("the job on the node that is drained is %s", s)
		}
		open()
		if j := c.becomes(c.registered(runs), providerapi.JobSuccess); states(j) != "RUNNING SUCCESS" {
			t.Errorf("states %s, told:\n%s", states(j), told(j))
		}

		testkit.Eventually(t, "the node to have no other jobs", func() bool {
			out, err := c.slurm.Output("squeue", "-a", "-h", "-w", node, "-t", "running,completing,suspended", "-o", "%A")
			return err == nil && len(strings.Fields(out)) == 2
		})
		c.slurm.Run(t, "scontrol", "update", "NodeName="+node, "State=DOWN", "Reason=test")
		if j := c.becomes(c.registered(lost), providerapi.JobFailure); states(j) != "RUNNING FAILURE" || !strings.Contains(told(j), "a node failed") {
			t.Errorf("states %s, told:\n%s", states(j), told(j))
		}
		c.becomes(c.registered(again), providerapi.JobInQueue)
		openAgain()
		// Users are told after a minute why a job waits.
		for deadline := time.Now().Add(3 * time.Minute); !strings.Contains(told(c.at(c.registered(waits))), "Waiting: nodes that it needs are out of service"); time.Sleep(200 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("told:\n%s", told(c.at(c.registered(waits))))
			}
		}
	})
	c.becomes(c.registered(waits), providerapi.JobSuccess)
	c.slurm.StartNow(t, again)
	if j := c.becomes(c.registered(again), providerapi.JobSuccess); !strings.HasPrefix(states(j), "RUNNING IN_QUEUE ") {
		t.Errorf("states %s, told:\n%s", states(j), told(j))
	}
}

// testProjectJobs: a job in a project is of its account, and its PI may see and end it, unlike other members and people
// who are not in the project.
func testProjectJobs(t *testing.T, c *cluster) {
	// People of its own: an instance is replaced when the groups of its account change.
	pi, member, eve := c.addPerson("Lise#1878"), c.addPerson("Grace#1906"), c.addPerson("Eve#1")
	group := "g" + pi.account.Name
	c.localGroup(group, pi, member)
	c.connect(pi, member, eve)
	project := c.core.AddProject("", "Reef", pi.name, member.name)
	owner := ident.Owner{Project: project}
	c.must(c.core.Allocate(owner, machines, 1_000_000))
	testkit.Eventually(t, "the project to be mapped", func() bool {
		_, err := c.cli("projects", "map", "--ucloud-id", string(project), "--local-name", group, "--yes")
		return err == nil
	})
	c.slurm.WaitAssociation(t, c.project, member.account.Name)

	spec := c.batch("Of the project", "sleep 300")
	spec.Product = c.product(16) // soon a minute of usage
	id, err := c.core.Submit(t.Context(), member.name, project, spec)
	c.must(err)
	if _, err := c.core.Submit(t.Context(), eve.name, project, spec); err == nil {
		t.Error("who is not in the project submits a job there")
	}
	c.becomes(id, providerapi.JobRunning)
	number, ok := strings.CutPrefix(c.at(id).ProviderGeneratedID, c.project+"/")
	if number, _, _ = strings.Cut(number, "/"); !ok {
		t.Fatalf("the provider generated id is %q", c.at(id).ProviderGeneratedID)
	}

	seen := func(who *person) bool {
		var j providerapi.Job
		err := c.call(who.name, http.MethodGet, "/api/jobs/retrieve?id="+id, nil, &j)
		return err == nil && j.ID == id
	}
	if !seen(member) || !seen(pi) || seen(eve) {
		t.Errorf("the member sees the job: %v, the PI: %v, a stranger: %v", seen(member), seen(pi), seen(eve))
	}
	item := map[string]any{"items": []any{map[string]string{"id": id}}}
	if err := c.call(eve.name, http.MethodPost, "/api/jobs/terminate", item, nil); status(err) != http.StatusForbidden {
		t.Errorf("Core lets a stranger end the job: %v", err)
	}
	// Should Core ever let it through: the job does not exist for her, which is no error, and it goes on.
	if got := c.raw(eve.name, "/jobs/terminate", map[string]any{"items": []any{c.at(id)}}, nil); got.status >= 500 {
		t.Errorf("%d %s", got.status, got.body)
	}
	testkit.Eventually(t, "usage of the project", func() bool { return c.core.Usage(owner, machines) > 0 })
	if s := c.slurm.State(number); s != "RUNNING" || c.at(id).Status.State != providerapi.JobRunning {
		t.Errorf("after a stranger's attempt to end it the job is %s, at Core %s", s, c.at(id).Status.State)
	}

	c.must(c.call(pi.name, http.MethodPost, "/api/jobs/terminate", item, nil))
	if j := c.becomes(id, providerapi.JobSuccess); states(j) != "RUNNING SUCCESS" || j.Owner.CreatedBy != member.name || j.Owner.Workspace() != owner {
		t.Errorf("states %s of %+v, told:\n%s", states(j), j.Owner, told(j))
	}
	c.slurm.WaitState(t, number, "CANCELLED")
	var want int64
	if !settles(func() bool {
		want = c.coreSeconds(c.project) / 60
		return want > 0 && c.core.Usage(owner, machines) == want
	}) {
		t.Errorf("Core has %d core-minutes, sacct %d", c.core.Usage(owner, machines), want)
	}
}
