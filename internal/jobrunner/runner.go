package jobrunner

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/jobrender"
	"ucloud-im/internal/providerapi"
)

// Options are what a [Runner] needs. All of it is required unless it says otherwise.
type Options struct {
	Provider string
	User     ident.UCloudUser
	Home     string // the user's home directory
	Server   Server
	Engine   Engine
	// Site gives the site's part of job scripts. It may be large, so it is asked for when it is needed and not kept.
	Site   func() (jobrender.Site, error)
	Follow func() drives.Follow // the policy for links in drives
	// FindDrive gives a drive of the user by its id, with failure.NotFound for every other.
	FindDrive func(ctx context.Context, id ident.DriveID) (providerapi.Drive, error)
	// Drive is a drive that the server has named, in the form of requests.
	Drive func(ipcapi.FoundDrive) providerapi.Drive

	// Openers open sessions of jobs; a kind without one is refused. OpenFolder opens a terminal in a folder.
	Openers    map[providerapi.SessionType]Opener
	OpenFolder Opener

	// Hook, if not nil, is the site's say before a job is submitted. It may take as long as ctx allows.
	// It may add arguments of sbatch.
	Hook func(ctx context.Context, h HookCall) (args []string, err error)
	// Script runs a program for the template function script() ([TemplateScripts]). nil refuses the function.
	Script func(ctx context.Context, program string, request []byte) (answer []byte, err error)
	// Busy tells that work goes on outside of a request; its result, that it has ended. nil: nobody wants to know.
	Busy func() (done func())
	Log  *slog.Logger
	Now  func() time.Time // nil: time.Now

	answerWithin time.Duration // 0: answerWithin
	retryFor     time.Duration // 0: retryFor
	step         func(name string)
}

// Opener opens a session. The call has passed the checks of this package: the job runs and belongs to the user, and the
// rank is one of the job's.
type Opener func(ctx context.Context, c SessionCall) (providerapi.OpenSession, error)

// SessionCall is what a session is to show.
type SessionCall struct {
	Record ipcapi.JobRecord
	Rank   int
	Type   providerapi.SessionType
	Target *string
	Job    *providerapi.Job // as Core sent it: not to be believed

	// Of a terminal in a folder: its UCloud path, and the local one, which the user can enter.
	Folder      string
	LocalFolder string
}

// HookCall is what the site's program is told about a job (contract 42 part B.15).
type HookCall struct {
	Job    *providerapi.Job
	Grant  ipcapi.JobGrant
	Script *jobrender.Script
	Path   string // of the script in the job's folder
	Nodes  int
}

// Runner answers the calls about jobs. It is safe for concurrent use.
type Runner struct {
	o    Options
	log  *slog.Logger
	life context.Context
	end  context.CancelFunc
	wait sync.WaitGroup
}

// Times of a submission.
const (
	// answerWithin is when an answer to create is given in any case: Core gives up after 5 s.
	answerWithin = 4600 * time.Millisecond
	// retryFor is how long the server is told of a result. After that it finds the job by its comment.
	retryFor = 2 * time.Minute
)

// New makes a Runner. It starts nothing.
func New(o Options) *Runner {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Busy == nil {
		o.Busy = func() func() { return func() {} }
	}
	if o.step == nil {
		o.step = func(string) {}
	}
	if o.answerWithin == 0 {
		o.answerWithin = answerWithin
	}
	if o.retryFor == 0 {
		o.retryFor = retryFor
	}
	r := &Runner{o: o, log: o.Log.With("part", "jobrunner")}
	r.life, r.end = context.WithCancel(context.Background())
	return r
}

// Close waits for submissions under way until ctx ends. What is not told to the server by then, it finds out by itself.
func (r *Runner) Close(ctx context.Context) {
	done := make(chan struct{})
	go func() { // ends with the last submission, each of which has a deadline
		r.wait.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
	r.end()
}

// errNoJob is for ids that are none of the caller's jobs.
var errNoJob = failure.New(failure.NotFound, "There is no such job")

// validID tells whether an id of Core can be the name of a job and of a folder.
func validID(id string) bool {
	if id == "" || len(id) > 64 {
		return false
	}
	for _, c := range []byte(id) {
		if !('0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '-' || c == '_') {
			return false
		}
	}
	return id[0] != '-'
}
