package operator

import (
	"context"
	"errors"
	"testing"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/slurmaccounts"
)

// accountBook is one account of others and one of ours.
type accountBook struct {
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
	b.asked = append(b.asked, o.Reference()+"/"+category)
	return slurmaccounts.Outcome{}, errors.New("the mapper failed")
}

func (b *accountBook) Adopt(_ context.Context, account string) error {
	b.adopted = append(b.adopted, account)
	return nil
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
		if want := 1; dry && len(book.adopted) != 0 || !dry && len(book.adopted) != want {
			t.Errorf("dry run %v: %v", dry, book.adopted)
		}
	}
	req.Targets, req.DryRun = req.Targets[:1], true
	if rep := must(t, w, ipcapi.SlurmAccountReevaluate, req); rep.Results[0].Status != ipcapi.ResultOK || len(book.asked) != 0 {
		t.Errorf("%+v %v", rep, book.asked)
	}
	req.DryRun = false
	if rep := must(t, w, ipcapi.SlurmAccountReevaluate, req); rep.Results[0].Status != ipcapi.ResultFailed || len(book.asked) != 1 {
		t.Errorf("%+v %v", rep, book.asked)
	}
}
