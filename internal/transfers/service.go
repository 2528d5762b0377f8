package transfers

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ucloud-im/internal/browserlink"
	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/tasks"
	"ucloud-im/internal/transfers/dial"
	"ucloud-im/internal/uploads"
)

// Tasks is what this package needs of [tasks.Manager].
type Tasks interface {
	Register(kind string, r tasks.Runner)
	Submit(ctx context.Context, s tasks.Spec) (id int64, err error)
}

// Receiver is what this package needs of [uploads.Service].
type Receiver interface {
	CreateTransfer(ctx context.Context, drive *providerapi.Drive, path, ref string, checked bool) (uploads.UploadSession, error)
	Transfer(ref string) (uploads.Transferred, bool)
	EndTransfer(ref, reason string)
}

// Options configure a [Service]. All of it is required, except Now.
type Options struct {
	Provider string           // this provider's id
	User     ident.UCloudUser // whom the instance serves
	Sessions browserlink.Store
	Tasks    Tasks
	// Update tells the server how far a transfer from another provider is.
	Update   func(ctx context.Context, p ipcapi.TransferProgress) (ipcapi.TransferVerdict, error)
	Log      *slog.Logger
	Settings Settings
	Now      func() time.Time // nil: time.Now
}

// Settings may change while the service runs ([Service.SetSettings]). A task under way keeps the old ones until it is
// taken up again.
type Settings struct {
	Follow      drives.Follow
	Outgoing    bool         // users may send
	Incoming    bool         // users may receive
	Peers       []string     // provider ids that are allowed, or *
	MaxBytes    int64        // of one transfer; 0: no bound
	Connections int          // of one transfer that is sent (4)
	Dial        *dial.Policy // nil: public addresses
}

// state are settings in use.
type state struct {
	Settings
	set *drives.Set
}

// Service transfers the files of one user. It is safe for concurrent use.
type Service struct {
	o        Options
	log      *slog.Logger
	settings atomic.Pointer[state]
	gate     browserlink.Gate // calls of the file system that somebody waits for

	receiver   Receiver // set by Attach
	retryPause time.Duration
	tickEvery  time.Duration

	life context.Context // of what watches incoming transfers: until Close
	end  context.CancelFunc
	work sync.WaitGroup

	mu       sync.Mutex // guards incoming
	incoming map[string]*incoming
}

// New makes a Service and registers its kind of task. It panics if something required is missing, which is a bug.
func New(o Options) *Service {
	if o.Provider == "" || o.User == "" || o.Sessions == nil || o.Tasks == nil || o.Update == nil || o.Log == nil {
		panic("transfers: the options are not complete")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Service{
		o: o, log: o.Log.With("part", "transfers"), gate: make(browserlink.Gate, 8), retryPause: retryPause, tickEvery: time.Second,
		incoming: map[string]*incoming{},
	}
	s.life, s.end = context.WithCancel(context.Background())
	s.SetSettings(o.Settings)
	o.Tasks.Register(kindSend, func(ctx context.Context, t *tasks.Task) error { return s.runSend(ctx, t) })
	return s
}

// Hook has uploads tell this service about transfers. Call it before the uploads are made, and [Service.Attach] after.
func (s *Service) Hook(o *uploads.Options) {
	o.TransferOpened, o.TransferLeft, o.Closed, o.Aborted = s.opened, s.left, s.closed, s.aborted
}

// Attach gives the service what receives files. It must happen before the first request.
func (s *Service) Attach(r Receiver) { s.receiver = r }

// SetSettings replaces the settings.
func (s *Service) SetSettings(set Settings) {
	if set.Connections <= 0 {
		set.Connections = 4
	}
	if set.Dial == nil {
		set.Dial = &dial.Policy{}
	}
	s.settings.Store(&state{Settings: set, set: drives.New(s.o.Provider, set.Follow)})
}

// Close ends what watches incoming transfers. Those themselves end with their connections, and tasks with their manager.
func (s *Service) Close() {
	s.end()
	s.work.Wait()
}

type direction string

const (
	outgoing  direction = "to"
	arriving  direction = "from"
	maxPeerID           = 200 // bytes of a provider's id
)

// mayTransfer tells whether this provider exchanges files with another one.
func (s *state) mayTransfer(enabled bool, way direction, peer string) error {
	switch {
	case !enabled:
		return failure.New(failure.Forbidden, "Transfers %s other providers are switched off at this provider", way)
	case peer == "" || len(peer) > maxPeerID:
		return failure.New(failure.Invalid, "The request does not name the other provider")
	case slices.Contains(s.Peers, "*") || slices.Contains(s.Peers, peer):
		return nil
	}
	return failure.New(failure.Forbidden, "Transfers %s the provider %s are not allowed at this provider", way, peer)
}
