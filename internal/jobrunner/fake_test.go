package jobrunner

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/jobrender"
	"ucloud-im/internal/providerapi"
)

const (
	provider = "hpc-example"
	user     = ident.UCloudUser("AdaLovelace#4821")
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		runChild()
		return
	}
	// Jobs are login shells. What stands in the profile of whoever runs the tests is not to be run, and killed half-way.
	home, err := os.MkdirTemp("", "jobrunner")
	if err != nil {
		panic(err)
	}
	os.Setenv("HOME", home) //nolint:errcheck // fails for NUL bytes only
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(home) //nolint:errcheck // temporary
		os.Exit(code)
	}))
}

// fakeServer is the server's part, in memory: it keeps what it is told and answers as the contract of the calls says.
type fakeServer struct {
	mu      sync.Mutex
	grant   ipcapi.JobGrant // what jobs get
	leave   time.Duration   // how long the leave is
	err     map[string]error
	records map[string]ipcapi.JobRecord
	docs    map[string]json.RawMessage
	account map[string]string // what the user chose
	refused map[string]string
	news    map[string]ipcapi.JobSubmission
	calls   []string
	reports []ipcapi.JobLocalReport
	end     []string
	choices ipcapi.JobChoiceReply
	attempt map[string]int64
	manages bool                        // the caller is an administrator of the project
	known   func(comment string) string // what the engine knows of a job of which nothing was heard; may be nil
}

func newFakeServer() *fakeServer {
	return &fakeServer{
		leave: time.Minute, err: map[string]error{}, records: map[string]ipcapi.JobRecord{}, docs: map[string]json.RawMessage{},
		account: map[string]string{}, refused: map[string]string{}, news: map[string]ipcapi.JobSubmission{}, attempt: map[string]int64{},
		grant: ipcapi.JobGrant{
			Engine: ipcapi.EngineLocal, Account: "acc", Partition: "normal", Folder: "ucloud-jobs",
			Machine: ipcapi.JobMachine{Name: "cpu-1", Category: "cpu", CPU: 1, MemoryGB: 1},
		},
	}
}

// called notes a call and gives the error that it is to have.
func (s *fakeServer) called(name, id string) error {
	s.calls = append(s.calls, strings.TrimSpace(name+" "+id))
	return s.err[name]
}

func (s *fakeServer) Begin(_ context.Context, b ipcapi.JobBeginning) (ipcapi.JobGrant, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var job providerapi.Job
	if err := json.Unmarshal(b.Job, &job); err != nil {
		return ipcapi.JobGrant{}, err
	}
	if err := s.called("begin", job.ID); err != nil {
		return ipcapi.JobGrant{}, err
	}
	if r, ok := s.records[job.ID]; ok && r.EngineID != "" {
		return ipcapi.JobGrant{Known: true, ProviderGeneratedID: r.ProviderGeneratedID}, nil
	}
	comment := "ucloud:" + provider + ":" + job.ID
	if r, ok := s.records[job.ID]; ok && s.known != nil {
		if id := s.known(comment); id != "" {
			r.EngineID, r.ProviderGeneratedID = id, s.grant.Account+"/"+id+"/0"
			s.records[job.ID] = r
			return ipcapi.JobGrant{Known: true, ProviderGeneratedID: r.ProviderGeneratedID}, nil
		}
	}
	s.docs[job.ID], s.account[job.ID] = b.Job, b.Account
	s.records[job.ID] = ipcapi.JobRecord{
		ID: job.ID, Own: true, State: providerapi.JobInQueue, Engine: s.grant.Engine, Replicas: job.Specification.Replicas,
	}
	s.attempt[job.ID]++
	g := s.grant
	g.Comment, g.Attempt, g.Until = comment, s.attempt[job.ID], time.Now().Add(s.leave)
	return g, nil
}

func (s *fakeServer) Submitted(_ context.Context, n ipcapi.JobSubmission) (ipcapi.JobReceipt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.called("submitted", n.Job); err != nil {
		return ipcapi.JobReceipt{}, err
	}
	r, ok := s.records[n.Job]
	if !ok || r.EngineID != "" && r.EngineID != n.EngineID {
		return ipcapi.JobReceipt{}, failure.New(failure.Conflict, "The job was given up")
	}
	r.EngineID, r.Folder, r.Targets = n.EngineID, n.Folder, n.Targets
	r.ProviderGeneratedID = fmt.Sprintf("%s/%s/1767222005000", s.grant.Account, n.EngineID)
	s.records[n.Job], s.news[n.Job] = r, n
	return ipcapi.JobReceipt{ProviderGeneratedID: r.ProviderGeneratedID}, nil
}

func (s *fakeServer) Refused(_ context.Context, n ipcapi.JobRefusal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.called("refused", n.Job); err != nil {
		return err
	}
	s.refused[n.Job] = n.Message
	return nil
}

func (s *fakeServer) Find(_ context.Context, id string) (ipcapi.JobRecord, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.called("find", id); err != nil {
		return ipcapi.JobRecord{}, err
	}
	r, ok := s.records[id]
	if !ok {
		return r, failure.New(failure.NotFound, "There is no such job")
	}
	return r, nil
}

func (s *fakeServer) Ending(_ context.Context, id string) error {
	if get(s, func() bool { r, ok := s.records[id]; return ok && !r.Own && !s.manages }) {
		return failure.New(failure.Forbidden, "Only who started the job can end it")
	}
	return s.note("ending", id)
}

func (s *fakeServer) Changed(_ context.Context, id string) error { return s.note("changed", id) }
func (s *fakeServer) Extend(_ context.Context, e ipcapi.JobExtension) error {
	return s.note("extend", fmt.Sprint(e.ID, " ", e.AddMs))
}

