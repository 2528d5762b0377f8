package terminal

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"ucloud-im/internal/browserlink"
	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/fileserver"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/websock"
)

// Settings may change at run time.
type Settings struct {
	Enabled   bool
	PublicURL string   // scheme://host[:port] under which browsers reach the provider
	Origins   []string // whose pages may use terminals, besides ours
	Follow    drives.Follow

	Shell  string        // program; "" means the account's own
	Max    int           // terminals of the user, with those that nobody uses; 0 means DefaultMax
	Detach time.Duration // how long a terminal is kept that nobody uses; 0: not at all
	Idle   time.Duration // how long there may be neither input nor output; 0: any time
	Total  time.Duration // how long a terminal may be; 0: any time

	SSH      bool   // compute nodes are reached by ssh, and not by srun
	Binaries string // directory of srun; "" means PATH
}

// DefaultMax is how many terminals a user may have.
const DefaultMax = 10

// Account is who the shells run as: the account of this process.
type Account struct {
	UID   ident.UID
	Name  string
	Home  string
	Shell string
}

// Options configure a [Service]. All are required, except Program and Env.
type Options struct {
	Provider string
	User     ident.UCloudUser
	Account  Account
	Sessions browserlink.Store
	// Job looks a job up that the user may see; unknown ones are [failure.NotFound].
	Job func(ctx context.Context, id string) (ipcapi.JobRecord, error)
	// Drive looks a drive of the user's workspaces up.
	Drive    func(ctx context.Context, id ident.DriveID) (providerapi.Drive, error)
	Log      *slog.Logger
	Settings Settings
	Program  string          // that holds terminals; "" means this one
	Env      func() []string // of shells, without what the package adds; nil means os.Environ
}

// Service opens terminals and serves them.
type Service struct {
	o       Options
	log     *slog.Logger
	set     atomic.Pointer[config]
	holders holders
	starts  sync.Mutex // one start at a time, so that the bound holds
	sockets atomic.Int64
	gate    browserlink.Gate // bounds file systems that hang
	lives   websock.Lives
}

// config is what follows from settings.
type config struct {
	Settings
	links  browserlink.Links
	drives *drives.Set
}

// maxHanging is how many operations on file systems may hang at a time.
const maxHanging = 8

// New makes a Service.
func New(o Options) *Service {
	if o.Program == "" {
		o.Program = "/proc/self/exe"
	}
	if o.Env == nil {
		o.Env = os.Environ
	}
	s := &Service{
		o: o, log: o.Log.With("part", "terminal"),
		gate: make(browserlink.Gate, maxHanging), holders: holders{uid: uint32(o.Account.UID), program: o.Program, site: o.Provider},
	}
	s.SetSettings(o.Settings)
	return s
}

// SetSettings changes settings. They hold for terminals that begin.
func (s *Service) SetSettings(set Settings) {
	if set.Max <= 0 {
		set.Max = DefaultMax
	}
	s.set.Store(&config{
		Settings: set, drives: drives.New(s.o.Provider, set.Follow),
		links: browserlink.Links{Store: s.o.Sessions, Provider: s.o.Provider, User: s.o.User, PublicURL: set.PublicURL, Origins: set.Origins},
	})
}

// Close closes the sockets. The shells stay for a while: browsers come back to them, by the next instance.
func (s *Service) Close() { s.lives.Close() }

// Interrupt closes the sockets that there are, because something waits for the end of all work: browsers come back.
func (s *Service) Interrupt() { s.lives.Interrupt() }

// EndAll ends all shells of the account, because it may not have any more.
func (s *Service) EndAll(ctx context.Context) {
	all, err := s.holders.list(ctx)
	if err != nil {
		s.log.Warn("terminals cannot be listed", "error", err)
	}
	for _, f := range all {
		if err := s.holders.end(ctx, f.socket); err != nil {
			s.log.Warn("a terminal cannot be ended", "error", err)
		}
	}
}

