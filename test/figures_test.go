//go:build e2e && bench

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
)

// The tests of this file measure, and print lines as benchmarks do; the program in test/bench runs them. They need
// accounts that Slurm's daemons know, which those of that program are not.

func quick() bool { return os.Getenv("BENCH_QUICK") == "1" }

// figures prints durations as a line of a benchmark.
func figures(name string, d []time.Duration) {
	slices.Sort(d)
	at := func(q float64) float64 { return float64(d[int(q*float64(len(d)-1)+0.5)].Nanoseconds()) / 1e6 }
	fmt.Printf("Benchmark%s %d %.4f p50-ms %.4f p99-ms %.4f max-ms\n", name, len(d), at(0.5), at(0.99), at(1))
}

// TestFigureLatency: from the moment in which a job is suspended or goes on in Slurm until its state at Core changes. The
// changes are spread evenly over the interval of the monitor.
func TestFigureLatency(t *testing.T) {
	t.Run("Second", func(t *testing.T) {
		measureLatency(t, "jobs: 1s, usage: 5s", time.Second, []string{"suspend", "resume", "suspend", "resume"})
	})
	if !quick() {
		t.Run("Default", func(t *testing.T) { measureLatency(t, "usage: 60s", 15*time.Second, []string{"suspend"}) })
	}
}

func measureLatency(t *testing.T, poll string, interval time.Duration, changes []string) {
	c := newCluster(t, computeSettings{poll: poll})
	const jobs = 8
	var ids, numbers []string
	for i := range jobs {
		ids = append(ids, c.submit(c.batch(fmt.Sprintf("Latency %d", i), "sleep 280")))
	}
	for _, id := range ids {
		c.becomes(id, providerapi.JobRunning)
		numbers = append(numbers, c.slurmID(id))
	}
	var mu sync.Mutex
	var took []time.Duration
	for _, change := range changes {
		want := map[string]providerapi.JobState{"suspend": providerapi.JobInQueue, "resume": providerapi.JobRunning}[change]
		var wg sync.WaitGroup
		for i, id := range ids {
			c.slurm.Run(t, "scontrol", change, numbers[i])
			at := time.Now()
			wg.Go(func() {
				for time.Since(at) < testkit.Patience {
					if j, ok := c.core.Job(id); ok && j.Status.State == want {
						mu.Lock()
						defer mu.Unlock()
						took = append(took, time.Since(at))
						return
					}
					time.Sleep(2 * time.Millisecond)
				}
				t.Errorf("job %s did not become %s at Core", id, want)
			})
			time.Sleep(interval / jobs)
		}
		wg.Wait()
	}
	if t.Failed() {
		return
	}
	figures("Latency/"+filepath.Base(t.Name()), took)
	c.slurm.Run(t, "scancel", "--account="+c.account)
}

// TestFigureKeystroke: a key and its echo by a program in a terminal through gateway and instance, and in one of plain ssh
// to this machine, in turns.
func TestFigureKeystroke(t *testing.T) {
	w := newWorld(t, settings{})
	ada := w.addPerson("Ada#1815")
	w.running(ada)
	const echo = "stty raw -echo; echo rea''dy.; exec cat"
	s, err := w.see(w.desk(ada).terminal(""), ada)
	w.must(err)
	s.input(echo + "\r")
	s.until("ready")
	// The keys differ, so that the echo of one is not taken for that of the next.
	ours := func(key string) error {
		s.out.Reset()
		s.input(key)
		for s.out.Len() == 0 {
			if err := s.next(); err != nil {
				return err
			}
		}
		if got := s.out.String(); got != key {
			return fmt.Errorf("the echo of %q is %q", key, got)
		}
		return nil
	}
	in, out := w.ssh(ada, echo)
	buf := make([]byte, 1024)
	for got := ""; !strings.Contains(got, "ready.\n"); {
		n, err := out.Read(buf)
		w.must(err)
		got += string(buf[:n])
	}
	plain := func(key string) error {
		if _, err := io.WriteString(in, key); err != nil {
			return err
		}
		n, err := out.Read(buf)
		if err == nil && string(buf[:n]) != key {
			err = fmt.Errorf("the echo of %q is %q", key, buf[:n])
		}
		return err
	}
	turns := 20
	if quick() {
		turns = 2
	}
	took := map[string][]time.Duration{}
	for range turns {
		for name, key := range map[string]func(key string) error{"Gateway": ours, "SSH": plain} {
			for i := range 100 {
				at := time.Now()
				w.must(key(string(rune('a' + i%26))))
				took[name] = append(took[name], time.Since(at))
			}
		}
	}
	for name, d := range took {
		figures("Keystroke/"+name, d)
	}
}

