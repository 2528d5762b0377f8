package cli

import (
	"context"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/driveplan"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/slurmaccounts"
	"ucloud-im/internal/store"
)

// slurmAccounts are two accounts that never change.
type slurmAccounts struct{}

func (slurmAccounts) Overview(context.Context) ([]slurmaccounts.Entry, error) {
	at := time.Date(2031, 2, 3, 4, 5, 6, 0, time.UTC)
	return []slurmaccounts.Entry{
		{
			Owner: ident.Owner{User: "Alice#1234"}, Category: "cpu", Account: "u_alice", Minutes: 6000, AppliedMinutes: 6000, AppliedAt: at, Members: 1,
			Used: store.ComputeUsage{Minutes: 125, Report: store.UsageReport{Units: 2, ReportedAt: at}},
		},
		{
			Owner: ident.Owner{Project: "p-1"}, Category: "cpu", Account: "physics", Foreign: true, Minutes: slurmaccounts.None,
			AppliedMinutes: slurmaccounts.None, Locked: true, Problem: "not \x1b[31mours",
		},
		{Owner: ident.Owner{Project: "p-1"}, Category: "gpu", Minutes: 0, AppliedMinutes: slurmaccounts.None, Problem: "no account yet"},
	}, nil
}

func (slurmAccounts) Reevaluate(_ context.Context, o ident.Owner, category string, _ bool) (slurmaccounts.Outcome, error) {
	out := slurmaccounts.Outcome{Owner: o, Category: category, Before: "u_alice", After: "u_alice"}
	if o.IsProject() {
		out.After = "p_new"
	}
	return out, nil
}

func (slurmAccounts) Adopt(context.Context, string) error { return nil }

func (slurmAccounts) Evaluate(_ context.Context, o ident.Owner, category string) (string, driveplan.Vars, error) {
	if o.IsProject() {
		return "", driveplan.Vars{"gid": "7"}, failure.New(failure.Invalid, "the \x1b[31mmapper failed")
	}
	return "u_" + category, driveplan.Vars{"uid": "8", "localUsername": "kay"}, nil
}

func (slurmAccounts) Assign(_ context.Context, _ ident.Owner, _, account string, _ bool) (bool, error) {
	if account == "taken" {
		return false, failure.New(failure.Conflict, "the account belongs to another workspace")
	}
	return true, nil
}

func (slurmAccounts) Unassign(_ context.Context, o ident.Owner, _ string, _ bool) (bool, error) {
	return !o.IsProject(), nil
}

func (slurmAccounts) Again(...ident.Owner) {}

