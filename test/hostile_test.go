//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit/accounts"
)

// instanceInfo is what `ucloud instances list --json` says.
type instanceInfo struct {
	User ident.UCloudUser `json:"user"`
	UID  ident.UID        `json:"uid"`
	PID  int              `json:"pid"`
	Port int              `json:"port"`
}

func (w *world) instances() map[ident.UCloudUser]instanceInfo {
	w.t.Helper()
	out, err := w.cli("instances", "list", "--json")
	w.must(err)
	var list struct {
		Items []json.RawMessage `json:"items"`
	}
	w.must(json.Unmarshal([]byte(out), &list))
	found := map[ident.UCloudUser]instanceInfo{}
	for _, raw := range list.Items {
		var i struct {
			instanceInfo
			UCloudName ident.UCloudUser `json:"ucloudName"`
		}
		w.must(json.Unmarshal(raw, &i))
		if i.UCloudName != "" {
			i.User = i.UCloudName
		}
		found[i.User] = i.instanceInfo
	}
	return found
}

// TestHostileNeighbour: what another local user may try against Ada. Each attempt has a control that stops it.
func TestHostileNeighbour(t *testing.T) {
	w := newWorld(t, settings{})
	ada, eve := w.addPerson("Ada#1815"), w.addPerson("Eve#6666")
	w.connect(ada, eve)

	t.Run("the next ports are taken before a launch", func(t *testing.T) {
		taken, stop := squat(t, eve.account, 42000, 42200)
		defer stop()
		if _, err := w.browse(ada, ada.home()); err != nil {
			t.Fatalf("Ada cannot be served: %v", err)
		}
		if port := w.instances()[ada.name].Port; port == 0 || slices.Contains(taken, fmt.Sprint(port)) {
			t.Errorf("Ada's instance has the port %d, which is Eve's", port)
		}
	})
	_, err := w.browse(eve, eve.home())
	w.must(err)
	info := w.instances()

	t.Run("a direct connection to another user's port", func(t *testing.T) {
		for _, who := range []accounts.Account{eve.account, ada.account} {
			out := asUser(t, who, fmt.Sprintf(`exec 3<>/dev/tcp/127.0.0.1/%d && printf 'GET / HTTP/1.1\r\nHost: x\r\n\r\n' >&3 && timeout 5 cat <&3`, info[ada.name].Port))
			if strings.Contains(out, "HTTP/") {
				t.Errorf("%s was answered: %s", who.Name, out)
			}
		}
		// Root is not the gateway either.
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", info[ada.name].Port))
		if err != nil {
			return // cut off before the handshake was over
		}
		defer c.Close()
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if data, _ := io.ReadAll(c); bytes.Contains(data, []byte("HTTP/")) {
			t.Errorf("root was answered: %s", data)
		}
	})

	t.Run("forged internal headers", func(t *testing.T) {
		body := providerapi.FilesBrowse{ResolvedCollection: w.driveOf(ada), Browse: providerapi.BrowseParams{Flags: providerapi.FileFlags{Path: ptr(ada.home())}}}
		for _, header := range []string{"X-Ucloud-Hop", "ucloud-secret", "x-jwt-payload", "X-UCloud-User"} {
			got := w.raw(ada.name, "/files/browse", body, func(r *http.Request) {
				r.Header.Del("Authorization")
				r.Header.Set(header, "eyJzdWIiOiJfVUNsb3VkIiwicm9sZSI6IlNFUlZJQ0UifQ")
			})
			if got.status != http.StatusUnauthorized {
				t.Errorf("%s instead of a token: %d %s", header, got.status, got.body)
			}
		}
		// The provider's own token is signed with the same key.
		got := w.raw(ada.name, "/files/browse", body, func(r *http.Request) {
			r.Header.Set("Authorization", "Bearer "+w.core.ProviderToken())
		})
		if got.status != http.StatusUnauthorized {
			t.Errorf("the provider's own token: %d %s", got.status, got.body)
		}
	})

	t.Run("two identities in one request", func(t *testing.T) {
		body := providerapi.FilesBrowse{ResolvedCollection: w.driveOf(ada)}
		for name, change := range map[string]func(*http.Request){
			"two headers":     func(r *http.Request) { r.Header.Add(ident.HeaderUser, eve.name.HeaderValue()) },
			"header and hint": func(r *http.Request) { r.URL.RawQuery = "usernameHint=" + eve.name.HintValue() },
			"not base64":      func(r *http.Request) { r.Header.Set(ident.HeaderUser, "!!") },
		} {
			if got := w.raw(ada.name, "/files/browse", body, change); got.status != http.StatusBadRequest {
				t.Errorf("%s: %d %s", name, got.status, got.body)
			}
		}
	})

	t.Run("a hint wakes nobody without a token", func(t *testing.T) {
		mallory := w.addPerson("Mallory#1")
		w.connect(mallory)
		got := w.send(http.MethodGet, "", "/download?token=guess&usernameHint="+mallory.name.HintValue(), nil, func(r *http.Request) { r.Header.Del("Authorization") })
		if got.status != http.StatusNotFound {
			t.Errorf("got %d %s", got.status, got.body)
		}
		if n := len(accounts.Processes(mallory.account.UID)); n != 0 {
			t.Errorf("%d processes were started", n)
		}
	})

	t.Run("secrets in sight", func(t *testing.T) { w.checkSecrets(eve, info) })

	t.Run("another uid over IPC", func(t *testing.T) {
		// Eve's program says hello for Ada's place: the kernel knows better, and her own place is taken.
		out := asUser(t, eve.account, fmt.Sprintf("echo %s | timeout 10 %s; echo exit $?", w.socket(), w.user))
		if strings.Contains(out, "exit 0") {
			t.Errorf("a second instance was accepted: %s", out)
		}
		if now := w.instances(); now[eve.name].PID != info[eve.name].PID || now[ada.name].PID != info[ada.name].PID {
			t.Errorf("an instance was displaced: %+v, before %+v", now, info)
		}
	})

	t.Run("a flood of the socket", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		flood := eve.account.Command("/usr/bin/perl", "-MIO::Socket::UNIX", "-e",
			`my @s; while (1) { my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]); if ($s) { $s->autoflush(1); print $s "\0\0\xff\xff" . ("x" x 4096); push @s, $s } shift @s if @s > 500 }`, w.socket())
		w.must(flood.Start())
		defer flood.Wait() //nolint:errcheck // it is killed
		defer flood.Process.Kill()
		defer cancel()
		_ = ctx
		for range 20 {
			start := time.Now()
			if _, err := w.browse(ada, ada.home()); err != nil {
				t.Fatalf("Ada is not served: %v", err)
			}
			if _, err := w.cli("status"); exitCode(err) == 69 {
				t.Fatalf("the operator is not served: %v", err)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("a round took %s", took)
			}
		}
	})
}

