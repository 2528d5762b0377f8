package uploads

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/uploads/client"
)

// relay is the network between a client and a server: it counts what the client sends, and does something when a number
// of bytes has passed.
type relay struct {
	l      net.Listener
	server string
	at     int64  // what happens after that many bytes of the client
	do     func() // is this
	reset  bool   // connections end with a reset
	passed atomic.Int64
	once   sync.Once
	tasks  sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
}

func newRelay(tb testing.TB, server string, at int64, do func(), reset bool) *relay {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	r := &relay{l: l, server: server, at: at, do: do, reset: reset}
	r.tasks.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", server)
			if err != nil { // it has been killed
				c.Close()
				continue
			}
			r.mu.Lock()
			r.conns = append(r.conns, c, s)
			r.mu.Unlock()
			r.tasks.Go(func() { r.copy(s, c) })
			r.tasks.Go(func() {
				// Not with splice(2): it would hold both ends while one is being closed.
				io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{s})
				c.Close()
			})
		}
	})
	return r
}

// copy passes on what the client sends, to the byte.
func (r *relay) copy(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		left := r.at - r.passed.Load()
		if left <= 0 {
			r.once.Do(func() {
				r.do()
				r.cut()
			})
			return
		}
		n, err := from.Read(buf[:min(int64(len(buf)), left)])
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
			r.passed.Add(int64(n))
		}
		if err != nil {
			if r.passed.Load() < r.at {
				to.Close()
			}
			return
		}
	}
}

// cut ends all connections.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		if tcp, ok := c.(*net.TCPConn); ok && r.reset {
			tcp.SetLinger(0)
		}
		c.Close()
	}
}

func (r *relay) close() {
	r.l.Close()
	r.cut()
	r.tasks.Wait()
}

// pattern is content of which every byte depends on its place.
func pattern(seed uint64, size int64) []byte {
	b := make([]byte, size)
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	rand.NewChaCha8(key).Read(b)
	return b
}

func fileOf(path string, content []byte, sent *atomic.Int64) *uploadclient.File {
	return &uploadclient.File{Path: path, Size: int64(len(content)), Modified: time.UnixMilli(someTime), Open: func() (io.ReadCloser, error) {
		return io.NopCloser(&counted{bytes.NewReader(content), sent}), nil
	}}
}

type counted struct {
	r io.Reader
	n *atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// cutUpload is an upload that is interrupted again and again.
type cutUpload struct {
	t     *testing.T
	dir   string // the drive
	state disk
	token string
	old   map[string][]byte
	want  map[string][]byte
	sent  atomic.Int64 // bytes of files that the client has read in order to send them

	// Of the protocols.
	known int64 // CHUNKED and V1: what has been acknowledged. V2: files that have been, in all connections
}

// attempt goes on with the upload. It gives nil when everything is there, and must not lose what was acknowledged.
type attempt func(u *cutUpload, endpoint string) error

const cutChunk = 16 << 10

// attemptV2 lists everything. What an earlier connection has acknowledged must not be asked for.
func attemptV2(u *cutUpload, endpoint string) error {
	c, err := uploadclient.Dial(u.t.Context(), endpoint, uploadclient.Options{Chunk: cutChunk, Parallel: 1})
	if err != nil {
		return err
	}
	defer c.Abort()
	res, err := c.Send(u.t.Context(), func(yield func(*uploadclient.File, error) bool) {
		for path, content := range u.want {
			if !yield(fileOf(path, content, &u.sent), nil) {
				return
			}
		}
	})
	if res.Completed == res.Listed && res.Skipped < u.known {
		u.t.Errorf("%d files are skipped of which %d had been acknowledged", res.Skipped, u.known)
	}
	if _, single := u.want[""]; !single {
		u.known = max(u.known, res.Completed)
	}
	return err
}

var continuesAt = regexp.MustCompile(`continues at byte (\d+)`)

// attemptChunked goes on where the last answer was, as the web client does, or where the server says.
func attemptChunked(u *cutUpload, endpoint string) error {
	content := u.want[""]
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for first := true; first || u.known < int64(len(content)); first = false {
		part := content[u.known:min(u.known+cutChunk, int64(len(content)))]
		req, err := http.NewRequestWithContext(u.t.Context(), http.MethodPost, strings.Replace(endpoint, "ws:", "http:", 1), &counted{bytes.NewReader(part), &u.sent})
		if err != nil {
			return err
		}
		req.ContentLength = int64(len(part))
		req.Header.Set(headerToken, u.token)
		req.Header.Set(headerOffset, strconv.FormatInt(u.known, 10))
		req.Header.Set(headerTotal, strconv.Itoa(len(content)))
		res, err := client.Do(req)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			return err
		}
		switch {
		case res.StatusCode == http.StatusOK:
			u.known += int64(len(part))
		case res.StatusCode == http.StatusConflict && continuesAt.Match(body):
			at, _ := strconv.ParseInt(string(continuesAt.FindSubmatch(body)[1]), 10, 64)
			if at < u.known {
				u.t.Errorf("it continues at %d although %d bytes are acknowledged", at, u.known)
			}
			u.known = at
		default:
			u.t.Errorf("%d %s", res.StatusCode, body)
			return nil
		}
	}
	return nil
}

