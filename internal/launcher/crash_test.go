package launcher_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/launcher"
	"ucloud-im/internal/testkit/accounts"
)

func sendSignal(t testing.TB, pid int, name string) {
	t.Helper()
	if err := exec.Command("kill", "-"+name, fmt.Sprint(pid)).Run(); err != nil {
		t.Fatal(err)
	}
	if name == "STOP" { // takes effect thread by thread
		eventually(t, "all threads have stopped", func() bool {
			threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
			for _, thread := range threads {
				raw, err := os.ReadFile(thread)
				if _, rest, _ := strings.Cut(string(raw), ") "); err == nil && !strings.HasPrefix(rest, "T") {
					return false
				}
			}
			return len(threads) > 0
		})
	}
}

func TestCrashIsRepaired(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	for name, program := range sudoModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := site.User(t)
			w := newRunning(t, func(c *serverConfig) { c.Program = filepath.Join(site.Dir, program) }, u)
			route := w.wake(u)
			first := w.about(u).PID
			// Requests that come while nobody accepts wait in the listener and are answered by the next process.
			sendSignal(t, first, "STOP")
			var wg sync.WaitGroup
			answers := make([]Fetched, 10)
			for i := range answers {
				wg.Go(func() { answers[i] = w.get(u, "/work") })
			}
			time.Sleep(200 * time.Millisecond)
			sendSignal(t, first, "KILL")
			wg.Wait()
			good := 0
			for _, a := range answers {
				if a.Status == 200 {
					good++
				}
			}
			// A stopped process accepts nothing; one connection may have been open from before.
			if good < len(answers)-1 {
				t.Errorf("only %d of %d were answered: %+v", good, len(answers), answers)
			}
			// The new process may answer a moment before the server has heard that it is ready.
			w.eventually("the new process is listed", func() bool { return w.info(u).State == launcher.Running })
			i := w.info(u)
			if i.PID == int32(first) || i.Crashes != 1 || i.Generation != 2 || i.Port != route.Port {
				t.Errorf("after the crash: %+v", i)
			}
			if w.wake(u).Route != route.Route {
				t.Error("the route changed, though the listener is the same")
			}
		})
	}
}

func TestExitIsReported(t *testing.T) {
	t.Parallel()
	u := theSite(t).User(t)
	w := newRunning(t, nil, u)
	w.wake(u)
	w.get(u, "/log?lines=3")
	w.post(u, "/exit")
	w.eventually("the crash is counted", func() bool { return w.info(u).Crashes == 1 })
	w.eventually("the exit status is in the server's log", func() bool {
		return strings.Contains(w.server.log.String(), "exit status 7")
	})
	if out := w.info(u).LastOutput; !strings.Contains(out, "a line for the log") {
		t.Errorf("last output %q", out)
	}
	data, err := os.ReadFile(filepath.Join(w.cfg.Dir, "log/users", u.UID.String()+".log"))
	if err != nil || !strings.Contains(string(data), "a line for the log") {
		t.Errorf("log file: %v %q", err, data)
	}
}

func TestCrashLoopEnds(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	u := site.User(t)
	w := newRunning(t, func(c *serverConfig) { c.RestartMax = 3 }, u)
	w.wake(u)
	w.eventually("the slot is given up", func() bool {
		for _, pid := range accounts.Processes(u.UID) {
			exec.Command("kill", "-9", fmt.Sprint(pid)).Run() //nolint:errcheck // may be gone
		}
		return w.info(u).State == launcher.Stopped
	})
	r := w.tryWake(u)
	if !strings.Contains(r.Why, "failed 3 times") {
		t.Fatalf("%+v", r)
	}
	if c := w.counters(); c.CrashLoops != 1 {
		t.Errorf("%+v", c)
	}
	var ok bool
	w.call(w.server, "Restart", userOf(u), &ok) // an operator has repaired it
	w.wake(u)
}

// TestHungInstanceIsEnded stops a process so that it obeys nobody. The server has no right to signal it.
func TestHungInstanceIsEnded(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	for name, program := range sudoModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := site.User(t)
			w := newRunning(t, func(c *serverConfig) {
				c.Program, c.Stop = filepath.Join(site.Dir, program), 500*time.Millisecond
			}, u)
			w.wake(u)
			pid := w.about(u).PID
			sendSignal(t, pid, "STOP")
			if out, err := site.Service.Command("/bin/kill", "-9", fmt.Sprint(pid)).CombinedOutput(); err == nil {
				t.Fatalf("the service account can signal the instance: %s", out)
			}
			var ok bool
			w.call(w.server, "Stop", userOf(u), &ok)
			if alive(pid) {
				t.Fatal("it lives")
			}
			if c := w.counters(); c.Kills != 1 || c.Unkillable != 0 {
				t.Errorf("%+v", c)
			}
			eventually(t, "the executioner is gone too", func() bool { return len(accounts.Processes(u.UID)) == 0 })
			w.wake(u) // and the user can work again
		})
	}
}

