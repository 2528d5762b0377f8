package uploads

import (
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"pgregory.net/rapid"
)

// model is a client that does what the generator says, and knows what must come of it.
type model struct {
	t       *rapid.T
	c       *script
	files   map[int32]*modelFile
	listed  int32
	counted int32 // as the server says
	want    map[string]string
}

type modelFile struct {
	size    int64
	path    string
	sent    int64
	ok      bool
	over    bool // skipped by a side, whole, or spoilt
	content strings.Builder
}

// TestAccounting: whatever a client does within the protocol, each listed file counts exactly once, and what is complete
// is there with its content.
func TestAccounting(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		dir := t.TempDir()
		w := newWorld(t, dir, func(o *Options) { o.SmallFiles = 3; o.ConnFiles = 2 })
		m := &model{t: rt, c: w.dial(w.session("", folder, rename)), files: map[int32]*modelFile{}, want: map[string]string{}}
		sizes := []int64{-1, 0, 1, 7, 1000, smallBytes, smallBytes + 1, 300_000}
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			var open []int32
			for id, f := range m.files {
				if f.ok && !f.over {
					open = append(open, id)
				}
			}
			slices.Sort(open)
			switch step := rapid.IntRange(0, 9).Draw(rt, "step"); {
			case step < 3:
				var files []listed
				for range rapid.IntRange(1, 4).Draw(rt, "files") {
					f := listed{m.listed, rapid.SampledFrom(sizes).Draw(rt, "size"), someTime, ""}
					f.path = rapid.SampledFrom([]string{"f%d", "d/f%d", "../f%d", "/f%d", "d//f%d", "\x00%d"}).Draw(rt, "path")
					f.path = fmt.Sprintf(f.path, f.id)
					m.files[f.id] = &modelFile{size: f.size, path: f.path}
					m.listed++
					files = append(files, f)
				}
				m.c.binary(listing(files...))
			case step < 7 && len(open) > 0:
				id := rapid.SampledFrom(open).Draw(rt, "file")
				m.send(id, rapid.Int64Range(0, m.files[id].size+1).Draw(rt, "bytes"))
			case step < 8 && m.listed > 0: // a skip of anything, at any time
				id := rapid.Int32Range(0, m.listed-1).Draw(rt, "skipped")
				m.c.binary(num(opSkip, id))
				m.files[id].over = true
				if f := m.files[id]; f.sent == f.size && f.ok {
					continue // it was complete already
				}
				// Whether an empty file was stored before the skip arrived is not known.
				delete(m.want, m.files[id].path)
			case step < 9 && m.listed > 0: // late data for what is over
				id := rapid.Int32Range(0, m.listed-1).Draw(rt, "late")
				if f := m.files[id]; f.over && f.ok {
					m.c.binary(chunk(id, rapid.SampledFrom([]string{"", "late"}).Draw(rt, "data")))
				}
			default:
				m.settle(false)
			}
		}
		m.settle(true)
		m.c.Close(websocket.StatusNormalClosure, "")
		w.settle()
		got := tree(t, dir)
		maps.DeleteFunc(got, func(name, content string) bool { return content == "/" })
		for name, content := range m.want {
			if got[name] != content {
				rt.Errorf("%s has %d bytes, want %d", name, len(got[name]), len(content))
			}
			delete(got, name)
		}
		for name, content := range got {
			f := m.files[idOf(name)]
			if f == nil || filepath.Base(f.path) != filepath.Base(name) || int64(len(content)) != f.size || content != f.content.String() {
				rt.Errorf("%s should not be there, with %d bytes", name, len(content))
			}
		}
		if err := w.svc.Close(t.Context()); err != nil {
			rt.Error(err)
		}
	})
}

func idOf(name string) int32 {
	var id int32
	fmt.Sscanf(filepath.Base(name), "f%d", &id)
	return id
}

// send sends up to n bytes of a file; one more than it has spoils it.
func (m *model) send(id int32, n int64) {
	f := m.files[id]
	data := make([]byte, min(n, f.size+1-f.sent))
	for i := range data {
		data[i] = byte('a' + (int(id)+i)%26)
	}
	m.c.binary(chunk(id, string(data)))
	f.sent += int64(len(data))
	switch {
	case f.sent > f.size:
		f.over = true
		if f.sent-int64(len(data)) == f.size {
			return // it was complete before
		}
		delete(m.want, f.path)
	default:
		f.content.Write(data)
		if f.sent == f.size {
			f.over = true
			m.want[f.path] = f.content.String()
		}
	}
}

// settle takes answers. With all it finishes every file and waits for the last count.
func (m *model) settle(all bool) {
	deadline := time.Now().Add(patience)
	for m.counted < m.listed && (all || m.wanted() == 0) {
		if time.Now().After(deadline) {
			m.t.Fatalf("%d of %d files are counted", m.counted, m.listed)
		}
		if all {
			for id, f := range m.files {
				if f.ok && !f.over {
					m.send(id, f.size-f.sent)
				}
			}
		}
		op, v, ok := m.c.next()
		if !ok {
			m.t.Fatalf("the connection ended: %v", m.c.err)
		}
		switch op {
		case opCompleted:
			if v < m.counted || v > m.listed {
				m.t.Fatalf("count %d after %d of %d", v, m.counted, m.listed)
			}
			m.counted = v
		case opOK:
			f := m.files[v]
			if f.ok {
				m.t.Fatalf("OK for %d twice", v)
			}
			f.ok = true
			if f.size == 0 && !f.over {
				f.over = true
				m.want[f.path] = ""
			}
			if f.over {
				continue
			}
			if all {
				m.send(v, f.size)
			}
		case opSkip:
			f := m.files[v]
			if f.ok {
				m.t.Fatalf("SKIP for %d after OK", v)
			}
			f.over = true
		}
	}
	if all {
		for id, f := range m.files {
			if f.ok && !f.over {
				m.t.Fatalf("file %d was counted before it was sent", id)
			}
		}
	}
}

