package config

import (
	"errors"
	"os"
	"strings"
	"testing"
)

// The file of identity type Static decides who has which account.
//
//attack:actor local user
//attack:does Writes a line into the file that says who has which account, because its mode lets him.
//attack:control The file and every directory above it belong to root or the service account and are not writable by others.
//attack:remove internal/config/environment.go: f, err := l.trusted(string(c.File), false) => f, err := l.trusted("/etc/passwd", false)
func TestStaticFile(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		do   func(s *site) error
		want []string
	}{
		{"in order", func(*site) error { return nil }, nil},
		{"writable", func(s *site) error { return os.Chmod(s.path("users/accounts"), 0o666) }, []string{"SEC-1 services.identityManagement.static.file: others may write"}},
		{"replaceable", func(s *site) error { return os.Chmod(s.path("users"), 0o777) }, []string{"SEC-1 services.identityManagement.static.file: others may write"}},
		{"behind a link", func(s *site) error { return behindLink(s.path("users")) }, []string{"SEC-1 services.identityManagement.static.file: others may write"}},
		{"not there", func(s *site) error { return os.Remove(s.path("users/accounts")) }, []string{"CFG-5 services.identityManagement.static.file: no such file"}},
		{"a directory", func(s *site) error {
			return os.Rename(s.path("users"), s.path("users2"))
		}, []string{"CFG-5 services.identityManagement.static.file: no such file"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, "")
			text, err := os.ReadFile(s.path("config.yml"))
			if err != nil {
				t.Fatal(err)
			}
			old := "    manual:\n      tickets: { contact: help@example.org }\n      onTicketCreated: " + s.dir + "/bin/ticket\n"
			edited := strings.Replace(string(text), old, "    type: Static\n    static: { file: "+s.dir+"/users/accounts }\n", 1)
			write(t, s.path("config.yml"), edited, 0o640)
			write(t, s.path("users/accounts"), "Alice#1: alice\n", 0o644)
			if err := tc.do(s); err != nil {
				t.Fatal(err)
			}
			s.expect(t, tc.want...)
		})
	}
}

// behindLink puts a directory below one that everybody may write to, and a link in its place.
func behindLink(dir string) error {
	open := dir + "-open"
	return errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o777), os.Rename(dir, open+"/x"), os.Symlink(open+"/x", dir))
}

func TestProvesUser(t *testing.T) {
	t.Parallel()
	for typ, want := range map[string]bool{
		IdentityManual: true, IdentityOIDC: true, IdentityFreeIPA: false, IdentityLDAP: false, IdentityScripted: false, IdentityStatic: false,
	} {
		if got := (Identity{Type: typ}).ProvesUser(); got != want {
			t.Errorf("%s: %v", typ, got)
		}
	}
}
