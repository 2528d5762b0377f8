package cli

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"ucloud-im/internal/ipcapi"
)

// taskEnded tells that nothing will happen with a task any more.
func taskEnded(t ipcapi.TaskInfo) bool {
	return t.State == ipcapi.TaskSucceeded || t.State == ipcapi.TaskFailed || t.State == ipcapi.TaskCancelled
}

// taskState is the state, and what was asked for if that is another one.
func taskState(t ipcapi.TaskInfo) string {
	if t.Wanted != "" {
		return t.State + " (to be " + t.Wanted + ")"
	}
	return t.State
}

// taskAmount is how far a task is: a percentage if it is known, and the amounts.
func taskAmount(t ipcapi.TaskInfo) string {
	switch {
	case t.Percent < 0:
		return t.Body
	case t.Body == "":
		return fmt.Sprintf("%.0f %%", t.Percent)
	}
	return fmt.Sprintf("%.0f %%, %s", t.Percent, t.Body)
}

func taskOwner(t ipcapi.TaskInfo) string {
	if t.LocalName != "" {
		return t.LocalName
	}
	return uidText(t.UID)
}

func tasksTable(now time.Time) table[ipcapi.TaskInfo] {
	id := func(t ipcapi.TaskInfo) string { return strconv.FormatInt(t.ID, 10) }
	return table[ipcapi.TaskInfo]{
		noun: "tasks",
		key:  id,
		columns: []column[ipcapi.TaskInfo]{
			{name: "id", get: id, less: func(a, b ipcapi.TaskInfo) int { return cmp.Compare(a.ID, b.ID) }},
			{name: "user", get: taskOwner},
			{name: "ucloud-name", get: func(t ipcapi.TaskInfo) string { return string(t.User) }},
			{name: "type", get: func(t ipcapi.TaskInfo) string { return t.Kind }},
			{name: "state", get: taskState},
			{name: "title", get: func(t ipcapi.TaskInfo) string { return t.Title }},
			{
				name: "amount", get: taskAmount,
				less: func(a, b ipcapi.TaskInfo) int { return cmp.Compare(a.Percent, b.Percent) },
			},
			{name: "progress", get: func(t ipcapi.TaskInfo) string { return t.Progress }},
			{
				name: "age", get: func(t ipcapi.TaskInfo) string { return span(int64(now.Sub(t.CreatedAt).Seconds())) },
				less: func(a, b ipcapi.TaskInfo) int { return b.CreatedAt.Compare(a.CreatedAt) },
			},
			{name: "updated", wide: true, get: func(t ipcapi.TaskInfo) string { return localTime(&t.UpdatedAt) }},
			{name: "attempt", wide: true, get: func(t ipcapi.TaskInfo) string { return strconv.FormatInt(t.Attempt, 10) }},
			{name: "retries", wide: true, get: func(t ipcapi.TaskInfo) string { return strconv.Itoa(t.Retries) }},
			{name: "connected", wide: true, get: func(t ipcapi.TaskInfo) string {
				if t.Connected {
					return "yes"
				}
				return "no"
			}},
			{name: "ucloud-id", wide: true, get: func(t ipcapi.TaskInfo) string {
				if t.CoreID == 0 {
					return ""
				}
				return strconv.FormatInt(t.CoreID, 10)
			}},
			{name: "uid", wide: true, get: func(t ipcapi.TaskInfo) string { return uidText(t.UID) }},
		},
	}
}

func taskFilters(cmd *cobra.Command) *filterFlags[ipcapi.TaskInfo] {
	type task = ipcapi.TaskInfo
	return addFilters(cmd,
		filter[task]{"user", "login name, or uid if it has none", taskOwner},
		filter[task]{"ucloud-name", "UCloud user name", func(t task) string { return string(t.User) }},
		filter[task]{"type", "kind of work, such as copy", func(t task) string { return t.Kind }},
		filter[task]{"state", "queued, running, suspended, cancelled, failed or succeeded", func(t task) string { return t.State }},
	)
}

func (a *app) tasksCommand() *cobra.Command {
	return noun("tasks", "background work of users", a.tasksListCommand(), a.tasksCancelCommand(), a.tasksKillAllCommand())
}

