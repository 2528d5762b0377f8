package cli

import (
	"cmp"
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
)

var usersTable = table[ipcapi.UserInfo]{
	noun: "users",
	key:  func(u ipcapi.UserInfo) string { return string(u.User) },
	columns: []column[ipcapi.UserInfo]{
		{name: "ucloud-name", get: func(u ipcapi.UserInfo) string { return string(u.User) }},
		{name: "local-name", get: func(u ipcapi.UserInfo) string { return u.LocalName }},
		{
			name: "uid", get: func(u ipcapi.UserInfo) string { return uidText(u.UID) },
			less: func(a, b ipcapi.UserInfo) int { return cmp.Compare(a.UID, b.UID) },
		},
		{name: "state", get: func(u ipcapi.UserInfo) string { return u.State }},
		{
			name: "connected", get: func(u ipcapi.UserInfo) string { return localTime(u.ConnectedAt) },
		},
		{name: "expires", get: func(u ipcapi.UserInfo) string { return localTime(u.ExpiresAt) }},
		{name: "last-seen", get: func(u ipcapi.UserInfo) string { return localTime(u.LastSeenAt) }},
		{name: "instance", get: func(u ipcapi.UserInfo) string {
			if !u.Instance.Running {
				return ""
			}
			return "idle " + span(u.Instance.IdleSeconds)
		}},
		{name: "method", wide: true, get: func(u ipcapi.UserInfo) string { return u.Method }},
		{name: "problem", wide: true, get: func(u ipcapi.UserInfo) string { return u.Problem }},
	},
}

func userFilters(cmd *cobra.Command) *filterFlags[ipcapi.UserInfo] {
	return addFilters(cmd,
		filter[ipcapi.UserInfo]{"ucloud-name", "UCloud user name", func(u ipcapi.UserInfo) string { return string(u.User) }},
		filter[ipcapi.UserInfo]{"local-name", "login name", func(u ipcapi.UserInfo) string { return u.LocalName }},
		filter[ipcapi.UserInfo]{"local-uid", "uid", func(u ipcapi.UserInfo) string { return uidText(u.UID) }},
		filter[ipcapi.UserInfo]{"state", "pending, approved, active, expired or broken", func(u ipcapi.UserInfo) string { return u.State }},
	)
}

func userSelection(f *filterFlags[ipcapi.UserInfo]) selection[ipcapi.UserInfo] {
	return selection[ipcapi.UserInfo]{
		what:    "user",
		filters: f,
		names:   func(u ipcapi.UserInfo) []string { return []string{string(u.User), u.LocalName, uidText(u.UID)} },
		line: func(u ipcapi.UserInfo) string {
			return fmt.Sprintf("%s = %s (uid %d), %s", u.User, u.LocalName, u.UID, u.State)
		},
	}
}

func (a *app) usersCommand() *cobra.Command {
	return noun("users", "connections between UCloud users and local accounts",
		a.usersListCommand(), a.usersShowCommand(), a.usersAddCommand(),
		a.usersEndCommand("expire SELECTOR", "end connections; the users must connect again", "expired", false, ipcapi.UserExpire),
		a.usersEndCommand("remove SELECTOR", "remove connections", "removed", true, ipcapi.UserRemove),
		a.usersChangeCommand(),
	)
}

func (a *app) users(ctx context.Context, check bool) ([]ipcapi.UserInfo, error) {
	return list(ctx, a, ipcapi.UserList, ipcapi.UserListRequest{Check: check}, func(p ipcapi.UserPage) []ipcapi.UserInfo { return p.Items })
}

func (a *app) usersListCommand() *cobra.Command {
	var flags *listFlags
	var filters *filterFlags[ipcapi.UserInfo]
	c := a.verb("list", "list connections", 0, 0, func(ctx context.Context, cmd *cobra.Command, _ []string) error {
		match, err := filters.compile()
		if err != nil {
			return err
		}
		if err := usersTable.check(flags); err != nil {
			return err
		}
		// Looking at every account costs name service queries, so it is done only for those who want to know.
		state, _ := cmd.Flags().GetString("state")
		rows, err := a.users(ctx, state != "" || a.output == "wide")
		if err != nil {
			return err
		}
		return usersTable.print(a, flags, keep(rows, match))
	})
	flags, filters = addListFlags(c), userFilters(c)
	return c
}

// keep gives the rows that match.
func keep[T any](rows []T, match func(T) bool) []T {
	var out []T
	for _, r := range rows {
		if match(r) {
			out = append(out, r)
		}
	}
	return out
}

