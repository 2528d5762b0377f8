//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/accounts"
)

// load sends requests at a steady rate, as Core does: no repetition here, every answer counts.
type load struct {
	sent, failed atomic.Int64
	mu           sync.Mutex
	failures     []string
	stop         chan struct{}
	stopOnce     sync.Once
	wg           sync.WaitGroup
}

const loadRate = 200 // requests per second

// startLoad browses the homes of the people in turn. accept says which other outcomes than 200 are no failure; err is
// set when there was no answer.
func (w *world) startLoad(people []*person, accept func(status int, err error) bool) *load {
	w.t.Helper()
	l := &load{stop: make(chan struct{})}
	w.t.Cleanup(l.halt) // also when the test ends early
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: 10 * time.Second}
	var bodies [][]byte
	for _, p := range people {
		body, err := json.Marshal(providerapi.FilesBrowse{
			ResolvedCollection: w.driveOf(p), Browse: providerapi.BrowseParams{Flags: providerapi.FileFlags{Path: ptr(p.home())}},
		})
		w.must(err)
		bodies = append(bodies, body)
	}
	one := func(i int) {
		p, body := people[i%len(people)], bodies[i%len(people)]
		req, err := http.NewRequest(http.MethodPost, w.gateURL+"/ucloud/"+provider+"/files/browse", bytes.NewReader(body))
		if err != nil {
			panic(err)
		}
		req.GetBody = nil // a client that repeats would hide failures
		req.Header.Set("Authorization", "Bearer "+w.core.ServiceToken())
		req.Header.Set(ident.HeaderUser, p.name.HeaderValue())
		l.sent.Add(1)
		status, text := 0, ""
		res, err := client.Do(req)
		if err == nil {
			status = res.StatusCode
			var data []byte
			data, err = io.ReadAll(res.Body)
			res.Body.Close()
			text = string(data)
		}
		if (err != nil || status != http.StatusOK) && !accept(status, err) {
			l.failed.Add(1)
			l.mu.Lock()
			if len(l.failures) < 20 {
				l.failures = append(l.failures, fmt.Sprintf("%s %s: %d %.200s %v", time.Now().Format("15:04:05.000"), p.name, status, text, err))
			}
			l.mu.Unlock()
		}
	}
	l.wg.Go(func() {
		tick := time.NewTicker(time.Second / loadRate)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-l.stop:
				return
			case <-tick.C:
				l.wg.Go(func() { one(i) })
			}
		}
	})
	return l
}

func (l *load) halt() {
	l.stopOnce.Do(func() { close(l.stop) })
	l.wg.Wait()
}

// end stops the load and reports failures.
func (l *load) end(t *testing.T) {
	t.Helper()
	testkit.Eventually(t, "enough requests", func() bool { return l.sent.Load() >= 2*loadRate })
	l.halt()
	t.Logf("%d requests, %d failed", l.sent.Load(), l.failed.Load())
	if l.failed.Load() > 0 {
		t.Errorf("%d of %d requests failed:\n%s", l.failed.Load(), l.sent.Load(), strings.Join(l.failures, "\n"))
	}
}

func nothing(int, error) bool { return false }

// running starts the instances of all people.
func (w *world) running(people ...*person) {
	w.t.Helper()
	w.connect(people...)
	for _, p := range people {
		if _, err := w.browse(p, p.home()); err != nil {
			w.t.Fatal(err)
		}
	}
}

// TestRestartsUnderLoad: server restart, gateway upgrade, new ucloud-user: not one request fails.
func TestRestartsUnderLoad(t *testing.T) {
	w := newWorld(t, settings{})
	ada, grace := w.addPerson("Ada#1815"), w.addPerson("Grace#1906")
	w.running(ada, grace)
	l := w.startLoad([]*person{ada, grace}, nothing)
	time.Sleep(time.Second)

	before := w.instances()
	for range 2 {
		starts := w.server.startCount()
		w.server.signal(syscall.SIGTERM)
		w.waitServer(starts)
		testkit.Eventually(t, "the instances to be adopted", func() bool {
			now := w.instances()
			return now[ada.name].PID == before[ada.name].PID && now[grace.name].PID == before[grace.name].PID
		})
	}

	t.Log("upgrading the gateway")
	old := w.gateway.pid()
	w.gateway.mu.Lock()
	w.gateway.replaced = true
	w.gateway.mu.Unlock()
	w.installUcloud(w.ucloud)
	w.gateway.signal(syscall.SIGUSR2)
	testkit.Eventually(t, "the old gateway to end", func() bool { return syscall.Kill(old, 0) != nil })

	t.Log("replacing ucloud-user")
	w.newUserProgram()
	starts := w.server.startCount()
	w.server.signal(syscall.SIGTERM) // the server looks at the program when it starts
	w.waitServer(starts)
	testkit.Eventually(t, "instances with the new code", func() bool {
		now := w.instances()
		return now[ada.name].PID != before[ada.name].PID && now[grace.name].PID != before[grace.name].PID &&
			now[ada.name].PID != 0 && now[grace.name].PID != 0
	})
	time.Sleep(time.Second)
	l.end(t)
	// The successor of the gateway is nobody's child here.
	t.Cleanup(func() { _ = exec.Command("pkill", "-TERM", "-u", w.site.Service.UID.String(), "-f", "gateway").Run() })
}

