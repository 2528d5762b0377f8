package jobrender

import (
	"bytes"
	"context"
	"crypto/des" //nolint:gosec // the protocol of VNC
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/applications"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
)

// builtin is a job of a built-in application.
func builtin(t *testing.T, name string) *providerapi.Job {
	t.Helper()
	all, err := applications.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		if d.Application.Metadata.Name == name {
			job := newJob()
			job.Status.ResolvedApplication = &d.Application
			return job
		}
	}
	t.Fatalf("there is no %s", name)
	return nil
}

// plainPaths leaves paths as they are.
func plainPaths(_ context.Context, p string) (string, error) { return p, nil }

func rendered(t *testing.T, job *providerapi.Job, g Grant) *Script {
	t.Helper()
	s, err := Render(t.Context(), job, Site{JobEngine: EngineLocal}, g, plainPaths)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestBatchScript(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "it's $HOME.sh")
	if err := os.WriteFile(file, []byte("printf '[%s]' \"$@\" \"$PWD\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	job := builtin(t, "batch-script")
	job.Specification.Parameters["commands"] = val{Type: "text", Value: jsonOf(t, "x='it'\"'\"'s'\r\nprintf '[%s]' \"$x\" '\\n' $((1+1))")}
	if got := run(t, dir, rendered(t, job, grant(dir)).Text); got != `[it's][\n][2]` {
		t.Errorf("got %s", got)
	}
	// Nothing that is run lies where others may write.
	if left, _ := filepath.Glob(filepath.Join(dir, "*.sh")); len(left) != 1 {
		t.Errorf("in the folder of the job: %v", left)
	}
	job.Specification.Parameters["file"] = val{Type: "file", Path: file}
	job.Specification.Parameters["arguments"] = val{Type: "text", Value: jsonOf(t, "a $(touch pwned) 'b")}
	job.Specification.Parameters["directory"] = val{Type: "file", Path: dir}
	if got := run(t, dir, rendered(t, job, grant(dir)).Text); got != "[a][$(touch][pwned)]['b]["+dir+"]" {
		t.Errorf("got %s", got)
	}
	empty := rendered(t, builtin(t, "batch-script"), grant(dir))
	path := filepath.Join(dir, "empty")
	if err := os.WriteFile(path, empty.Text, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("bash", path).CombinedOutput(); err == nil || !strings.Contains(string(out), "Neither") {
		t.Errorf("got %v %s", err, out)
	}
}

func TestInteractiveShell(t *testing.T) {
	t.Parallel()
	if s := rendered(t, builtin(t, "interactive-shell"), grant("/x")); !strings.Contains(string(s.Text), "exec sleep infinity\n") {
		t.Errorf("got\n%s", s.Text)
	}
}

// TestJupyterLab: the program gets the port and the folder, and a token that stands in no argument.
func TestJupyterLab(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	fake := "#!/bin/bash\nprintf '%s\\n' \"$@\" >" + dir + "/arguments\nprintf %s \"$JUPYTER_TOKEN\" >" + dir + "/seen\n"
	if err := os.WriteFile(filepath.Join(bin, "jupyter"), []byte(fake), 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	job := builtin(t, "jupyterlab")
	job.Specification.Parameters["directory"] = val{Type: "file", Path: "/a b'c"}
	g := grant(dir)
	g.Port = 23817
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, rendered(t, job, g).Text, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bash", "--noprofile", "--norc", script)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	arguments, token := read("arguments"), read(".jupyterlab/token")
	if !strings.Contains(arguments, "--ServerApp.port=23817\n") || !strings.Contains(arguments, "--ServerApp.root_dir=/a b'c\n") {
		t.Errorf("got %s", arguments)
	}
	if len(token) < 32 || read("seen") != token || strings.Contains(arguments, token) || strings.Contains(string(out), token) || read(PortFile) != "23817\n" {
		t.Errorf("token %q, output %s", token, out)
	}
	if info, err := os.Stat(filepath.Join(dir, ".jupyterlab/token")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got %v, %v", info, err)
	}
	// Others of the project have made the folder, or have put a link in its place: no token is given to them.
	strange := map[string]func(path string) error{
		"open": func(path string) error {
			if err := os.Mkdir(path, 0o700); err != nil {
				return err
			}
			return os.Chmod(path, 0o770) //nolint:gosec // that is the point
		},
		"a link": func(path string) error { return os.Symlink(".", path) },
	}
	if os.Getuid() == 0 {
		strange["another's"] = func(path string) error {
			if err := os.Mkdir(path, 0o700); err != nil {
				return err
			}
			return os.Chown(path, 65534, 65534)
		}
	}
	if err := os.Chmod(dir, 0o770); err != nil { //nolint:gosec // folders of jobs are so
		t.Fatal(err)
	}
	for name, prepare := range strange {
		if err := errors.Join(os.RemoveAll(filepath.Join(dir, ".jupyterlab")), os.RemoveAll(filepath.Join(dir, "arguments")), prepare(filepath.Join(dir, ".jupyterlab"))); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("bash", "--noprofile", "--norc", script)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		_, started := os.Stat(filepath.Join(dir, "arguments"))
		_, told := os.Stat(filepath.Join(dir, ".jupyterlab/token"))
		if err == nil || started == nil || told == nil || !strings.Contains(string(out), "yours alone") {
			t.Errorf("%s: %v, %v, %v, %s", name, err, started, told, out)
		}
	}
}

// TestExchangedPassword: a desktop does not start with a password that somebody else may know.
func TestExchangedPassword(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Xtigervnc", "websockify", "xauth", "mcookie", "vncpasswd"} {
		fake := "#!/bin/bash\n[ " + name + " != vncpasswd ] || cat >" + dir + "/taken\nexit 1\n"
		if err := os.WriteFile(filepath.Join(bin, name), []byte(fake), 0o700); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
	}
	g := grant(dir)
	g.Port, g.Password = 23817, filepath.Join(dir, PasswordFile)
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, rendered(t, builtin(t, "remote-desktop"), g).Text, 0o600); err != nil {
		t.Fatal(err)
	}
	mode := func(m os.FileMode) func() error { return func() error { return os.Chmod(g.Password, m) } }
	cases := map[string]func() error{"fine": mode(0o600), "readable": mode(0o640), "writable": mode(0o622), "missing": func() error { return os.Remove(g.Password) }}
	if os.Getuid() == 0 {
		cases["another's"] = func() error { return os.Chown(g.Password, 65534, 65534) }
	}
	for name, change := range cases {
		if err := errors.Join(os.RemoveAll(g.Password), os.RemoveAll(filepath.Join(dir, "taken")), os.WriteFile(g.Password, []byte("s3cr3tPW"), 0o600), change()); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("bash", "--noprofile", "--norc", script)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "TMPDIR="+dir)
		out, err := cmd.CombinedOutput()
		taken, _ := os.ReadFile(filepath.Join(dir, "taken"))
		if err == nil || (string(taken) == "s3cr3tPW") != (name == "fine") {
			t.Errorf("%s: %v, took %q: %s", name, err, taken, out)
		}
	}
}

// TestPasswordOfDesktop: the file that Xtigervnc gets is the same one with each of the programs that can make it.
func TestPasswordOfDesktop(t *testing.T) {
	t.Parallel()
	const want = "\x65\x17\x21\xad\xce\x67\x1f\xc8" // s3cr3tPW; longer ones are cut
	for _, program := range []string{"openssl", "tigervncpasswd", "vncpasswd"} {
		t.Run(program, func(t *testing.T) {
			t.Parallel()
			installed := program
			if program == "vncpasswd" {
				installed = "tigervncpasswd" // Debian's vncpasswd is a link that may lead elsewhere
			}
			testkit.Require(t, testkit.Component(installed))
			found, err := testkit.Program(installed)
			if err != nil {
				t.Fatal(err)
			}
			// Nothing but what is here is found by the script.
			dir, bin := t.TempDir(), t.TempDir()
			if err := os.Symlink(found, filepath.Join(bin, program)); err != nil {
				t.Fatal(err)
			}
			for _, tool := range []string{"bash", "mktemp", "rm", "stat", "head", "tr", "mkfifo", "id", "cp", "cat"} {
				path, err := exec.LookPath(tool)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(path, filepath.Join(bin, tool)); err != nil {
					t.Fatal(err)
				}
			}
			for _, name := range []string{"Xtigervnc", "websockify", "xauth", "mcookie"} {
				fake := "#!" + filepath.Join(bin, "bash") + "\nwhile [ $# -gt 0 ]; do [ \"$1\" = -PasswordFile ] && cp \"$2\" " + dir + "/taken; shift; done; exit 0\n"
				if err := os.WriteFile(filepath.Join(bin, name), []byte(fake), 0o700); err != nil { //nolint:gosec // a program
					t.Fatal(err)
				}
			}
			g := grant(dir)
			g.Port, g.Password = 23817, filepath.Join(dir, PasswordFile)
			script := filepath.Join(dir, "script")
			if err := errors.Join(os.WriteFile(g.Password, []byte("s3cr3tPW and more\n"), 0o600),
				os.WriteFile(script, rendered(t, builtin(t, "remote-desktop"), g).Text, 0o600)); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("bash", "--noprofile", "--norc", script)
			cmd.Dir, cmd.Env = dir, []string{"PATH=" + bin, "TMPDIR=" + dir}
			out, _ := cmd.CombinedOutput() // there is no desktop, so it fails in the end
			if taken, err := os.ReadFile(filepath.Join(dir, "taken")); err != nil || string(taken) != want {
				t.Errorf("got %q, %v: %s", taken, err, out)
			}
		})
	}
}

// TestRemoteDesktop starts the real thing and logs in as a viewer does, with the password of the file.
func TestRemoteDesktop(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Component("Xtigervnc", "websockify", "xauth", "mcookie"))
	dir := t.TempDir()
	const password = "s3cr3tPW"
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grant(dir)
	g.Port = listener.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // a TCP listener
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	g.Password = filepath.Join(dir, PasswordFile)
	if err := os.WriteFile(g.Password, []byte(password), 0o600); err != nil {
		t.Fatal(err)
	}
	job := builtin(t, "remote-desktop")
	job.Specification.Parameters["session"] = val{Type: "text", Value: jsonOf(t, "sleep 300")}
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, rendered(t, job, g).Text, 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command("bash", "--noprofile", "--norc", script)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "TMPDIR="+dir)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	ended := false
	defer func() {
		if !ended {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // the test has failed; nothing may stay
			<-done
		}
	}()

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var conn *websocket.Conn
	for conn == nil {
		select {
		case err := <-done:
			ended = true
			t.Fatalf("the desktop ended: %v\n%s", err, log.String())
		case <-ctx.Done():
			t.Fatal("the desktop did not start")
		case <-time.After(100 * time.Millisecond):
		}
		c, response, err := websocket.Dial(ctx, fmt.Sprintf("ws://127.0.0.1:%d/websockify", g.Port), &websocket.DialOptions{Subprotocols: []string{"binary"}, HTTPHeader: http.Header{}})
		if response != nil && response.Body != nil {
			_ = response.Body.Close()
		}
		if err == nil {
			conn = c
		}
	}
	if refused := logIn(ctx, t, websocket.NetConn(ctx, conn, websocket.MessageBinary), "wrong"); refused == 0 {
		t.Error("a wrong password was accepted")
	}
	conn, response, err := websocket.Dial(ctx, fmt.Sprintf("ws://127.0.0.1:%d/websockify", g.Port), &websocket.DialOptions{Subprotocols: []string{"binary"}})
	if err != nil {
		t.Fatal(err)
	}
	if response.Body != nil {
		_ = response.Body.Close()
	}
	if result := logIn(ctx, t, websocket.NetConn(ctx, conn, websocket.MessageBinary), password); result != 0 {
		t.Errorf("the password was refused: %d", result)
	}
	// The password is in no argument of a process of the job, and what the job has made is removed at its end.
	if arguments := argumentsOf(cmd.Process.Pid); strings.Contains(arguments, password) || !strings.Contains(arguments, "Xtigervnc") {
		t.Errorf("got %s", arguments)
	}
	if err := syscall.Kill(cmd.Process.Pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-done:
		ended = true
	case <-ctx.Done():
		t.Fatal("the desktop did not end")
	}
	if strings.Contains(log.String(), password) {
		t.Error("the password stands in the log")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "desktop.*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// argumentsOf are the command lines of the processes in a group.
func argumentsOf(group int) string {
	var all strings.Builder
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		var pid int
		if _, err := fmt.Sscanf(f, "/proc/%d/", &pid); err != nil {
			continue
		}
		if g, err := syscall.Getpgid(pid); err != nil || g != group {
			continue
		}
		b, _ := os.ReadFile(f)
		all.WriteString(strings.ReplaceAll(string(b), "\x00", " ") + "\n")
	}
	return all.String()
}

