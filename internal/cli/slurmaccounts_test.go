package cli

import (
	"context"
	"strings"
	"testing"
	"time"

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

func TestSlurmAccounts(t *testing.T) {
	t.Parallel()
	w := testWorld(t)
	for _, tc := range []struct {
		args []string
		code int
		want []string // in the output
		not  []string
	}{
		{[]string{"slurm", "accounts", "list"}, ExitOK, []string{"Alice#1234\tcpu\tu_alice\tok\t125\t6000\tno", "project p-1\tcpu\tphysics\tforeign\t0\t\tyes", "project p-1\tgpu\t\tmissing\t0\t0\tno"}, nil},
		{[]string{"slurm-accounts", "ls", "--state", "foreign", "-o", "wide"}, ExitOK, []string{"physics", "not ?[31mours"}, []string{"u_alice", "\x1b"}},
		{[]string{"slurm", "accounts", "list", "--account-name", "u_*", "--json"}, ExitOK, []string{`"usedMinutes":125`, `"reportedUnits":2`, `"wantedMinutes":6000`}, []string{"physics"}},
		{[]string{"slurm", "accounts", "re-evaluate", "--yes"}, ExitUsage, nil, nil},
		{[]string{"slurm", "accounts", "re-evaluate", "--category", "cpu", "--yes"}, ExitOK, []string{"Alice#1234/cpu\tskipped", "p-1/cpu\tre-evaluated"}, nil},
		{[]string{"slurm", "accounts", "adopt", "--category", "cpu", "--dry-run"}, ExitOK, []string{"Alice#1234/cpu\tskipped", "p-1/cpu\twould be adopted"}, nil},
		{[]string{"slurm", "accounts", "adopt", "--state", "missing", "--yes"}, ExitNoMatch, nil, nil},
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
