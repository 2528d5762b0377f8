package scripts

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ucloud-im/internal/testkit"
)

// TestProgramRules: a program that somebody else could have placed or could change is not executed (contract 42 SEC-S1
// and section D test 4), and the refusal is written down.
//
//attack:actor local user
//attack:does Writes into an extension script that is writable by a group, to have commands run as the service account.
//attack:control A program that others can write to is not executed.
//attack:remove internal/trustpath/trustpath.go: if kind == unix.S_IFLNK || st.Mode&0o022 == 0 || sticky { => if kind != unix.S_IFDIR || st.Mode&0o022 == 0 || sticky {
//attack:run writable by the group
//attack:actor local user
//attack:does Exchanges an extension script, because a directory above it is writable.
//attack:control Every directory on the way to a program belongs to root or to the service account, and nobody else can write to it.
//attack:remove internal/trustpath/trustpath.go: if kind == unix.S_IFLNK || st.Mode&0o022 == 0 || sticky { => if kind != unix.S_IFREG || st.Mode&0o022 == 0 || sticky {
//attack:run directory writable by everybody
//attack:actor local user
//attack:does Has an extension script in the home directory, where it can be changed after somebody has configured it.
//attack:control Programs and the directories above them belong to root or to the service account.
//attack:remove internal/trustpath/trustpath.go: if st.Uid != 0 && int(st.Uid) != r.Account { => if st.Uid == 1 {
//attack:run directory of somebody else
//attack:actor local user
//attack:does Lets the name of an extension script be a link into the home directory.
//attack:control The file of a program is no link.
//attack:remove internal/trustpath/trustpath.go: if len(rest) == 1 && !r.Link { => if len(rest) == 0 {
//attack:run a link
func TestProgramRules(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root) // to give files away
	const stranger = 3_900_000_031
	for _, tc := range []struct {
		name    string
		change  func(t *testing.T, dir, path string)
		refusal string // empty: it runs
	}{
		{"as it should be", func(*testing.T, string, string) {}, ""},
		{"writable by the group", func(t *testing.T, _, path string) { chmod(t, path, 0o770) }, "has mode 0770: others may write to it"},
		{"writable by everybody", func(t *testing.T, _, path string) { chmod(t, path, 0o707) }, "others may write to it"},
		{"not executable", func(t *testing.T, _, path string) { chmod(t, path, 0o600) }, "is not executable"},
		{"of somebody else", func(t *testing.T, _, path string) { chown(t, path, stranger) }, "belongs to uid 3900000031"},
		{"directory writable by everybody", func(t *testing.T, dir, _ string) { chmod(t, dir, 0o777) }, "others may write to it"},
		{"directory of somebody else", func(t *testing.T, dir, _ string) { chown(t, dir, stranger) }, "belongs to uid"},
		{"above it writable", func(t *testing.T, dir, _ string) { chmod(t, filepath.Dir(dir), 0o775) }, "others may write to it"},
		{"a link", func(t *testing.T, dir, path string) {
			rename(t, path, path+".real")
			symlink(t, path+".real", path)
		}, "is a symbolic link"},
		{"a link into a user's directory", func(t *testing.T, dir, path string) {
			home := filepath.Join(dir, "home")
			mkdir(t, home, 0o755)
			rename(t, path, filepath.Join(home, "x"))
			chown(t, home, stranger)
			symlink(t, filepath.Join(home, "x"), path)
		}, "is a symbolic link"},
		{"through a trusted link", func(t *testing.T, dir, path string) {
			rename(t, filepath.Dir(path), filepath.Dir(path)+"-v2")
			symlink(t, filepath.Base(filepath.Dir(path))+"-v2", filepath.Dir(path))
		}, ""},
		{"through a link of somebody else", func(t *testing.T, dir, path string) {
			rename(t, filepath.Dir(path), filepath.Dir(path)+"-v2")
			symlink(t, filepath.Base(filepath.Dir(path))+"-v2", filepath.Dir(path))
			if err := os.Lchown(filepath.Dir(path), stranger, stranger); err != nil {
				t.Fatal(err)
			}
		}, "belongs to uid"},
		{"through a link into a writable directory", func(t *testing.T, dir, path string) {
			open := filepath.Join(filepath.Dir(dir), "open")
			mkdir(t, open, 0o755)
			rename(t, filepath.Dir(path), filepath.Join(open, "in"))
			chmod(t, open, 0o777)
			symlink(t, filepath.Join(open, "in"), filepath.Dir(path))
		}, "others may write to it"},
		{"links in a circle", func(t *testing.T, dir, path string) {
			if err := os.RemoveAll(filepath.Dir(path)); err != nil {
				t.Fatal(err)
			}
			symlink(t, filepath.Dir(path), filepath.Dir(path))
		}, "has too many symlinks"},
		{"missing", func(t *testing.T, _, path string) { rename(t, path, path+"x") }, "no such file"},
		{"a directory", func(t *testing.T, _, path string) { rename(t, path, path+"x"); mkdir(t, path, 0o755) }, "is a directory"},
		{"no script at all", func(t *testing.T, _, path string) {
			writeProgram(t, path, "hello")
		}, "exec format error"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, nil)
			dir := filepath.Join(s.dir, "site", "scripts")
			mkdir(t, filepath.Join(s.dir, "site"), 0o755)
			mkdir(t, dir, 0o755)
			path := filepath.Join(dir, "x")
			writeProgram(t, path, "#!/bin/sh\necho '{\"usageInBytes\":1}'\n")
			h, err := s.Hook(HookOptions{Name: HookUsage, Path: path})
			if err != nil {
				t.Fatal(err)
			}
			tc.change(t, dir, path)
			err = h.Call(t.Context(), Call{}, &UsageReply{})
			entry := s.log.last(t)
			if tc.refusal == "" {
				if err != nil || entry.Result != "ok" {
					t.Errorf("%v, %+v", err, entry)
				}
				return
			}
			e := asError(t, err)
			if !strings.Contains(e.Message, tc.refusal) || !e.Kind.Broken() || entry.Message != e.Message {
				t.Errorf("%+v", e)
			}
			if want := e.Kind == Technical; want != (tc.name == "no script at all") {
				t.Errorf("kind %s", e.Kind)
			}
		})
	}
}

