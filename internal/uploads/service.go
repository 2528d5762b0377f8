package uploads

import (
	"context"
	"fmt"
	"hash/maphash"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"ucloud-im/internal/browserlink"
	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
)

// Options configure a [Service]. Zero values mean the defaults given.
type Options struct {
	Provider string            // this provider's id; required
	User     ident.UCloudUser  // whom the instance serves; required
	Sessions browserlink.Store // keeps sessions; required
	Log      *slog.Logger      // required
	Now      func() time.Time  // nil: time.Now
	Settings Settings

	// Writable refuses with 402 if Core has locked the workspace of a drive. It is asked when a session is made. nil:
	// nothing is locked.
	Writable func(ctx context.Context, owner ident.Owner, category string) error

	// Failed is told, once per session and time, that files were not stored although the client may believe so. It must
	// make the failure visible to the user; the protocol cannot (contract 11 section 2.6). On an error the next instance
	// tries again. nil: it is only logged.
	Failed func(ctx context.Context, r Report) error
	// Wills gives what an earlier instance has left at the store of sessions, for [Service.TakeWills]. nil: nothing.
	Wills func(ctx context.Context) ([][]byte, error)
	// Closed is told that another provider has finished its transfer (contract 11 section 2.3 point 7). On an error the
	// session stays, and the other provider is asked to try again.
	Closed func(ctx context.Context, s Info) error
	// Aborted is the same for a transfer that the user of the other provider has cancelled.
	Aborted func(ctx context.Context, s Info) error
	// TransferOpened is told when the first connection of a transfer is opened, and TransferLeft when the last one is
	// gone. What failed is part of what TransferLeft is told; Failed is not told of it. Neither may call the
	// service; of two that follow each other closely, the second may be told first.
	TransferOpened func(s Info)
	TransferLeft   func(s Info, t Transferred)

	SpillDir       string        // for listings that do not fit into memory; "": the system's directory for temporary files
	ConnBytes      int64         // data in memory of one connection (64 MiB)
	ConnFiles      int           // large files in flight of one connection (64)
	UserFiles      int           // large files in flight of all connections (256)
	SmallFiles     int           // small files in flight of one connection (256)
	MaxListed      int           // files of one connection that are listed and not completed (5,000,000)
	SessionConns   int           // connections of one session (32)
	UserConns      int           // connections of all sessions (128)
	ListingBytes   int64         // memory for listings and ids of all connections (64 MiB)
	ListingTimeout time.Duration // for the first listing, and after everything is completed for the next (30 s)
	Silence        time.Duration // how long a client may be silent while data is due (2 min)
	PingInterval   time.Duration // between pings to a silent client (30 s)
	Stall          time.Duration // after which an upload in chunks goes on over a new connection while an old one is there (5 s)
	TouchInterval  time.Duration // between checks that the session may still be used (10 min)
	WillAfter      time.Duration // after which an upload is noted, so that it is known if this process is killed (2 s)
	WriteTimeout   time.Duration // for an acknowledgement to be taken (30 s)
	DraftLife      time.Duration // after which a hidden file without a writer is removed (24 h)
}

// Settings may change while the service runs ([Service.SetSettings]); connections keep the old ones.
type Settings struct {
	Follow    drives.Follow
	PublicURL string   // scheme://host[:port] under which browsers reach us; required
	Origins   []string // further origins of pages that may upload
	Streams   int      // files that are written at a time (16)
	Bytes     int64    // data in memory, all connections (256 MiB)
	// NoSync leaves it to the system when files get to the disk. Otherwise a file is counted as completed when its
	// content and its name have been flushed.
	NoSync bool
}