func (a *app) tasks(ctx context.Context) ([]ipcapi.TaskInfo, error) {
	return list(ctx, a, ipcapi.TaskList, ipcapi.Empty{}, func(p ipcapi.TaskPage) []ipcapi.TaskInfo { return p.Items })
}

// openTasks are the tasks that can be cancelled.
func (a *app) openTasks(ctx context.Context) ([]ipcapi.TaskInfo, error) {
	rows, err := a.tasks(ctx)
	return keep(rows, func(t ipcapi.TaskInfo) bool { return !taskEnded(t) }), err
}

func (a *app) tasksListCommand() *cobra.Command {
	var flags *listFlags
	var filters *filterFlags[ipcapi.TaskInfo]
	var ended bool
	c := a.verb("list", "list tasks that have not ended, the newest first", 0, 0, func(ctx context.Context, cmd *cobra.Command, _ []string) error {
		match, err := filters.compile()
		if err != nil {
			return err
		}
		t := tasksTable(a.hooks.Now())
		if err := t.check(flags); err != nil {
			return err
		}
		rows, err := a.tasks(ctx)
		if err != nil {
			return err
		}
		// Who asks for a state means that one.
		if !ended && !cmd.Flags().Changed("state") {
			rows = keep(rows, func(t ipcapi.TaskInfo) bool { return !taskEnded(t) })
		}
		return t.print(a, flags, keep(rows, match))
	})
	flags, filters = addListFlags(c), taskFilters(c)
	c.Flags().BoolVar(&ended, "ended", false, "also tasks that have ended lately")
	return c
}

func (a *app) tasksCancelCommand() *cobra.Command {
	var filters *filterFlags[ipcapi.TaskInfo]
	var all bool
	var reason *string
	c := a.verb("cancel [ID]...", "end the work of tasks", 0, -1, func(ctx context.Context, _ *cobra.Command, args []string) error {
		if len(args) == 0 && !filters.given() && !all {
			return usagef("name a task, select with a filter, or say --all")
		}
		return a.cancelTasks(ctx, "cancel", args, filters, all, *reason)
	})
	filters = taskFilters(c)
	c.Flags().BoolVar(&all, "all", false, "all tasks of all users")
	reason = reasonFlag(c)
	return c
}

// tasksKillAllCommand is "tasks cancel --all --yes" under the name that operators know.
func (a *app) tasksKillAllCommand() *cobra.Command {
	var reason *string
	c := a.verb("kill-all", "end the work of all tasks without asking", 0, 0, func(ctx context.Context, _ *cobra.Command, _ []string) error {
		a.yes = true
		return a.cancelTasks(ctx, "kill-all", nil, nil, true, *reason)
	})
	reason = reasonFlag(c)
	return c
}

func (a *app) cancelTasks(ctx context.Context, verb string, args []string, filters *filterFlags[ipcapi.TaskInfo], all bool, reason string) error {
	sel := selection[ipcapi.TaskInfo]{
		what: "task", filters: filters, all: &all,
		names: func(t ipcapi.TaskInfo) []string { return []string{strconv.FormatInt(t.ID, 10)} },
		line: func(t ipcapi.TaskInfo) string {
			return fmt.Sprintf("%d of %s (%s): %s, %s", t.ID, taskOwner(t), t.User, t.Title, taskState(t))
		},
	}
	rows, err := a.openTasks(ctx)
	if err != nil {
		return err
	}
	chosen, err := sel.choose(rows, args)
	if err != nil {
		return err
	}
	req := ipcapi.TaskMutation{Reason: reason, DryRun: a.dryRun}
	for _, t := range chosen {
		req.IDs = append(req.IDs, t.ID)
	}
	a.note("%s will be cancelled:", plural(len(chosen), "task"))
	sel.show(a, chosen)
	if err := a.confirm(ctx, "Continue?"); err != nil {
		return err
	}
	rep, err := call(ctx, a, ipcapi.TaskCancel, req)
	if err != nil {
		return err
	}
	return a.mutated("tasks", verb, "id", "cancelled", rep)
}
