//go:build e2e

package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/accounts"
	"ucloud-im/internal/testkit/webclient"
)

// killer kills a random one of the parts at random moments, until it is halted.
type killer struct {
	kills map[string]int
	halt  func()
}

// kill begins. pause is the longest time between two kills; others than the parts named live.
func (w *world) kill(p *person, pause time.Duration, parts ...string) *killer {
	k := &killer{kills: map[string]int{}}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(rand.N(pause)):
			}
			part := parts[rand.IntN(len(parts))]
			k.kills[part]++
			switch part {
			case "instance":
				// Not all at once as at the end of a test: each of its processes once.
				for _, pid := range accounts.Processes(p.account.UID) {
					_ = syscall.Kill(pid, syscall.SIGKILL) // may be gone
				}
			case "server":
				w.server.signal(syscall.SIGKILL)
			case "gateway":
				w.gateway.signal(syscall.SIGKILL)
			}
		}
	})
	k.halt = sync.OnceFunc(func() { cancel(); wg.Wait() })
	w.t.Cleanup(k.halt)
	return k
}

// awhile is how long kills go on at most.
const awhile = 4 * time.Second

// patient tells whether a client may try again after an error: whatever happens to the parts, links stay valid.
func patient(t *testing.T, err error) {
	t.Helper()
	if se, ok := errors.AsType[*webclient.StatusError](err); ok && se.Status != http.StatusBadGateway && se.Status != http.StatusServiceUnavailable && se.Status != 449 {
		t.Fatalf("the link is refused: %v", err)
	}
	time.Sleep(50 * time.Millisecond)
}

