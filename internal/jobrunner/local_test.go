package jobrunner

import (
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
)

// restart ends the bench's local engine and makes that of the next instance.
func (b *bench) restart(busy func() func()) *Local {
	b.t.Helper()
	b.local.Close()
	b.local = NewLocal(LocalOptions{Dir: filepath.Join(b.home, "state"), Server: b.server, Busy: busy, Log: slog.New(slog.DiscardHandler)})
	if err := b.local.Start(); err != nil {
		b.t.Fatal(err)
	}
	return b.local
}

// A job goes on while its instance is replaced, and the next instance tells of its end. Meanwhile it keeps that instance
// from being idle, and no longer.
func TestLocalRestart(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	if _, err := b.create("1", "sh", "-c", "while [ ! -e go ]; do sleep 0.02; done"); err != nil {
		t.Fatal(err)
	}
	b.awaitState("1", providerapi.JobRunning)
	var busy atomic.Int64
	b.server.mu.Lock()
	r := b.server.records["1"]
	r.EngineID = "" // the server has not heard of it, as if the instance had died right after the start
	b.server.records["1"] = r
	b.server.mu.Unlock()
	b.restart(func() func() {
		busy.Add(1)
		return func() { busy.Add(-1) }
	})
	b.awaitState("1", providerapi.JobRunning)
	if id := get(b.server, func() string { return b.server.records["1"].EngineID }); id == "" {
		t.Error("the server has not been told again")
	}
	eventually(t, func() bool { return busy.Load() == 1 }, func() string { return "the instance may become idle although a job runs" })
	touch(t, filepath.Join(b.folder("1"), "go"))
	b.awaitState("1", providerapi.JobSuccess)
	eventually(t, func() bool { return busy.Load() == 0 && len(b.local.engine.Jobs()) == 0 },
		func() string { return "the instance stays busy without a job" })
}

// A job that the server does not take is ended: Core has no record of it. So is one that the server wants ended.
func TestLocalUnwanted(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	for _, id := range []string{"1", "2"} {
		if _, err := b.create(id, "sleep", "1000"); err != nil {
			t.Fatal(err)
		}
	}
	b.server.mu.Lock()
	delete(b.server.records, "1")
	b.server.end = []string{"2"}
	b.server.mu.Unlock()
	b.restart(nil)
	b.awaitState("2", providerapi.JobSuccess)
	eventually(t, func() bool { return len(b.local.engine.Jobs()) == 0 }, func() string { return "a job that nobody wants goes on" })
}

// Without jobs one report is sent, and nothing goes on.
func TestLocalIdle(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	var busy atomic.Int64
	b.restart(func() func() {
		busy.Add(1)
		return func() { busy.Add(-1) }
	})
	eventually(t, func() bool { return busy.Load() == 0 }, func() string { return "the instance is busy without jobs" })
	got := get(b.server, func() []ipcapi.JobLocalReport { return b.server.reports })
	if len(got) != 1 || !got[0].All || len(got[0].Jobs) > 0 {
		t.Errorf("reports %+v", got)
	}
}

// The server may be away when a job ends; it hears of the end when it is back.
func TestLocalServerAway(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.server.err["local"] = failure.New(failure.Unavailable, "away")
	if _, err := b.create("1", "false"); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { j := b.local.engine.Jobs(); return len(j) == 1 && j[0].State.Final() }, func() string { return "no end" })
	b.server.mu.Lock()
	delete(b.server.err, "local")
	b.server.mu.Unlock()
	b.awaitState("1", providerapi.JobFailure)
}

// What the server refuses after the engine has taken it does not run on.
func TestServerRefusesResult(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.server.err["submitted"] = failure.New(failure.Conflict, "too late")
	_, err := b.create("1", "sleep", "1000")
	if !failure.Is(err, failure.Conflict) || !strings.Contains(failure.Why(err), "too late") {
		t.Error(err)
	}
	eventually(t, func() bool { j := b.local.engine.Jobs(); return len(j) == 0 || j[0].State.Final() },
		func() string { return "a job that does not count goes on" })
}
