package files

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/tasks"
	"ucloud-im/internal/testkit"
)

// fakeTasks runs tasks at once, in the call that submits them.
type fakeTasks struct {
	s      *Service
	keep   bool                  // do not run them
	check  func(steps int) error // what Checkpoint says; nil: go on
	specs  []tasks.Spec          // all of them
	jobs   []*fakeJob            // all of them
	kinds  map[string]bool       // registered
	failed error                 // what the last one ended with
}

type fakeJob struct {
	id      int64
	params  json.RawMessage
	check   func(int) error
	attempt int64
	mu      sync.Mutex
	steps   int
	summary string
	last    tasks.Progress
}

func (j *fakeJob) ID() int64               { return j.id }
func (j *fakeJob) Params() json.RawMessage { return j.params }
func (j *fakeJob) Progress(p tasks.Progress) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.last = p
}

func (j *fakeJob) Attempt() int64      { return max(j.attempt, 1) }
func (j *fakeJob) Summary(text string) { j.summary = text }
func (j *fakeJob) Checkpoint(context.Context) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.steps++
	if j.check == nil {
		return nil
	}
	return j.check(j.steps)
}

func (f *fakeTasks) Register(kind string, _ tasks.Runner) {
	if f.kinds == nil {
		f.kinds = map[string]bool{}
	}
	f.kinds[kind] = true
}

func (f *fakeTasks) Submit(ctx context.Context, s tasks.Spec) (int64, error) {
	if !f.kinds[s.Kind] {
		return 0, fmt.Errorf("kind %s is not registered", s.Kind)
	}
	f.specs = append(f.specs, s)
	f.jobs = append(f.jobs, &fakeJob{id: int64(len(f.jobs) + 1), params: s.Params, check: f.check})
	if !f.keep {
		f.failed = f.run(ctx, len(f.specs)-1)
	}
	return int64(len(f.specs)), nil
}

func (f *fakeTasks) run(ctx context.Context, i int) error {
	switch f.specs[i].Kind {
	case kindDelete:
		return f.s.runDelete(ctx, f.jobs[i])
	case kindCopy, kindMove:
		return f.s.runCopy(ctx, f.jobs[i])
	default:
		return f.s.runEmptyTrash(ctx, f.jobs[i])
	}
}

// newWorking makes a service with tasks, that knows the drive.
func newWorking(t *testing.T, base string) (*Service, *fakeTasks) {
	t.Helper()
	work := &fakeTasks{}
	s := newService(t, func(o *Options) { o.Tasks = work })
	work.s = s
	d := testDrive(base)
	must(s.drive(s.state.Load(), &d))(t)
	return s, work
}

func emptyOne(s *Service, base, rel string) error {
	return s.EmptyTrash(context.Background(), []providerapi.FileInDrive{inDrive(base, rel)})
}

// grow makes a tree with everything in it that must not be followed or waited for.
func grow(t *testing.T, top, outside string) {
	t.Helper()
	check(t, os.MkdirAll(filepath.Join(top, "a", "b"), 0o770))
	for i := range 300 {
		touch(t, filepath.Join(top, "a"), fmt.Sprintf("f%d\xff\n", i))
	}
	check(t, os.Symlink(outside, filepath.Join(top, "a", "out")))
	check(t, os.Symlink("..", filepath.Join(top, "a", "b", "up")))
	check(t, unix.Mkfifo(filepath.Join(top, "fifo"), 0o600))
	// Deeper than paths may be long, and than descriptors last.
	deep, err := unix.Open(top, unix.O_PATH|unix.O_DIRECTORY, 0)
	check(t, err)
	name := strings.Repeat("d", 40)
	for range 3 * 100 {
		check(t, unix.Mkdirat(deep, name, 0o770))
		next, err := unix.Openat(deep, name, unix.O_PATH|unix.O_DIRECTORY, 0)
		check(t, err)
		unix.Close(deep)
		deep = next
	}
	unix.Close(deep)
}

