package transfers

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/tasks"
)

func sum(b []byte) []byte { s := sha256.Sum256(b); return s[:] }

// torture are names that something on the way may stumble over.
func torture() map[string]string {
	tree := map[string]string{
		"plain.txt": "plain", "empty": "", "deep/er/and/deeper/still.txt": "deep", "space in name ": "s", "-rf": "dash", "*?[]{}'\"`$()": "shell",
		"new\nline": "n", "tab\tand\x01control\x7f": "c", "back\\slash": "b", "\xff\xfe not utf8 \x80": "bytes", "ünïcödé/é/e\u0301": "nfc and nfd",
		"\U0010FE80": "private use", strings.Repeat("x", 255): "long", "...": "dots", ".hidden/.file": "hidden", "con": "windows", "a:b": "colon", "%2e%2e": "percent",
		"sizes/16k": content(1, 16<<10), "sizes/64k": content(2, 64<<10), "sizes/64k+1": content(3, 64<<10+1), "sizes/256k": content(4, 256<<10), "sizes/3M": content(5, 3<<20+17),
	}
	for i := range 700 {
		tree[fmt.Sprintf("many/%03d/%d.dat", i%7, i)] = content(uint64(i), i%50)
	}
	long := strings.Repeat(strings.Repeat("d", 100)+"/", 30) // descriptors: more levels than are kept open
	tree["levels/"+long+"end"] = "bottom"
	return tree
}

// TestTransfer sends a folder, and it arrives: the same names, bytes and times. The destination's task and session end.
func TestTransfer(t *testing.T) {
	t.Parallel()
	a, b := newSite(t, "a", nil), newSite(t, "b", nil)
	plant(t, a.dir+"/data", torture())
	j := steps(t, a, b, "/x/../data//", "/inbox")
	began := time.Now()
	if err := a.transfer.runSend(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	t.Logf("%v for %d files", time.Since(began), len(torture()))
	if d := cmp.Diff(grown(t, a.dir+"/data"), grown(t, b.dir+"/inbox")); d != "" {
		t.Error(d)
	}
	if want := fmt.Sprintf("%d files transferred", len(torture())); !strings.HasPrefix(j.summary, want) || strings.Contains(j.summary, "left out") {
		t.Errorf("summary %q", j.summary)
	}
	last := j.progress[len(j.progress)-1]
	if last.Percent != 100 {
		t.Errorf("progress %+v", last)
	}
	if o, text := b.board.outcome(); o != ipcapi.TaskSucceeded || text != fmt.Sprintf("%d files received from a", len(torture())) {
		t.Errorf("the destination's task ended as %q, %q", o, text)
	}
	if n := b.sessions.open(ipcapi.PurposeTransfer); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
	all := append(a.board.all(), b.board.all()...)
	if len(all) != 2 || all[0].Title != "Transferring data to another provider" || all[1].Title != "Receiving inbox from a" {
		t.Errorf("tasks %+v", all)
	}
	for _, s := range all {
		if s.Icon != "heroPaperAirplane" || !s.CanCancel || s.CanPause != (s.Kind == kindSend) {
			t.Errorf("task %+v", s)
		}
	}
	noDebris(t, b.dir)
}

func noDebris(tb testing.TB, dir string) {
	tb.Helper()
	for name := range grown(tb, dir) {
		if strings.Contains(name, ".ucloud-upload-") {
			tb.Errorf("left behind: %s", name)
		}
	}
}

// TestSingleFile: a file, an empty one, and an empty folder.
func TestSingleFile(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int{"large": 5 << 20, "small": 5, "empty": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := newSite(t, "a", nil), newSite(t, "b", nil)
			plant(t, a.dir, map[string]string{"file": content(7, size)})
			j := steps(t, a, b, "/file", "/copy")
			if err := a.transfer.runSend(t.Context(), j); err != nil {
				t.Fatal(err)
			}
			if got, want := grown(t, b.dir)["copy"], grown(t, a.dir)["file"]; got != want {
				t.Errorf("%q, want %q", got, want)
			}
			if !strings.HasPrefix(j.summary, "1 file transferred") {
				t.Error(j.summary)
			}
		})
	}
	t.Run("empty folder", func(t *testing.T) {
		t.Parallel()
		a, b := newSite(t, "a", nil), newSite(t, "b", nil)
		if err := os.Mkdir(a.dir+"/none", 0o777); err != nil {
			t.Fatal(err)
		}
		if err := a.transfer.runSend(t.Context(), steps(t, a, b, "/none", "/none")); err != nil {
			t.Error(err)
		}
		if o, _ := b.board.outcome(); o != ipcapi.TaskSucceeded {
			t.Error(o)
		}
	})
}

