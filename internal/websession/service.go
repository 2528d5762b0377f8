package websession

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/onetime"
	"ucloud-im/internal/store"
)

// Purposes of the tokens in links.
const (
	purposeWeb = onetime.PurposeWeb
	purposeVNC = onetime.PurposeVNC
)

// Jobs tells about jobs; [ucloud-im/internal/jobs.Service] is the implementation.
type Jobs interface {
	// Visible is a job as a user with this account may see it; [failure.NotFound] for everybody else.
	Visible(ctx context.Context, user ident.UCloudUser, uid ident.UID, id string) (ipcapi.JobRecord, error)
}

// Settings are what the configuration says now.
type Settings struct {
	Web, VNC         bool
	Prefix, Suffix   string // of host names
	PortMin, PortMax int    // ports of applications
	// Scheme, and Port as ":8443" or empty, are how browsers reach the gateway.
	Scheme, Port string
	PublicURL    string   // of the provider
	OwnHosts     []string // of the provider, which no application gets
}

// Options configure a [Service]. All are required where nothing else is said.
type Options struct {
	Provider string
	Store    *store.Store
	Tokens   *onetime.Tokens
	Jobs     Jobs
	// Account is the account of a user who is connected. false: the user is not.
	Account  func(user ident.UCloudUser) (ident.UID, bool)
	Settings func() Settings
	// Address is where a node of the cluster is reached; nil: by its name.
	Address func(ctx context.Context, node string) (string, error)
	Log     *slog.Logger
	Now     func() time.Time // nil: time.Now
	// SessionLife is how long a browser may use an interface; 0: DefaultSessionLife.
	SessionLife time.Duration
	// MaxSessions of one interface; the oldest make room. 0: DefaultMaxSessions.
	MaxSessions int
}

// DefaultSessionLife is how long a browser may use an interface before it must be opened in UCloud again.
const DefaultSessionLife = 7 * 24 * time.Hour

// DefaultMaxSessions is how many browsers may use an interface at a time.
const DefaultMaxSessions = 64

const sweepEvery = time.Minute

// Service is the server's side of interfaces of jobs. It is safe for concurrent use.
type Service struct {
	o   Options
	log *slog.Logger
	hub *hub

	// turn is held while interfaces are looked at and published, so that what is published last is what was read last.
	turn chan struct{}
	kick chan struct{} // holds one element: pending is not empty

	mu      sync.Mutex // guards the fields below
	pending map[string]bool
}

// New makes a Service. It does no I/O.
func New(o Options) (*Service, error) {
	if o.Provider == "" || o.Store == nil || o.Tokens == nil || o.Jobs == nil || o.Account == nil || o.Settings == nil || o.Log == nil {
		return nil, errors.New("websession: an option is missing")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.SessionLife == 0 {
		o.SessionLife = DefaultSessionLife
	}
	if o.MaxSessions == 0 {
		o.MaxSessions = DefaultMaxSessions
	}
	if o.Address == nil {
		o.Address = func(_ context.Context, node string) (string, error) { return node, nil }
	}
	return &Service{
		o: o, log: o.Log.With("part", "interfaces"), hub: newHub(), turn: make(chan struct{}, 1), kick: make(chan struct{}, 1), pending: map[string]bool{},
	}, nil
}

// Register adds the calls to the IPC server.
func (s *Service) Register(to *ipc.Server) {
	ipc.Handle(to, ipcapi.WebOpen, s.open)
	ipc.HandleStream(to, ipcapi.GatewayWeb, s.hub.follow)
	ipc.Handle(to, ipcapi.GatewayWebExchange, s.exchange)
}

// Run keeps the interfaces up to date until ctx ends. Gateways hear nothing before everything that is stored has been
// looked at once: an empty table would cut off all browsers.
func (s *Service) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	s.sweep(ctx)
	s.hub.ready()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.sweep(ctx)
		case <-s.kick:
			s.refreshJobs(ctx)
		}
	}
}