// squat takes all free ports of a range as a user until the returned function is called, and tells which.
func squat(t *testing.T, who accounts.Account, first, last int) (taken []string, stop func()) {
	t.Helper()
	cmd := who.Command("/usr/bin/perl", "-MIO::Socket::INET", "-e",
		`my @s; for my $p ($ARGV[0]..$ARGV[1]) { my $s = IO::Socket::INET->new(LocalAddr => "127.0.0.1:$p", Listen => 1) or next; push @s, $s; print "$p\n" } close STDOUT; sleep 600`,
		fmt.Sprint(first), fmt.Sprint(last))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(out)
	if taken = strings.Fields(string(text)); err != nil || len(taken) < 100 {
		t.Fatalf("only the ports %v were taken: %v %s", taken, err, &stderr)
	}
	return taken, func() {
		cmd.Process.Kill()
		cmd.Wait() //nolint:errcheck // it was killed
	}
}

// asUser runs a shell command as a user.
func asUser(t *testing.T, who accounts.Account, script string) string {
	t.Helper()
	out, _ := who.Command("/bin/bash", "-c", script).CombinedOutput()
	return string(out)
}

// checkSecrets looks for what must stay secret wherever a user can look.
func (w *world) checkSecrets(eve *person, info map[ident.UCloudUser]instanceInfo) {
	w.t.Helper()
	secrets := map[string]string{"refresh token": w.core.RefreshToken(), "Core's token": w.core.ServiceToken()}
	// Keys of hop tokens, from the server's own record.
	files, _ := filepath.Glob(filepath.Join(w.base, "state/instances/*.json"))
	if len(files) == 0 {
		w.t.Error("no record of instances")
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		w.must(err)
		var record map[string]any
		w.must(json.Unmarshal(data, &record))
		for name, value := range record {
			if text, ok := value.(string); ok && strings.Contains(strings.ToLower(name), "key") {
				secrets["hop key in "+filepath.Base(file)] = text
			}
		}
	}
	if len(secrets) < 3 {
		w.t.Errorf("found no hop key in the record of instances: %v", files)
	}
	look := func(where string, data []byte) {
		for name, secret := range secrets {
			if bytes.Contains(data, []byte(secret)) {
				w.t.Errorf("%s stands in %s", name, where)
			}
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range procs {
		for _, name := range []string{"cmdline", "environ"} {
			data, _ := os.ReadFile(filepath.Join(proc, name)) // as root we see what anybody might
			look(proc+"/"+name, data)
		}
	}
	look("the server's log", w.server.out.all())
	look("the gateway's log", w.gateway.out.all())
	logs, _ := filepath.Glob(filepath.Join(w.base, "log/*/*"))
	for _, file := range logs {
		data, _ := os.ReadFile(file)
		look(file, data)
	}
	// What Eve can read at all: the socket's directory, and none of the others. Her own instance keeps its memory.
	readable := asUser(w.t, eve.account, fmt.Sprintf(`find %s -type f -readable 2>/dev/null; cat /proc/%d/environ 2>/dev/null; cat /proc/%d/maps 2>/dev/null`,
		w.base, info[eve.name].PID, info[eve.name].PID))
	for _, line := range strings.Split(strings.TrimSpace(readable), "\n") {
		if line != "" && !strings.HasPrefix(line, filepath.Join(w.base, "bin")) {
			w.t.Errorf("Eve can read %s", line)
		}
	}
}

// TestPlantedFiles: every file the service makes is planted or linked beforehand, wherever a user could do that.
func TestPlantedFiles(t *testing.T) {
	w := newWorld(t, settings{})
	ada, eve := w.addPerson("Ada#1815"), w.addPerson("Eve#6666")
	w.connect(ada, eve)
	_, err := w.browse(ada, ada.home())
	w.must(err)
	for _, dir := range []string{"", "run", "run/private", "state", "state/instances", "log", "log/users", "spool", "config"} {
		path := filepath.Join(w.base, dir, "planted")
		out := asUser(t, eve.account, fmt.Sprintf("ln -s /etc/passwd %[1]s || touch %[1]s || mkdir %[1]s", path))
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("Eve made %s: %s", path, out)
		}
	}
	// The socket cannot be replaced, and a server does not take over a foreign one.
	asUser(t, eve.account, fmt.Sprintf("mv -f %[1]s %[1]s.old", w.socket()))
	if _, err := w.cli("status"); exitCode(err) == 69 {
		t.Errorf("the socket is gone: %v", err)
	}
	// A second server finds the first one alive and refuses to start.
	cmd := exec.Command(w.ucloud, "server", "--config-dir", filepath.Join(w.base, "config"))
	cmd.SysProcAttr = w.server.cmd.SysProcAttr
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Errorf("a second server started: %s", out)
	}
	if _, err := w.browse(ada, ada.home()); err != nil {
		t.Error(err)
	}
}

// TestRefusesRoot: no role runs as root.
func TestRefusesRoot(t *testing.T) {
	w := newWorld(t, settings{})
	for _, role := range []string{"server", "gateway"} {
		cmd := exec.Command(w.ucloud, role, "--config-dir", filepath.Join(w.base, "config"))
		out, err := cmd.CombinedOutput()
		if err == nil || cmd.ProcessState.ExitCode() != 78 || !strings.Contains(string(out), "root") {
			t.Errorf("%s as root: %v %s", role, err, out)
		}
	}
	cmd := exec.Command(w.user)
	cmd.Stdin = strings.NewReader(w.socket() + "\n")
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Errorf("ucloud-user as root: %s", out)
	}
}