// TestReported: what is not sent is said, and does not keep the rest from being sent.
func TestReported(t *testing.T) {
	t.Parallel()
	a, b := newSite(t, "a", nil), newSite(t, "b", nil)
	plant(t, a.dir+"/data", map[string]string{"fine": "fine", "sub/fine": "fine", "taken/x": "x", ".f.ucloud-upload-0123456789abcdef": "draft"})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Symlink("fine", a.dir+"/data/link"))
	must(os.Symlink("/etc", a.dir+"/data/outside"))
	must(unix.Mkfifo(a.dir+"/data/fifo", 0o600))
	must(os.WriteFile(b.dir+"/taken", nil, 0o600))
	j := steps(t, a, b, "/data", "/in")
	must(os.MkdirAll(b.dir+"/in", 0o700))
	must(os.WriteFile(b.dir+"/in/taken", nil, 0o600)) // a file where a folder is needed
	must(a.transfer.runSend(t.Context(), j))
	if want := "2 links left out, 1 special file left out"; !strings.Contains(j.summary, want) || !strings.HasPrefix(j.summary, "2 files transferred") {
		t.Errorf("summary %q", j.summary)
	}
	// The protocol does not tell the source that a file could not be stored; the destination tells its own user.
	if o, text := b.board.outcome(); o != ipcapi.TaskFailed || !strings.Contains(text, "1 file not stored") || !strings.Contains(text, "taken/x") {
		t.Errorf("%q %q", o, text)
	}
	if _, err := os.Lstat(b.dir + "/in/link"); err == nil {
		t.Error("a link was sent")
	}
}

// TestPauseAndInterrupt act within a second, whatever the destination does, and what was sent stays.
func TestPauseAndInterrupt(t *testing.T) {
	t.Parallel()
	a, b := newSite(t, "a", nil), newSite(t, "b", nil)
	tree := map[string]string{}
	for i := range 3000 {
		tree[fmt.Sprintf("%d/%d", i%10, i)] = content(uint64(i), 2000)
	}
	plant(t, a.dir+"/data", tree)
	j := steps(t, a, b, "/data", "/in")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.transfer.runSend(ctx, j) }()
	eventually(t, "files to arrive", func() bool { return len(grown(t, b.dir)) > 20 })
	j.pause()
	began := time.Now()
	eventually(t, "the task to stand", j.stands)
	if d := time.Since(began); d > 30*time.Second { // generous: it would be minutes if it were not noticed
		t.Errorf("it stood after %v", d)
	}
	eventually(t, "connections to be gone", func() bool { _, ok := b.uploads.Transfer(refIn(b)); return !ok })
	before := len(grown(t, b.dir))
	time.Sleep(300 * time.Millisecond)
	if n := len(grown(t, b.dir)); n != before {
		t.Errorf("%d files while it was paused", n-before)
	}
	j.resume()
	eventually(t, "more files", func() bool { return len(grown(t, b.dir)) > before })
	began = time.Now()
	cancel(tasks.ErrInterrupted)
	if err := <-done; !errors.Is(err, tasks.ErrInterrupted) || time.Since(began) > 30*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
	// What was under way is still being written down at the other end.
	eventually(t, "connections to be gone once more", func() bool { _, ok := b.uploads.Transfer(refIn(b)); return !ok })
	eventually(t, "no debris", func() bool {
		for name := range grown(t, b.dir) {
			if strings.Contains(name, ".ucloud-upload-") {
				return false
			}
		}
		return true
	})
	// Taken up again it goes on with what is missing.
	had := int64(len(grown(t, b.dir)))
	j2 := &fakeJob{params: j.params}
	if err := a.transfer.runSend(t.Context(), j2); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(grown(t, a.dir+"/data"), grown(t, b.dir+"/in")); d != "" {
		t.Error(d)
	}
	if want := fmt.Sprintf("%d files transferred", 3000-had); !strings.HasPrefix(j2.summary, want) {
		t.Errorf("%q, want %q", j2.summary, want)
	}
}

// refIn is the ref of the only transfer that a site has seen.
func refIn(s *site) string {
	s.transfer.mu.Lock()
	defer s.transfer.mu.Unlock()
	for ref := range s.transfer.incoming {
		return ref
	}
	return ""
}

