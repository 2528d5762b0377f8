package sshkeys

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/accounts"
)

const user = ident.UCloudUser("AdaLovelace#4821")

var usual = Policy{"ed25519", "ecdsa", "rsa>=3072", "sk-*"}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func blob(parts ...string) string {
	var b []byte
	for _, p := range parts {
		b = append(b, byte(len(p)>>24), byte(len(p)>>16), byte(len(p)>>8), byte(len(p)))
		b = append(b, p...)
	}
	return base64.StdEncoding.EncodeToString(b)
}

var good = "ssh-ed25519 " + blob("ssh-ed25519", strings.Repeat("k", 32))

func service(home string) *Service {
	return New(Options{
		Provider: "hpc-example", User: user, Home: home, Log: slog.New(slog.DiscardHandler),
		Settings: func() Settings {
			return Settings{Install: true, File: filepath.Join(home, ".ssh", "authorized_keys"), Policy: usual}
		},
	})
}

func keys(texts ...string) (out []providerapi.SSHKey) {
	for _, k := range texts {
		out = append(out, providerapi.SSHKey{ID: "1", Owner: user, Specification: providerapi.SSHKeySpecification{Title: "my laptop", Key: k}})
	}
	return out
}

//attack:actor compromised core
//attack:does Sends an SSH key with options, such as a forced command, or with a line break and a second key.
//attack:control A key is taken apart and written anew: one line, a known type, no options.
//attack:remove internal/sshkeys/parse.go: if len(text) > maxKeyText || strings.ContainsAny(text, "\r\\n\x00") { => if len(text) > maxKeyText {
//attack:remove internal/sshkeys/parse.go: fields := strings.Fields(text) => if i := strings.Index(text, "ssh-ed25519 "); i > 0 {\n\t\ttext = text[i:]\n\t}\n\tfields := strings.Fields(text)
func TestKeys(t *testing.T) {
	t.Parallel()
	rsa := func(bytes int) string {
		return "ssh-rsa " + blob("ssh-rsa", "\x01\x00\x01", "\x00\xff"+strings.Repeat("\xff", bytes-1))
	}
	ec := "ecdsa-sha2-nistp256 " + blob("ecdsa-sha2-nistp256", "nistp256", "\x04"+strings.Repeat("x", 64))
	sk := "sk-ssh-ed25519@openssh.com " + blob("sk-ssh-ed25519@openssh.com", strings.Repeat("k", 32), "ssh:")
	skec := "sk-ecdsa-sha2-nistp256@openssh.com " + blob("sk-ecdsa-sha2-nistp256@openssh.com", "nistp256", "\x04"+strings.Repeat("x", 64), "ssh:")
	for _, k := range []string{good, good + " ada@laptop", "  " + good + "\n", good + " command=\"touch pwned\"", ec, sk, skec, rsa(384), rsa(512)} {
		got, err := parse(k, usual)
		if err != nil || len(strings.Fields(got)) != 2 || !strings.HasPrefix(strings.TrimSpace(k), got) {
			t.Errorf("%.40q: %q, %v", k, got, err)
		}
	}
	for name, k := range map[string]string{
		"empty": "", "type only": "ssh-ed25519", "options": `command="touch pwned" ` + good, "two lines": good + "\n" + good,
		"carriage return": good + "\r" + good, "NUL": good + "\x00", "options after a comma": "ssh-ed25519,command=\"x\" AAAA",
		"other type inside": "ssh-rsa " + blob("ssh-ed25519", strings.Repeat("k", 32)), "short": "ssh-ed25519 " + blob("ssh-ed25519", "k"),
		"more behind": "ssh-ed25519 " + blob("ssh-ed25519", strings.Repeat("k", 32), "x"), "no base64": "ssh-ed25519 !!!", "small": rsa(256),
		"dss": "ssh-dss " + blob("ssh-dss", "p", "q", "g", "y"), "certificate": "ssh-ed25519-cert-v01@openssh.com " + blob("ssh-ed25519-cert-v01@openssh.com", "x"),
		"long": good + " " + strings.Repeat("c", maxKeyText), "wrong curve": "ecdsa-sha2-nistp256 " + blob("ecdsa-sha2-nistp256", "nistp384", "\x04"+strings.Repeat("x", 96)),
		"long number": "ssh-ed25519 " + base64.StdEncoding.EncodeToString([]byte{0xff, 0xff, 0xff, 0xff}),
	} {
		if got, err := parse(k, usual); err == nil {
			t.Errorf("%s is accepted: %q", name, got)
		}
	}
	for _, k := range []string{ec, sk, rsa(512)} {
		if _, err := parse(k, Policy{"ed25519"}); err == nil {
			t.Errorf("%.20q is accepted although it is not allowed", k)
		}
	}
}