func (m *model) wanted() (n int) {
	for _, f := range m.files {
		if f.ok && !f.over {
			n++
		}
	}
	return n
}

// FuzzMessages: no message makes the server crash, hang, or write outside of the folder.
func FuzzMessages(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(listing(listed{0, 3, someTime, "a"}))
	f.Add(slices.Concat([]byte("\x03\x00\x00\x00\x00"), chunk(0, "abc")))
	f.Add([]byte("\x06"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m := newMessage()
		for _, n := range []int{1, 3, 1 << 20} { // in pieces of any size
			m.reset(&pieceReader{raw, n})
			op, err := m.take(1)
			if err != nil {
				continue
			}
			if op[0] == opListing {
				for {
					e, path, err := m.readEntry()
					if err != nil {
						break
					}
					if len(path) > maxListingPath || e.long && path != nil {
						t.Fatalf("path of %d bytes", len(path))
					}
				}
			}
			if err := m.discard(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

type pieceReader struct {
	data []byte
	n    int
}

func (r *pieceReader) Read(p []byte) (int, error) {
	if len(r.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), r.n)], r.data)
	r.data = r.data[n:]
	return n, nil
}

// FuzzSplitListed: what is accepted leads nowhere but down.
func FuzzSplitListed(f *testing.F) {
	for _, s := range []string{"", "a", "a/b", "/a", "a/", "a//b", "../a", "a/../b", ".", "a/./b", "a\x00b", `..\a`, strings.Repeat("a/", 3000), strings.Repeat("n", 256)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		dir, name, err := splitListed(path)
		if err != nil {
			return
		}
		full := name
		if dir != "" {
			full = dir + "/" + name
		}
		if full != path || filepath.Clean(path) != path || filepath.IsAbs(path) || !filepath.IsLocal(path) || strings.Contains(name, "/") || strings.ContainsRune(path, 0) {
			t.Fatalf("%q gives %q and %q", path, dir, name)
		}
	})
}

// TestQueue compares the queue of listed files with a slice, over the border between memory and file.
func TestQueue(t *testing.T) {
	t.Parallel()
	held := int64(0)
	q := queue{dir: t.TempDir(), charge: func(n int64) error { held += n; return nil }}
	rng := rand.New(rand.NewPCG(1, 2))
	var want []entry
	next := uint32(0)
	most := int64(0)
	for round := range 15 {
		pushes := rng.IntN(60_000)
		if round%3 == 2 {
			pushes = 0
		}
		for range pushes {
			e := entry{id: next, size: rng.Int64() - rng.Int64(), modified: rng.Int64(), path: strings.Repeat("p", rng.IntN(200))}
			if rng.IntN(1000) == 0 {
				e.path, e.long = "", true
			}
			next++
			if err := q.push(e, []byte(e.path)); err != nil {
				t.Fatal(err)
			}
			want = append(want, e)
		}
		most = max(most, held)
		for range rng.IntN(20_000 + 40_000*(round%3)) {
			got, ok, err := q.pop()
			if err != nil || ok != (len(want) > 0) {
				t.Fatal(ok, err)
			}
			if !ok {
				break
			}
			if got != want[0] {
				t.Fatalf("got %+v, want %+v", got, want[0])
			}
			want = want[1:]
		}
		if q.len() != len(want) {
			t.Fatalf("length %d, want %d", q.len(), len(want))
		}
	}
	if q.spill == nil {
		t.Error("nothing was spilled: the test is too small")
	}
	if limit := int64(memorySegments+4) * segmentBytes; most > limit {
		t.Errorf("%d bytes in memory", most)
	}
	q.close()
	if held != 0 {
		t.Errorf("%d bytes are still accounted for", held)
	}
}

func TestIDs(t *testing.T) {
	t.Parallel()
	held := int64(0)
	ids := idTable{charge: func(n int64) error { held += n; return nil }}
	want := map[uint32]idState{}
	rng := rand.New(rand.NewPCG(3, 4))
	for range 200_000 {
		id := rng.Uint32N(1 << 20)
		if rng.IntN(4) == 0 {
			id |= 0xfff << 20 // negative ones
		}
		s := idState(rng.IntN(4))
		if err := ids.set(id, s); err != nil {
			t.Fatal(err)
		}
		want[id] = s
	}
	for id := range uint32(1 << 20) {
		if got := ids.get(id); got != want[id] {
			t.Fatalf("%d: %d, want %d", id, got, want[id])
		}
	}
	var err error
	for id := uint32(0); err == nil; id += idsPerPage {
		err = ids.set(id, idInUse)
	}
	if err != errScattered || held > 17<<20 {
		t.Errorf("%v, %d bytes", err, held)
	}
	ids.close()
	if held != 0 {
		t.Errorf("%d bytes are still accounted for", held)
	}
}
