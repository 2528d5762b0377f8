package cli

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ucloud-im/internal/ipcapi"
)

func (a *app) jobsExplainCommand() *cobra.Command {
	var slurm bool
	c := a.verb("explain ID", "why a job waits, has failed or is not shown", 1, 1, func(ctx context.Context, _ *cobra.Command, args []string) error {
		x, err := call(ctx, a, ipcapi.JobExplain, ipcapi.JobQuestion{ID: args[0], Slurm: slurm})
		if err != nil {
			return err
		}
		return item(a, "jobs", "explain", x.ID, x, func() error { return a.printExplanation(ctx, &x) })
	})
	c.Flags().BoolVar(&slurm, "slurm", false, "ID is Slurm's, also if UCloud has a job of this number")
	return c
}

func (a *app) printExplanation(ctx context.Context, x *ipcapi.JobExplanation) error {
	var lines [][2]string
	for _, j := range x.Jobs {
		lines = append(lines, [2]string{"Job", fmt.Sprintf("%s, %s, of %s (%s), submitted %s", j.ID, jobState(j), jobUser(j), j.CreatedBy, localTime(&j.CreatedAt))})
	}
	if s := x.Slurm; s != nil {
		limit := ""
		if s.LimitMs > 0 {
			limit = (time.Duration(s.LimitMs) * time.Millisecond).String()
		}
		lines = append(lines, [][2]string{
			{"Slurm", fmt.Sprintf("%s %s, of %s", s.ID, s.State, s.User)},
			{"Partition, QoS", strings.TrimSuffix(s.Partition+", "+s.QoS, ", ")},
			{"Account", s.Account + a.accountUse(ctx, s.Account)},
			{"Asks for", fmt.Sprintf("%s, %s, %s", plural(max(s.NodeCount, 1), "node"), plural(s.CPUs, "cpu"), cmp.Or(limit, "no time limit"))},
			{"Nodes", strings.Join(s.Nodes, ", ")},
			{"Comment", s.Comment},
			{"In Slurm since", localTime(&s.Submitted)},
			{"Started", localTime(&s.Started)},
			{"Ended", localTime(&s.Ended)},
		}...)
	}
	for _, n := range x.Notes {
		lines = append(lines, [2]string{"Note", n})
	}
	return a.pairs(lines)
}

// accountUse says how much of its limit a Slurm account has used, as far as it is one of a workspace.
func (a *app) accountUse(ctx context.Context, account string) string {
	rows, err := a.slurmAccounts(ctx)
	if err != nil {
		return "" // there are none, or it is not for the caller to see
	}
	for _, x := range rows {
		if x.Account != account {
			continue
		}
		text := " of " + slurmAccountOwner(x) + ", used " + strconv.FormatInt(x.UsedMinutes, 10)
		if x.WantedMinutes != nil {
			text += " of " + optional(x.WantedMinutes)
		}
		text += " billing minutes"
		if x.WantedLock {
			text += ", locked"
		}
		return text
	}
	return ""
}

func (a *app) jobsRegisterCommand() *cobra.Command {
	var reason *string
	c := a.verb("register SLURMID...", "show jobs in UCloud that were submitted outside of it", 1, -1, func(ctx context.Context, _ *cobra.Command, args []string) error {
		if err := a.confirm(ctx, fmt.Sprintf("Register %s at UCloud?", plural(len(args), "job"))); err != nil {
			return err
		}
		rep, err := call(ctx, a, ipcapi.JobRegister, ipcapi.JobMutation{IDs: args, Reason: *reason, DryRun: a.dryRun})
		if err != nil {
			return err
		}
		return a.mutated("jobs", "register", "slurmId", "registered", rep)
	})
	reason = reasonFlag(c)
	return c
}
