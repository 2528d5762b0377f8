package store_test

import (
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/store"
)

func TestMain(m *testing.M) {
	if os.Getenv(killEnv) != "" {
		killChild()
		return
	}
	goleak.VerifyTestMain(m)
}

// day is a time with whole milliseconds, as they are stored.
var day = time.Date(2026, 3, 4, 5, 6, 7, 89_000_000, time.UTC)

func ptr[T any](v T) *T { return &v }

// update runs fn in a transaction that must succeed.
func update(t *testing.T, s *store.Store, fn func(tx *store.Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

// get runs a query that must succeed.
func get[T any](t *testing.T, s *store.Store, fn func(tx *store.Tx) (T, error)) (v T) {
	t.Helper()
	if err := s.View(t.Context(), func(tx *store.Tx) (err error) { v, err = fn(tx); return err }); err != nil {
		t.Fatal(err)
	}
	return v
}

// query runs a query and returns its error.
func query[T any](t *testing.T, s *store.Store, fn func(tx *store.Tx) (T, error)) error {
	t.Helper()
	return s.View(t.Context(), func(tx *store.Tx) error { _, err := fn(tx); return err })
}