// TestKillStorage kills instance, server and gateway in the middle of uploads, downloads, copies and deletions. Clients
// go on with the links that they have, and background tasks go on by themselves.
func TestKillStorage(t *testing.T) {
	w := newWorld(t, settings{instances: "restart: { max: 1000 }"})
	ada := w.addPerson("Ada#1815")
	w.running(ada)
	d := w.desk(ada)
	everything := []string{"instance", "server", "gateway"}

	t.Run("upload", func(t *testing.T) {
		d := d.in(t)
		source := t.TempDir()
		openWorkshop(t, source).folder("dropped", 0o755, func(s *workshop) {
			for i := range 30 {
				s.folder(fmt.Sprint("folder ", i), 0o755, func(s *workshop) {
					for j := range 40 {
						s.file(fmt.Sprintf("file %d\n", j), 0o644, string(pattern(i*j*97)))
					}
					s.file("large", 0o644, string(pattern(4<<20+i)))
				})
			}
		})
		files := laptop(t, source+"/dropped")
		endpoint := d.uploadTo("uploaded", "FOLDER", providerapi.ConflictRename).Endpoint
		k := w.kill(ada, 400*time.Millisecond, everything...)
		deadline := time.Now().Add(awhile)
		attempts := 0
		c := webclient.Client{Chunk: 1 << 20}
		upload := func() {
			for {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				res, err := c.Upload(ctx, endpoint, files)
				cancel()
				if attempts++; err == nil {
					if res.Completed != len(files) {
						t.Fatalf("%+v of %d files", res, len(files))
					}
					return
				}
				patient(t, err)
			}
		}
		for upload(); time.Now().Before(deadline); upload() {
			w.must(os.RemoveAll(d.local("uploaded/folder 7"))) // so that there is something to do
		}
		k.halt()
		upload()
		want, got := snapshot(t, source+"/dropped"), snapshot(t, d.local("uploaded"))
		for _, f := range files {
			if n := got[f.Path]; n.content != want[f.Path].content || n.modified != f.Modified*1e6 || n.mode != 0o660 {
				t.Errorf("%q is %+v instead of %+v", f.Path, n, want[f.Path])
			}
		}
		// What a killed instance was writing is hidden, and goes when it is a day old; nothing else is too much.
		hidden := drafts(t, d.local("uploaded"))
		folders := 31
		if len(got) != len(files)+folders+len(hidden) {
			t.Errorf("%d entries instead of %d", len(got), len(files)+folders+len(hidden))
		}
		t.Logf("%d attempts, kills: %v, hidden files of killed instances: %d", attempts, k.kills, len(hidden))
		if k.kills["instance"] == 0 && len(hidden) > 0 {
			t.Errorf("left behind although no instance was killed: %q", hidden)
		}
		if attempts < 5 {
			t.Errorf("only %d attempts: nothing was interrupted", attempts)
		}
		w.must(os.RemoveAll(d.local("uploaded")))
	})

	t.Run("upload without the end of an instance", func(t *testing.T) {
		// The instance lives: it notices the end of a connection, and removes what was not complete.
		d := d.in(t)
		testkit.Eventually(t, "an answer", func() bool { _, err := w.browse(ada, ada.home()); return err == nil })
		pid := w.instances()[ada.name].PID
		files := []webclient.File{memoryFile("", pattern(48<<20), time.Unix(1e9, 0))}
		endpoint := d.uploadTo("one", "FILE", providerapi.ConflictReplace).Endpoint
		cut := 0
		for range 4 {
			starts := w.gateway.startCount()
			sent := int64(0)
			at := rand.Int64N(40 << 20)
			c := webclient.Client{Chunk: 512 << 10, Sent: func(n int64) error {
				if sent += n; sent-n <= at && at < sent {
					w.gateway.signal(syscall.SIGKILL)
					w.server.signal(syscall.SIGKILL)
				}
				return nil
			}}
			if _, err := c.Upload(t.Context(), endpoint, files); err != nil {
				cut++
				if sent <= at {
					t.Errorf("the upload ended before anything was killed: %v", err)
					break
				}
			}
			testkit.Eventually(t, "the gateway to be back", func() bool { return w.gateway.startCount() > starts })
			testkit.Eventually(t, "an answer", func() bool { _, err := w.browse(ada, ada.home()); return err == nil })
			if _, err := os.Lstat(d.local("one")); err == nil {
				t.Error("an incomplete file has its name")
			}
		}
		var c webclient.Client
		testkit.Eventually(t, "the upload to come through", func() bool { _, err := c.Upload(t.Context(), endpoint, files); return err == nil })
		if data, err := os.ReadFile(d.local("one")); err != nil || sha256.Sum256(data) != sha256.Sum256(pattern(48<<20)) {
			t.Errorf("%d bytes arrived, %v", len(data), err)
		}
		testkit.Eventually(t, "all parts of files to be removed", func() bool { return len(drafts(t, d.dir)) == 0 })
		testkit.Eventually(t, "the instance to be known", func() bool { return w.instances()[ada.name].PID == pid })
		if cut == 0 {
			t.Error("no upload was interrupted")
		}
		w.must(os.Remove(d.local("one")))
	})

	t.Run("download", func(t *testing.T) {
		d := d.in(t)
		content := pattern(48 << 20)
		w.must(os.WriteFile(d.local("source"), content, 0o644))
		d.own("source")
		testkit.Eventually(t, "an answer", func() bool { _, err := w.browse(ada, ada.home()); return err == nil })
		endpoint := d.downloadFrom("source")
		k := w.kill(ada, 250*time.Millisecond, everything...)
		deadline := time.Now().Add(awhile)
		var wg sync.WaitGroup
		var interrupted, complete sync.Map
		for reader := range 3 {
			wg.Go(func() {
				for time.Now().Before(deadline) {
					h, offset, parts := sha256.New(), int64(0), 0
					for offset < int64(len(content)) {
						n, err := slowly(t.Context(), endpoint, offset, h)
						if offset += n; err != nil {
							parts++
							if se, ok := errors.AsType[*webclient.StatusError](err); ok && se.Status != http.StatusBadGateway && se.Status != http.StatusServiceUnavailable && se.Status != 449 {
								t.Errorf("the link is refused: %v", err)
								return
							}
							if errors.Is(err, errTooLate) {
								return
							}
							time.Sleep(50 * time.Millisecond)
						}
					}
					if [32]byte(h.Sum(nil)) != sha256.Sum256(content) {
						t.Error("the parts do not make the file")
					}
					complete.Store([2]int64{int64(reader), time.Now().UnixNano()}, true)
					if parts > 0 {
						interrupted.Store([2]int64{int64(reader), time.Now().UnixNano()}, true)
					}
				}
			})
		}
		time.AfterFunc(time.Until(deadline), k.halt)
		wg.Wait()
		k.halt()
		t.Logf("%d downloads, %d of them interrupted, kills: %v", count(&complete), count(&interrupted), k.kills)
		if count(&interrupted) == 0 {
			t.Error("no download was interrupted")
		}
		w.must(os.Remove(d.local("source")))
	})

	t.Run("copy and delete", func(t *testing.T) {
		d := d.in(t)
		openWorkshop(t, d.dir).folder("tree", 0o755, func(s *workshop) {
			for i := range 40 {
				s.folder(fmt.Sprint("folder ", i), 0o750, func(s *workshop) {
					for j := range 60 {
						s.file(fmt.Sprintf("file %d", j), 0o640, string(pattern(i*j*31)))
					}
					s.file("large", 0o600, string(pattern(3<<20+i)))
					s.link("link", "large")
				})
			}
		})
		d.own("tree")
		before := snapshot(t, d.local("tree"))
		served := func() {
			testkit.Eventually(t, "an answer", func() bool { _, err := w.browse(ada, ada.home()); return err == nil })
		}
		// Tasks of an instance that was lost together with the server have to wait until it is clear that it is gone, so
		// they all have to go through this at once.
		names := []string{"copy 0", "copy 1", "copy 2"}
		served()
		for _, name := range names {
			d.copy("tree", name, providerapi.ConflictReject, http.StatusOK)
		}
		k := w.kill(ada, 400*time.Millisecond, everything...)
		time.Sleep(3 * time.Second)
		k.halt()
		t.Logf("kills during copies: %v", k.kills)
		d.settled()
		for _, name := range names {
			same(t, name, before, snapshot(t, d.local(name)))
		}
		d.noDrafts()
		served()
		k = w.kill(ada, 300*time.Millisecond, everything...)
		w.eventually(d, http.MethodPost, "/files/trash", d.one("copy 0"))
		w.eventually(d, http.MethodPost, "/files/emptyTrash", d.one("Trash"))
		w.eventually(d, http.MethodDelete, "/files", d.removal("copy 1"))
		w.eventually(d, http.MethodDelete, "/files", d.removal("copy 2"))
		time.Sleep(time.Second)
		k.halt()
		t.Logf("kills during deletions: %v", k.kills)
		d.settled()
		for _, name := range names {
			if _, err := os.Lstat(d.local(name)); err == nil {
				t.Errorf("%s is still there", name)
			}
		}
		if left, err := os.ReadDir(d.local("Trash")); err != nil || len(left) > 0 {
			t.Errorf("left in the trash: %v, %v", left, err)
		}
		same(t, "the source", before, snapshot(t, d.local("tree")))
		d.noDrafts()
	})
	served := func() bool { _, err := w.browse(ada, ada.home()); return err == nil }
	testkit.Eventually(t, "an answer", served)
	if n := len(accounts.Processes(ada.account.UID)); n != 1 {
		t.Errorf("%d processes are left", n)
	}
}

