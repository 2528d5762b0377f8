package uploads

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
)

// record is what the server keeps about a session for us.
type record struct {
	Version  int                        `json:"v"`
	Drive    ident.DriveID              `json:"drive"`
	DrivePG  string                     `json:"pgid"` // names the local folder
	Provider string                     `json:"provider"`
	Path     string                     `json:"path"` // UCloud path
	Kind     string                     `json:"kind"` // FILE, FOLDER or TRANSFER
	Policy   providerapi.ConflictPolicy `json:"policy"`
	Protocol string                     `json:"protocol"`
	Ref      string                     `json:"ref,omitempty"`     // of the creator of a transfer
	Checked  bool                       `json:"checked,omitempty"` // a transfer with hashes, see checked.go
}

// kindTransfer is a session for another provider: a folder, or a single file that is listed with an empty path.
const kindTransfer = "TRANSFER"

func (r *record) purpose() string {
	if r.Kind == kindTransfer {
		return ipcapi.PurposeTransfer
	}
	return ipcapi.PurposeUpload
}

// ref gives the drive of the session. It was allowed to be changed when the session was made; whether it still is, the
// server has been asked.
func (r *record) ref(set *drives.Set) (drives.Ref, drives.Path, error) {
	ref, err := set.Drive(&providerapi.Drive{
		ID: r.Drive, ProviderGeneratedID: r.DrivePG,
		Specification: providerapi.DriveSpecification{Product: providerapi.ProductReference{Provider: r.Provider}},
	})
	if err != nil {
		return drives.Ref{}, drives.Path{}, err
	}
	p, err := ref.Path(r.Path)
	return ref, p, err
}

// note is what the server keeps about the progress of a session of a single file, so that it survives a kill.
type note struct {
	// Inode, Size and Modified describe the last file that got a name, or was about to get one. If a file with that inode
	// has the session's name, or one of its numbered forms, it is the one that this session wrote.
	Inode    uint64 `json:"ino,omitempty"`
	Size     int64  `json:"size"`
	Modified int64  `json:"mtime,omitempty"`
	Done     bool   `json:"done,omitempty"`
	// Stored is how many bytes of an upload in chunks have been acknowledged.
	Stored int64 `json:"stored,omitempty"`
}

// Info describes a session for others.
type Info struct {
	Drive    ident.DriveID
	Path     string // UCloud path
	Transfer bool   // from another provider
	Ref      string // of a transfer, as given to [Service.CreateTransfer]
}

func (r *record) info() Info {
	return Info{Drive: r.Drive, Path: r.Path, Transfer: r.Kind == kindTransfer, Ref: r.Ref}
}

// session is a session that is in use.
type session struct {
	record
	token string
	conns int   // guarded by Service.mu
	over  bool  // a transfer has ended; guarded by Service.mu
	moved moved // of a transfer

	kept   chan struct{} // guards the draft of an upload in chunks, see takeTurn
	naming sync.Mutex    // held while the file of a session gets its name

	mu      sync.Mutex // guards the fields below
	turn    *turn      // who has kept
	note    note
	unsaved bool // the server does not have the note
	noted   bool // the note has changed
	willed  bool // the server has a will
	failed  failures
	seed    maphash.Seed      // of the hashes in undated
	missing map[string]string // of a transfer: the files that failed and were not stored since, and why; bounded
	undated map[uint64]int64  // files that were written without a usable time, by the hash of their path, and their sizes
}

// Report tells what was not stored.
type Report struct {
	Info
	Count int      // files that failed; 0: some, of an upload that was interrupted
	Files []string // the first of them: UCloud paths
	Why   string   // the first reason, a sentence for the user
	Fatal bool     // nothing more could be stored, and the connection was closed
}

// maxReported is how many failed files are named.
const maxReported = 20

type failures struct {
	count int
	files []string
	why   string
	fatal bool
}

// Title is a line for a list of tasks.
func (r Report) Title() string {
	name := r.Path[max(0, len(parentOf(r.Path))):]
	if name == "" {
		name = r.Path
	}
	if r.Count == 0 { // nobody has counted
		return fmt.Sprintf("Upload of %s was interrupted: %s", name, r.Why)
	}
	files := "1 file"
	if r.Count != 1 {
		files = fmt.Sprintf("%d files", r.Count)
	}
	return fmt.Sprintf("Upload of %s: %s failed: %s", name, files, r.Why)
}

func parentOf(path string) string {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return path[:i+1]
		}
	}
	return ""
}

// fail notes that a file was not stored.
func (ses *session) fail(rel string, err error, fatal bool) {
	ses.failAll([]string{rel}, 1, err, fatal)
}

