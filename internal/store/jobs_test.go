package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

func sampleJob(id string, uid ident.UID) store.Job {
	return store.Job{
		ID: id, UID: uid, CreatedBy: "Ada#1", Owner: ident.Owner{Project: "p"}, Engine: "slurm", Submission: store.JobSubmitted,
		Attempt: 2, Until: day, EngineID: "e" + id, PGID: "acc/e" + id + "/1", Account: "acc", Partition: "normal", QoS: "q",
		Product: "cpu-1", Category: "cpu", State: providerapi.JobRunning, EngineState: "RUNNING", CoreKnown: 1, CoreMisses: 1,
		CoreChecked: day, DeliverAfter: day, Outside: true, Ending: true, Name: "a\x00b", AppName: "app", AppVersion: "1",
		AppType: "BATCH", Replicas: 2, Port: 20001, LimitMs: 60000, Folder: "/d/1", OutputFolder: "/4/1",
		Targets: []store.JobTarget{{Rank: 1, Type: "WEB", Target: "t", Port: 9}}, Nodes: []string{"c1", "c2"},
		CreatedAt: day, SubmittedAt: day, StartedAt: day, EndedAt: day, SeenAt: day, MissingSince: day, MissingRounds: 3,
		Message: "m\xff", Document: `{"id":"1"}`,
	}
}

func insertJob(t *testing.T, s *store.Store, j store.Job) store.Job {
	t.Helper()
	update(t, s, func(tx *store.Tx) (err error) { j.Key, err = tx.InsertJob(j); return err })
	return j
}

func TestJobs(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		j := insertJob(t, s, sampleJob("1", 1001))
		want := j
		want.Name, want.Message = "ab", "m\uFFFD"
		if d := cmp.Diff(want, get(t, s, func(tx *store.Tx) (store.Job, error) { return tx.JobOf("1", 1001) })); d != "" {
			t.Error(d)
		}
		// The claim of another account stands beside it; a second one of the same account does not, nor does another job of
		// the account with the same id of the engine.
		other := insertJob(t, s, sampleJob("1", 1002))
		update(t, s, func(tx *store.Tx) error {
			again, engine := sampleJob("1", 1001), sampleJob("2", 1001)
			again.EngineID, engine.EngineID = "e9", "e1"
			for _, j := range []store.Job{again, engine} {
				if _, err := tx.InsertJob(j); !errors.Is(err, store.ErrConflict) {
					t.Errorf("inserted: %v", err)
				}
			}
			return nil
		})
		for name, find := range map[string]func(*store.Tx) ([]store.Job, error){
			"id":     func(tx *store.Tx) ([]store.Job, error) { return tx.JobsByID("1") },
			"engine": func(tx *store.Tx) ([]store.Job, error) { return tx.JobsByEngineID("slurm", "e1") },
			"open":   (*store.Tx).OpenJobs,
			"all":    func(tx *store.Tx) ([]store.Job, error) { return tx.Jobs(0, 10) },
		} {
			if all := get(t, s, find); len(all) != 2 || all[0].Key != j.Key || all[1].Key != other.Key {
				t.Errorf("by %s: %+v", name, all)
			}
		}
		j.State, j.Nodes, j.Targets, j.EndedAt, j.Document = providerapi.JobSuccess, nil, nil, day.Add(time.Hour), "ignored"
		update(t, s, func(tx *store.Tx) error { return tx.UpdateJob(j) })
		want = j
		want.Name, want.Message, want.Document = "ab", "m\uFFFD", `{"id":"1"}`
		if d := cmp.Diff(want, get(t, s, func(tx *store.Tx) (store.Job, error) { return tx.Job(j.Key) })); d != "" {
			t.Error(d)
		}
		if all := get(t, s, func(tx *store.Tx) ([]store.Job, error) { return tx.OpenJobsOf(1001) }); len(all) != 0 {
			t.Errorf("open after the end: %+v", all)
		}
		update(t, s, func(tx *store.Tx) error { return tx.SetJobDocument(j.Key, `{"id":"x"}`) })
		if got := get(t, s, func(tx *store.Tx) (store.Job, error) { return tx.Job(j.Key) }); got.Document != `{"id":"x"}` {
			t.Error(got.Document)
		}
		counts := get(t, s, (*store.Tx).JobCounts)
		if len(counts) != 2 {
			t.Errorf("%+v", counts)
		}
	})
}

