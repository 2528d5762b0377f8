package store

import (
	"database/sql"
	"strings"
	"time"

	"ucloud-im/internal/ident"
)

// ScriptCall is one call of an extension script, as it is kept for operators (contract 42 section A.4).
type ScriptCall struct {
	ID         int64  // grows with time; chosen by InsertScriptCall
	Invocation string // what the script saw as UCLOUD_INVOCATION_ID
	Hook       string
	Path       string // program
	FileHash   string // SHA-256 of the program, hexadecimal; empty if it was never read
	Key        string // calls of one key never overlap
	// Owner is whom the call was about; the zero value if it was about nobody.
	Owner     ident.Owner
	UID       ident.UID // the account that ran it
	Attempt   int       // from 1
	StartedAt time.Time
	Duration  time.Duration // stored in milliseconds
	Result    string        // "ok", or one of package scripts' kinds of failure
	Exit      *int          // exit status; nil: it did not exit by itself
	Signal    string        // that ended it
	Message   string        // why the call failed, or what the script said about itself

	// The texts are stored up to a length that the caller decides; the numbers say how much there was.
	Request, Stdout, Stderr  string
	StdoutBytes, StderrBytes int64
}

const scriptCallColumns = `id, invocation, hook, path, file_hash, call_key, owner_user, owner_project, uid, attempt, started_at,
	duration_ms, result, exit_status, term_signal, message, request, stdout, stderr, stdout_bytes, stderr_bytes`

func scanScriptCall(s scanner) (c ScriptCall, err error) {
	var started, ms int64
	var exit sql.NullInt64
	err = s.Scan(&c.ID, &c.Invocation, &c.Hook, &c.Path, &c.FileHash, &c.Key, &c.Owner.User, &c.Owner.Project, &c.UID, &c.Attempt,
		&started, &ms, &c.Result, &exit, &c.Signal, &c.Message, &c.Request, &c.Stdout, &c.Stderr, &c.StdoutBytes, &c.StderrBytes)
	c.StartedAt, c.Duration = fromMS(started), time.Duration(ms)*time.Millisecond
	if exit.Valid {
		n := int(exit.Int64)
		c.Exit = &n
	}
	return c, err
}

// ScriptOK is the result of a call that did what it should.
const ScriptOK = "ok"

// InsertScriptCall keeps a call and gives it an id. Its texts may be anything: what no text can be is replaced.
func (tx *Tx) InsertScriptCall(c ScriptCall) (id int64, err error) {
	if id, err = tx.next("script_calls"); err != nil {
		return 0, err
	}
	var exit sql.NullInt64
	if c.Exit != nil {
		exit = sql.NullInt64{Int64: int64(*c.Exit), Valid: true}
	}
	_, err = tx.exec("keep call of a script",
		`INSERT INTO script_calls (`+scriptCallColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		id, c.Invocation, c.Hook, prose(c.Path), c.FileHash, prose(c.Key), prose(string(c.Owner.User)), prose(string(c.Owner.Project)),
		int64(c.UID), c.Attempt, toMS(c.StartedAt), c.Duration.Milliseconds(), c.Result, exit, c.Signal, prose(c.Message),
		prose(c.Request), prose(c.Stdout), prose(c.Stderr), c.StdoutBytes, c.StderrBytes)
	return id, err
}

// ScriptCall is the call with the id, complete.
func (tx *Tx) ScriptCall(id int64) (ScriptCall, error) {
	return one(tx, scanScriptCall, "look up call of a script", `SELECT `+scriptCallColumns+` FROM script_calls WHERE id = ?`, id)
}

// ScriptFilter chooses calls. Zero values choose everything.
type ScriptFilter struct {
	Hook     string
	Failures bool      // only calls that did not succeed
	Since    time.Time // started then or later
	Until    time.Time // started before
	Before   int64     // ids below; the way to the next page
}

// ScriptCalls are up to limit calls, newest first, without request and output.
func (tx *Tx) ScriptCalls(f ScriptFilter, limit int) ([]ScriptCall, error) {
	columns := strings.Replace(scriptCallColumns, "request, stdout, stderr,", "'', '', '',", 1)
	query, args := `SELECT `+columns+` FROM script_calls WHERE 1 = 1`, []any{}
	where := func(cond string, arg any) {
		query += " AND " + cond
		args = append(args, arg)
	}
	if f.Hook != "" {
		where("hook = ?", f.Hook)
	}
	if f.Failures {
		query += " AND result <> '" + ScriptOK + "'"
	}
	if !f.Since.IsZero() {
		where("started_at >= ?", toMS(f.Since))
	}
	if !f.Until.IsZero() {
		where("started_at < ?", toMS(f.Until))
	}
	if f.Before > 0 {
		where("id < ?", f.Before)
	}
	return list(tx, scanScriptCall, "list calls of scripts", query+" ORDER BY id DESC LIMIT ?", append(args, limit)...)
}

// PurgeScriptCalls removes calls that were started before a time, and the oldest beyond the newest keep, but no more
// than limit of each at once. It tells how many are gone.
func (tx *Tx) PurgeScriptCalls(before time.Time, keep int64, limit int) (int, error) {
	old, err := tx.exec("remove old calls of scripts",
		`DELETE FROM script_calls WHERE id IN (SELECT id FROM script_calls WHERE started_at < ? ORDER BY id LIMIT ?)`, toMS(before), limit)
	if err != nil {
		return 0, err
	}
	many, err := tx.exec("remove calls of scripts beyond the limit",
		`DELETE FROM script_calls WHERE id IN (SELECT id FROM script_calls
		 WHERE id <= (SELECT max(id) FROM script_calls) - ? ORDER BY id LIMIT ?)`, keep, limit)
	return int(old + many), err
}
