//go:build e2e && outages

package e2e

import (
	"testing"
	"time"

	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit/slurmkit"
)

// TestSlurmOutages: slurmctld and slurmdbd are away for a minute each while a job runs and ends. No state is made up meanwhile,
// and the right one comes when they are back. `make outages` runs it.
func TestSlurmOutages(t *testing.T) {
	c := newCluster(t, computeSettings{})
	for name, stop := range map[string]func(*slurmkit.Outage){
		"slurmctld": (*slurmkit.Outage).StopController, "slurmdbd": (*slurmkit.Outage).StopDatabase,
	} {
		t.Run(name, func(t *testing.T) {
			c := c.on(t)
			id := c.submit(c.batch("Outage of "+name, "sleep 20; exit 0"))
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
			if j := c.becomes(id, providerapi.JobSuccess); states(j) != "RUNNING SUCCESS" {
				t.Errorf("states %s, told:\n%s", states(j), told(j))
			}
		})
	}
}