// waitServer waits for a server that has been started after the given number of starts, and answers.
func (w *world) waitServer(starts int) {
	w.t.Helper()
	testkit.Eventually(w.t, "the server to be back", func() bool {
		if w.server.startCount() <= starts {
			return false
		}
		_, err := w.cli("status")
		return exitCode(err) != 69
	})
}

// newUserProgram installs an executable that does the same and is not the same file.
func (w *world) newUserProgram() {
	w.t.Helper()
	data, err := os.ReadFile(w.user)
	w.must(err)
	next := filepath.Join(w.t.TempDir(), "ucloud-user")
	// Bytes behind the end of an ELF file change nothing but its identity.
	w.must(os.WriteFile(next, append(data, []byte("next version")...), 0o755))
	rename := w.user + ".new"
	content, err := os.ReadFile(next)
	w.must(err)
	w.must(os.WriteFile(rename, content, 0o755))
	w.must(os.Chmod(rename, 0o755))
	w.must(os.Rename(rename, w.user))
}

// TestIdleStopLosesNothing: instances end when they are idle, while requests keep coming now and then.
func TestIdleStopLosesNothing(t *testing.T) {
	w := newWorld(t, settings{idle: "300ms"})
	ada := w.addPerson("Ada#1815")
	w.running(ada)
	pids := map[int]bool{}
	for range 60 {
		if _, err := w.browse(ada, ada.home()); err != nil {
			t.Fatal(err)
		}
		for _, pid := range accounts.Processes(ada.account.UID) {
			pids[pid] = true
		}
		// Around the time at which the instance wants to end.
		time.Sleep(280*time.Millisecond + rand.N(60*time.Millisecond))
	}
	if len(pids) < 3 {
		t.Errorf("the instance ended %d times only", len(pids)-1)
	}
}