// Service receives the uploads of one user. It is safe for concurrent use.
type Service struct {
	o      Options
	log    *slog.Logger
	now    func() time.Time
	state  atomic.Pointer[state]
	gate   browserlink.Gate // calls of the file system that somebody waits for
	drafts *janitor
	temps  drives.Temps // 0 is the number of no task
	pieces pieces

	life context.Context // of all connections: until Close
	end  context.CancelFunc
	work sync.WaitGroup

	mu       sync.Mutex // guards the fields below
	sessions map[string]*session
	recent   map[string]recent // of sessions that were in use a moment ago
	conns    map[*conn]struct{}
	total    int // connections of all protocols
	used     int64
	small    int64         // part of used that is promised to small files
	large    int           // large files in flight
	listing  int64         // memory for listings
	writing  int           // workers that use the file system
	freed    chan struct{} // closed and replaced when used goes down
	starved  bool          // somebody was refused something that is shared
	closed   bool
	drafted  map[string]bool // kept drafts that a connection has, by their digits; true: another one has stored the file
}

type state struct {
	Settings
	set   *drives.Set
	links *browserlink.Links
}

func setDefault[T int | int64 | time.Duration](v *T, standard T) {
	if *v <= 0 {
		*v = standard
	}
}

// New makes a Service. It starts nothing. It panics if something required is missing, which is a bug.
func New(o Options) *Service {
	if o.Provider == "" || o.User == "" || o.Sessions == nil || o.Log == nil {
		panic("uploads: the options are not complete")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	setDefault(&o.ConnBytes, 64<<20)
	setDefault(&o.ConnFiles, 64)
	setDefault(&o.UserFiles, 256)
	setDefault(&o.SmallFiles, 256)
	setDefault(&o.MaxListed, 5_000_000)
	setDefault(&o.SessionConns, 32)
	setDefault(&o.UserConns, 128)
	setDefault(&o.ListingBytes, 64<<20)
	setDefault(&o.ListingTimeout, 30*time.Second)
	setDefault(&o.Silence, 2*time.Minute)
	setDefault(&o.PingInterval, 30*time.Second)
	setDefault(&o.Stall, 5*time.Second)
	setDefault(&o.TouchInterval, 10*time.Minute)
	setDefault(&o.WillAfter, 2*time.Second)
	setDefault(&o.WriteTimeout, 30*time.Second)
	setDefault(&o.DraftLife, 24*time.Hour)
	s := &Service{
		o: o, log: o.Log.With("part", "uploads"), now: o.Now, gate: make(browserlink.Gate, 16),
		sessions: map[string]*session{}, recent: map[string]recent{}, conns: map[*conn]struct{}{}, freed: make(chan struct{}),
	}
	s.drafts = &janitor{s: s, life: o.DraftLife, seen: map[dirKey]*swept{}}
	s.life, s.end = context.WithCancel(context.Background())
	s.SetSettings(o.Settings)
	return s
}

// SetSettings replaces the settings.
func (s *Service) SetSettings(set Settings) {
	setDefault(&set.Streams, 16)
	setDefault(&set.Bytes, 256<<20)
	set.Bytes = max(set.Bytes, 4*pieceBytes)
	s.state.Store(&state{
		Settings: set, set: drives.New(s.o.Provider, set.Follow),
		links: &browserlink.Links{Store: s.o.Sessions, Provider: s.o.Provider, User: s.o.User, PublicURL: set.PublicURL, Origins: set.Origins},
	})
}

// Close ends all connections: what is complete is still stored, the rest is removed. It waits until the context ends.
func (s *Service) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.end()
	done := make(chan struct{})
	go func() { // ends when the kernel returns from the last operation
		s.work.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("uploads still under way: %w", ctx.Err())
	}
}

