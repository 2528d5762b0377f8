package uploads

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"ucloud-im/internal/providerapi"
)

// TestLostConnection: a browser shows every end of a connection as the end of the upload, so files that are missing then
// must be reported, unless the client closed in the regular way.
func TestLostConnection(t *testing.T) {
	t.Parallel()
	const lost, ended = "The connection was lost before everything had arrived", "The connection was ended before everything had arrived: "
	for _, tc := range []struct {
		name string
		end  func(w *world, c *script)
		why  string // "": nothing is reported
	}{
		{"cut", func(_ *world, c *script) { c.CloseNow() }, lost},
		{"closed", func(_ *world, c *script) { c.Close(websocket.StatusNormalClosure, "") }, ""},
		{"the page was left", func(_ *world, c *script) { c.Close(websocket.StatusGoingAway, "") }, ""},
		{"nonsense", func(_ *world, c *script) {
			c.binary([]byte{99})
			c.expectClose(websocket.StatusProtocolError)
		}, ended + "protocol error"},
		{"the instance ends", func(w *world, c *script) {
			done := make(chan struct{})
			go func() {
				w.svc.Close(context.Background())
				close(done)
			}()
			c.expectClose(websocket.StatusGoingAway)
			<-done
		}, ended + "the service ends"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, t.TempDir(), func(o *Options) { o.ConnFiles = 1 })
			c := w.dial(w.session("/in", folder, rename))
			c.binary(listing(listed{0, 1, someTime, "stored"}, listed{1, 1 << 20, someTime, "half"}, listed{2, 1 << 20, someTime, "waits"}, listed{3, 1 << 20, someTime, "waits too"}))
			c.expect(num(opOK, 0), num(opOK, 1))
			c.binary(chunk(0, "x"), nil)
			c.binary(chunk(1, "part"))
			c.expect(num(opCompleted, 1))
			tc.end(w, c)
			w.settle()
			if tc.why == "" {
				if len(w.reports) != 0 {
					t.Errorf("reported: %+v", <-w.reports)
				}
				return
			}
			r := <-w.reports
			if r.Count != 3 || r.Why != tc.why || r.Fatal || !slices.Equal(r.Files, []string{"/5123/in/half", "/5123/in/waits", "/5123/in/waits too"}) {
				t.Errorf("%+v", r)
			}
		})
	}
	// Another provider looks by itself what is missing, and comes again.
	w := newWorld(t, t.TempDir(), nil)
	drive := testDrive(w.dir)
	s, err := w.svc.CreateTransfer(t.Context(), &drive, "/5123/in", "ref", false)
	if err != nil {
		t.Fatal(err)
	}
	c := w.dial(s)
	c.binary(listing(listed{0, 10, someTime, "a"}))
	c.expect(num(opOK, 0))
	c.CloseNow()
	w.settle()
	if len(w.reports) != 0 {
		t.Errorf("a transfer is reported: %+v", <-w.reports)
	}
}

// TestAllAreReported: when the storage breaks, every file that is missing counts, not only the one that met the error.
func TestAllAreReported(t *testing.T) {
	t.Parallel()
	w := newWorld(t, smallDisk(t, "size=1m"), func(o *Options) { o.ConnFiles = 1 })
	c := w.dial(w.session("", folder, rename))
	c.binary(listing(listed{0, 2 << 20, someTime, "big"}, listed{1, 1 << 20, someTime, "b"}, listed{2, 1 << 20, someTime, "c"}))
	c.expect(num(opOK, 0))
	for range 4 {
		c.binary(chunk(0, string(make([]byte, 1<<20))))
	}
	c.expectClose(websocket.StatusInternalError)
	w.settle()
	if r := <-w.reports; r.Count != 3 || !r.Fatal || r.Why != "There is no space left on the storage" || !slices.Equal(r.Files, []string{"/5123/big", "/5123/b", "/5123/c"}) {
		t.Errorf("%+v", r)
	}
}

// TestV1IsHeardOf: with protocol V1 too nothing but a report can tell that the last step failed.
func TestV1IsHeardOf(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), nil)
	c := w.dial(w.session("/f", kindFile, providerapi.ConflictReject, "WEBSOCKET_V1"))
	c.Write(t.Context(), websocket.MessageText, []byte("0 4"))
	write(t, filepath.Join(w.dir, "f"), "theirs")
	c.binary([]byte("mine"))
	c.expectClose(websocket.StatusInternalError)
	w.settle()
	if r := <-w.reports; r.Count != 1 || r.Why != "A file with this name already exists" {
		t.Errorf("%+v", r)
	}
	if got := tree(t, w.dir); len(got) != 1 || got["f"] != "theirs" {
		t.Errorf("%v", got)
	}
}