func (a *app) usersShowCommand() *cobra.Command {
	var filters *filterFlags[ipcapi.UserInfo]
	c := a.verb("show [NAME|UID]", "everything about one user", 0, 1, func(ctx context.Context, _ *cobra.Command, args []string) error {
		rows, err := a.users(ctx, false)
		if err != nil {
			return err
		}
		one, err := userSelection(filters).single(rows, args)
		if err != nil {
			return err
		}
		d, err := call(ctx, a, ipcapi.UserShow, ipcapi.UserRef{User: one.User})
		if err != nil {
			return err
		}
		return item(a, "users", "show", string(d.User), d, func() error { return a.printUser(d) })
	})
	filters = userFilters(c)
	return c
}

func (a *app) printUser(d ipcapi.UserDetails) error {
	lines := [][2]string{
		{"UCloud user", string(d.User)},
		{"Local user", fmt.Sprintf("%s (uid %d)", d.LocalName, d.UID)},
		{"State", d.State},
		{"Not launchable", d.Launchable},
		{"Home", d.Home},
		{"Connected", localTime(d.ConnectedAt)},
		{"Expires", localTime(d.ExpiresAt)},
		{"Last seen", localTime(d.LastSeenAt)},
		{"Method", fmt.Sprintf("%s, by %s", d.Method, d.By)},
	}
	if d.Process != nil {
		lines = append(lines, [2]string{"Instance", fmt.Sprintf("%s, pid %d, port %d, idle %s, %s", d.Process.State, d.Process.PID, d.Process.Port,
			span(d.Process.IdleSeconds), bytesText(d.Process.MemoryBytes))})
	}
	if d.QueuedSteps > 0 {
		lines = append(lines, [2]string{"Waiting for UCloud", fmt.Sprintf("%s; last error: %s", plural(d.QueuedSteps, "step"), d.LastError)})
	}
	for _, dr := range d.Drives {
		lines = append(lines, [2]string{"Drive", fmt.Sprintf("%s  %s  (%s)", dr.Title, dr.Path, dr.State)})
	}
	return a.pairs(lines)
}

func (a *app) usersAddCommand() *cobra.Command {
	var name, local, uid, expires string
	var noApprove bool
	var reason *string
	c := a.verb("add", "connect a UCloud user without a ticket", 0, 0, func(ctx context.Context, _ *cobra.Command, _ []string) error {
		user, err := userName(name)
		if err != nil {
			return err
		}
		target, err := localTarget(local, uid)
		if err != nil {
			return err
		}
		at, err := a.expiry(expires)
		if err != nil {
			return err
		}
		if err := a.confirm(ctx, fmt.Sprintf("Connect UCloud user %s with local user %s?", user, target)); err != nil {
			return err
		}
		res, err := call(ctx, a, ipcapi.UserAdd, ipcapi.UserAddition{
			User: user, Local: target, ExpiresAt: at, NoApprove: noApprove, WaitMs: a.wait(), Reason: *reason, DryRun: a.dryRun,
		})
		if err != nil {
			return err
		}
		return a.linked("users", "add", res)
	})
	f := c.Flags()
	f.StringVar(&name, "ucloud-name", "", "UCloud user name (required)")
	f.StringVar(&local, "local-name", "", "login name")
	f.StringVar(&uid, "local-uid", "", "uid, instead of the login name")
	f.StringVar(&expires, "expires", "", "when the connection ends (30d, 2031-02-03)")
	f.BoolVar(&noApprove, "no-approve", false, "UCloud knows about the connection already")
	reason = reasonFlag(c)
	return c
}

// localTarget is the account that an operator names by one of two flags.
func localTarget(name, uid string) (string, error) {
	switch {
	case (name == "") == (uid == ""):
		return "", usagef("give either --local-name or --local-uid")
	case name != "":
		if _, err := ident.ParseUID(name); err == nil {
			return "", usagef("--local-name %s is a number: use --local-uid", name)
		}
		return name, nil
	}
	if _, err := ident.ParseUID(uid); err != nil {
		return "", usagef("--local-uid: %v", err)
	}
	return uid, nil
}