func TestDeleteTree(t *testing.T) {
	t.Parallel()
	base, outside := furnish(t)
	grow(t, filepath.Join(base, "full", "tree"), outside)
	s, work := newWorking(t, base)
	check(t, deleteOne(s, "full"))
	if work.failed != nil || len(work.specs) != 1 {
		t.Fatalf("%d tasks, %v", len(work.specs), work.failed)
	}
	spec := work.specs[0]
	if spec.Kind != kindDelete || spec.Title != "Deleting full" || !spec.CanCancel || !spec.CanPause {
		t.Errorf("task: %+v", spec)
	}
	if got := work.jobs[0].summary; got != fmt.Sprintf("%d files removed", 300+2+1+1) {
		t.Errorf("summary %q", got)
	}
	if content(base, "full") != "" {
		t.Error("it is still there")
	}
	if content(outside, "f") != "outside" || content(base, "in") != "link:full" || content(base, "a.txt") != "a.txt" {
		t.Error("something else is gone")
	}
	// The task may run again; then there is nothing left to do.
	check(t, work.run(context.Background(), 0))
}

func TestDeleteWithoutTasks(t *testing.T) {
	t.Parallel()
	base, _ := furnish(t)
	s := newService(t, nil)
	must(s.Browse(context.Background(), browseRequest(base, "", nil)))(t)
	if err := deleteOne(s, "full"); !failure.Is(err, failure.Invalid) || content(base, "full/f") != "full/f" {
		t.Errorf("got %v", err)
	}
	if err := emptyOne(s, base, "Trash"); !failure.Is(err, failure.Invalid) || content(base, "Trash/old") == "" {
		t.Errorf("got %v", err)
	}
}

// TestDeleteOnlyWhatWasMeant: by the time the task runs, the name may be that of something else.
func TestDeleteOnlyWhatWasMeant(t *testing.T) {
	t.Parallel()
	base, outside := furnish(t)
	s, work := newWorking(t, base)
	work.keep = true
	check(t, deleteOne(s, "full"))
	check(t, os.Rename(filepath.Join(base, "full"), filepath.Join(base, "kept")))
	for name, make := range map[string]func(path string) error{
		"folder": func(p string) error { return os.MkdirAll(filepath.Join(p, "other"), 0o770) },
		"link":   func(p string) error { return os.Symlink("kept", p) },
		"out":    func(p string) error { return os.Symlink(outside, p) },
		"file":   func(p string) error { return os.WriteFile(p, nil, 0o600) },
	} {
		check(t, make(filepath.Join(base, "full")))
		_ = work.run(context.Background(), 0)
		if content(base, "full") == "" && name == "folder" || content(base, "kept/f") != "full/f" || content(outside, "f") != "outside" {
			t.Errorf("%s: something else was deleted", name)
		}
		check(t, os.RemoveAll(filepath.Join(base, "full")))
	}
}

func TestCancelledDelete(t *testing.T) {
	t.Parallel()
	base, outside := furnish(t)
	grow(t, filepath.Join(base, "full", "tree"), outside)
	s, work := newWorking(t, base)
	for _, cause := range []error{tasks.ErrInterrupted, tasks.ErrCancelled} {
		work.check = func(steps int) error {
			if steps > 100 {
				return cause
			}
			return nil
		}
		check(t, deleteOne(s, "full"))
		if !errors.Is(work.failed, cause) || content(base, "full") == "" {
			t.Errorf("got %v", work.failed)
		}
	}
	work.check = nil
	if err := work.run(context.Background(), 0); !errors.Is(err, tasks.ErrInterrupted) {
		t.Errorf("the first one: %v", err)
	}
	work.jobs[0].check = nil
	check(t, work.run(context.Background(), 0))
	if content(base, "full") != "" {
		t.Error("it was not taken up again")
	}
}

// TestFailedDelete: what cannot be removed is counted, named, and no success. Another file system that is mounted in the
// tree is left alone.
func TestFailedDelete(t *testing.T) {
	t.Parallel()
	base, _ := furnish(t)
	far := filepath.Join(base, "full", "sub")
	mountSmall(t, far, "size=1m")
	check(t, os.WriteFile(filepath.Join(far, "kept"), []byte("kept"), 0o600))
	s, work := newWorking(t, base)
	check(t, deleteOne(s, "full"))
	if !failure.Is(work.failed, failure.Conflict) || failure.Why(work.failed) != "1 of 2 files failed: the file is in use (full/sub)" {
		t.Errorf("got %v", work.failed)
	}
	if got := work.jobs[0].last.Body; got != "full/sub: the file is in use" {
		t.Errorf("body %q", got)
	}
	if content(base, "full/sub/kept") != "kept" || content(base, "full/f") != "" {
		t.Error("the wrong thing was removed")
	}
}