// attemptV1 goes on where the last answer was.
func attemptV1(u *cutUpload, endpoint string) error {
	content := u.want[""]
	ctx, cancel := context.WithTimeout(u.t.Context(), patience)
	defer cancel()
	c, _, err := websocket.Dial(ctx, endpoint, nil)
	if err != nil {
		return err
	}
	defer c.CloseNow()
	at := u.known
	if err := c.Write(ctx, websocket.MessageText, fmt.Appendf(nil, "%d %d", at, len(content))); err != nil {
		return err
	}
	for at < int64(len(content)) {
		part := content[at:min(at+cutChunk, int64(len(content)))]
		u.sent.Add(int64(len(part)))
		if err := c.Write(ctx, websocket.MessageBinary, part); err != nil {
			return err
		}
		_, msg, err := c.Read(ctx)
		if err != nil {
			if code := websocket.CloseStatus(err); code >= 0 && code != websocket.StatusGoingAway {
				u.t.Errorf("closed: %v", err)
			}
			return err
		}
		if at, err = strconv.ParseInt(string(msg), 10, 64); err != nil || at < u.known {
			u.t.Errorf("answer %q after %d", msg, u.known)
		}
		u.known = at
	}
	return nil
}

// check looks at the drive: under every name is what was there before, or what was sent.
func (u *cutUpload) check(complete bool) {
	u.t.Helper()
	got := tree(u.t, u.dir)
	for path, want := range u.want {
		name := "file"
		if path != "" {
			name = "in/" + path
		}
		content, there := got[name]
		if there && content == string(want) {
			continue
		}
		if old, was := u.old[name]; complete || there != was || content != string(old) {
			u.t.Errorf("%s has %d bytes which are neither the old content nor the new one", name, len(content))
		}
	}
	for name, content := range got {
		if content != "/" && u.old[name] == nil && u.want[strings.TrimPrefix(name, "in/")] == nil && name != "file" && !strings.Contains(name, ".ucloud-upload-") {
			u.t.Errorf("%s should not be there", name)
		}
	}
}

// TestCutAnywhere interrupts uploads at random bytes, 200 times in all: half of the time the client's connection is cut,
// half of the time the process that receives is killed. The old content stays until the new one is complete; no more is
// sent again than the interrupted file (V2) or the interrupted chunk (CHUNKED and V1); and the janitor leaves nothing.
func TestCutAnywhere(t *testing.T) {
	t.Parallel()
	for _, protocol := range []struct {
		name, kind, protocol string
		attempt              attempt
	}{
		{"folder", folder, protocolV2, attemptV2},
		{"file", kindFile, protocolV2, attemptV2},
		{"chunked", kindFile, protocolChunked, attemptChunked},
		{"V1", kindFile, protocolV1, attemptV1},
	} {
		for _, end := range []string{"client", "instance"} {
			t.Run(protocol.name+" "+end, func(t *testing.T) {
				t.Parallel()
				rng := rand.New(rand.NewPCG(uint64(len(protocol.name)), uint64(len(end))))
				for cuts := 0; cuts < rounds(25, 2) && !t.Failed(); {
					u := newCutUpload(t, protocol.kind, protocol.protocol, rng)
					cuts += u.run(protocol.protocol, protocol.attempt, end == "instance", rounds(5, 2), rng)
				}
			})
		}
	}
}

