//go:build e2e

package e2e

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
	"github.com/coder/websocket"

	"ucloud-im/internal/devcore"
	"ucloud-im/internal/devcore/console"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/testkit"
)

// uploadPeer stands for a provider: it takes uploads, checks every byte of the protocol that the console's page speaks,
// and answers as it is told to.
type uploadPeer struct {
	t       *testing.T
	skip    func(path string) bool // of files that it does not want
	refuse  func() string          // text with which it ends a connection after the first listing, "" for none
	mu      sync.Mutex
	listed  map[string]int64 // path -> size, of all connections
	got     map[string]int64 // path -> bytes
	chunks  map[string][]int
	order   []string // paths in the order in which they were begun
	closes  []websocket.StatusCode
	queries []string // of downloads
	most    int      // files that were listed and not completed
	early   bool     // the connection may be closed before the end
}

type listedFile struct {
	path string
	size int64
}

func (u *uploadPeer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	base, hint := "http://"+r.Host+"/ucloud/rec/", "&usernameHint=cmVjdXNlcg%3D%3D"
	switch strings.TrimPrefix(r.URL.Path, "/ucloud/rec/") {
	case "files/collections/retrieveProducts":
		io.WriteString(w, `{"responses":[{"product":{"id":"s","category":"s","provider":"rec"}}]}`)
	case "files/browse":
		io.WriteString(w, `{"items":[{"id":"/4/a.txt","createdAt":1,"status":{"type":"FILE","sizeInBytes":1,"modifiedAt":1}}],"itemsPerPage":250,"next":null}`)
	case "files/upload":
		var req struct {
			Items []struct{ ID, Type, ConflictPolicy string }
		}
		if err := json.Unmarshal(body, &req); err != nil || len(req.Items) != 1 || req.Items[0].ConflictPolicy != "RENAME" {
			u.t.Errorf("upload request %s: %v", body, err)
		}
		fmt.Fprintf(w, `{"responses":[{"endpoint":%q,"protocol":"WEBSOCKET_V2","token":"t"}]}`,
			"ws"+strings.TrimPrefix(base, "http")+"upload?token=t"+hint)
	case "upload":
		u.upload(w, r)
	case "files/download":
		fmt.Fprintf(w, `{"responses":[{"endpoint":%q}]}`, base+"download?token=t"+hint)
	case "download":
		u.mu.Lock()
		u.queries = append(u.queries, r.URL.RawQuery)
		u.mu.Unlock()
		w.Header().Set("Content-Disposition", `attachment; filename="a.txt"`)
		io.WriteString(w, "x")
	default:
		io.WriteString(w, "{}")
	}
}

