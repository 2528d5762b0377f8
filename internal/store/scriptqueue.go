package store

import (
	"database/sql"
	"time"
)

// QueuedCall is a call of a script that must happen (contract 42 section A.3). Calls of one hook and key are made in the
// order of their ids.
type QueuedCall struct {
	ID        int64
	Hook      string
	Key       string
	Payload   []byte
	Attempts  int       // failed so far
	NextAt    time.Time // not before; zero: waits for an operator to change something
	CreatedAt time.Time
	LastError string
}

const queuedCallColumns = `id, hook, call_key, payload, attempts, next_at, created_at, last_error`

func scanQueuedCall(s scanner) (c QueuedCall, err error) {
	var next sql.NullInt64
	var created int64
	err = s.Scan(&c.ID, &c.Hook, &c.Key, (*blob)(&c.Payload), &c.Attempts, &next, &created, &c.LastError)
	c.CreatedAt = fromMS(created)
	if next.Valid {
		c.NextAt = fromMS(next.Int64)
	}
	return c, err
}

// QueueCall puts a call behind all others of its hook and key. It belongs into the transaction of the fact that the script
// is told of.
func (tx *Tx) QueueCall(hook, key string, payload []byte, at time.Time) error {
	id, err := tx.next("script_queue")
	if err != nil {
		return err
	}
	_, err = tx.exec("queue call of a script",
		`INSERT INTO script_queue (`+queuedCallColumns+`) VALUES (?, ?, ?, ?, 0, ?, ?, '')`,
		id, hook, key, bytesOf(payload), toMS(at), toMS(at))
	return err
}

// QueuedHeads are the oldest calls of each key of a hook, whether they are due or not, up to a limit.
func (tx *Tx) QueuedHeads(hook string, limit int) ([]QueuedCall, error) {
	return list(tx, scanQueuedCall, "list queued calls of scripts",
		`SELECT `+queuedCallColumns+` FROM script_queue q WHERE hook = ? AND next_at IS NOT NULL AND id =
		 (SELECT min(id) FROM script_queue o WHERE o.hook = q.hook AND o.call_key = q.call_key) ORDER BY next_at, id LIMIT ?`, hook, limit)
}

// CallsOf are the calls of one hook and key, oldest first.
func (tx *Tx) CallsOf(hook, key string) ([]QueuedCall, error) {
	return list(tx, scanQueuedCall, "list calls of a script by key",
		`SELECT `+queuedCallColumns+` FROM script_queue WHERE hook = ? AND call_key = ? ORDER BY id`, hook, key)
}

// RetryCall puts a call back after a failure; a zero next has it wait for [Tx.ReleaseCalls].
func (tx *Tx) RetryCall(id int64, next time.Time, lastError string) error {
	return tx.execOne(ErrNotFound, "put back call of a script",
		`UPDATE script_queue SET attempts = attempts + 1, next_at = ?, last_error = ? WHERE id = ?`, nextAt(next), prose(lastError), id)
}

// CallDone removes a call.
func (tx *Tx) CallDone(id int64) error {
	return tx.execOne(ErrNotFound, "remove call of a script", `DELETE FROM script_queue WHERE id = ?`, id)
}

// ReleaseCalls has the calls tried again that wait for an operator.
func (tx *Tx) ReleaseCalls(at time.Time) error {
	_, err := tx.exec("release calls of scripts", `UPDATE script_queue SET next_at = ? WHERE next_at IS NULL`, toMS(at))
	return err
}

// QueuedCalls counts the calls that have failed and are tried again, and those that wait for an operator, with the last
// error of one of them.
func (tx *Tx) QueuedCalls() (failing, parked int, lastError string, err error) {
	all, err := list(tx, scanQueuedCall, "list queued calls of scripts",
		`SELECT `+queuedCallColumns+` FROM script_queue WHERE attempts > 0 ORDER BY id LIMIT 10000`)
	for _, c := range all {
		if lastError = c.LastError; c.NextAt.IsZero() {
			parked++
		} else {
			failing++
		}
	}
	return failing, parked, lastError, err
}