func newCutUpload(t *testing.T, kind, protocol string, rng *rand.Rand) *cutUpload {
	t.Helper()
	u := &cutUpload{t: t, dir: t.TempDir(), state: disk{t.TempDir()}, old: map[string][]byte{}, want: map[string][]byte{}}
	path := "/file"
	if kind == folder {
		path = "/in"
		for i := range 12 {
			size := rng.Int64N(3000)
			if i%3 == 0 {
				size = smallBytes + rng.Int64N(200_000)
			}
			name := fmt.Sprintf("d%d/f%d", i%4, i)
			u.want[name] = pattern(rng.Uint64(), size)
			if i%2 == 0 {
				u.old["in/"+name] = pattern(rng.Uint64(), rng.Int64N(100))
			}
		}
	} else {
		u.want[""] = pattern(rng.Uint64(), 300_000+rng.Int64N(200_000))
		u.old["file"] = pattern(rng.Uint64(), 1000)
	}
	for name, content := range u.old {
		write(t, filepath.Join(u.dir, name), string(content))
	}
	drive := testDrive(u.dir)
	data, err := json.Marshal(record{Version: 1, Drive: "5123", DrivePG: drive.ProviderGeneratedID, Provider: testProvider, Path: "/5123" + path, Kind: kind, Policy: replace, Protocol: protocol})
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := u.state.Create(t.Context(), "", []ipcapi.SessionItem{{Object: path, Data: data}})
	if err != nil {
		t.Fatal(err)
	}
	u.token = tokens[0]
	return u
}

// run uploads, with so many interruptions at most, and gives their number.
func (u *cutUpload) run(protocol string, try attempt, kill bool, most int, rng *rand.Rand) (cuts int) {
	u.t.Helper()
	total := int64(0)
	for _, content := range u.want {
		total += int64(len(content))
	}
	var p *player
	for err := error(nil); ; {
		if p == nil {
			p = play(u.t, u.state.dir, 0)
		}
		at := int64(1 << 40)
		if cuts < most {
			at = 1 + rng.Int64N(total+1000) // a bit more, for what is around the content
		}
		do := func() {}
		if kill {
			do = p.kill
		}
		r := newRelay(u.t, p.addr, at, do, rng.IntN(2) == 0)
		err = try(u, strings.Replace(p.endpoint(u.token), p.addr, r.l.Addr().String(), 1))
		r.close()
		interrupted := r.passed.Load() >= at
		if interrupted {
			if cuts++; kill {
				p = nil
			}
		} else if err != nil {
			u.t.Fatalf("without an interruption: %v", err)
		}
		u.check(err == nil)
		if u.t.Failed() {
			return cuts
		}
		if err == nil {
			if p != nil {
				p.kill()
			}
			break
		}
	}
	again := int64(cutChunk) // for each interruption
	switch {
	case protocol == protocolV2 && len(u.want) == 1:
		again = total
	case protocol == protocolV2:
		again = 1 << 40 // the acknowledged files are what counts, see attemptV2
	}
	if sent := u.sent.Load(); sent > total+int64(cuts)*again {
		u.t.Errorf("%d bytes were sent for %d with %d interruptions", sent, total, cuts)
	}
	u.sweep()
	return cuts
}

// sweep uploads something to each directory, a day later, for the janitor to look at it.
func (u *cutUpload) sweep() {
	u.t.Helper()
	p := play(u.t, u.state.dir, 0, "UPLOADS_TEST_LATER=25h")
	var files []*uploadclient.File
	dirs := map[string]bool{}
	for name := range tree(u.t, u.dir) {
		if dir := name[:strings.LastIndex(name, "/")+1]; !dirs[dir] {
			dirs[dir] = true
			files = append(files, fileOf(dir+"later", []byte("x"), new(atomic.Int64)))
		}
	}
	send(u.t, UploadSession{Endpoint: p.endpoint(u.state.session(u.t, u.dir, "", folder, rename))}, uploadclient.Options{}, seqOf(files...))
	eventually(u.t, "no debris is left", func() bool {
		for name := range tree(u.t, u.dir) {
			if strings.Contains(name, ".ucloud-upload-") {
				return false
			}
		}
		return true
	})
	p.kill()
}
