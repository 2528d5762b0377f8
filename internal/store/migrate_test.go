package store_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/storetest"
)

func TestOpenAgain(t *testing.T) {
	t.Parallel()
	storetest.Options(t, func(t *testing.T, o store.Options) {
		s := storetest.Open(t, o)
		update(t, s, func(tx *store.Tx) error { return tx.SetSetting("a", "b") })
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = storetest.Open(t, o)
		if got := get(t, s, func(tx *store.Tx) (string, error) { return tx.Setting("a") }); got != "b" {
			t.Errorf("got %q", got)
		}
		st, err := s.Status(t.Context())
		if err != nil || st.Version != st.Latest || st.Version == 0 || len(st.Pending) != 0 || st.Bytes == 0 || st.Driver != o.Driver {
			t.Errorf("%+v, %v", st, err)
		}
		if v, err := s.SchemaVersion(t.Context()); v != st.Latest || err != nil {
			t.Errorf("version %d, %v", v, err)
		}
	})
}

// Several processes that start at once on an empty database migrate it once.
func TestConcurrentMigration(t *testing.T) {
	t.Parallel()
	storetest.Options(t, func(t *testing.T, o store.Options) {
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() {
				s, err := store.Open(t.Context(), o)
				if err != nil {
					t.Error(err)
					return
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	})
}

func TestSchemaThatDoesNotFitIsRefused(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change string
		want   error
	}{
		"newer":   {`INSERT INTO schema_version (version, name, checksum, applied_at) VALUES (999, '0999_x.sql', 'x', 0)`, store.ErrNewerSchema},
		"changed": {`UPDATE schema_version SET checksum = 'x' WHERE version = 1`, store.ErrChangedMigration},
		"hole":    {`UPDATE schema_version SET version = 0 WHERE version = 1`, store.ErrChangedMigration},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storetest.Options(t, func(t *testing.T, o store.Options) {
				s := storetest.Open(t, o)
				if err := store.Exec(t.Context(), s, tc.change); err != nil {
					t.Fatal(err)
				}
				for _, o.NoMigrate = range []bool{false, true} {
					if _, err := store.Open(t.Context(), o); !errors.Is(err, tc.want) {
						t.Errorf("NoMigrate %v: %v, want %v", o.NoMigrate, err, tc.want)
					}
				}
			})
		})
	}
}

func TestNoMigrateOnlyLooks(t *testing.T) {
	t.Parallel()
	storetest.Options(t, func(t *testing.T, o store.Options) {
		o.NoMigrate = true
		if o.Driver == store.DriverSQLite {
			if _, err := store.Open(t.Context(), o); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("no file: %v", err)
			}
			if err := os.WriteFile(o.Path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s := storetest.Open(t, o)
		st, err := s.Status(t.Context())
		if err != nil || st.Version != 0 || len(st.Pending) != st.Latest || st.Pending[0] != "0001_initial.sql" {
			t.Errorf("%+v, %v", st, err)
		}
		nothing := func(*store.Tx) error { return nil }
		if err := errors.Join(s.Update(t.Context(), nothing), s.View(t.Context(), nothing)); !errors.Is(err, store.ErrNotMigrated) {
			t.Errorf("transaction: %v", err)
		}
		if err := s.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		update(t, s, nothing)
	})
}

func TestExclusive(t *testing.T) {
	t.Parallel()
	storetest.Options(t, func(t *testing.T, o store.Options) {
		o.Exclusive = true
		s := storetest.Open(t, o)
		if _, err := store.Open(t.Context(), o); !errors.Is(err, store.ErrInUse) {
			t.Errorf("second server: %v", err)
		}
		look := o
		look.Exclusive = false
		other := storetest.Open(t, look)
		update(t, other, func(tx *store.Tx) error { return tx.SetSetting("a", "b") })
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		// PostgreSQL's server frees the lock a moment after the connection has ended.
		testkit.Eventually(t, "the next server may start", func() bool {
			next, err := store.Open(context.Background(), o)
			if err != nil {
				if !errors.Is(err, store.ErrInUse) {
					t.Fatal(err)
				}
				return false
			}
			return next.Close() == nil
		})
	})
}

func TestBackup(t *testing.T) {
	t.Parallel()
	s := storetest.SQLite(t)
	update(t, s, func(tx *store.Tx) error { return tx.SetSetting("a", "b") })
	dir := testkit.PrivateDir(t)
	path := filepath.Join(dir, "it's a copy?.db")
	if err := s.Backup(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	update(t, s, func(tx *store.Tx) error { return tx.SetSetting("a", "later") })
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if err := s.Backup(t.Context(), path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("overwriting: %v", err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("left behind: %v, %v", names, err)
	}
	copied := storetest.Open(t, store.Options{Path: path})
	if got := get(t, copied, func(tx *store.Tx) (string, error) { return tx.Setting("a") }); got != "b" {
		t.Errorf("the copy holds %q", got)
	}
}

func TestBackupOfPostgresIsForItsTools(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t, storetest.PostgresOptions(t))
	if err := s.Backup(t.Context(), filepath.Join(t.TempDir(), "x")); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

func TestCheckFindsDamage(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		update(t, s, func(tx *store.Tx) error {
			_, err1 := tx.Enqueue("k", "a", nil, day)
			_, err2 := tx.Enqueue("k", "a", nil, day)
			return errors.Join(err1, err2)
		})
		if findings, err := s.Check(t.Context()); err != nil || len(findings) != 0 {
			t.Fatalf("sound database: %v, %v", findings, err)
		}
		for _, damage := range []string{
			`UPDATE outbox SET head = 0`,
			`UPDATE counters SET value = 0 WHERE name = 'outbox'`,
		} {
			if err := store.Exec(t.Context(), s, damage); err != nil {
				t.Fatal(err)
			}
		}
		findings, err := s.Check(t.Context())
		if got := strings.Join(findings, "\n"); err != nil || !strings.Contains(got, "oldest entry") || !strings.Contains(got, "counter") {
			t.Errorf("%q, %v", got, err)
		}
	})
}

func TestCheckFindsBrokenPages(t *testing.T) {
	t.Parallel()
	o := storetest.SQLiteOptions(t)
	s := storetest.Open(t, o)
	update(t, s, func(tx *store.Tx) error {
		for i := range 2000 {
			if _, err := tx.Enqueue("k", strings.Repeat("x", i%97), []byte("payload"), day); err != nil {
				return err
			}
		}
		return nil
	})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(o.Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(make([]byte, 4096), st.Size()/2/4096*4096)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	findings, err := storetest.Open(t, o).Check(t.Context())
	if err == nil && len(findings) == 0 {
		t.Error("a page of zeros was not noticed")
	}
}
