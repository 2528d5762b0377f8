package taskserver

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/outbox"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/providerapi/apischema"
	"ucloud-im/internal/store"
	"ucloud-im/internal/tasks"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/storetest"
)

const (
	ada  = ident.UCloudUser("AdaLovelace#4821")
	bob  = ident.UCloudUser("Bob#0002")
	eve  = ident.UCloudUser("Eve#0666") // mapped, and never named by Core
	eve2 = ident.UID(3_900_000_203)

	uidAda  = ident.UID(3_900_000_201)
	uidBob  = ident.UID(3_900_000_202)
	uidEve  = eve2
	uidNone = ident.UID(3_900_000_209)
	uidOp   = ident.UID(3_900_000_210)
)

func TestMain(m *testing.M) {
	if os.Getenv(crashEnv) != "" {
		crashChild()
		return
	}
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("database/sql.(*DB).connectionOpener"))
}

// coreTask is a record at the fake Core.
type coreTask struct {
	providerapi.Task
	posts []providerapi.TaskStatus
}

func (c coreTask) last() providerapi.TaskStatus { return c.Status }

// fakeCore answers as recorded in recordings/13, and checks every request against Core's description.
type fakeCore struct {
	t   testing.TB
	url string

	mu    sync.Mutex
	tasks map[int64]*coreTask
	order []string // "create 1", "post 1 RUNNING", …
	// before and after are called around the effect of a request; an answer of theirs replaces Core's.
	before, after func(op string) (status int)
}

func newCore(t testing.TB) *fakeCore {
	c := &fakeCore{t: t, tasks: map[int64]*coreTask{}}
	srv := httptest.NewServer(c)
	t.Cleanup(srv.Close)
	c.url = srv.URL
	return c
}

// cut as an answer of a hook ends the connection instead.
const cut = -1

func (c *fakeCore) hook(f func(string) int, op string, w http.ResponseWriter) bool {
	if f == nil {
		return true
	}
	switch st := f(op); st {
	case 0:
		return true
	case cut:
		panic(http.ErrAbortHandler)
	default:
		w.WriteHeader(st)
		_, _ = io.WriteString(w, `{"why":"injected"}`)
		return false
	}
}

func (c *fakeCore) hooks(before, after func(string) int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.before, c.after = before, after
}

func (c *fakeCore) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	op, ok := apischema.Core(c.t).Find(r.Method, r.URL.Path)
	if !ok {
		c.t.Errorf("%s %s is no call of Core", r.Method, r.URL.Path)
	}
	apischema.Core(c.t).Request(c.t, op, body)
	c.mu.Lock()
	before, after := c.before, c.after
	c.mu.Unlock()
	if !c.hook(before, op, w) {
		return
	}
	status, answer := c.effect(op, body)
	if !c.hook(after, op, w) {
		return
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer)
}

func (c *fakeCore) effect(op string, body []byte) (int, any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch op {
	case "tasks.create":
		var req providerapi.CreateTask
		if err := json.Unmarshal(body, &req); err != nil {
			c.t.Error(err)
		}
		if req.User == eve {
			c.t.Errorf("Core is told of a user it has not named")
			return 404, providerapi.Empty{}
		}
		id := int64(len(c.tasks) + 1)
		task := providerapi.Task{
			TaskID: id, CreatedAt: providerapi.MillisOf(time.Now()), ModifiedAt: providerapi.MillisOf(time.Now()), CreatedBy: req.User,
			Provider: "hpc-example", Specification: req.TaskSpecification, Icon: req.Icon,
			Status: providerapi.TaskStatus{State: providerapi.TaskInQueue, Title: req.Title, Body: req.Body, Progress: req.Progress},
		}
		c.tasks[id] = &coreTask{Task: task}
		c.order = append(c.order, "create "+*req.Title)
		return 200, task
	case "tasks.postStatus":
		var req providerapi.PostTaskStatus
		if err := json.Unmarshal(body, &req); err != nil {
			c.t.Error(err)
		}
		task := c.tasks[req.Update.TaskID]
		if task == nil {
			return 404, map[string]any{"why": "Unknown task requested"}
		}
		for name, text := range map[string]*string{"title": req.Update.NewStatus.Title, "progress": req.Update.NewStatus.Progress} {
			if text == nil || len(*text) > 1024 {
				c.t.Errorf("%s is erased or too long: %s", name, body)
			}
		}
		task.Status, task.posts = req.Update.NewStatus, append(task.posts, req.Update.NewStatus)
		c.order = append(c.order, "post "+*req.Update.NewStatus.Title+" "+string(req.Update.NewStatus.State))
		return 200, providerapi.Empty{}
	}
	return 404, providerapi.Empty{}
}

