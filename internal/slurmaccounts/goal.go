package slurmaccounts

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
)

// part is what an account is for in one category.
type part struct {
	category Category
	wallet   *store.Wallet // nil: Core has not spoken of it
}

// minutes is the limit of a part, in units times minutes (contract 30 section 4); None: no limit.
func (p part) minutes() int64 {
	if p.category.FreeToUse || p.category.Money || p.wallet == nil {
		return None
	}
	if p.wallet.IsAllocator {
		return 0
	}
	units := add(p.wallet.CombinedQuota, max(p.wallet.RetiredUsage, 0))
	if units > math.MaxInt64/p.category.Period {
		return math.MaxInt64
	}
	return units * p.category.Period
}

func (p part) locked() bool {
	return p.wallet != nil && !p.category.FreeToUse && (p.wallet.Locked || p.wallet.IsAllocator || p.wallet.CombinedQuota <= 0)
}

func add(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// goal is what an account should be.
type goal struct {
	account string
	owner   ident.Owner
	parts   []part // by category
	members map[string]store.SlurmMember
	orphan  bool // it belongs to no workspace any more
}

// known tells whether Core has spoken of every part; without that neither limits nor locks are touched.
func (g *goal) known() bool {
	return !slices.ContainsFunc(g.parts, func(p part) bool { return p.wallet == nil && !p.category.FreeToUse })
}

// limit is that of all parts together.
func (g *goal) limit() int64 {
	var sum int64
	for _, p := range g.parts {
		m := p.minutes()
		if m == None {
			return None
		}
		sum = add(sum, m)
	}
	return sum
}

// locked tells whether no part may be used.
func (g *goal) locked() bool {
	return g.orphan || len(g.parts) > 0 && !slices.ContainsFunc(g.parts, func(p part) bool { return !p.locked() })
}

func (g *goal) qos() (all []string) {
	for _, p := range g.parts {
		if q := p.category.QoS; q != "" && !slices.Contains(all, q) {
			all = append(all, q)
		}
	}
	return all
}

// shares is the fair share that follows from a limit (contract 22 section 7.1): a unit for a day is one share.
func shares(limit int64) int64 { return min(max(limit/60/24, 1), 1_000_000_000) }

// digest identifies what a goal asks for.
func (g *goal) digest() (string, error) {
	return digestOf(g.account, g.owner, g.limit(), g.locked(), g.known(), g.qos(), slices.Sorted(maps.Keys(g.members)))
}

func digestOf(v ...any) (string, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:]), nil
}

// goals are those of an owner.
func (s *Service) goals(ctx context.Context, set *Settings, owner ident.Owner) ([]*goal, error) {
	var accounts []store.SlurmAccount
	var wallets []store.Wallet
	var project *store.Project
	err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) {
		project = nil
		if accounts, err = tx.SlurmAccountsOf(owner); err != nil {
			return err
		}
		if wallets, err = tx.WalletsOf(owner); err != nil || !owner.IsProject() {
			return err
		}
		p, err := tx.Project(owner.Project)
		if err == nil {
			project = &p
		}
		return ignoreMissing(err)
	})
	if err != nil {
		return nil, err
	}
	members, err := s.members(ctx, owner, project)
	if err != nil {
		return nil, fmt.Errorf("look up members: %w", err)
	}
	byName := map[string]*goal{}
	for _, a := range accounts {
		c, ok := set.category(a.Category)
		if !ok {
			continue // not in the configuration any more: as it is
		}
		g := byName[a.Account]
		if g == nil {
			g = &goal{account: a.Account, owner: owner, members: map[string]store.SlurmMember{}}
			for _, m := range members {
				m.Account = a.Account
				g.members[m.LocalName] = m
			}
			byName[a.Account] = g
		}
		p := part{category: c}
		if i := slices.IndexFunc(wallets, func(w store.Wallet) bool { return w.Category == a.Category }); i >= 0 {
			p.wallet = &wallets[i]
		}
		g.parts = append(g.parts, p)
	}
	all := make([]*goal, 0, len(byName))
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		g := byName[name]
		slices.SortFunc(g.parts, func(a, b part) int { return cmp.Compare(a.category.Name, b.category.Name) })
		all = append(all, g)
	}
	return all, nil
}

// members are the connected members of a workspace.
func (s *Service) members(ctx context.Context, owner ident.Owner, project *store.Project) ([]store.SlurmMember, error) {
	type candidate struct {
		user ident.UCloudUser
		role string
	}
	var all []candidate
	switch {
	case !owner.IsProject():
		all = append(all, candidate{owner.User, ""})
	case project != nil:
		for _, m := range project.Document.Status.Members {
			all = append(all, candidate{m.Username, m.Role})
		}
	}
	var out []store.SlurmMember
	for _, c := range all {
		a, ok, err := s.o.Accounts.LocalAccount(ctx, c.user)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, store.SlurmMember{LocalName: a.Name, User: c.user, UID: a.UID, Role: c.role})
		}
	}
	return out, nil
}

// left tells whether somebody is no member any more for a reason that we know: the account of a member who is still there
// may only be hard to look up. disconnected: the mapping has ended.
func (s *Service) left(tx *store.Tx, owner ident.Owner, m store.SlurmMember) (left, disconnected bool, err error) {
	mapping, err := tx.MappingByUser(m.User)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return false, false, err
	}
	disconnected = err != nil || mapping.State != store.MappingActive || mapping.LocalName != m.LocalName
	if disconnected || !owner.IsProject() {
		return disconnected || m.User != owner.User, disconnected, nil
	}
	p, err := tx.Project(owner.Project)
	if err != nil {
		return false, false, ignoreMissing(err)
	}
	for _, x := range p.Document.Status.Members {
		if x.Username == m.User {
			return false, false, nil
		}
	}
	return true, false, nil
}
