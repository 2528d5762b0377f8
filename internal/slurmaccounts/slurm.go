package slurmaccounts

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"

	"ucloud-im/internal/slurm"
)

// Slurm is the [Cluster] that sacctmgr speaks for.
type Slurm struct {
	Client *slurm.Client

	mu     sync.Mutex
	client *slurm.Client // for the one cluster of several that slurmdbd may have; nil: not known yet
}

// ours is the client for the cluster that the commands talk to.
func (s *Slurm) ours(ctx context.Context) (*slurm.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == nil {
		name, err := s.Client.ClusterName(ctx)
		if err != nil {
			return nil, err
		}
		s.client = s.Client.WithClusterName(name)
	}
	return s.client, nil
}

// AccountsOf implements [Cluster].
func (s *Slurm) AccountsOf(ctx context.Context, user string) (names []string, err error) {
	c, err := s.ours(ctx)
	if err != nil {
		return nil, err
	}
	all, err := c.Associations(ctx, slurm.AssociationQuery{Users: []string{user}})
	for _, a := range all {
		if a.User == user && !slices.Contains(names, a.Account) {
			names = append(names, a.Account)
		}
	}
	return names, err
}

// Read implements [Cluster].
func (s *Slurm) Read(ctx context.Context, names []string) (map[string]State, error) {
	c, err := s.ours(ctx)
	if err != nil {
		return nil, err
	}
	accounts, err := c.Accounts(ctx, names...)
	if err != nil {
		return nil, err
	}
	if len(accounts) == 0 {
		return map[string]State{}, nil
	}
	all, err := c.Associations(ctx, slurm.AssociationQuery{Accounts: names})
	if err != nil {
		return nil, err
	}
	organizations := make(map[string]string, len(accounts))
	for _, a := range accounts {
		organizations[a.Name] = a.Organization
	}
	out := map[string]State{}
	users := map[string]map[string]bool{}
	for _, a := range all {
		organization, known := organizations[a.Account]
		switch {
		case !known:
		case a.User != "":
			if users[a.Account] == nil {
				users[a.Account] = map[string]bool{}
			}
			users[a.Account][a.User] = true
		default: // of the account itself; an account that other clusters have and ours has not is none
			out[a.Account] = State{
				Organization: organization, QoS: a.QoS, MaxJobs: limitOf(a.MaxJobs), MaxSubmit: limitOf(a.MaxSubmitJobs),
				Billing: billing(a.GrpTRESMins), Fairshare: a.Fairshare,
			}
		}
	}
	for name, st := range out {
		st.Users = users[name]
		out[name] = st
	}
	return out, nil
}

func limitOf(n *int64) int64 {
	if n == nil {
		return None
	}
	return *n
}

func billing(t slurm.TRES) int64 {
	if n, ok := t["billing"]; ok {
		return n
	}
	return None
}

// Create implements [Cluster].
func (s *Slurm) Create(ctx context.Context, a NewAccount) error {
	c, err := s.ours(ctx)
	if err != nil {
		return err
	}
	return c.CreateAccount(ctx, slurm.AccountSpec{
		Name: a.Name, Parent: a.Parent, QoS: a.QoS, DefaultQoS: a.DefaultQoS, Description: a.Description, Organization: a.Organization,
	})
}

// Change implements [Cluster].
func (s *Slurm) Change(ctx context.Context, account string, ch Change) error {
	c, err := s.ours(ctx)
	if err != nil {
		return err
	}
	var all []slurm.Change
	set := func(key, prefix string, n *int64) {
		if n != nil {
			all = append(all, slurm.Change{Key: key, Value: prefix + strconv.FormatInt(*n, 10)})
		}
	}
	set("MaxJobs", "", ch.MaxJobs)
	set("MaxSubmitJobs", "", ch.MaxSubmit)
	set("GrpTRESMins", "billing=", ch.Billing)
	set("Fairshare", "", ch.Fairshare)
	if err := c.ModifyAccount(ctx, account, all...); err != nil {
		return err
	}
	for _, q := range ch.AddQoS { // adds to the list, which stays otherwise as it is
		if err := c.ModifyAccount(ctx, account, slurm.Change{Key: "QoS", Value: "+=" + q}); err != nil {
			return err
		}
	}
	return nil
}

// AddUsers implements [Cluster].
func (s *Slurm) AddUsers(ctx context.Context, account string, users []string, byDefault bool) error {
	c, err := s.ours(ctx)
	if err != nil {
		return err
	}
	if err := c.AddUsers(ctx, account, users...); err != nil || !byDefault {
		return err
	}
	for _, u := range users {
		if err := c.SetDefaultAccount(ctx, u, account); err != nil {
			return err
		}
	}
	return nil
}

// RemoveUsers implements [Cluster]. Whose default account it is gets another of theirs as the default first.
func (s *Slurm) RemoveUsers(ctx context.Context, account string, users []string) error {
	c, err := s.ours(ctx)
	if err != nil {
		return err
	}
	err = c.RemoveUsers(ctx, account, users...)
	if !errors.Is(err, slurm.ErrDefaultAccount) {
		return err
	}
	for _, u := range users {
		others, err := s.AccountsOf(ctx, u)
		if err != nil {
			return err
		}
		others = slices.DeleteFunc(others, func(a string) bool { return a == account })
		if len(others) == 0 {
			continue
		}
		slices.Sort(others)
		if err := c.SetDefaultAccount(ctx, u, others[0]); err != nil {
			return err
		}
	}
	return c.RemoveUsers(ctx, account, users...)
}
