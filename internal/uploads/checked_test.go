package uploads

import (
	"crypto/sha256"
	"encoding/binary"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/coder/websocket"
)

func hashOf(id int32, data string) []byte {
	sum := sha256.Sum256([]byte(data))
	return append(num(opHash, id), sum[:]...)
}

func (w *world) checked(path string) UploadSession {
	w.tb.Helper()
	d := testDrive(w.dir)
	s, err := w.svc.CreateTransfer(w.tb.Context(), &d, "/5123"+path, "ref", true)
	if err != nil {
		w.tb.Fatal(err)
	}
	return s
}

// answers reads answers of the checked protocol until n files are completed. It gives the others.
func (c *script) answers(n int32) (got []string) {
	c.tb.Helper()
	names := map[byte]string{opOK: "ok", opSkip: "skip", opResume: "resume", opRejected: "rejected", opStored: "stored"}
	for {
		kind, msg, err := c.Read(c.tb.Context())
		if err != nil || kind != websocket.MessageBinary {
			c.tb.Fatalf("%v after %v", err, got)
		}
		for len(msg) > 0 {
			op, v := msg[0], int32(binary.BigEndian.Uint32(msg[1:]))
			msg = msg[5:]
			if op == opResume || op == opStored {
				msg = msg[8:]
			}
			if op != opCompleted {
				if !slices.Contains(got, names[op]) {
					got = append(got, names[op])
				}
			} else if v == n {
				return got
			}
		}
	}
}

// TestChecked: a file gets its name when its hash has come and is right, and not before.
func TestChecked(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), nil)
	s := w.checked("/in")
	large := strings.Repeat("0123456789abcdef", 20_000)
	for _, tc := range []struct {
		name, data, hashed, want string
		stored                   bool
	}{
		{"small", "hello", "hello", "[ok]", true},
		{"empty", "", "", "[ok]", true},
		{"large", large, large, "[ok stored]", true},
		{"damaged", "hellO", "hello", "[ok rejected]", false},
		{"not empty", "", "x", "[ok rejected]", false},
		{"damaged large", large[:len(large)-1] + "!", large, "[ok stored rejected]", false},
	} {
		c := w.dial(s)
		c.binary(listing(listed{0, int64(len(tc.data)), someTime, tc.name}))
		if op, _, _ := c.next(); op != opOK {
			t.Fatalf("%s: answer %d", tc.name, op)
		}
		if tc.data != "" {
			c.binary(chunk(0, tc.data))
		}
		if _, err := os.Lstat(w.dir + "/in/" + tc.name); err == nil {
			t.Errorf("%s has its name before its hash came", tc.name)
		}
		c.binary(hashOf(0, tc.hashed))
		got := append([]string{"ok"}, c.answers(1)...)
		if text := "[" + strings.Join(got, " ") + "]"; text != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, text, tc.want)
		}
		c.Close(websocket.StatusNormalClosure, "")
	}
	got := tree(t, w.dir+"/in")
	if len(got) != 3 || got["small"] != "hello" || got["large"] != large {
		t.Errorf("%d files", len(got))
	}
}

// TestHostileChecked: what makes no sense ends the connection, and without the protocol its commands are not known.
func TestHostileChecked(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), nil)
	s := w.checked("/in")
	d := testDrive(w.dir)
	plain, err := w.svc.CreateTransfer(t.Context(), &d, "/5123/plain", "x", false)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		session UploadSession
		send    [][]byte
	}{
		"hash of nothing":        {s, [][]byte{hashOf(7, "x")}},
		"hash before the end":    {s, [][]byte{listing(listed{0, 5, someTime, "a"}), chunk(0, "he"), hashOf(0, "hello")}},
		"half a hash":            {s, [][]byte{listing(listed{0, 0, someTime, "b"}), hashOf(0, "")[:20]}},
		"command of the server":  {s, [][]byte{num(opStored, 0)}},
		"hash where none is due": {plain, [][]byte{listing(listed{0, 0, someTime, "c"}), hashOf(0, "")}},
	} {
		c := w.dial(tc.session)
		for i, msg := range tc.send {
			c.binary(msg)
			if i == 0 && msg[0] == opListing {
				c.next() // wanted
			}
		}
		c.expectClose(websocket.StatusProtocolError)
		_ = name
	}
	if left := tree(t, w.dir); left["in/a"] != "" || left["in/b"] != "" {
		t.Errorf("%v", left)
	}
}

// TestCheckedResume: after a connection is lost the file goes on where it was, also in a new process; another version of
// it begins anew, and a draft that somebody has changed is noticed.
func TestCheckedResume(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := newWorld(t, dir, nil)
	s := w.checked("/in")
	data := strings.Repeat("0123456789abcdef", 20_000)
	half := data[:len(data)/2]
	send := func() {
		c := w.dial(s)
		c.binary(listing(listed{0, int64(len(data)), someTime, "f"}))
		c.next()
		c.binary(chunk(0, half))
		for got := 0; got < len(half); {
			_, msg, err := c.Read(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if msg[0] == opStored {
				got = int(binary.BigEndian.Uint64(msg[5:]))
			}
		}
		c.CloseNow()
		eventually(t, "the connection to end", func() bool {
			w.svc.mu.Lock()
			defer w.svc.mu.Unlock()
			return len(w.svc.conns) == 0
		})
	}
	resumed := func(modified int64) (from int64, c *script) {
		c = w.dial(s)
		c.binary(listing(listed{0, int64(len(data)), modified, "f"}))
		_, msg, err := c.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if msg[0] == opResume {
			from = int64(binary.BigEndian.Uint64(msg[5:]))
		}
		return from, c
	}
	send()
	if from, c := resumed(someTime + 1); from != 0 {
		t.Errorf("another version goes on at %d", from)
	} else {
		c.binary(num(opSkip, 0))
		c.answers(1)
		c.CloseNow()
	}
	from, c := resumed(someTime)
	if from != int64(len(half)) {
		t.Fatalf("it goes on at %d instead of %d", from, len(half))
	}
	c.binary(chunk(0, data[from:]))
	c.binary(hashOf(0, data))
	c.answers(1)
	c.CloseNow()
	if got := tree(t, dir+"/in"); got["f"] != data || len(got) != 1 {
		t.Errorf("%d files, right: %v", len(got), got["f"] == data)
	}
	// Once more, with a draft that was changed meanwhile.
	os.Remove(dir + "/in/f")
	send()
	for name := range tree(t, dir+"/in") {
		os.WriteFile(dir+"/in/"+name, []byte(strings.Repeat("x", len(half))), 0o600)
	}
	from, c = resumed(someTime)
	c.binary(chunk(0, data[from:]))
	c.binary(hashOf(0, data))
	if got := c.answers(1); from != int64(len(half)) || !slices.Contains(got, "rejected") {
		t.Errorf("from %d: %v", from, got)
	}
	if got := tree(t, dir+"/in"); len(got) != 0 {
		t.Errorf("left: %d files", len(got))
	}
}
