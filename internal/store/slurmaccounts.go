package store

import (
	"database/sql"
	"errors"
	"fmt"
	"time"

	"ucloud-im/internal/ident"
)

// SlurmAccount is the Slurm account of a workspace in a machine category (contract 22 section 3).
type SlurmAccount struct {
	Owner     ident.Owner
	Category  string
	Account   string
	CreatedAt time.Time
}

const slurmAccountColumns = `owner_user, owner_project, category, account, created_at`

func scanSlurmAccount(s scanner) (a SlurmAccount, err error) {
	var created int64
	err = s.Scan(&a.Owner.User, &a.Owner.Project, &a.Category, &a.Account, &created)
	a.CreatedAt = fromMS(created)
	return a, err
}

// PutSlurmAccount stores the account of a workspace. An account belongs to one workspace, or one could use up what the
// other has paid for: one that another workspace has is [ErrConflict], and nothing is stored.
func (tx *Tx) PutSlurmAccount(a SlurmAccount) error {
	if !a.Owner.Valid() {
		return fmt.Errorf("store slurm account: %w", errOwner)
	}
	if a.Category == "" || a.Account == "" {
		return errors.New("store slurm account: it has no category or no name")
	}
	others, err := tx.SlurmAccountOwners(a.Account)
	if err != nil {
		return err
	}
	for _, o := range others {
		if o.Owner != a.Owner {
			return fmt.Errorf("store slurm account %s: another workspace has it: %w", a.Account, ErrConflict)
		}
	}
	_, err = tx.exec("store slurm account",
		`INSERT INTO slurm_accounts (`+slurmAccountColumns+`) VALUES (?, ?, ?, ?, ?)
		 ON CONFLICT (owner_user, owner_project, category) DO UPDATE SET account = excluded.account, created_at = excluded.created_at`,
		string(a.Owner.User), string(a.Owner.Project), a.Category, a.Account, toMS(a.CreatedAt))
	return err
}

// SlurmAccount is the account of a workspace in a category.
func (tx *Tx) SlurmAccount(owner ident.Owner, category string) (SlurmAccount, error) {
	return one(tx, scanSlurmAccount, "look up slurm account",
		`SELECT `+slurmAccountColumns+` FROM slurm_accounts WHERE owner_user = ? AND owner_project = ? AND category = ?`,
		string(owner.User), string(owner.Project), category)
}

// SlurmAccountOwners are the entries of an account: one workspace, perhaps in several categories.
func (tx *Tx) SlurmAccountOwners(account string) ([]SlurmAccount, error) {
	return list(tx, scanSlurmAccount, "look up owner of slurm account",
		`SELECT `+slurmAccountColumns+` FROM slurm_accounts WHERE account = ? ORDER BY category`, account)
}

// SlurmAccountsOf are the accounts of a workspace, by category.
func (tx *Tx) SlurmAccountsOf(owner ident.Owner) ([]SlurmAccount, error) {
	return list(tx, scanSlurmAccount, "list slurm accounts of an owner",
		`SELECT `+slurmAccountColumns+` FROM slurm_accounts WHERE owner_user = ? AND owner_project = ? ORDER BY category`,
		string(owner.User), string(owner.Project))
}

// SlurmAccounts are all accounts, in no particular order.
func (tx *Tx) SlurmAccounts() ([]SlurmAccount, error) {
	return list(tx, scanSlurmAccount, "list slurm accounts", `SELECT `+slurmAccountColumns+` FROM slurm_accounts`)
}

// DeleteSlurmAccount forgets the account of a workspace in a category; no error if there is none.
func (tx *Tx) DeleteSlurmAccount(owner ident.Owner, category string) error {
	_, err := tx.exec("forget slurm account",
		`DELETE FROM slurm_accounts WHERE owner_user = ? AND owner_project = ? AND category = ?`,
		string(owner.User), string(owner.Project), category)
	return err
}

// SetSlurmManaged notes that an account in Slurm is ours to change: we made it, or an operator handed it over. One that is
// noted already stays as it is.
func (tx *Tx) SetSlurmManaged(account string, adopted bool, at time.Time) error {
	_, err := tx.exec("note managed slurm account",
		`INSERT INTO slurm_managed (account, adopted, at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`, account, toBit(adopted), toMS(at))
	return err
}

// SlurmManaged are the accounts in Slurm that are ours to change.
func (tx *Tx) SlurmManaged() (map[string]bool, error) {
	names, err := list(tx, value[string], "list managed slurm accounts", `SELECT account FROM slurm_managed`)
	out := make(map[string]bool, len(names))
	for _, n := range names {
		out[n] = true
	}
	return out, err
}

// SlurmMember is a member of an account whom this module has put there, or has told the site's script of.
type SlurmMember struct {
	Account   string
	LocalName string
	User      ident.UCloudUser
	UID       ident.UID
	Role      string // in the project; empty in a personal workspace
}

