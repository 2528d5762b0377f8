package ipc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
)

// testGroup is a supplementary group of child processes. No account of it exists, nor is one needed.
const testGroup ident.GID = 3_900_000_001

// playRole is what a child process does.
func playRole(role, path string) error {
	ctx := context.Background()
	switch role {
	case "who": // say who the server thinks we are
		c, err := Dial(ctx, path, DialOptions{})
		if err != nil {
			return err
		}
		who, err := Invoke(ctx, c, whoCall, text{})
		if err != nil {
			return err
		}
		fmt.Printf("%d %d %v %v\n", who.UID, who.GID, who.PID == int32(os.Getpid()), who.Groups)
	case "connections": // hold as many connections as there are to be had
		var held int
		var first *net.UnixConn
		for range 100 {
			conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: path})
			if err != nil {
				return err
			}
			defer conn.Close()
			if first == nil {
				first = conn
			}
			// A refused connection is closed at once, an accepted one stays open.
			conn.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := conn.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
				held++
				continue
			}
			break
		}
		fmt.Println("held", held)
		io.Copy(io.Discard, os.Stdin)
	case "flood": // send calls as fast as possible on as many connections as possible
		fmt.Println("flooding")
		go func() {
			io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		}()
		for range 64 {
			go func() {
				for {
					c, err := Dial(ctx, path, DialOptions{})
					if err != nil {
						continue
					}
					for range 1000 {
						if _, err := Invoke(ctx, c, echoCall, text{strings.Repeat("x", 100_000)}); errors.Is(err, ErrDisconnected) {
							break
						}
					}
					c.Close()
				}
			}()
		}
		select {}
	case "serve": // be a server, inside another user namespace
		s := NewServer(ServerOptions{Authorize: grantAll})
		Handle(s, whoCall, func(_ context.Context, r *Request, _ text) (whoIs, error) {
			return whoIs{UID: r.Peer.UID()}, nil
		})
		l, err := Listen(path)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(ctx)
		go func() {
			io.Copy(io.Discard, os.Stdin)
			cancel()
		}()
		fmt.Println("serving")
		return s.Serve(ctx, l)
	}
	return nil
}

// child starts the test binary in a role and gives its first line. The process ends with the test.
func child(t *testing.T, role, path string, attr *syscall.SysProcAttr) (line string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe") // the path of the binary may be closed to the other account
	cmd.Dir = "/"
	cmd.Env = []string{"IPC_TEST_ROLE=" + role, "IPC_TEST_SOCKET=" + path}
	cmd.SysProcAttr = attr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) {
			skip(t, "the kernel does not allow this kind of process: "+err.Error())
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	line, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("child %s said %q, %v", role, line, err)
	}
	return strings.TrimSpace(line)
}

// skip skips, but not where all tests have to run.
func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal("CI must be able to run this test: " + why)
	}
	t.Skip(why)
}

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "needs root to start processes of other uids")
	}
}

func as(uid uint32, groups ...uint32) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid + 1, Groups: groups}}
}

func TestIdentityComesFromTheKernel(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	ts := start(t, ServerOptions{})
	many := []uint32{uint32(testGroup)}
	for i := range uint32(300) { // more than the first guess of the buffer
		many = append(many, 3_000_000+i)
	}
	for _, tc := range []struct {
		uid    uint32
		groups []uint32
		want   string
	}{
		{61_001, nil, "61001 61002 true false"},
		{61_001, []uint32{uint32(testGroup)}, "61001 61002 true true"},
		{61_001, many, "61001 61002 true true"},
		{4_000_000_001, nil, "4000000001 4000000002 true false"}, // above 2^31
	} {
		if got := child(t, "who", ts.path, as(tc.uid, tc.groups...)); got != tc.want {
			t.Errorf("uid %d: got %q, want %q", tc.uid, got, tc.want)
		}
	}
}

// TestOverflowUIDIsRefused connects from an account that has no uid in the server's namespace.
//
//attack:actor local user
//attack:does Connects from a user namespace, where the uid appears as the one of nobody.
//attack:control Peers whose uid the kernel cannot name are refused.
//attack:remove internal/ipc/peer.go: if p.uid == overflow || p.uid == defaultOverflowUID || p.uid == ^ident.UID(0) { => if p.uid == ^ident.UID(0) {
func TestOverflowUIDIsRefused(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	dir := shortDir(t)
	const uid = 61_010
	if err := os.Chown(dir, uid, uid); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s.sock")
	child(t, "serve", path, &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}},
		Credential:  &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: true},
	})
	// The mapped account is root in there and is served.
	if got := child(t, "who", path, as(uid)); !strings.HasPrefix(got, "0 ") {
		t.Fatalf("the server's own account: got %q", got)
	}
	// We are not mapped.
	c, err := Dial(t.Context(), path, DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if who, err := Invoke(t.Context(), c, whoCall, text{}); !errors.Is(err, ErrDisconnected) {
		t.Fatalf("got %+v, %v", who, err)
	}
}

