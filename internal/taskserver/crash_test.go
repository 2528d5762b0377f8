package taskserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/outbox"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
	"ucloud-im/internal/tasks"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/storetest"
)

// crashEnv names the database, the socket and Core for a copy of the test binary that is the server and is killed.
const crashEnv = "TASKSERVER_CRASH"

type crashSetup struct {
	DB, Socket, Core string
	// KillAt kills the process in the n-th transaction that stores a task: before or after the commit.
	KillAt int
	Before bool
}

// crashChild is the server as a process.
func crashChild() {
	fatal := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
	}
	var setup crashSetup
	fatal(json.Unmarshal([]byte(os.Getenv(crashEnv)), &setup))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	// An end that is asked for meanwhile waits for these.
	st, err := store.Open(context.Background(), store.Options{Path: setup.DB, Exclusive: true})
	fatal(err)
	fatal(st.Update(context.Background(), func(tx *store.Tx) error { return tx.SeeUser(ada, time.Now()) }))
	core, err := coreapi.New(coreapi.Options{BaseURL: setup.Core, Provider: "hpc-example", HTTP: &http.Client{}, Tokens: token{}})
	fatal(err)
	log := slog.New(slog.DiscardHandler)
	s := New(Options{
		Store: st, Core: core, Log: log, Grace: 300 * time.Millisecond,
		User: func(ident.UID) (ident.UCloudUser, bool) { return ada, true },
		Wake: func(context.Context, ident.UCloudUser) error { return nil },
	})
	s.createAgain, s.sealAfter = 300*time.Millisecond, 50*time.Millisecond
	var commits atomic.Int64
	s.committed = func(after bool) {
		if !after {
			commits.Add(1)
		}
		if int(commits.Load()) == setup.KillAt && setup.Before != after {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	box := outbox.New(st, outbox.Options{Log: log, Backoff: outbox.Backoff{Initial: 5 * time.Millisecond, Max: 50 * time.Millisecond}})
	srv := ipc.NewServer(ipc.ServerOptions{
		Authorize: func(context.Context, ipc.Peer) (ipc.Grant, error) { return ipc.Grant{User: ada, Mapped: true}, nil }, Log: log,
	})
	s.Register(srv, box)
	l, err := ipc.Listen(setup.Socket)
	fatal(err)
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ctx, l) })
	wg.Go(func() { _ = s.Run(ctx) })
	wg.Go(func() { _ = box.Run(ctx) })
	wg.Wait()
	fatal(st.Close())
}

