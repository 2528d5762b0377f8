package launcher_test

import (
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/launcher"
	"ucloud-im/internal/testkit/accounts"
)

// sudoModes are the kinds of sudo rule, by the program that is installed for each.
var sudoModes = map[string]string{"direct": directProgram, "pam session": pamProgram, "stock rule": stockProgram}

func TestLaunchBothSudoModes(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	for name, program := range sudoModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := site.User(t)
			w := newRunning(t, func(c *serverConfig) { c.Program = filepath.Join(site.Dir, program) }, u)
			route := w.wake(u)
			if route.Port != w.cfg.First || len(route.Key) != 32 {
				t.Fatalf("route %+v", route)
			}
			a := w.about(u)
			if a.UID != int(u.UID) {
				t.Fatalf("runs as uid %d, want %s", a.UID, u.UID)
			}
			if direct := strings.Contains(w.server.log.String(), "direct=true"); direct != (program == directProgram) {
				t.Fatalf("direct = %v; this rule does not do what the test is about", direct)
			}
			// No sudo is left behind: everything that runs as the user is the instance, and the service account has
			// its server and gateway only.
			eventually(t, "only the instance runs", func() bool {
				p := accounts.Processes(u.UID)
				return len(p) == 1 && p[0] == a.PID && !hasSudo(site.Dir, program)
			})
			if w.wake(u).Route != route.Route || w.info(u).PID != int32(a.PID) {
				t.Fatal("a second wake made something new")
			}
		})
	}
}

// hasSudo tells whether a sudo for the program is running.
func hasSudo(dir, program string) bool {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, l := range lines {
		data, _ := os.ReadFile(l)
		if strings.Contains(string(data), "sudo\x00") && strings.HasSuffix(string(data), dir+"/"+program+"\x00") {
			return true
		}
	}
	return false
}

func TestNoSecretsInSight(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	for name, program := range sudoModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u, other := site.User(t), site.User(t)
			w := newRunning(t, func(c *serverConfig) { c.Program = filepath.Join(site.Dir, program) }, u)
			route := w.wake(u)
			a := w.about(u)

			t.Run("arguments and environment", func(t *testing.T) {
				cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", a.PID))
				environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", a.PID)) // as root; what execve was given
				if n := strings.Count(string(cmdline), "\x00"); n != 1 {
					t.Errorf("arguments: %q", cmdline)
				}
				for _, bad := range []string{string(userOf(u)), w.socket(), string(route.Key), hex.EncodeToString(route.Key)} {
					if strings.Contains(string(cmdline)+string(environ), bad) {
						t.Errorf("%q is visible in %q %q", bad, cmdline, environ)
					}
				}
				want := []string{
					"HOME=" + u.Home, "LANG=C.UTF-8", "LOGNAME=" + u.Name, "PATH=/usr/local/bin:/usr/bin:/bin",
					"SHELL=/bin/bash", "USER=" + u.Name,
				}
				slices.Sort(a.Env)
				if !slices.Equal(a.Env, want) {
					t.Errorf("environment %q, want %q", a.Env, want)
				}
			})
			t.Run("identity", func(t *testing.T) {
				ids := fmt.Sprintf("%[1]s\t%[1]s\t%[1]s\t%[1]s", u.UID)
				if a.Status["Uid"] != ids {
					t.Errorf("uids %q", a.Status["Uid"])
				}
				for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
					if strings.Trim(a.Status[set], "0") != "" {
						t.Errorf("%s = %s", set, a.Status[set])
					}
				}
				out, err := exec.Command("id", "-G", u.Name).Output()
				if err != nil {
					t.Fatal(err)
				}
				want := strings.Fields(string(out))
				var got []string
				for _, g := range a.Groups {
					got = append(got, fmt.Sprint(g))
				}
				slices.Sort(want)
				slices.Sort(got)
				if !slices.Equal(got, want) {
					t.Errorf("groups %v, want %v", got, want)
				}
			})
			t.Run("surroundings", func(t *testing.T) {
				if a.Umask != 0o007 || a.Dir != u.Home || a.NoFile != 4096 {
					t.Errorf("umask %o, directory %s, open files %d", a.Umask, a.Dir, a.NoFile)
				}
				for fd, target := range a.Files {
					known := strings.HasPrefix(target, "socket:") || strings.HasPrefix(target, "anon_inode:") ||
						strings.HasPrefix(target, "pipe:") || target == "/dev/null" || target == ""
					if !known && !strings.HasPrefix(target, "/proc/") && target != u.Home {
						t.Errorf("descriptor %s is %s", fd, target)
					}
				}
			})
			t.Run("memory", func(t *testing.T) {
				// Neither the user's other programs nor other users can look into the process.
				for _, who := range []accounts.Account{u, other, site.Service} {
					for _, file := range []string{"environ", "mem", "maps"} {
						cmd := who.Command("/bin/cat", fmt.Sprintf("/proc/%d/%s", a.PID, file))
						if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "denied") {
							t.Errorf("%s read %s: %v %.80q", who.Name, file, err, out)
						}
					}
				}
			})
			t.Run("files", func(t *testing.T) {
				// Nothing that the server writes can be read by users, and the log does not hold the key.
				filepath.Walk(w.cfg.Dir, func(path string, info os.FileInfo, err error) error { //nolint:errcheck // errors are reported inside
					if err != nil {
						t.Error(err)
						return nil
					}
					if info.Mode().IsRegular() && info.Mode().Perm() != 0o600 {
						t.Errorf("%s has mode %v", path, info.Mode())
					}
					if strings.HasSuffix(path, ".log") {
						data, _ := os.ReadFile(path)
						if strings.Contains(string(data), hex.EncodeToString(route.Key)) {
							t.Errorf("%s holds the key", path)
						}
					}
					return nil
				})
				registry := filepath.Join(w.cfg.Dir, "state/instances", u.UID.String()+".json")
				if _, err := os.Stat(registry); err != nil {
					t.Fatal(err)
				}
				if out, err := u.Command("/bin/cat", registry).CombinedOutput(); err == nil {
					t.Errorf("the user read %s: %q", registry, out)
				}
			})
		})
	}
}

