//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/slurmkit"
)

const machines = "e2e-cpu"

// cluster is a provider with jobs on the real Slurm, and one user.
type cluster struct {
	*world
	t       *testing.T // of the subtest
	slurm   *slurmkit.Cluster
	ada     *person
	account string // of ada's workspace
	project string // account of the project, should the test make one
}

// computeSettings are what tests of jobs differ in.
type computeSettings struct {
	slurm string // more of the section slurm
	poll  string // its section poll; empty: jobs are looked at every second
	tls   bool

	intents string // see settings
}

// newCluster starts a world with Slurm. The server makes the account of the workspace itself, as an operator of Slurm.
func newCluster(t *testing.T, set computeSettings) *cluster {
	t.Helper()
	c := &cluster{t: t, slurm: slurmkit.Start(t)}
	if set.poll == "" {
		set.poll = "jobs: 1s, usage: 5s"
	}
	c.world = newWorld(t, settings{tls: set.tls, intents: set.intents, firstID: int(time.Now().UnixMilli() % 1e9), services: func(w *world) string {
		// Added before anything else that is cleaned up, so that jobs are ended while their user exists.
		c.account, c.project = c.slurm.AccountName(t), c.slurm.AccountName(t)
		operators := c.slurm.Account(t, w.site.Service.Name)
		c.slurm.Sacctmgr(t, "modify", "user", "where", "name="+w.site.Service.Name, "account="+operators, "set", "adminlevel=Operator")
		return fmt.Sprintf(`
services:
  type: Slurm
  identityManagement:
    type: Manual
    manual:
      tickets: { enabled: true, contact: help@example.invalid }
  fileSystems:
    %[1]s:
      management: { type: Posix, usage: { interval: 1h } }
      payment: { type: Resource, unit: GB }
      driveLocators:
        home: { entity: User, pattern: "%[2]s", title: Home, freeQuota: 0 }
        work: { entity: Project, pattern: "%[7]s/projects/#{localGroupName}", title: Work }
  slurm:
    binaries: %[3]s
    poll: { %[9]s }
    accountManagement:
      accounting: { type: Automatic }
      accountMapper: { type: Pattern, users: "%[4]s", projects: "%[8]s" }
    machines:
      %[5]s:
        partition: normal
        qos: normal
        payment: { type: Resource, unit: Cpu, interval: Minutely }
        cpu: [1, 16]
        memory: [1, 8]
        maxTime: 2h
%[6]s`, category, w.homePattern(), c.slurm.Binaries(t), c.account, machines, set.slurm, w.base, c.project, set.poll)
	}})
	for _, kind := range []string{providerapi.ApplicationBatch, providerapi.ApplicationWeb, providerapi.ApplicationVNC} {
		c.must(c.core.AddApplication(shellApp(kind)))
	}
	testkit.Eventually(t, "the machines to be declared and supported", func() bool { return len(c.core.Machines()) == 2 })
	c.ada = c.addPerson("Ada#1815")
	c.must(c.core.Allocate(ident.Owner{User: c.ada.name}, machines, 1_000_000))
	if set.intents != "" {
		c.connectSigned(c.ada)
	} else {
		c.connect(c.ada)
	}
	c.slurm.WaitAssociation(t, c.account, c.ada.account.Name)
	return c
}

// on is the cluster for a subtest: what fails belongs to it.
func (c *cluster) on(t *testing.T) *cluster {
	sub := *c
	sub.t = t
	return &sub
}

func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// batch is a job that runs a line of shell.
func (c *cluster) batch(name, command string) providerapi.JobSpecification {
	return c.job(providerapi.ApplicationBatch, name, command)
}

func (c *cluster) job(kind, name, command string) providerapi.JobSpecification {
	return providerapi.JobSpecification{
		Application: shellApp(kind).Metadata.Reference(), Name: name, Replicas: 1, Product: c.product(1), Labels: map[string]string{},
		Parameters:     map[string]providerapi.AppParameterValue{"command": textValue(command)},
		TimeAllocation: &providerapi.SimpleDuration{Minutes: 5},
	}
}