// TestCutInAMessage: what has arrived of a message when the connection is cut is not looked at. The WebSocket library
// gives it without taking the mask off, so that it could be anything, here the command to forget the session.
func TestCutInAMessage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), nil)
	for _, payload := range [][]byte{{opClose}, {opClose, 0, 0, 0}, {opClose, 0, 0, 0, 0, 0, 0, 0, 0}, {}} {
		for _, reset := range []bool{false, true} {
			s := w.session("", folder, rename)
			conn := rawDial(t, s)
			frame := append([]byte{0x82, 0x80 | 100, opClose ^ opListing, 0, 0, 0}, payload...) // RFC 6455 section 5.2: 100 bytes, masked
			if _, err := conn.Write(frame); err != nil {
				t.Fatal(err)
			}
			if reset {
				conn.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, conn)
			}
			conn.Close()
			w.settle()
			if got := w.put(s, "still", "there", someTime); got != opOK && got != opSkip {
				t.Errorf("%v: answer %d", payload, got)
			}
		}
	}
	if len(w.store.closed) != 0 {
		t.Errorf("closed: %v", w.store.closed)
	}
	// The length of a file for V1 is not what has arrived of it.
	s := w.session("/f", kindFile, rename, "WEBSOCKET_V1")
	conn := rawDial(t, s)
	conn.Write([]byte{0x01, 0x80 | 3, 0, 0, 0, 0, '0', ' ', '0', 0x80, 0x80 | 1, 0, 0, 0, 0}) // two frames, of "0 0" and a byte that is missing
	conn.(*net.TCPConn).CloseWrite()
	io.Copy(io.Discard, conn)
	conn.Close()
	w.settle()
	if got := tree(t, w.dir); len(got) != 1 {
		t.Errorf("%v", got)
	}
}

// TestWill: the user hears of an upload whose process was killed, from the next one.
func TestWill(t *testing.T) {
	t.Parallel()
	dir, state := t.TempDir(), disk{t.TempDir()}
	token := state.session(t, dir, "/in", folder, rename)
	p := play(t, state.dir, 0)
	c := (&world{tb: t}).dial(UploadSession{Endpoint: p.endpoint(token)})
	c.binary(listing(listed{0, 1 << 20, someTime, "big"}))
	c.expect(num(opOK, 0))
	c.binary(chunk(0, "the beginning"))
	left := func() int {
		files, err := filepath.Glob(state.path("*.will"))
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	eventually(t, "the upload is noted", func() bool { return left() == 1 })
	p.kill()
	p = play(t, state.dir, 0)
	if got := p.line("report "); got != "report Upload of in was interrupted: "+interrupted {
		t.Errorf("%q", got)
	}
	// One that comes to its end leaves nothing.
	c = (&world{tb: t}).dial(UploadSession{Endpoint: p.endpoint(token)})
	c.binary(listing(listed{0, 3, someTime, "big"}))
	c.expect(num(opOK, 0))
	eventually(t, "the upload is noted", func() bool { return left() == 1 })
	c.binary(chunk(0, "all"))
	c.expect(num(opCompleted, 1))
	c.Close(websocket.StatusNormalClosure, "")
	eventually(t, "it is forgotten", func() bool { return left() == 0 })
}

// TestReportIsKept: what cannot be told now, because this process is ending, is left to the next one.
func TestReportIsKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), func(o *Options) {
		o.Failed = func(context.Context, Report) error { return errors.New("no more tasks") }
	})
	s := w.session("/in", folder, rename)
	c := w.dial(s)
	var files []listed
	for i := range 2 * maxReported {
		files = append(files, listed{int32(i), 10, someTime, strings.Repeat("long/", 300) + strconv.Itoa(i)})
	}
	c.binary(listing(files...))
	if op, _, ok := c.next(); !ok || op != opOK {
		t.Fatal(op, c.err)
	}
	c.CloseNow()
	w.settle()
	w.store.mu.Lock()
	will := w.store.wills[s.Token]
	w.store.mu.Unlock()
	got := make(chan Report, 1)
	next := newWorld(t, w.dir, func(o *Options) {
		o.Failed = func(_ context.Context, r Report) error { got <- r; return nil }
		o.Wills = func(context.Context) ([][]byte, error) { return [][]byte{[]byte("nonsense"), []byte(will)}, nil }
	})
	next.svc.TakeWills()
	if r := <-got; len(will) > 16<<10 || r.Count != len(files) || r.Path != "/5123/in" || len(r.Files) == 0 || r.Why != errLostText {
		t.Errorf("%d bytes, %d files: %s, %s", len(will), r.Count, r.Path, r.Why)
	}
}

const errLostText = "The connection was lost before everything had arrived"
