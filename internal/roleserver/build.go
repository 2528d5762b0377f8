package roleserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ucloud-im/internal/auth"
	"ucloud-im/internal/config"
	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/events"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/handover"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/integration"
	"ucloud-im/internal/intentpolicy"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/launcher"
	"ucloud-im/internal/localuser"
	"ucloud-im/internal/onetime"
	"ucloud-im/internal/operator"
	"ucloud-im/internal/outbox"
	"ucloud-im/internal/products"
	"ucloud-im/internal/scripts/scriptlog"
	"ucloud-im/internal/signingkeys"
	"ucloud-im/internal/store"
	"ucloud-im/internal/taskserver"
	"ucloud-im/internal/usermap"
	"ucloud-im/internal/usermap/ticket"
)

// userAgent is what Core sees.
const userAgent = "ucloud-im"

// parts is everything the server consists of, in the order in which it is built.
type parts struct {
	sockets  *handover.Sockets
	store    *store.Store
	verifier *auth.Verifier
	outbox   *outbox.Outbox
	tokens   *onetime.Tokens

	core     *coreapi.TokenSource
	client   *coreapi.Client
	products *products.Declarer
	events   *events.Stream

	policy  *localuser.Policy
	users   *usermap.Service
	keys    *signingkeys.Service
	tickets *ticket.Method // nil when tickets are off
	login
	accountFinding
	launcher *launcher.Launcher
	tasks    *taskserver.Service
	scripts  *scriptlog.Log
	intents  *intentpolicy.Service
	management
	accounting
	compute
	web
	handler  *integration.Handler
	branding brandingCache

	ipc         *ipc.Server
	ipcListener *net.UnixListener
	requests    net.Listener
	metrics     net.Listener // nil: no endpoint
	registry    *prometheus.Registry

	declared     chan struct{} // closed when the first category may be used
	declaredOnce sync.Once
	reloading    sync.Mutex     // one reload at a time
	background   sync.WaitGroup // work that calls have left behind
}

