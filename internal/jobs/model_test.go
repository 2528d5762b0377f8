package jobs

import (
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

// corePatience is how long Core waits for the answer to a create before it deletes its record (contract 20 section 1).
const corePatience = 5 * time.Second

// attempt is a submission as an instance makes it.
type attempt struct {
	job   string
	grant ipcapi.JobGrant
	id    string // in Slurm; empty: sbatch has not been run
	over  bool   // the instance has died, or has reported
}

// TestSubmissionModel: whatever dies between any two steps of submissions, and whatever does not answer, no job runs twice, no
// job runs that Core does not have, and what Core has is told the end of it once.
func TestSubmissionModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		w := sqlite(t)
		w.set.RegisterOutside = false
		owner := ident.Owner{User: ada}
		var open []*attempt
		made := map[string]int{} // jobs in Slurm, by Core's id
		n := 0
		maybe := func(label string) bool { return rapid.IntRange(0, 3).Draw(r, label) == 0 }
		start := func(id string) {
			g, err := w.Begin(t.Context(), ada, adaID, w.beginning(id, ada, owner))
			if err == nil && !g.Known {
				open = append(open, &attempt{job: id, grant: g})
			}
		}
		gaveUp := func(id string) { w.core.set(func(c *fakeCore) { delete(c.jobs, id) }) }
		one := func() *attempt {
			var left []*attempt
			for _, a := range open {
				if !a.over {
					left = append(left, a)
				}
			}
			if len(left) == 0 {
				r.Skip("nothing is being submitted")
			}
			return left[rapid.IntRange(0, len(left)-1).Draw(r, "attempt")]
		}
		r.Repeat(map[string]func(*rapid.T){
			"create": func(*rapid.T) {
				if n++; n > 6 {
					r.Skip("enough")
				}
				id := "j" + strconv.Itoa(n)
				w.core.create(id, ada, owner)
				start(id)
			},
			"create again": func(*rapid.T) {
				if n == 0 {
					return
				}
				id, there := "j"+strconv.Itoa(rapid.IntRange(1, n).Draw(r, "job")), false
				if w.core.set(func(c *fakeCore) { there = c.jobs[id] != nil }); there { // Core repeats a call, not a job that it gave up
					start(id)
				}
			},
			"sbatch": func(*rapid.T) {
				a := one()
				if a.id != "" || w.clock().After(a.grant.Until) { // what an instance checks
					return
				}
				a.id = w.slurm.sbatch(adaName, a.grant.Account, a.grant.Comment)
				made[a.job]++
			},
			"report": func(*rapid.T) {
				a := one()
				a.over = true
				if a.id == "" {
					_ = w.Refused(t.Context(), ada, adaID, ipcapi.JobRefusal{Job: a.job, Attempt: a.grant.Attempt})
					gaveUp(a.job)
					return
				}
				_, err := w.Submitted(t.Context(), ada, adaID, ipcapi.JobSubmission{Job: a.job, Attempt: a.grant.Attempt, EngineID: a.id, Folder: "/f"})
				if failure.Is(err, failure.Conflict) {
					t.Fatalf("a job in Slurm does not count: %v", err)
				}
				if err != nil || maybe("too late for Core") {
					gaveUp(a.job)
				}
			},
			"instance dies": func(*rapid.T) {
				a := one()
				a.over = true
				gaveUp(a.job)
			},
			"server dies": func(*rapid.T) { w.restart() },
			"time": func(*rapid.T) {
				w.pass(time.Duration(rapid.IntRange(1, 90).Draw(r, "seconds")) * time.Second)
				for _, a := range open {
					if begun := a.grant.Until.Add(-leave); !a.over && w.clock().Sub(begun) > corePatience {
						gaveUp(a.job) // whatever the instance reports later
					}
				}
			},
			"round": func(*rapid.T) {
				fail := func(label string) error {
					if maybe(label) {
						return errTest
					}
					return nil
				}
				queue, history := fail("queue fails"), fail("accounting fails")
				w.slurm.set(func(f *fakeSlurm) { f.queueErr, f.histErr, f.lookErr = queue, history, history })
				_ = w.m.round(t.Context())
			},
			"tell": func(*rapid.T) {
				var err error
				if maybe("core fails") {
					err = errTest
				}
				cut := maybe("answer lost")
				w.core.set(func(c *fakeCore) { c.err, c.cut = err, cut })
				_ = w.confirmSome(t.Context())
				_, _ = w.deliverSome(t.Context())
			},
			"run": func(*rapid.T) {
				for _, a := range open {
					if a.id != "" && maybe("runs") {
						w.slurm.job(a.id, func(o *Observation) {
							if o.State == providerapi.JobInQueue {
								o.State, o.Word, o.Nodes, o.Started = providerapi.JobRunning, "RUNNING", []string{"c1"}, w.clock()
							}
						})
					}
				}
			},
			"end": func(*rapid.T) {
				for _, a := range open {
					if a.id != "" && maybe("ends") {
						w.slurm.job(a.id, func(o *Observation) {
							if o.State == providerapi.JobRunning {
								o.State, o.Word, o.Message, o.Ended = providerapi.JobSuccess, "COMPLETED", "done", w.clock()
							}
						})
					}
				}
			},
			"": func(*rapid.T) {
				for id, times := range made {
					if times > 1 {
						t.Fatalf("%s was submitted %d times", id, times)
					}
				}
			},
		})
		// Whatever was being done is left as it is. Everything answers again.
		w.slurm.set(func(f *fakeSlurm) { f.queueErr, f.histErr, f.lookErr = nil, nil, nil })
		w.core.set(func(c *fakeCore) { c.err, c.cut = nil, false })
		for _, a := range open {
			if !a.over {
				gaveUp(a.job)
			}
		}
		settle := func() {
			for range 15 {
				w.pass(time.Minute)
				w.look()
				w.tellCore()
			}
		}
		settle()
		for _, o := range w.slurm.jobs {
			id, _ := w.claimOf(o.Comment)
			if w.core.jobs[id] == nil && !o.State.Final() {
				t.Fatalf("%s runs as %s, and Core does not have it: %+v", id, o.ID, w.row(id, adaID))
			}
		}
		for _, o := range w.slurm.jobs {
			if !o.State.Final() {
				w.slurm.finish(o.ID, providerapi.JobSuccess, "COMPLETED", "done")
			}
		}
		settle()
		for id, j := range w.core.jobs {
			final := 0
			for _, s := range j.states {
				if s.Final() {
					final++
				}
			}
			if made[id] > 0 && (final != 1 || !j.state.Final()) {
				t.Fatalf("Core was told the end of %s %d times: %v; %+v", id, final, j.states, w.row(id, adaID))
			}
		}
		for i := 1; i <= min(n, 6); i++ {
			if j := w.row("j"+strconv.Itoa(i), adaID); j.Submission == store.JobBegun || j.Open() {
				t.Fatalf("open for ever: %+v", j)
			}
		}
	})
}