func TestSlurmAccounts(t *testing.T) {
	t.Parallel()
	w := testWorld(t)
	ticket, err := w.begin("Alice#1234")
	if err != nil {
		t.Fatal(err)
	}
	if code, _, errs := w.run(t, nil, "connect", ticket, "kay", "--yes"); code != ExitOK {
		t.Fatal(errs)
	}
	if err := w.store.Update(t.Context(), func(tx *store.Tx) error {
		_, err := tx.PutWallet(store.Wallet{Owner: ident.Owner{Project: "p-1"}, Category: "cpu", LastUpdate: time.Now()})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args []string
		code int
		want []string // in the output
		not  []string
	}{
		{[]string{"slurm", "accounts", "list"}, ExitOK, []string{"Alice#1234 (kay)\tcpu\tu_alice\tok\t125\t6000\tno", "project p-1\tcpu\tphysics\tforeign\t0\t\tyes", "project p-1\tgpu\t\tmissing\t0\t0\tno"}, nil},
		{[]string{"slurm-accounts", "ls", "--state", "foreign", "-o", "wide"}, ExitOK, []string{"physics", "not ?[31mours"}, []string{"u_alice", "\x1b"}},
		{[]string{"slurm", "accounts", "list", "--account-name", "u_*", "--json"}, ExitOK, []string{`"usedMinutes":125`, `"reportedUnits":2`, `"wantedMinutes":6000`}, []string{"physics"}},
		{[]string{"slurm", "accounts", "re-evaluate", "--yes"}, ExitUsage, nil, nil},
		{[]string{"slurm", "accounts", "re-evaluate", "--category", "cpu", "--yes"}, ExitOK, []string{"Alice#1234/cpu\tskipped", "p-1/cpu\tre-evaluated"}, nil},
		{[]string{"slurm", "accounts", "adopt", "--category", "cpu", "--dry-run"}, ExitOK, []string{"Alice#1234/cpu\tskipped", "p-1/cpu\twould be adopted"}, nil},
		{[]string{"slurm", "accounts", "adopt", "--state", "missing", "--yes"}, ExitNoMatch, nil, nil},
		{[]string{"slurm-accounts", "rm", "--yes"}, ExitUsage, nil, nil},
		{[]string{"slurm-accounts", "rm", "--category", "cpu", "--yes"}, ExitOK, []string{"Alice#1234/cpu\tremoved", "p-1/cpu\tskipped"}, nil},
		{[]string{"slurm-accounts", "rm", "--category", "cpu", "--dry-run"}, ExitOK, []string{"Alice#1234/cpu\twould be removed"}, nil},
		{[]string{"slurm", "accounts", "remove", "--reevaluate", "--category", "cpu", "--yes"}, ExitOK, []string{"p-1/cpu\tre-evaluated"}, []string{"removed"}},
		{[]string{"slurm", "accounts", "sync", "--category", "gpu", "--yes"}, ExitOK, []string{"p-1/gpu\tqueued"}, []string{"Alice"}},
		{[]string{"slurm", "accounts", "add", "--owner", "p-9", "--category", "cpu", "--account-name", "x", "--yes"}, ExitNoMatch, nil, nil},
		{[]string{"slurm", "accounts", "add", "--category", "cpu", "--account-name", "x", "--yes"}, ExitUsage, nil, nil},
		{[]string{"slurm", "accounts", "add", "--owner", "kay", "--local-name", "kay", "--category", "cpu", "--account-name", "x", "--yes"}, ExitUsage, nil, nil},
		{[]string{"slurm", "accounts", "add", "--owner", "kay", "--account-name", "x", "--yes"}, ExitUsage, nil, nil},
		{[]string{"slurm", "accounts", "add", "--owner", "kay", "--category", "cpu", "--account-name", "x"}, ExitUsage, nil, nil}, // nobody to ask
		{[]string{"slurm", "accounts", "add", "--owner", "kay", "--category", "cpu", "--account-name", "x", "--yes"}, ExitOK, []string{"Alice#1234/cpu\tadded"}, nil},
		{[]string{"slurm", "accounts", "create", "--ucloud-name", "Alice#1234", "--category", "cpu", "--account-name", "taken", "--yes"}, ExitConflict, nil, nil},
		{[]string{"slurm", "accounts", "evaluate", "--local-name", "kay", "--category", "cpu"}, ExitOK, []string{"u_cpu", "localUsername", "kay"}, nil},
		{[]string{"slurm", "accounts", "evaluate", "--ucloud-project-id", "p-1", "--category", "cpu"}, ExitOK, []string{"project p-1", "none", "?[31mmapper failed", "gid"}, []string{"\x1b"}},
		{[]string{"slurm", "accounts", "evaluate", "--local-name", "kay"}, ExitUsage, nil, nil},
	} {
		code, out, errs := w.run(t, nil, tc.args...)
		if code != tc.code {
			t.Errorf("%q: exit code %d: %s", tc.args, code, errs)
		}
		for _, text := range tc.want {
			if !strings.Contains(out, text) {
				t.Errorf("%q: no %q in\n%s", tc.args, text, out)
			}
		}
		for _, text := range tc.not {
			if strings.Contains(out, text) {
				t.Errorf("%q: %q is in\n%s", tc.args, text, out)
			}
		}
	}
}
