package uploads

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/providerapi"
)

const (
	folder  = "FOLDER"
	rename  = providerapi.ConflictRename
	replace = providerapi.ConflictReplace
	reject  = providerapi.ConflictReject
	merge   = providerapi.ConflictMergeRename
)

// TestExampleOfTheContract replays the bytes of contract 11 section 2.1.
func TestExampleOfTheContract(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), nil)
	c := w.dial(w.session("/photos", folder, rename))
	c.binary([]byte("\x04" +
		"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x01\x8b\xcf\xe5\x68\x00\x00\x00\x00\x08a/hi.txt" +
		"\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x8b\xcf\xe5\x68\x00\x00\x00\x00\x05empty"))
	seen := map[string]bool{}
	for len(seen) < 2 {
		op, v, ok := c.next()
		if !ok {
			t.Fatal(c.err)
		}
		if op == opOK {
			seen[string(num(op, v))] = true
		}
	}
	if !seen["\x00\x00\x00\x00\x00"] || !seen["\x00\x00\x00\x00\x01"] {
		t.Fatalf("answers %v", seen)
	}
	c.binary([]byte("\x02\x00\x00\x00\x00hello"))
	c.binary([]byte("\x02\x00\x00\x00\x01"))
	c.expect([]byte("\x05\x00\x00\x00\x02"))
	c.Close(websocket.StatusNormalClosure, "")
	want := map[string]string{"photos": "/", "photos/a": "/", "photos/a/hi.txt": "hello", "photos/empty": ""}
	if diff := cmp.Diff(want, tree(t, w.dir)); diff != "" {
		t.Error(diff)
	}
	info, err := os.Stat(filepath.Join(w.dir, "photos/a/hi.txt"))
	if err != nil || info.ModTime().UnixMilli() != 0x18bcfe56800 {
		t.Errorf("time %v, %v", info.ModTime(), err)
	}
}