// failAll notes that count files were not stored, of which the first have the names rels.
func (ses *session) failAll(rels []string, count int64, err error, fatal bool) {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	if ses.Kind == kindTransfer {
		ses.failing(rels, failure.Why(err))
		return
	}
	f := &ses.failed
	f.count += int(count)
	if f.why == "" || fatal && !f.fatal {
		f.why = failure.Why(err)
	}
	f.fatal = f.fatal || fatal
	for _, rel := range rels[:min(len(rels), max(0, maxReported-len(f.files)))] {
		full := ses.Path
		if rel != "" {
			full += "/" + drives.Escape(rel)
		}
		f.files = append(f.files, full)
	}
}

// reportTimeout bounds how long a report may take.
const reportTimeout = 20 * time.Second

// report hands over what has failed since the last report.
func (s *Service) report(ses *session) {
	if ses.Kind == kindTransfer && s.o.TransferLeft != nil {
		s.o.TransferLeft(ses.info(), ses.transferred())
		return
	}
	ses.mu.Lock()
	f, willed := ses.failed, ses.willed
	ses.failed, ses.willed = failures{}, false
	ses.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.life), reportTimeout)
	defer cancel()
	var err error
	var r Report
	if f.count > 0 {
		r = Report{Info: ses.info(), Count: f.count, Files: f.files, Why: f.why, Fatal: f.fatal}
		s.log.Warn("files were not stored", "drive", r.Drive, "path", r.Path, "count", r.Count, "why", r.Why)
		if s.o.Failed != nil {
			err = s.o.Failed(ctx, r)
		}
	}
	switch {
	case err != nil: // this process is ending, perhaps; the next one will tell
		s.log.Warn("the user was not told that files were not stored", "error", err)
		s.leaveWill(ctx, ses, r)
	case willed:
		err := s.o.Sessions.Touch(ctx, ipcapi.SessionNote{Purpose: ses.purpose(), Token: ses.token, NoWill: true})
		if err != nil && !failure.Is(err, failure.NotFound) { // an unknown session has no will
			s.log.Warn("the will of an upload is not taken back", "error", err)
		}
	}
}

// save stores the note at the server. If the server is away the note stays here, as long as this process lives.
func (s *Service) save(ctx context.Context, ses *session, n note) {
	raw, err := json.Marshal(n)
	if err == nil {
		err = s.o.Sessions.Touch(ctx, ipcapi.SessionNote{Purpose: ses.purpose(), Token: ses.token, Note: raw, Done: n.Done})
	}
	if err != nil {
		s.log.Warn("the state of an upload is not stored", "error", err)
	}
	ses.mu.Lock()
	ses.note, ses.unsaved, ses.noted = n, err != nil, true
	ses.mu.Unlock()
}

// maxUndated bounds the memory for files without a usable time.
const maxUndated = 10_000

// sawUndated tells whether this session wrote the file, with this size, without a time to recognise it by.
func (ses *session) sawUndated(rel string, size int64) bool {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	got, ok := ses.undated[maphash.String(ses.seed, rel)]
	return ok && got == size
}

func (ses *session) noteUndated(rel string, size int64) {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	if ses.undated == nil {
		ses.undated = map[uint64]int64{}
	}
	if len(ses.undated) < maxUndated {
		ses.undated[maphash.String(ses.seed, rel)] = size
	}
}

// turn is the right to work on the draft of an upload in chunks. A client sends one thing after the other, so one that
// still has the turn when another comes is either about to end, or belongs to a connection that was lost, which nobody
// has noticed.
type turn struct {
	heard atomic.Int64 // when data came last, Unix ns
	abort func()       // makes its reads fail; called from another goroutine
}

// takeTurn waits for the turn. Who has it is left alone as long as data comes.
func (s *Service) takeTurn(ctx context.Context, ses *session, t *turn) error {
	tick := time.NewTicker(max(s.o.Stall/8, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case ses.kept <- struct{}{}:
			t.heard.Store(time.Now().UnixNano())
			ses.mu.Lock()
			ses.turn = t
			ses.mu.Unlock()
			return nil
		case <-ctx.Done():
			return failure.Wrap(ctx.Err(), failure.Invalid, "The connection was lost")
		case now := <-tick.C:
			ses.mu.Lock()
			if ses.turn != nil && now.Sub(time.Unix(0, ses.turn.heard.Load())) >= s.o.Stall {
				ses.turn.abort() // under the lock, so that it cannot meet the next request of the same connection
			}
			ses.mu.Unlock()
		}
	}
}

func (ses *session) endTurn() {
	ses.mu.Lock()
	ses.turn = nil
	ses.mu.Unlock()
	<-ses.kept
}

// draftDigits names the draft of an upload in chunks, so that it is found again after a restart. Who does not have the
// token cannot know it.
func (ses *session) draftDigits() string {
	sum := sha256.Sum256([]byte("draft of " + ses.token))
	return hex.EncodeToString(sum[:8])
}
