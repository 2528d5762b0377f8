package usage

import (
	"slices"
	"testing"
	"time"

	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/store"
)

// TestQuotasInsteadOfScans: an instance is told which quota would do, and with one a drive is measured as often as any
// other that costs nothing.
func TestQuotasInsteadOfScans(t *testing.T) {
	t.Parallel()
	s, db, home, work := scanWorld(t)
	categories := []Category{
		{
			Name: "disk", UnitBytes: 1000, Measure: StatFS{}, Scan: true, Interval: time.Minute,
			Roots: map[string][]string{"home": {"/home"}, "work": {"/work"}},
		},
		{Name: "tape", Roots: map[string][]string{"home": {"/tape"}}},
	}
	if err := s.SetCategories(categories); err != nil {
		t.Fatal(err)
	}
	member := drive(reef, "disk", "members", 1)
	member.Path, member.Member = home.Path, alice.User
	foreign := drive(reef, "disk", "members", 2)
	foreign.Path, foreign.Member = work.Path, "Bob#1"
	update(t, db, func(tx *store.Tx) error {
		for _, d := range []store.Drive{member, foreign} {
			if err := tx.PutDrive(d); err != nil {
				return err
			}
		}
		return tx.SetProjectGroup(reef.Project, 4711, "reef")
	})
	for _, d := range []store.Drive{home, work, member, foreign} {
		s.running["disk"]++
		s.measure(t.Context(), s.categories["disk"], []store.Drive{d})
	}
	c, who := serve(t, s)
	who.become(alice.User)
	jobs := map[string]ipcapi.UsageJob{}
	for {
		job, err := ipc.Invoke(t.Context(), c, ipcapi.UsageWork, ipcapi.Empty{})
		if err != nil {
			t.Fatal(err)
		}
		if job.Drive == "" {
			break
		}
		jobs[job.Drive] = job
		if _, err := ipc.Invoke(t.Context(), c, ipcapi.UsageScanned, ipcapi.UsageProgress{
			Drive: job.Drive, State: []byte(`{"totals":{"bytes":77},"done":true}`), Quota: job.Quota != "",
		}); err != nil {
			t.Fatal(err)
		}
	}
	if len(jobs) != 3 {
		t.Fatalf("%d jobs; the drive of another member is none of Alice's business: %+v", len(jobs), jobs)
	}
	j := jobs[home.ProviderGeneratedID]
	slices.Sort(j.Others)
	if j.Quota != ipcapi.QuotaUser || !slices.Equal(j.Others, []string{"/tape", "/work"}) {
		t.Errorf("home: %+v", j)
	}
	if j := jobs[work.ProviderGeneratedID]; j.Quota != ipcapi.QuotaGroup || j.GID != 4711 {
		t.Errorf("work: %+v", j)
	}
	if j := jobs[member.ProviderGeneratedID]; j.Quota != "" {
		t.Errorf("a member's part: %+v", j)
	}
	methods := map[string]string{}
	update(t, db, func(tx *store.Tx) error {
		all, err := tx.DriveUsages()
		for _, u := range all {
			methods[u.ProviderGeneratedID] = u.Method
			u.MeasuredAt = u.MeasuredAt.Add(-2 * time.Minute) // longer than the interval, less than a day
			if err := tx.PutDriveUsage(u); err != nil {
				return err
			}
		}
		return err
	})
	if methods[home.ProviderGeneratedID] != MethodQuota || methods[member.ProviderGeneratedID] != MethodScan {
		t.Errorf("%v", methods)
	}
	again := map[string]bool{}
	for range 3 {
		job, err := ipc.Invoke(t.Context(), c, ipcapi.UsageWork, ipcapi.Empty{})
		if err != nil {
			t.Fatal(err)
		}
		again[job.Drive] = true
		if job.Drive != "" {
			if _, err := ipc.Invoke(t.Context(), c, ipcapi.UsageScanned, ipcapi.UsageProgress{Drive: job.Drive, State: []byte(`{"totals":{"bytes":78},"done":true}`), Quota: true}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !again[home.ProviderGeneratedID] || !again[work.ProviderGeneratedID] || again[member.ProviderGeneratedID] {
		t.Errorf("measured again: %v", again)
	}
}