// TestRealKeys: what ssh-keygen makes is understood, and what is written is understood by ssh-keygen.
func TestRealKeys(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Component("ssh-keygen"))
	dir := t.TempDir()
	var texts []string
	for name, args := range map[string][]string{"ed": {"-t", "ed25519"}, "ec": {"-t", "ecdsa", "-b", "521"}, "rsa": {"-t", "rsa", "-b", "3072"}} {
		file := filepath.Join(dir, name)
		out, err := exec.Command("ssh-keygen", append(args, "-q", "-N", "", "-f", file)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s", out)
		}
		pub, err := os.ReadFile(file + ".pub")
		must(t, err)
		texts = append(texts, string(pub))
	}
	s := service(dir)
	must(t, s.Install(context.Background(), keys(texts...)))
	out, err := exec.Command("ssh-keygen", "-l", "-f", filepath.Join(dir, ".ssh", "authorized_keys")).CombinedOutput()
	if err != nil || strings.Count(string(out), "my_laptop ucloud:hpc-example ucloud-integration") != 3 {
		t.Errorf("%s %v", out, err)
	}
}

func TestMerge(t *testing.T) {
	t.Parallel()
	s := service("/home/ada")
	line := rapid.SampledFrom([]string{
		"ssh-rsa AAAA mine", "# a comment", "", "  ", s.begin(), s.end(), good + " x" + s.tail(), "# BEGIN keys from UCloud (other), do not edit",
		good + " y ucloud:other" + marker, good + " left" + marker, good + marker, good + " of ucloud-integration too", "cert-authority ssh-rsa AAAA", "# about" + s.tail(), "windows\r",
	})
	rapid.Check(t, func(t *rapid.T) {
		lines := rapid.SliceOfN(line, 0, 12).Draw(t, "lines")
		old := strings.Join(lines, "\n") + rapid.SampledFrom([]string{"", "\n"}).Draw(t, "end")
		ours := rapid.SliceOfN(rapid.Just(good+" n"+s.tail()), 0, 3).Draw(t, "ours")
		merged := s.merge([]byte(old), ours)
		if again := s.merge(merged, ours); !bytes.Equal(again, merged) {
			t.Fatalf("merging twice changes %q to %q", merged, again)
		}
		foreign := func(text string) (out []string) {
			for _, l := range strings.Split(text, "\n") {
				switch {
				case l == s.begin(), l == s.end(), strings.HasSuffix(l, s.tail()) && l[0] != '#', l == good+" left"+marker, l == good+marker:
				default:
					out = append(out, l)
				}
			}
			return out
		}
		a, b := strings.TrimRight(strings.Join(foreign(old), "\n"), "\n"), strings.TrimRight(strings.Join(foreign(string(merged)), "\n"), "\n")
		if a != b {
			t.Fatalf("%q became %q", a, b)
		}
		if got := strings.Count(string(merged), s.tail()+"\n"); got-strings.Count(string(merged), "# about"+s.tail()+"\n") != len(ours) {
			t.Fatalf("%d of our keys in %q, want %d", got, merged, len(ours))
		}
	})
}

