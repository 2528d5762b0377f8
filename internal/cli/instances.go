package cli

import (
	"cmp"
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
)

var instancesTable = table[ipcapi.InstanceInfo]{
	noun: "instances",
	key:  func(i ipcapi.InstanceInfo) string { return string(i.User) },
	columns: []column[ipcapi.InstanceInfo]{
		{
			name: "uid", get: func(i ipcapi.InstanceInfo) string { return uidText(i.UID) },
			less: func(a, b ipcapi.InstanceInfo) int { return cmp.Compare(a.UID, b.UID) },
		},
		{name: "local-name", get: func(i ipcapi.InstanceInfo) string { return i.LocalName }},
		{name: "ucloud-name", get: func(i ipcapi.InstanceInfo) string { return string(i.User) }},
		{name: "state", get: func(i ipcapi.InstanceInfo) string { return i.State }},
		{name: "pid", get: func(i ipcapi.InstanceInfo) string { return strconv.Itoa(int(i.PID)) }},
		{name: "port", get: func(i ipcapi.InstanceInfo) string { return strconv.Itoa(i.Port) }},
		{
			name: "since", get: func(i ipcapi.InstanceInfo) string { return localTime(&i.StartedAt) },
			less: func(a, b ipcapi.InstanceInfo) int { return a.StartedAt.Compare(b.StartedAt) },
		},
		{
			name: "idle", get: func(i ipcapi.InstanceInfo) string { return span(i.IdleSeconds) },
			less: func(a, b ipcapi.InstanceInfo) int { return cmp.Compare(a.IdleSeconds, b.IdleSeconds) },
		},
		{
			name: "memory", get: func(i ipcapi.InstanceInfo) string { return bytesText(i.MemoryBytes) },
			less: func(a, b ipcapi.InstanceInfo) int { return cmp.Compare(a.MemoryBytes, b.MemoryBytes) },
		},
		{
			name: "requests", wide: true, get: func(i ipcapi.InstanceInfo) string { return strconv.FormatUint(i.Requests, 10) },
			less: func(a, b ipcapi.InstanceInfo) int { return cmp.Compare(a.Requests, b.Requests) },
		},
		{name: "restarts", wide: true, get: func(i ipcapi.InstanceInfo) string { return strconv.Itoa(i.Restarts) }},
		{name: "build", wide: true, get: func(i ipcapi.InstanceInfo) string { return i.Build }},
		{name: "last-error", wide: true, get: func(i ipcapi.InstanceInfo) string { return i.LastError }},
	},
}

func instanceFilters(cmd *cobra.Command) *filterFlags[ipcapi.InstanceInfo] {
	return addFilters(cmd,
		filter[ipcapi.InstanceInfo]{"user", "login name", func(i ipcapi.InstanceInfo) string { return i.LocalName }},
		filter[ipcapi.InstanceInfo]{"ucloud-name", "UCloud user name", func(i ipcapi.InstanceInfo) string { return string(i.User) }},
		filter[ipcapi.InstanceInfo]{"state", "state of the instance", func(i ipcapi.InstanceInfo) string { return i.State }},
	)
}

func (a *app) instancesCommand() *cobra.Command {
	return noun("instances", "processes of connected users",
		a.instancesListCommand(),
		a.instancesChangeCommand("stop [USER]...", "end instances at once", "stopped", ipcapi.InstanceStop),
		a.instancesChangeCommand("restart [USER]...", "replace instances without losing requests", "restarted", ipcapi.InstanceRestart),
	)
}

func (a *app) instances(ctx context.Context) ([]ipcapi.InstanceInfo, error) {
	return list(ctx, a, ipcapi.InstanceList, ipcapi.Empty{}, func(p ipcapi.InstancePage) []ipcapi.InstanceInfo { return p.Items })
}

func (a *app) instancesListCommand() *cobra.Command {
	var flags *listFlags
	var filters *filterFlags[ipcapi.InstanceInfo]
	c := a.verb("list", "list instances", 0, 0, func(ctx context.Context, _ *cobra.Command, _ []string) error {
		match, err := filters.compile()
		if err != nil {
			return err
		}
		if err := instancesTable.check(flags); err != nil {
			return err
		}
		rows, err := a.instances(ctx)
		if err != nil {
			return err
		}
		return instancesTable.print(a, flags, keep(rows, match))
	})
	flags, filters = addListFlags(c), instanceFilters(c)
	return c
}

func (a *app) instancesChangeCommand(use, short, past string, change ipc.Call[ipcapi.InstanceMutation, ipcapi.MutationReport]) *cobra.Command {
	var filters *filterFlags[ipcapi.InstanceInfo]
	var all bool
	var reason *string
	c := a.verb(use, short, 0, -1, func(ctx context.Context, cmd *cobra.Command, args []string) error {
		sel := selection[ipcapi.InstanceInfo]{
			what: "instance", filters: filters, all: &all,
			names: func(i ipcapi.InstanceInfo) []string { return []string{string(i.User), i.LocalName, uidText(i.UID)} },
			line:  func(i ipcapi.InstanceInfo) string { return fmt.Sprintf("%s (%s), %s", i.LocalName, i.User, i.State) },
		}
		if len(args) == 0 && !filters.given() && !all {
			return usagef("name a user, select with a filter, or say --all")
		}
		rows, err := a.instances(ctx)
		if err != nil {
			return err
		}
		chosen, err := sel.choose(rows, args)
		if err != nil {
			return err
		}
		req := ipcapi.InstanceMutation{Reason: *reason, DryRun: a.dryRun}
		for _, i := range chosen {
			req.Users = append(req.Users, i.User)
		}
		a.note("%s will be %s:", plural(len(chosen), "instance"), past)
		sel.show(a, chosen)
		if err := a.confirm(ctx, "Continue?"); err != nil {
			return err
		}
		rep, err := call(ctx, a, change, req)
		if err != nil {
			return err
		}
		return a.mutated("instances", cmd.Name(), "ucloudName", past, rep)
	})
	filters = instanceFilters(c)
	c.Flags().BoolVar(&all, "all", false, "all instances")
	reason = reasonFlag(c)
	return c
}
