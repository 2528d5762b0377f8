package cli

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
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
		a.slurmAccountsChangeCommand("adopt", "adopted", "have accounts managed here that others have made in Slurm", ipcapi.SlurmAccountAdopt),
		a.slurmAccountsAddCommand(), a.slurmAccountsRemoveCommand(),
		a.slurmAccountsChangeCommand("sync", "queued", "compare members, limits and locks with Slurm again", ipcapi.SlurmAccountSync),
		a.slurmAccountsEvaluateCommand())
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

// slurmAccountChange is a call that changes accounts of workspaces.
type slurmAccountChange = ipc.Call[ipcapi.SlurmAccountMutation, ipcapi.MutationReport]

func (a *app) slurmAccountsChangeCommand(verb, past, short string, change slurmAccountChange) *cobra.Command {
	var filters *filterFlags[ipcapi.SlurmAccountInfo]
	var reason *string
	c := a.verb(verb, short, 0, 0, func(ctx context.Context, _ *cobra.Command, _ []string) error {
		return a.changeSlurmAccounts(ctx, verb, past, filters, *reason, change)
	})
	filters, reason = slurmAccountFilters(c), reasonFlag(c)
	return c
}

// changeSlurmAccounts changes rows that are chosen here and sent by key (contract 41 CLI-10).
func (a *app) changeSlurmAccounts(ctx context.Context, verb, past string, filters *filterFlags[ipcapi.SlurmAccountInfo], reason string, change slurmAccountChange) error {
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
	req := ipcapi.SlurmAccountMutation{Reason: reason, DryRun: a.dryRun}
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
}

// slurmAccountsRemoveCommand forgets accounts, or with --reevaluate has the mapper say which they are.
func (a *app) slurmAccountsRemoveCommand() *cobra.Command {
	var filters *filterFlags[ipcapi.SlurmAccountInfo]
	var reason *string
	var again bool
	c := a.verb("remove", "forget which accounts workspaces have", 0, 0, func(ctx context.Context, _ *cobra.Command, _ []string) error {
		if again {
			return a.changeSlurmAccounts(ctx, "remove", "re-evaluated", filters, *reason, ipcapi.SlurmAccountReevaluate)
		}
		if filters.given() {
			a.note("The mapper is asked again when an account is needed. In Slurm nothing is deleted; accounts that were made here are locked:")
		}
		return a.changeSlurmAccounts(ctx, "remove", "removed", filters, *reason, ipcapi.SlurmAccountRemove)
	})
	filters, reason = slurmAccountFilters(c), reasonFlag(c)
	c.Flags().BoolVar(&again, "reevaluate", false, "ask the mapper at once")
	return c
}

// ownerFlags are the ways to name a workspace.
func ownerFlags(cmd *cobra.Command) *ipcapi.SlurmAccountOwner {
	o := &ipcapi.SlurmAccountOwner{}
	f := cmd.Flags()
	f.StringVar((*string)(&o.User), "ucloud-name", "", "UCloud user who owns the workspace")
	f.StringVar((*string)(&o.Project), "ucloud-project-id", "", "project that owns it")
	f.StringVar(&o.Local, "local-name", "", "login name of the owner, or group of the project")
	f.StringVar(&o.Any, "owner", "", "any of these")
	return o
}

// ownerText is how an operator has named a workspace; an error if it was not done in exactly one way.
func ownerText(o *ipcapi.SlurmAccountOwner) (string, error) {
	var given []string
	for _, text := range []string{string(o.User), string(o.Project), o.Local, o.Any} {
		if text != "" {
			given = append(given, text)
		}
	}
	if len(given) != 1 {
		return "", usagef("name the workspace by one of --ucloud-name, --ucloud-project-id, --local-name and --owner")
	}
	return given[0], nil
}

func (a *app) slurmAccountsAddCommand() *cobra.Command {
	var owner *ipcapi.SlurmAccountOwner
	var category, account string
	var reason *string
	c := a.verb("add", "give a workspace an account by hand", 0, 0, func(ctx context.Context, _ *cobra.Command, _ []string) error {
		who, err := ownerText(owner)
		if err != nil {
			return err
		}
		if category == "" || account == "" {
			return usagef("--category and --account-name are required")
		}
		if err := a.confirm(ctx, fmt.Sprintf("Charge jobs of %s on machines of %s to the Slurm account %s?", who, category, account)); err != nil {
			return err
		}
		rep, err := call(ctx, a, ipcapi.SlurmAccountAdd, ipcapi.SlurmAccountAddition{
			Owner: *owner, Category: category, Account: account, Reason: *reason, DryRun: a.dryRun,
		})
		if err != nil {
			return err
		}
		return a.mutated("slurm-accounts", "add", "account", "added", rep)
	})
	owner = ownerFlags(c)
	c.Flags().StringVar(&category, "category", "", "machine category (required)")
	c.Flags().StringVar(&account, "account-name", "", "Slurm account (required)")
	reason = reasonFlag(c)
	return c
}

func (a *app) slurmAccountsEvaluateCommand() *cobra.Command {
	var owner *ipcapi.SlurmAccountOwner
	var category string
	c := a.verb("evaluate", "show which account the mapper would give a workspace", 0, 0, func(ctx context.Context, _ *cobra.Command, _ []string) error {
		if _, err := ownerText(owner); err != nil {
			return err
		}
		if category == "" {
			return usagef("--category is required")
		}
		x, err := call(ctx, a, ipcapi.SlurmAccountEvaluate, ipcapi.SlurmAccountQuestion{Owner: *owner, Category: category})
		if err != nil {
			return err
		}
		return item(a, "slurm-accounts", "evaluate", x.Account, x, func() error {
			lines := [][2]string{
				{"Workspace", slurmAccountOwner(ipcapi.SlurmAccountInfo{User: x.User, Project: x.Project})},
				{"Category", x.Category},
				{"Account", cmp.Or(x.Account, "none")},
				{"Problem", x.Problem},
			}
			for _, name := range slices.Sorted(maps.Keys(x.Variables)) {
				lines = append(lines, [2]string{name, x.Variables[name]})
			}
			return a.pairs(lines)
		})
	})
	owner = ownerFlags(c)
	c.Flags().StringVar(&category, "category", "", "machine category (required)")
	return c
}