func TestWakesJoin(t *testing.T) {
	t.Parallel()
	u := theSite(t).User(t)
	w := newRunning(t, nil, u)
	var wg sync.WaitGroup
	pids := make([]string, 40)
	for i := range pids {
		wg.Go(func() { pids[i] = strings.Fields(w.mustGet(u, "/work"))[0] })
	}
	wg.Wait()
	if p := slices.Compact(slices.Sorted(slices.Values(pids))); len(p) != 1 {
		t.Fatalf("answers from %v", p)
	}
	if c := w.counters(); c.Launches != 1 {
		t.Fatalf("%d launches", c.Launches)
	}
}

func TestPolicyStopsLaunch(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	for _, tc := range []struct {
		name   string
		change func(t *testing.T, u accounts.Account)
		shadow bool // the service account can read the shadow database
		kind   failure.Kind
		why    string
	}{
		{"locked password", func(t *testing.T, u accounts.Account) {
			accounts.Admin(t, "usermod", "-p", "$6$salt$hash", u.Name)
			accounts.Admin(t, "usermod", "-L", u.Name)
		}, true, failure.Forbidden, "is locked"},
		{"expired, seen by the server", func(t *testing.T, u accounts.Account) {
			accounts.Admin(t, "chage", "-E", "1", u.Name)
		}, true, failure.Forbidden, "has expired"},
		{"expired, seen by the instance", func(t *testing.T, u accounts.Account) {
			accounts.Admin(t, "chage", "-E", "1", u.Name)
		}, false, failure.Forbidden, "is closed"},
		{"no login shell", func(t *testing.T, u accounts.Account) {
			accounts.Admin(t, "usermod", "-s", "/usr/sbin/nologin", u.Name)
		}, false, failure.Forbidden, "no login shell"},
		{"left the group", func(t *testing.T, u accounts.Account) {
			accounts.Admin(t, "gpasswd", "-d", u.Name, site.Group)
		}, false, failure.Forbidden, "not a member of"},
		{"recycled uid", func(t *testing.T, u accounts.Account) {
			accounts.Admin(t, "usermod", "-l", u.Name+"x", u.Name)
		}, false, failure.Forbidden, "belongs to the account"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			u := site.User(t)
			w := newWorld(t, nil, u)
			w.readsShadow(tc.shadow)
			w.startServer()
			w.startGateway()
			if r := w.get(u, "/work"); r.Status != 200 { // the account is good so far
				t.Fatalf("%+v", r)
			}
			var ok bool
			w.call(w.server, "Stop", userOf(u), &ok)
			tc.change(t, u)
			r := w.tryWake(u)
			if r.Kind != tc.kind || !strings.Contains(r.Why, tc.why) {
				t.Fatalf("wake gives %v %q (%s), want %v %q", r.Kind, r.Why, r.Cause, tc.kind, tc.why)
			}
			eventually(t, "nothing runs", func() bool { return len(accounts.Processes(u.UID)) == 0 })
			if i := w.info(u); i.State != launcher.Stopped || !strings.Contains(i.Reason, tc.why) {
				t.Fatalf("listed as %+v", i)
			}
		})
	}
}

// readsShadow lets the server process read the shadow database, through the group that Debian gives it to.
func (w *world) readsShadow(on bool) {
	w.t.Helper()
	if !on {
		return
	}
	info, err := os.Stat("/etc/shadow")
	if err != nil {
		w.t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	if st.Gid == 0 || info.Mode().Perm()&0o040 == 0 {
		w.t.Skip("the shadow database has no group that may read it on this machine")
	}
	w.groups = append(w.groups, st.Gid)
}

func TestSudoRefuses(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	u := site.User(t)
	w := newRunning(t, func(c *serverConfig) { c.Program = "/usr/bin/id" }, u) // no rule for this one
	r := w.tryWake(u)
	if r.Kind != failure.NoInstance || !strings.Contains(r.Cause, "password is required") {
		t.Fatalf("%+v", r)
	}
	if strings.Contains(r.Why, "sudo") {
		t.Fatalf("the user is told %q", r.Why)
	}
}