func count(m *sync.Map) (n int) {
	m.Range(func(any, any) bool { n++; return true })
	return n
}

var errTooLate = errors.New("too late")

// slowly downloads from an offset on, as somebody with a slow line, and gives the number of bytes that arrived.
func slowly(ctx context.Context, endpoint string, offset int64, to io.Writer) (int64, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errTooLate)
	defer cancel()
	res, err := webclient.Download(ctx, endpoint, offset)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	var total int64
	for {
		n, err := io.CopyN(to, res.Body, 256<<10)
		total += n
		if errors.Is(err, io.EOF) && total == res.ContentLength {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		time.Sleep(time.Millisecond)
	}
}

// eventually makes a call as Core does, and again as a user would, until it is answered with a success. A removal whose
// answer was lost may have been done: then there is nothing left to do.
func (w *world) eventually(d *desk, method, path string, body any) {
	d.t.Helper()
	testkit.Eventually(d.t, path, func() bool {
		err := w.core.Call(context.Background(), d.who.name, method, "/ucloud/"+provider+path, body, nil)
		return err == nil || status(err) == http.StatusNotFound
	})
}

// anyTasks tells whether the operator's list has a task.
func anyTasks(t *testing.T, out string) bool {
	t.Helper()
	var list struct {
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("the list of tasks: %v in %s", err, out)
	}
	return len(list.Items) > 0
}

// settled waits until all tasks of the person have ended at Core, and demands that they are a success.
func (d *desk) settled() {
	d.t.Helper()
	testkit.Eventually(d.t, "all tasks to end", func() bool {
		out, err := d.w.cli("tasks", "list", "--json")
		return err == nil && !anyTasks(d.t, out)
	})
	// Uploads that broke off are tasks that have failed, whether somebody has begun them again or not.
	tasks := func() []providerapi.Task {
		return slices.DeleteFunc(d.w.core.Tasks(d.who.name), func(task providerapi.Task) bool { return strings.HasPrefix(text(task.Status.Title), "Upload of ") })
	}
	var all []providerapi.Task
	testkit.Eventually(d.t, "Core to know the end of all tasks", func() bool {
		all = tasks()
		if len(all) <= d.who.seen {
			return false
		}
		for _, task := range all[d.who.seen:] {
			if task.Status.State != providerapi.TaskSuccess && task.Status.State != providerapi.TaskFailure && task.Status.State != providerapi.TaskCancelled {
				return false
			}
		}
		return true
	})
	for _, task := range all[d.who.seen:] {
		if task.Status.State != providerapi.TaskSuccess {
			d.t.Errorf("the task %q ended as %s: %s", text(task.Status.Title), task.Status.State, text(task.Status.Progress))
		}
	}
	d.who.seen = len(all)
}
