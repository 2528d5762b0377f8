package launcher_test

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/launcher"
	"ucloud-im/internal/testkit/accounts"
)

func TestIdleInstanceEnds(t *testing.T) {
	t.Parallel()
	u := theSite(t).User(t)
	w := newRunning(t, func(c *serverConfig) { c.Idle = 400 * time.Millisecond }, u)
	w.mustGet(u, "/work")
	eventually(t, "it ends", func() bool { return len(accounts.Processes(u.UID)) == 0 })
	w.eventually("it is listed as stopped", func() bool { return w.info(u).State == launcher.Stopped })
	if c := w.counters(); c.IdleStops != 1 || c.Crashes != 0 {
		t.Errorf("%+v", c)
	}
	w.mustGet(u, "/work")
	if w.info(u).Port == w.cfg.First {
		t.Error("a port was used again within the life of the server")
	}
}

// TestIdleStopNeedsConfirmation: as long as a gateway may still use the route, the instance stays.
func TestIdleStopNeedsConfirmation(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	t.Run("gateway does not answer", func(t *testing.T) {
		t.Parallel()
		u := site.User(t)
		w := newRunning(t, func(c *serverConfig) { c.Idle, c.Confirm = 300*time.Millisecond, 300*time.Millisecond }, u)
		w.mustGet(u, "/work")
		pid := w.about(u).PID
		var ok bool
		w.call(w.gw, "Mute", true, &ok)
		time.Sleep(2 * time.Second)
		if !alive(pid) {
			t.Fatal("it ended though the gateway had not confirmed")
		}
		if _, open := w.list()[userOf(u)]; !open || w.info(u).State != launcher.Running {
			t.Fatalf("%+v", w.info(u))
		}
		w.call(w.gw, "Mute", false, &ok)
		w.eventually("it ends", func() bool { return !alive(pid) })
	})
	t.Run("no gateway", func(t *testing.T) {
		t.Parallel()
		u := site.User(t)
		w := newRunning(t, func(c *serverConfig) { c.Idle = 300 * time.Millisecond }, u)
		w.mustGet(u, "/work")
		pid := int(w.info(u).PID)
		w.gw.kill(t)
		time.Sleep(1500 * time.Millisecond)
		if !alive(pid) {
			t.Skip("it had ended before the gateway did") // the machine was too slow to tell
		}
		if w.info(u).State != launcher.Running {
			t.Fatalf("%+v", w.info(u))
		}
	})
}

// TestStopWaitsForGateways: an instance that is stopped, as one of a user who has disconnected, lives until no gateway
// sends it anything more. A request after the stop hears why there is no instance.
func TestStopWaitsForGateways(t *testing.T) {
	t.Parallel()
	u := theSite(t).User(t)
	w := newRunning(t, func(c *serverConfig) { c.Confirm = time.Hour }, u)
	pid := w.about(u).PID
	var ok, done bool
	w.call(w.server, "Unmap", userOf(u), &ok)
	w.call(w.gw, "Mute", true, &ok)
	stopped := w.server.rpc.Go("Control.Stop", userOf(u), &done, nil)
	w.eventually("the gateway has no route", func() bool { return strings.Contains(w.get(u, "/work").Err, "not connected") })
	time.Sleep(time.Second)
	if !alive(pid) {
		t.Error("it ended though the gateway had not confirmed")
	}
	w.call(w.gw, "Mute", false, &ok)
	if c := <-stopped.Done; c.Error != nil {
		t.Fatal(c.Error)
	}
	if alive(pid) {
		t.Error("it has not ended")
	}
}

// TestIdleStopLosesNoRequest sends requests at about the moments in which the instance wants to end.
func TestIdleStopLosesNoRequest(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	users := []accounts.Account{site.User(t), site.User(t), site.User(t), site.User(t)}
	const idle = 150 * time.Millisecond
	w := newRunning(t, func(c *serverConfig) { c.Idle = idle }, users...)
	end := time.Now().Add(8 * time.Second)
	errs := make(chan string, 1000)
	done := make(chan int)
	for _, u := range users {
		go func() {
			n := 0
			for ; time.Now().Before(end); n++ {
				if r := w.get(u, "/work"); r.Status != 200 {
					errs <- fmt.Sprintf("%+v", r)
				}
				time.Sleep(idle - 20*time.Millisecond + rand.N(60*time.Millisecond))
			}
			done <- n
		}()
	}
	n := 0
	for range users {
		n += <-done
	}
	close(errs)
	for e := range errs {
		t.Error(e)
	}
	c := w.counters()
	t.Logf("%d requests, %d idle stops, %d launches", n, c.IdleStops, c.Launches)
	if c.IdleStops < 3 {
		t.Error("the instances hardly ever ended: the test has not tested much")
	}
	if c.Crashes != 0 {
		t.Errorf("%+v", c)
	}
}