// logIn speaks RFB up to the answer to the password (RFC 6143 section 7.1); 0 is success.
func logIn(ctx context.Context, t *testing.T, c net.Conn, password string) byte {
	t.Helper()
	defer c.Close() //nolint:errcheck // a test's connection
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			t.Fatal(err)
		}
	}
	read := func(n int) []byte {
		b := make([]byte, n)
		for at := 0; at < n; {
			got, err := c.Read(b[at:])
			if err != nil {
				t.Fatalf("after %d of %d bytes: %v", at, n, err)
			}
			at += got
		}
		return b
	}
	write := func(b []byte) {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if v := string(read(12)); !strings.HasPrefix(v, "RFB 003.") {
		t.Fatalf("got %q", v)
	}
	write([]byte("RFB 003.008\n"))
	const vncAuth = 2
	if types := read(int(read(1)[0])); len(types) != 1 || types[0] != vncAuth {
		t.Fatalf("security types %v", types)
	}
	write([]byte{vncAuth})
	challenge := read(16)
	key := make([]byte, 8)
	copy(key, password)
	for i, b := range key { // the bits of each byte are the other way round
		var r byte
		for range 8 {
			r, b = r<<1|b&1, b>>1
		}
		key[i] = r
	}
	block, err := des.NewCipher(key) //nolint:gosec // as above
	if err != nil {
		t.Fatal(err)
	}
	block.Encrypt(challenge[:8], challenge[:8])
	block.Encrypt(challenge[8:], challenge[8:])
	write(challenge)
	return read(4)[3]
}