// ssh runs a command in a terminal over ssh to this machine, by a server on the loopback interface for this person alone, with
// keys made here. The server runs as root as everywhere: without that it may not set the group of the terminal.
func (w *world) ssh(p *person, command string) (io.Writer, io.Reader) {
	w.t.Helper()
	testkit.Require(w.t, testkit.Component("sshd", "ssh", "ssh-keygen"))
	daemon, err := testkit.Program("sshd")
	w.must(err)
	dir := filepath.Join(p.account.Home, "ssh-bench")
	w.must(os.Mkdir(dir, 0o700))
	for _, name := range []string{"host", "user"} {
		w.must(exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, name)).Run())
	}
	// An account with "!" for its password is locked for sshd; neither has one.
	w.must(exec.Command("usermod", "-p", "*", p.account.Name).Run())
	if err := os.Mkdir("/run/sshd", 0o755); err == nil { // sshd demands it
		w.t.Cleanup(func() { _ = os.Remove("/run/sshd") })
	}
	port := freePort(w.t)
	config := filepath.Join(dir, "config")
	w.must(os.WriteFile(config, fmt.Appendf(nil, `ListenAddress 127.0.0.1:%d
HostKey %[2]s/host
AuthorizedKeysFile %[2]s/user.pub
AllowUsers %[3]s
PermitRootLogin no
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PidFile none
`, port, dir, p.account.Name), 0o600))
	w.must(exec.Command("chown", p.account.Name+":", dir, filepath.Join(dir, "user"), filepath.Join(dir, "user.pub")).Run())
	start := func(as *syscall.Credential, program string, args ...string) *exec.Cmd {
		cmd := exec.Command(program, args...)
		cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/bin:/bin", "TERM=dumb", "HOME=" + p.account.Home}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: as}
		return cmd
	}
	stop := func(cmd *exec.Cmd) {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // may have ended
		_ = cmd.Wait()
	}
	log := &ring{}
	server := start(nil, daemon, "-D", "-e", "-f", config)
	server.Stderr, server.WaitDelay = log, time.Second
	w.must(server.Start())
	w.t.Cleanup(func() {
		stop(server)
		if w.t.Failed() {
			w.t.Logf("log of sshd:\n%s", log)
		}
	})
	testkit.Eventually(w.t, "sshd to listen", func() bool { return strings.Contains(log.String(), "Server listening") })
	client := start(p.account.Credential(), "ssh", "-F", "/dev/null", "-tt", "-i", filepath.Join(dir, "user"), "-p", fmt.Sprint(port), "-o", "BatchMode=yes",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
		"-o", "IgnoreUnknown=ObscureKeystrokeTiming", "-o", "ObscureKeystrokeTiming=no", // it would wait before it sends
		p.account.Name+"@127.0.0.1", command)
	in, err := client.StdinPipe()
	w.must(err)
	out, err := client.StdoutPipe()
	w.must(err)
	client.Stderr, client.WaitDelay = log, time.Second
	w.must(client.Start())
	w.t.Cleanup(func() { stop(client) })
	return in, out
}

// TestFigureLogs: how fast the log of a job comes to Core through gateway and instance, while it is written and after the
// end of the job.
func TestFigureLogs(t *testing.T) {
	size := 96 << 20
	if quick() {
		size = 8 << 20
	}
	c := newCluster(t, computeSettings{slurm: "    logReplay: 256MiB\n"})
	gate := filepath.Join(c.ada.account.Home, "go")
	id := c.submit(c.batch("Much to say", fmt.Sprintf("while [ ! -e '%s' ]; do sleep 0.05; done; yes 'Step 1234567: energy -1.234567890123e+05, temperature 300.12' | head -c %d", gate, size)))
	c.becomes(id, providerapi.JobRunning)
	receive := func(name string, release func()) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*testkit.Patience)
		defer cancel()
		conn := c.logSocket(ctx, id)
		defer conn.CloseNow()
		release()
		var first time.Time
		n, skipped := 0, 0
		for n < size {
			_, data, err := conn.Read(ctx)
			if err != nil {
				t.Fatalf("%s: %v after %d bytes of the log", name, err, n)
			}
			var m struct{ Payload struct{ Stdout string } }
			c.must(json.Unmarshal(data, &m))
			if n += len(m.Payload.Stdout); first.IsZero() && n > 0 {
				first, skipped = time.Now(), n
			}
		}
		took := time.Since(first)
		fmt.Printf("BenchmarkLogs/%s 1 %d ns/op %.2f MiB/s\n", name, took.Nanoseconds(), float64(n-skipped)/(1<<20)/took.Seconds())
	}
	receive("Live", func() { c.must(os.WriteFile(gate, nil, 0o644)) })
	c.becomes(id, providerapi.JobSuccess)
	receive("Finished", func() {})
}

// logSocket asks for the log of a job as Core does (contract 21 section 3.2).
func (c *cluster) logSocket(ctx context.Context, id string) *websocket.Conn {
	c.t.Helper()
	conn, _, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(c.gateURL, "http")+"/ucloud/jobs.provider."+provider+"/websocket?usernameHint="+c.ada.name.HintValue(),
		&websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {"Bearer " + c.core.ServiceToken()}}})
	c.must(err)
	conn.SetReadLimit(16 << 20)
	data, err := json.Marshal(map[string]any{
		"call": "jobs.provider." + provider + ".follow", "streamId": "ignored", "payload": map[string]any{"type": "init", "job": c.at(id)},
	})
	c.must(errors.Join(err, conn.Write(ctx, websocket.MessageText, data)))
	return conn
}
