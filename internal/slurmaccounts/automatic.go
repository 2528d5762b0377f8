package slurmaccounts

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
)

// mark stands in the field Organization of accounts that this module has made, so that they are known even if we die
// before it is noted.
func (s *Service) mark() string { return "ucloud-" + s.o.Provider }

// read asks Slurm for one account.
func (l *look) read(ctx context.Context, account string) (st State, exists bool, err error) {
	all := l.snapshot
	if all == nil {
		if all, err = l.s.o.Cluster.Read(ctx, []string{account}); err != nil {
			return State{}, false, fmt.Errorf("ask Slurm: %w", err)
		}
	}
	st, exists = all[account]
	return st, exists, nil
}

// automatic makes an account what it should be.
func (l *look) automatic(ctx context.Context, g *goal) (again time.Time, err error) {
	digest, err := g.digest()
	if err != nil {
		return time.Time{}, err
	}
	again, err = l.s.try(ctx, job{
		key: "account/" + g.account, account: g.account, digest: digest, retry: patience, always: true,
		do: func(w store.SlurmWork) error {
			err := l.arrange(ctx, g, w)
			if err != nil {
				l.forget(g.account) // it is not what the snapshot says
			}
			return err
		},
		done: func(_ *store.Tx, w *store.SlurmWork) error {
			w.Minutes, w.Locked = g.limit(), g.locked() && l.set.Management.WhenLocked != LockNone
			return nil
		},
	})
	if err == nil {
		l.s.done(g.account)
	}
	return again, err
}

// forget drops an account from the snapshot: it is read again if it is needed.
func (l *look) forget(account string) {
	if l.snapshot == nil {
		return
	}
	delete(l.snapshot, account)
}

// arrange writes the differences between a goal and what Slurm has, and looks whether Slurm agrees.
func (l *look) arrange(ctx context.Context, g *goal, w store.SlurmWork) error {
	st, exists, err := l.read(ctx, g.account)
	if err != nil {
		return err
	}
	if !exists && g.orphan {
		return nil
	}
	if err := l.own(ctx, g, st, exists); err != nil {
		return err
	}
	if !exists {
		l.forget(g.account)
		fresh := &look{s: l.s, set: l.set} // never the snapshot: it has not got the account
		if st, exists, err = fresh.read(ctx, g.account); err != nil {
			return err
		}
		if !exists {
			return errors.New("Slurm does not have the account yet that was made") //nolint:staticcheck // a name
		}
	}
	// Members who cannot be changed, such as one who has left and has jobs, do not hold up limits and locks.
	wrote, membersErr := l.arrangeMembers(ctx, g, st)
	change := l.change(g, st, w)
	if !change.empty() {
		if g.locked() && !w.Locked {
			// Noted first: only a lock that we may have set is taken away again.
			w.Locked = true
			if err := l.s.o.Store.Update(ctx, func(tx *store.Tx) error { return tx.PutSlurmWork(w) }); err != nil {
				return fmt.Errorf("note a lock: %w", err)
			}
		}
		if err := l.s.o.Cluster.Change(ctx, g.account, change); err != nil {
			return errors.Join(membersErr, fmt.Errorf("change the account: %w", err))
		}
		l.s.log.Info("Slurm account changed", "account", g.account, "owner", g.owner.Reference(), "minutes", g.limit(), "locked", g.locked())
		wrote = true
	}
	if !wrote || membersErr != nil {
		return membersErr
	}
	return l.verify(ctx, g, w)
}

// verify looks whether Slurm agrees after a change.
func (l *look) verify(ctx context.Context, g *goal, w store.SlurmWork) error {
	fresh := &look{s: l.s, set: l.set}
	st, exists, err := fresh.read(ctx, g.account)
	if err != nil {
		return err
	}
	if l.snapshot != nil {
		l.snapshot[g.account] = st
	}
	if !exists || !fresh.change(g, st, w).empty() {
		return errors.New("Slurm does not have the change yet") //nolint:staticcheck // a name
	}
	for name := range g.members {
		if l.set.Management.CreateUsers && !st.Users[name] {
			return fmt.Errorf("Slurm does not have the member %s yet", name) //nolint:staticcheck // a name
		}
	}
	return nil
}

// own makes sure that an account is there and ours to change.
func (l *look) own(ctx context.Context, g *goal, st State, exists bool) error {
	var managed map[string]bool
	if err := l.s.o.Store.View(ctx, func(tx *store.Tx) (err error) { managed, err = tx.SlurmManaged(); return err }); err != nil {
		return err
	}
	if exists && !managed[g.account] && st.Organization != l.s.mark() {
		return parked{failure.New(failure.Conflict,
			"the account exists in Slurm and was not made by this module. If it is meant for this workspace, hand it over with \"ucloud slurm accounts adopt\"; otherwise change the mapper and evaluate again")}
	}
	if !exists {
		qos := g.qos()
		a := NewAccount{Name: g.account, Organization: l.s.mark(), Description: describe(g.owner), Parent: l.set.Management.Parent, QoS: qos}
		if len(qos) > 0 {
			a.DefaultQoS = qos[0]
		}
		if err := l.s.o.Cluster.Create(ctx, a); err != nil {
			return fmt.Errorf("make the account: %w", err)
		}
		l.s.log.Info("Slurm account made", "account", g.account, "owner", g.owner.Reference())
	}
	if managed[g.account] {
		return nil
	}
	return l.s.o.Store.Update(ctx, func(tx *store.Tx) error { return tx.SetSlurmManaged(g.account, false, time.Now()) })
}