func (u *uploadPeer) upload(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		u.t.Error(err)
		return
	}
	defer conn.CloseNow()
	conn.SetReadLimit(32 << 20)
	var (
		files           = map[uint32]listedFile{}
		left            = map[uint32]int64{}
		listed, settled int
		refused         bool
	)
	answer := func(frame []byte) {
		if err := conn.Write(r.Context(), websocket.MessageBinary, frame); err != nil {
			u.t.Errorf("answer: %v", err)
		}
	}
	for {
		kind, data, err := conn.Read(r.Context())
		if err != nil {
			u.mu.Lock()
			u.closes = append(u.closes, websocket.CloseStatus(err))
			u.mu.Unlock()
			if settled != listed && !refused && !u.early && websocket.CloseStatus(err) == websocket.StatusNormalClosure {
				u.t.Errorf("closed after %d of %d files", settled, listed)
			}
			return
		}
		if kind != websocket.MessageBinary || len(data) == 0 {
			u.t.Errorf("message of kind %v with %d bytes", kind, len(data))
			return
		}
		var out []byte
		switch op := data[0]; op {
		case 4:
			if len(data) > 65536 {
				u.t.Errorf("a LISTING of %d bytes", len(data))
			}
			for rest := data[1:]; len(rest) > 0; {
				id, size := binary.BigEndian.Uint32(rest), int64(binary.BigEndian.Uint64(rest[4:]))
				n := int(binary.BigEndian.Uint32(rest[20:]))
				path := string(rest[24 : 24+n])
				rest = rest[24+n:]
				if _, ok := files[id]; ok {
					u.t.Errorf("the id %d is used twice", id)
				}
				files[id] = listedFile{path, size}
				listed++
				if u.skip != nil && u.skip(path) {
					out = binary.BigEndian.AppendUint32(append(out, 3), id)
					settled++
					continue
				}
				left[id] = size
				out = binary.BigEndian.AppendUint32(append(out, 0), id)
			}
			u.mu.Lock()
			u.most = max(u.most, listed-settled)
			u.mu.Unlock()
			if u.refuse != nil {
				if why := u.refuse(); why != "" {
					refused = true
					conn.Close(websocket.StatusInternalError, why)
					continue
				}
			}
		case 2:
			id := binary.BigEndian.Uint32(data[1:])
			f, ok := files[id]
			if _, open := left[id]; !ok || !open {
				u.t.Errorf("a chunk of %d bytes for the id %d, which was not asked for", len(data)-5, id)
				continue
			}
			n := int64(len(data) - 5)
			if n > 16_000_000 || n > left[id] {
				u.t.Errorf("a chunk of %d bytes, %d are missing of %s", n, left[id], f.path)
			}
			u.mu.Lock()
			if _, begun := u.chunks[f.path]; !begun {
				u.order = append(u.order, f.path)
			}
			u.chunks[f.path] = append(u.chunks[f.path], int(n))
			u.got[f.path] += n
			u.listed[f.path] = f.size
			u.mu.Unlock()
			if left[id] -= n; left[id] == 0 {
				delete(left, id)
				settled++
			}
		case 3:
			id := binary.BigEndian.Uint32(data[1:])
			if _, open := left[id]; !open || len(data) != 5 {
				u.t.Errorf("SKIP for the id %d in %d bytes", id, len(data))
			}
			delete(left, id)
			settled++
		default:
			u.t.Errorf("opcode %d from a browser", op)
			return
		}
		if settled > 0 {
			out = binary.BigEndian.AppendUint32(append(out, 5), uint32(settled))
		}
		if len(out) > 0 {
			answer(out)
		}
	}
}

// peerPage is the console in a browser beside an uploadPeer.
func peerPage(t *testing.T) (*page, *uploadPeer) {
	t.Helper()
	testkit.Require(t, testkit.Component("chromium"))
	u := &uploadPeer{t: t, listed: map[string]int64{}, got: map[string]int64{}, chunks: map[string][]int{}}
	p := peerCore(t, u, devcore.Options{})
	p.openDrive()
	return p, u
}

// peerCore is a Core with one user and a drive, whose provider is played by a handler, and a browser.
func peerCore(t *testing.T, peer http.Handler, o devcore.Options) *page {
	t.Helper()
	provider := httptest.NewServer(peer)
	t.Cleanup(provider.Close)
	o.Provider, o.ProviderURL, o.ConsoleKey = "rec", provider.URL, "secret"
	core, err := devcore.New(o)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(core.Handler(console.Files()))
	t.Cleanup(server.Close)
	core.AddUser("recuser")
	control := func(path, body string) {
		t.Helper()
		req, err := http.NewRequest(http.MethodPost, server.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+core.ProviderToken())
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d", path, res.StatusCode)
		}
	}
	control("/api/products/v2", `{"items":[{"type":"storage","category":{"name":"s","provider":"rec","productType":"STORAGE","accountingUnit":{"name":"GB","namePlural":"GB","floatingPoint":false,"displayFrequencySuffix":false},"accountingFrequency":"ONCE"},"name":"s","description":"","productType":"STORAGE","price":1}]}`)
	control("/api/files/collections/control/register", `{"items":[{"spec":{"title":"Home","product":{"id":"s","category":"s","provider":"rec"}},"providerGeneratedId":"x","createdBy":"recuser","project":null,"projectAllRead":false,"projectAllWrite":false}]}`)
	if err := core.Allocate(ident.Owner{User: "recuser"}, "s", 10); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { core.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	w := &world{t: t, core: core, coreURL: server.URL, gateURL: provider.URL}
	return openBrowser(t, w)
}

