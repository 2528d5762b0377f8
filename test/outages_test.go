//go:build e2e && outages

package e2e

import (
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit/slurmkit"
)

// recovery is how long it may take after an outage until everything is known: pauses between rounds grow to five minutes.
const recovery = 8 * time.Minute

// TestSlurmOutages: slurmctld and slurmdbd are away for a minute each while a job runs and ends. No state is made up meanwhile,
// and the right one comes when they are back, with the usage that sacct has. `make outages` runs it.
func TestSlurmOutages(t *testing.T) {
	c := newCluster(t, computeSettings{})
	for name, stop := range map[string]func(*slurmkit.Outage){
		"slurmctld": (*slurmkit.Outage).StopController, "slurmdbd": (*slurmkit.Outage).StopDatabase,
	} {
		t.Run(name, func(t *testing.T) {
			c := c.on(t)
			spec := c.batch("Outage of "+name, "sleep 20; exit 0")
			spec.Product = c.product(16) // some minutes of usage
			id := c.submit(spec)
			c.becomes(id, providerapi.JobRunning)
			c.slurm.Outage(t, func(o *slurmkit.Outage) {
				stop(o)
				for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Second) {
					if s := c.at(id).Status.State; s.Final() && (name == "slurmctld" || s != providerapi.JobSuccess) {
						t.Errorf("the job became %s during the outage:\n%s", s, told(c.at(id)))
						break
					}
				}
				o.Restore()
			})
			// The pauses of the monitor have become longer with every round that failed, and slurmctld hands in late what
			// slurmdbd has missed.
			for end := time.Now().Add(recovery); !c.at(id).Status.State.Final() || c.inSlurm(id) == 0; time.Sleep(time.Second) {
				if time.Now().After(end) {
					t.Fatalf("%v after the outage the job is %s and %d times in sacct, told:\n%s", recovery, c.at(id).Status.State, c.inSlurm(id), told(c.at(id)))
				}
			}
			if j, n := c.at(id), c.inSlurm(id); states(j) != "RUNNING SUCCESS" || n != 1 {
				t.Errorf("states %s, submitted %d times, told:\n%s", states(j), n, told(j))
			}
		})
	}
	owner := ident.Owner{User: c.ada.name}
	for end := time.Now().Add(recovery); ; time.Sleep(time.Second) {
		want, got := c.coreSeconds(c.account)/60, c.core.Usage(owner, machines)
		if want > 0 && got == want {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("Core has %d core-minutes, sacct %d", got, want)
		}
	}
}
