// Package storetest gives tests a database: an SQLite file, or a database of its own on a real PostgreSQL server that
// is started for the test binary.
package storetest

import (
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
)

// Stores runs f as a subtest on each engine, with an empty database. The subtest for PostgreSQL is skipped where
// PostgreSQL is not installed, and fails there in CI.
func Stores(t *testing.T, f func(t *testing.T, s *store.Store)) {
	t.Helper()
	Options(t, func(t *testing.T, o store.Options) { f(t, Open(t, o)) })
}

// Options is [Stores] for tests that open the database themselves, perhaps several times.
func Options(t *testing.T, f func(t *testing.T, o store.Options)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { f(t, SQLiteOptions(t)) })
	t.Run("postgres", func(t *testing.T) { f(t, PostgresOptions(t)) })
}

// SQLite is an empty SQLite database, for tests to which the engine does not matter.
func SQLite(t testing.TB) *store.Store {
	t.Helper()
	return Open(t, SQLiteOptions(t))
}

// Open opens a database and closes it at the end of the test.
func Open(t testing.TB, o store.Options) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	return s
}

// SQLiteOptions names a file that does not exist yet, in a private directory.
func SQLiteOptions(t testing.TB) store.Options {
	t.Helper()
	return store.Options{
		Driver: store.DriverSQLite,
		Path:   filepath.Join(testkit.PrivateDir(t), "test.db"),
		Log:    slog.New(slog.DiscardHandler),
	}
}

// PostgresOptions names a new, empty database on the test binary's server. It is removed at the end of the test. It waits
// for real processes, so call it outside of a synctest bubble.
func PostgresOptions(t testing.TB) store.Options {
	t.Helper()
	testkit.Require(t, testkit.Component("initdb", "postgres"), ordinaryAccount)
	server, err := startedServer()
	if err != nil {
		t.Fatalf("start PostgreSQL: %v", err)
	}
	name, err := server.createDatabase(t.Context())
	if err != nil {
		t.Fatalf("create test database: %v", err)
	}
	t.Cleanup(func() {
		if err := server.dropDatabase(name); err != nil {
			t.Errorf("drop test database: %v", err)
		}
	})
	return store.Options{
		Driver:   store.DriverPostgres,
		Postgres: store.Postgres{Host: "127.0.0.1", Port: server.port, Database: name, User: server.user, Password: Password},
		MaxConns: 8,
		// A busy machine is no reason to fail a test.
		ConnectTimeout: testkit.Patience, StatementTimeout: testkit.Patience,
		Log: slog.New(slog.DiscardHandler),
	}
}

// SocketDir is the directory of the Unix socket of the test binary's PostgreSQL server; call [PostgresOptions] first.
// Logging in over it needs no password.
func SocketDir(t testing.TB) string {
	t.Helper()
	server, err := startedServer()
	if err != nil {
		t.Fatal(err)
	}
	return server.dir
}

// stopTimeout bounds cleaning up.
const stopTimeout = 30 * time.Second
