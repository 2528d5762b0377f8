package slurmaccounts

import (
	"cmp"
	"context"
	"slices"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
)

// Entry is what there is to know about the account of a workspace in a category.
type Entry struct {
	Owner    ident.Owner
	Category string
	Account  string // empty: there is an allocation and no account
	Foreign  bool   // somebody else has made it in Slurm

	Members        int
	Minutes        int64 // the limit that should be; None: no limit
	Locked         bool
	AppliedMinutes int64 // the limit that was set last
	AppliedLock    bool
	AppliedAt      time.Time // zero: never
	Problem        string    // why it is not as it should be; empty: it is

	Used store.ComputeUsage
}

// Overview lists accounts, and allocations that have none.
func (s *Service) Overview(ctx context.Context) (all []Entry, err error) {
	set := s.current()
	type key struct {
		owner    ident.Owner
		category string
	}
	err = s.o.Store.View(ctx, func(tx *store.Tx) error {
		all = nil
		accounts, err := tx.SlurmAccounts()
		if err != nil {
			return err
		}
		list, err := tx.Wallets()
		if err != nil {
			return err
		}
		managed, err := tx.SlurmManaged()
		if err != nil {
			return err
		}
		works, err := tx.SlurmWorks()
		if err != nil {
			return err
		}
		usages, err := tx.ComputeUsages()
		if err != nil {
			return err
		}
		members, err := tx.SlurmMemberCounts()
		if err != nil {
			return err
		}
		wallets, used := map[key]*store.Wallet{}, map[key]store.ComputeUsage{}
		for i, w := range list {
			wallets[key{w.Owner, w.Category}] = &list[i]
		}
		for _, u := range usages {
			used[key{u.Owner, u.Category}] = u
		}
		byAccount := map[string][]store.SlurmWork{}
		for _, w := range works {
			byAccount[w.Account] = append(byAccount[w.Account], w)
		}
		for _, a := range accounts {
			k := key{a.Owner, a.Category}
			c, ok := set.category(a.Category)
			p := part{category: c, wallet: wallets[k]}
			e := Entry{
				Owner: a.Owner, Category: a.Category, Account: a.Account, Members: members[a.Account], Minutes: None, AppliedMinutes: None,
				Used: used[k], Foreign: set.Management.Type == Automatic && !managed[a.Account] && len(byAccount[a.Account]) > 0,
			}
			if ok {
				e.Minutes, e.Locked = p.minutes(), p.locked()
			} else {
				e.Problem = "the category is not in the configuration"
			}
			e.progress(byAccount[a.Account], set.Management.Type)
			delete(wallets, k)
			all = append(all, e)
		}
		for k, w := range wallets {
			c, ok := set.category(k.category)
			if !ok || w.IsAllocator || w.CombinedQuota <= 0 || set.Mapping.choice() {
				continue
			}
			p := part{category: c, wallet: w}
			all = append(all, Entry{
				Owner: k.owner, Category: k.category, Minutes: p.minutes(), Locked: p.locked(), AppliedMinutes: None, Used: used[k],
				Problem: "there is no account yet; \"ucloud slurm accounts re-evaluate\" tells why",
			})
		}
		return nil
	})
	slices.SortFunc(all, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.Category, b.Category), compareOwners(a.Owner, b.Owner))
	})
	return all, err
}

// progress adds how far the work on an account is.
func (e *Entry) progress(works []store.SlurmWork, management string) {
	for _, w := range works {
		if w.Attempts > 0 {
			e.Problem = w.LastError
		}
		if w.Key == "account/"+e.Account || w.Key == "quota/"+e.Account+"/"+e.Category {
			e.AppliedMinutes, e.AppliedLock, e.AppliedAt = w.Minutes, w.Locked, w.AppliedAt
		}
	}
	if e.Problem == "" && e.AppliedAt.IsZero() && management != Off {
		e.Problem = "nothing was done about it in Slurm yet"
	}
}
