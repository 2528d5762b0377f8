package launcher_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/testkit/accounts"
)

// TestSquatters binds the ports that will be next, in all the ways the kernel lets another user do it.
func TestSquatters(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	u, mallory := site.User(t), site.User(t)
	w := newRunning(t, nil, u)
	taken := map[int]bool{}
	for i, form := range []string{"127.0.0.1:%d", "0.0.0.0:%d", "[::]:%d", "[::ffff:127.0.0.1]:%d"} {
		port := w.cfg.First + i
		if got := w.background(mallory, "squat", fmt.Sprintf(form, port)); got != "bound" {
			t.Fatalf("squatting %s: %s", form, got)
		}
		taken[port] = true
	}
	route := w.wake(u)
	if taken[route.Port] || route.Port != w.cfg.First+len(taken) {
		t.Fatalf("the instance got port %d, squatted are %v", route.Port, taken)
	}
	if a := w.about(u); a.UID != int(u.UID) {
		t.Fatalf("answer from uid %d", a.UID)
	}
	// And now that the port is the instance's, nobody else gets it.
	for _, form := range []string{"127.0.0.1:%d", "0.0.0.0:%d", "[::]:%d"} {
		if got := w.background(mallory, "squat", fmt.Sprintf(form, route.Port)); !strings.Contains(got, "in use") {
			t.Errorf("%s: %s", form, got)
		}
	}
}

// TestOnlyTheServiceAccountIsServed: whoever connects to the port without being the service account gets no answer.
func TestOnlyTheServiceAccountIsServed(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	u, mallory := site.User(t), site.User(t)
	w := newRunning(t, nil, u)
	port := strconv.Itoa(w.wake(u).Port)
	root := accounts.Account{Name: "root", Home: "/root"}
	for _, who := range []accounts.Account{mallory, u, root} {
		if got := w.as(who, "talk", port); got != "nothing" {
			t.Errorf("%s gets %q", who.Name, got)
		}
	}
	if got := w.as(site.Service, "talk", port); got != "HTTP/1.1 200 OK" {
		t.Errorf("the service account gets %q", got)
	}
}

func TestHelloFromAnotherUser(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	u, mallory := site.User(t), site.User(t)
	w := newRunning(t, nil, u)
	for _, kind := range []string{"hello", "hello-detached"} {
		for _, who := range []accounts.Account{mallory, u, site.Service} {
			if got := w.as(who, kind); got != "refused 403" {
				t.Errorf("%s of %s: %s", kind, who.Name, got)
			}
		}
	}
	w.wake(u)
	for _, who := range []accounts.Account{mallory, u} { // u has an instance now, but this is another process
		if got := w.as(who, "hello"); got != "refused 403" {
			t.Errorf("hello of %s: %s", who.Name, got)
		}
		if got := w.as(who, "ready"); got != "refused 403" {
			t.Errorf("ready of %s: %s", who.Name, got)
		}
	}
}