//attack:actor compromised core
//attack:does Sends the SSH keys of one user to the instance of another.
//attack:control Keys of other users are left out.
//attack:remove internal/sshkeys/sshkeys.go: if k.Owner != "" && k.Owner != s.o.User { => if k.Owner == "\x00" {
func TestInstall(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	s := service(home)
	file := filepath.Join(home, ".ssh", "authorized_keys")
	must(t, s.Install(context.Background(), nil))
	if _, err := os.Stat(filepath.Dir(file)); err == nil {
		t.Error("a folder was made for nothing")
	}
	must(t, s.Install(context.Background(), keys(good, "nonsense")))
	st, err := os.Stat(file)
	must(t, err)
	folder, err := os.Stat(filepath.Dir(file))
	must(t, err)
	if st.Mode().Perm() != 0o600 || folder.Mode().Perm() != 0o700 {
		t.Errorf("modes %v and %v", st.Mode(), folder.Mode())
	}
	want := s.begin() + "\n" + good + " my_laptop ucloud:hpc-example ucloud-integration\n" + s.end() + "\n"
	if got, _ := os.ReadFile(file); string(got) != want {
		t.Errorf("%s", got)
	}
	// What the module that was here before has left goes, with the keys that the user has removed since.
	must(t, os.WriteFile(file, []byte("ssh-rsa AAAA mine\n"+good+" old ucloud-integration\n"+good+" ucloud:other ucloud-integration\n"), 0o600))
	must(t, s.Install(context.Background(), keys(good)))
	if got, _ := os.ReadFile(file); string(got) != "ssh-rsa AAAA mine\n"+good+" ucloud:other ucloud-integration\n"+want {
		t.Errorf("%s", got)
	}
	// The user's own, without a line break at its end, and a mode of its own.
	must(t, os.WriteFile(file, []byte(want+"ssh-rsa AAAA mine"), 0o600))
	must(t, os.Chmod(file, 0o640))
	before, err := os.Stat(file)
	must(t, err)
	must(t, s.Install(context.Background(), keys(good))) // nothing changes
	after, err := os.Stat(file)
	must(t, err)
	if !os.SameFile(before, after) {
		t.Error("the file was replaced although nothing has changed")
	}
	must(t, s.Install(context.Background(), nil))
	if got, _ := os.ReadFile(file); string(got) != "ssh-rsa AAAA mine" {
		t.Errorf("%q", got)
	}
	if st, err = os.Stat(file); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	left, err := os.ReadDir(filepath.Dir(file))
	must(t, err)
	if len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
	// Another user's keys are not installed, many are not all.
	other := keys(good)
	other[0].Owner = "Mallory#1"
	must(t, s.Install(context.Background(), other))
	if got, _ := os.ReadFile(file); strings.Contains(string(got), good) {
		t.Error("another user's key")
	}
	many := make([]string, 2*maxKeys)
	for i := range many {
		many[i] = good
	}
	must(t, s.Install(context.Background(), keys(many...)))
	if got, _ := os.ReadFile(file); strings.Count(string(got), good) != maxKeys {
		t.Errorf("%d keys", strings.Count(string(got), good))
	}
}

// TestHostileFiles: what others may have put in the way.
//
//attack:actor local user
//attack:does Plants a link or a pipe where a user's SSH keys are written.
//attack:control The folder and the file of the keys must be the user's own, and links are followed only within the home directory.
//attack:remove internal/sshkeys/sshkeys.go: unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY => unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY
//attack:remove internal/sshkeys/sshkeys.go: || !strings.HasPrefix(target, strings.TrimSuffix(home, "/")+"/") { => || !strings.HasPrefix(target, "/") || home == "" {
func TestHostileFiles(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	victim := filepath.Join(outside, "victim")
	for name, prepare := range map[string]func(home, ssh, file string) error{
		"file is a link out of the home":   func(_, _, file string) error { return os.Symlink(victim, file) },
		"folder is a link out of the home": func(_, ssh, _ string) error { os.Remove(ssh); return os.Symlink(outside, ssh) },
		"others may write to the folder":   func(_, ssh, _ string) error { return os.Chmod(ssh, 0o777) },
		"a FIFO":                           func(_, _, file string) error { return unix.Mkfifo(file, 0o600) },
		"a folder":                         func(_, _, file string) error { return os.Mkdir(file, 0o700) },
		"a second name":                    func(_, _, file string) error { return os.Link(victim, file) },
	} {
		home := t.TempDir()
		ssh := filepath.Join(home, ".ssh")
		must(t, os.Mkdir(ssh, 0o700))
		must(t, os.WriteFile(victim, []byte("untouched"), 0o600))
		must(t, prepare(home, ssh, filepath.Join(ssh, "authorized_keys")))
		if err := service(home).Install(context.Background(), keys(good)); err == nil {
			t.Errorf("%s: keys are installed", name)
		}
		if got, _ := os.ReadFile(victim); string(got) != "untouched" {
			t.Errorf("%s: %q", name, got)
		}
		if _, err := os.Lstat(filepath.Join(outside, "authorized_keys")); err == nil {
			t.Errorf("%s: a file was made outside", name)
		}
	}
	// The user's own link within the home is theirs to make.
	home := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(home, "dotfiles"), 0o700))
	must(t, os.Mkdir(filepath.Join(home, ".ssh"), 0o700))
	real := filepath.Join(home, "dotfiles", "keys")
	must(t, os.WriteFile(real, []byte("ssh-rsa AAAA mine\n"), 0o600))
	must(t, os.Symlink(real, filepath.Join(home, ".ssh", "authorized_keys")))
	must(t, service(home).Install(context.Background(), keys(good)))
	if got, _ := os.ReadFile(real); !strings.Contains(string(got), good) || !strings.HasPrefix(string(got), "ssh-rsa AAAA mine\n") {
		t.Errorf("%s", got)
	}
}