// folder makes a folder of files with the given sizes.
func folder(t *testing.T, name string, sizes map[string]int64) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	for path, size := range sizes {
		full := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(full, size); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func (p *page) uploadState(want string) {
	p.t.Helper()
	if !settles(func() bool {
		return eval[string](p, `[...document.querySelectorAll("#uploads li")].map((l) => l.dataset.state).join(" ")`) == want
	}) {
		p.shot("failed")
		p.t.Fatalf("the uploads are not %s: %s", want, p.text("#uploads"))
	}
}

// TestConsoleListing: batches of 5,000, frames of at most 64 KiB, every file sent once, skipped ones not at all, and the
// socket closed without a word when the count has caught up.
func TestConsoleListing(t *testing.T) {
	p, u := peerPage(t)
	u.skip = func(path string) bool { return strings.HasPrefix(path, "have/") }
	sizes := map[string]int64{}
	for i := range 6_000 {
		sizes[fmt.Sprintf("dir %d/a file with a name of some length, number %d", i%20, i)] = int64(i % 3)
	}
	for i := range 200 {
		sizes[fmt.Sprintf("have/%d", i)] = 10
	}
	p.do("choose a folder", chromedp.SetUploadFiles("#upload-folder", []string{folder(t, "many", sizes)}))
	p.uploadState("done")
	if text := p.text("#uploads"); !strings.Contains(text, "6,200 files") || !strings.Contains(text, "200 files not taken") {
		t.Errorf("the console says %q", text)
	}
	p.shot("listing")
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.got) != 6_000 || u.most > 5000 {
		t.Errorf("%d files, at most %d listed ahead", len(u.got), u.most)
	}
	for path, n := range u.got {
		if n != sizes[path] || u.listed[path] != sizes[path] || len(u.chunks[path]) != 1 {
			t.Fatalf("%s: %d bytes of %d in %v", path, n, sizes[path], u.chunks[path])
		}
	}
	if len(u.closes) != 1 || u.closes[0] != websocket.StatusNormalClosure {
		t.Errorf("closed with %v", u.closes)
	}
}

// TestConsoleOrder: the files that were asked for last are read first, at most 256 at a time.
func TestConsoleOrder(t *testing.T) {
	p, u := peerPage(t)
	const files = 600
	sizes := map[string]int64{}
	for i := range files {
		sizes[fmt.Sprintf("%04d", i)] = 10
	}
	var listed []string
	u.skip = func(path string) bool { listed = append(listed, path); return false } // in the order of the listing
	p.do("choose a folder", chromedp.SetUploadFiles("#upload-folder", []string{folder(t, "order", sizes)}))
	p.uploadState("done")
	u.mu.Lock()
	defer u.mu.Unlock()
	last := map[string]bool{}
	for _, path := range listed[files-256:] {
		last[path] = true
	}
	n := 0
	for _, path := range u.order[:100] {
		if last[path] {
			n++
		}
	}
	if n < 80 { // some may have been overtaken
		t.Errorf("of the first 100 files only %d are among the last 256 that were asked for", n)
	}
}

// TestConsoleChunks: large files go in pieces of 16,000,000 bytes, a single file has an empty path, and the link of a
// download gets the user's name as it is.
func TestConsoleChunks(t *testing.T) {
	p, u := peerPage(t)
	big := folder(t, "big", map[string]int64{"big.bin": 40_000_001})
	p.do("choose a file", chromedp.SetUploadFiles("#upload-files", []string{filepath.Join(big, "big.bin")}))
	p.uploadState("done")
	u.mu.Lock()
	if got := fmt.Sprint(u.chunks[""]); got != "[16000000 16000000 8000001]" {
		t.Errorf("chunks %s", got)
	}
	u.mu.Unlock()
	p.open("/4/a.txt")
	if !settles(func() bool { u.mu.Lock(); defer u.mu.Unlock(); return len(u.queries) > 0 }) {
		t.Fatal("no download")
	}
	if u.queries[0] != "token=t&usernameHint=cmVjdXNlcg%3D%3D&usernameHint=cmVjdXNlcg==" {
		t.Errorf("the link has %s", u.queries[0])
	}
}

