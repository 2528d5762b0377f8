package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// Tx is a running transaction. It belongs to the function that [Store.Update] or [Store.View] called: it must not be
// kept and must not be used by two goroutines at a time. It carries the context of the transaction, so its methods
// take none.
type Tx struct {
	ctx     context.Context
	tx      *sql.Tx
	engine  engine
	timeout time.Duration

	failed   error // the first failed statement; ends the transaction
	enqueued bool  // something was put into the outbox
	after    []func()
}

// AfterCommit has f called once this transaction is committed, in the goroutine of whoever called [Store.Update]; not if
// it is rolled back. f may use the store.
func (tx *Tx) AfterCommit(f func()) { tx.after = append(tx.after, f) }

// begin checks that a statement may run and that its operands are storable. The two engines differ in which text they
// take: PostgreSQL refuses NUL and invalid UTF-8, SQLite stores both.
func (tx *Tx) begin(args []any) error {
	if tx.failed != nil {
		return tx.failed
	}
	for _, a := range args {
		if s, ok := a.(string); ok && (!utf8.ValidString(s) || strings.ContainsRune(s, 0)) {
			return errors.New("text is not valid UTF-8 without NUL")
		}
	}
	return nil
}

// fail records that a statement failed, and gives the error its meaning.
func (tx *Tx) fail(doing string, err error) error {
	if tx.engine.conflict(err) {
		err = fmt.Errorf("%w: %w", ErrConflict, err)
	}
	err = fmt.Errorf("%s: %w", doing, err)
	if tx.failed == nil {
		tx.failed = err
	}
	return err
}

// exec runs a statement and returns how many rows it changed. doing says what it is for, in errors.
func (tx *Tx) exec(doing, query string, args ...any) (int64, error) {
	if err := tx.begin(args); err != nil {
		return 0, fmt.Errorf("%s: %w", doing, err)
	}
	ctx, cancel := context.WithTimeout(tx.ctx, tx.timeout)
	defer cancel()
	res, err := tx.tx.ExecContext(ctx, tx.engine.rebind(query), args...)
	if err != nil {
		return 0, tx.fail(doing, err)
	}
	n, err := res.RowsAffected()
	if err != nil {
		return 0, tx.fail(doing, err)
	}
	return n, nil
}

// execOne is exec for a statement that must change exactly one row; none changed is onNone.
func (tx *Tx) execOne(onNone error, doing, query string, args ...any) error {
	n, err := tx.exec(doing, query, args...)
	if err == nil && n == 0 {
		err = fmt.Errorf("%s: %w", doing, onNone)
	}
	return err
}

// scanner is a row.
type scanner interface{ Scan(dest ...any) error }

// list runs a query and reads all rows.
func list[T any](tx *Tx, scan func(scanner) (T, error), doing, query string, args ...any) ([]T, error) {
	if err := tx.begin(args); err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	ctx, cancel := context.WithTimeout(tx.ctx, tx.timeout)
	defer cancel()
	rows, err := tx.tx.QueryContext(ctx, tx.engine.rebind(query), args...)
	if err != nil {
		return nil, tx.fail(doing, err)
	}
	defer rows.Close()
	var all []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, tx.fail(doing, err)
		}
		all = append(all, v)
	}
	if err := rows.Err(); err != nil {
		return nil, tx.fail(doing, err)
	}
	return all, nil
}

// one runs a query for at most one row. No row is [ErrNotFound].
func one[T any](tx *Tx, scan func(scanner) (T, error), doing, query string, args ...any) (T, error) {
	all, err := list(tx, scan, doing, query, args...)
	if err != nil {
		var zero T
		return zero, err
	}
	if len(all) == 0 {
		var zero T
		return zero, fmt.Errorf("%s: %w", doing, ErrNotFound)
	}
	return all[0], nil
}

// value scans a row of one column.
func value[T any](s scanner) (v T, err error) {
	err = s.Scan(&v)
	return v, err
}

// next counts up the named counter, starting at 1. Unlike a sequence of the database it grows in the order of the
// commits, which the outbox depends on.
func (tx *Tx) next(counter string) (int64, error) {
	return one(tx, value[int64], "count "+counter,
		`INSERT INTO counters (name, value) VALUES (?, 1)
		 ON CONFLICT (name) DO UPDATE SET value = counters.value + 1 RETURNING value`, counter)
}

// toMS is how a time is stored.
func toMS(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// fromMS is the reverse of toMS.
func fromMS(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// optMS is how a time that may be missing is stored.
func optMS(t *time.Time) sql.NullInt64 {
	if t == nil {
		return sql.NullInt64{}
	}
	return sql.NullInt64{Int64: toMS(*t), Valid: true}
}

// fromOpt is the reverse of optMS.
func fromOpt(n sql.NullInt64) *time.Time {
	if !n.Valid {
		return nil
	}
	t := fromMS(n.Int64)
	return &t
}

// toBit is how a bool is stored: the engines have no common type.
func toBit(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// bytesOf makes a nil slice an empty one, which is not NULL.
func bytesOf(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// blob scans a BLOB column: empty comes back as nil on both engines.
type blob []byte

// Scan implements [sql.Scanner].
func (b *blob) Scan(src any) error {
	data, ok := src.([]byte)
	if !ok && src != nil {
		return fmt.Errorf("%T is not binary", src)
	}
	*b = nil
	if len(data) > 0 {
		*b = bytes.Clone(data) // the driver keeps its own
	}
	return nil
}

// prose makes any text storable. It is for texts that people read, such as error messages from elsewhere; never for
// something that is compared.
func prose(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "")
}

// hashOf reads a SHA-256 column.
func hashOf(b []byte) (h [32]byte, err error) {
	if len(b) != len(h) {
		return h, fmt.Errorf("hash of %d bytes", len(b))
	}
	copy(h[:], b)
	return h, nil
}