// TestCancelledAtDestination: the connections end at once, and the source learns that the session is gone.
func TestCancelledAtDestination(t *testing.T) {
	t.Parallel()
	a, b := newSite(t, "a", nil), newSite(t, "b", nil)
	tree := map[string]string{}
	for i := range 40 {
		tree[fmt.Sprint(i)] = content(uint64(i), 1<<20)
	}
	plant(t, a.dir+"/data", tree)
	j := steps(t, a, b, "/data", "/in")
	var now atomic.Int64
	a.transfer.o.Now = func() time.Time { return time.Unix(1_700_000_000+now.Add(60), 0) } // a minute for each look
	done := make(chan error, 1)
	go func() { done <- again(t.Context(), a.transfer, j) }()
	eventually(t, "files to arrive", func() bool { return len(grown(t, b.dir)) > 3 })
	// What the server does when the task is cancelled.
	key := b.board.all()[0].Key
	b.board.mu.Lock()
	b.board.ended[string(key)] = true
	b.board.mu.Unlock()
	b.sessions.mu.Lock()
	clear(b.sessions.sessions)
	b.sessions.mu.Unlock()
	err := <-done
	if !failure.Is(err, failure.NotFound) || !strings.Contains(failure.Why(err), "may have been cancelled there") {
		t.Error(err)
	}
	eventually(t, "no connections", func() bool { _, ok := b.uploads.Transfer(refOf(key, "a")); return !ok })
	noDebris(t, b.dir)
	if n := len(grown(t, b.dir)); n >= 40 {
		t.Errorf("all %d files arrived", n)
	}
	eventually(t, "the transfer to be forgotten", func() bool {
		b.transfer.mu.Lock()
		defer b.transfer.mu.Unlock()
		return len(b.transfer.incoming) == 0
	})
}

// TestCancelledAtSource: the destination hears of it, if it knows how; nothing half is left.
func TestCancelledAtSource(t *testing.T) {
	t.Parallel()
	a, b := newSite(t, "a", nil), newSite(t, "b", nil)
	tree := map[string]string{}
	for i := range 60 {
		tree[fmt.Sprint(i)] = content(uint64(i), 1<<20)
	}
	plant(t, a.dir+"/data", tree)
	j := steps(t, a, b, "/data", "/in")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.transfer.runSend(ctx, j) }()
	eventually(t, "files to arrive", func() bool { return len(grown(t, b.dir)) > 3 })
	began := time.Now()
	cancel(tasks.ErrCancelled)
	if err := <-done; !errors.Is(err, tasks.ErrCancelled) || time.Since(began) > 1500*time.Millisecond {
		t.Errorf("%v after %v", err, time.Since(began))
	}
	eventually(t, "the destination's task to end", func() bool { o, _ := b.board.outcome(); return o == ipcapi.TaskCancelled })
	if _, text := b.board.outcome(); text != "The transfer was cancelled at a" {
		t.Error(text)
	}
	eventually(t, "the session to end", func() bool { return b.sessions.open(ipcapi.PurposeTransfer) == 0 })
}

// TestMaxSize: both sides keep to their own limit.
func TestMaxSize(t *testing.T) {
	t.Parallel()
	small := func(s *Settings) { s.MaxBytes = 1 << 20 }
	for name, limits := range map[string][2]func(*Settings){"source": {small, nil}, "destination": {nil, small}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := newSite(t, "a", limits[0]), newSite(t, "b", limits[1])
			tree := map[string]string{}
			for i := range 100 {
				tree[fmt.Sprint(i)] = content(uint64(i), 100_000)
			}
			plant(t, a.dir+"/data", tree)
			j := steps(t, a, b, "/data", "/in")
			if name == "source" {
				err := a.transfer.runSend(t.Context(), j)
				if !failure.Is(err, failure.TooLarge) || !strings.Contains(failure.Why(err), "1.05 MB") {
					t.Error(err)
				}
				return
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			if a.transfer.runSend(ctx, j) == nil {
				return // faster than the watch
			}
			if o, text := b.board.outcome(); o != ipcapi.TaskFailed || !strings.Contains(text, "larger than this provider allows") {
				t.Errorf("%q %q", o, text)
			}
		})
	}
}

// TestLargeTree: many files and folders, with few descriptors.
func TestLargeTree(t *testing.T) {
	t.Parallel()
	a, b := newSite(t, "a", nil), newSite(t, "b", nil)
	tree := map[string]string{}
	for i := range 4000 {
		tree[fmt.Sprintf("d%d/s%d/%d", i%40, i%7, i)] = ""
	}
	plant(t, a.dir+"/data", tree)
	deep := a.dir + "/data" + strings.Repeat("/d", 300)
	if err := os.MkdirAll(deep, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(deep+"/bottom", []byte("x"), 0o666); err != nil {
		t.Fatal(err)
	}
	var most atomic.Int64
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				n := int64(0)
				for _, fd := range openIn(a.dir + "/data") {
					_ = fd
					n++
				}
				most.Store(max(most.Load(), n))
			}
		}
	}()
	j := steps(t, a, b, "/data", "/in")
	err := a.transfer.runSend(t.Context(), j)
	close(stop)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(len(grown(t, a.dir+"/data")), len(grown(t, b.dir+"/in"))); d != "" {
		t.Error(d)
	}
	if n := most.Load(); n > walkOpen+30 {
		t.Errorf("%d descriptors at a time", n)
	}
	if left := openIn(a.dir); len(left) > 0 {
		t.Errorf("still open: %v", left)
	}
}

