package store

import (
	"errors"
	"fmt"
	"time"

	"ucloud-im/internal/ident"
)

// ComputeRun is one run of a job as Slurm's accounting told of it last, and whom it was charged to. A job that is
// requeued has several.
type ComputeRun struct {
	Key      string // unique for all time
	Account  string
	Owner    ident.Owner
	Category string
	Rate     int64     // units of the category while it runs
	Seconds  int64     // charged
	EndedAt  time.Time // zero: it has not ended
}

const computeRunColumns = `run_key, account, owner_user, owner_project, category, rate, seconds, ended_at`

func scanComputeRun(s scanner) (r ComputeRun, err error) {
	var ended int64
	err = s.Scan(&r.Key, &r.Account, &r.Owner.User, &r.Owner.Project, &r.Category, &r.Rate, &r.Seconds, &ended)
	r.EndedAt = fromMS(ended)
	return r, err
}

// ComputeRun is one run.
func (tx *Tx) ComputeRun(key string) (ComputeRun, error) {
	return one(tx, scanComputeRun, "look up run", `SELECT `+computeRunColumns+` FROM compute_runs WHERE run_key = ?`, key)
}

// ComputeRuns are all runs that are kept, in no particular order.
func (tx *Tx) ComputeRuns() ([]ComputeRun, error) {
	return list(tx, scanComputeRun, "list runs", `SELECT `+computeRunColumns+` FROM compute_runs`)
}

// OpenComputeRuns are the runs that have not ended.
func (tx *Tx) OpenComputeRuns() ([]ComputeRun, error) {
	return list(tx, scanComputeRun, "list open runs", `SELECT `+computeRunColumns+` FROM compute_runs WHERE ended_at = 0`)
}

// PutComputeRun stores a run.
func (tx *Tx) PutComputeRun(r ComputeRun) error {
	if !r.Owner.Valid() {
		return fmt.Errorf("store run: %w", errOwner)
	}
	if r.Key == "" || r.Rate < 0 || r.Seconds < 0 {
		return errors.New("store run: it has no key, or is negative")
	}
	_, err := tx.exec("store run",
		`INSERT INTO compute_runs (`+computeRunColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
		 ON CONFLICT (run_key) DO UPDATE SET account = excluded.account, rate = excluded.rate, seconds = excluded.seconds,
		 ended_at = excluded.ended_at`,
		r.Key, r.Account, string(r.Owner.User), string(r.Owner.Project), r.Category, r.Rate, r.Seconds, toMS(r.EndedAt))
	return err
}

// ForgetComputeRuns removes runs that ended before t.
func (tx *Tx) ForgetComputeRuns(t time.Time) error {
	_, err := tx.exec("forget runs", `DELETE FROM compute_runs WHERE ended_at > 0 AND ended_at < ?`, toMS(t))
	return err
}

// ComputeUsage is what a workspace has used in a category since the beginning, and what Core was told last.
type ComputeUsage struct {
	Owner     ident.Owner
	Category  string
	Minutes   int64 // units times minutes
	Rest      int64 // units times seconds, below 60
	CountedAt time.Time
	Report    UsageReport // without scope
}

const computeUsageColumns = `owner_user, owner_project, category, minutes, rest, counted_at, units, reported_at, locked, refusals, next_at, last_error`

func scanComputeUsage(s scanner) (u ComputeUsage, err error) {
	var counted, reported, locked, next int64
	r := &u.Report
	err = s.Scan(&u.Owner.User, &u.Owner.Project, &u.Category, &u.Minutes, &u.Rest, &counted, &r.Units, &reported, &locked,
		&r.Refusals, &next, &r.LastError)
	u.CountedAt = fromMS(counted)
	r.Owner, r.Category, r.ReportedAt, r.Locked, r.NextAt = u.Owner, u.Category, fromMS(reported), locked != 0, fromMS(next)
	return u, err
}

// ComputeUsage is one line of the ledger.
func (tx *Tx) ComputeUsage(owner ident.Owner, category string) (ComputeUsage, error) {
	return one(tx, scanComputeUsage, "look up usage of machines",
		`SELECT `+computeUsageColumns+` FROM compute_usage WHERE owner_user = ? AND owner_project = ? AND category = ?`,
		string(owner.User), string(owner.Project), category)
}

// ComputeUsages is the whole ledger, in no particular order.
func (tx *Tx) ComputeUsages() ([]ComputeUsage, error) {
	return list(tx, scanComputeUsage, "list usage of machines", `SELECT `+computeUsageColumns+` FROM compute_usage`)
}

// CountCompute sets what a workspace has used in a category. What Core was told stays.
func (tx *Tx) CountCompute(owner ident.Owner, category string, minutes, rest int64, at time.Time) error {
	if !owner.Valid() {
		return fmt.Errorf("count usage: %w", errOwner)
	}
	if category == "" || minutes < 0 || rest < 0 || rest >= 60 {
		return fmt.Errorf("count usage: %d minutes and %d seconds in category %q", minutes, rest, category)
	}
	_, err := tx.exec("count usage of machines",
		`INSERT INTO compute_usage (`+computeUsageColumns+`) VALUES (?, ?, ?, ?, ?, ?, 0, 0, 0, 0, 0, '')
		 ON CONFLICT (owner_user, owner_project, category) DO UPDATE SET minutes = excluded.minutes, rest = excluded.rest,
		 counted_at = excluded.counted_at`,
		string(owner.User), string(owner.Project), category, minutes, rest, toMS(at))
	return err
}

// PutComputeReport stores what Core was told about a line of the ledger, or that it refused.
func (tx *Tx) PutComputeReport(r UsageReport) error {
	if r.Units < 0 {
		return errors.New("store report of machines: it is negative")
	}
	return tx.execOne(ErrNotFound, "store report of machines",
		`UPDATE compute_usage SET units = ?, reported_at = ?, locked = ?, refusals = ?, next_at = ?, last_error = ?
		 WHERE owner_user = ? AND owner_project = ? AND category = ?`,
		r.Units, toMS(r.ReportedAt), toBit(r.Locked), r.Refusals, toMS(r.NextAt), prose(r.LastError),
		string(r.Owner.User), string(r.Owner.Project), r.Category)
}

// ComputeFilled tells for which accounts the whole history was counted.
func (tx *Tx) ComputeFilled() (map[string]bool, error) {
	names, err := list(tx, value[string], "list counted accounts", `SELECT account FROM compute_accounts`)
	out := make(map[string]bool, len(names))
	for _, n := range names {
		out[n] = true
	}
	return out, err
}

// SetComputeFilled notes that the whole history of an account was counted.
func (tx *Tx) SetComputeFilled(account string, at time.Time) error {
	_, err := tx.exec("note counted account",
		`INSERT INTO compute_accounts (account, filled_at) VALUES (?, ?) ON CONFLICT DO NOTHING`, account, toMS(at))
	return err
}
