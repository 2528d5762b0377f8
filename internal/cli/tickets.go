package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"ucloud-im/internal/ipcapi"
)

var ticketsTable = table[ipcapi.TicketInfo]{
	noun: "tickets",
	key:  func(t ipcapi.TicketInfo) string { return t.Short },
	columns: []column[ipcapi.TicketInfo]{
		{name: "ticket", get: func(t ipcapi.TicketInfo) string { return t.Short }},
		{name: "ucloud-name", get: func(t ipcapi.TicketInfo) string { return string(t.User) }},
		{name: "created", get: func(t ipcapi.TicketInfo) string { return localTime(&t.CreatedAt) }},
		{name: "expires", get: func(t ipcapi.TicketInfo) string { return localTime(&t.ExpiresAt) }},
		{name: "state", get: func(t ipcapi.TicketInfo) string { return t.State }},
		{name: "closed", wide: true, get: func(t ipcapi.TicketInfo) string { return localTime(t.ClosedAt) }},
		{name: "uid", wide: true, get: func(t ipcapi.TicketInfo) string {
			if t.UID == nil {
				return ""
			}
			return uidText(*t.UID)
		}},
		{name: "by", wide: true, get: func(t ipcapi.TicketInfo) string { return t.By }},
		{name: "message", wide: true, get: func(t ipcapi.TicketInfo) string { return t.Message }},
	},
}

func (a *app) ticketsCommand() *cobra.Command {
	return noun("tickets", "pending and past tickets of the ticket mapper",
		a.ticketsListCommand(), a.ticketsApproveCommand(), a.ticketsRejectCommand())
}

func (a *app) ticketsListCommand() *cobra.Command {
	var flags *listFlags
	var filters *filterFlags[ipcapi.TicketInfo]
	c := a.verb("list", "list tickets", 0, 0, func(ctx context.Context, _ *cobra.Command, _ []string) error {
		match, err := filters.compile()
		if err != nil {
			return err
		}
		if err := ticketsTable.check(flags); err != nil {
			return err
		}
		rows, err := list(ctx, a, ipcapi.TicketList, ipcapi.Empty{}, func(p ipcapi.TicketPage) []ipcapi.TicketInfo { return p.Items })
		if err != nil {
			return err
		}
		return ticketsTable.print(a, flags, keep(rows, match))
	})
	flags = addListFlags(c)
	filters = addFilters(c,
		filter[ipcapi.TicketInfo]{"state", "open, approved, rejected, expired or superseded", func(t ipcapi.TicketInfo) string { return t.State }},
		filter[ipcapi.TicketInfo]{"ucloud-name", "UCloud user name", func(t ipcapi.TicketInfo) string { return string(t.User) }},
	)
	return c
}

func (a *app) ticketsApproveCommand() *cobra.Command {
	var local, uid, expires string
	var reason *string
	var key *keyFlags
	c := a.verb("approve TICKET", "connect the ticket's UCloud user with a local account", 1, 1,
		func(ctx context.Context, _ *cobra.Command, args []string) error {
			target, err := localTarget(local, uid)
			if err != nil {
				return err
			}
			return a.connectOther(ctx, args[0], target, expires, *reason, key)
		})
	f := c.Flags()
	f.StringVar(&local, "local-name", "", "login name")
	f.StringVar(&uid, "local-uid", "", "uid, instead of the login name")
	f.StringVar(&expires, "expires", "", "when the connection ends (30d, 2031-02-03)")
	reason, key = reasonFlag(c), addKeyFlags(c)
	return c
}

func (a *app) ticketsRejectCommand() *cobra.Command {
	var message string
	c := a.verb("reject TICKET...", "close tickets without a connection", 1, -1, func(ctx context.Context, _ *cobra.Command, args []string) error {
		if err := a.confirm(ctx, fmt.Sprintf("Reject %s? The users see that, with your message.", plural(len(args), "ticket"))); err != nil {
			return err
		}
		rep, err := call(ctx, a, ipcapi.TicketReject, ipcapi.TicketRejection{Tickets: args, Message: message, DryRun: a.dryRun})
		if err != nil {
			return err
		}
		return a.mutated("tickets", "reject", "ticket", "rejected", rep)
	})
	c.Flags().StringVar(&message, "message", "", "what the user is told")
	return c
}
