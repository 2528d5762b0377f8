package uploads

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"
)

// part sends one chunk as a browser does.
func (w *world) part(s UploadSession, offset, total int64, data io.Reader, length int64) (int, string) {
	w.tb.Helper()
	req, err := http.NewRequest(http.MethodPost, s.Endpoint, data)
	if err != nil {
		w.tb.Fatal(err)
	}
	req.ContentLength = length
	req.Header.Set("Origin", testOrigin)
	req.Header.Set(headerToken, s.Token)
	req.Header.Set(headerOffset, strconv.FormatInt(offset, 10))
	req.Header.Set(headerTotal, strconv.FormatInt(total, 10))
	req.Header.Set("UCloud-Username", b64(testUser))
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		w.tb.Fatal(err)
	}
	if got := res.Header.Get("Access-Control-Allow-Origin"); got != testOrigin {
		w.tb.Errorf("allowed origin %q", got)
	}
	return res.StatusCode, string(body)
}

func (w *world) text(s UploadSession, offset, total int64, data string) (int, string) {
	return w.part(s, offset, total, strings.NewReader(data), int64(len(data)))
}

func TestChunked(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), nil)
	write(t, filepath.Join(w.dir, "f"), "old")
	s := w.session("/f", kindFile, rename, "CHUNKED")
	want := func(step string, status, code int, body string) {
		t.Helper()
		if status != code {
			t.Fatalf("%s: %d %s, want %d", step, status, body, code)
		}
	}
	status, body := w.text(s, 0, 10, "0123")
	want("first", status, 200, body)
	if got := tree(t, w.dir); len(got) != 2 || got["f"] != "old" {
		t.Errorf("half-way: %v", got)
	}
	status, body = w.text(s, 0, 10, "0123")
	want("again", status, 409, body)
	if !strings.Contains(body, "byte 4") {
		t.Errorf("the length is not named: %s", body)
	}
	status, body = w.text(s, 6, 10, "6789")
	want("gap", status, 409, body)
	status, body = w.text(s, 4, 10, "456789x")
	want("too much", status, 400, body)
	status, body = w.part(s, 4, 10, strings.NewReader("456789x"), -1) // without a length
	want("too much, length unknown", status, 400, body)
	uses := w.store.uses()
	w.part(s, 4, 10, io.MultiReader(strings.NewReader("45"), iotest.ErrReader(errors.New("gone"))), 6) // breaks off
	for end := time.Now().Add(2 * time.Second); w.store.uses() == uses && time.Now().Before(end); {    // if it has been sent at all
		time.Sleep(time.Millisecond)
	}
	w.settle()
	// The instance is killed: what was written and not acknowledged is cut.
	drafts, _ := filepath.Glob(filepath.Join(w.dir, ".f.ucloud-upload-*"))
	if len(drafts) != 1 {
		t.Fatalf("drafts %v", drafts)
	}
	f, err := os.OpenFile(drafts[0], os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString("not acknowledged")
	f.Close()
	other := newWorld(t, w.dir, func(o *Options) { o.Sessions = w.store })
	moved := s
	moved.Endpoint = strings.Replace(s.Endpoint, w.http.URL, other.http.URL, 1)
	status, body = other.text(moved, 4, 10, "456789")
	want("last", status, 200, body)
	status, body = other.text(moved, 4, 10, "456789")
	want("last again, the answer was lost", status, 200, body)
	if diff := cmp.Diff(map[string]string{"f": "old", "f(1)": "0123456789"}, tree(t, w.dir)); diff != "" {
		t.Error(diff)
	}
	for name, change := range map[string]func(http.Header){
		"no offset":         func(h http.Header) { h.Del(headerOffset) },
		"negative":          func(h http.Header) { h.Set(headerOffset, "-1") },
		"not a number":      func(h http.Header) { h.Set(headerTotal, "1e3") },
		"two offsets":       func(h http.Header) { h.Add(headerOffset, "0") },
		"other token":       func(h http.Header) { h.Set(headerToken, "other") },
		"beyond the end":    func(h http.Header) { h.Set(headerOffset, "11") },
		"other origin":      func(h http.Header) { h.Set("Origin", "https://evil.example") },
		"number of 64 bits": func(h http.Header) { h.Set(headerTotal, "18446744073709551615") },
	} {
		req, _ := http.NewRequest(http.MethodPost, s.Endpoint, bytes.NewReader(nil))
		req.Header.Set(headerToken, s.Token)
		req.Header.Set(headerOffset, "0")
		req.Header.Set(headerTotal, "10")
		change(req.Header)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode < 400 || res.StatusCode >= 500 {
			t.Errorf("%s: %d", name, res.StatusCode)
		}
	}
	in := w.session("", folder, rename)
	in.Endpoint = strings.Replace(in.Endpoint, "ws:", "http:", 1)
	if status, body := w.text(in, 0, 1, "x"); status != 400 {
		t.Errorf("folder: %d %s", status, body)
	}
}

