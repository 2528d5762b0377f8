package cli

import (
	"cmp"
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
)

func allocationOwner(x ipcapi.AllocationInfo) string {
	owner := string(x.User)
	if x.Project != "" {
		owner = "project " + string(x.Project)
	}
	if x.Local != "" {
		owner += " (" + x.Local + ")"
	}
	return owner
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

var allocationsTable = table[ipcapi.AllocationInfo]{
	noun: "allocations",
	key: func(x ipcapi.AllocationInfo) string {
		return ident.Owner{User: x.User, Project: x.Project}.Reference() + "/" + x.Category
	},
	columns: []column[ipcapi.AllocationInfo]{
		{name: "owner", get: allocationOwner},
		{name: "category", get: func(x ipcapi.AllocationInfo) string { return x.Category }},
		{
			name: "used", get: func(x ipcapi.AllocationInfo) string { return strconv.FormatInt(x.Used, 10) },
			less: func(a, b ipcapi.AllocationInfo) int { return cmp.Compare(a.Used, b.Used) },
		},
		{
			name: "quota", get: func(x ipcapi.AllocationInfo) string { return strconv.FormatInt(x.Quota, 10) },
			less: func(a, b ipcapi.AllocationInfo) int { return cmp.Compare(a.Quota, b.Quota) },
		},
		{name: "unit", get: func(x ipcapi.AllocationInfo) string { return x.Unit }},
		{
			name: "percent", get: func(x ipcapi.AllocationInfo) string { return strconv.Itoa(x.Percent) },
			less: func(a, b ipcapi.AllocationInfo) int { return cmp.Compare(a.Percent, b.Percent) },
		},
		{name: "locked", get: func(x ipcapi.AllocationInfo) string { return yesNo(x.Locked) }},
		{name: "drives", get: func(x ipcapi.AllocationInfo) string { return strconv.Itoa(x.Drives) }},
		{name: "updated", wide: true, get: func(x ipcapi.AllocationInfo) string { return localTime(&x.UpdatedAt) }},
		{name: "applied", wide: true, get: func(x ipcapi.AllocationInfo) string {
			if x.AppliedBytes == nil {
				return ""
			}
			return strconv.FormatInt(*x.AppliedBytes, 10)
		}},
		{name: "applied-at", wide: true, get: func(x ipcapi.AllocationInfo) string { return localTime(x.AppliedAt) }},
		{name: "problem", wide: true, get: func(x ipcapi.AllocationInfo) string { return x.Problem }},
	},
}

// allocationFilters adds the filters; over is the flag --over.
func allocationFilters(cmd *cobra.Command) (filters *filterFlags[ipcapi.AllocationInfo], over *int) {
	type allocation = ipcapi.AllocationInfo
	user := func(x allocation) string {
		if x.User == "" {
			return ""
		}
		return x.Local
	}
	group := func(x allocation) string {
		if x.Project == "" {
			return ""
		}
		return x.Local
	}
	over = cmd.Flags().Int("over", 0, "only allocations that are used up to more than so many percent")
	return addFilters(cmd,
		filter[allocation]{"ucloud-name", "UCloud user who owns it", func(x allocation) string { return string(x.User) }},
		filter[allocation]{"ucloud-project-id", "project that owns it", func(x allocation) string { return string(x.Project) }},
		filter[allocation]{"local-user", "login name of the owner", user},
		filter[allocation]{"local-group", "local group of the project", group},
		filter[allocation]{"category", "product category", func(x allocation) string { return x.Category }},
		filter[allocation]{"locked", "yes or no", func(x allocation) string { return yesNo(x.Locked) }},
	), over
}

func (a *app) allocationsCommand() *cobra.Command {
	return noun("allocations", "what UCloud has granted to users and projects", a.allocationsListCommand(), a.allocationsApplyCommand())
}

func (a *app) allocations(ctx context.Context) ([]ipcapi.AllocationInfo, error) {
	return list(ctx, a, ipcapi.AllocationList, ipcapi.Empty{}, func(p ipcapi.AllocationPage) []ipcapi.AllocationInfo { return p.Items })
}

func (a *app) allocationsListCommand() *cobra.Command {
	var flags *listFlags
	var filters *filterFlags[ipcapi.AllocationInfo]
	var over *int
	c := a.verb("list", "list allocations", 0, 0, func(ctx context.Context, cmd *cobra.Command, _ []string) error {
		match, err := filters.compile()
		if err != nil {
			return err
		}
		if err := allocationsTable.check(flags); err != nil {
			return err
		}
		rows, err := a.allocations(ctx)
		if err != nil {
			return err
		}
		return allocationsTable.print(a, flags, keep(rows, func(x ipcapi.AllocationInfo) bool {
			return match(x) && (!cmd.Flags().Changed("over") || x.Percent > *over)
		}))
	})
	flags = addListFlags(c)
	filters, over = allocationFilters(c)
	return c
}

// allocationsApplyCommand has the site's scripts called again. The rows are chosen here and sent by key (contract 41
// CLI-10).
func (a *app) allocationsApplyCommand() *cobra.Command {
	var filters *filterFlags[ipcapi.AllocationInfo]
	var reason *string
	c := a.verb("apply", "set quotas and look at drives again", 0, 0, func(ctx context.Context, cmd *cobra.Command, _ []string) error {
		if !filters.given() {
			return usagef("select allocations with a filter")
		}
		rows, err := a.allocations(ctx)
		if err != nil {
			return err
		}
		sel := selection[ipcapi.AllocationInfo]{what: "allocation", filters: filters, line: func(x ipcapi.AllocationInfo) string {
			return fmt.Sprintf("%s, %s: %d %s", allocationOwner(x), x.Category, x.Quota, x.Unit)
		}}
		chosen, err := sel.choose(rows, nil)
		if err != nil {
			return err
		}
		req := ipcapi.AllocationMutation{Reason: *reason, DryRun: a.dryRun}
		seen := map[ipcapi.AllocationTarget]bool{}
		for _, x := range chosen {
			t := ipcapi.AllocationTarget{User: x.User, Project: x.Project}
			if !seen[t] { // an owner's products are looked at together
				seen[t] = true
				req.Targets = append(req.Targets, t)
			}
		}
		sel.show(a, chosen)
		if err := a.confirm(ctx, fmt.Sprintf("Apply what UCloud has granted to %s again?", plural(len(req.Targets), "owner"))); err != nil {
			return err
		}
		rep, err := call(ctx, a, ipcapi.AllocationApply, req)
		if err != nil {
			return err
		}
		return a.mutated("allocations", "apply", "owner", "queued", rep)
	})
	filters, _ = allocationFilters(c)
	_ = c.Flags().MarkHidden("over") // the flag exists
	reason = reasonFlag(c)
	return c
}
