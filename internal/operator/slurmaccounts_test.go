package operator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"ucloud-im/internal/driveplan"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/slurmaccounts"
	"ucloud-im/internal/store"
)

// accountBook is one account of others and one of ours. Calls come from the goroutines of the server.
type accountBook struct {
	mu      sync.Mutex
	adopted []string
	asked   []string
	log     []string // changes by hand
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

func (b *accountBook) note(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.log = append(b.log, fmt.Sprintf(format, args...))
}

// notes are the changes by hand since the last call.
func (b *accountBook) notes() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := strings.Join(b.log, "; ")
	b.log = nil
	return all
}

func (b *accountBook) Evaluate(_ context.Context, o ident.Owner, category string) (string, driveplan.Vars, error) {
	switch {
	case category == "none":
		return "", nil, failure.New(failure.NotFound, "there is no machine category")
	case o.IsProject():
		return "", driveplan.Vars{"gid": "7"}, failure.New(failure.Invalid, "the mapper failed")
	}
	return "u_x", driveplan.Vars{"uid": "8"}, nil
}

func (b *accountBook) Assign(_ context.Context, o ident.Owner, category, account string, dry bool) (bool, error) {
	b.note("assign %s/%s %s %v", o.Reference(), category, account, dry)
	if account == "taken" {
		return false, failure.New(failure.Conflict, "the account belongs to another workspace")
	}
	return account != "same", nil
}

func (b *accountBook) Unassign(_ context.Context, o ident.Owner, category string, dry bool) (bool, error) {
	b.note("unassign %s/%s %v", o.Reference(), category, dry)
	return category != "empty", nil
}

func (b *accountBook) Again(owners ...ident.Owner) { b.note("again %v", owners[0].Reference()) }

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

// TestSlurmAccountsByHand: a workspace is found by each of its names and by none that is not one; what is done to its
// account is written down with who did it.
func TestSlurmAccountsByHand(t *testing.T) {
	t.Parallel()
	book := &accountBook{}
	w := newWorld(t, func(o *Options) { o.SlurmAccounts = book })
	w.begin(t, alice) // UCloud names the user
	must(t, w, ipcapi.UserAdd, ipcapi.UserAddition{User: alice, Local: "kay", WaitMs: 10_000})
	other := ident.ProjectID("77aa0c1e-0000-4f5e-9b51-2f0d1f7e77aa")
	if err := w.store.Update(t.Context(), func(tx *store.Tx) error {
		if _, _, err := tx.PutProject(store.Project{ID: reef, ModifiedAt: time.Now(), Document: providerapi.Project{ID: reef}}); err != nil {
			return err
		}
		_, err := tx.PutWallet(store.Wallet{Owner: ident.Owner{Project: other}, Category: "cpu", LastUpdate: time.Now()})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		owner ipcapi.SlurmAccountOwner
		want  string
	}{
		{ipcapi.SlurmAccountOwner{User: alice}, string(alice)},
		{ipcapi.SlurmAccountOwner{Local: "kay"}, string(alice)},
		{ipcapi.SlurmAccountOwner{Any: string(alice)}, string(alice)},
		{ipcapi.SlurmAccountOwner{Any: "kay"}, string(alice)},
		{ipcapi.SlurmAccountOwner{Project: reef}, string(reef)},
		{ipcapi.SlurmAccountOwner{Any: string(reef)}, string(reef)},
		{ipcapi.SlurmAccountOwner{Project: other}, string(other)}, // known by its allocation alone
		{ipcapi.SlurmAccountOwner{User: "kay"}, ""},
		{ipcapi.SlurmAccountOwner{Local: string(alice)}, ""},
		{ipcapi.SlurmAccountOwner{Any: "nobody"}, ""},
		{ipcapi.SlurmAccountOwner{User: alice, Local: "kay"}, ""},
		{ipcapi.SlurmAccountOwner{}, ""},
	} {
		rep, err := invoke(t, w, ipcapi.SlurmAccountAdd, ipcapi.SlurmAccountAddition{Owner: tc.owner, Category: "cpu", Account: "acc", DryRun: true})
		if tc.want == "" {
			if err == nil || book.notes() != "" {
				t.Errorf("%+v: %+v, %v", tc.owner, rep, err)
			}
			continue
		}
		if got := book.notes(); err != nil || got != "assign "+tc.want+"/cpu acc true" || rep.Results[0].Key != tc.want+"/cpu" {
			t.Errorf("%+v: %s %+v, %v", tc.owner, got, rep, err)
		}
	}
	add := func(account string) ipcapi.MutationResult {
		return must(t, w, ipcapi.SlurmAccountAdd, ipcapi.SlurmAccountAddition{
			Owner: ipcapi.SlurmAccountOwner{User: alice}, Category: "cpu", Account: account, Reason: "by phone",
		}).Results[0]
	}
	if r := add("acc"); r.Status != ipcapi.ResultOK {
		t.Errorf("%+v", r)
	}
	if r := add("same"); r.Status != ipcapi.ResultSkipped {
		t.Errorf("%+v", r)
	}
	if r := add("taken"); r.Status != ipcapi.ResultFailed || r.Error.Status != 409 {
		t.Errorf("%+v", r)
	}
	if log := w.audit.String(); !strings.Contains(log, "slurmaccount.add") || !strings.Contains(log, "by phone") || !strings.Contains(log, "taken") {
		t.Errorf("audit:\n%s", log)
	}
	book.notes()
	target := ipcapi.SlurmAccountTarget{User: alice, Category: "cpu"}
	req := ipcapi.SlurmAccountMutation{Targets: []ipcapi.SlurmAccountTarget{target, {User: alice, Category: "empty"}, {Category: "cpu"}}}
	rep := must(t, w, ipcapi.SlurmAccountRemove, req)
	if got := book.notes(); got != "unassign "+string(alice)+"/cpu false; unassign "+string(alice)+"/empty false" ||
		rep.Results[0].Status != ipcapi.ResultOK || rep.Results[1].Status != ipcapi.ResultSkipped || rep.Results[2].Status != ipcapi.ResultFailed {
		t.Errorf("%s %+v", got, rep)
	}
	for _, dry := range []bool{true, false} {
		req.DryRun = dry
		must(t, w, ipcapi.SlurmAccountSync, req)
		if got := book.notes(); (got == "") != dry {
			t.Errorf("sync, dry run %v: %s", dry, got)
		}
	}
	x := must(t, w, ipcapi.SlurmAccountEvaluate, ipcapi.SlurmAccountQuestion{Owner: ipcapi.SlurmAccountOwner{Any: "kay"}, Category: "cpu"})
	if x.Account != "u_x" || x.User != alice || x.Variables["uid"] != "8" || x.Problem != "" {
		t.Errorf("%+v", x)
	}
	x = must(t, w, ipcapi.SlurmAccountEvaluate, ipcapi.SlurmAccountQuestion{Owner: ipcapi.SlurmAccountOwner{Project: reef}, Category: "cpu"})
	if x.Account != "" || x.Variables["gid"] != "7" || x.Problem != "the mapper failed" {
		t.Errorf("%+v", x)
	}
	if _, err := invoke(t, w, ipcapi.SlurmAccountEvaluate, ipcapi.SlurmAccountQuestion{Owner: ipcapi.SlurmAccountOwner{User: alice}, Category: "none"}); !failure.Is(err, failure.NotFound) {
		t.Error(err)
	}
}