// openIn lists what is open below a directory.
func openIn(dir string) (out []string) {
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(to, dir) {
			out = append(out, to)
		}
	}
	return out
}

// TestFileThatKeepsChanging: it is sent again once or twice, then reported, and the rest is there.
func TestFileThatKeepsChanging(t *testing.T) {
	t.Parallel()
	a, b := newSite(t, "a", nil), newSite(t, "b", nil)
	plant(t, a.dir+"/data", map[string]string{"fine": "fine", "log": content(1, 3<<20)})
	f, err := os.OpenFile(a.dir+"/data/log", os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Microsecond):
				f.WriteString("one more line\n")
			}
		}
	}()
	j := steps(t, a, b, "/data", "/in")
	err = a.transfer.runSend(t.Context(), j)
	close(stop)
	<-stopped
	f.Close()
	if !failure.Is(err, failure.Conflict) || !strings.Contains(failure.Why(err), "changed while it was being sent (log)") {
		t.Errorf("%v, %s", err, j.summary)
	}
	if got := grown(t, b.dir+"/in"); !strings.HasPrefix(got["fine"], "fine") {
		t.Errorf("%v", got)
	}
	noDebris(t, b.dir)
}

// TestSwapRace: while folders and files of the source are exchanged for links that lead out of it, nothing from outside
// is sent.
func TestSwapRace(t *testing.T) {
	t.Parallel()
	a, b := newSite(t, "a", nil), newSite(t, "b", nil)
	outside := t.TempDir()
	const secret = "SECRET"
	tree, other := map[string]string{}, map[string]string{}
	for i := range 300 {
		tree[fmt.Sprintf("dir/sub/%d", i)] = fmt.Sprintf("fine %d", i)
		other[fmt.Sprintf("sub/%d", i)] = secret
	}
	plant(t, a.dir+"/data", tree)
	plant(t, outside, other)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		dir := a.dir + "/data/dir"
		file := a.dir + "/data/dir/sub/7"
		for {
			select {
			case <-stop:
				return
			default:
			}
			os.Rename(dir, a.dir+"/aside")
			os.Symlink(outside, dir)
			os.Remove(dir)
			os.Rename(a.dir+"/aside", dir)
			os.Rename(file, a.dir+"/file")
			os.Symlink(outside+"/sub/7", file)
			os.Remove(file)
			os.Rename(a.dir+"/file", file)
		}
	}()
	for i := range 6 {
		j := steps(t, a, b, "/data", fmt.Sprintf("/in%d", i))
		if err := a.transfer.runSend(t.Context(), j); err != nil && failure.KindOf(err) == failure.Internal {
			t.Error(err)
		}
	}
	close(stop)
	<-stopped
	for name, text := range grown(t, b.dir) {
		if strings.HasPrefix(text, secret) {
			t.Fatalf("%s came from outside", name)
		}
	}
}

// TestCuts cuts all connections at random byte offsets, again and again, and everything arrives.
func TestCuts(t *testing.T) {
	t.Parallel()
	cuts := 180
	if testing.Short() || raceEnabled {
		cuts = 25
	}
	a, b := newSite(t, "a", nil), newSite(t, "b", nil)
	tree := map[string]string{}
	total := 0
	for i := range 60 {
		size := (i * i * 37) % 40_000
		if i%20 == 0 {
			size = 300_000
		}
		total += size
		tree[fmt.Sprintf("%d/%d", i%5, i)] = content(uint64(i), size)
	}
	plant(t, a.dir+"/data", tree)
	rng := newRand(1)
	for round := 0; b.listener.count() < cuts; round++ {
		target := fmt.Sprintf("/in%d", round)
		j := steps(t, a, b, "/data", target, []string{protocolBuiltIn, protocolChecked}[round%2])
		b.listener.cutOften(func() int64 { return 1 + rng.Int64N(int64(total)/4) })
		// Large files need a stretch without a cut.
		calm := time.AfterFunc(time.Second, func() { b.listener.cutOften(nil) })
		if err := again(t.Context(), a.transfer, j); err != nil {
			t.Fatal(err)
		}
		calm.Stop()
		b.listener.cutOften(nil)
		if d := cmp.Diff(grown(t, a.dir+"/data"), grown(t, b.dir+target)); d != "" {
			t.Fatalf("after %d cuts (%q): %s\n%+v", b.listener.count(), j.summary, d, b.board.updates[max(0, len(b.board.updates)-2):])
		}
		t.Logf("%d cuts", b.listener.count())
	}
	noDebris(t, b.dir)
}
