package store

import (
	"database/sql"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"ucloud-im/internal/ident"
)

// TaskState is how far a background task is (contract 14). The last three are final: the database refuses to leave them.
type TaskState string

// The states.
const (
	TaskQueued    TaskState = "queued"    // waits for its turn
	TaskRunning   TaskState = "running"   // handed out to an instance
	TaskSuspended TaskState = "suspended" // paused by its user
	TaskCancelled TaskState = "cancelled"
	TaskFailed    TaskState = "failed"
	TaskSucceeded TaskState = "succeeded"
)

// Final tells whether the state cannot change any more.
func (s TaskState) Final() bool {
	switch s {
	case TaskQueued, TaskRunning, TaskSuspended:
		return false
	}
	return true
}

// TaskCoreState is what Core knows about a task.
type TaskCoreState string

// The states at Core.
const (
	TaskCoreNone   TaskCoreState = "none"   // it has no record at Core, and gets none
	TaskCoreWanted TaskCoreState = "wanted" // its creation is in the outbox
	TaskCoreKnown  TaskCoreState = "known"  // Core has given it an id
	TaskCoreClosed TaskCoreState = "closed" // Core has the final state
)

// Task is a background task. Params and Saved are filled in only by the methods that say so.
type Task struct {
	ID                  int64
	UID                 ident.UID // owner
	User                ident.UCloudUser
	Key                 []byte // of the submission
	Kind, Title, Icon   string
	CanPause, CanCancel bool
	Params, Saved       []byte

	State   TaskState
	Wanted  TaskState // what somebody asked a running task for: "", suspended or cancelled
	Attempt int64     // grows with each hand-out
	Losses  int
	Retries int

	RetrySince time.Time // first of Retries
	NotBefore  time.Time // queued: when it may run; zero: now
	CreatedAt  time.Time
	UpdatedAt  time.Time
	StateAt    time.Time

	Body    string
	Text    string  // "progress" at Core
	Percent float64 // 0 to 100 in steps of 0.01; negative: not known

	Core   TaskCoreState
	CoreID int64 // 0: not known
}

const (
	taskColumns = `id, uid, user_name, submit_key, kind, title, icon, can_pause, can_cancel, state, wanted, attempt, losses, retries,
	 retry_since, not_before, created_at, updated_at, state_at, body, progress, percent, core_state, core_id`
	taskWork = taskColumns + `, params, saved`
	taskOpen = `state IN ('queued', 'running', 'suspended')`
)

func scanTask(s scanner) (Task, error) { return scanTaskAnd(s) }

func scanTaskWork(s scanner) (Task, error) {
	var params, saved blob
	t, err := scanTaskAnd(s, &params, &saved)
	t.Params, t.Saved = params, saved
	return t, err
}

func scanTaskAnd(s scanner, more ...any) (t Task, err error) {
	var pause, cancel, since, notBefore, created, updated, state, percent int64
	var core sql.NullInt64
	err = s.Scan(append([]any{
		&t.ID, &t.UID, &t.User, (*blob)(&t.Key), &t.Kind, &t.Title, &t.Icon, &pause, &cancel, &t.State, &t.Wanted, &t.Attempt,
		&t.Losses, &t.Retries, &since, &notBefore, &created, &updated, &state, &t.Body, &t.Text, &percent, &t.Core, &core,
	}, more...)...)
	t.CanPause, t.CanCancel = pause != 0, cancel != 0
	t.RetrySince, t.NotBefore, t.CreatedAt = fromMS(since), fromMS(notBefore), fromMS(created)
	t.UpdatedAt, t.StateAt = fromMS(updated), fromMS(state)
	t.Percent, t.CoreID = float64(percent)/100, core.Int64
	return t, err
}

// hundredths is how a percentage is stored. What is no number is not known.
func hundredths(p float64) int64 {
	if !(p >= 0) { // also NaN
		return -100
	}
	return int64(math.Round(min(p, 100) * 100))
}

