package uploads

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
)

// TestQuietConnections: the rules of contract 11 sections 2.3 and 2.5, with shorter times.
func TestQuietConnections(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), func(o *Options) { o.ListingTimeout = 2 * time.Second; o.Silence = 4 * time.Second })
	s := w.session("", folder, rename)
	t.Run("no listing", func(t *testing.T) {
		t.Parallel()
		w.dial(s).expectClose(websocket.StatusNormalClosure)
	})
	t.Run("everything completed", func(t *testing.T) {
		t.Parallel()
		c := w.dial(s)
		c.binary(listing(listed{0, 0, someTime, "a"}))
		c.expect(num(opOK, 0), num(opCompleted, 1))
		c.expectClose(websocket.StatusNormalClosure)
	})
	t.Run("silent while data is due", func(t *testing.T) {
		t.Parallel()
		c := w.dial(s)
		c.binary(listing(listed{0, 10, someTime, "b"}))
		c.expect(num(opOK, 0))
		c.expectClose(websocket.StatusPolicyViolation)
	})
	t.Run("silent in the middle of a listing", func(t *testing.T) {
		t.Parallel()
		conn := rawDial(t, s)
		defer conn.Close()
		conn.Write([]byte{0x82, 0x80 | 100, 0, 0, 0, 0, opListing, 0, 0}) // 100 bytes, masked, of which three come
		conn.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.Copy(io.Discard, conn); err != nil {
			t.Error(err)
		}
	})
	t.Run("slow", func(t *testing.T) {
		t.Parallel()
		c := w.dial(s)
		c.binary(listing(listed{0, 10, someTime, "c"}))
		c.expect(num(opOK, 0))
		began := time.Now()
		for range 10 { // one byte at a time, for longer than either limit
			time.Sleep(500 * time.Millisecond)
			c.binary(chunk(0, "x"))
		}
		if time.Since(began) < 4*time.Second {
			t.Fatal("too quick")
		}
		c.expect(num(opCompleted, 1))
	})
	t.Run("keep-alives", func(t *testing.T) {
		t.Parallel()
		c := w.dial(s)
		c.binary(listing(listed{0, 1, someTime, "d"}))
		c.expect(num(opOK, 0))
		for range 8 {
			time.Sleep(600 * time.Millisecond)
			c.Write(t.Context(), websocket.MessageText, []byte("ping"))
			if op, _, ok := c.next(); !ok || op != 'T' {
				t.Fatal(op, c.err)
			}
		}
		c.binary(chunk(0, "x"))
		c.expect(num(opCompleted, 1))
	})
}

// TestSessionEnds: a connection does not outlive the right to use the session; the absence of the server changes nothing.
func TestSessionEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), func(o *Options) { o.TouchInterval = 50 * time.Millisecond })
	s := w.session("", folder, rename)
	c := w.dial(s)
	c.binary(listing(listed{0, 2, someTime, "a"}))
	c.expect(num(opOK, 0))
	w.store.fail(failure.New(failure.Unavailable, "away"))
	time.Sleep(300 * time.Millisecond)
	c.binary(chunk(0, "a"))
	w.store.fail(failure.New(failure.Forbidden, "You are not a member of the project any more"))
	c.expectClose(websocket.StatusPolicyViolation)
	w.settle()
	if r := <-w.reports; !r.Fatal || r.Why != "You are not a member of the project any more" {
		t.Errorf("%+v", r)
	}
	if got := tree(t, w.dir); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

// TestAnswersNotTaken: a client that never reads.
func TestAnswersNotTaken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), func(o *Options) {
		o.WriteTimeout = 200 * time.Millisecond
		o.Silence = 2 * time.Second // TCP may come to a stop in the other direction too
	})
	write(t, filepath.Join(w.dir, "f"), "x")
	if err := os.Chtimes(filepath.Join(w.dir, "f"), time.Time{}, time.UnixMilli(someTime)); err != nil {
		t.Fatal(err)
	}
	w.narrow.Store(16 << 10)
	c := w.dial(w.session("", folder, rename))
	eventually(t, "the connection is there", func() bool {
		w.svc.mu.Lock()
		defer w.svc.mu.Unlock()
		return len(w.svc.conns) == 1
	})
	ctx, cancel := context.WithCancel(t.Context())
	var client sync.WaitGroup
	client.Go(func() {
		files := make([]listed, 2000)
		for k := 0; ; k++ {
			for i := range files {
				files[i] = listed{int32(k*len(files) + i), 1, someTime, "f"}
			}
			if c.Write(ctx, websocket.MessageBinary, listing(files...)) != nil {
				return
			}
		}
	})
	w.settle() // what the kernel still tells the client, and when, is not the server's
	cancel()
	client.Wait()
}

// TestJanitor: hidden files of killed processes go away after a day, and nothing else does.
func TestJanitor(t *testing.T) {
	t.Parallel()
	now := time.Now().Add(25 * time.Hour) // what was made a moment ago is old
	w := newWorld(t, t.TempDir(), func(o *Options) { o.Now = func() time.Time { return now } })
	draft := ".x.ucloud-upload-0123456789abcdef"
	keep := []string{"x.ucloud-upload-0123456789abcdef", ".x.ucloud-upload-0123456789abcde", ".x.ucloud-upload-0123456789abcdeg", ".bashrc", "x"}
	for _, d := range []string{"", "sub/"} {
		for _, name := range append(keep, draft) {
			write(t, filepath.Join(w.dir, d+name), "x")
		}
	}
	if err := os.Mkdir(filepath.Join(w.dir, ".d.ucloud-upload-0123456789abcdef"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("x", filepath.Join(w.dir, ".l.ucloud-upload-0123456789abcdef")); err != nil {
		t.Fatal(err)
	}
	before := len(tree(t, w.dir))
	c := w.dial(w.session("", folder, rename))
	c.binary(listing(listed{0, 1, someTime, "new"}, listed{1, 1, someTime, "sub/new"}))
	c.expect(num(opOK, 0), num(opOK, 1))
	c.binary(chunk(0, "x"))
	c.binary(chunk(1, "x"))
	eventually(t, "the old files are removed", func() bool {
		got := tree(t, w.dir)
		return got[draft] == "" && got["sub/"+draft] == ""
	})
	if got := tree(t, w.dir); len(got) != before {
		t.Errorf("%d entries, want %d", len(got), before)
	}
	// A second look is not due.
	write(t, filepath.Join(w.dir, draft), "x")
	c.binary(listing(listed{2, 1, someTime, "next"}))
	c.expect(num(opOK, 2))
	c.binary(chunk(2, "x"))
	c.expect(num(opCompleted, 3))
	c.Close(websocket.StatusNormalClosure, "")
	w.settle()
	if tree(t, w.dir)[draft] == "" {
		t.Error("looked again")
	}
}

// TestJanitorSparesTheYoung: another connection's draft is in use, whatever its modification time says.
func TestJanitorSparesTheYoung(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), nil)
	draft := ".x.ucloud-upload-0123456789abcdef"
	write(t, filepath.Join(w.dir, draft), "x")
	if err := os.Chtimes(filepath.Join(w.dir, draft), time.UnixMilli(someTime), time.UnixMilli(someTime)); err != nil {
		t.Fatal(err)
	}
	if !drives.IsDraft(draft) {
		t.Fatal("not a draft")
	}
	w.put(w.session("", folder, rename), "new", "x", someTime)
	if tree(t, w.dir)[draft] != "x" {
		t.Error("removed")
	}
}