//attack:actor local user
//attack:does Opens so many connections to the socket that others get none.
//attack:control The number of connections of one uid is bounded.
//attack:remove internal/ipc/quota.go: case a.conns >= q.maxPerUID: => case a.conns < 0:
func TestConnectionsPerUID(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	ts := start(t, ServerOptions{MaxConnsPerUID: 5, MaxConns: 7})
	if got := child(t, "connections", ts.path, as(61_020)); got != "held 5" {
		t.Errorf("first uid: %q", got)
	}
	// The total is the next bound.
	if got := child(t, "connections", ts.path, as(61_021)); got != "held 2" {
		t.Errorf("second uid: %q", got)
	}
	if got := child(t, "connections", ts.path, as(61_022)); got != "held 0" {
		t.Errorf("third uid: %q", got)
	}
	if !strings.Contains(ts.log.String(), "uid=61020") {
		t.Error("the refusal is not in the log")
	}
}

// TestFullTableLeavesExemptUIDsAlone: users together cannot keep the gateway out.
func TestFullTableLeavesExemptUIDsAlone(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	ts := start(t, ServerOptions{MaxConns: 1, ExemptUID: func(uid ident.UID) bool { return uid == 61_031 }})
	if got := child(t, "connections", ts.path, as(61_030)); got != "held 1" {
		t.Fatalf("got %q", got)
	}
	if got := child(t, "who", ts.path, as(61_031)); !strings.HasPrefix(got, "61031 ") {
		t.Fatalf("got %q", got)
	}
}

// TestFloodDoesNotHinderOthers: one uid sends all it can, another one works. The figures are generous: the point is
// that the other one is served at all, every time, and is not refused.
func TestFloodDoesNotHinderOthers(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	ts := start(t, ServerOptions{})
	child(t, "flood", ts.path, as(61_040))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var worst time.Duration
	for range 20 {
		begin := time.Now()
		c, err := Dial(ctx, ts.path, DialOptions{Timeout: patience})
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			if _, err := Invoke(ctx, c, echoCall, text{"hello"}); err != nil {
				t.Fatal(err)
			}
		}
		c.Close()
		worst = max(worst, time.Since(begin))
	}
	t.Logf("slowest connection with 5 calls: %s", worst)
	eventually(t, "the flood is noticed", func() bool {
		return strings.Contains(ts.log.String(), "uid=61040")
	})
}

// TestServerOfTheWrongAccount: a client must not say a word to a server that somebody else has put there.
//
//attack:actor local user
//attack:does Listens at the socket's place and collects what instances and commands say.
//attack:control Who connects checks by the kernel which account listens, before a byte is sent.
//attack:remove internal/ipc/dial.go: if err == nil && !o.ServerUID(peer.uid) { => if false {
func TestServerOfTheWrongAccount(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	path := filepath.Join(dir, "s.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	heard := make(chan int, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			heard <- -1
			return
		}
		defer conn.Close()
		b, _ := io.ReadAll(conn)
		heard <- len(b)
	}()
	c, err := Dial(t.Context(), path, DialOptions{ServerUID: func(uid ident.UID) bool { return uid != ident.UID(os.Geteuid()) }})
	if !failure.Is(err, failure.Forbidden) {
		t.Fatalf("got %v, %v", c, err)
	}
	if n := receive(t, "the end of the connection", heard); n != 0 {
		t.Fatalf("the client sent %d bytes", n)
	}
}

func TestDefaultServerUID(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	ts := start(t, ServerOptions{})
	// root serves in a directory of root: right. The same from a child of any uid.
	if got := child(t, "who", ts.path, as(61_050)); !strings.HasPrefix(got, "61050 ") {
		t.Fatalf("got %q", got)
	}
	// A user serves in a directory of root, as in /tmp: wrong.
	dir := shortDir(t)
	path := filepath.Join(dir, "s.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(dir, "own")
	if err := os.Mkdir(own, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(own, 61_051, 61_051); err != nil {
		t.Fatal(err)
	}
	child(t, "serve", filepath.Join(own, "s.sock"), as(61_051))
	c, err := Dial(t.Context(), filepath.Join(own, "s.sock"), DialOptions{})
	if err != nil {
		t.Fatalf("the owner of the directory serves: %v", err)
	}
	c.Close()
	if err := os.Rename(filepath.Join(own, "s.sock"), path); err != nil {
		t.Fatal(err)
	}
	if c, err := Dial(t.Context(), path, DialOptions{}); !failure.Is(err, failure.Forbidden) {
		t.Fatalf("a stranger serves: got %v, %v", c, err)
	}
}
