package jobs

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/slurm"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/slurmfake"
	"ucloud-im/internal/testkit/storetest"
)

// crowd are the accounts of slurmfake: user0 to user999.
type crowd struct{}

const firstOfCrowd = 20_000

func (crowd) LocalName(uid ident.UID) (string, bool) {
	return "user" + strconv.Itoa(int(uid)-firstOfCrowd), true
}

func (crowd) Mapped(name string) (ident.UCloudUser, ident.UID, bool) {
	n, err := strconv.Atoi(strings.TrimPrefix(name, "user"))
	return ident.UCloudUser("Crowd#" + strconv.Itoa(n)), ident.UID(firstOfCrowd + n), err == nil
}

// BenchmarkWatched looks at a cluster with 100,000 jobs while as many users as the name says watch a job each. The figures
// are those of the monitor as it runs by itself: how long a round takes, how often squeue and sacct run in a minute, at an
// interval of 1 s and at the pauses that the monitor makes after long rounds, and how often in a round; and the most memory
// that the process has had. Who watches must not add to what Slurm is asked.
func BenchmarkWatched(b *testing.B) {
	for _, watchers := range []int{0, 1000} {
		b.Run(strconv.Itoa(watchers), func(b *testing.B) { benchmarkWatched(b, watchers) })
	}
}

func benchmarkWatched(b *testing.B, watchers int) {
	const all, ours, from = 100_000, 1000, 500_000 // 500,000 is the first of slurmfake's names of jobs
	binaries := slurmfake.Install(b, all)
	states, err := slurm.NewStates(nil)
	if err != nil {
		b.Fatal(err)
	}
	db := storetest.SQLite(b)
	core := &fakeCore{jobs: map[string]*coreJob{}}
	now := time.Now()
	err = db.Update(b.Context(), func(tx *store.Tx) error {
		for i := range ours {
			user, uid, _ := crowd{}.Mapped("user" + strconv.Itoa(i))
			id := strconv.Itoa(from + i)
			core.create(id, user, ident.Owner{User: user})
			if _, err := tx.InsertJob(store.Job{
				ID: id, UID: uid, CreatedBy: user, Owner: ident.Owner{User: user}, Engine: ipcapi.EngineSlurm, Submission: store.JobSubmitted, Attempt: 1,
				EngineID: strconv.Itoa(700_000 + i), State: providerapi.JobInQueue, CoreKnown: 2, Replicas: 1, CreatedAt: now, SubmittedAt: now,
			}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	set := Settings{Poll: time.Second, Lookback: 7 * 24 * time.Hour, Keep: 90 * 24 * time.Hour}
	s, err := New(Options{
		Provider: "hippo", Store: db, Core: core, Accounts: &fakeAccounts{}, Users: crowd{}, Settings: func() Settings { return set },
		Engine: Slurm{Client: slurm.New(slurm.Options{Binaries: binaries}), States: func() *slurm.States { return states }},
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	var seen, running atomic.Int64
	wg.Go(func() { _ = s.Run(ctx) }) // until ctx ends
	for i := range watchers {
		user, uid, _ := crowd{}.Mapped("user" + strconv.Itoa(i%ours))
		wg.Go(func() {
			first := true
			_ = s.Watch(ctx, user, uid, strconv.Itoa(from+i%ours), func(r ipcapi.JobRecord) error { // until ctx ends
				if first {
					seen.Add(1)
				}
				if r.State == providerapi.JobRunning {
					running.Add(1)
				}
				first = false
				return nil
			})
		})
	}
	defer wg.Wait()
	defer cancel()
	wait := func(what string, cond func() bool) {
		for deadline := time.Now().Add(2 * time.Minute); !cond(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				b.Fatalf("waited for %s: %+v", what, s.Health())
			}
		}
	}
	// The first rounds change a tenth of the jobs, and tell the watchers. What is measured is the usual round after it.
	wait("the watchers to be told", func() bool {
		h := s.Health()
		return h.Rounds >= 2 && h.Err == nil && int(seen.Load()) == watchers && int(running.Load()) >= watchers/10
	})
	calls := func() int { return slurmfake.Calls(b, binaries, "squeue") + slurmfake.Calls(b, binaries, "sacct") }
	at := s.Health().Rounds
	wait("the end of a round", func() bool { return s.Health().Rounds > at })
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		b.Log("the peak is that of the whole process: ", err)
	}
	before, began, took := calls(), time.Now(), time.Duration(0)
	at = s.Health().Rounds
	rounds := 0
	for b.Loop() {
		rounds++
		wait("a round", func() bool { return s.Health().Rounds >= at+uint64(rounds) })
		h := s.Health()
		if h.Err != nil || h.Watched != ours || h.Missing != 0 {
			b.Fatalf("%+v", h)
		}
		took += h.LastTook
	}
	asked, minutes := calls()-before, time.Since(began).Minutes()
	b.ReportMetric(took.Seconds()/float64(rounds), "round-s")
	b.ReportMetric(float64(asked)/minutes, "queries/min")
	b.ReportMetric(float64(asked)/float64(rounds), "queries/round")
	b.ReportMetric(peakMiB(b), "peak-MiB")
}

// peakMiB is the most memory that this process has had.
func peakMiB(b *testing.B) float64 {
	b.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "\nVmHWM:")
	var kib float64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		b.Fatal(err)
	}
	return kib / 1024
}