// enter counts a connection of a session.
func (s *Service) enter(token string, rec record, note note) (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, failure.New(failure.Unavailable, "Your instance is ending, try again")
	}
	ses := s.sessions[token]
	if ses == nil {
		// The note comes from the server, and may have been read before an earlier connection changed it.
		if r, ok := s.recent[token]; ok && time.Since(r.at) < recentLife {
			note = r.note
		}
		ses = &session{record: rec, token: token, note: note, kept: make(chan struct{}, 1), seed: maphash.MakeSeed()}
		s.sessions[token] = ses
	}
	if ses.conns >= s.o.SessionConns || s.total >= s.o.UserConns {
		if ses.conns == 0 && !ses.unsaved {
			delete(s.sessions, token)
		}
		return nil, failure.New(failure.TooMany, "There are too many connections. Try again later")
	}
	ses.conns++
	s.total++
	s.work.Add(1)
	if ses.conns == 1 && ses.Kind == kindTransfer && s.o.TransferOpened != nil {
		s.o.TransferOpened(ses.info())
	}
	return ses, nil
}

// leave is the end of a connection. The last one of a session reports what has failed, and counts until it has.
func (s *Service) leave(ses *session) {
	s.mu.Lock()
	ses.conns--
	last := ses.conns == 0
	// What a transfer misses is known only over all of its connections.
	if last && !ses.unsaved && (ses.Kind != kindTransfer || ses.over || ses.moved.listed.Load() == 0) {
		delete(s.sessions, ses.token)
	}
	if last && ses.noted {
		s.recallLocked(ses.token, ses.note)
	}
	s.mu.Unlock()
	if last {
		s.report(ses)
	}
	s.mu.Lock()
	s.total--
	s.mu.Unlock()
	s.work.Done()
}

// recent is what a session that is not in use any more had noted.
type recent struct {
	note note
	at   time.Time
}

const (
	recentLife = time.Minute // longer than a request can be under way between reading the note and using it
	maxRecent  = 4096
)

func (s *Service) recallLocked(token string, n note) {
	now := time.Now()
	if len(s.recent) >= maxRecent {
		maps.DeleteFunc(s.recent, func(_ string, r recent) bool { return now.Sub(r.at) >= recentLife })
	}
	if len(s.recent) < maxRecent {
		s.recent[token] = recent{n, now}
	}
}

// reserve takes n bytes of the data budget if they are free now. Small files may take a quarter at most: they hold
// their share until the client sends, while everything else is on its way to the disk.
func (s *Service) reserve(n int64, small bool) bool {
	limit := s.state.Load().Bytes
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used+n > limit || small && s.small+n > limit/4 {
		s.starved = true
		return false
	}
	s.used += n
	if small {
		s.small += n
	}
	return true
}

func (s *Service) unreserve(n int64, small bool) {
	s.mu.Lock()
	s.used -= n
	if small {
		s.small -= n
	}
	s.wakeLocked()
}

// takeFile takes one of the places for large files.
func (s *Service) takeFile() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.large >= s.o.UserFiles {
		s.starved = true
		return false
	}
	s.large++
	return true
}

func (s *Service) giveFile() {
	s.mu.Lock()
	s.large--
	s.wakeLocked()
}

// takeWorker takes one of the places for workers.
func (s *Service) takeWorker() bool {
	limit := s.state.Load().Streams
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writing >= limit {
		s.starved = true
		return false
	}
	s.writing++
	return true
}

func (s *Service) giveWorker() {
	s.mu.Lock()
	s.writing--
	s.wakeLocked()
}

// wakeLocked tells all who wait that something shared has become free. It unlocks.
func (s *Service) wakeLocked() {
	close(s.freed)
	s.freed = make(chan struct{})
	var all []*conn
	if s.starved {
		s.starved = false
		all = make([]*conn, 0, len(s.conns))
		for c := range s.conns {
			all = append(all, c)
		}
	}
	s.mu.Unlock()
	for _, c := range all {
		c.kick()
	}
}

// room is closed when bytes of the data budget become free.
func (s *Service) room() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.freed
}

// chargeListing accounts for memory of listings.
func (s *Service) chargeListing(n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n > 0 && s.listing+n > s.o.ListingBytes {
		return errTooMany
	}
	s.listing += n
	return nil
}