// Routes are the calls of the package: the socket, which browsers open without Core's token.
func (s *Service) Routes() []fileserver.Route {
	return []fileserver.Route{{
		Method: http.MethodGet, Path: "websocket", Class: hoptoken.ClassBrowser, MaxBody: 1, Serve: s.serve,
		Intent: intent.Rule{Exempt: "browsers have a one-time token for the terminal"},
	}}
}

// ticket is what the server keeps with an identifier: what the terminal is for.
type ticket struct {
	Version  int           `json:"v"`
	Job      string        `json:"job,omitempty"`
	Rank     int           `json:"rank,omitempty"`
	Drive    ident.DriveID `json:"drive,omitempty"`
	DrivePG  string        `json:"pgid,omitempty"` // names the local folder
	Provider string        `json:"provider,omitempty"`
	Path     string        `json:"path,omitempty"` // UCloud path
}

// key is under which a shell is found again.
func (t *ticket) key() string {
	if t.Job != "" {
		return fmt.Sprintf("job/%s/%d", t.Job, t.Rank)
	}
	return "folder" + t.Path
}

// maxPath bounds a UCloud path in bytes.
const maxPath = 16 << 10

func errDisabled() error {
	return failure.New(failure.Invalid, "Terminals are not available at this provider")
}

// OpenJob makes a terminal in a job (contract 21 section 4.1). It begins when the browser connects.
func (s *Service) OpenJob(ctx context.Context, rec *ipcapi.JobRecord, rank int) (providerapi.OpenSession, error) {
	if !s.set.Load().Enabled {
		return providerapi.OpenSession{}, errDisabled()
	}
	if err := checkJob(rec, rank); err != nil {
		return providerapi.OpenSession{}, err
	}
	return s.issue(ctx, ticket{Version: 1, Job: rec.ID, Rank: rank}, ipcapi.SessionItem{Object: "job/" + rec.ID, Owner: rec.Owner}, rec.ID, rank)
}

// OpenFolder makes a terminal in a folder on this machine (contract 20 section 2.6).
func (s *Service) OpenFolder(ctx context.Context, folder string) (providerapi.OpenSession, error) {
	set := s.set.Load()
	if !set.Enabled {
		return providerapi.OpenSession{}, errDisabled()
	}
	id, err := driveOf(folder)
	if err != nil {
		return providerapi.OpenSession{}, err
	}
	d, err := s.o.Drive(ctx, id)
	if err != nil {
		return providerapi.OpenSession{}, err
	}
	t := ticket{
		Version: 1, Drive: d.ID, DrivePG: d.ProviderGeneratedID, Provider: d.Specification.Product.Provider, Path: folder,
	}
	place, _, err := s.openFolder(ctx, set, &t)
	if err != nil {
		return providerapi.OpenSession{}, err
	}
	place.Close() //nolint:errcheck // nothing was written
	item := ipcapi.SessionItem{Drive: d.ID, Category: d.Specification.Product.Category, Owner: d.Owner.Workspace(), Object: folder}
	return s.issue(ctx, t, item, folder, 0)
}

// issue makes the session.
func (s *Service) issue(ctx context.Context, t ticket, item ipcapi.SessionItem, id string, rank int) (providerapi.OpenSession, error) {
	var err error
	if item.Data, err = json.Marshal(t); err != nil {
		return providerapi.OpenSession{}, fmt.Errorf("encode session: %w", err)
	}
	tokens, err := s.o.Sessions.Create(ctx, ipcapi.PurposeShell, []ipcapi.SessionItem{item})
	if err != nil {
		return providerapi.OpenSession{}, err
	}
	return providerapi.OpenSession{
		Type: "shell", JobID: id, Rank: rank, DomainOverride: "ws" + s.set.Load().PublicURL[len("http"):], SessionIdentifier: tokens[0],
	}, nil
}
