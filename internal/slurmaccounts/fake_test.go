package slurmaccounts

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
)

// fakeCluster is a Slurm in memory that writes down what is changed.
type fakeCluster struct {
	of map[string][]string // answer of AccountsOf

	mu       sync.Mutex
	accounts map[string]State
	journal  []string
	fail     map[string]error // by the first word of an entry of the journal
	after    func(entry string)
}

func (f *fakeCluster) AccountsOf(_ context.Context, user string) ([]string, error) {
	return f.of[user], nil
}

func (f *fakeCluster) Read(_ context.Context, names []string) (map[string]State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fail["read"]; err != nil {
		return nil, err
	}
	out := map[string]State{}
	for name, st := range f.accounts {
		if names == nil || slices.Contains(names, name) {
			st.Users = maps.Clone(st.Users)
			out[name] = st
		}
	}
	return out, nil
}

// change does one change, unless it is to fail.
func (f *fakeCluster) change(verb, account, details string, do func(st *State)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fail[verb]; err != nil {
		return err
	}
	entry := fmt.Sprintf("%s %s%s", verb, account, details)
	f.journal = append(f.journal, entry)
	st := f.accounts[account]
	if st.Users == nil {
		st.Users = map[string]bool{}
	}
	do(&st)
	if f.accounts == nil {
		f.accounts = map[string]State{}
	}
	f.accounts[account] = st
	if f.after != nil {
		f.after(entry)
	}
	return nil
}

func (f *fakeCluster) Create(_ context.Context, a NewAccount) error {
	return f.change("create", a.Name, fmt.Sprintf(" parent=%s qos=%v org=%s", a.Parent, a.QoS, a.Organization), func(st *State) {
		*st = State{Organization: a.Organization, QoS: a.QoS, MaxJobs: None, MaxSubmit: None, Billing: None, Fairshare: 1, Users: map[string]bool{}}
	})
}

func (f *fakeCluster) Change(_ context.Context, account string, c Change) error {
	if c.empty() {
		return errors.New("an empty change")
	}
	details := ""
	show := func(name string, n *int64) {
		if n != nil {
			details += fmt.Sprintf(" %s=%d", name, *n)
		}
	}
	show("maxjobs", c.MaxJobs)
	show("maxsubmit", c.MaxSubmit)
	show("billing", c.Billing)
	show("fairshare", c.Fairshare)
	for _, q := range c.AddQoS {
		details += " qos+=" + q
	}
	return f.change("change", account, details, func(st *State) {
		for to, from := range map[*int64]*int64{&st.MaxJobs: c.MaxJobs, &st.MaxSubmit: c.MaxSubmit, &st.Billing: c.Billing, &st.Fairshare: c.Fairshare} {
			if from != nil {
				*to = *from
			}
		}
		st.QoS = append(slices.Clone(st.QoS), c.AddQoS...)
	})
}

func (f *fakeCluster) AddUsers(_ context.Context, account string, users []string, byDefault bool) error {
	return f.change("add", account, fmt.Sprintf(" %v default=%v", users, byDefault), func(st *State) {
		for _, u := range users {
			st.Users[u] = true
		}
	})
}

func (f *fakeCluster) RemoveUsers(_ context.Context, account string, users []string) error {
	return f.change("remove", account, fmt.Sprintf(" %v", users), func(st *State) {
		for _, u := range users {
			delete(st.Users, u)
		}
	})
}

// took gives what was changed since the last call.
func (f *fakeCluster) took() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := f.journal
	f.journal = nil
	return out
}

// expect compares what was changed.
func (f *fakeCluster) expect(t *testing.T, want ...string) {
	t.Helper()
	if got := f.took(); !slices.Equal(got, want) {
		t.Errorf("changes:\n%q\nnot\n%q", got, want)
	}
}
