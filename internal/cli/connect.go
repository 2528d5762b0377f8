package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/usermap/ticket"
)

// connectWait is how long a command waits until UCloud has confirmed (contract 05 section D).
const connectWait = 10 * time.Second

// connectCommand is the form that pages and guides show. With one argument it is "me connect", with two "tickets
// approve" (contract 41 CLI-0).
func (a *app) connectCommand() *cobra.Command {
	var expires string
	var reason *string
	var key *keyFlags
	c := a.verb("connect TICKET [LOCALUSER]", "connect a UCloud user with a local account, by the ticket on the UCloud page", 1, 2,
		func(ctx context.Context, _ *cobra.Command, args []string) error {
			if len(args) == 1 {
				if expires != "" {
					return usagef("--expires is for operators: name a local user")
				}
				return a.connectSelf(ctx, args[0], key)
			}
			return a.connectOther(ctx, args[0], args[1], expires, *reason, key)
		})
	c.Long = "Shows which UCloud user the ticket belongs to, and which signing key came with it, and asks before it connects.\n\n" +
		"  ucloud connect TICKET             connects your own account (the one you are logged in with)\n" +
		"  ucloud connect TICKET LOCALUSER   for operators: connects the named account; a number is a uid"
	c.Flags().StringVar(&expires, "expires", "", "for operators: when the connection ends (30d, 2031-02-03)")
	reason, key = reasonFlag(c), addKeyFlags(c)
	return c
}

// keyFlags say what becomes of the signing key that came with a ticket.
type keyFlags struct {
	fingerprint string
	without     bool
}

func addKeyFlags(c *cobra.Command) *keyFlags {
	var k keyFlags
	c.Flags().StringVar(&k.fingerprint, "key", "", "fingerprint of the signing key that came with the ticket, as the user's browser shows it")
	c.Flags().BoolVar(&k.without, "no-key", false, "connect without the signing key that came with the ticket")
	return &k
}

// confirmed is the fingerprint that the server is told, "" to connect without a key. UCloud could have sent a key of its
// own instead of the user's, so somebody has to compare (decision 14): the user at the keyboard, who sees it here and
// is asked, or whoever gives --key. An operator has nothing to compare with but what the user says.
func (k *keyFlags) confirmed(a *app, info ipcapi.TicketInfo, self bool) (string, error) {
	switch {
	case k.without && k.fingerprint != "":
		return "", usagef("--key and --no-key contradict each other")
	case k.without:
		return "", nil
	case info.KeyWithdrawn:
		e := exitf(ExitConflict, "CONFLICT", "the signing key that came with this ticket was withdrawn")
		return "", withHint(e, "press \"Connect\" in UCloud again, or connect without a key: --no-key")
	case info.KeyFingerprint == "" && k.fingerprint != "":
		return "", exitf(ExitConflict, "CONFLICT", "no signing key came with this ticket")
	case info.KeyFingerprint == "":
		return "", nil
	case k.fingerprint != "":
		return k.fingerprint, nil // the server compares
	case !self:
		a.note("A signing key came with this ticket, and it stays unused: only the user can tell which one it must be.")
		a.note("Ask them for it and add --key FINGERPRINT to have what they do signed.")
		return "", nil
	case a.dryRun:
	case a.yes || a.quiet || !isTerminal(a.stdin): // nobody would be asked, or not be shown what about
		e := exitf(ExitUsage, "CONFIRMATION", "a signing key came with this ticket, and somebody has to compare it")
		return "", withHint(e, "add --key with the fingerprint that your browser shows, or --no-key to connect without")
	}
	return info.KeyFingerprint, nil
}

// describe asks whose ticket it is. A typing error is found here already.
func (a *app) describe(ctx context.Context, text string) (ipcapi.TicketInfo, error) {
	if _, err := ticket.Parse(text); err != nil {
		return ipcapi.TicketInfo{}, exitf(ExitUsage, "INVALID", "%v", err)
	}
	info, err := call(ctx, a, ipcapi.TicketDescribe, ipcapi.TicketRef{Ticket: text})
	if err != nil {
		return info, err
	}
	if info.State != ipcapi.TicketOpen {
		e := exitf(ExitConflict, "CONFLICT", "this ticket is %s", info.State)
		return info, withHint(e, "press \"Connect\" in UCloud again to get a new one")
	}
	return info, nil
}

// connectSelf connects the caller's own account. Whoever is tricked into running somebody else's ticket sees the other
// person's name here, and is asked (contract 03 section 7.1).
func (a *app) connectSelf(ctx context.Context, text string, key *keyFlags) error {
	info, err := a.describe(ctx, text)
	if err != nil {
		return err
	}
	if !info.SelfService {
		return exitf(ExitPolicy, "POLICY", "at this provider an operator completes tickets: send them yours")
	}
	fingerprint, err := key.confirmed(a, info, true)
	if err != nil {
		return err
	}
	a.note("This ticket belongs to the UCloud user  %s", info.User)
	a.note("It will be connected with your account  %s (uid %d)", a.loginName(), hostUID())
	if fingerprint != "" {
		a.note("Signing key of the browser              %s (compare it with the page)", info.KeyFingerprint)
	}
	a.note("Whoever is signed in to UCloud as %s can then read and change your files.", info.User)
	if err := a.confirm(ctx, fmt.Sprintf("Are you %s, and do you want this?", info.User)); err != nil {
		return err
	}
	res, err := call(ctx, a, ipcapi.TicketComplete, ipcapi.TicketCompletion{
		Ticket: text, User: info.User, KeyFingerprint: fingerprint, WaitMs: a.wait(), DryRun: a.dryRun,
	})
	if err != nil {
		return err
	}
	return a.linked("connect", "self", res)
}

