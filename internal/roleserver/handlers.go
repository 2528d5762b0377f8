package roleserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"ucloud-im/internal/config"
	"ucloud-im/internal/drivelookup"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/integration"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/launcher"
	"ucloud-im/internal/onetime"
	"ucloud-im/internal/operator"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/sessionserver"
)

// brandingCache holds what Core and browsers are shown; it changes with the configuration.
type brandingCache struct {
	atomic.Pointer[integration.Branding]
}

// loadBranding reads texts and images. It gives nil if none are configured.
func loadBranding(cfg *config.Config) (*integration.Branding, error) {
	if cfg.Provider.Branding == nil {
		return nil, nil //nolint:nilnil // absent is a legal state
	}
	texts, err := brandingConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("read provider.branding: %w", err)
	}
	return integration.NewBranding(cfg.Provider.ID.String(), cfg.Provider.Hosts.SelfPublic.URL(), texts)
}

// buildHandlers makes what answers Core, browsers and the command line.
func (s *server) buildHandlers(context.Context) error {
	cfg := s.config.Load()
	branding, err := loadBranding(cfg)
	if err != nil {
		return err
	}
	s.branding.Store(branding)
	page, err := ticketPage(cfg)
	if err != nil {
		return err
	}
	o := integration.Options{
		Provider: cfg.Provider.ID.String(), UCloudPublic: cfg.Provider.Hosts.UCloudPublic.URL(),
		Users: s.users, Launcher: waker{s.launcher}, Products: support{s}, Page: page, Log: s.log,
		Branding:    s.branding.Load,
		Maintenance: func() integration.Maintenance { return maintenance(s.config.Load()) },
	}
	if s.tickets != nil {
		method := s.withKeys(s.tickets)
		o.Method, o.Keys, o.Tickets = method, method, s.tickets
	}
	if s.oidc != nil {
		method := s.withKeys(s.oidc)
		o.Method, o.Keys, o.Logins, o.SelfPublic = method, method, s.oidc, cfg.Provider.Hosts.SelfPublic.URL()
	}
	if s.assigned != nil { // without keys, see package assigned
		o.Method, o.Logins, o.SelfPublic = s.assigned, s.assigned, cfg.Provider.Hosts.SelfPublic.URL()
	}
	if s.handler, err = integration.New(s.verifier, o); err != nil {
		return err
	}

	limits := cfg.IPC.Limits
	s.ipc = ipc.NewServer(ipc.ServerOptions{
		Authorize: operator.NewAuthorizer(operator.AuthorizerOptions{
			User: s.users.User, Directory: s.directory, ServiceUID: s.serviceUID, Log: s.log,
			OperatorGroup: cfg.CLI.OperatorGroup.String(), ViewerGroup: cfg.CLI.ViewerGroup.String(),
		}),
		Log: s.log, MaxRequestBytes: int(limits.MaxRequestBytes.Bytes()), RequestsPerSecond: limits.RequestsPerSecondPerUID,
		ExemptUID: func(uid ident.UID) bool { return uid == s.serviceUID || uid == 0 },
	})
	s.launcher.Register(s.ipc)
	s.tasks.Register(s.ipc, s.outbox)
	s.scripts.Register(s.ipc)
	s.usage.Register(s.ipc)
	s.intents.Register(s.ipc)
	drivelookup.New(drivelookup.Options{
		Provider: cfg.Provider.ID.String(), Store: s.store, Core: s.client, Log: s.log, UserDrives: s.userDrives,
	}).Register(s.ipc)
	sessionserver.New(sessionserver.Options{
		Store: s.store, Tokens: s.tokens, Log: s.log,
		Upload:   func() onetime.Limits { return uploadLimits(s.config.Load()) },
		Download: func() onetime.Limits { return downloadLimits(s.config.Load()) },
	}).Register(s.ipc)
	if s.jobs != nil {
		s.jobs.Register(s.ipc)
		s.interfaces.Register(s.ipc)
	}
	s.registerCalls()
	s.registerKeys()
	commands, err := operator.New(operator.Options{
		Users: s.users, Tickets: s.tickets, Store: s.store, Instances: s.launcher, Status: s.status, Version: s.o.Version,
		Reload: s.reload, Running: s.running, Gateway: s.launcher.Gateways, Provider: cfg.Provider.ID.String(),
		UCloudPublic: cfg.Provider.Hosts.UCloudPublic.URL(), Log: s.log, Audit: s.audit,
		Groups: s.directory, GroupRules: func(ctx context.Context) operator.GroupRules { return s.groupRules(ctx, s.config.Load()) }, ProjectChanged: s.projectChanged,
		Units: func() map[string]string { return units(s.config.Load()) }, Apply: s.apply,
		SlurmAccounts: s.accounts, Keys: s.keys, Scripts: s.hooks.all,
	})
	if err != nil {
		return err
	}
	commands.Register(s.ipc)
	return nil
}

// waker is the launcher as the call "init" sees it.
type waker struct{ launcher *launcher.Launcher }

func (w waker) Wake(ctx context.Context, user ident.UCloudUser) error {
	_, err := w.launcher.Wake(ctx, user)
	return err
}

// support answers Core's polls from memory.
type support struct{ s *server }

func (p support) Storage() []providerapi.FSSupport  { return p.s.products.Catalog().StorageSupport() }
func (p support) Compute() []providerapi.JobSupport { return p.s.products.Catalog().JobSupport() }

// Limits of the socket behind the gateway. The other end is the gateway, or a tool of the service account.
const (
	headerTimeout   = 10 * time.Second
	requestTimeout  = 30 * time.Second
	idleTimeout     = 5 * time.Minute
	maxHeaderBytes  = 128 << 10
	shutdownTimeout = 10 * time.Second
)

// serveRequests answers what the gateway forwards until ctx ends; requests under way are finished.
func (s *server) serveRequests(ctx context.Context) error {
	srv := &http.Server{
		Handler: s.handler, ReadHeaderTimeout: headerTimeout, ReadTimeout: requestTimeout, WriteTimeout: requestTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(s.requests) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	finish, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := srv.Shutdown(finish); err != nil {
		s.log.Warn("requests were cut at the end", "error", err)
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
