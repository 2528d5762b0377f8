package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
)

var keysTable = table[ipcapi.SigningKey]{
	noun: "keys",
	key:  func(k ipcapi.SigningKey) string { return k.ID },
	columns: []column[ipcapi.SigningKey]{
		{name: "id", get: func(k ipcapi.SigningKey) string { return k.ID }},
		{name: "ucloud-name", get: func(k ipcapi.SigningKey) string { return string(k.User) }},
		{name: "state", get: func(k ipcapi.SigningKey) string { return k.State }},
		{name: "fingerprint", get: func(k ipcapi.SigningKey) string { return k.Fingerprint }},
		{
			name: "created", get: func(k ipcapi.SigningKey) string { return localTime(&k.CreatedAt) },
			less: func(a, b ipcapi.SigningKey) int { return a.CreatedAt.Compare(b.CreatedAt) },
		},
		{name: "expires", get: func(k ipcapi.SigningKey) string { return localTime(k.ExpiresAt) }},
		{name: "algorithm", wide: true, get: func(k ipcapi.SigningKey) string { return k.Algorithm }},
		{name: "activated", wide: true, get: func(k ipcapi.SigningKey) string { return localTime(k.ActivatedAt) }},
		{name: "ended", wide: true, get: func(k ipcapi.SigningKey) string { return localTime(k.EndedAt) }},
		{name: "by", wide: true, get: func(k ipcapi.SigningKey) string { return k.By }},
	},
}

func keyFilters(cmd *cobra.Command) *filterFlags[ipcapi.SigningKey] {
	return addFilters(cmd,
		filter[ipcapi.SigningKey]{"user", "for operators: UCloud user name", func(k ipcapi.SigningKey) string { return string(k.User) }},
		filter[ipcapi.SigningKey]{"state", "pending, active, expired or revoked", func(k ipcapi.SigningKey) string { return k.State }},
	)
}

// keysCommand is "ucloud keys"; "ucloud intents" has the same verbs (contract 41 CLI-0).
func (a *app) keysCommand() *cobra.Command {
	return noun("keys", "keys with which browsers sign what users do", a.keyVerbs()...)
}

func (a *app) intentsCommand() *cobra.Command {
	return noun("intents", "signed intents: what browsers of users sign", append(a.keyVerbs(), a.intentsReportCommand())...)
}

func (a *app) keyVerbs() []*cobra.Command {
	return []*cobra.Command{a.keysListCommand(), a.keysRevokeCommand()}
}

func (a *app) ownKeys(ctx context.Context) ([]ipcapi.SigningKey, error) {
	page, err := call(ctx, a, ipcapi.MeKeys, ipcapi.Empty{})
	return page.Items, err
}

func (a *app) allKeys(ctx context.Context) ([]ipcapi.SigningKey, error) {
	return list(ctx, a, ipcapi.KeyList, ipcapi.Empty{}, func(p ipcapi.SigningKeyPage) []ipcapi.SigningKey { return p.Items })
}

func (a *app) keysListCommand() *cobra.Command {
	var flags *listFlags
	var filters *filterFlags[ipcapi.SigningKey]
	var all bool
	c := a.verb("list", "list your own keys, or those of other users", 0, 0, func(ctx context.Context, cmd *cobra.Command, _ []string) error {
		match, err := filters.compile()
		if err != nil {
			return err
		}
		if err := keysTable.check(flags); err != nil {
			return err
		}
		read := a.ownKeys
		if all || cmd.Flags().Changed("user") {
			read = a.allKeys
		}
		rows, err := read(ctx)
		if err != nil {
			return err
		}
		return keysTable.print(a, flags, keep(rows, match))
	})
	flags, filters = addListFlags(c), keyFilters(c)
	c.Flags().BoolVar(&all, "all", false, "for operators: keys of all users")
	return c
}

func (a *app) keysRevokeCommand() *cobra.Command {
	var user string
	var reason *string
	c := a.verb("revoke ID|FINGERPRINT...", "end keys for good; the browser has to connect again with another one", 0, -1,
		func(ctx context.Context, _ *cobra.Command, args []string) error {
			chosen, revoke, err := a.chooseKeys(ctx, args, user)
			if err != nil {
				return err
			}
			a.note("%s will be revoked:", plural(len(chosen), "signing key"))
			req := ipcapi.SigningKeyRevocation{Reason: *reason, DryRun: a.dryRun}
			for _, k := range chosen {
				req.IDs = append(req.IDs, k.ID)
				a.note("  %s", keyLine(k))
			}
			if err := a.confirm(ctx, "Continue? A revoked key cannot be used again."); err != nil {
				return err
			}
			rep, err := call(ctx, a, revoke, req)
			if err != nil {
				return err
			}
			return a.mutated("keys", "revoke", "id", "revoked", rep)
		})
	c.Flags().StringVar(&user, "user", "", "for operators: all keys of this UCloud user")
	reason = reasonFlag(c)
	return c
}

func keyLine(k ipcapi.SigningKey) string {
	return fmt.Sprintf("%s of %s, %s, %s", k.ID, k.User, k.State, k.Fingerprint)
}

// chooseKeys finds the keys that are meant among those that have not ended: the caller's own, and if a word names none of
// them, those of all users, which only operators may see and revoke.
func (a *app) chooseKeys(ctx context.Context, args []string, user string) ([]ipcapi.SigningKey, ipc.Call[ipcapi.SigningKeyRevocation, ipcapi.MutationReport], error) {
	var none ipc.Call[ipcapi.SigningKeyRevocation, ipcapi.MutationReport]
	if (len(args) == 0) == (user == "") {
		return nil, none, usagef("name keys by id or fingerprint, or a user by --user")
	}
	sel := selection[ipcapi.SigningKey]{what: "live signing key", line: keyLine, names: func(k ipcapi.SigningKey) []string {
		return []string{k.ID, k.Fingerprint, strings.TrimPrefix(k.Fingerprint, "SHA256:")}
	}}
	live := func(k ipcapi.SigningKey) bool {
		return k.EndedAt == nil && k.State != ipcapi.SigningKeyExpired && (user == "" || string(k.User) == user)
	}
	var first error
	if user == "" {
		own, err := a.ownKeys(ctx)
		if err == nil {
			var chosen []ipcapi.SigningKey
			if chosen, err = sel.choose(keep(own, live), args); err == nil {
				return chosen, ipcapi.MeRevokeKey, nil
			}
		}
		if e, ok := errors.AsType[*exitError](err); (!ok || e.code != ExitNoMatch) && !failure.Is(err, failure.Forbidden) {
			return nil, none, err
		}
		first = err
	}
	all, err := a.allKeys(ctx)
	if failure.Is(err, failure.Forbidden) && first != nil {
		return nil, none, first // not an operator: what was said about the own keys is the answer
	}
	if err != nil {
		return nil, none, err
	}
	if rows := keep(all, live); user != "" {
		if len(rows) == 0 {
			return nil, none, exitf(ExitNoMatch, "NOT_FOUND", "the UCloud user %q has no live signing key", clean(user))
		}
		return rows, ipcapi.KeyRevoke, nil
	}
	chosen, err := sel.choose(keep(all, live), args)
	return chosen, ipcapi.KeyRevoke, err
}