// all are the records with a title.
func (c *fakeCore) all(title string) (out []coreTask) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.tasks {
		if *t.Status.Title == title {
			cp := *t
			cp.posts = slices.Clone(t.posts)
			out = append(out, cp)
		}
	}
	return out
}

// one is the only record with a title; zero if there is none yet.
func (c *fakeCore) one(title string) coreTask {
	all := c.all(title)
	if len(all) > 1 {
		c.t.Errorf("%d records of %q at Core", len(all), title)
	}
	if len(all) == 0 {
		return coreTask{}
	}
	return all[0]
}

type token struct{}

func (token) Token(context.Context) (string, error)         { return "a.b.c", nil }
func (token) Renew(context.Context, string) (string, error) { return "a.b.c", nil }

func coreClient(t testing.TB, url string) *coreapi.Client {
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	c, err := coreapi.New(coreapi.Options{
		BaseURL: url, Provider: "hpc-example", HTTP: &http.Client{Transport: transport}, Tokens: token{}, Timeout: testkit.Patience,
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// world is a server with its tasks.
type world struct {
	t      testing.TB
	o      store.Options
	core   *fakeCore
	socket string
	clock  func() time.Time
	limits [2]int
	grace  time.Duration

	mu     sync.Mutex
	woken  []ident.UCloudUser
	wake   func(ident.UCloudUser) error
	gone   map[ident.UID]bool // mappings that have ended
	server *server
}

// server is one life of the server.
type server struct {
	store *store.Store
	svc   *Service
	stop  func()
}

// socketPath is in a directory that other accounts reach.
func socketPath(t testing.TB) string {
	dir := t.TempDir()
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		_ = os.Chmod(d, 0o755)
	}
	return filepath.Join(dir, "s")
}

func newWorld(t testing.TB, change func(*world)) *world {
	return newWorldOn(t, storetest.SQLiteOptions(t), change)
}

func newWorldOn(t testing.TB, o store.Options, change func(*world)) *world {
	t.Helper()
	w := &world{t: t, o: o, core: newCore(t), socket: socketPath(t), gone: map[ident.UID]bool{}, clock: time.Now}
	if change != nil {
		change(w)
	}
	w.start()
	t.Cleanup(w.kill)
	return w
}

func (w *world) user(uid ident.UID) (ident.UCloudUser, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	u, ok := map[ident.UID]ident.UCloudUser{uidAda: ada, uidBob: bob, uidEve: eve}[uid]
	return u, ok && !w.gone[uid]
}

func (w *world) wakeUser(_ context.Context, u ident.UCloudUser) error {
	w.mu.Lock()
	w.woken = append(w.woken, u)
	wake := w.wake
	w.mu.Unlock()
	if wake != nil {
		return wake(u)
	}
	return nil
}

// start begins a life of the server.
func (w *world) start() {
	w.t.Helper()
	ctx := context.Background()
	st, err := store.Open(ctx, w.o)
	if err != nil {
		w.t.Fatal(err)
	}
	err = st.Update(ctx, func(tx *store.Tx) error {
		return errors.Join(tx.SeeUser(ada, time.Now()), tx.SeeUser(bob, time.Now()))
	})
	if err != nil {
		w.t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	s := New(Options{
		Store: st, Core: coreClient(w.t, w.core.url), User: w.user, Wake: w.wakeUser, Log: log, MaxPerUser: w.limits[0],
		MaxGlobal: w.limits[1], Grace: w.grace, Now: w.clock,
	})
	s.createAgain, s.sealAfter = 300*time.Millisecond, 100*time.Millisecond
	box := outbox.New(st, outbox.Options{Log: log, Backoff: outbox.Backoff{Initial: 10 * time.Millisecond, Max: 100 * time.Millisecond}})
	srv := ipc.NewServer(ipc.ServerOptions{
		Authorize: func(_ context.Context, p ipc.Peer) (ipc.Grant, error) {
			user, ok := w.user(p.UID())
			return ipc.Grant{User: user, Mapped: ok, Operator: p.UID() == uidOp, Root: p.UID() == 0}, nil
		},
		Log: log,
	})
	s.Register(srv, box)
	l, err := ipc.Listen(w.socket)
	if err != nil {
		w.t.Fatal(err)
	}
	run, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(run, l) })
	wg.Go(func() { _ = s.Run(run) })
	wg.Go(func() { _ = box.Run(run) })
	w.server = &server{store: st, svc: s, stop: sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		if err := st.Close(); err != nil {
			w.t.Error(err)
		}
	})}
}