// TestKillAnything kills each part at random moments under load. Requests to parts that live must not fail; mappings
// and deliveries survive; no process is left behind.
func TestKillAnything(t *testing.T) {
	// A PAM session: there is a sudo to kill, too. More crashes are allowed than an operator would.
	w := newWorld(t, settings{rule: accounts.PAM, instances: "restart: { max: 1000 }"})
	ada, grace := w.addPerson("Ada#1815"), w.addPerson("Grace#1906")
	w.running(ada, grace)

	t.Run("server", func(t *testing.T) {
		l := w.startLoad([]*person{ada, grace}, nothing)
		for range 5 {
			starts := w.server.startCount()
			time.Sleep(rand.N(400 * time.Millisecond))
			w.server.signal(syscall.SIGKILL)
			w.waitServer(starts)
		}
		l.end(t)
	})
	t.Run("instance", func(t *testing.T) {
		// Ada's is killed: her request under way is lost, and only that. Grace's must not notice.
		l := w.startLoad([]*person{grace}, nothing)
		var lost int
		for range 5 {
			done := make(chan error, 1)
			go func() { _, err := w.browse(ada, ada.home()); done <- err }()
			time.Sleep(rand.N(20 * time.Millisecond))
			accounts.KillAll(ada.account.UID)
			if err := <-done; err != nil {
				lost++
				if s := status(err); s != http.StatusBadGateway {
					t.Errorf("a lost request is %v", err)
				}
			}
			testkit.Eventually(t, "Ada to be served again", func() bool { _, err := w.browse(ada, ada.home()); return err == nil })
		}
		t.Logf("%d of 5 requests were lost with their instance", lost)
		l.end(t)
	})
	t.Run("sudo", func(t *testing.T) {
		l := w.startLoad([]*person{ada, grace}, nothing)
		for range 5 {
			time.Sleep(rand.N(100 * time.Millisecond))
			_ = exec.Command("pkill", "-KILL", "-x", "sudo").Run()
		}
		l.end(t)
	})
	t.Run("gateway", func(t *testing.T) {
		before := w.instances()
		// Nothing holds the gateway's socket here, so requests fail while it is away; everything else lives on.
		l := w.startLoad([]*person{ada, grace}, func(status int, err error) bool { return err != nil })
		for range 5 {
			starts := w.gateway.startCount()
			time.Sleep(rand.N(300 * time.Millisecond))
			w.gateway.signal(syscall.SIGKILL)
			testkit.Eventually(t, "the gateway to be back", func() bool { return w.gateway.startCount() > starts })
			testkit.Eventually(t, "an answer", func() bool { _, err := w.browse(grace, grace.home()); return err == nil })
		}
		l.end(t)
		if now := w.instances(); now[ada.name].PID != before[ada.name].PID {
			t.Error("an instance did not survive the gateway")
		}
	})
	t.Run("approval", func(t *testing.T) {
		// The server dies at random moments around an approval; it arrives all the same, and exactly once.
		for i := range 4 {
			p := w.addPerson(ident.UCloudUser(fmt.Sprintf("New#%d", i)))
			ticket := w.ticket(p)
			go func() {
				time.Sleep(rand.N(150 * time.Millisecond))
				w.server.signal(syscall.SIGKILL)
			}()
			for range 20 { // the command may be cut off; a ticket that is used already says so
				if _, err := w.cli("connect", ticket, p.account.Name, "--yes"); err == nil || exitCode(err) == 5 {
					break
				}
				time.Sleep(200 * time.Millisecond)
			}
			testkit.Eventually(t, "the approval at Core", func() bool { return w.core.Connected(p.name) })
			w.waitDrive(p)
		}
	})
	t.Run("nothing is left behind", func(t *testing.T) {
		w.server.stop()
		// Instances wait for a server for a while (userInstances.serverLossGrace), so end them as an operator would.
		for _, p := range []*person{ada, grace} {
			if n := len(accounts.Processes(p.account.UID)); n > 1 {
				t.Errorf("%s has %d processes", p.name, n)
			}
		}
		if n := countProcesses("sudo"); n > 0 {
			t.Logf("%d sudo processes on the machine", n)
		}
	})
}

func countProcesses(name string) int {
	n := 0
	comms, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, file := range comms {
		data, _ := os.ReadFile(file)
		if strings.TrimSpace(string(data)) == name {
			n++
		}
	}
	return n
}

// TestHungInstance: an instance that does not react is ended although the server may not signal it.
func TestHungInstance(t *testing.T) {
	w := newWorld(t, settings{})
	ada := w.addPerson("Ada#1815")
	w.running(ada)
	pid := w.instances()[ada.name].PID
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if _, err := w.cli("instances", "stop", string(ada.name), "--yes"); err != nil {
		t.Error(err)
	}
	testkit.Eventually(t, "the hung instance to end", func() bool { return syscall.Kill(pid, 0) != nil })
	if _, err := w.browse(ada, ada.home()); err != nil {
		t.Error(err)
	}
}

// TestMembership: whoever leaves the group loses the instance at once, and gets none.
func TestMembership(t *testing.T) {
	w := newWorld(t, settings{})
	ada := w.addPerson("Ada#1815")
	w.running(ada)
	accounts.Admin(t, "gpasswd", "-d", ada.account.Name, w.site.Group)
	testkit.Eventually(t, "the instance to end", func() bool { return len(accounts.Processes(ada.account.UID)) == 0 })
	if _, err := w.browse(ada, ada.home()); status(err) != 449 {
		t.Errorf("browse outside of the group: %v", err)
	}
	accounts.Admin(t, "gpasswd", "-a", ada.account.Name, w.site.Group)
	testkit.Eventually(t, "the instance to be allowed again", func() bool { _, err := w.browse(ada, ada.home()); return err == nil })
	accounts.Admin(t, "chage", "-E", "0", ada.account.Name)
	testkit.Eventually(t, "the instance of an expired account to end", func() bool { return len(accounts.Processes(ada.account.UID)) == 0 })
	if _, err := w.browse(ada, ada.home()); status(err) != 449 {
		t.Errorf("browse with an expired account: %v", err)
	}
}
