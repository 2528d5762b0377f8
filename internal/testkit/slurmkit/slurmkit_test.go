package slurmkit

import (
	"os/user"
	"strings"
	"testing"
)

// nobody is an account that exists everywhere.
const nobody = "nobody"

func TestJob(t *testing.T) {
	t.Parallel()
	c := Start(t)
	account := c.Account(t, nobody)
	id := c.Submit(t, nobody, "sleep 600", "--account="+account)
	c.WaitState(t, id, "RUNNING")
	if _, err := c.TrySubmit(t, nobody, "true", "--account="+UniqueName("none")); err == nil {
		t.Error("a job for an account that does not exist was accepted")
	}
	c.Run(t, "scontrol", "requeue", id)
	c.StartNow(t, id)
	c.Run(t, "scancel", id)
	c.WaitState(t, id, "CANCELLED")
}

// TestRemoved: nothing of a test is left behind, not even its running jobs.
func TestRemoved(t *testing.T) {
	t.Parallel()
	c := Start(t)
	var first, second, id string
	t.Run("use", func(t *testing.T) {
		c := Start(t)
		if _, err := user.Lookup("daemon"); err != nil {
			t.Fatal(err)
		}
		first = c.Account(t, "daemon")
		second = c.Account(t, "daemon")
		c.Sacctmgr(t, "modify", "user", "daemon", "set", "defaultaccount="+second)
		id = c.Submit(t, "daemon", "sleep 600", "--account="+first)
	})
	left := c.Run(t, "sacctmgr", "-n", "-P", "list", "assoc", "account="+first+","+second, "format=account,user")
	if strings.TrimSpace(left) != "" {
		t.Errorf("left behind: %s", left)
	}
	if s := c.State(id); s != "CANCELLED" {
		t.Errorf("the job is %q", s)
	}
}

// TestOutage: commands fail during an outage and work after it.
func TestOutage(t *testing.T) {
	c := Start(t)
	c.Outage(t, func(o *Outage) {
		o.StopController()
		if out, err := c.Output("squeue"); err == nil {
			t.Errorf("squeue answers without slurmctld: %s", out)
		}
		o.StopDatabase()
		if out, err := c.Output("sacct", "-a"); err == nil {
			t.Errorf("sacct answers without slurmdbd: %s", out)
		}
		o.Restore()
		c.Run(t, "sacct", "-a")
	})
	c.Run(t, "squeue")
}

func TestDrain(t *testing.T) {
	t.Parallel()
	c := Start(t)
	t.Run("drained", func(t *testing.T) {
		c.Drain(t, "n2")
		if out := c.Run(t, "sinfo", "-h", "-n", "n2", "-p", "normal", "-o", "%T"); !strings.HasPrefix(out, "drain") {
			t.Errorf("the node is %s", out)
		}
	})
	if out := c.Run(t, "sinfo", "-h", "-n", "n2", "-p", "normal", "-o", "%T"); strings.HasPrefix(out, "drain") {
		t.Errorf("the node is still %s", out)
	}
}
