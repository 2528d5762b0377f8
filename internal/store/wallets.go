package store

import (
	"errors"
	"fmt"
	"time"

	"ucloud-im/internal/ident"
)

// Wallet is what Core has told about an owner's allocation in a category (contract 31 section 3.2). Core's numbers are
// unsigned 64 bit on the wire but never negative as signed ones.
type Wallet struct {
	Owner         ident.Owner
	Category      string
	CombinedQuota int64 // in the category's unit
	TotalUsage    int64
	RetiredUsage  int64
	Locked        bool
	IsAllocator   bool      // of a project that only hands resources out: no drives, no quota
	LastUpdate    time.Time // Core's clock, milliseconds
}

const walletColumns = `owner_user, owner_project, category, quota, total_usage, retired_usage, locked, is_allocator, last_update`

func scanWallet(s scanner) (w Wallet, err error) {
	var locked, allocator, last int64
	err = s.Scan(&w.Owner.User, &w.Owner.Project, &w.Category, &w.CombinedQuota, &w.TotalUsage, &w.RetiredUsage,
		&locked, &allocator, &last)
	w.Locked, w.IsAllocator, w.LastUpdate = locked != 0, allocator != 0, fromMS(last)
	return w, err
}

var errOwner = errors.New("an owner is exactly one of user and project")

// PutWallet stores the wallet, unless a newer state of it is stored already (contract 31 section 8 rule 5); one with the
// same time is accepted. changed tells whether what is stored differs now.
func (tx *Tx) PutWallet(w Wallet) (changed bool, err error) {
	if !w.Owner.Valid() {
		return false, fmt.Errorf("store wallet: %w", errOwner)
	}
	w.LastUpdate = fromMS(toMS(w.LastUpdate)) // what comes back
	old, err := tx.Wallet(w.Owner, w.Category)
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return false, err
	case old == w || w.LastUpdate.Before(old.LastUpdate):
		return false, nil
	}
	_, err = tx.exec("store wallet",
		`INSERT INTO wallets (`+walletColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
		 ON CONFLICT (owner_user, owner_project, category) DO UPDATE SET quota = excluded.quota, total_usage = excluded.total_usage,
		 retired_usage = excluded.retired_usage, locked = excluded.locked, is_allocator = excluded.is_allocator, last_update = excluded.last_update`,
		string(w.Owner.User), string(w.Owner.Project), w.Category, w.CombinedQuota, w.TotalUsage, w.RetiredUsage,
		toBit(w.Locked), toBit(w.IsAllocator), toMS(w.LastUpdate))
	return err == nil, err
}

// Wallet is the wallet of an owner in a category.
func (tx *Tx) Wallet(owner ident.Owner, category string) (Wallet, error) {
	return one(tx, scanWallet, "look up wallet",
		`SELECT `+walletColumns+` FROM wallets WHERE owner_user = ? AND owner_project = ? AND category = ?`,
		string(owner.User), string(owner.Project), category)
}

// Wallets are all wallets, in no particular order.
func (tx *Tx) Wallets() ([]Wallet, error) {
	return list(tx, scanWallet, "list wallets", `SELECT `+walletColumns+` FROM wallets`)
}

// WalletsOf are the wallets of an owner, in no particular order.
func (tx *Tx) WalletsOf(owner ident.Owner) ([]Wallet, error) {
	return list(tx, scanWallet, "list wallets of an owner",
		`SELECT `+walletColumns+` FROM wallets WHERE owner_user = ? AND owner_project = ?`, string(owner.User), string(owner.Project))
}