// TestConsoleFailure: what the provider says when it closes the connection is shown, and another try sends everything.
func TestConsoleFailure(t *testing.T) {
	p, u := peerPage(t)
	why := "big.bin: disk quota exceeded"
	u.refuse = func() string { w := why; why = ""; return w }
	p.do("choose a folder", chromedp.SetUploadFiles("#upload-folder", []string{folder(t, "data", map[string]int64{"a": 1, "b": 2, "c": 3})}))
	p.uploadState("failed")
	if text := p.text("#uploads"); !strings.Contains(text, "big.bin: disk quota exceeded") || !strings.Contains(text, "0 of 3 files") {
		t.Errorf("the console says %q", text)
	}
	p.shot("failure")
	p.do("try again", chromedp.Click("#uploads button:not([hidden])"))
	p.uploadState("done")
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.got) != 3 {
		t.Errorf("sent %v", u.got)
	}
}

// TestConsoleSessions: of many files no more than five are sent at a time, each over a connection of its own.
func TestConsoleSessions(t *testing.T) {
	p, u := peerPage(t)
	open, hold := atomic.Int32{}, make(chan struct{})
	u.refuse = func() string { open.Add(1); <-hold; return "" }
	sizes := map[string]int64{}
	for i := range 7 {
		sizes[fmt.Sprint(i)] = 1
	}
	dir := folder(t, "seven", sizes)
	var files []string
	for name := range sizes {
		files = append(files, filepath.Join(dir, name))
	}
	p.do("choose files", chromedp.SetUploadFiles("#upload-files", files))
	if !settles(func() bool { return open.Load() == 5 }) {
		t.Fatalf("%d connections", open.Load())
	}
	p.uploadState("running running running running running waiting waiting")
	close(hold)
	p.uploadState("done done done done done done done")
	if open.Load() != 7 {
		t.Errorf("%d connections for 7 files", open.Load())
	}
}