// TestConformance plays short scripts against a folder session over a drive with a few files.
func TestConformance(t *testing.T) {
	t.Parallel()
	ok, skip := func(id int32) []byte { return num(opOK, id) }, func(id int32) []byte { return num(opSkip, id) }
	done := func(n int32) []byte { return num(opCompleted, n) }
	for _, tc := range []struct {
		name  string
		kind  string // FOLDER unless set
		do    func(c *script)
		close websocket.StatusCode // how the server ends it; 0: the client does
		want  map[string]string    // new or changed files below the folder
		fails int                  // files that are reported
	}{
		{name: "one file", do: func(c *script) {
			c.binary(listing(listed{0, 3, someTime, "new"}))
			c.expect(ok(0))
			c.binary(chunk(0, "abc"))
			c.expect(done(1))
		}, want: map[string]string{"new": "abc"}},
		{name: "pieces, an empty one among them", do: func(c *script) {
			c.binary(listing(listed{0, 6, someTime, "new"}))
			c.expect(ok(0))
			for _, s := range []string{"ab", "", "c", "def"} {
				c.binary(chunk(0, s))
			}
			c.expect(done(1))
		}, want: map[string]string{"new": "abcdef"}},
		{name: "two files interleaved", do: func(c *script) {
			c.binary(listing(listed{5, 4, someTime, "a"}, listed{-3, 4, someTime, "b"}))
			c.expect(ok(5), ok(-3))
			c.binary(chunk(5, "12"))
			c.binary(chunk(-3, "34"))
			c.binary(chunk(5, "56"))
			c.binary(chunk(-3, "78"))
			c.expect(done(2))
		}, want: map[string]string{"a": "1256", "b": "3478"}},
		{name: "the same content is there", do: func(c *script) {
			c.binary(listing(listed{0, 3, someTime, "old"}))
			c.expect(skip(0), done(1))
		}},
		{name: "other time", do: func(c *script) {
			c.binary(listing(listed{0, 3, someTime + 3000, "old"}))
			c.expect(ok(0))
			c.binary(chunk(0, "NEW"))
			c.expect(done(1))
		}, want: map[string]string{"old": "NEW"}},
		{name: "other size", do: func(c *script) {
			c.binary(listing(listed{0, 4, someTime, "old"}))
			c.expect(ok(0))
			c.binary(chunk(0, "NEWS"))
			c.expect(done(1))
		}, want: map[string]string{"old": "NEWS"}},
		{name: "messages packed into one frame", do: func(c *script) {
			c.binary(listing(listed{0, 3, someTime, "x"}, listed{1, 3, someTime, "y"}, listed{2, 2, someTime, "z"}))
			c.expect(ok(0), ok(1), ok(2))
			c.binary(skip(0), skip(1), chunk(2, "zz"))
			c.expect(done(3))
		}, want: map[string]string{"z": "zz"}},
		{name: "the client skips a file half-way", do: func(c *script) {
			c.binary(listing(listed{0, 6, someTime, "old"}))
			c.expect(ok(0))
			c.binary(chunk(0, "abc"))
			c.binary(skip(0))
			c.expect(done(1))
			c.binary(chunk(0, "def")) // late
			c.binary(skip(0))         // twice
			c.binary(listing(listed{1, 1, someTime, "next"}))
			c.expect(ok(1))
			c.binary(chunk(1, "n"))
			c.expect(done(2))
		}, want: map[string]string{"next": "n"}},
		{name: "more data than listed, in one chunk", do: func(c *script) {
			c.binary(listing(listed{0, 3, 1000, "old"}, listed{1, 1, someTime, "next"}))
			c.expect(ok(0), ok(1))
			c.binary(chunk(0, "abcd"))
			c.expect(done(1))
			c.binary(chunk(1, "n"))
			c.expect(done(2))
		}, want: map[string]string{"next": "n"}, fails: 1},
		{name: "more data than listed, after completion", do: func(c *script) {
			c.binary(listing(listed{0, 3, someTime, "new"}, listed{1, 1, someTime, "next"}))
			c.expect(ok(0), ok(1))
			c.binary(chunk(0, "abc"))
			c.binary(chunk(0, "surplus"))
			c.binary(chunk(1, "n"))
			c.expect(done(2))
			c.binary(chunk(0, "surplus"))
			c.binary(listing(listed{2, 0, someTime, "last"}))
			c.expect(ok(2), done(3))
		}, want: map[string]string{"new": "abc", "next": "n", "last": ""}},
		{name: "data for an empty file", do: func(c *script) {
			c.binary(listing(listed{0, 0, someTime, "new"}))
			c.expect(ok(0), done(1))
			c.binary(chunk(0, ""))
			c.binary(chunk(0, "x"))
			c.binary(listing(listed{1, 0, someTime, "next"}))
			c.expect(ok(1), done(2))
		}, want: map[string]string{"new": "", "next": ""}},
		{name: "an id is used again after completion", do: func(c *script) {
			c.binary(listing(listed{0, 1, someTime, "a"}))
			c.expect(ok(0))
			c.binary(chunk(0, "a"))
			c.expect(done(1))
			c.binary(listing(listed{0, 1, someTime, "b"}))
			c.expect(ok(0))
			c.binary(chunk(0, "b"))
			c.expect(done(2))
		}, want: map[string]string{"a": "a", "b": "b"}},
		{name: "empty chunk for an unknown id", do: func(c *script) {
			c.binary(chunk(77, ""))
			c.binary(listing(listed{0, 1, someTime, "a"}))
			c.expect(ok(0))
			c.binary(chunk(0, "a"))
			c.expect(done(1))
		}, want: map[string]string{"a": "a"}},
		{name: "data for an unknown id", do: func(c *script) { c.binary(chunk(77, "x")) }, close: websocket.StatusProtocolError},
		{name: "skip of an unknown id", do: func(c *script) { c.binary(skip(77)) }, close: websocket.StatusProtocolError},
		{name: "an id is listed while in use", do: func(c *script) {
			c.binary(listing(listed{0, 1, someTime, "a"}, listed{0, 1, someTime, "b"}))
		}, close: websocket.StatusProtocolError, fails: 1},
		{name: "OK from a client", do: func(c *script) { c.binary(ok(0)) }, close: websocket.StatusProtocolError},
		{name: "count from a client", do: func(c *script) { c.binary(done(0)) }, close: websocket.StatusProtocolError},
		{name: "checksum", do: func(c *script) { c.binary([]byte{1, 0, 0, 0, 0}) }, close: websocket.StatusProtocolError},
		{name: "unknown opcode", do: func(c *script) { c.binary([]byte{9}) }, close: websocket.StatusProtocolError},
		{name: "cut id", do: func(c *script) { c.binary([]byte{opSkip, 0, 0}) }, close: websocket.StatusProtocolError},
		{name: "cut listing", do: func(c *script) { c.binary(listing(listed{0, 1, someTime, "abcdef"})[:28]) }, close: websocket.StatusProtocolError},
		{name: "path longer than the message", do: func(c *script) {
			c.binary([]byte("\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x01\x8b\xcf\xe5\x68\x00\xff\xff\xff\xffa"))
		}, close: websocket.StatusProtocolError},
		{name: "empty message and empty listing", do: func(c *script) {
			c.binary()
			c.binary([]byte{opListing})
			c.binary(listing(listed{0, 0, someTime, "a"}))
			c.expect(ok(0), done(1))
		}, want: map[string]string{"a": ""}},
		{name: "close", do: func(c *script) { c.binary([]byte{opClose}) }, close: websocket.StatusNormalClosure},
		{name: "keep-alive", do: func(c *script) {
			c.Write(c.tb.Context(), websocket.MessageText, []byte("ping"))
			c.binary([]byte("ping"))
			for len(c.text) < 2 {
				if _, _, ok := c.next(); !ok {
					c.tb.Fatal(c.err)
				}
			}
			if !slices.Equal(c.text, []string{"pong", "pong"}) {
				c.tb.Errorf("answers %q", c.text)
			}
		}},
		{name: "other text", do: func(c *script) {
			c.Write(c.tb.Context(), websocket.MessageText, []byte("pingx"))
		}, close: websocket.StatusUnsupportedData},
		{name: "negative size", do: func(c *script) {
			c.binary(listing(listed{0, -1, someTime, "a"}))
			c.expect(skip(0), done(1))
		}, fails: 1},
		{name: "a folder is in the way", do: func(c *script) {
			c.binary(listing(listed{0, 1, someTime, "sub"}, listed{1, 1, someTime, "old/x"}))
			c.expect(skip(0), skip(1), done(2))
		}, fails: 2},
		{name: "bad times", do: func(c *script) {
			c.binary(listing(listed{0, 1, 0, "a"}, listed{1, 1, -5, "b"}, listed{2, 1, time.Now().Add(25 * time.Hour).UnixMilli(), "c"}))
			c.expect(ok(0), ok(1), ok(2))
			for i := range int32(3) {
				c.binary(chunk(i, "x"))
			}
			c.expect(done(3))
			// The next pass of a transfer must come to an end all the same.
			c.binary(listing(listed{3, 1, 0, "a"}))
			c.expect(skip(3), done(4))
		}, want: map[string]string{"a": "x", "b": "x", "c": "x"}},
		{name: "names that are not text", do: func(c *script) {
			c.binary(listing(listed{0, 1, someTime, "\xff\xfe"}, listed{1, 1, someTime, "e\u0301\n\"'\\"}, listed{2, 1, someTime, "A.txt"}, listed{3, 1, someTime, "a.txt"}))
			c.expect(ok(0), ok(1), ok(2), ok(3))
			for i := range int32(4) {
				c.binary(chunk(i, "x"))
			}
			c.expect(done(4))
		}, want: map[string]string{"\xff\xfe": "x", "e\u0301\n\"'\\": "x", "A.txt": "x", "a.txt": "x"}},
		{name: "names that are too long", do: func(c *script) {
			c.binary(listing(
				listed{0, 1, someTime, strings.Repeat("n", 255)}, listed{1, 1, someTime, strings.Repeat("n", 256)},
				listed{2, 1, someTime, strings.Repeat("d/", 2047) + "xy"}, listed{3, 1, someTime, strings.Repeat("d/", 3000) + "x"},
			))
			c.expect(ok(0), skip(1), skip(2), skip(3))
			c.binary(chunk(0, "x"))
			c.expect(done(4))
		}, want: map[string]string{strings.Repeat("n", 255): "x"}, fails: 3},
		{name: "empty path in a folder", do: func(c *script) {
			c.binary(listing(listed{0, 1, someTime, ""}))
			c.expect(skip(0), done(1))
		}, fails: 1},
		{name: "the same path twice", do: func(c *script) {
			c.binary(listing(listed{0, 2, someTime, "a"}, listed{1, 2, someTime, "a"}))
			c.expect(ok(0), ok(1))
			c.binary(chunk(1, "1"))
			c.binary(chunk(0, "0"))
			c.binary(chunk(1, "1"))
			c.expect(done(1))
			c.binary(chunk(0, "0"))
			c.expect(done(2))
		}, want: map[string]string{"a": "00"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, t.TempDir(), nil)
			old := filepath.Join(w.dir, "in", "old")
			write(t, old, "old")
			write(t, filepath.Join(w.dir, "in", "sub", "x"), "x")
			if err := os.Chtimes(old, time.Time{}, time.UnixMilli(someTime)); err != nil {
				t.Fatal(err)
			}
			c := w.dial(w.session("/in", folder, rename))
			tc.do(c)
			if tc.close != 0 {
				c.expectClose(tc.close)
			} else {
				c.Close(websocket.StatusNormalClosure, "")
			}
			w.settle()
			want := map[string]string{"in": "/", "in/old": "old", "in/sub": "/", "in/sub/x": "x"}
			for name, content := range tc.want {
				want["in/"+name] = content
			}
			got := tree(t, w.dir)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			fails := 0
			for len(w.reports) > 0 {
				fails += (<-w.reports).Count
			}
			if fails != tc.fails {
				t.Errorf("%d files are reported, want %d", fails, tc.fails)
			}
		})
	}
}

// settle waits until no connection is left.
func (w *world) settle() {
	w.tb.Helper()
	eventually(w.tb, "all connections have ended", func() bool {
		w.svc.mu.Lock()
		defer w.svc.mu.Unlock()
		return w.svc.total == 0 && w.svc.used == 0 && w.svc.large == 0 && w.svc.listing == 0 && w.svc.writing == 0 && len(w.svc.conns) == 0
	})
}
