package store

import (
	"database/sql"
	"errors"
	"time"
)

// OutboxState tells whether the outcome of earlier attempts is known.
type OutboxState string

const (
	// OutboxQueued entries wait for their time and for the entries before them.
	OutboxQueued OutboxState = "queued"
	// OutboxSuspect entries may have had an effect already, and repeating them may do harm (contract 05 C6 rule 6).
	// With a NextAt they are repeated once at that time, without one they wait for an operator.
	OutboxSuspect OutboxState = "suspect"
)

// OutboxEntry is something that must reach Core (design D8). Package outbox delivers it.
type OutboxEntry struct {
	ID        int64  // grows in the order of the commits
	Kind      string // which code delivers it
	Key       string // entries of one key are delivered one after the other, in the order of their ids
	Payload   []byte
	State     OutboxState
	Attempts  int       // failed so far
	NextAt    time.Time // not before; zero: waits for an operator
	CreatedAt time.Time
	LastError string

	// Begun is set while an attempt of a kind that must not be repeated blindly is under way (see OutboxBegin). Found
	// after a start it tells that the process ended in the middle of it.
	Begun bool
}

const outboxColumns = `id, kind, entry_key, payload, state, begun, attempts, next_at, created_at, last_error`

func scanOutbox(s scanner) (e OutboxEntry, err error) {
	var created, begun int64
	var next sql.NullInt64
	err = s.Scan(&e.ID, &e.Kind, &e.Key, (*blob)(&e.Payload), &e.State, &begun, &e.Attempts, &next, &created, &e.LastError)
	e.CreatedAt, e.Begun = fromMS(created), begun != 0
	if next.Valid {
		e.NextAt = fromMS(next.Int64)
	}
	return e, err
}

// nextAt is how NextAt is stored: NULL has another meaning than the beginning of time.
func nextAt(t time.Time) sql.NullInt64 {
	return sql.NullInt64{Int64: toMS(t), Valid: !t.IsZero()}
}

// Enqueue puts an entry behind all others of its key. It belongs into the transaction that stores the fact which the
// entry reports. notBefore must not be zero; the current time is the usual value.
func (tx *Tx) Enqueue(kind, key string, payload []byte, notBefore time.Time) (int64, error) {
	if notBefore.IsZero() {
		return 0, errors.New("enqueue: no time is given")
	}
	id, err := tx.next("outbox")
	if err != nil {
		return 0, err
	}
	_, err = tx.exec("enqueue "+kind,
		`INSERT INTO outbox (`+outboxColumns+`, head) VALUES (?, ?, ?, ?, 'queued', 0, 0, ?, ?, '',
		 CASE WHEN EXISTS (SELECT 1 FROM outbox WHERE entry_key = ?) THEN 0 ELSE 1 END)`,
		id, kind, key, bytesOf(payload), nextAt(notBefore), toMS(time.Now()), key)
	if err == nil {
		tx.enqueued = true
	}
	return id, err
}

// OutboxHeads are up to limit entries that may be delivered now: the oldest of its key, and its time has come. Those
// that have waited longest come first.
func (tx *Tx) OutboxHeads(now time.Time, limit int) ([]OutboxEntry, error) {
	return list(tx, scanOutbox, "list due deliveries",
		`SELECT `+outboxColumns+` FROM outbox WHERE head = 1 AND next_at <= ? ORDER BY next_at, id LIMIT ?`, toMS(now), limit)
}

// OutboxNextDue is the earliest time later than after at which an entry may be delivered. false: nothing waits for such
// a time.
func (tx *Tx) OutboxNextDue(after time.Time) (time.Time, bool, error) {
	ms, err := one(tx, value[sql.NullInt64], "find next delivery",
		`SELECT min(next_at) FROM outbox WHERE head = 1 AND next_at > ?`, toMS(after))
	if err != nil || !ms.Valid {
		return time.Time{}, false, err
	}
	return fromMS(ms.Int64), true, nil
}

// OutboxEntry is the entry with the id.
func (tx *Tx) OutboxEntry(id int64) (OutboxEntry, error) {
	return one(tx, scanOutbox, "look up delivery", `SELECT `+outboxColumns+` FROM outbox WHERE id = ?`, id)
}

// OutboxAll are all entries in order of their ids.
func (tx *Tx) OutboxAll() ([]OutboxEntry, error) {
	return list(tx, scanOutbox, "list deliveries", `SELECT `+outboxColumns+` FROM outbox ORDER BY id`)
}

// OutboxBegun are the entries whose attempt was begun and not ended.
func (tx *Tx) OutboxBegun() ([]OutboxEntry, error) {
	return list(tx, scanOutbox, "list begun deliveries",
		`SELECT `+outboxColumns+` FROM outbox WHERE begun = 1 ORDER BY id`)
}

// OutboxBegin notes that an attempt begins. OutboxRetry and OutboxDone end it.
func (tx *Tx) OutboxBegin(id int64) error {
	return tx.execOne(ErrNotFound, "begin delivery", `UPDATE outbox SET begun = 1 WHERE id = ?`, id)
}

// OutboxDone removes a delivered entry; the next of its key may go.
func (tx *Tx) OutboxDone(id int64) error {
	keys, err := list(tx, value[string], "end delivery", `DELETE FROM outbox WHERE id = ? RETURNING entry_key`, id)
	if err != nil {
		return err
	}
	if len(keys) == 0 {
		return ErrNotFound
	}
	// When the entry was not the oldest of its key, the oldest is the head already and stays it.
	_, err = tx.exec("advance key",
		`UPDATE outbox SET head = 1 WHERE id = (SELECT min(id) FROM outbox WHERE entry_key = ?)`, keys[0])
	return err
}

// OutboxDrop removes an entry that nobody will deliver any more, on behalf of an operator or because Core refuses it
// for good.
func (tx *Tx) OutboxDrop(id int64) error { return tx.OutboxDone(id) }

// OutboxRetry notes a failed attempt: when the next may be made (zero: an operator decides) and in which state.
func (tx *Tx) OutboxRetry(id int64, next time.Time, lastErr string, state OutboxState) error {
	return tx.execOne(ErrNotFound, "put delivery back",
		`UPDATE outbox SET attempts = attempts + 1, begun = 0, next_at = ?, last_error = ?, state = ? WHERE id = ?`,
		nextAt(next), prose(lastErr), string(state), id)
}

// OutboxRelease is an operator's decision to try an entry again from the beginning, at the given time.
func (tx *Tx) OutboxRelease(id int64, at time.Time) error {
	err := tx.execOne(ErrNotFound, "release delivery",
		`UPDATE outbox SET state = 'queued', begun = 0, attempts = 0, next_at = ? WHERE id = ?`, nextAt(at), id)
	if err == nil {
		tx.enqueued = true // wakes the dispatcher
	}
	return err
}

// OutboxCounts says how many entries there are in each state.
func (tx *Tx) OutboxCounts() (map[OutboxState]int, error) {
	type row struct {
		state OutboxState
		n     int
	}
	rows, err := list(tx, func(s scanner) (r row, err error) { return r, s.Scan(&r.state, &r.n) },
		"count deliveries", `SELECT state, count(*) FROM outbox GROUP BY state`)
	counts := make(map[OutboxState]int, len(rows))
	for _, r := range rows {
		counts[r.state] = r.n
	}
	return counts, err
}