// TestBinariesRunByDescriptor: what is executed is the file that was checked, also if the name leads elsewhere by then.
//
//attack:actor malicious script
//attack:does Replaces the program between the check and its execution.
//attack:control A binary is executed by the descriptor that was checked.
//attack:remove internal/scripts/program.go: return procPath(fd), func() { unix.Close(fd) }, nil => return p.path, func() { unix.Close(fd) }, nil
func TestBinariesRunByDescriptor(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(s.dir, "binary")
	writeProgram(t, path, string(data))
	h, err := s.Hook(HookOptions{Name: HookQuotaUpdated, Path: path, Environment: map[string]string{childEnv: "describe"}, Secrets: []Secret{{"a", "b"}, {"c", "d"}}})
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Exe  string   `json:"exe"`
		Args []string `json:"args"`
	}
	// Descriptors of all numbers, so that none of ours can be overwritten in the child.
	for range 12 {
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := h.Call(t.Context(), Call{}, &got); err != nil {
			t.Fatal(err)
		}
		if got.Exe != path || len(got.Args) != 2 || got.Args[0] != path {
			t.Fatalf("%+v", got)
		}
	}
	p, err := openProgram(s.rules, path)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	rename(t, path, path+".old")
	s.script(t, "binary", "exit 9")
	run, done, err := p.executable(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	if now, _ := os.Readlink(run); now != path+".old" {
		t.Errorf("%s is %s", run, now)
	}
}

func TestHashIsThatOfTheFile(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	path := s.script(t, "x", "true")
	one, err := openProgram(s.rules, path)
	if err != nil {
		t.Fatal(err)
	}
	one.close()
	s.script(t, "x", "false")
	two, err := openProgram(s.rules, path)
	if err != nil {
		t.Fatal(err)
	}
	two.close()
	if one.hash == two.hash || len(one.hash) != 64 || !one.text {
		t.Errorf("%+v, %+v", one, two)
	}
}

// FuzzReply: any output is either one object or an error, in both protocols.
func FuzzReply(f *testing.F) {
	for _, seed := range []string{"", "{}", `{"usageInBytes":1}`, `{"output":{}}`, `{"error":{"message":"x"}}`, "null", "[]", `{"a":1} x`, "\xff", `{"retryAfterSeconds":1e400}`, `{"message":"\u0000"}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, out []byte) {
		for _, protocol := range []int{1, 2} {
			a, err := parseAnswer(out, protocol)
			if err != nil {
				continue
			}
			if !json.Valid(out) {
				t.Fatalf("%q was accepted", out)
			}
			if a.failure == nil && a.fields == nil {
				t.Fatalf("%q has neither fields nor a failure", out)
			}
			if a.retryAfter < 0 || a.retryAfter > 3600e9 || len([]rune(a.message)) > maxMessage {
				t.Fatalf("%q: %+v", out, a.remarks)
			}
			var reply UsageReply
			if _, err := a.decode(&reply); err == nil && (reply.UsageInBytes == nil || *reply.UsageInBytes < 0) {
				t.Fatalf("%q: %+v", out, reply)
			}
		}
	})
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func chown(t *testing.T, path string, uid int) {
	t.Helper()
	if err := os.Chown(path, uid, uid); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func symlink(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Mkdir(path, mode); err != nil {
		t.Fatal(err)
	}
}
