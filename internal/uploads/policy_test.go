package uploads

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
)

// put uploads one file over a connection of its own and gives the first answer.
func (w *world) put(s UploadSession, path, content string, modified int64) byte {
	w.tb.Helper()
	c := w.dial(s)
	c.binary(listing(listed{7, int64(len(content)), modified, path}))
	op, _, ok := c.next()
	if !ok {
		w.tb.Fatal(c.err)
	}
	if op == opOK {
		c.binary(chunk(7, content))
	}
	c.expect(num(opCompleted, 1))
	c.Close(websocket.StatusNormalClosure, "")
	w.settle()
	return op
}

// TestPolicies: what becomes of a file that is there, for each policy and kind (contract 11 section 2.4).
func TestPolicies(t *testing.T) {
	t.Parallel()
	const later = someTime + 100_000
	for _, tc := range []struct {
		name     string
		kind     string
		policy   providerapi.ConflictPolicy
		content  string
		modified int64
		answer   byte
		want     map[string]string
		reported int
	}{
		{"file, rename, same", kindFile, rename, "old", someTime, opOK, map[string]string{"f.x": "old", "f(1).x": "old"}, 0},
		{"file, rename, other", kindFile, rename, "new", later, opOK, map[string]string{"f.x": "old", "f(1).x": "new"}, 0},
		{"file, replace, same", kindFile, replace, "NEW", someTime, opOK, map[string]string{"f.x": "NEW"}, 0},
		{"file, replace, a moment later", kindFile, replace, "NEW", someTime + 900, opOK, map[string]string{"f.x": "NEW"}, 0},
		{"file, merge, same", kindFile, merge, "old", someTime, opSkip, map[string]string{"f.x": "old"}, 0},
		{"file, merge, other", kindFile, merge, "new", later, opOK, map[string]string{"f.x": "old", "f(1).x": "new"}, 0},
		{"folder, rename, same", folder, rename, "old", someTime, opSkip, map[string]string{"f.x": "old"}, 0},
		{"folder, rename, other", folder, rename, "new", later, opOK, map[string]string{"f.x": "new"}, 0},
		{"folder, replace, same", folder, replace, "old", someTime, opSkip, map[string]string{"f.x": "old"}, 0},
		{"folder, replace, other", folder, replace, "new", later, opOK, map[string]string{"f.x": "new"}, 0},
		{"folder, reject, other", folder, reject, "new", later, opSkip, map[string]string{"f.x": "old"}, 0},
		{"folder, merge, same", folder, merge, "old", someTime, opSkip, map[string]string{"f.x": "old"}, 0},
		{"folder, merge, other", folder, merge, "new", later, opOK, map[string]string{"f.x": "old", "f(1).x": "new"}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, t.TempDir(), nil)
			path, rel := "/f.x", ""
			if tc.kind == folder {
				path, rel = "", "f.x"
			}
			old := filepath.Join(w.dir, "f.x")
			write(t, old, "old")
			if err := os.Chtimes(old, time.Time{}, time.UnixMilli(someTime)); err != nil {
				t.Fatal(err)
			}
			s := w.session(path, tc.kind, tc.policy)
			if got := w.put(s, rel, tc.content, tc.modified); got != tc.answer {
				t.Errorf("answer %d, want %d", got, tc.answer)
			}
			if diff := cmp.Diff(tc.want, tree(t, w.dir)); diff != "" {
				t.Error(diff)
			}
			// Sent again in the same session, it is recognised, except by an editor that saves.
			again := byte(opSkip)
			if tc.kind == kindFile && tc.policy == replace {
				again = opOK
			}
			if got := w.put(s, rel, tc.content, tc.modified); got != again {
				t.Errorf("answer the second time %d, want %d", got, again)
			}
			if diff := cmp.Diff(tc.want, tree(t, w.dir)); diff != "" {
				t.Errorf("the second time: %s", diff)
			}
			if len(w.reports) != tc.reported {
				t.Errorf("%d reports", len(w.reports))
			}
		})
	}
}

// TestRejectIsHeardOf: the file came into being after the session was made.
func TestRejectIsHeardOf(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), nil)
	s := w.session("/f", kindFile, reject)
	write(t, filepath.Join(w.dir, "f"), "theirs")
	if got := w.put(s, "", "mine", someTime); got != opSkip {
		t.Errorf("answer %d", got)
	}
	r := <-w.reports
	if r.Count != 1 || r.Fatal || r.Path != "/5123/f" || r.Title() != "Upload of f: 1 file failed: A file with this name already exists" {
		t.Errorf("%+v: %s", r, r.Title())
	}
	// In the last moment it is the kernel that decides.
	s = w.session("/g", kindFile, reject)
	c := w.dial(s)
	c.binary(listing(listed{0, 4, someTime, ""}))
	c.expect(num(opOK, 0))
	write(t, filepath.Join(w.dir, "g"), "theirs")
	c.binary(chunk(0, "mine"))
	c.expect(num(opCompleted, 1))
	c.Close(websocket.StatusNormalClosure, "")
	w.settle()
	if diff := cmp.Diff(map[string]string{"f": "theirs", "g": "theirs"}, tree(t, w.dir)); diff != "" {
		t.Error(diff)
	}
	if r := <-w.reports; r.Count != 1 {
		t.Errorf("%+v", r)
	}
}

