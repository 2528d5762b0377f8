package store_test

import (
	"errors"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

func sampleTask(key string) store.Task {
	return store.Task{
		UID: 4_000_000_001, User: "Alice#1", Key: []byte(key), Kind: "copy", Title: "Copying \x00 'a'\n", Icon: "copy",
		CanPause: true, CanCancel: true, Params: []byte(`{"a":1}`), Saved: []byte(`{"n":2}`), State: store.TaskQueued,
		Attempt: 3, Losses: 1, Retries: 2, RetrySince: day, NotBefore: day.Add(time.Second), CreatedAt: day, UpdatedAt: day,
		StateAt: day, Body: "b\xff", Text: "t", Percent: 12.34, Core: store.TaskCoreWanted,
	}
}

func insertTask(t *testing.T, s *store.Store, task store.Task) store.Task {
	t.Helper()
	update(t, s, func(tx *store.Tx) (err error) { task.ID, err = tx.InsertTask(task); return err })
	return task
}

func TestTasks(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		a := insertTask(t, s, sampleTask("k1"))
		want := a
		want.Title, want.Body = "Copying  'a'\n", "b\uFFFD"
		got := get(t, s, func(tx *store.Tx) (store.Task, error) { return tx.TaskWork(a.ID) })
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		want.Params, want.Saved = nil, nil
		for name, find := range map[string]func(*store.Tx) (store.Task, error){
			"id":  func(tx *store.Tx) (store.Task, error) { return tx.Task(a.ID) },
			"key": func(tx *store.Tx) (store.Task, error) { return tx.TaskByKey(a.UID, []byte("k1")) },
		} {
			if d := cmp.Diff(want, get(t, s, find)); d != "" {
				t.Errorf("by %s: %s", name, d)
			}
		}
		// The same key of the same account is the same submission, and leaves the transaction usable.
		update(t, s, func(tx *store.Tx) error {
			if _, err := tx.InsertTask(sampleTask("k1")); !errors.Is(err, store.ErrConflict) {
				t.Errorf("second insert: %v", err)
			}
			_, err := tx.TaskByKey(a.UID, []byte("k1"))
			return err
		})
		other := sampleTask("k1")
		other.UID++
		insertTask(t, s, other)
		if n := get(t, s, func(tx *store.Tx) (int, error) { return tx.CountOpenTasks(a.UID) }); n != 1 {
			t.Errorf("%d open tasks", n)
		}
		if all := get(t, s, (*store.Tx).OpenTasks); len(all) != 2 || all[0].ID != a.ID {
			t.Errorf("open tasks: %+v", all)
		}
		if list := get(t, s, func(tx *store.Tx) ([]store.Task, error) { return tx.Tasks(1) }); len(list) != 1 || list[0].ID == a.ID {
			t.Errorf("newest task: %+v", list)
		}
	})
}

func TestTaskPercent(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		for in, want := range map[float64]float64{0: 0, 99.999: 100, 500: 100, -0.001: -1, math.Inf(1): 100, math.Inf(-1): -1} {
			task := insertTask(t, s, func() store.Task { v := sampleTask(time.Now().String()); v.Percent = in; return v }())
			if got := get(t, s, func(tx *store.Tx) (store.Task, error) { return tx.Task(task.ID) }); got.Percent != want {
				t.Errorf("%v became %v, want %v", in, got.Percent, want)
			}
		}
		task := sampleTask("nan")
		task.Percent = math.NaN()
		task = insertTask(t, s, task)
		if got := get(t, s, func(tx *store.Tx) (store.Task, error) { return tx.Task(task.ID) }); got.Percent != -1 {
			t.Errorf("NaN became %v", got.Percent)
		}
	})
}

// A final state is never left, whatever the code above believes.
func TestTaskFinalStates(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		for _, final := range []store.TaskState{store.TaskCancelled, store.TaskFailed, store.TaskSucceeded} {
			task := insertTask(t, s, sampleTask(string(final)))
			task.State, task.Attempt = final, 4
			update(t, s, func(tx *store.Tx) error { return tx.UpdateTask(task) })
			for _, next := range []store.TaskState{store.TaskRunning, store.TaskSucceeded, store.TaskFailed} {
				task.State = next
				update(t, s, func(tx *store.Tx) error {
					if err := tx.UpdateTask(task); !errors.Is(err, store.ErrConflict) {
						t.Errorf("%s became %s: %v", final, next, err)
					}
					if err := tx.SaveTask(task.ID, task.Attempt, []byte("x"), day); !errors.Is(err, store.ErrConflict) {
						t.Errorf("%s was saved: %v", final, err)
					}
					return nil
				})
			}
			if got := get(t, s, func(tx *store.Tx) (store.Task, error) { return tx.TaskWork(task.ID) }); got.State != final || string(got.Saved) != `{"n":2}` {
				t.Errorf("%s: %+v", final, got)
			}
		}
		for _, bad := range []string{"done", ""} {
			task := sampleTask("bad" + bad)
			task.State = store.TaskState(bad)
			if err := s.Update(t.Context(), func(tx *store.Tx) error { _, err := tx.InsertTask(task); return err }); err == nil {
				t.Errorf("state %q is stored", bad)
			}
		}
	})
}

