package cli

import (
	"cmp"
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
)

func gidText(g *ident.GID) string {
	if g == nil {
		return ""
	}
	return g.String()
}

var projectsTable = table[ipcapi.ProjectInfo]{
	noun: "projects",
	key:  func(p ipcapi.ProjectInfo) string { return string(p.ID) },
	columns: []column[ipcapi.ProjectInfo]{
		{name: "title", get: func(p ipcapi.ProjectInfo) string { return p.Title }},
		{name: "id", get: func(p ipcapi.ProjectInfo) string { return string(p.ID) }},
		{name: "group", get: func(p ipcapi.ProjectInfo) string { return p.Group }},
		{
			name: "gid", get: func(p ipcapi.ProjectInfo) string { return gidText(p.GID) },
			less: func(a, b ipcapi.ProjectInfo) int { return cmp.Compare(number(a.GID), number(b.GID)) },
		},
		{name: "members", get: func(p ipcapi.ProjectInfo) string { return fmt.Sprintf("%d/%d", p.Connected, p.Members) }},
		{name: "state", get: func(p ipcapi.ProjectInfo) string { return p.State }},
		{name: "last-event", get: func(p ipcapi.ProjectInfo) string { return localTime(p.LastEvent) }},
		{name: "problem", wide: true, get: func(p ipcapi.ProjectInfo) string { return p.Problem }},
	},
}

func number(g *ident.GID) ident.GID {
	if g == nil {
		return 0
	}
	return *g
}

func projectFilters(cmd *cobra.Command) *filterFlags[ipcapi.ProjectInfo] {
	type project = ipcapi.ProjectInfo
	return addFilters(cmd,
		filter[project]{"ucloud-name", "title of the project", func(p project) string { return p.Title }},
		filter[project]{"ucloud-id", "UCloud's id of the project", func(p project) string { return string(p.ID) }},
		filter[project]{"local-name", "name of the local group", func(p project) string { return p.Group }},
		filter[project]{"local-id", "gid of the local group", func(p project) string { return gidText(p.GID) }},
		filter[project]{"state", "mapped, unmapped, archived or broken", func(p project) string { return p.State }},
	)
}

func projectSelection(f *filterFlags[ipcapi.ProjectInfo]) selection[ipcapi.ProjectInfo] {
	return selection[ipcapi.ProjectInfo]{
		what:    "project",
		filters: f,
		names:   func(p ipcapi.ProjectInfo) []string { return []string{string(p.ID), gidText(p.GID), p.Group, p.Title} },
		line: func(p ipcapi.ProjectInfo) string {
			if p.GID == nil {
				return fmt.Sprintf("%s (%s), no group", p.Title, p.ID)
			}
			return fmt.Sprintf("%s (%s) = group %s (gid %s)", p.Title, p.ID, p.Group, p.GID)
		},
	}
}

func (a *app) projectsCommand() *cobra.Command {
	return noun("projects", "projects of UCloud and their local groups",
		a.projectsListCommand(), a.projectsShowCommand(), a.projectsMapCommand(), a.projectsRemoveCommand())
}

func (a *app) projects(ctx context.Context) ([]ipcapi.ProjectInfo, error) {
	return list(ctx, a, ipcapi.ProjectList, ipcapi.Empty{}, func(p ipcapi.ProjectPage) []ipcapi.ProjectInfo { return p.Items })
}

func (a *app) projectsListCommand() *cobra.Command {
	var flags *listFlags
	var filters *filterFlags[ipcapi.ProjectInfo]
	c := a.verb("list", "list projects", 0, 0, func(ctx context.Context, _ *cobra.Command, _ []string) error {
		match, err := filters.compile()
		if err != nil {
			return err
		}
		if err := projectsTable.check(flags); err != nil {
			return err
		}
		rows, err := a.projects(ctx)
		if err != nil {
			return err
		}
		return projectsTable.print(a, flags, keep(rows, match))
	})
	flags, filters = addListFlags(c), projectFilters(c)
	return c
}

func (a *app) projectsShowCommand() *cobra.Command {
	var filters *filterFlags[ipcapi.ProjectInfo]
	c := a.verb("show [ID|GID]", "everything about one project", 0, 1, func(ctx context.Context, _ *cobra.Command, args []string) error {
		rows, err := a.projects(ctx)
		if err != nil {
			return err
		}
		one, err := projectSelection(filters).single(rows, args)
		if err != nil {
			return err
		}
		d, err := call(ctx, a, ipcapi.ProjectShow, ipcapi.ProjectRef{ID: one.ID})
		if err != nil {
			return err
		}
		return item(a, "projects", "show", string(d.ID), d, func() error { return a.printProject(d) })
	})
	filters = projectFilters(c)
	return c
}

