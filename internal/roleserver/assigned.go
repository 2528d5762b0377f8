package roleserver

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"ucloud-im/internal/config"
	"ucloud-im/internal/integration"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/store"
	"ucloud-im/internal/usermap/assigned"
	"ucloud-im/internal/usermap/consent"
	"ucloud-im/internal/usermap/scripted"
	"ucloud-im/internal/usermap/sitehooks"
	"ucloud-im/internal/usermap/static"
)

// accountFinding are the accounts that the provider itself assigns, and the scripts that hear of users.
type accountFinding struct {
	assigned  *assigned.Method // nil unless the identity type is Scripted or Static
	static    *static.File     // nil unless it is Static
	siteHooks *sitehooks.Service
	userHooks atomic.Pointer[userHooks]
}

// userHooks are the configured scripts about users; nil for those that there are not.
type userHooks struct {
	connected, disconnected, ticket *scripts.Hook
}

// userHooksOf makes the hooks of a configuration.
func (s *server) userHooksOf(cfg *config.Config) (h userHooks, plan storagePlan, err error) {
	const key = "services.identityManagement"
	about := func(where string, f scripts.Form) scripts.Purpose {
		return scripts.Purpose{At: key + where, Form: f, Accept: s.acceptUID}
	}
	id := cfg.Services.Identity
	if c := id.Scripted; c != nil {
		if id.Type == config.IdentityScripted {
			if h.connected, err = s.hook(&plan, scripts.HookUserConnected, about(".scripted.onUserConnected", scripts.FormConnect), c.OnUserConnected, 0); err != nil {
				return h, plan, fmt.Errorf("%s.scripted.onUserConnected: %w", key, err)
			}
		}
		if id.Type == config.IdentityScripted || id.OnDisconnect == "script" {
			if h.disconnected, err = s.hook(&plan, scripts.HookUserDisconnected, about(".scripted.onUserDisconnected", scripts.FormDisconnected), c.OnUserDisconnected, 0); err != nil {
				return h, plan, fmt.Errorf("%s.scripted.onUserDisconnected: %w", key, err)
			}
		}
	}
	if id.Type == config.IdentityManual {
		if h.ticket, err = s.hook(&plan, scripts.HookTicketCreated, about(".manual.onTicketCreated", scripts.FormTicket), id.Manual.OnTicketCreated, 0); err != nil {
			return h, plan, fmt.Errorf("%s.manual.onTicketCreated: %w", key, err)
		}
	}
	return h, plan, nil
}

// buildAssigned makes what finds the accounts of users without asking them, and what tells scripts about users. Nothing is
// executed yet.
func (s *server) buildAssigned(ctx context.Context) error {
	cfg := s.config.Load()
	hooks, plan, err := s.userHooksOf(cfg)
	if err != nil {
		return err
	}
	if err := s.useHooks(ofUsers, plan); err != nil {
		return err
	}
	s.userHooks.Store(&hooks)
	o := sitehooks.Options{Store: s.store, Log: s.log, Hook: s.userHook, Account: s.accountOf}
	if s.tickets != nil {
		o.Decide = s.tickets.Decide
	}
	if s.siteHooks, err = sitehooks.New(o); err != nil {
		return err
	}
	var look assigned.Look
	method := ""
	switch cfg.Services.Identity.Type {
	case config.IdentityScripted:
		method = scripted.MethodName
		look, err = scripted.New(scripted.Options{
			Hook:    func() *scripts.Hook { return s.userHooks.Load().connected },
			Group:   func() string { return s.config.Load().UserInstances.Group.String() },
			Suggest: func(n scripted.Names) string { return suggest(s.config.Load().Services.Identity.Naming, n) },
			Account: s.accountOf,
		})
	case config.IdentityStatic:
		method = static.MethodName
		s.static, err = static.New(cfg.Services.Identity.Static.File.String(), static.Options{
			Users: s.users, Account: s.users.Check, Log: s.log, Temporary: cfg.Development.Enabled,
		})
		if err == nil {
			look = s.static.Look
		}
	default:
		return nil
	}
	if err != nil {
		return fmt.Errorf("services.identityManagement: %w", err)
	}
	s.consent, err = consent.New(consent.Options{
		Store: s.store, Users: s.users, Tokens: s.tokens, Log: s.log, Method: method,
		PageURL: cfg.Provider.Hosts.SelfPublic.URL() + integration.LoginPath(cfg.Provider.ID.String()),
	})
	if err != nil {
		return err
	}
	s.assigned, err = assigned.New(assigned.Options{
		Store: s.store, Users: s.users, Consent: s.consent, Look: look, Log: s.log, Method: method,
		Next: integration.ConsentPath(cfg.Provider.ID.String()),
	})
	if err != nil {
		return err
	}
	return s.consent.Recover(ctx)
}