// TestConsoleUnreadable: a file that has changed since it was listed is skipped, and the others are sent.
func TestConsoleUnreadable(t *testing.T) {
	p, u := peerPage(t)
	dir := folder(t, "data", map[string]int64{"good": 10, "changed": 20})
	u.refuse = func() string {
		// Chromium refuses to read a file whose time is another one than when it was chosen.
		path := filepath.Join(dir, "changed")
		if err := errors.Join(os.Truncate(path, 5), os.Chtimes(path, time.Unix(1e9, 0), time.Unix(1e9, 0))); err != nil {
			t.Error(err)
		}
		return ""
	}
	p.do("choose a folder", chromedp.SetUploadFiles("#upload-folder", []string{dir}))
	p.uploadState("done")
	if text := p.text("#uploads"); !strings.Contains(text, "1 file could not be read") {
		t.Errorf("the console says %q", text)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.got["good"] != 10 || len(u.got) != 1 {
		t.Errorf("sent %v", u.got)
	}
}

// TestConsoleStop: a stopped upload closes its socket at once, without CLOSE.
func TestConsoleStop(t *testing.T) {
	p, u := peerPage(t)
	hold := make(chan struct{})
	u.refuse = func() string { <-hold; return "" } // no answer to the listing
	u.early = true
	p.do("choose a file", chromedp.SetUploadFiles("#upload-files", []string{filepath.Join(folder(t, "one", map[string]int64{"x": 5}), "x")}))
	p.uploadState("running")
	if !settles(func() bool { u.mu.Lock(); defer u.mu.Unlock(); return u.most == 1 }) { // running it is before it connects
		t.Fatal("the file is not listed")
	}
	p.do("stop", chromedp.Click("#uploads button:not([hidden])"))
	p.uploadState("stopped")
	close(hold)
	if !settles(func() bool { u.mu.Lock(); defer u.mu.Unlock(); return len(u.closes) == 1 }) || u.closes[0] != websocket.StatusNormalClosure {
		t.Errorf("closed with %v", u.closes)
	}
}

// TestConsoleStale: what was being read for an upload that was stopped is not sent over the connection of another try.
func TestConsoleStale(t *testing.T) {
	p, u := peerPage(t)
	u.early = true
	eval[bool](p, `(() => {
		const read = Blob.prototype.arrayBuffer;
		window.held = [];
		Blob.prototype.arrayBuffer = async function () { await new Promise((go) => held.push(go)); return read.call(this); };
		return true;
	})()`)
	held := func(n int) {
		t.Helper()
		if !settles(func() bool { return eval[int](p, "held.length") == n }) {
			t.Fatalf("%d parts are being read, not %d", eval[int](p, "held.length"), n)
		}
	}
	p.do("choose a file", chromedp.SetUploadFiles("#upload-files", []string{filepath.Join(folder(t, "one", map[string]int64{"x": 20_000_000}), "x")}))
	held(1)
	p.do("stop", chromedp.Click("#uploads button:not([hidden])"))
	p.uploadState("stopped")
	p.do("try again", chromedp.Click("#uploads button:not([hidden])"))
	held(2)
	eval[bool](p, `(held[0](), true)`) // of the try that was stopped
	eval[bool](p, `(setTimeout(held[1], 50), true)`)
	held(3)
	eval[bool](p, `(held[2](), true)`)
	p.uploadState("done")
	u.mu.Lock()
	defer u.mu.Unlock()
	if got := fmt.Sprint(u.chunks[""]); got != "[16000000 4000000]" {
		t.Errorf("chunks %s", got)
	}
}

// TestConsoleDrop drops files and folders, one of them empty and one nested, on the listing.
func TestConsoleDrop(t *testing.T) {
	p, u := peerPage(t)
	sizes := map[string]int64{"a": 3, "sub/deeper/b": 4}
	for i := range 250 { // more than a browser gives at a time
		sizes[fmt.Sprintf("sub/%d", i)] = int64(i)
	}
	dir := folder(t, "dropped", sizes)
	if err := os.MkdirAll(filepath.Join(dir, "sub/empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	single := filepath.Join(folder(t, "one", map[string]int64{"single": 7}), "single")
	at := eval[[]float64](p, `(() => { const r = document.getElementById("files-section").getBoundingClientRect(); return [r.x + r.width / 2, r.y + 20]; })()`)
	data := &input.DragData{Files: []string{dir, single}, DragOperationsMask: 1}
	for _, kind := range []input.DispatchDragEventType{input.DispatchDragEventTypeDragEnter, input.DispatchDragEventTypeDragOver, input.DispatchDragEventTypeDrop} {
		if _, err := chromedp.Call(p.ctx, input.DispatchDragEvent, input.DispatchDragEventParams{Type: kind, X: at[0], Y: at[1], Data: data}); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if kind == input.DispatchDragEventTypeDragOver {
			p.shot("over")
			if !eval[bool](p, `document.getElementById("files-section").classList.contains("drop")`) {
				t.Error("the listing does not show that it takes files")
			}
		}
	}
	p.uploadState("done done")
	p.shot("dropped")
	u.mu.Lock()
	defer u.mu.Unlock()
	for path, size := range sizes {
		if got, ok := u.got[path]; !ok || got != size {
			t.Errorf("%s: %d bytes of %d, %v", path, got, size, ok)
		}
	}
	if u.got[""] != 7 || len(u.got) != len(sizes)+1 {
		t.Errorf("%d files were sent, %d bytes of the single one", len(u.got), u.got[""])
	}
}