// TestForeignOwner: a link, a folder or a file of another account is not used.
//
//attack:actor local user
//attack:does Makes the folder or file of another user's SSH keys, where that is possible, and keeps it.
//attack:control The file of the keys, and its folder, must belong to the user.
//attack:remove internal/sshkeys/sshkeys.go: (st.Uid != uint32(os.Getuid()) || st.Mode&0o022 != 0) => (st.Mode&0o022 != 0)
func TestForeignOwner(t *testing.T) {
	t.Parallel()
	accounts.Require(t)
	site := accounts.New(t, "keys")
	other := site.User(t)
	for name, prepare := range map[string]func(ssh, file string) error{
		"folder": func(ssh, _ string) error { return os.Chown(ssh, int(other.UID), int(other.GID)) },
		"file": func(_, file string) error {
			must(t, os.WriteFile(file, nil, 0o600))
			return os.Chown(file, int(other.UID), int(other.GID))
		},
		"link": func(ssh, file string) error {
			must(t, os.WriteFile(filepath.Join(ssh, "x"), nil, 0o600))
			must(t, os.Symlink(filepath.Join(ssh, "x"), file))
			return os.Lchown(file, int(other.UID), int(other.GID))
		},
	} {
		home := t.TempDir()
		ssh := filepath.Join(home, ".ssh")
		must(t, os.Mkdir(ssh, 0o700))
		must(t, prepare(ssh, filepath.Join(ssh, "authorized_keys")))
		if err := service(home).Install(context.Background(), keys(good)); err == nil {
			t.Errorf("a %s of another account is used", name)
		}
	}
}

// TestWire: the documented request.
func TestWire(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../providerapi/testdata/examples/provider/ssh.keyUploaded.json")
	must(t, err)
	var doc struct {
		Request json.RawMessage `json:"request"`
	}
	must(t, json.Unmarshal(raw, &doc))
	var req uploaded
	must(t, json.Unmarshal(doc.Request, &req))
	if req.Username != user || len(req.AllKeys) != 1 || req.AllKeys[0].Specification.Title != "laptop" || req.AllKeys[0].Owner != user {
		t.Errorf("%+v", req)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(good)
	f.Add(good + "\ncommand=\"x\" " + good)
	f.Add("ssh-rsa " + blob("ssh-rsa", "\x03", "\xff"))
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parse(text, Policy{"ed25519", "ecdsa", "rsa", "sk-*"})
		if err != nil {
			return
		}
		if fields := strings.Split(got, " "); len(fields) != 2 || kinds[fields[0]] == "" || strings.ContainsAny(got, "\n\r\x00\t\"") {
			t.Errorf("%q became %q", text, got)
		}
		if again, err := parse(got, Policy{"ed25519", "ecdsa", "rsa", "sk-*"}); err != nil || again != got {
			t.Errorf("%q: %q, %v", got, again, err)
		}
	})
}

func FuzzMerge(f *testing.F) {
	s := service("/home/ada")
	f.Add([]byte("ssh-rsa AAAA mine"))
	f.Add([]byte(s.begin() + "\n" + good + s.tail() + "\n"))
	f.Fuzz(func(t *testing.T, old []byte) {
		line := good + " x" + s.tail()
		merged := s.merge(old, []string{line})
		if bytes.Count(merged, []byte("\n"+line+"\n")) != 1 || !bytes.Equal(s.merge(merged, []string{line}), merged) {
			t.Errorf("%q became %q", old, merged)
		}
	})
}
