package slurmaccounts

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"time"

	"ucloud-im/internal/driveplan"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/store"
	"ucloud-im/internal/usage/quota"
)

// scripted has the site's scripts make an account what it should be (contract 42 sections B.11, B.12 and B.14).
func (l *look) scripted(ctx context.Context, g *goal) (again time.Time, err error) {
	sooner := func(t time.Time) {
		if !t.IsZero() && (again.IsZero() || t.Before(again)) {
			again = t
		}
	}
	for _, p := range g.parts {
		at, err := l.scriptQuota(ctx, g, p)
		if err != nil {
			return time.Time{}, err
		}
		sooner(at)
	}
	at, err := l.scriptMembers(ctx, g)
	if err != nil {
		return time.Time{}, err
	}
	sooner(at)
	l.s.done(g.account)
	return again, nil
}

func account(g *goal, c Category) scripts.SlurmAccount {
	a := scripts.SlurmAccount{AccountName: g.account, Partition: c.Partition, CategoryName: c.Name}
	if c.QoS != "" {
		a.QoS = &c.QoS
	}
	return a
}

func (l *look) scriptQuota(ctx context.Context, g *goal, p part) (time.Time, error) {
	if p.wallet == nil {
		return time.Time{}, nil // Core has not spoken of it
	}
	update := scripts.AccountQuotaUpdate{Locked: p.locked(), Unit: p.category.Unit}
	if !p.wallet.IsAllocator {
		update.CombinedQuotaInResourceMinutes = times(p.wallet.CombinedQuota, p.category.Period)
		update.RetiredUsageInResourceMinutes = times(p.wallet.RetiredUsage, p.category.Period)
	}
	about := account(g, p.category)
	digest, err := digestOf(g.owner, about, update)
	if err != nil {
		return time.Time{}, err
	}
	hook := l.set.Management.QuotaUpdated
	return l.s.try(ctx, job{
		key: "quota/" + g.account + "/" + p.category.Name, account: g.account, digest: digest, retry: hook.Retry(),
		do: func(w store.SlurmWork) error {
			owner := scripts.WorkspaceOf(g.owner)
			var project *store.Project
			if vars, err := driveplan.Variables(ctx, l.s.o.Accounts, g.owner, project); err == nil {
				quota.Identify(&owner, vars)
			}
			return hook.Call(ctx, scripts.Call{
				Key: "account/" + g.account, Owner: g.owner, Attempt: w.Attempts + 1, Reason: reason(w),
				Request: scripts.AccountQuotaRequest{Account: about, QuotaUpdate: update, Owner: owner},
			}, nil)
		},
		done: func(_ *store.Tx, w *store.SlurmWork) error {
			w.Minutes, w.Locked = update.CombinedQuotaInResourceMinutes, update.Locked
			return nil
		},
	})
}

func reason(w store.SlurmWork) string {
	switch {
	case w.Attempts > 0:
		return "retry"
	case w.AppliedAt.IsZero():
		return "first time"
	}
	return "changed"
}

func times(units, period int64) int64 {
	p := part{category: Category{Period: period}, wallet: &store.Wallet{CombinedQuota: units}}
	return p.minutes()
}