func TestTaskSave(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		task := insertTask(t, s, sampleTask("k"))
		update(t, s, func(tx *store.Tx) error {
			if err := tx.SaveTask(task.ID, task.Attempt-1, []byte("old"), day); !errors.Is(err, store.ErrConflict) {
				t.Errorf("an older attempt: %v", err)
			}
			return tx.SaveTask(task.ID, task.Attempt, []byte("new"), day.Add(time.Hour))
		})
		got := get(t, s, func(tx *store.Tx) (store.Task, error) { return tx.TaskWork(task.ID) })
		if string(got.Saved) != "new" || !got.UpdatedAt.Equal(day.Add(time.Hour)) || got.Losses != 0 {
			t.Errorf("%+v", got)
		}
	})
}

func TestNextTask(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		put := func(key, kind string, state store.TaskState, notBefore time.Time) store.Task {
			task := sampleTask(key)
			task.Kind, task.State, task.NotBefore = kind, state, notBefore
			return insertTask(t, s, task)
		}
		put("1", "copy", store.TaskRunning, time.Time{})
		put("2", "copy", store.TaskSuspended, time.Time{})
		put("3", "copy", store.TaskQueued, day.Add(time.Minute))
		c := put("4", "copy", store.TaskQueued, time.Time{})
		d := put("5", "delete", store.TaskQueued, day)
		for name, tc := range map[string]struct {
			uid    ident.UID
			except []string
			want   int64
		}{
			"oldest that may":    {c.UID, nil, c.ID},
			"another kind":       {c.UID, []string{"copy"}, d.ID},
			"no kind left":       {c.UID, []string{"copy", "delete", "x"}, 0},
			"of another account": {c.UID + 1, nil, 0},
		} {
			err := s.View(t.Context(), func(tx *store.Tx) error {
				next, err := tx.NextTask(tc.uid, day, tc.except)
				if tc.want == 0 {
					if !errors.Is(err, store.ErrNotFound) {
						t.Errorf("%s: %+v, %v", name, next, err)
					}
					return nil
				}
				if next.ID != tc.want || string(next.Params) != `{"a":1}` {
					t.Errorf("%s: %+v", name, next)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}
	})
}

func TestTaskAtCore(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		a, b := insertTask(t, s, sampleTask("a")), insertTask(t, s, sampleTask("b"))
		byCore := func(id int64) (int64, error) {
			var task store.Task
			err := s.View(t.Context(), func(tx *store.Tx) (err error) { task, err = tx.TaskByCoreID(id); return err })
			return task.ID, err
		}
		if _, err := byCore(0); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("a task without an id is found: %v", err)
		}
		update(t, s, func(tx *store.Tx) error { return tx.TaskKnown(a.ID, 7710) })
		update(t, s, func(tx *store.Tx) error { return tx.TaskKnown(a.ID, 7710) }) // again
		if id, err := byCore(7710); id != a.ID || err != nil {
			t.Errorf("%d, %v", id, err)
		}
		// Core gives an id out a second time after it was set back.
		update(t, s, func(tx *store.Tx) error { return tx.TaskKnown(b.ID, 7710) })
		if id, err := byCore(7710); id != b.ID || err != nil {
			t.Errorf("%d, %v", id, err)
		}
		if got := get(t, s, func(tx *store.Tx) (store.Task, error) { return tx.Task(a.ID) }); got.Core != store.TaskCoreNone || got.CoreID != 0 {
			t.Errorf("%+v", got)
		}
		if err := s.Update(t.Context(), func(tx *store.Tx) error { return tx.TaskKnown(99, 1) }); !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}
	})
}

func TestPurgeTasks(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		put := func(key string, state store.TaskState, core store.TaskCoreState, at time.Time) int64 {
			task := sampleTask(key)
			task.State, task.Core, task.StateAt = state, core, at
			return insertTask(t, s, task).ID
		}
		old, recent := day.Add(-time.Hour), day.Add(time.Hour)
		gone := []int64{
			put("1", store.TaskSucceeded, store.TaskCoreClosed, old),
			put("2", store.TaskFailed, store.TaskCoreNone, old),
		}
		kept := []int64{
			put("3", store.TaskSucceeded, store.TaskCoreKnown, old), // Core does not know of the end
			put("4", store.TaskCancelled, store.TaskCoreWanted, old),
			put("5", store.TaskCancelled, store.TaskCoreClosed, recent),
			put("6", store.TaskSuspended, store.TaskCoreNone, old),
		}
		update(t, s, func(tx *store.Tx) error {
			if n, err := tx.PurgeTasks(day); n != len(gone) || err != nil {
				t.Errorf("%d, %v", n, err)
			}
			return nil
		})
		for _, id := range kept {
			get(t, s, func(tx *store.Tx) (store.Task, error) { return tx.Task(id) })
		}
		for _, id := range gone {
			if err := query(t, s, func(tx *store.Tx) (store.Task, error) { return tx.Task(id) }); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("task %d: %v", id, err)
			}
		}
	})
}