// describe tells administrators of Slurm what an account is for. Titles stay out: they may hold anything.
func describe(o ident.Owner) string {
	kind, id := "UCloud user ", string(o.User)
	if o.IsProject() {
		kind, id = "UCloud project ", string(o.Project)
	}
	return kind + strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' {
			return r
		}
		return '_'
	}, id)
}

// arrangeMembers adds and removes members. wrote tells whether anything was changed in Slurm.
func (l *look) arrangeMembers(ctx context.Context, g *goal, st State) (wrote bool, err error) {
	if g.orphan {
		return false, nil
	}
	m := l.set.Management
	var noted []store.SlurmMember
	var gone []string
	err = l.s.o.Store.View(ctx, func(tx *store.Tx) (err error) {
		gone = nil
		if noted, err = tx.SlurmMembers(g.account); err != nil {
			return err
		}
		for _, n := range noted {
			if _, there := g.members[n.LocalName]; there {
				continue
			}
			left, _, err := l.s.left(tx, g.owner, n)
			if err != nil {
				return err
			}
			if left {
				gone = append(gone, n.LocalName)
			}
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("read members: %w", err)
	}
	if m.CreateUsers {
		var names []string
		for _, name := range slices.Sorted(maps.Keys(g.members)) {
			if !st.Users[name] {
				names = append(names, name)
			}
		}
		if len(names) > 0 {
			// Noted first, so that whom we add is known as ours whatever happens.
			err := l.s.o.Store.Update(ctx, func(tx *store.Tx) error {
				for _, name := range names {
					if err := tx.PutSlurmMember(g.members[name]); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return false, fmt.Errorf("note members: %w", err)
			}
			if err := l.s.o.Cluster.AddUsers(ctx, g.account, names, m.SetDefaultAccount); err != nil {
				return false, fmt.Errorf("add members: %w", err)
			}
			l.s.log.Info("members of a Slurm account added", "account", g.account, "members", names)
			wrote = true
		}
	}
	if !m.Cleanup || len(gone) == 0 {
		return wrote, nil
	}
	present := slices.DeleteFunc(slices.Clone(gone), func(name string) bool { return !st.Users[name] })
	if len(present) > 0 {
		if err := l.s.o.Cluster.RemoveUsers(ctx, g.account, present); err != nil {
			return wrote, fmt.Errorf("remove members: %w", err)
		}
		l.s.log.Info("members of a Slurm account removed", "account", g.account, "members", present)
		wrote = true
	}
	return wrote, l.s.o.Store.Update(ctx, func(tx *store.Tx) error {
		for _, name := range gone {
			if err := tx.DeleteSlurmMember(g.account, name); err != nil {
				return err
			}
		}
		return nil
	})
}

// change is what differs between a goal and what Slurm has.
func (l *look) change(g *goal, st State, w store.SlurmWork) (c Change) {
	value := func(n int64) *int64 { return &n }
	m := l.set.Management
	lock := g.locked() && m.WhenLocked != LockNone
	if g.known() {
		switch {
		case lock && m.WhenLocked == LockMaxJobs && st.MaxJobs != 0:
			c.MaxJobs = value(0)
		case lock && m.WhenLocked == LockMaxSubmit && st.MaxSubmit != 0:
			c.MaxSubmit = value(0)
		case !lock && (w.Locked || w.AppliedAt.IsZero()): // a lock of an operator stays
			if st.MaxJobs == 0 {
				c.MaxJobs = value(None)
			}
			if st.MaxSubmit == 0 {
				c.MaxSubmit = value(None)
			}
		}
	}
	if g.orphan {
		return c
	}
	if g.known() {
		limit := g.limit()
		if st.Billing != limit {
			c.Billing = value(limit)
		}
		if !m.KeepFairshare && limit != None && st.Fairshare != shares(limit) {
			c.Fairshare = value(shares(limit))
		}
	}
	for _, q := range g.qos() {
		if !slices.Contains(st.QoS, q) {
			c.AddQoS = append(c.AddQoS, q)
		}
	}
	return c
}

// orphans locks accounts that were made for a workspace which has another one now. They are never deleted.
func (l *look) orphans(ctx context.Context) (again time.Time, err error) {
	var names []string
	err = l.s.o.Store.View(ctx, func(tx *store.Tx) error {
		names = nil
		managed, err := tx.SlurmManaged()
		if err != nil {
			return err
		}
		accounts, err := tx.SlurmAccounts()
		if err != nil {
			return err
		}
		for _, a := range accounts {
			delete(managed, a.Account)
		}
		names = slices.Sorted(maps.Keys(managed))
		return nil
	})
	if err != nil {
		return time.Time{}, err
	}
	for _, name := range names {
		at, err := l.automatic(ctx, &goal{account: name, orphan: true})
		if err != nil {
			return time.Time{}, err
		}
		if !at.IsZero() && (again.IsZero() || at.Before(again)) {
			again = at
		}
	}
	return again, nil
}

// Adopt hands accounts in Slurm over that others have made: from now on they are changed like our own.
func (s *Service) Adopt(ctx context.Context, account string) error {
	var owners []store.SlurmAccount
	err := s.o.Store.Update(ctx, func(tx *store.Tx) (err error) {
		if owners, err = tx.SlurmAccountOwners(account); err != nil {
			return err
		}
		if len(owners) == 0 {
			return failure.New(failure.NotFound, "no workspace has the Slurm account %q", account)
		}
		return tx.SetSlurmManaged(account, true, time.Now())
	})
	if err != nil {
		return err
	}
	for _, a := range owners {
		s.lookAgain(account, a.Owner)
	}
	return nil
}
