package files

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// Options configure a [Service]. Zero values mean the defaults given.
type Options struct {
	Provider string // this provider's id; required
	Settings Settings

	// StaleGroups is called when the user may not enter the directory of a drive. The usual reason is that the user was
	// added to a project after this process had started, so that its supplementary groups are old. It reports whether a
	// replacement of the instance is under way, in which case the client is told to come back (449); otherwise, and if
	// it is nil, the answer is 404. It must not block.
	StaleGroups func(ctx context.Context) bool

	// FindDrive gives a drive of the user by its id, for the calls that name it in no other way and when no earlier
	// request came with it. nil: such calls are 404.
	FindDrive func(ctx context.Context, id ident.DriveID) (providerapi.Drive, error)
	// Doubt tells that FindDrive knows better than earlier requests, because Core is not trusted where a drive is. nil:
	// never.
	Doubt func() bool

	// DrivePlace tells where users may make drives in a workspace. nil: nowhere.
	DrivePlace func(ctx context.Context, owner ident.Owner, category string) (DrivePlace, error)

	// Writable refuses with 402 if Core has locked the workspace of a drive, so that nothing may be added. It is asked
	// before anything is made or brought in; reading, trash and deletion never ask. nil: nothing is locked.
	Writable func(ctx context.Context, owner ident.Owner, category string) error

	// Tasks runs what takes longer than a request. New registers the kinds of this package with it. nil: calls that need
	// it are refused.
	Tasks Tasks

	Log *slog.Logger     // required
	Now func() time.Time // nil: time.Now

	IndexBytes int64         // memory for indexes of large directories, all together (28 MiB)
	IndexIdle  time.Duration // how long an unused index is kept (60 s)
	MaxBlocked int           // operations at a time per drive (16)
	ScanWait   time.Duration // how long a page waits for the sorting of its directory (3 s)
	Timeout    time.Duration // how long a request waits for the file system in all (4.5 s; Core gives up after 5 s)
}

// Settings may change while the service runs ([Service.SetSettings]).
type Settings struct {
	Follow           drives.Follow // files.followSymlinks
	MaxBrowseEntries int           // files.maxBrowseEntries: larger directories are never sorted by size or time; 0 is no bound
	JobFolder        string        // name of the folder that gets the icon of job folders, besides "Jobs"
	Unmanaged        bool          // services.unmanaged
	TrashRetention   time.Duration // files.trash.retention; 0: the trash keeps everything

	SearchMaxResults int           // files.searchMaxResults; 0: 10,000
	SearchTimeout    time.Duration // files.searchTimeout; 0: 5 minutes
	SearchExclude    []string      // files.searchExclude: names of directories that a search does not enter
}

// Service works on the files of one user. It is safe for concurrent use. Close ends what runs in the background.
type Service struct {
	o      Options
	log    *slog.Logger
	now    func() time.Time
	state  atomic.Pointer[state]
	cache  *cache
	gate   *gate
	recent *recent
	known  known
	moves  moves

	retiring retiring

	searches searches

	life context.Context // the life of background scans: until Close
	end  context.CancelFunc

	process uint32
	serial  atomic.Uint64

	// slow, if not nil, is called for each batch that a background scan has read. Tests hold up scans with it.
	slow func(batch int)
}

// state is what depends on the settings.
type state struct {
	Settings
	set *drives.Set
}

// New makes a Service. It starts nothing.
func New(o Options) *Service {
	if o.Now == nil {
		o.Now = time.Now
	}
	setDefault(&o.IndexBytes, 28<<20)
	setDefault(&o.IndexIdle, time.Minute)
	setDefault(&o.MaxBlocked, 16)
	setDefault(&o.ScanWait, 3*time.Second)
	setDefault(&o.Timeout, 4500*time.Millisecond)
	s := &Service{o: o, log: o.Log.With("part", "files"), now: o.Now, process: rand.Uint32()}
	s.cache = newCache(o.IndexBytes, o.IndexIdle, o.Now)
	s.gate = newGate(o.MaxBlocked, time.Second, s.log)
	s.recent = newRecent(o.Now)
	s.known.byID = make(map[ident.DriveID]knownDrive)
	s.life, s.end = context.WithCancel(context.Background())
	s.SetSettings(o.Settings)
	s.registerTasks()
	return s
}

// writable refuses to add something to a drive whose workspace is locked.
func (s *Service) writable(ctx context.Context, d *providerapi.Drive) error {
	if s.o.Writable == nil {
		return nil
	}
	return s.o.Writable(ctx, d.Owner.Workspace(), d.Specification.Product.Category)
}

func setDefault[T int | int64 | time.Duration](v *T, standard T) {
	if *v <= 0 {
		*v = standard
	}
}

// SetSettings replaces the settings. Requests under way keep the old ones.
func (s *Service) SetSettings(set Settings) {
	s.state.Store(&state{Settings: set, set: drives.New(s.o.Provider, set.Follow)})
}

// Close ends background work and gives back all memory. It waits for operations that are in the kernel until the context
// ends: a file system that hangs does not let go of them.
func (s *Service) Close(ctx context.Context) error {
	s.end()
	done := make(chan struct{})
	go func() { // ends when the kernel returns from the last operation
		s.gate.wait.Wait()
		close(done)
	}()
	defer s.cache.close()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("file operations still under way: %w", ctx.Err())
	}
}

func (s *Service) nextGeneration() generation {
	return generation{process: s.process, serial: s.serial.Add(1)}
}

// indexLimit is the most that one index may occupy.
func (s *Service) indexLimit() int { return int(s.o.IndexBytes) }

// statWorkers is how many goroutines look at entries at a time. Two hide the waiting for memory on a local file system;
// on a network each call is a round trip.
func (s *Service) statWorkers(dir *drives.Dir) int {
	if dir.Remote() {
		return 16
	}
	return min(2, runtime.GOMAXPROCS(0))
}
