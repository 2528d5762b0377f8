// Package roleserver runs IM/Server as a process of the service account: it reads the configuration, opens the database,
// builds all parts, connects them, and runs them until it is told to stop. Decisions are made in the parts.
//
// # Order of the start (contract 05 section B)
//
// Configuration, database, then the IPC socket, so that instances of an earlier server can come back, then the socket
// behind the gateway. Only then Core is spoken to: a token, the products, and after them the event stream, because what
// arrives there needs the products. A Core that is away delays nothing but its own part.
//
// # Signals
//
// SIGHUP reads the configuration again and keeps the old one if the new one is wrong. The end of the context given to
// [Run], normally SIGTERM, finishes the requests under way and ends. Instances live on and are adopted by the next
// server.
package roleserver

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"sync/atomic"
	"syscall"

	"golang.org/x/sync/errgroup"

	"ucloud-im/internal/auth"
	"ucloud-im/internal/config"
	"ucloud-im/internal/handover"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/intentpolicy"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/jobsite"
	"ucloud-im/internal/localuser"
	"ucloud-im/internal/nodump"
)

// Options say how the process was started.
type Options struct {
	ConfigDir string
	Version   ipcapi.VersionInfo
	// Log is the process's log; nil means standard error in the configured form.
	Log *slog.Logger
}

// Run runs the server until ctx ends. A wrong configuration is an error that [config.AsProblems] understands, and
// nothing has been touched then.
func Run(ctx context.Context, o Options) error {
	if os.Geteuid() == 0 {
		return config.ErrRoot
	}
	if err := nodump.Apply(); err != nil { // the provider's secrets are in memory
		return err
	}
	o.Version.Protocol, o.Version.Platform = ipcapi.Protocol, runtime.GOOS+"/"+runtime.GOARCH
	directory := localuser.NewDirectory(localuser.Options{})
	cfg, problems := load(ctx, o.ConfigDir, directory)
	if cfg == nil {
		return problems.Err()
	}
	s := &server{o: o, directory: directory, notifier: handover.NewNotifier(), serviceUID: ident.UID(os.Geteuid())} //nolint:gosec // a uid fits
	s.use(cfg)
	s.setUpLogs()
	for _, w := range problems {
		s.log.Warn("configuration", "problem", w.String())
	}
	if err := s.open(ctx); err != nil {
		return err
	}
	defer s.close()
	return s.run(ctx)
}

// load reads the configuration with the rules about this machine.
func load(ctx context.Context, dir string, directory *localuser.Directory) (*config.Config, config.Problems) {
	return config.Load(dir, config.Options{
		Role: config.RoleServer, Environment: true, Group: groupLookup(ctx, directory),
		ParseKeys:   func(b []byte) error { _, err := auth.ParsePublicKeys(b); return err },
		Unsupported: Unsupported,
	})
}

// server is the running process.
type server struct {
	o          Options
	log        *slog.Logger
	audit      *slog.Logger
	level      slog.LevelVar
	notifier   *handover.Notifier
	directory  *localuser.Directory
	serviceUID ident.UID
	config     atomic.Pointer[config.Config]       // set by use
	signing    atomic.Pointer[intentpolicy.Policy] // what it says about signed intents
	sites      jobsite.Cache

	parts
}

// use makes a configuration the one that counts.
func (s *server) use(cfg *config.Config) {
	s.config.Store(cfg)
	s.signing.Store(intentPolicy(cfg))
}

// run runs all parts until one fails or ctx ends.
func (s *server) run(ctx context.Context) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGHUP)
	defer signal.Stop(signals)

	group, ctx := errgroup.WithContext(ctx)
	start := func(name string, part func(context.Context) error) {
		group.Go(func() error {
			if err := part(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	start("ipc", func(ctx context.Context) error { return s.ipc.Serve(ctx, s.ipcListener) })
	start("instances", s.launcher.Run)
	start("requests", s.serveRequests)
	start("metrics", s.serveMetrics)
	start("deliveries", s.outbox.Run)
	start("connections", s.users.Run)
	start("tasks", s.tasks.Run)
	start("records of scripts", s.scripts.Run)
	start("one-time tokens", s.tokens.Run)
	start("signing keys", s.keys.Run)
	start("tickets", s.expireTickets)
	start("logins", s.runLogin)
	start("accounts of users", s.runAssigned)
	start("access token", s.core.Run)
	start("products and events", s.followCore)
	start("drives", s.drives.Run)
	start("quotas", s.quotas.Run)
	start("usage", s.usage.Run)
	start("slurm accounts", s.accounts.Run)
	start("usage of machines", s.charges.Run)
	if s.jobs != nil {
		start("jobs", s.jobs.Run)
		start("interfaces of jobs", s.interfaces.Run)
	}
	start("signals", func(ctx context.Context) error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-signals:
				s.reloadOnSignal(ctx)
			}
		}
	})
	s.note(s.notifier.Ready())
	s.log.Info("server runs", "version", s.o.Version.Version, "provider", s.config.Load().Provider.ID.String())
	err := group.Wait()
	s.background.Wait()
	s.note(s.notifier.Stopping())
	s.log.Info("server ends", "error", err)
	return err
}

// followCore declares the products and then follows the event stream: wallets can only exist in categories that Core
// knows (contract 05 section B, the decision on B7 and B9).
func (s *server) followCore(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.products.Run(ctx) })
	group.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-s.declared:
			return s.events.Run(ctx)
		}
	})
	return group.Wait()
}

func (s *server) note(err error) {
	if err != nil {
		s.log.Debug("service manager not told", "error", err)
	}
}