func TestV1(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), nil)
	s := w.session("/f", kindFile, replace, "WEBSOCKET_V1")
	if s.Protocol != protocolV1 || !strings.HasPrefix(s.Endpoint, "ws://") {
		t.Fatalf("%+v", s)
	}
	answer := func(c *script) string {
		t.Helper()
		kind, msg, err := c.Read(t.Context())
		if err != nil || kind != websocket.MessageText {
			t.Fatalf("%v %v", kind, err)
		}
		return string(msg)
	}
	say := func(c *script, text string) { c.Write(t.Context(), websocket.MessageText, []byte(text)) }
	c := w.dial(s)
	say(c, "0 10")
	c.binary([]byte("01234"))
	if got := answer(c); got != "5" {
		t.Errorf("answer %q", got)
	}
	c.binary([]byte("56"))
	if got := answer(c); got != "7" {
		t.Errorf("answer %q", got)
	}
	c.CloseNow()
	w.settle()
	c = w.dial(s) // the client has not seen the last answer
	say(c, "5 10")
	c.binary([]byte("56789"))
	if got := answer(c); got != "10" {
		t.Errorf("answer %q", got)
	}
	c.Close(websocket.StatusNormalClosure, "")
	w.settle()
	if diff := cmp.Diff(map[string]string{"f": "0123456789"}, tree(t, w.dir)); diff != "" {
		t.Error(diff)
	}
	empty := w.dial(w.session("/empty", kindFile, rename, "WEBSOCKET_V1"))
	say(empty, "0 0")
	if got := answer(empty); got != "0" {
		t.Errorf("answer %q", got)
	}
	empty.Close(websocket.StatusNormalClosure, "")
	for text, code := range map[string]websocket.StatusCode{
		"": websocket.StatusProtocolError, "0": websocket.StatusProtocolError, "5 3": websocket.StatusProtocolError, "-1 3": websocket.StatusProtocolError,
		"0 99999999999999999999": websocket.StatusProtocolError, "0 3 4": websocket.StatusProtocolError, strings.Repeat("0", 200): websocket.StatusProtocolError,
	} {
		c := w.dial(w.session("/g", kindFile, rename, "WEBSOCKET_V1"))
		say(c, text)
		if _, _, err := c.Read(t.Context()); websocket.CloseStatus(err) != code {
			t.Errorf("%q: %v", text, err)
		}
	}
	gap := w.dial(w.session("/g", kindFile, rename, "WEBSOCKET_V1"))
	say(gap, "4 10")
	gap.binary([]byte("x"))
	if _, _, err := gap.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
		t.Errorf("gap: %v", err)
	}
	w.settle()
}

// TestStalledTurn: a client whose network has gone comes back over a new connection, while the old one seems to be there
// still. The new one gets its turn when nothing more comes over the old one.
func TestStalledTurn(t *testing.T) {
	t.Parallel()
	for _, protocol := range []string{"WEBSOCKET_V1", "CHUNKED"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, t.TempDir(), func(o *Options) { o.Stall = 100 * time.Millisecond })
			s := w.session("/f", kindFile, replace, protocol)
			if protocol == "CHUNKED" {
				r, wr := io.Pipe()
				var old sync.WaitGroup
				old.Go(func() {
					if status, _ := w.part(s, 0, 6, r, 6); status == 200 {
						t.Error("the old connection was successful")
					}
				})
				wr.Write([]byte("abc"))
				eventually(t, "the old connection has the turn", func() bool { return len(tree(t, w.dir)) == 1 })
				if status, body := w.text(s, 0, 6, "abc"); status != 200 {
					t.Errorf("%d %s", status, body)
				}
				if status, body := w.text(s, 3, 6, "def"); status != 200 {
					t.Errorf("%d %s", status, body)
				}
				wr.CloseWithError(io.ErrUnexpectedEOF)
				old.Wait()
			} else {
				old, fresh := w.dial(s), w.dial(s)
				content := strings.Repeat("abc", 10_000) // more than a client keeps back
				old.Write(t.Context(), websocket.MessageText, []byte("0 60000"))
				half, err := old.Writer(t.Context(), websocket.MessageBinary)
				if err != nil {
					t.Fatal(err)
				}
				half.Write([]byte(content))
				eventually(t, "the old connection has the turn", func() bool { return len(tree(t, w.dir)) == 1 })
				fresh.Write(t.Context(), websocket.MessageText, []byte("0 60000"))
				fresh.binary([]byte(content + content))
				if _, msg, err := fresh.Read(t.Context()); err != nil || string(msg) != "60000" {
					t.Errorf("%q, %v", msg, err)
				}
				fresh.Close(websocket.StatusNormalClosure, "")
				if got := tree(t, w.dir); len(got) != 1 || got["f"] != content+content {
					t.Errorf("%d entries", len(got))
				}
				return
			}
			if diff := cmp.Diff(map[string]string{"f": "abcdef"}, tree(t, w.dir)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestLatePart: a part that an instance which is being replaced still has in hand does not touch what the new one has
// stored meanwhile.
func TestLatePart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), nil)
	s := w.session("/f", kindFile, replace, "CHUNKED")
	other := newWorld(t, w.dir, func(o *Options) { o.Sessions = w.store })
	moved := s
	moved.Endpoint = strings.Replace(s.Endpoint, w.http.URL, other.http.URL, 1)
	r, wr := io.Pipe()
	var old sync.WaitGroup
	old.Go(func() {
		if status, _ := w.part(s, 0, 6, r, 6); status == 200 {
			t.Error("the late part was successful")
		}
	})
	wr.Write([]byte("abc"))
	eventually(t, "the old instance has the draft", func() bool { return len(tree(t, w.dir)) == 1 })
	if status, body := other.text(moved, 0, 6, "ABCDEF"); status != 409 || !strings.Contains(body, "try again") {
		t.Errorf("%d %s", status, body)
	}
	wr.CloseWithError(io.ErrUnexpectedEOF)
	old.Wait()
	w.settle()
	if status, body := other.text(moved, 0, 6, "ABCDEF"); status != 200 {
		t.Errorf("%d %s", status, body)
	}
	if diff := cmp.Diff(map[string]string{"f": "ABCDEF"}, tree(t, w.dir)); diff != "" {
		t.Error(diff)
	}
}