// product is the machine with so many cores.
func (c *cluster) product(cores int) providerapi.ProductReference {
	for _, m := range c.core.Machines() {
		if m.CPU == cores {
			return m.Reference()
		}
	}
	c.t.Fatalf("no machine has %d cores", cores)
	return providerapi.ProductReference{}
}

// submit submits a job as a user of UCloud.
func (c *cluster) submit(spec providerapi.JobSpecification) string {
	c.t.Helper()
	ctx := c.core.WithIntents(c.t.Context(), c.sign(c.ada, "jobs.create"))
	id, err := c.core.Submit(ctx, c.ada.name, "", spec)
	if err != nil {
		c.t.Fatalf("submit %s: %v", spec.Name, err)
	}
	return id
}

// at gives a job as Core has it.
func (c *cluster) at(id string) providerapi.Job {
	c.t.Helper()
	j, ok := c.core.Job(id)
	if !ok {
		c.t.Fatalf("Core has no job %s", id)
	}
	return j
}

// becomes waits until a job has a state.
func (c *cluster) becomes(id string, want providerapi.JobState) providerapi.Job {
	c.t.Helper()
	testkit.Eventually(c.t, fmt.Sprintf("job %s to be %s", id, want), func() bool {
		j := c.at(id)
		if j.Status.State.Final() && j.Status.State != want {
			c.t.Fatalf("job %s is %s: %s", id, j.Status.State, told(j))
		}
		return j.Status.State == want
	})
	return c.at(id)
}

// told is what a user was told about a job, a line for each update.
func told(j providerapi.Job) string {
	var out strings.Builder
	for _, u := range j.Updates {
		if u.State != nil {
			fmt.Fprintf(&out, "%s ", *u.State)
		}
		if u.Status != nil {
			out.WriteString(*u.Status)
		}
		out.WriteByte('\n')
	}
	return out.String()
}

// states are the states that a job went through, as Core was told of them.
func states(j providerapi.Job) string {
	var out []string
	for _, u := range j.Updates {
		if u.State != nil {
			out = append(out, string(*u.State))
		}
	}
	return strings.Join(out, " ")
}

var generated = regexp.MustCompile(`^([^/]+)/([1-9][0-9]*)/[0-9]+$`)

// slurmID is the number that a job has in Slurm.
func (c *cluster) slurmID(id string) string {
	c.t.Helper()
	m := generated.FindStringSubmatch(c.at(id).ProviderGeneratedID)
	if m == nil || m[1] != c.account {
		c.t.Fatalf("the provider generated id of job %s is %q", id, c.at(id).ProviderGeneratedID)
	}
	return m[2]
}

// output reads a file of a job's folder.
func (c *cluster) output(id, name string) string {
	c.t.Helper()
	data, err := os.ReadFile(filepath.Join(c.ada.account.Home, "ucloud-jobs", id, name))
	if err != nil {
		c.t.Fatal(err)
	}
	return string(data)
}

// inSlurm counts the jobs that were submitted to Slurm for a job of Core, by the mark that they carry.
func (c *cluster) inSlurm(id string) int {
	c.t.Helper()
	n := 0
	for line := range strings.FieldsSeq(c.slurm.Run(c.t, "sacct", "-X", "-D", "-n", "-P", "-S", "now-1hour", "-A", c.account, "-o", "comment")) {
		if line == "ucloud:"+provider+":"+id {
			n++
		}
	}
	return n
}

// coreSeconds is what sacct has for an account.
func (c *cluster) coreSeconds(account string) (seconds int64) {
	c.t.Helper()
	for line := range strings.FieldsSeq(c.slurm.Run(c.t, "sacct", "-X", "-D", "-n", "-P", "-S", "now-1hour", "-A", account, "-o", "cputimeraw")) {
		n, err := strconv.ParseInt(line, 10, 64)
		c.must(err)
		seconds += n
	}
	return seconds
}

func (c *cluster) terminate(id string) error {
	return c.call(c.ada.name, http.MethodPost, "/api/jobs/terminate", map[string]any{"items": []any{map[string]string{"id": id}}}, nil)
}
