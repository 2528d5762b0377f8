package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"ucloud-im/internal/testkit"
)

// A database that somebody else could have placed, could read or could replace is not opened.
func TestSQLiteRefusesForeignFiles(t *testing.T) {
	t.Parallel()
	const somebody = 12345
	for name, tc := range map[string]struct {
		spoil func(t *testing.T, dir, file string) error
		want  string // part of the error, empty: accepted
		root  bool   // needs root to arrange
	}{
		"sound":       {func(_ *testing.T, _, _ string) error { return nil }, "", false},
		"file exists": {func(_ *testing.T, _, f string) error { return os.WriteFile(f, nil, 0o600) }, "", false},
		"readable":    {func(_ *testing.T, _, f string) error { return os.WriteFile(f, nil, 0o604) }, "mode 0604", false},
		"group writable": {func(_ *testing.T, _, f string) error {
			return errors.Join(os.WriteFile(f, nil, 0o600), os.Chmod(f, 0o620))
		}, "mode 0620", false},
		"log readable":     {func(_ *testing.T, _, f string) error { return os.WriteFile(f+"-wal", nil, 0o644) }, "-wal has mode", false},
		"directory open":   {func(_ *testing.T, d, _ string) error { return os.Chmod(d, 0o711) }, "mode 0711", false},
		"directory sticky": {func(_ *testing.T, d, _ string) error { return os.Chmod(d, 0o777|os.ModeSticky) }, "mode 1777", false},
		"no directory":     {func(_ *testing.T, d, _ string) error { return os.Remove(d) }, "no such file", false},
		"symbolic link": {func(t *testing.T, _, f string) error {
			return errors.Join(os.WriteFile(filepath.Join(t.TempDir(), "x"), nil, 0o600), os.Symlink(filepath.Join(t.TempDir(), "x"), f))
		}, "not a regular file", false},
		"dangling link":  {func(_ *testing.T, _, f string) error { return os.Symlink("nowhere", f) }, "not a regular file", false},
		"lock is a link": {func(_ *testing.T, _, f string) error { return os.Symlink("nowhere", f+".lock") }, "not a regular file", false},
		"directory is a link": {func(_ *testing.T, d, _ string) error {
			return errors.Join(os.Rename(d, d+"2"), os.Symlink(d+"2", d))
		}, "not a directory", false},
		"fifo":              {func(_ *testing.T, _, f string) error { return syscall.Mkfifo(f, 0o600) }, "not a regular file", false},
		"directory at path": {func(_ *testing.T, _, f string) error { return os.Mkdir(f, 0o700) }, "not a regular file", false},
		"hard link": {func(_ *testing.T, d, f string) error {
			return errors.Join(os.WriteFile(f, nil, 0o600), os.Link(f, d+"/y"))
		}, "2 names", false},
		"foreign file": {func(_ *testing.T, _, f string) error {
			return errors.Join(os.WriteFile(f, nil, 0o600), os.Chown(f, somebody, 0))
		}, "uid 12345", true},
		"foreign directory": {func(_ *testing.T, d, _ string) error { return os.Chown(d, somebody, 0) }, "uid 12345", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.root {
				testkit.Require(t, testkit.Root)
			}
			dir := testkit.PrivateDir(t)
			file := filepath.Join(dir, "x.db")
			if err := tc.spoil(t, dir, file); err != nil {
				t.Fatal(err)
			}
			s, err := Open(t.Context(), Options{Path: file, Exclusive: true})
			if err == nil {
				err = s.Close()
			}
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

func TestSQLiteFilesArePrivate(t *testing.T) {
	t.Parallel()
	file := filepath.Join(testkit.PrivateDir(t), "x.db")
	s, err := Open(t.Context(), Options{Path: file, Exclusive: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	files, err := filepath.Glob(file + "*")
	if err != nil || len(files) != 4 { // the file, log, index of the log, lock
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		if st, err := os.Stat(f); err != nil || st.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", f, st.Mode(), err)
		}
	}
}

// The settings that durability and order depend on are in force on the connections, whatever the path looks like.
func TestSQLiteSettings(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(testkit.PrivateDir(t), "odd ?name#%41&_pragma=synchronous(OFF)")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "x.db")
	s, err := Open(t.Context(), Options{Path: file, MaxConns: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "query_only": "0"} {
		var got string
		if err := s.write.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
			t.Errorf("writer: %s = %q, want %q (%v)", pragma, got, want, err)
		}
	}
	for pragma, want := range map[string]string{"journal_mode": "wal", "foreign_keys": "1", "query_only": "1"} {
		var got string
		if err := s.read.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
			t.Errorf("reader: %s = %q, want %q (%v)", pragma, got, want, err)
		}
	}
	if n, m := s.write.Stats().MaxOpenConnections, s.read.Stats().MaxOpenConnections; n != 1 || m != 3 {
		t.Errorf("%d writers, %d readers", n, m)
	}
}

func TestParseMigrations(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		files []string
		ok    bool
	}{
		"in order":   {[]string{"0001_a.sql", "0002_b.sql"}, true},
		"hole":       {[]string{"0001_a.sql", "0003_b.sql"}, false},
		"twice":      {[]string{"0001_a.sql", "0001_b.sql"}, false},
		"no number":  {[]string{"first.sql"}, false},
		"from zero":  {[]string{"0000_a.sql"}, false},
		"none":       {nil, true},
		"other file": {[]string{"0001_a.sql", "README"}, true},
	} {
		fsys := fstest.MapFS{}
		for _, f := range tc.files {
			fsys["migrations/"+f] = &fstest.MapFile{Data: []byte("-- " + f)}
		}
		if _, err := parseMigrations(fsys); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A migration that fails in the middle leaves nothing behind, and the next attempt starts from the same version.
func TestMigrationIsAllOrNothing(t *testing.T) {
	t.Parallel()
	s, err := Open(t.Context(), Options{Path: filepath.Join(testkit.PrivateDir(t), "x.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	next := latestVersion() + 1
	bad := append(migrations()[:len(migrations()):len(migrations())],
		migration{version: next, name: "next.sql", sql: "CREATE TABLE extra (a BIGINT); CREATE TABLE extra (a BIGINT);", checksum: "x"})
	if _, err := s.migrateStep(t.Context(), bad); err == nil {
		t.Fatal("applied")
	}
	if v, err := s.SchemaVersion(t.Context()); err != nil || v != next-1 {
		t.Errorf("version %d, %v", v, err)
	}
	bad[next-1].sql = "CREATE TABLE extra (a BIGINT)"
	if m, err := s.migrateStep(t.Context(), bad); err != nil || m == nil || m.version != next {
		t.Errorf("%+v, %v", m, err)
	}
	if _, err := s.SchemaVersion(t.Context()); !errors.Is(err, ErrNewerSchema) {
		t.Errorf("the program of before opens it: %v", err)
	}
}