// usersEndCommand is expire or remove. The rows are chosen here and sent by key, so that exactly what was shown is
// changed (contract 41 CLI-10).
func (a *app) usersEndCommand(use, short, past string, purgeable bool, end ipc.Call[ipcapi.UserMutation, ipcapi.MutationReport]) *cobra.Command {
	var filters *filterFlags[ipcapi.UserInfo]
	var purge, really bool
	var reason *string
	c := a.verb(use, short, 0, -1, func(ctx context.Context, cmd *cobra.Command, args []string) error {
		sel := userSelection(filters)
		if len(args) == 0 && !filters.given() {
			_, err := sel.choose(nil, nil)
			return err
		}
		rows, err := a.users(ctx, false)
		if err != nil {
			return err
		}
		chosen, err := sel.choose(rows, args)
		if err != nil {
			return err
		}
		req := ipcapi.UserMutation{Purge: purge || really, Reason: *reason, DryRun: a.dryRun}
		for _, u := range chosen {
			req.Targets = append(req.Targets, ipcapi.UserTarget{User: u.User, UID: u.UID})
		}
		a.note("%s will be %s:", plural(len(chosen), "connection"), past)
		sel.show(a, chosen)
		if err := a.confirm(ctx, "Continue? Running sessions of these users end."); err != nil {
			return err
		}
		rep, err := call(ctx, a, end, req)
		if err != nil {
			return err
		}
		return a.mutated("users", cmd.Name(), "ucloudName", past, rep)
	})
	filters = userFilters(c)
	if purgeable {
		c.Flags().BoolVar(&purge, "purge", false, "delete the record as well, instead of keeping it for the audit")
		c.Flags().BoolVar(&really, "really-remove-mapping", false, "same as --purge")
		_ = c.Flags().MarkHidden("really-remove-mapping") // the flag exists
	}
	reason = reasonFlag(c)
	return c
}

// usersChangeCommand gives a user another account. What is asked names both accounts, as the server sees them; the new one is
// then sent by uid, so that exactly what was shown is done (contract 41 CLI-10).
func (a *app) usersChangeCommand() *cobra.Command {
	var local, uid string
	var reason *string
	c := a.verb("change NAME|UID", "give a UCloud user another local account", 1, 1, func(ctx context.Context, _ *cobra.Command, args []string) error {
		target, err := localTarget(local, uid)
		if err != nil {
			return err
		}
		rows, err := a.users(ctx, false)
		if err != nil {
			return err
		}
		one, err := userSelection(nil).single(rows, args)
		if err != nil {
			return err
		}
		req := ipcapi.UserAccountChange{User: one.User, UID: one.UID, Local: target, Reason: *reason, DryRun: true}
		plan, err := call(ctx, a, ipcapi.UserChange, req)
		if err != nil {
			return err
		}
		a.note("UCloud user %s: local user %s (uid %d) will be replaced by %s (uid %d).", plan.User, plan.OldLocalName, plan.OldUID, plan.LocalName, plan.UID)
		a.note("Files, groups and jobs of %s stay with that account. Links, signing keys and running sessions end.", plan.OldLocalName)
		if err := a.confirm(ctx, fmt.Sprintf("Does local user %s belong to UCloud user %s, and shall it replace %s?", plan.LocalName, plan.User, plan.OldLocalName)); err != nil {
			return err
		}
		done := plan
		if !a.dryRun {
			req.Local, req.DryRun = uidText(plan.UID), false
			if done, err = call(ctx, a, ipcapi.UserChange, req); err != nil {
				return err
			}
		}
		return a.changed(done)
	})
	c.Aliases = append(c.Aliases, "remap")
	f := c.Flags()
	f.StringVar(&local, "local-name", "", "login name of the new account")
	f.StringVar(&uid, "local-uid", "", "uid of the new account, instead of the login name")
	f.StringVar(&uid, "to-uid", "", "same as --local-uid")
	_ = f.MarkHidden("to-uid") // the flag exists
	reason = reasonFlag(c)
	return c
}

func (a *app) changed(res ipcapi.UserAccountChanged) error {
	switch a.output {
	case "json", "jsonl", "yaml":
		return a.encode(resultEnvelope{Schema: schemaName("users", "change"), DryRun: a.dryRun, Results: []resultEntry{{
			Key: map[string]string{"ucloudName": string(res.User)}, Status: ipcapi.ResultOK, Item: res,
		}}})
	case "name":
		_, err := fmt.Fprintln(a.stdout, clean(string(res.User)))
		return err
	}
	text := "Changed: UCloud user %s is local user %s (uid %d) and was %s (uid %d)."
	if a.dryRun {
		text = "Would change: UCloud user %s would be local user %s (uid %d) and is %s (uid %d)."
	}
	if res.Ending {
		a.note("The user instance of %s has not ended yet. It is being ended; ucloud instances list shows it until then.", res.OldLocalName)
	}
	_, err := fmt.Fprintln(a.stdout, clean(fmt.Sprintf(text, res.User, res.LocalName, res.UID, res.OldLocalName, res.OldUID)))
	return err
}