// TestHungAndNoLongerAllowed: the rule for the executioner is gone. The instance is isolated, and the operator told.
func TestHungAndNoLongerAllowed(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	u := site.User(t)
	w := newRunning(t, func(c *serverConfig) { c.Stop = 300 * time.Millisecond }, u)
	route := w.wake(u)
	pid := w.about(u).PID
	sendSignal(t, pid, "STOP")
	accounts.Admin(t, "gpasswd", "-d", u.Name, site.Group)
	w.eventually("it is reported", func() bool { return w.counters().Unkillable == 1 })
	w.eventually("it is isolated", func() bool { return w.info(u).State == launcher.Stopped })
	if got := w.as(site.Service, "talk", fmt.Sprint(route.Port)); !strings.Contains(got, "refused") {
		t.Errorf("the port still answers: %s", got)
	}
}

// TestServerRestart kills the server under load. The instances and their requests must not notice.
func TestServerRestart(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	for name, end := range map[string]func(*proc, testing.TB){"kill -9": (*proc).kill, "orderly": (*proc).stop} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			users := []accounts.Account{site.User(t), site.User(t), site.User(t)}
			w := newRunning(t, nil, users...)
			l := Load{Rate: 100, Duration: 5 * time.Second}
			pids, routes := map[ident.UCloudUser]int{}, map[ident.UCloudUser]uint64{}
			for i, u := range users {
				if i == 1 {
					w.cfg.Program = filepath.Join(site.Dir, directProgram)
				}
				routes[userOf(u)] = w.wake(u).Route
				pids[userOf(u)] = w.about(u).PID
				l.Users = append(l.Users, userOf(u))
			}
			done := make(chan Loaded, 1)
			go func() {
				var r Loaded
				w.call(w.gw, "Load", l, &r)
				done <- r
			}()
			for range 2 {
				time.Sleep(500 * time.Millisecond)
				end(w.server, t)
				time.Sleep(300 * time.Millisecond)
				w.startServer()
				w.eventually("all are adopted", func() bool { return w.counters().Adopted == uint64(len(users)) })
			}
			r := <-done
			if len(r.Failed) > 0 || r.OK < 100 {
				t.Fatalf("%d answered, %d failed: %v", r.OK, len(r.Failed), r.Failed[:min(5, len(r.Failed))])
			}
			for _, u := range users {
				i := w.info(u)
				if i.PID != int32(pids[userOf(u)]) || i.State != launcher.Running || w.wake(u).Route != routes[userOf(u)] {
					t.Errorf("after the restart: %+v", i)
				}
				w.get(u, "/log?lines=1")
			}
			t.Logf("%d answered, slowest %v", r.OK, r.Slow)
			// The logs find their way to the new server.
			w.eventually("log lines arrive", func() bool {
				return strings.Contains(w.info(users[0]).LastOutput, "a line for the log")
			})
			// The listener is the server's again: a crash loses nothing now either.
			sendSignal(t, pids[userOf(users[0])], "KILL")
			w.eventually("restarted on the same port", func() bool { return w.get(users[0], "/work").Status == 200 })
		})
	}
}

func TestInstanceDiesWhileServerIsAway(t *testing.T) {
	t.Parallel()
	u := theSite(t).User(t)
	w := newRunning(t, nil, u)
	w.wake(u)
	pid := w.about(u).PID
	w.server.kill(t)
	sendSignal(t, pid, "KILL")
	eventually(t, "it is dead", func() bool { return !alive(pid) })
	w.startServer()
	// A dead process that its parent has not waited for yet is found out a moment after the start.
	w.eventually("none is thought to run", func() bool { return w.counters().Instances == 0 })
	w.eventually("a new one serves", func() bool { return w.get(u, "/work").Status == 200 })
}

func TestInstanceHangsWhileServerIsAway(t *testing.T) {
	t.Parallel()
	u := theSite(t).User(t)
	w := newRunning(t, func(c *serverConfig) { c.Recover = time.Second }, u)
	w.wake(u)
	pid := w.about(u).PID
	w.server.kill(t)
	sendSignal(t, pid, "STOP")
	w.startServer()
	w.eventually("it is ended", func() bool { return !alive(pid) })
	w.eventually("a new one serves", func() bool { return w.get(u, "/work").Status == 200 })
}

func TestInstanceEndsWithoutServer(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	for name, program := range sudoModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := site.User(t)
			w := newRunning(t, func(c *serverConfig) {
				c.Program, c.ServerLoss = filepath.Join(site.Dir, program), time.Second
			}, u)
			w.wake(u)
			w.server.kill(t)
			eventually(t, "no orphan", func() bool { return len(accounts.Processes(u.UID)) == 0 })
		})
	}
}

// TestServerDiesDuringLaunch leaves no process behind, whatever had been reached.
func TestServerDiesDuringLaunch(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	for name, program := range sudoModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := site.User(t)
			w := newWorld(t, func(c *serverConfig) { c.Program = filepath.Join(site.Dir, program) }, u)
			for i := range 15 {
				w.startServer()
				go w.server.rpc.Call("Control.Wake", userOf(u), &Woken{}) //nolint:errcheck // cut off
				time.Sleep(time.Duration(i) * 2 * time.Millisecond)
				w.server.kill(t)
			}
			w.startServer()
			w.startGateway()
			w.mustGet(u, "/work")
			eventually(t, "one process is left", func() bool { return len(accounts.Processes(u.UID)) == 1 })
		})
	}
}
