package storetest_test

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"testing"

	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/storetest"
)

func TestStoresAreEmptyAndSeparate(t *testing.T) {
	t.Parallel()
	for range 2 {
		storetest.Stores(t, func(t *testing.T, s *store.Store) {
			t.Parallel()
			err := s.Update(t.Context(), func(tx *store.Tx) error {
				if _, err := tx.Setting("a"); !errors.Is(err, store.ErrNotFound) {
					t.Errorf("a new database holds something: %v", err)
				}
				return tx.SetSetting("a", "b")
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// A killed test binary must not leave a server behind: the test runs itself, lets the copy start a server, and kills it.
func TestServerEndsWithTheTests(t *testing.T) {
	const env = "STORETEST_HANG"
	if os.Getenv(env) != "" {
		storetest.PostgresOptions(t)
		os.Stdout.WriteString("dir=" + storetest.SocketDir(t) + "\n")
		select {}
	}
	t.Parallel()
	storetest.PostgresOptions(t) // skips where there is no PostgreSQL
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^TestServerEndsWithTheTests$")
	cmd.Env = append(os.Environ(), env+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var dir string
	for sc := bufio.NewScanner(out); dir == "" && sc.Scan(); {
		_, dir, _ = strings.Cut(sc.Text(), "dir=")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if dir == "" {
		t.Fatal("the copy did not start a server")
	}
	testkit.Eventually(t, "the server's directory is removed", func() bool {
		_, err := os.Stat(dir)
		return errors.Is(err, fs.ErrNotExist)
	})
}