// InsertTask stores a new task and gives its id. A key that the uid has used before is [ErrConflict].
func (tx *Tx) InsertTask(t Task) (int64, error) {
	if len(t.Key) == 0 {
		return 0, errors.New("store task: it has no key")
	}
	id, err := tx.next("tasks")
	if err != nil {
		return 0, err
	}
	return id, tx.execOne(ErrConflict, "store task",
		`INSERT INTO tasks (`+taskWork+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, ?, ?)
		 ON CONFLICT (uid, submit_key) DO NOTHING`,
		id, int64(t.UID), string(t.User), t.Key, t.Kind, prose(t.Title), t.Icon, toBit(t.CanPause), toBit(t.CanCancel),
		string(t.State), string(t.Wanted), t.Attempt, t.Losses, t.Retries, toMS(t.RetrySince), toMS(t.NotBefore),
		toMS(t.CreatedAt), toMS(t.UpdatedAt), toMS(t.StateAt), prose(t.Body), prose(t.Text), hundredths(t.Percent),
		string(t.Core), bytesOf(t.Params), bytesOf(t.Saved))
}

// UpdateTask stores state and progress of a task that is not in a final state; otherwise it is [ErrConflict]. What the
// task is, what it has saved, and what Core knows are left alone.
func (tx *Tx) UpdateTask(t Task) error {
	return tx.execOne(ErrConflict, "update task",
		`UPDATE tasks SET state = ?, wanted = ?, attempt = ?, losses = ?, retries = ?, retry_since = ?, not_before = ?,
		 updated_at = ?, state_at = ?, body = ?, progress = ?, percent = ? WHERE id = ? AND `+taskOpen,
		string(t.State), string(t.Wanted), t.Attempt, t.Losses, t.Retries, toMS(t.RetrySince), toMS(t.NotBefore),
		toMS(t.UpdatedAt), toMS(t.StateAt), prose(t.Body), prose(t.Text), hundredths(t.Percent), t.ID)
}

// SaveTask stores where a running attempt would continue. If that is not the attempt under way it is [ErrConflict].
func (tx *Tx) SaveTask(id, attempt int64, saved []byte, at time.Time) error {
	return tx.execOne(ErrConflict, "save task",
		`UPDATE tasks SET saved = ?, updated_at = ?, losses = 0 WHERE id = ? AND attempt = ? AND `+taskOpen,
		bytesOf(saved), toMS(at), id, attempt)
}

// TaskKnown notes Core's id of a task. Should another task have that id, Core was set back to an earlier state and has
// given it out again: the other one loses it.
func (tx *Tx) TaskKnown(id, coreID int64) error {
	if _, err := tx.exec("free Core's id of a task",
		`UPDATE tasks SET core_id = NULL, core_state = 'none' WHERE core_id = ? AND id <> ?`, coreID, id); err != nil {
		return err
	}
	return tx.execOne(ErrNotFound, "note Core's id of a task",
		`UPDATE tasks SET core_id = ?, core_state = 'known' WHERE id = ?`, coreID, id)
}

// TaskCore notes what Core knows about a task, without changing its id there.
func (tx *Tx) TaskCore(id int64, s TaskCoreState) error {
	return tx.execOne(ErrNotFound, "note Core's state of a task", `UPDATE tasks SET core_state = ? WHERE id = ?`, string(s), id)
}

// Task is the task with the id.
func (tx *Tx) Task(id int64) (Task, error) {
	return one(tx, scanTask, "look up task", `SELECT `+taskColumns+` FROM tasks WHERE id = ?`, id)
}

// TaskByCoreID is the task that has that id at Core.
func (tx *Tx) TaskByCoreID(id int64) (Task, error) {
	return one(tx, scanTask, "look up task by Core's id", `SELECT `+taskColumns+` FROM tasks WHERE core_id = ?`, id)
}

// TaskByKey is the task that a uid submitted with a key.
func (tx *Tx) TaskByKey(uid ident.UID, key []byte) (Task, error) {
	return one(tx, scanTask, "look up task by key",
		`SELECT `+taskColumns+` FROM tasks WHERE uid = ? AND submit_key = ?`, int64(uid), bytesOf(key))
}

// OpenTasks are all tasks that are not in a final state, in order of their ids.
func (tx *Tx) OpenTasks() ([]Task, error) {
	return list(tx, scanTask, "list open tasks", `SELECT `+taskColumns+` FROM tasks WHERE `+taskOpen+` ORDER BY id`)
}

// OpenTasksOf are the tasks of a uid that are not in a final state, in order of their ids.
func (tx *Tx) OpenTasksOf(uid ident.UID) ([]Task, error) {
	return list(tx, scanTask, "list open tasks of an account",
		`SELECT `+taskColumns+` FROM tasks WHERE uid = ? AND `+taskOpen+` ORDER BY id`, int64(uid))
}

// CountOpenTasks is how many tasks of a uid are not in a final state.
func (tx *Tx) CountOpenTasks(uid ident.UID) (int, error) {
	n, err := one(tx, value[int64], "count open tasks", `SELECT count(*) FROM tasks WHERE uid = ? AND `+taskOpen, int64(uid))
	return int(n), err
}

// NextTask is the oldest task of a uid that waits and may run now, with Params and Saved. Kinds in except are passed
// over. No such task is [ErrNotFound].
func (tx *Tx) NextTask(uid ident.UID, now time.Time, except []string) (Task, error) {
	args := []any{int64(uid), toMS(now)}
	skip := ""
	if len(except) > 0 {
		skip = ` AND kind NOT IN (?` + strings.Repeat(`, ?`, len(except)-1) + `)`
		for _, k := range except {
			args = append(args, k)
		}
	}
	return one(tx, scanTaskWork, "find next task",
		`SELECT `+taskWork+` FROM tasks WHERE uid = ? AND state = 'queued' AND not_before <= ?`+skip+` ORDER BY id LIMIT 1`, args...)
}

// TaskWork is the task with the id, with Params and Saved.
func (tx *Tx) TaskWork(id int64) (Task, error) {
	return one(tx, scanTaskWork, "look up work of a task", `SELECT `+taskWork+` FROM tasks WHERE id = ?`, id)
}

// Tasks are up to limit tasks, the newest first, ended ones included.
func (tx *Tx) Tasks(limit int) ([]Task, error) {
	return list(tx, scanTask, "list tasks", `SELECT `+taskColumns+` FROM tasks ORDER BY id DESC LIMIT ?`, limit)
}

// PurgeTasks forgets tasks that ended before a time and of whose end Core knows, as far as it is to know.
func (tx *Tx) PurgeTasks(before time.Time) (int, error) {
	n, err := tx.exec("forget ended tasks",
		`DELETE FROM tasks WHERE NOT (`+taskOpen+`) AND core_state IN ('none', 'closed') AND state_at < ?`, toMS(before))
	if err != nil {
		return 0, fmt.Errorf("purge: %w", err)
	}
	return int(n), nil
}

// TrimTasks forgets the oldest ended tasks of each uid that has more than keep of them, as [Tx.PurgeTasks] does.
func (tx *Tx) TrimTasks(keep int) (int, error) {
	n, err := tx.exec("trim ended tasks",
		`DELETE FROM tasks WHERE id IN (SELECT id FROM (
		   SELECT id, row_number() OVER (PARTITION BY uid ORDER BY id DESC) AS place FROM tasks
		   WHERE NOT (`+taskOpen+`) AND core_state IN ('none', 'closed')) AS ended WHERE place > ?)`, keep)
	return int(n), err
}
