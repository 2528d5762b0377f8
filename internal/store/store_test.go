package store_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

var errOwn = errors.New("my own error")

func TestUpdateIsAllOrNothing(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		write := func(tx *store.Tx) error { return tx.SetSetting("a", "b") }
		absent := func(when string) {
			t.Helper()
			if err := query(t, s, func(tx *store.Tx) (string, error) { return tx.Setting("a") }); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("after %s: %v", when, err)
			}
		}
		called := false
		err := s.Update(t.Context(), func(tx *store.Tx) error {
			tx.AfterCommit(func() { called = true })
			return errors.Join(write(tx), errOwn)
		})
		if !errors.Is(err, errOwn) || called {
			t.Errorf("%v, AfterCommit called: %v", err, called)
		}
		absent("an error")

		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic was swallowed")
				}
			}()
			_ = s.Update(t.Context(), func(tx *store.Tx) error { _ = write(tx); panic("boom") })
		}()
		absent("a panic")

		ctx, cancel := context.WithCancel(t.Context())
		err = s.Update(ctx, func(tx *store.Tx) error { defer cancel(); return write(tx) })
		if err == nil {
			t.Error("committed although the context had ended")
		}
		absent("the end of the context")

		update(t, s, func(tx *store.Tx) error { tx.AfterCommit(func() { called = true }); return write(tx) })
		if got := get(t, s, func(tx *store.Tx) (string, error) { return tx.Setting("a") }); got != "b" || !called {
			t.Errorf("committed %q, AfterCommit called: %v", got, called)
		}
	})
}

// A kept transaction is dead.
func TestTransactionEnds(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		var kept *store.Tx
		update(t, s, func(tx *store.Tx) error { kept = tx; return nil })
		if err := kept.SetSetting("a", "b"); err == nil {
			t.Error("a transaction works after its end")
		}
	})
}

// The engines behave alike after a failed statement: nothing more happens, whether or not fn notices.
func TestFailedStatementEndsTheTransaction(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		err := s.Update(t.Context(), func(tx *store.Tx) error {
			if err := tx.SetSetting("before", "1"); err != nil {
				return err
			}
			bad := tx.InsertMapping(store.Mapping{User: "A#1", UID: 0, State: store.MappingActive}) // uid 0 violates a check
			if bad == nil {
				t.Error("a mapping to root is stored")
			}
			if err := tx.SetSetting("after", "1"); err == nil {
				t.Error("the next statement works")
			}
			return nil // looks away
		})
		if err == nil {
			t.Error("committed")
		}
		if err := query(t, s, func(tx *store.Tx) (string, error) { return tx.Setting("before") }); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("left behind: %v", err)
		}
	})
}

// "Not there" and "there already" are answers and leave the transaction usable.
func TestAnswersAreNoFailures(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		m := store.Mapping{User: "A#1", UID: 1000, State: store.MappingActive, CreatedAt: day, UpdatedAt: day}
		update(t, s, func(tx *store.Tx) error { return tx.InsertMapping(m) })
		update(t, s, func(tx *store.Tx) error {
			if err := tx.InsertMapping(m); !errors.Is(err, store.ErrConflict) {
				t.Errorf("second mapping: %v", err)
			}
			if _, err := tx.Setting("none"); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("no setting: %v", err)
			}
			return tx.SetSetting("a", "b")
		})
	})
}

func TestViewCannotWrite(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		if err := s.View(t.Context(), func(tx *store.Tx) error { return tx.SetSetting("a", "b") }); err == nil {
			t.Error("a view wrote")
		}
	})
}