// TestTwoTabs: two sessions for the same name, and the same moment, give two files.
func TestTwoTabs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), nil)
	one, two := w.dial(w.session("/x", kindFile, rename)), w.dial(w.session("/x", kindFile, rename))
	for i, c := range []*script{one, two} {
		c.binary(listing(listed{0, 100_000, someTime, ""}))
		c.expect(num(opOK, 0))
		c.binary(chunk(0, string(make([]byte, 50_000+i))))
	}
	for i, c := range []*script{one, two} {
		c.binary(chunk(0, string(make([]byte, 50_000-i))))
	}
	one.expect(num(opCompleted, 1))
	two.expect(num(opCompleted, 1))
	got := tree(t, w.dir)
	if len(got) != 2 || len(got["x"]) != 100_000 || len(got["x(1)"]) != 100_000 {
		t.Errorf("%d files", len(got))
	}
}

// TestReplacedFileStaysUsable: old content until the new one is complete, and its permissions after that.
func TestReplacedFileStaysUsable(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), nil)
	path := filepath.Join(w.dir, "script.sh")
	write(t, path, "old")
	if err := os.Chmod(path, 0o751); err != nil {
		t.Fatal(err)
	}
	c := w.dial(w.session("/script.sh", kindFile, replace))
	c.binary(listing(listed{0, 200_000, someTime, ""}))
	c.expect(num(opOK, 0))
	c.binary(chunk(0, string(make([]byte, 199_999))))
	eventually(t, "the draft is there", func() bool { return openDrafts(t, w.dir) == 1 })
	if got := tree(t, w.dir)["script.sh"]; got != "old" {
		t.Errorf("content %q while the new one is under way", got)
	}
	c.binary(chunk(0, "x"))
	c.expect(num(opCompleted, 1))
	info, err := os.Stat(path)
	if err != nil || info.Size() != 200_000 || info.Mode() != 0o751 || info.ModTime().UnixMilli() != someTime {
		t.Errorf("%v %v %v", info.Size(), info.Mode(), err)
	}
	if len(tree(t, w.dir)) != 1 {
		t.Error("something is left")
	}
}

// TestNoteSurvivesTheServer: the session's own file is recognised also if the server was away when it was named.
func TestNoteSurvivesTheServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), nil)
	s := w.session("/f", kindFile, rename)
	c := w.dial(s)
	c.binary(listing(listed{0, 3, someTime, ""}))
	c.expect(num(opOK, 0))
	w.store.fail(failure.New(failure.Unavailable, "away"))
	c.binary(chunk(0, "abc"))
	c.expect(num(opCompleted, 1)) // what is under way goes on
	c.CloseNow()
	w.settle()
	w.store.fail(nil)
	if got := w.put(s, "", "abc", someTime); got != opSkip {
		t.Errorf("answer %d", got)
	}
	if got := tree(t, w.dir); len(got) != 1 {
		t.Errorf("%v", got)
	}
}

// TestTransferSession: a folder, or a single file in its place, until the peer says that it is over.
func TestTransferSession(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), nil)
	d := testDrive(w.dir)
	s, err := w.svc.CreateTransfer(t.Context(), &d, "/5123/inbox", "task 5", false)
	if err != nil {
		t.Fatal(err)
	}
	w.put(s, "a/b", "content", someTime)
	s2, err := w.svc.CreateTransfer(t.Context(), &d, "/5123/single", "", false)
	if err != nil {
		t.Fatal(err)
	}
	w.put(s2, "", "single", someTime)
	w.put(s2, "", "single", someTime)
	if got := w.put(s2, "", "other!", someTime+5000); got != opOK {
		t.Errorf("answer %d", got)
	}
	want := map[string]string{"inbox": "/", "inbox/a": "/", "inbox/a/b": "content", "single": "single", "single(1)": "other!"}
	if diff := cmp.Diff(want, tree(t, w.dir)); diff != "" {
		t.Error(diff)
	}
	c := w.dial(s)
	c.binary([]byte{opClose})
	c.expectClose(websocket.StatusNormalClosure)
	if i := <-w.closed; i.Ref != "task 5" || !i.Transfer || i.Path != "/5123/inbox" {
		t.Errorf("%+v", i)
	}
	if len(w.store.closed) != 1 || w.store.closed[0] != s.Token {
		t.Errorf("closed %v", w.store.closed)
	}
	if _, err := w.svc.CreateTransfer(t.Context(), &d, "/5123", "", false); err != nil {
		t.Errorf("a drive as target: %v", err)
	}
	drive, err := w.svc.CreateTransfer(t.Context(), &d, "/5123", "", false)
	if err != nil {
		t.Fatal(err)
	}
	if got := w.put(drive, "", "x", someTime); got != opSkip { // a drive cannot be a file
		t.Errorf("answer %d", got)
	}
}

func TestSameTime(t *testing.T) {
	t.Parallel()
	at := time.UnixMilli(someTime) // with a fraction
	second := at.Truncate(time.Second)
	for name, tc := range map[string]struct {
		have, want time.Time
		same       bool
	}{
		"equal":                     {at, at, true},
		"nanoseconds":               {at.Add(999 * time.Microsecond), at, true},
		"another millisecond":       {at.Add(5 * time.Millisecond), at, false},
		"seconds only":              {second, at, true},
		"rounded up":                {second.Add(time.Second), at, true},
		"two seconds":               {second.Add(-2 * time.Second), second, true},
		"too far for any":           {second.Add(-3 * time.Second), second, false},
		"a minute, as the old ones": {at.Add(59 * time.Second), at, false},
	} {
		if got := sameTime(tc.have, tc.want); got != tc.same {
			t.Errorf("%s: %v", name, got)
		}
	}
}