func (a *app) printProject(d ipcapi.ProjectDetails) error {
	group := ""
	if d.GID != nil {
		group = fmt.Sprintf("%s (gid %s)", d.Group, d.GID)
	}
	lines := [][2]string{
		{"Project", d.Title},
		{"Id", string(d.ID)},
		{"State", d.State},
		{"Local group", group},
		{"Problem", d.Problem},
		{"Last event", localTime(d.LastEvent)},
	}
	for _, p := range d.People {
		text := fmt.Sprintf("%s, %s, not connected", p.User, p.Role)
		if p.UID != nil {
			text = fmt.Sprintf("%s, %s, %s (uid %s)", p.User, p.Role, p.LocalName, p.UID)
			switch {
			case p.InGroup == nil:
			case *p.InGroup:
				text += ", in the group"
			default:
				text += ", NOT in the group"
			}
		}
		lines = append(lines, [2]string{"Member", text})
	}
	for _, x := range d.Drives {
		lines = append(lines, [2]string{"Drive", fmt.Sprintf("%s %s, %s", x.ID, x.Path, x.State)})
	}
	return a.pairs(lines)
}

func (a *app) projectsMapCommand() *cobra.Command {
	var id, gid, name string
	var reason *string
	c := a.verb("map", "give a project its local group", 0, 0, func(ctx context.Context, _ *cobra.Command, _ []string) error {
		if id == "" {
			return usagef("--ucloud-id is required")
		}
		group, err := localTarget(name, gid)
		if err != nil {
			return usagef("give either --local-id or --local-name; a number is an id")
		}
		if err := a.confirm(ctx, fmt.Sprintf("Give project %s the local group %s? Its drives will be made for that group.", id, group)); err != nil {
			return err
		}
		d, err := call(ctx, a, ipcapi.ProjectMap, ipcapi.ProjectMapping{ID: ident.ProjectID(id), Group: group, Reason: *reason, DryRun: a.dryRun})
		if err != nil {
			return err
		}
		for _, p := range d.People {
			if p.InGroup != nil && !*p.InGroup {
				a.note("warning: %s (%s) is a member of the project and not of the group %s", p.LocalName, p.User, d.Group)
			}
		}
		switch a.output {
		case "json", "jsonl", "yaml":
			return a.encode(resultEnvelope{Schema: schemaName("projects", "map"), DryRun: a.dryRun, Results: []resultEntry{{
				Key: map[string]string{"id": id}, Status: ipcapi.ResultOK, Item: d,
			}}})
		}
		_, err = fmt.Fprintf(a.stdout, "%s\t%s\n", clean(id), a.done(fmt.Sprintf("mapped to %s (gid %s)", clean(d.Group), gidText(d.GID))))
		return err
	})
	f := c.Flags()
	f.StringVar(&id, "ucloud-id", "", "UCloud's id of the project (required)")
	f.StringVar(&gid, "local-id", "", "gid of the group")
	f.StringVar(&name, "local-name", "", "name of the group, instead of the gid")
	reason = reasonFlag(c)
	return c
}

// projectsRemoveCommand takes groups from projects. The rows are chosen here and sent by key (contract 41 CLI-10).
func (a *app) projectsRemoveCommand() *cobra.Command {
	var filters *filterFlags[ipcapi.ProjectInfo]
	var force bool
	var reason *string
	c := a.verb("remove [ID]...", "take their local groups from projects", 0, -1, func(ctx context.Context, _ *cobra.Command, args []string) error {
		sel := projectSelection(filters)
		if len(args) == 0 && !filters.given() {
			_, err := sel.choose(nil, nil)
			return err
		}
		rows, err := a.projects(ctx)
		if err != nil {
			return err
		}
		chosen, err := sel.choose(keep(rows, func(p ipcapi.ProjectInfo) bool { return p.GID != nil }), args)
		if err != nil {
			return err
		}
		req := ipcapi.ProjectMutation{Force: force, Reason: *reason, DryRun: a.dryRun}
		for _, p := range chosen {
			req.Targets = append(req.Targets, ipcapi.ProjectTarget{ID: p.ID, GID: *p.GID})
		}
		a.note("%s will lose the mapping; files and groups stay as they are:", plural(len(chosen), "project"))
		sel.show(a, chosen)
		if err := a.confirm(ctx, "Continue?"); err != nil {
			return err
		}
		rep, err := call(ctx, a, ipcapi.ProjectRemove, req)
		if err != nil {
			return err
		}
		return a.mutated("projects", "remove", "id", "removed", rep)
	})
	filters = projectFilters(c)
	c.Flags().BoolVar(&force, "force", false, "also for projects that live at UCloud")
	reason = reasonFlag(c)
	return c
}