// scriptMembers tells the scripts who the members of an account are, and who has disconnected.
func (l *look) scriptMembers(ctx context.Context, g *goal) (time.Time, error) {
	var noted, gone, disconnected []store.SlurmMember
	kept := maps.Clone(g.members)
	err := l.s.o.Store.View(ctx, func(tx *store.Tx) (err error) {
		gone, disconnected = nil, nil
		if noted, err = tx.SlurmMembers(g.account); err != nil {
			return err
		}
		for _, n := range noted {
			if _, there := g.members[n.LocalName]; there {
				continue
			}
			left, off, err := l.s.left(tx, g.owner, n)
			if err != nil {
				return err
			}
			if !left {
				kept[n.LocalName] = n
				continue
			}
			gone = append(gone, n)
			if off {
				disconnected = append(disconnected, n)
			}
		}
		return nil
	})
	if err != nil || len(g.parts) == 0 {
		return time.Time{}, err
	}
	about := account(g, g.parts[0].category)
	for _, m := range disconnected {
		if at, err := l.scriptDisconnected(ctx, g, about, m); err != nil || !at.IsZero() {
			return at, err
		}
	}
	if !g.owner.IsProject() { // nobody is told of the one member of a personal workspace
		return time.Time{}, l.s.o.Store.Update(ctx, func(tx *store.Tx) error { return note(tx, g.account, kept, gone) })
	}
	digest, err := digestOf(g.owner, about, slices.Sorted(maps.Keys(kept)), rolesOf(kept))
	if err != nil {
		return time.Time{}, err
	}
	hook := l.set.Management.ProjectUpdated
	return l.s.try(ctx, job{
		key: "members/" + g.account, account: g.account, digest: digest, retry: hook.Retry(),
		do: func(w store.SlurmWork) error {
			request := scripts.AccountMembersRequest{Account: about, All: []scripts.Member{}, Added: []scripts.Member{}, Removed: []scripts.Member{}}
			for _, name := range slices.Sorted(maps.Keys(kept)) {
				m := wireMember(kept[name])
				request.All = append(request.All, m)
				if !slices.ContainsFunc(noted, func(n store.SlurmMember) bool { return n.LocalName == name }) {
					request.Added = append(request.Added, m)
				}
			}
			for _, m := range gone {
				m.Role = ""
				request.Removed = append(request.Removed, wireMember(m))
			}
			return hook.Call(ctx, scripts.Call{
				Key: "account/" + g.account, Owner: g.owner, Attempt: w.Attempts + 1, Reason: reason(w), Request: request.Spelled(hook),
			}, nil)
		},
		done: func(tx *store.Tx, _ *store.SlurmWork) error { return note(tx, g.account, kept, gone) },
	})
}

func rolesOf(members map[string]store.SlurmMember) (roles []string) {
	for _, name := range slices.Sorted(maps.Keys(members)) {
		roles = append(roles, members[name].Role)
	}
	return roles
}

func wireMember(m store.SlurmMember) scripts.Member {
	return scripts.Member{UID: m.UID, UCloudUsername: m.User, LocalUsername: m.LocalName, Role: m.Role}
}

// note stores whom the scripts know as members.
func note(tx *store.Tx, account string, kept map[string]store.SlurmMember, gone []store.SlurmMember) error {
	for _, m := range gone {
		if err := tx.DeleteSlurmMember(account, m.LocalName); err != nil {
			return err
		}
		if err := tx.DeleteSlurmWork(disconnectedKey(account, m)); err != nil {
			return err
		}
	}
	for _, m := range kept {
		m.Account = account
		if err := tx.PutSlurmMember(m); err != nil {
			return err
		}
	}
	return nil
}

func disconnectedKey(account string, m store.SlurmMember) string {
	return "disconnected/" + account + "/" + strconv.FormatUint(uint64(m.UID), 10)
}

// scriptDisconnected tells the script that somebody has disconnected.
func (l *look) scriptDisconnected(ctx context.Context, g *goal, about scripts.SlurmAccount, m store.SlurmMember) (time.Time, error) {
	hook := l.set.Management.Disconnected
	if hook == nil {
		return time.Time{}, nil
	}
	digest, err := digestOf(about, m)
	if err != nil {
		return time.Time{}, err
	}
	return l.s.try(ctx, job{
		key: disconnectedKey(g.account, m), account: g.account, digest: digest, retry: hook.Retry(),
		do: func(w store.SlurmWork) error {
			why := "operator"
			err := l.s.o.Store.View(ctx, func(tx *store.Tx) error {
				mapping, err := tx.MappingByUser(m.User)
				if err == nil && mapping.State == store.MappingExpired {
					why = "user"
					if mapping.ExpiresAt != nil && !mapping.ExpiresAt.After(time.Now()) {
						why = "expired"
					}
				}
				return ignoreMissing(err)
			})
			if err != nil {
				return err
			}
			return hook.Call(ctx, scripts.Call{
				Key: "account/" + g.account, Owner: g.owner, Attempt: w.Attempts + 1, Reason: reason(w),
				Request: scripts.AccountDisconnectedRequest{Account: about, UID: m.UID, LocalUsername: m.LocalName, UCloudUsername: m.User, Reason: why},
			}, nil)
		},
	})
}