func TestJobUpdates(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		text := func(s string) providerapi.JobUpdate { return providerapi.JobUpdate{Status: &s} }
		add := func(j store.Job, texts ...string) {
			for _, x := range texts {
				update(t, s, func(tx *store.Tx) error { return tx.AddJobUpdate(j.Key, text(x), day) })
			}
		}
		a, b, unknown, lost := sampleJob("1", 1001), sampleJob("2", 1001), sampleJob("3", 1001), sampleJob("4", 1001)
		b.DeliverAfter, unknown.CoreKnown, lost.Submission = day.Add(time.Hour), 0, store.JobLost
		a, b, unknown, lost = insertJob(t, s, a), insertJob(t, s, b), insertJob(t, s, unknown), insertJob(t, s, lost)
		add(a, "a1")
		add(b, "b1")
		add(unknown, "u1")
		add(lost, "l1")
		add(a, "a2")
		due := func(at time.Time) (out string, first int64) {
			for _, u := range get(t, s, func(tx *store.Tx) ([]store.JobUpdate, error) { return tx.DueJobUpdates(at, 10) }) {
				if first == 0 {
					first = u.ID
				}
				out += u.Job + *u.Update.Status + " "
			}
			return out, first
		}
		got, first := due(day)
		if got != "1a1 1a2 " {
			t.Errorf("due: %s", got)
		}
		if got, _ := due(day.Add(time.Hour)); got != "1a1 2b1 1a2 " {
			t.Errorf("due later: %s", got)
		}
		update(t, s, func(tx *store.Tx) error { return errors.Join(tx.RemoveJobUpdate(first), tx.DropJobUpdates(lost.Key)) })
		if got, _ := due(day); got != "1a2 " {
			t.Errorf("due after one was taken: %s", got)
		}
		if n := get(t, s, (*store.Tx).JobUpdateCounts); n[a.Key] != 1 || n[lost.Key] != 0 || n[unknown.Key] != 1 {
			t.Errorf("%v", n)
		}
		// What is still to be told keeps a job that ended long ago.
		for _, j := range []store.Job{a, b} {
			j.State = providerapi.JobSuccess
			update(t, s, func(tx *store.Tx) error { return tx.UpdateJob(j) })
		}
		update(t, s, func(tx *store.Tx) error { return tx.DropJobUpdates(b.Key) })
		var n int64
		update(t, s, func(tx *store.Tx) (err error) { n, err = tx.PurgeJobs(day.Add(time.Hour), 10); return err })
		left := get(t, s, func(tx *store.Tx) ([]store.Job, error) { return tx.Jobs(0, 10) })
		if n != 2 || len(left) != 2 || left[0].Key != a.Key || left[1].Key != unknown.Key {
			t.Errorf("%d purged, left: %+v", n, left)
		}
	})
}

func TestJobsToConfirm(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		for id, change := range map[string]func(*store.Job){
			"1": func(j *store.Job) { j.CoreKnown, j.CoreMisses = 0, 0 },
			"2": func(j *store.Job) { j.CoreKnown, j.CoreMisses = 2, 0 },
			"3": func(j *store.Job) { j.CoreKnown, j.CoreMisses, j.CoreChecked = 2, 1, day.Add(-time.Hour) },
			"4": func(j *store.Job) { j.CoreKnown, j.CoreMisses, j.CoreChecked = 1, 0, day.Add(time.Hour) },
			"5": func(j *store.Job) { j.CoreKnown, j.CoreMisses, j.Submission = 0, 0, store.JobBegun },
		} {
			j := sampleJob(id, 1001)
			change(&j)
			insertJob(t, s, j)
		}
		var got string
		for _, j := range get(t, s, func(tx *store.Tx) ([]store.Job, error) { return tx.JobsToConfirm(day.Add(time.Second), 10) }) {
			got += j.ID
		}
		if got != "31" {
			t.Errorf("%s", got)
		}
	})
}