// TestHelloFromAnotherProcess says hello while a launch is pending, from the right user but from a process that the
// server did not start.
//
//attack:actor compromised instance
//attack:does Lets another process of the user say hello in place of the one that the server started.
//attack:control A hello is accepted from the process that was started, or from one below it.
//attack:remove internal/launcher/hello.go: match == nil && (yes || !known && !s.l.o.Self) => match == nil && (yes || known || !known)
//attack:run another process
//attack:actor local user
//attack:does Says hello to the server as if it were the instance that is being started for another user.
//attack:control A hello belongs to the slot of the uid that the kernel names.
//attack:remove internal/launcher/hello.go: sl := l.slotOfUID(r.Peer.UID())\n\tif sl == nil || r.Peer.PID() <= 1 { => sl := l.slotOfUID(r.Peer.UID())\n\tfor _, other := range l.slots {\n\t\tsl = other\n\t}\n\tif sl == nil || r.Peer.PID() <= 1 {
//attack:remove internal/launcher/hello.go: match == nil && (yes || !known && !s.l.o.Self) => match == nil && (yes || known || !known)
//attack:remove internal/launcher/hello.go: if u != uint64(st.uid) { => if u == 1<<40 {
//attack:run another user
func TestHelloFromAnotherProcess(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	u, mallory := site.User(t), site.User(t)
	script := filepath.Join(t.TempDir(), "slow")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nsleep 60\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	program, err := site.Install("slow", script, accounts.Direct)
	if err != nil {
		t.Fatal(err)
	}
	w := newRunning(t, func(c *serverConfig) { c.Program, c.Start = program, 6*time.Second }, u)
	done := make(chan Woken, 1)
	go func() { done <- w.tryWake(u) }()
	eventually(t, "the launch is pending", func() bool { return len(accounts.Processes(u.UID)) > 0 })
	for name, who := range map[string]accounts.Account{"another process": u, "another user": mallory} {
		t.Run(name, func(t *testing.T) {
			for _, kind := range []string{"hello", "hello-detached"} {
				if got := w.as(who, kind); got != "refused 403" {
					t.Errorf("%s of %s: %s", kind, who.Name, got)
				}
			}
		})
	}
	if r := <-done; !strings.Contains(r.Why, "did not start in time") {
		t.Errorf("wake: %+v", r)
	}
}

// TestResumeOfStrangers: after a restart of the server, only the registered process gets its place back.
func TestResumeOfStrangers(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	u, mallory := site.User(t), site.User(t)
	w := newRunning(t, nil, u)
	route := w.wake(u)
	pid := w.about(u).PID
	sendSignal(t, pid, "STOP") // so that the real one does not come first
	w.server.kill(t)
	w.startServer()
	claim, err := json.Marshal(ipcapi.Hello{Protocol: ipcapi.Protocol, Resume: true, Port: route.Port, Route: route.Route})
	if err != nil {
		t.Fatal(err)
	}
	for _, who := range []accounts.Account{u, mallory} {
		if got := w.as(who, "resume", string(claim)); got != "refused 403" {
			t.Errorf("resume of %s: %s", who.Name, got)
		}
	}
	sendSignal(t, pid, "CONT")
	w.eventually("the real one is adopted", func() bool { return w.counters().Adopted == 1 })
	if got := w.about(u).PID; got != pid {
		t.Fatalf("pid %d, want %d", got, pid)
	}
}

// TestListenerShutDownByItsHolder: a user who ruins the own listener loses nothing but a moment.
func TestListenerShutDownByItsHolder(t *testing.T) {
	t.Parallel()
	u := theSite(t).User(t)
	w := newRunning(t, nil, u)
	w.wake(u)
	pid := w.about(u).PID
	w.post(u, "/deafen")
	w.eventually("the instance serves again", func() bool {
		r := w.get(u, "/work")
		return r.Status == 200 && !strings.HasPrefix(r.Body, fmt.Sprint(pid))
	})
}

// TestForeignServerIsRefused leads an instance that sudo has started to the socket of somebody who is not the account
// that ran sudo. It must not say a word there.
func TestForeignServerIsRefused(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	u, mallory := site.User(t), site.User(t)
	w := newWorld(t, func(c *serverConfig) { c.As = &mallory }, u)
	w.startServer()
	cmd := site.Service.Command("/usr/bin/sudo", "-n", "-u", "#"+u.UID.String(), "--", filepath.Join(site.Dir, directProgram))
	cmd.Stdin = strings.NewReader(w.socket() + "\n")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "connect to server") {
		t.Fatalf("%v: %s", err, out)
	}
	if n := w.counters().HellosRefused; n != 0 {
		t.Errorf("it said hello %d times", n)
	}
	// The control: told the truth about who runs sudo, it would have talked.
	cmd = u.Command(filepath.Join(site.Dir, directProgram))
	cmd.Env = append(cmd.Env, "SUDO_UID="+mallory.UID.String())
	cmd.Stdin = strings.NewReader(w.socket() + "\n")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "No instance of this account") {
		t.Fatalf("%v: %s", err, out)
	}
}
