package gateway

import (
	"bytes"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/sockdiag"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/webapp"
)

// envWebApp makes the test binary a web application at the address.
const envWebApp = "GATEWAY_TEST_WEBAPP"

func webAppChild() bool {
	address := os.Getenv(envWebApp)
	if address == "" {
		return false
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		os.Exit(1)
	}
	os.Stdout.WriteString(l.Addr().String() + "\n") //nolint:errcheck // seen by the parent
	http.Serve(l, webapp.Handler("child"))          //nolint:errcheck,gosec // ends with the process
	os.Exit(1)
	return true
}

// appOf starts a web application as an account and gives its port.
func appOf(t *testing.T, uid ident.UID, address string) int {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe") // the binary lies in a directory of root's; this name works for everybody
	cmd.Env = []string{envWebApp + "=" + address}
	cmd.Stdout = w
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	var line bytes.Buffer
	b := make([]byte, 1)
	for {
		if _, err := r.Read(b); err != nil {
			t.Fatalf("the application did not start: %v", err)
		}
		if b[0] == '\n' {
			break
		}
		line.Write(b)
	}
	return int(netip.MustParseAddrPort(line.String()).Port())
}

// TestWebPortOfAnotherUser is the attack itself, with real accounts: a job's port on this machine belongs to somebody else,
// who listens in one of the ways there are.
func TestWebPortOfAnotherUser(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	const owner, attacker = 54331, 54332 // nothing needs names for them
	kernel, err := sockdiag.NewClient()
	if err != nil {
		t.Fatal(err)
	}
	defer kernel.Close()
	w := newWebFixture(t, func(_ *fixture, o *Options) { o.CheckWebListener = CheckListener(kernel.Lookup, sockdiag.ErrNotFound) })
	addresses := []string{"127.0.0.1:0", "0.0.0.0:0", "[::]:0"}
	for _, address := range addresses {
		port := appOf(t, owner, address)
		for uid, want := range map[ident.UID]int{owner: 200, attacker: 502} {
			w.put(func(r *WebRoute) { r.Port, r.UID = port, uid })
			r := w.page("GET", "/", "", "Cookie", sessionHeader)
			if r.StatusCode != want || strings.Contains(r.body, "This is child") != (want == 200) {
				t.Errorf("%s, job of %s: %d %s", address, uid, r.StatusCode, r.body)
			}
		}
	}
	if _, err := net.Dial("tcp", "[::1]:1"); err != nil && !strings.Contains(err.Error(), "refused") {
		return // no IPv6 here
	}
	port := appOf(t, owner, "[::1]:0")
	for uid, want := range map[ident.UID]int{owner: 200, attacker: 502} {
		w.put(func(r *WebRoute) { r.Address, r.Port, r.UID = "::1", port, uid })
		if r := w.page("GET", "/", "", "Cookie", sessionHeader); r.StatusCode != want {
			t.Errorf("[::1], job of %s: %d %s", uid, r.StatusCode, r.body)
		}
	}
}