// TestKilledServer kills the server at every step of a task's life: in and after each transaction, and when Core has
// received, carried out and answered each call. Each time the task ends properly: one final state at Core, behind
// everything else, and the work done once.
func TestKilledServer(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	type step struct {
		name  string
		setup crashSetup
		op    string // kill at the n-th such call of Core instead
		n     int
		late  bool // after its effect
	}
	var steps []step
	for n := 1; n <= 8; n++ {
		steps = append(steps, step{name: fmt.Sprintf("before commit %d", n), setup: crashSetup{KillAt: n, Before: true}},
			step{name: fmt.Sprintf("after commit %d", n), setup: crashSetup{KillAt: n}})
	}
	for _, late := range []bool{false, true} {
		steps = append(steps, step{name: fmt.Sprint("create, late ", late), op: "tasks.create", n: 1, late: late})
		for n := 1; n <= 4; n++ {
			steps = append(steps, step{name: fmt.Sprint("post ", n, ", late ", late), op: "tasks.postStatus", n: n, late: late})
		}
	}
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			w := &world{t: t, core: newCore(t), socket: socketPath(t), o: storetest.SQLiteOptions(t)}
			p := &crashProcess{t: t, setup: s.setup}
			p.setup.DB, p.setup.Socket, p.setup.Core = w.o.Path, w.socket, w.core.url
			if s.op != "" {
				var calls atomic.Int64
				hook := func(op string) int {
					if op == s.op && int(calls.Add(1)) == s.n {
						p.kill()
						return cut
					}
					return 0
				}
				if s.late {
					w.core.hooks(nil, hook)
				} else {
					w.core.hooks(hook, nil)
				}
			}
			p.start()
			t.Cleanup(p.stop)
			var work atomic.Int64
			in := w.instance(uidAda, map[string]tasks.Runner{"copy": func(ctx context.Context, task *tasks.Task) error {
				work.Add(1)
				if err := task.Save(json.RawMessage(`1`)); err != nil {
					return err
				}
				for n := range 3 {
					if err := task.Checkpoint(ctx); err != nil {
						return err
					}
					task.Progress(tasks.Progress{Body: fmt.Sprint(n), Percent: 10})
					time.Sleep(300 * time.Millisecond)
				}
				return nil
			}})
			ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
			defer cancel()
			if _, err := in.Submit(ctx, tasks.Spec{Kind: "copy", Title: "T", CanPause: true, CanCancel: true}); err != nil {
				t.Fatal(err)
			}
			ended := func() (n int) {
				for _, r := range w.core.all("T") {
					if r.Status.State == providerapi.TaskSuccess {
						n++
					}
				}
				return n
			}
			testkit.Eventually(t, "the end at Core", func() bool { return ended() == 1 })
			time.Sleep(200 * time.Millisecond) // what comes late must not change it
			if ended() != 1 || len(w.core.all("T")) > 1 && s.op != "tasks.create" && s.setup.KillAt == 0 {
				t.Errorf("records %+v", w.core.all("T"))
			}
			for _, r := range w.core.all("T") {
				if len(r.posts) == 0 {
					continue // a record of a creation that was cut: gone from the list before the other one came
				}
				final := 0
				for _, st := range r.posts {
					if st.State != providerapi.TaskRunning && st.State != providerapi.TaskInQueue {
						final++
					} else if final > 0 {
						t.Errorf("%s after the end", st.State)
					}
				}
			}
			if n := work.Load(); n != 1 && n != 2 { // a hand-out that was cut may be repeated, work that was done not
				t.Errorf("the work was done %d times", n)
			}
			in.closeWithin(testkit.Patience)
			p.stop()
			st := storetest.Open(t, w.o)
			err := st.View(t.Context(), func(tx *store.Tx) error {
				open, err := tx.OpenTasks()
				all, err2 := tx.Tasks(10)
				if len(open) != 0 || len(all) != 1 || all[0].State != store.TaskSucceeded {
					t.Errorf("open %+v, all %+v", open, all)
				}
				return errors.Join(err, err2)
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// crashProcess is a server that is started again whenever it was killed.
type crashProcess struct {
	t     *testing.T
	setup crashSetup

	mu     sync.Mutex
	cmd    *exec.Cmd
	ending bool
	done   chan struct{}
}

func (p *crashProcess) start() {
	p.done = make(chan struct{})
	go func() {
		defer close(p.done)
		for p.live() {
			p.setup.KillAt = 0 // once
		}
	}()
}

// live is one life; false: it was the last.
func (p *crashProcess) live() bool {
	raw, _ := json.Marshal(p.setup)
	exe, _ := os.Executable()
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), crashEnv+"="+string(raw))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	p.mu.Lock()
	if p.ending {
		p.mu.Unlock()
		return false
	}
	err := cmd.Start()
	p.cmd = cmd
	p.mu.Unlock()
	if err == nil {
		err = cmd.Wait()
	}
	if st := cmd.ProcessState; err != nil && (st == nil || st.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL) {
		p.t.Errorf("server: %v: %s", err, &stderr)
		return false
	}
	return err != nil
}

func (p *crashProcess) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.cmd.Process.Kill()
}

func (p *crashProcess) stop() {
	p.mu.Lock()
	p.ending = true
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	p.mu.Unlock()
	<-p.done
}