// mountSmall mounts a tmpfs, until the test ends.
func mountSmall(t *testing.T, dir, options string) {
	t.Helper()
	check(t, os.MkdirAll(dir, 0o770))
	testkit.Mount(t, "tmpfs", dir, "tmpfs", 0, options)
}

func TestEmptyTrash(t *testing.T) {
	t.Parallel()
	base, outside := furnish(t)
	grow(t, filepath.Join(base, "Trash", "tree"), outside)
	check(t, os.Symlink("Trash", filepath.Join(base, "bin")))
	check(t, os.Mkdir(filepath.Join(base, "full", "Trash"), 0o770))
	touch(t, filepath.Join(base, "full", "Trash"), "x")
	s, work := newWorking(t, base)
	for rel, want := range map[string]failure.Kind{
		"": failure.Invalid, "full": failure.Invalid, "full/Trash": failure.Invalid, "bin": failure.Invalid, "a.txt": failure.Invalid,
		"Trash/tree": failure.Invalid, "none": failure.NotFound, "out": failure.Invalid, "out/f": failure.Forbidden, "self": failure.Invalid,
		"../Trash": failure.Invalid,
	} {
		if err := emptyOne(s, base, rel); !failure.Is(err, want) {
			t.Errorf("%s: %v", rel, err)
		}
	}
	item := inDrive(base, "Trash")
	item.ResolvedCollection = testDrive(base, providerapi.PermissionRead)
	if err := s.EmptyTrash(context.Background(), []providerapi.FileInDrive{item}); !failure.Is(err, failure.Forbidden) {
		t.Errorf("read only: %v", err)
	}
	if len(work.specs) != 0 || content(base, "Trash/old") != "Trash/old" {
		t.Fatal("something was removed")
	}

	work.keep = true
	check(t, emptyOne(s, base, "Trash"))
	// What comes into the trash before the task has its turn was not meant.
	time.Sleep(50 * time.Millisecond) // more than a tick of the file system's clock
	check(t, trashOne(s, base, "a.txt"))
	check(t, trashOne(s, base, "dir"))
	check(t, work.run(context.Background(), 0))
	var left []string
	for _, e := range must(os.ReadDir(filepath.Join(base, "Trash")))(t) {
		left = append(left, e.Name())
	}
	if fmt.Sprint(left) != "[.ucloud-origin a.txt dir]" {
		t.Errorf("in the trash is %q", left)
	}
	if content(outside, "f") != "outside" || content(base, "full/f") != "full/f" || content(base, "full/Trash/x") != "" || content(base, "full/Trash") != "dir" {
		t.Error("something else has changed")
	}
	work.keep = false
	check(t, emptyOne(s, base, "self/Trash"))
	if left := must(os.ReadDir(filepath.Join(base, "Trash")))(t); len(left) != 0 || work.failed != nil {
		t.Errorf("%d things are left, %v", len(left), work.failed)
	}
}

// TestEmptyTrashAgain takes the work up after a part of a folder is gone, which has changed its time.
func TestEmptyTrashAgain(t *testing.T) {
	t.Parallel()
	base, outside := furnish(t)
	grow(t, filepath.Join(base, "tree"), outside)
	s, work := newWorking(t, base)
	check(t, trashOne(s, base, "tree"))
	work.keep = true
	check(t, emptyOne(s, base, "Trash"))
	time.Sleep(50 * time.Millisecond) // more than a tick of the file system's clock
	touch(t, filepath.Join(base, "Trash", "tree"), "by somebody else")
	check(t, trashOne(s, base, "dir"))
	touch(t, filepath.Join(base, "Trash", "dir"), "later")
	check(t, work.run(context.Background(), 0))
	if work.failed != nil || content(base, "Trash/tree") != "" || content(base, "Trash/dir") != "dir" {
		t.Errorf("the tree is %q, what came later is %q, %v", content(base, "Trash/tree"), content(base, "Trash/dir"), work.failed)
	}
}