// kill ends the server's life.
func (w *world) kill() { w.server.stop() }

// dial connects as another account. SO_PEERCRED is what the kernel knows about the thread that connects, so one thread
// gives up its identity and ends.
func (w *world) dial(uid ident.UID) (c *ipc.Client, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if syscall.Gettid() == os.Getpid() {
			defer runtime.UnlockOSThread() // the first thread stands for the process, and cannot end
			c, err = w.dial(uid)
			return
		}
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
			err = e
			return
		}
		c, err = ipc.Dial(context.Background(), w.socket, ipc.DialOptions{ServerUID: func(ident.UID) bool { return true }})
	}()
	<-done
	return c, err
}

// client is a connection as an account, closed at the end of the test.
func (w *world) client(uid ident.UID) *ipc.Client {
	w.t.Helper()
	c, err := w.dial(uid)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// instance is a manager of tasks that finds the server again.
type instance struct {
	*tasks.Manager
	w    *world
	uid  ident.UID
	mu   sync.Mutex
	c    *ipc.Client
	busy int
}

func (w *world) instance(uid ident.UID, runners map[string]tasks.Runner) *instance {
	i := &instance{w: w, uid: uid}
	i.Manager = tasks.New(tasks.Options{
		Server: i.server, Log: slog.New(slog.DiscardHandler),
		Busy: func() func() {
			i.count(1)
			return sync.OnceFunc(func() { i.count(-1) })
		},
	})
	for kind, r := range runners {
		i.Register(kind, r)
	}
	if err := i.Resume(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(i.close)
	return i
}

func (i *instance) count(n int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.busy += n
}

func (i *instance) isBusy() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.busy > 0
}

func (i *instance) server() (*ipc.Client, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.c != nil {
		select {
		case <-i.c.Done():
			_ = i.c.Close()
			i.c = nil
		default:
			return i.c, nil
		}
	}
	c, err := i.w.dial(i.uid)
	if err == nil {
		i.c = c
	}
	return c, err
}

func (i *instance) close() { i.closeWithin(testkit.Patience) }

// closeWithin ends the instance. Without a server it takes the whole time.
func (i *instance) closeWithin(d time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	if err := i.Close(ctx); err != nil && d == testkit.Patience {
		i.w.t.Error(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.c != nil {
		_ = i.c.Close()
		i.c = nil
	}
}

func (i *instance) submit(s tasks.Spec) int64 {
	i.w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	id, err := i.Submit(ctx, s)
	if err != nil {
		i.w.t.Fatal(err)
	}
	return id
}

func (i *instance) control(coreID int64, state string) error {
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	return i.Control(ctx, coreID, state)
}

// row is a task in the database.
func (w *world) row(id int64) store.Task {
	w.t.Helper()
	var row store.Task
	err := w.server.store.View(context.Background(), func(tx *store.Tx) (err error) { row, err = tx.TaskWork(id); return err })
	if err != nil {
		w.t.Fatal(err)
	}
	return row
}

// await waits until a task is in a state.
func (w *world) await(id int64, state store.TaskState) {
	w.t.Helper()
	testkit.Eventually(w.t, string(state), func() bool { return w.row(id).State == state })
}

// awaitCore waits until Core shows the only record with a title in a state.
func (w *world) awaitCore(title string, state providerapi.TaskState) coreTask {
	w.t.Helper()
	testkit.Eventually(w.t, title+" is "+string(state)+" at Core", func() bool { return w.core.one(title).Status.State == state })
	return w.core.one(title)
}

// inside runs f while the service has its turn.
func (w *world) inside(f func(*Service)) {
	s := w.server.svc
	s.turn <- struct{}{}
	defer s.unlock()
	f(s)
}

// forever works until it is told to end, and saves how often it went around.
func forever(ctx context.Context, t *tasks.Task) error {
	for n := 0; ; n++ {
		if err := t.Checkpoint(ctx); err != nil {
			return err
		}
		t.Progress(tasks.Progress{Body: "round " + time.Now().Format("05.000"), Text: "1 file/s", Percent: 10})
		time.Sleep(5 * time.Millisecond)
	}
}

var _ = ipcapi.Empty{}