func (s *fakeServer) note(name, what string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.called(name, what)
}

func (s *fakeServer) Local(_ context.Context, r ipcapi.JobLocalReport) (ipcapi.JobLocalReply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.err["local"]; err != nil {
		return ipcapi.JobLocalReply{}, err
	}
	s.reports = append(s.reports, r)
	for _, j := range r.Jobs {
		if rec, ok := s.records[j.ID]; ok && rec.EngineID == j.EngineID && !rec.State.Final() {
			rec.State = j.State
			s.records[j.ID] = rec
		}
	}
	return ipcapi.JobLocalReply{End: s.end}, nil
}

func (s *fakeServer) Choices(_ context.Context, project ident.ProjectID) (ipcapi.JobChoiceReply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.choices, s.called("choices", string(project))
}

// get gives what do reads under the lock.
func get[T any](s *fakeServer, do func() T) T {
	s.mu.Lock()
	defer s.mu.Unlock()
	return do()
}

func (s *fakeServer) count(call string) int {
	return get(s, func() (n int) {
		for _, c := range s.calls {
			if c == call {
				n++
			}
		}
		return n
	})
}

// bench is a runner with everything around it.
type bench struct {
	t      testing.TB
	home   string
	drive  string // directory of drive 5123, which is the user's
	server *fakeServer
	local  *Local
	o      Options
	*Runner
}

func newBench(t testing.TB, change func(*bench)) *bench {
	t.Helper()
	b := &bench{t: t, home: t.TempDir(), drive: t.TempDir(), server: newFakeServer()}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	b.local = NewLocal(LocalOptions{Dir: filepath.Join(b.home, "state"), Server: b.server, Log: log})
	b.o = Options{
		Provider: provider, User: user, Home: b.home, Server: b.server, Engine: b.local, Log: log,
		Site: func() (jobrender.Site, error) {
			return jobrender.Site{Provider: provider, JobEngine: jobrender.EngineLocal}, nil
		},
		Follow: func() drives.Follow { return drives.FollowDrive },
		FindDrive: func(_ context.Context, id ident.DriveID) (providerapi.Drive, error) {
			if id != "5123" {
				return providerapi.Drive{}, failure.New(failure.NotFound, "This drive is not known here")
			}
			return b.driveOf(ipcapi.FoundDrive{ID: id, ProviderGeneratedID: provider + "-x\n" + b.drive}), nil
		},
		answerWithin: time.Minute,
	}
	b.o.Drive = b.driveOf
	b.server.grant.Base = &ipcapi.FoundDrive{ID: "5123", ProviderGeneratedID: provider + "-x\n" + b.drive}
	if change != nil {
		change(b)
	}
	b.Runner = New(b.o)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for _, j := range b.local.engine.Jobs() {
			_ = b.local.engine.Cancel(j.ID)
		}
		b.Runner.Close(ctx)
		eventually(t, func() bool {
			return !slices.ContainsFunc(b.local.engine.Jobs(), func(j localJob) bool { return !j.State.Final() })
		}, func() string { return "jobs do not end" })
		b.local.Close()
	})
	return b
}

func (b *bench) driveOf(f ipcapi.FoundDrive) providerapi.Drive {
	return providerapi.Drive{
		ID: f.ID, ProviderGeneratedID: f.ProviderGeneratedID,
		Specification: providerapi.DriveSpecification{Product: providerapi.ProductReference{Provider: provider}},
	}
}

func (b *bench) folder(id string) string { return filepath.Join(b.drive, "ucloud-jobs", id) }

func (b *bench) file(id, name string) string {
	raw, _ := os.ReadFile(filepath.Join(b.folder(id), name))
	return string(raw)
}

func (b *bench) create(id string, words ...string) (string, error) {
	return b.Create(context.Background(), time.Now(), newJob(id, words...))
}

// awaitState waits until the server knows a state of a job.
func (b *bench) awaitState(id string, want providerapi.JobState) {
	b.t.Helper()
	var got providerapi.JobState
	eventually(b.t, func() bool {
		got = get(b.server, func() providerapi.JobState { return b.server.records[id].State })
		return got == want
	}, func() string { return fmt.Sprintf("job %s is %s, not %s", id, got, want) })
}

// newJob is a job that runs a program with arguments.
func newJob(id string, words ...string) *providerapi.Job {
	var parts []providerapi.InvocationParameter
	for _, w := range words {
		parts = append(parts, providerapi.InvocationParameter{Type: providerapi.PartWord, Word: w})
	}
	ref := providerapi.ApplicationReference{Name: "example", Version: "1.0"}
	return &providerapi.Job{
		ID: id, Owner: providerapi.ResourceOwner{CreatedBy: user},
		Specification: providerapi.JobSpecification{
			Product: providerapi.ProductReference{ID: "cpu-1", Category: "cpu", Provider: provider}, Application: ref,
			Replicas: 1, Parameters: map[string]providerapi.AppParameterValue{}, TimeAllocation: &providerapi.SimpleDuration{Hours: 1},
		},
		Status: providerapi.JobStatus{State: providerapi.JobInQueue, ResolvedApplication: &providerapi.Application{
			Metadata:   providerapi.ApplicationMetadata{Name: ref.Name, Version: ref.Version},
			Invocation: providerapi.ApplicationInvocation{ApplicationType: providerapi.ApplicationBatch, Invocation: parts},
		}},
	}
}

func eventually(t testing.TB, ok func() bool, why func() string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(why())
		}
	}
}

func touch(t testing.TB, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}