// userHook gives a hook of [sitehooks.Service].
func (s *server) userHook(name string) *scripts.Hook {
	h := s.userHooks.Load()
	switch {
	case h == nil:
		return nil
	case name == scripts.HookUserDisconnected:
		return h.disconnected
	}
	return h.ticket
}

// suggest is the name of a new account by identityManagement.naming.users.
func suggest(n config.Naming, names scripted.Names) string {
	switch n.Users {
	case "firstInitialLastName":
		return scripted.FirstInitialLastName(names)
	case "ucloud":
		return scripted.Clean(names.UCloud)
	}
	initial := ""
	for _, r := range names.First {
		initial = string(r)
		break
	}
	text, err := n.ExpandUsers(map[string]string{
		"firstName": names.First, "lastName": names.Last, "firstInitial": initial, "ucloudUsername": names.UCloud,
	})
	if err != nil { // a name without one of them
		return scripted.FirstInitialLastName(names)
	}
	return scripted.Clean(text)
}

// assignedPlan prepares a reload. The result takes the new settings over.
func (s *server) assignedPlan(cfg *config.Config) (apply func(context.Context) error, err error) {
	hooks, plan, err := s.userHooksOf(cfg)
	if err != nil {
		return nil, err
	}
	file := cfg.Services.Identity.Static
	if s.static != nil && file != nil {
		if err := s.static.Check(file.File.String()); err != nil {
			return nil, fmt.Errorf("services.identityManagement.static.file: %w", err)
		}
	}
	if hooks.connected == nil {
		hooks.connected = s.userHooks.Load().connected // the type changes with the next start
	}
	return func(ctx context.Context) error {
		err := s.useHooks(ofUsers, plan)
		s.userHooks.Store(&hooks)
		if s.static != nil && file != nil {
			err = errors.Join(err, s.static.Set(ctx, file.File.String()))
		}
		return errors.Join(err, s.siteHooks.Release(ctx))
	}, nil
}

// runAssigned looks for accounts and tells scripts about users.
func (s *server) runAssigned(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.siteHooks.Run(ctx) })
	if s.assigned != nil {
		group.Go(func() error { return s.assigned.Run(ctx) })
		group.Go(func() error { return s.consent.Run(ctx) })
	}
	if s.static != nil {
		group.Go(func() error { return s.static.Run(ctx) })
	}
	return group.Wait()
}

// ticketIssued is for [ticket.Options].
func (s *server) ticketIssued(tx *store.Tx, rec store.Ticket) error {
	return s.siteHooks.TicketIssued(tx, rec)
}

// accountFileStatus says whether the file with accounts is in order.
func (s *server) accountFileStatus() ipcapi.StatusPart {
	users, err := s.static.Problem()
	p := ipcapi.StatusPart{Name: "account-file", Health: ipcapi.HealthOK, Summary: fmt.Sprintf("%d users", users), Facts: []ipcapi.Fact{fact("users", users)}}
	if err != nil {
		p.Health, p.Summary = ipcapi.HealthError, fmt.Sprintf("cannot be used, %d users are known from before: %v", users, err)
	}
	return p
}

// userHookStatus says whether scripts are told about users.
func (s *server) userHookStatus(ctx context.Context) ipcapi.StatusPart {
	p := ipcapi.StatusPart{Name: "user-scripts", Health: ipcapi.HealthOK, Summary: "all have been told"}
	failing, parked, last, err := s.siteHooks.Status(ctx)
	switch {
	case err != nil:
		p.Health, p.Summary = ipcapi.HealthError, "cannot be counted"
	case parked > 0:
		p.Health, p.Summary = ipcapi.HealthError, fmt.Sprintf("%d calls wait for a reload or a restart: %s", parked, last)
	case failing > 0:
		p.Health, p.Summary = ipcapi.HealthWarning, fmt.Sprintf("%d calls have failed and are made again: %s", failing, last)
	}
	p.Facts = append(p.Facts, fact("failing", failing), fact("waitForYou", parked))
	return p
}