func TestViewSeesOneState(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		set := func(v string) { update(t, s, func(tx *store.Tx) error { return tx.SetSetting("a", v) }) }
		set("1")
		update(t, s, func(tx *store.Tx) error { return tx.SetSetting("b", "1") })
		err := s.View(t.Context(), func(tx *store.Tx) error {
			before, err := tx.Setting("a")
			if err != nil {
				return err
			}
			set("2") // a writer does not wait for readers
			after, err := tx.Setting("a")
			if before != "1" || after != "1" {
				t.Errorf("the view changed from %q to %q", before, after)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func TestTextIsCheckedAlike(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		for _, bad := range []string{"a\x00b", "a\xffb"} {
			if err := s.Update(t.Context(), func(tx *store.Tx) error { return tx.SetSetting("a", bad) }); err == nil {
				t.Errorf("%q is stored", bad)
			}
			// Texts of others, which only people read, are made storable.
			update(t, s, func(tx *store.Tx) error {
				id, err := tx.Enqueue("k", "a", nil, day)
				if err != nil {
					return err
				}
				return tx.OutboxRetry(id, day, bad, store.OutboxQueued)
			})
		}
		odd := "'; DROP TABLE settings; -- ? $1 \" \\ ü 🙂 \n\r\t\u2028"
		update(t, s, func(tx *store.Tx) error { return tx.SetSetting(odd, odd) })
		if got := get(t, s, func(tx *store.Tx) (string, error) { return tx.Setting(odd) }); got != odd {
			t.Errorf("got %q", got)
		}
	})
}

// Two processes (here: two stores) that read and then write lose nothing, and fn is repeated rather than failed.
func TestNoLostUpdates(t *testing.T) {
	t.Parallel()
	storetest.Options(t, func(t *testing.T, o store.Options) {
		stores := []*store.Store{storetest.Open(t, o), storetest.Open(t, o)}
		const workers, rounds = 3, 10
		var wg sync.WaitGroup
		for _, s := range stores {
			for range workers {
				wg.Go(func() {
					for range rounds {
						err := s.Update(t.Context(), func(tx *store.Tx) error {
							v, err := tx.Setting("n")
							if errors.Is(err, store.ErrNotFound) {
								v, err = "0", nil
							}
							n, _ := strconv.Atoi(v)
							return errors.Join(err, tx.SetSetting("n", strconv.Itoa(n+1)))
						})
						if err != nil {
							t.Error(err)
						}
					}
				})
			}
		}
		wg.Wait()
		got := get(t, stores[0], func(tx *store.Tx) (string, error) { return tx.Setting("n") })
		if want := fmt.Sprint(len(stores) * workers * rounds); got != want {
			t.Errorf("counted %s, want %s", got, want)
		}
	})
}

// An error of fn that hides a serialization failure does not stop the repetition.
func TestHiddenConflictIsRepeated(t *testing.T) {
	t.Parallel()
	o := storetest.PostgresOptions(t)
	a, b := storetest.Open(t, o), storetest.Open(t, o)
	update(t, a, func(tx *store.Tx) error { return tx.SetSetting("n", "0") })
	runs := 0
	err := a.Update(t.Context(), func(tx *store.Tx) error {
		if _, err := tx.Setting("n"); err != nil {
			return err
		}
		if runs++; runs == 1 { // somebody else is faster
			update(t, b, func(tx *store.Tx) error { return tx.SetSetting("n", "1") })
		}
		if err := tx.SetSetting("n", "2"); err != nil {
			return errOwn
		}
		return nil
	})
	if err != nil || runs != 2 {
		t.Errorf("%d runs, %v", runs, err)
	}
}

func TestUpdateWaitsItsTurnNotForEver(t *testing.T) {
	t.Parallel()
	o := storetest.SQLiteOptions(t)
	o.StatementTimeout = 50 * time.Millisecond
	s := storetest.Open(t, o)
	nothing := func(*store.Tx) error { return nil }
	err := s.Update(t.Context(), func(*store.Tx) error {
		if err := s.Update(t.Context(), nothing); err == nil || !strings.Contains(err.Error(), "wait for the database") {
			t.Errorf("inner update: %v", err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errOwn)
		if err := s.Update(ctx, nothing); !errors.Is(err, errOwn) {
			t.Errorf("update with ended context: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Errorf("outer update: %v", err)
	}
	update(t, s, nothing)
}

func TestOnEnqueue(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		n := 0
		s.OnEnqueue(func() { n++ })
		update(t, s, func(tx *store.Tx) error { return tx.SetSetting("a", "b") })
		_ = s.Update(t.Context(), func(tx *store.Tx) error {
			_, err := tx.Enqueue("k", "a", nil, day)
			return errors.Join(err, errOwn)
		})
		if n != 0 {
			t.Errorf("called %d times for nothing", n)
		}
		update(t, s, func(tx *store.Tx) error { _, err := tx.Enqueue("k", "a", nil, day); return err })
		if n != 1 {
			t.Errorf("called %d times", n)
		}
	})
}

func TestCloseTwice(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		if err := s.Ping(t.Context()); err != nil {
			t.Error(err)
		}
		if err := errors.Join(s.Close(), s.Close()); err != nil {
			t.Error(err)
		}
		if err := s.Ping(t.Context()); err == nil {
			t.Error("a closed store answers")
		}
	})
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]store.Options{
		"other driver":  {Driver: "mysql"},
		"relative path": {Path: "a.db"},
		"no host":       {Driver: "postgres", Postgres: store.Postgres{User: "u", Database: "d"}},
		"no user":       {Driver: "postgres", Postgres: store.Postgres{Host: "h", Database: "d"}},
		"no database":   {Driver: "postgres", Postgres: store.Postgres{Host: "h", User: "u"}},
		"bad port":      {Driver: "postgres", Postgres: store.Postgres{Host: "h", User: "u", Database: "d", Port: 70000}},
	} {
		if s, err := store.Open(t.Context(), o); err == nil {
			t.Errorf("%s is accepted", name)
			_ = s.Close()
		}
	}
}