// loginName is what to call the caller's account in a question. It decides nothing.
func (a *app) loginName() string {
	for _, key := range []string{"LOGNAME", "USER"} {
		if v := a.getenv(key); v != "" {
			return v
		}
	}
	return "here"
}

// connectOther connects an account that an operator names.
func (a *app) connectOther(ctx context.Context, text, local, expires, reason string, key *keyFlags) error {
	at, err := a.expiry(expires)
	if err != nil {
		return err
	}
	info, err := a.describe(ctx, text)
	if err != nil {
		return err
	}
	fingerprint, err := key.confirmed(a, info, false)
	if err != nil {
		return err
	}
	a.note("This ticket belongs to the UCloud user  %s", info.User)
	a.note("It will be connected with               %s", local)
	if fingerprint != "" {
		a.note("Signing key of the browser              %s", info.KeyFingerprint)
	}
	if err := a.confirm(ctx, fmt.Sprintf("Connect UCloud user %s with local user %s?", info.User, local)); err != nil {
		return err
	}
	res, err := call(ctx, a, ipcapi.TicketApprove, ipcapi.TicketApproval{
		Ticket: text, User: info.User, KeyFingerprint: fingerprint, Local: local, ExpiresAt: at, WaitMs: a.wait(), Reason: reason, DryRun: a.dryRun,
	})
	if err != nil {
		return err
	}
	return a.linked("connect", "other", res)
}

// wait is how long the server may wait for UCloud: less than we wait for the server.
func (a *app) wait() int64 {
	return min(connectWait, a.timeout*3/4).Milliseconds()
}

func (a *app) meCommand() *cobra.Command {
	me := a.verb("me", "about yourself: connection, drives, instance", 0, 0, func(ctx context.Context, _ *cobra.Command, _ []string) error {
		return a.meShow(ctx)
	})
	me.Args = cobra.ArbitraryArgs
	show := me.RunE
	me.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return group(cmd, args)
		}
		return show(cmd, args)
	}
	me.SuggestionsMinimumDistance = 2
	me.AddCommand(
		a.verb("show", "the same as without a verb", 0, 0, func(ctx context.Context, _ *cobra.Command, _ []string) error { return a.meShow(ctx) }),
		a.meConnectCommand(),
		a.meDisconnectCommand(),
	)
	return me
}

func (a *app) meConnectCommand() *cobra.Command {
	var key *keyFlags
	c := a.verb("connect TICKET", "connect your own account by the ticket on the UCloud page", 1, 1,
		func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.connectSelf(ctx, args[0], key)
		})
	key = addKeyFlags(c)
	return c
}

func (a *app) meShow(ctx context.Context) error {
	me, err := call(ctx, a, ipcapi.MeShow, ipcapi.Empty{})
	if err != nil {
		return err
	}
	return item(a, "me", "show", string(me.User), me, func() error {
		lines := [][2]string{
			{"Local user", fmt.Sprintf("%s (uid %d)", me.LocalName, me.UID)},
			{"Provider", me.Provider},
			{"UCloud user", string(me.User)},
			{"Connection", me.State},
			{"Since", localTime(me.ConnectedAt)},
			{"Until", localTime(me.ExpiresAt)},
			{"Not ready", me.Launchable},
		}
		if me.Instance != nil {
			lines = append(lines, [2]string{"Instance", fmt.Sprintf("%s, idle %s", me.Instance.State, span(me.Instance.IdleSeconds))})
		}
		for _, d := range me.Drives {
			lines = append(lines, [2]string{"Drive", fmt.Sprintf("%s  %s  (%s)", d.Title, d.Path, d.State)})
		}
		if !me.Connected && me.State == "none" {
			lines = append(lines, [2]string{"To connect", "press \"Connect\" at " + me.Page + " and run the command that it shows"})
		}
		return a.pairs(lines)
	})
}

func (a *app) meDisconnectCommand() *cobra.Command {
	var reason *string
	c := a.verb("disconnect", "end your connection with UCloud", 0, 0, func(ctx context.Context, _ *cobra.Command, _ []string) error {
		me, err := call(ctx, a, ipcapi.MeShow, ipcapi.Empty{})
		if err != nil {
			return err
		}
		if !me.Connected {
			return exitf(ExitNoMatch, "NOT_FOUND", "you are not connected to UCloud")
		}
		if err := a.confirm(ctx, fmt.Sprintf("Disconnect UCloud user %s from your account? Running sessions end.", me.User)); err != nil {
			return err
		}
		rep := ipcapi.MutationReport{Results: []ipcapi.MutationResult{{Key: string(me.User), Status: ipcapi.ResultOK}}}
		if !a.dryRun {
			if _, err := call(ctx, a, ipcapi.MeDisconnect, ipcapi.MeDisconnection{Reason: *reason}); err != nil {
				return err
			}
		}
		return a.mutated("me", "disconnect", "ucloudName", "disconnected", rep)
	})
	reason = reasonFlag(c)
	return c
}

// userName reads a UCloud name from the command line.
func userName(s string) (ident.UCloudUser, error) {
	u, err := ident.ParseUCloudUser(s)
	if err != nil {
		return "", usagef("%v", err)
	}
	return u, nil
}