const slurmMemberColumns = `account, local_name, user_name, uid, member_role`

func scanSlurmMember(s scanner) (m SlurmMember, err error) {
	err = s.Scan(&m.Account, &m.LocalName, &m.User, &m.UID, &m.Role)
	return m, err
}

// PutSlurmMember notes a member.
func (tx *Tx) PutSlurmMember(m SlurmMember) error {
	_, err := tx.exec("note member of slurm account",
		`INSERT INTO slurm_members (`+slurmMemberColumns+`) VALUES (?, ?, ?, ?, ?)
		 ON CONFLICT (account, local_name) DO UPDATE SET user_name = excluded.user_name, uid = excluded.uid, member_role = excluded.member_role`,
		m.Account, m.LocalName, string(m.User), int64(m.UID), m.Role)
	return err
}

// DeleteSlurmMember forgets a member; no error if there is none.
func (tx *Tx) DeleteSlurmMember(account, localName string) error {
	_, err := tx.exec("forget member of slurm account",
		`DELETE FROM slurm_members WHERE account = ? AND local_name = ?`, account, localName)
	return err
}

// SlurmMembers are the members of an account that were noted, by name.
func (tx *Tx) SlurmMembers(account string) ([]SlurmMember, error) {
	return list(tx, scanSlurmMember, "list members of slurm account",
		`SELECT `+slurmMemberColumns+` FROM slurm_members WHERE account = ? ORDER BY local_name`, account)
}

// SlurmMemberCounts are the numbers of members that were noted, by account.
func (tx *Tx) SlurmMemberCounts() (map[string]int, error) {
	type count struct {
		account string
		n       int
	}
	rows, err := list(tx, func(s scanner) (c count, err error) { err = s.Scan(&c.account, &c.n); return c, err }, "count members of slurm accounts",
		`SELECT account, COUNT(*) FROM slurm_members GROUP BY account`)
	out := make(map[string]int, len(rows))
	for _, r := range rows {
		out[r.account] = r.n
	}
	return out, err
}

// SlurmWork is how far something about an account is from what it should be. Applied and Wanted are digests.
type SlurmWork struct {
	Key       string
	Account   string
	Applied   string // what was done last; empty: nothing
	Wanted    string // what is being tried
	Minutes   int64  // the limit that was set last; -1: none
	Locked    bool
	AppliedAt time.Time // zero: never
	Attempts  int       // failures of Wanted
	Since     time.Time // when Wanted became what it is
	NextAt    time.Time // not before; zero: an operator must look
	LastError string
}

const slurmWorkColumns = `work_key, account, applied, wanted, minutes, locked, applied_at, attempts, since, next_at, last_error`

func scanSlurmWork(s scanner) (w SlurmWork, err error) {
	var locked, applied, since int64
	var next sql.NullInt64
	err = s.Scan(&w.Key, &w.Account, &w.Applied, &w.Wanted, &w.Minutes, &locked, &applied, &w.Attempts, &since, &next, &w.LastError)
	w.Locked, w.AppliedAt, w.Since = locked != 0, fromMS(applied), fromMS(since)
	if next.Valid {
		w.NextAt = fromMS(next.Int64)
	}
	return w, err
}

// PutSlurmWork stores how something about an account stands.
func (tx *Tx) PutSlurmWork(w SlurmWork) error {
	_, err := tx.exec("store work on slurm account",
		`INSERT INTO slurm_work (`+slurmWorkColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		 ON CONFLICT (work_key) DO UPDATE SET account = excluded.account, applied = excluded.applied, wanted = excluded.wanted,
		 minutes = excluded.minutes, locked = excluded.locked, applied_at = excluded.applied_at, attempts = excluded.attempts,
		 since = excluded.since, next_at = excluded.next_at, last_error = excluded.last_error`,
		w.Key, w.Account, w.Applied, w.Wanted, w.Minutes, toBit(w.Locked), toMS(w.AppliedAt), w.Attempts, toMS(w.Since),
		nextAt(w.NextAt), prose(w.LastError))
	return err
}

// SlurmWork is one piece of work.
func (tx *Tx) SlurmWork(key string) (SlurmWork, error) {
	return one(tx, scanSlurmWork, "look up work on slurm account", `SELECT `+slurmWorkColumns+` FROM slurm_work WHERE work_key = ?`, key)
}

// SlurmWorks are all pieces of work, in no particular order.
func (tx *Tx) SlurmWorks() ([]SlurmWork, error) {
	return list(tx, scanSlurmWork, "list work on slurm accounts", `SELECT `+slurmWorkColumns+` FROM slurm_work`)
}

// DeleteSlurmWork forgets a piece of work; no error if there is none.
func (tx *Tx) DeleteSlurmWork(key string) error {
	_, err := tx.exec("forget work on slurm account", `DELETE FROM slurm_work WHERE work_key = ?`, key)
	return err
}
