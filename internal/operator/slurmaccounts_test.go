package operator

import (
	"context"
	"errors"
	"sync"
	"testing"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/slurmaccounts"
)

// accountBook is one account of others and one of ours. Calls come from the goroutines of the server.
type accountBook struct {
	mu      sync.Mutex
	adopted []string
	asked   []string
}

func (b *accountBook) Overview(context.Context) ([]slurmaccounts.Entry, error) {
	return []slurmaccounts.Entry{
		{Owner: ident.Owner{User: alice}, Category: "cpu", Account: "u_alice"},
		{Owner: ident.Owner{Project: reef}, Category: "cpu", Account: "physics", Foreign: true},
		{Owner: ident.Owner{Project: reef}, Category: "gpu"},
	}, nil
}

func (b *accountBook) Reevaluate(_ context.Context, o ident.Owner, category string, dry bool) (slurmaccounts.Outcome, error) {
	if dry {
		return slurmaccounts.Outcome{After: "x"}, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked = append(b.asked, o.Reference()+"/"+category)
	return slurmaccounts.Outcome{}, errors.New("the mapper failed")
}

func (b *accountBook) Adopt(_ context.Context, account string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.adopted = append(b.adopted, account)
	return nil
}

// changes are how many accounts were adopted, and how many evaluated again.
func (b *accountBook) changes() (adopted, asked int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.adopted), len(b.asked)
}

// TestSlurmAccounts: what is changed, and that a dry run changes nothing.
func TestSlurmAccounts(t *testing.T) {
	t.Parallel()
	book := &accountBook{}
	w := newWorld(t, func(o *Options) { o.SlurmAccounts = book })
	target := func(o ident.Owner, category string) ipcapi.SlurmAccountTarget {
		return ipcapi.SlurmAccountTarget{User: o.User, Project: o.Project, Category: category}
	}
	mine, theirs, none := target(ident.Owner{User: alice}, "cpu"), target(ident.Owner{Project: reef}, "cpu"), target(ident.Owner{Project: reef}, "gpu")
	req := ipcapi.SlurmAccountMutation{Targets: []ipcapi.SlurmAccountTarget{mine, theirs, none, {Category: "cpu"}}, DryRun: true}
	for _, dry := range []bool{true, false} {
		req.DryRun = dry
		rep := must(t, w, ipcapi.SlurmAccountAdopt, req)
		if len(rep.Results) != 4 || rep.Results[0].Status != ipcapi.ResultSkipped || rep.Results[1].Status != ipcapi.ResultOK ||
			rep.Results[2].Status != ipcapi.ResultFailed || rep.Results[3].Status != ipcapi.ResultFailed {
			t.Fatalf("%+v", rep)
		}
		if n, _ := book.changes(); dry && n != 0 || !dry && n != 1 {
			t.Errorf("dry run %v: %d adopted", dry, n)
		}
	}
	req.Targets, req.DryRun = req.Targets[:1], true
	rep := must(t, w, ipcapi.SlurmAccountReevaluate, req)
	if _, n := book.changes(); rep.Results[0].Status != ipcapi.ResultOK || n != 0 {
		t.Errorf("%+v, %d evaluated", rep, n)
	}
	req.DryRun = false
	rep = must(t, w, ipcapi.SlurmAccountReevaluate, req)
	if _, n := book.changes(); rep.Results[0].Status != ipcapi.ResultFailed || n != 1 {
		t.Errorf("%+v, %d evaluated", rep, n)
	}
}