// open builds all parts and opens database and sockets. Nothing runs yet. On an error everything is closed again.
func (s *server) open(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.sockets, err = handover.Inherit(); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{
		s.openStore, s.buildAuth, s.buildCore, s.buildKeys, s.buildIntents, s.buildUsers, s.buildLauncher, s.buildStorage, s.buildAccounts, s.buildJobs, s.buildWeb, s.buildLogin, s.buildAssigned, s.buildHandlers, s.openSockets,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return errors.Join(s.users.Repair(ctx), s.giveGifts(ctx))
}

// close closes what open opened, in reverse order. Parts that run have ended by then.
func (s *server) close() {
	var problems []error
	if s.requests != nil {
		problems = append(problems, ignoreClosed(s.requests.Close()))
	}
	if s.metrics != nil {
		problems = append(problems, ignoreClosed(s.metrics.Close()))
	}
	if s.ipcListener != nil {
		problems = append(problems, ignoreClosed(s.ipcListener.Close()))
	}
	if s.runner != nil {
		problems = append(problems, s.runner.Close())
	}
	if s.store != nil {
		problems = append(problems, s.store.Close())
	}
	if err := errors.Join(problems...); err != nil {
		s.log.Error("not everything was closed", "error", err)
	}
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// settingProvider is where the database remembers whose it is.
const settingProvider = "provider.id"

func (s *server) openStore(ctx context.Context) error {
	cfg := s.config.Load()
	o, err := storeOptions(cfg, s.log)
	if err != nil {
		return err
	}
	if s.store, err = store.Open(ctx, o); err != nil {
		return fmt.Errorf("open the database: %w", err)
	}
	id := cfg.Provider.ID.String()
	return s.store.Update(ctx, func(tx *store.Tx) error {
		known, err := tx.Setting(settingProvider)
		switch {
		case errors.Is(err, store.ErrNotFound):
			return tx.SetSetting(settingProvider, id)
		case err != nil:
			return err
		case known != id:
			return fmt.Errorf("the database belongs to the provider %q, and provider.id is %q: the id cannot change, it stands in everything Core knows", known, id)
		}
		return nil
	})
}

func (s *server) buildAuth(context.Context) error {
	cfg := s.config.Load()
	keys, err := auth.ReadKeys(cfg.Provider.Core.KeyFiles())
	if err != nil {
		return err
	}
	s.verifier, err = auth.NewVerifier(keys, auth.Options{Issuer: cfg.Provider.Core.JWTIssuer, Leeway: time.Duration(cfg.Provider.Core.ClockSkew)})
	if err != nil {
		return fmt.Errorf("set up the verification of Core's tokens: %w", err)
	}
	s.tokens = onetime.New(s.store, onetime.Options{Log: s.log})
	s.outbox = outbox.New(s.store, outbox.Options{
		Log: s.log, Backoff: outbox.Backoff{Initial: time.Duration(cfg.Provider.Core.Retry.Initial), Max: time.Duration(cfg.Provider.Core.Retry.Max)},
	})
	s.scripts = scriptlog.New(s.store, func() time.Duration { return time.Duration(s.config.Load().Retention.ScriptLog) }, s.log)
	s.registry = newRegistry(s)
	return nil
}

func (s *server) buildCore(context.Context) error {
	cfg := s.config.Load()
	base, id := cfg.Provider.Hosts.UCloud.URL(), cfg.Provider.ID.String()
	http, err := coreapi.NewHTTPClient(coreapi.HTTPOptions{CAFile: cfg.Provider.Core.CAFile.String()})
	if err != nil {
		return err
	}
	s.core, err = coreapi.NewTokenSource(coreapi.TokenOptions{
		BaseURL: base, Provider: id, RefreshToken: cfg.Server.RefreshToken.Value(), HTTP: http, Retry: backoff(cfg),
		Timeout: time.Duration(cfg.Provider.Core.RequestTimeout), UserAgent: userAgent, Log: s.log,
	})
	if err != nil {
		return err
	}
	s.client, err = coreapi.New(coreapi.Options{
		BaseURL: base, Provider: id, HTTP: http, Tokens: s.core, Timeout: time.Duration(cfg.Provider.Core.RequestTimeout),
		UserAgent: userAgent, Log: s.log,
	})
	if err != nil {
		return err
	}
	s.events, err = events.New(events.Options{
		BaseURL: base, Provider: id, HTTP: http, Tokens: s.core, Store: s.store, Retry: backoff(cfg), Changed: s.eventsChanged,
		UserAgent: userAgent, Log: s.log,
	})
	return err
}

func (s *server) buildUsers(ctx context.Context) error {
	cfg := s.config.Load()
	u := cfg.UserInstances
	s.policy = localuser.NewPolicy(s.directory, localuser.PolicyOptions{
		Group: u.Group.String(), MinUID: ident.UID(u.MinUID), MaxUID: ident.UID(u.MaxUID), Denied: u.DeniedUsers, //nolint:gosec // bounded by the configuration
		ServiceUID: s.serviceUID, Self: u.Launcher == "self",
	})
	var err error
	s.users, err = usermap.New(ctx, usermap.Options{
		Store: s.store, Core: s.client, Policy: operator.NewPolicy(s.policy), Log: s.log,
		OnActive: s.userActive, OnInactive: s.userInactive, Ended: s.mappingEnded, ActivateKey: s.activateKey,
	})
	if err != nil {
		return err
	}
	s.users.Register(s.outbox)
	manual := cfg.Services.Identity.Manual
	if cfg.Services.Identity.Type != config.IdentityManual || !manual.Tickets.Enabled {
		return nil
	}
	s.tickets, err = ticket.NewMethod(ticket.Options{
		Store: s.store, Users: s.users, Log: s.log,
		PageURL:  cfg.Provider.Hosts.SelfPublic.URL() + integration.PagePath(cfg.Provider.ID.String()),
		Lifetime: time.Duration(manual.Tickets.Lifetime), MaxOpenPerUser: manual.Tickets.MaxOpenPerUser, SelfService: manual.SelfService,
		Issued: s.ticketIssued,
	})
	return err
}

func (s *server) buildLauncher(context.Context) error {
	cfg := s.config.Load()
	u := cfg.UserInstances
	var err error
	cgroup, limits := s.findCgroup(cfg)
	s.launcher, err = launcher.New(launcher.Options{
		Cgroup: cgroup, CgroupLimits: limits, Limits: func() (each, total launcher.Limits) { return instanceLimits(s.config.Load()) },
		Mapping: mappingOf{s.users, func() integration.Maintenance { return maintenance(s.config.Load()) }}, Policy: s.policy, Log: s.log,
		ServiceUID: s.serviceUID, Program: u.Executable.String(), Socket: cfg.IPCSocket(), Sudo: u.Sudo.String(), Self: u.Launcher == "self",
		PortFirst: int(cfg.Internal.UserPorts.First), PortLast: int(cfg.Internal.UserPorts.Last),
		StateDir: cfg.StateDirectory.String(), LogDir: cfg.Logs.Directory.String(),
		Settings: func() ipcapi.Start {
			cfg := s.config.Load()
			start := startDocument(cfg)
			start.Jobs.Render = s.sites.JSON(cfg, s.log)
			return start
		},
		Intents:      s.intentSettings,
		Launched:     s.userSeen,
		MaxInstances: u.MaxInstances, StartTimeout: time.Duration(u.StartTimeout), IdleTimeout: time.Duration(u.IdleTimeout),
		DrainTimeout: time.Duration(u.DrainTimeout), ServerLossGrace: time.Duration(u.ServerLossGrace),
		RestartMax: u.Restart.Max, RestartWindow: time.Duration(u.Restart.Window), Parallel: cfg.StartParallel(),
	})
	if err != nil {
		return err
	}
	s.tasks = taskserver.New(taskserver.Options{
		Store: s.store, Core: s.client, User: s.users.User, Log: s.log, MaxPerUser: cfg.Tasks.MaxPerUser, MaxGlobal: cfg.Tasks.MaxGlobal,
		Wake: func(ctx context.Context, user ident.UCloudUser) error {
			_, err := s.launcher.Wake(ctx, user)
			return err
		},
		LocalName: s.localName,
	})
	return nil
}

// mappingOf tells the launcher which account a user has: active mappings only, and during maintenance only those of
// users who may work nevertheless.
type mappingOf struct {
	users       *usermap.Service
	maintenance func() integration.Maintenance
}

func (m mappingOf) Account(_ context.Context, user ident.UCloudUser) (launcher.Account, error) {
	if err := m.maintenance().Check(user); err != nil {
		return launcher.Account{}, err
	}
	b, ok := m.users.Account(user)
	if !ok {
		return launcher.Account{}, failure.New(failure.NotFound, "You are not connected to this provider. Connect again under Resources > Provider integration.")
	}
	return launcher.Account{UID: b.UID, LocalName: b.LocalName}, nil
}

func (s *server) openSockets(ctx context.Context) error {
	cfg := s.config.Load()
	listen := cfg.Internal.ServerListen
	if listen.Network() == "unix" {
		if err := privateDirectory(filepath.Dir(listen.Address())); err != nil {
			return err
		}
	}
	var err error
	if s.ipcListener, err = listenIPC(ctx, cfg.IPCSocket()); err != nil {
		return err
	}
	if s.requests, err = s.sockets.Listen(ctx, listen.String()); err != nil {
		return err
	}
	if l := cfg.Metrics.Listen; l.IsSet() {
		s.metrics, err = s.sockets.Listen(ctx, l.String())
	}
	return err
}

// listenIPC opens the IPC socket. After a kill -9 during a launch the child of the old server holds the socket for a
// moment, until it has become the other program: that looks like a live server, so it is waited for.
func listenIPC(ctx context.Context, path string) (*net.UnixListener, error) {
	const tries, pause = 20, 50 * time.Millisecond
	for i := 0; ; i++ {
		l, err := ipc.Listen(path)
		if !errors.Is(err, ipc.ErrInUse) || i == tries {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// privateDirectory makes the directory for sockets of the service account, if it is not there.
func privateDirectory(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make the directory for private sockets: %w", err)
	}
	return nil
}