// JobChanged is told that something about a job has changed. It does not block.
func (s *Service) JobChanged(id string) {
	s.mu.Lock()
	s.pending[id] = true
	s.mu.Unlock()
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

func (s *Service) refreshJobs(ctx context.Context) {
	s.mu.Lock()
	jobs := s.pending
	s.pending = map[string]bool{}
	s.mu.Unlock()
	for job := range jobs {
		var all []store.WebInterface
		err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) { all, err = tx.WebInterfacesOf(job); return err })
		for i := range all {
			err = errors.Join(err, s.refresh(ctx, all[i].ID))
		}
		if err != nil && ctx.Err() == nil {
			s.log.Error("interfaces of a job were not looked at, the next look does it", "job", job, "error", err)
		}
	}
}

// UserLost ends the sessions of a user who is not connected any more. Links are ended by whoever ends all links of the
// user.
func (s *Service) UserLost(ctx context.Context, user ident.UCloudUser) error {
	return s.endSessions(ctx, user, func(context.Context, *store.WebInterface) (bool, error) { return true, nil })
}

// UsersChanged looks whether users may still see the jobs whose interfaces they have open, for instance after they have
// left a project.
func (s *Service) UsersChanged(ctx context.Context, users ...ident.UCloudUser) error {
	var problems []error
	for _, user := range users {
		problems = append(problems, s.endSessions(ctx, user, func(ctx context.Context, w *store.WebInterface) (bool, error) {
			ok, err := s.maySee(ctx, user, w)
			return !ok, err
		}))
	}
	return errors.Join(problems...)
}

// maySee tells whether a user may use an interface now.
func (s *Service) maySee(ctx context.Context, user ident.UCloudUser, w *store.WebInterface) (bool, error) {
	uid, ok := s.o.Account(user)
	if !ok {
		return false, nil
	}
	rec, err := s.o.Jobs.Visible(ctx, user, uid, w.Job)
	if failure.Is(err, failure.NotFound) {
		return false, nil
	}
	return err == nil && rec.UID == w.UID && rec.CreatedBy == w.CreatedBy, err
}

func (s *Service) endSessions(ctx context.Context, user ident.UCloudUser, ended func(context.Context, *store.WebInterface) (bool, error)) error {
	var sessions []store.WebSession
	interfaces := map[string]store.WebInterface{}
	err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) {
		if sessions, err = tx.WebSessionsOfUser(user); err != nil {
			return err
		}
		for _, session := range sessions {
			if interfaces[session.Interface], err = tx.WebInterfaceByID(session.Interface); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for id, w := range interfaces {
		end, err := ended(ctx, &w)
		if err != nil {
			return err
		}
		if !end {
			continue
		}
		err = s.o.Store.Update(ctx, func(tx *store.Tx) error {
			for _, session := range sessions {
				if session.Interface != id {
					continue
				}
				if err := tx.DeleteWebSession(session.Hash); err != nil && !errors.Is(err, store.ErrNotFound) {
					return err
				}
			}
			return nil
		})
		if err = errors.Join(err, s.refresh(ctx, id)); err != nil {
			return err
		}
	}
	return nil
}

// sweep looks at everything: sessions whose time is over, users who may have lost a job, and jobs.
func (s *Service) sweep(ctx context.Context) {
	var all []store.WebInterface
	users := map[ident.UCloudUser]bool{}
	err := s.o.Store.Update(ctx, func(tx *store.Tx) error {
		clear(users)
		_, err := tx.PurgeWebSessions(s.o.Now())
		if err != nil {
			return err
		}
		if all, err = tx.WebInterfaces(); err != nil {
			return err
		}
		for i := range all {
			sessions, err := tx.WebSessionsOf(all[i].ID, s.o.Now())
			if err != nil {
				return err
			}
			for _, session := range sessions {
				users[session.User] = true
			}
		}
		return nil
	})
	for i := range all {
		err = errors.Join(err, s.refresh(ctx, all[i].ID))
	}
	for user := range users {
		err = errors.Join(err, s.UsersChanged(ctx, user))
	}
	if err != nil && ctx.Err() == nil {
		s.log.Error("interfaces of jobs were not looked at, the next look does it", "error", err)
	}
}

// take waits for the turn.
func (s *Service) take(ctx context.Context) (leave func(), err error) {
	select {
	case s.turn <- struct{}{}:
		return func() { <-s.turn }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
