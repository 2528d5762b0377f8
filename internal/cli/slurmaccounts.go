package cli

import (
	"cmp"
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
)

func slurmAccountOwner(x ipcapi.SlurmAccountInfo) string {
	return allocationOwner(ipcapi.AllocationInfo{User: x.User, Project: x.Project, Local: x.Local})
}

func optional(n *int64) string {
	if n == nil {
		return ""
	}
	return strconv.FormatInt(*n, 10)
}

var slurmAccountsTable = table[ipcapi.SlurmAccountInfo]{
	noun: "slurm-accounts",
	key: func(x ipcapi.SlurmAccountInfo) string {
		return ident.Owner{User: x.User, Project: x.Project}.Reference() + "/" + x.Category
	},
	columns: []column[ipcapi.SlurmAccountInfo]{
		{name: "owner", get: slurmAccountOwner},
		{name: "category", get: func(x ipcapi.SlurmAccountInfo) string { return x.Category }},
		{name: "account", get: func(x ipcapi.SlurmAccountInfo) string { return x.Account }},
		{name: "state", get: func(x ipcapi.SlurmAccountInfo) string { return x.State }},
		{
			name: "used-minutes", get: func(x ipcapi.SlurmAccountInfo) string { return strconv.FormatInt(x.UsedMinutes, 10) },
			less: func(a, b ipcapi.SlurmAccountInfo) int { return cmp.Compare(a.UsedMinutes, b.UsedMinutes) },
		},
		{name: "limit-minutes", get: func(x ipcapi.SlurmAccountInfo) string { return optional(x.WantedMinutes) }},
		{name: "locked", get: func(x ipcapi.SlurmAccountInfo) string { return yesNo(x.WantedLock) }},
		{name: "members", wide: true, get: func(x ipcapi.SlurmAccountInfo) string { return strconv.Itoa(x.Members) }},
		{name: "set-limit", wide: true, get: func(x ipcapi.SlurmAccountInfo) string { return optional(x.AppliedMinutes) }},
		{name: "set-locked", wide: true, get: func(x ipcapi.SlurmAccountInfo) string { return yesNo(x.AppliedLock) }},
		{name: "set-at", wide: true, get: func(x ipcapi.SlurmAccountInfo) string { return localTime(x.AppliedAt) }},
		{name: "reported", wide: true, get: func(x ipcapi.SlurmAccountInfo) string { return strconv.FormatInt(x.ReportedUnits, 10) }},
		{name: "reported-at", wide: true, get: func(x ipcapi.SlurmAccountInfo) string { return localTime(x.ReportedAt) }},
		{name: "problem", wide: true, get: func(x ipcapi.SlurmAccountInfo) string { return x.Problem }},
	},
}

func slurmAccountFilters(cmd *cobra.Command) *filterFlags[ipcapi.SlurmAccountInfo] {
	type account = ipcapi.SlurmAccountInfo
	return addFilters(cmd,
		filter[account]{"ucloud-name", "UCloud user who owns the workspace", func(x account) string { return string(x.User) }},
		filter[account]{"ucloud-project-id", "project that owns it", func(x account) string { return string(x.Project) }},
		filter[account]{"account-name", "Slurm account", func(x account) string { return x.Account }},
		filter[account]{"local-name", "login name of the owner, or group of the project", func(x account) string { return x.Local }},
		filter[account]{"category", "machine category", func(x account) string { return x.Category }},
		filter[account]{"state", "ok, missing, drift or foreign", func(x account) string { return x.State }},
	)
}

func (a *app) slurmAccountsCommand() *cobra.Command {
	return noun("slurm-accounts", "Slurm accounts of workspaces",
		a.slurmAccountsListCommand(),
		a.slurmAccountsChangeCommand("re-evaluate", "re-evaluated", "ask the mapper again which accounts workspaces have", ipcapi.SlurmAccountReevaluate),
		a.slurmAccountsChangeCommand("adopt", "adopted", "have accounts managed here that others have made in Slurm", ipcapi.SlurmAccountAdopt))
}

// slurmCommand is the other name (contract 41 CLI-0).
func (a *app) slurmCommand() *cobra.Command {
	accounts := a.slurmAccountsCommand()
	accounts.Use = "accounts"
	return noun("slurm", "what UCloud has in Slurm", accounts)
}

func (a *app) slurmAccounts(ctx context.Context) ([]ipcapi.SlurmAccountInfo, error) {
	return list(ctx, a, ipcapi.SlurmAccountList, ipcapi.Empty{}, func(p ipcapi.SlurmAccountPage) []ipcapi.SlurmAccountInfo { return p.Items })
}

func (a *app) slurmAccountsListCommand() *cobra.Command {
	var flags *listFlags
	var filters *filterFlags[ipcapi.SlurmAccountInfo]
	c := a.verb("list", "list Slurm accounts of workspaces", 0, 0, func(ctx context.Context, _ *cobra.Command, _ []string) error {
		match, err := filters.compile()
		if err != nil {
			return err
		}
		if err := slurmAccountsTable.check(flags); err != nil {
			return err
		}
		rows, err := a.slurmAccounts(ctx)
		if err != nil {
			return err
		}
		return slurmAccountsTable.print(a, flags, keep(rows, match))
	})
	flags, filters = addListFlags(c), slurmAccountFilters(c)
	return c
}

// slurmAccountsChangeCommand changes rows that are chosen here and sent by key (contract 41 CLI-10).
func (a *app) slurmAccountsChangeCommand(verb, past, short string, change ipc.Call[ipcapi.SlurmAccountMutation, ipcapi.MutationReport]) *cobra.Command {
	var filters *filterFlags[ipcapi.SlurmAccountInfo]
	var reason *string
	c := a.verb(verb, short, 0, 0, func(ctx context.Context, _ *cobra.Command, _ []string) error {
		if !filters.given() {
			return usagef("select accounts with a filter")
		}
		rows, err := a.slurmAccounts(ctx)
		if err != nil {
			return err
		}
		sel := selection[ipcapi.SlurmAccountInfo]{what: "account", filters: filters, line: func(x ipcapi.SlurmAccountInfo) string {
			return fmt.Sprintf("%s, %s: %s", slurmAccountOwner(x), x.Category, cmp.Or(x.Account, "no account"))
		}}
		chosen, err := sel.choose(rows, nil)
		if err != nil {
			return err
		}
		req := ipcapi.SlurmAccountMutation{Reason: *reason, DryRun: a.dryRun}
		for _, x := range chosen {
			req.Targets = append(req.Targets, ipcapi.SlurmAccountTarget{User: x.User, Project: x.Project, Category: x.Category})
		}
		sel.show(a, chosen)
		if err := a.confirm(ctx, fmt.Sprintf("Change %s?", plural(len(req.Targets), "account"))); err != nil {
			return err
		}
		rep, err := call(ctx, a, change, req)
		if err != nil {
			return err
		}
		return a.mutated("slurm-accounts", verb, "account", past, rep)
	})
	filters, reason = slurmAccountFilters(c), reasonFlag(c)
	return c
}