func TestRestartLosesNoRequest(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	u := site.User(t)
	w := newRunning(t, nil, u)
	w.wake(u)
	first := w.about(u).PID
	done := make(chan Loaded, 1)
	go func() {
		var r Loaded
		w.call(w.gw, "Load", Load{Users: []ident.UCloudUser{userOf(u)}, Rate: 200, Duration: 4 * time.Second}, &r)
		done <- r
	}()
	slow := make(chan Fetched, 1) // one that is under way during the first restart
	go func() { slow <- w.get(u, "/work?ms=1500") }()
	time.Sleep(300 * time.Millisecond)
	for range 5 {
		var ok bool
		w.call(w.server, "Restart", userOf(u), &ok)
		time.Sleep(400 * time.Millisecond)
	}
	r := <-done
	if len(r.Failed) > 0 {
		t.Fatalf("%d answered, %d failed: %v", r.OK, len(r.Failed), r.Failed[:min(5, len(r.Failed))])
	}
	if s := <-slow; s.Status != 200 || !strings.HasPrefix(s.Body, fmt.Sprint(first)) {
		t.Errorf("the slow request: %+v", s)
	}
	t.Logf("%d answered, slowest %v", r.OK, r.Slow)
	if i := w.info(u); i.Generation != 6 || i.Port != w.cfg.First {
		t.Errorf("%+v", i)
	}
	w.eventually("the old ones have ended", func() bool { return len(accounts.Processes(u.UID)) == 1 })
}

// TestNewCodeReplacesOld installs another executable, as an upgrade does.
func TestNewCodeReplacesOld(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	u := site.User(t)
	old := filepath.Join(site.Dir, "built")
	program, err := site.Install("upgraded", old, accounts.Direct)
	if err != nil {
		t.Fatal(err)
	}
	w := newRunning(t, func(c *serverConfig) { c.Program = program }, u)
	w.wake(u)
	first := w.about(u)
	fresh := filepath.Join(t.TempDir(), "fresh")
	cmd := exec.Command("go", "build", "-ldflags=-s -w -X main.release=two", "-o", fresh, "ucloud-im/internal/launcher/internal/testinstance")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := site.Install("upgraded", fresh, accounts.Direct); err != nil {
		t.Fatal(err)
	}
	slow := make(chan Fetched, 1)
	go func() { slow <- w.get(u, "/work?ms=15000") }()
	w.eventually("the slow request is under way", func() bool { return w.info(u).Active > 0 })
	var ok bool
	w.call(w.server, "Recheck", []ident.UCloudUser{userOf(u)}, &ok)
	if a := w.about(u); a.Release != first.Release {
		t.Error("it was replaced while a request was under way")
	}
	if s := <-slow; s.Status != 200 {
		t.Errorf("%+v", s)
	}
	w.eventually("the new code serves", func() bool { return w.about(u).Release == "two" })
}

func TestMaxInstances(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	users := []accounts.Account{site.User(t), site.User(t), site.User(t)}
	w := newRunning(t, func(c *serverConfig) { c.MaxInstances = 2 }, users...)
	w.mustGet(users[0], "/work")
	time.Sleep(1100 * time.Millisecond) // idle times are counted in seconds
	w.mustGet(users[1], "/work")
	w.mustGet(users[2], "/work") // the first one makes room
	l := w.list()
	if l[userOf(users[0])].State != launcher.Stopped || l[userOf(users[1])].State != launcher.Running {
		t.Fatalf("%+v", l)
	}
	for _, u := range users[1:] {
		go w.gw.rpc.Call("Control.Fetch", Fetch{User: userOf(u), Method: "GET", Path: "/work?ms=8000", Timeout: 20 * time.Second}, &Fetched{}) //nolint:errcheck // busy work
		w.eventually("it is busy", func() bool { return w.info(u).Active > 0 })
	}
	if r := w.tryWake(users[0]); !strings.Contains(r.Why, "limit") {
		t.Fatalf("%+v", r)
	}
}

func TestDrain(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	a, b := site.User(t), site.User(t)
	w := newRunning(t, nil, a, b)
	w.wake(a)
	slow := make(chan Fetched, 1)
	go func() { slow <- w.get(a, "/work?ms=5000") }()
	w.eventually("it is busy", func() bool { return w.info(a).Active > 0 })
	var left int
	w.call(w.server, "Drain", 20*time.Second, &left)
	if s := <-slow; s.Status != 200 {
		t.Errorf("%+v", s)
	}
	if left != 0 || len(accounts.Processes(a.UID)) != 0 {
		t.Errorf("%d are left", left)
	}
	if r := w.tryWake(b); !strings.Contains(r.Why, "maintenance") {
		t.Errorf("%+v", r)
	}
}
