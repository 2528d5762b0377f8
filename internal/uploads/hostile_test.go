package uploads

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"

	"ucloud-im/internal/uploads/client"
)

// TestHostileListings: paths of another provider that mean to leave the folder.
func TestHostileListings(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	w := newWorld(t, filepath.Join(base, "drive"), nil)
	outside := filepath.Join(base, "outside")
	write(t, filepath.Join(outside, "keep"), "keep")
	write(t, filepath.Join(w.dir, "other", "keep"), "keep")
	write(t, filepath.Join(w.dir, "in", "sub", "keep"), "keep")
	for name, to := range map[string]string{
		"abs": outside, "up": "../..", "sibling": "../other", "self": ".", "dangling": "nowhere", "inner": "sub", "file": "sub/keep", "out": filepath.Join(outside, "made"),
	} {
		if err := os.Symlink(to, filepath.Join(w.dir, "in", name)); err != nil {
			t.Fatal(err)
		}
	}
	paths := []string{
		"../x", "../other/x", "/x", "//x", "sub/../../other/x", "sub/../x", "..", ".", "./x", "sub/./x", "sub//x", "sub/", "", "x\x00y", "\x00",
		"abs/x", "up/x", "up/outside/x", "sibling/x", "dangling/x", "file/x", "out/x", "self/../x", ".x.ucloud-upload-0123456789abcdef",
	}
	fine := []string{"self/fine1", "inner/fine2", `..\x`, "...", "..x", " ", "-rf", "out2"}
	c := w.dial(w.session("/in", folder, rename))
	var files []listed
	for i, p := range slices.Concat(paths, fine, []string{"abs", "out"}) { // the last two are replaced, as entries
		files = append(files, listed{int32(i), 1, someTime, p})
	}
	c.binary(listing(files...))
	for done := int32(0); done < int32(len(files)); {
		op, v, ok := c.next()
		if !ok {
			t.Fatal(c.err)
		}
		switch op {
		case opOK:
			if int(v) < len(paths) {
				t.Errorf("%q is wanted", paths[v])
			}
			c.binary(chunk(v, "!"))
		case opSkip:
			if int(v) >= len(paths) {
				t.Errorf("%q is not wanted", files[v].path)
			}
		case opCompleted:
			done = v
		}
	}
	c.Close(websocket.StatusNormalClosure, "")
	w.settle()
	if got := tree(t, outside); len(got) != 1 || got["keep"] != "keep" {
		t.Errorf("outside: %v", got)
	}
	got := tree(t, filepath.Join(w.dir, "in"))
	for _, p := range []string{"fine1", "sub/fine2", `..\x`, "...", "..x", " ", "-rf", "out2", "abs", "out"} {
		if got[p] != "!" {
			t.Errorf("%q: %q", p, got[p])
		}
	}
	if got := tree(t, filepath.Join(w.dir, "other")); len(got) != 1 {
		t.Errorf("beside the folder: %v", got)
	}
	if r := <-w.reports; r.Count != len(paths) {
		t.Errorf("%d files are reported, want %d", r.Count, len(paths))
	}
}

// TestSwapRace exchanges directories for links while files are uploaded into them.
//
//attack:actor local user
//attack:does Exchanges the folder of an upload to a shared project for a link while the files arrive.
//attack:control Files are made by descriptors beneath the drive.
//attack:remove internal/drives/create.go: fd, err = openat2(d.fd, rel, flags, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_MAGICLINKS) => fd, err = openat2(d.fd, rel, flags, 0)
func TestSwapRace(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	w := newWorld(t, filepath.Join(base, "drive"), nil)
	outside := filepath.Join(base, "outside")
	for _, d := range []string{outside, filepath.Join(w.dir, "in", "d"), filepath.Join(base, "drive", "in")} {
		if err := os.MkdirAll(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	link, dir := filepath.Join(w.dir, "in", "link"), filepath.Join(w.dir, "in", "d")
	if err := os.Symlink(outside, link); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var swapper sync.WaitGroup
	swaps := 0
	swapper.Go(func() {
		for ; ctx.Err() == nil; swaps++ {
			if err := unix.Renameat2(unix.AT_FDCWD, link, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE); err != nil {
				t.Error(err)
				return
			}
			if swaps%2 == 1 { // it is a directory half of the time
				time.Sleep(50 * time.Microsecond)
			}
		}
	})
	files := func(yield func(*uploadclient.File, error) bool) {
		for i := range rounds(10_000, 3000) {
			f := sourceOf(fmt.Sprintf("d/%d/x", i%50), int64(1+i%3))
			if i%100 == 0 {
				f = sourceOf(fmt.Sprintf("d/big%d", i), smallBytes+10)
			}
			f.Modified = time.UnixMilli(someTime + int64(i)*1000)
			if !yield(f, nil) {
				return
			}
		}
	}
	res := send(t, w.session("/in", folder, rename), uploadclient.Options{}, iter.Seq2[*uploadclient.File, error](files))
	cancel()
	swapper.Wait()
	if got := tree(t, outside); len(got) != 0 {
		t.Errorf("%d entries outside", len(got))
	}
	t.Logf("%+v, %d swaps", res, swaps)
	if res.Sent == 0 || swaps < 10 {
		t.Error("there was no race")
	}
	w.settle()
	for name := range tree(t, filepath.Join(w.dir, "in")) {
		if strings.Contains(name, ".ucloud-upload-") {
			t.Errorf("%s is left", name)
		}
	}
}

// TestDisconnect cuts connections at every stage and looks for what is left.
func TestDisconnect(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), nil)
	write(t, filepath.Join(w.dir, "big"), "old")
	s := w.session("", folder, rename)
	before := descriptors(t)
	for stage := range 6 {
		c := w.dial(s)
		if stage > 0 {
			c.binary(listing(listed{0, 1 << 20, someTime, "big"}, listed{1, 1000, someTime, "small"}, listed{2, 1 << 20, someTime, "sub/big"}))
		}
		if stage > 1 {
			c.expect(num(opOK, 0), num(opOK, 1), num(opOK, 2))
		}
		if stage > 2 {
			c.binary(chunk(0, string(make([]byte, 1<<19))))
			c.binary(chunk(1, "part"))
		}
		if stage > 3 {
			c.binary(chunk(2, string(make([]byte, 1<<20-1))))
		}
		if stage > 4 { // in the middle of a message
			wr, err := c.Writer(t.Context(), websocket.MessageBinary)
			if err != nil {
				t.Fatal(err)
			}
			wr.Write(chunk(2, ""))
			wr.Write(make([]byte, 100_000))
		}
		c.CloseNow()
		w.settle()
		for name, content := range tree(t, w.dir) {
			if name != "sub" && (name != "big" || content != "old") {
				t.Errorf("stage %d: %s with %d bytes", stage, name, len(content))
			}
		}
	}
	eventually(t, "all descriptors are closed", func() bool { return descriptors(t) <= before })
	// The process ends while uploads are under way.
	c := w.dial(s)
	c.binary(listing(listed{0, 1 << 20, someTime, "big"}))
	c.expect(num(opOK, 0))
	c.binary(chunk(0, string(make([]byte, 1<<19))))
	eventually(t, "the draft is there", func() bool { return openDrafts(t, w.dir) == 1 })
	var end sync.WaitGroup
	end.Go(func() {
		if err := w.svc.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
	c.expectClose(websocket.StatusGoingAway)
	end.Wait()
	if got := tree(t, w.dir); len(got) != 2 || got["big"] != "old" {
		t.Errorf("after the end: %d entries", len(got))
	}
}

// descriptors counts those that are files of a test directory.
func descriptors(t *testing.T) (n int) {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range list {
		if to, err := os.Readlink("/proc/self/fd/" + d.Name()); err == nil && strings.Contains(to, t.Name()) {
			n++
		}
	}
	return n
}

// openDrafts counts the files that are being written in a directory. They have no name where the file system can do that.
func openDrafts(t *testing.T, dir string) (n int) {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range list {
		to, err := os.Readlink("/proc/self/fd/" + d.Name())
		if err == nil && (strings.HasPrefix(to, dir+"/#") || strings.HasPrefix(to, dir+"/.") && strings.Contains(to, ".ucloud-upload-")) {
			n++
		}
	}
	return n
}

// TestCompleteAtTheEnd: a file of which everything has arrived is stored although the client is gone.
func TestCompleteAtTheEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), nil)
	c := w.dial(w.session("", folder, rename))
	c.binary(listing(listed{0, 1 << 20, someTime, "big"}, listed{1, 3, someTime, "small"}))
	c.expect(num(opOK, 0), num(opOK, 1))
	c.binary(chunk(0, string(make([]byte, 1<<20))))
	c.binary(chunk(1, "abc"))
	c.Close(websocket.StatusNormalClosure, "")
	w.settle()
	if got := tree(t, w.dir); len(got) != 2 || len(got["big"]) != 1<<20 || got["small"] != "abc" {
		t.Errorf("%d entries", len(got))
	}
}

// TestHostileMemory: a client that lists without end, asks for nothing and reads nothing.
func TestHostileMemory(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), func(o *Options) {
		o.MaxListed = 120_000
		o.Settings.Bytes = 8 << 20
	})
	listed := func() int64 {
		w.svc.mu.Lock()
		defer w.svc.mu.Unlock()
		return w.svc.listing
	}
	c := w.dial(w.session("", folder, rename))
	go io.Copy(io.Discard, readerOf(c)) // ends with the connection
	path := strings.Repeat("p", 200)
	msg := []byte{opListing}
	most := int64(0)
	id := uint32(0)
	for range 100 {
		msg = msg[:1]
		for range 1000 {
			msg = binary.BigEndian.AppendUint32(msg, id)
			msg = binary.BigEndian.AppendUint64(msg, 1<<40)
			msg = binary.BigEndian.AppendUint64(msg, uint64(someTime))
			msg = binary.BigEndian.AppendUint32(msg, uint32(len(path)))
			msg = append(msg, path...)
			id++
		}
		if err := c.Write(t.Context(), websocket.MessageBinary, msg); err != nil {
			t.Fatal(err)
		}
		most = max(most, listed())
	}
	if most > 16<<20 {
		t.Errorf("%d bytes for listings", most)
	}
	// Data beyond the budget stays in the socket. The files that were asked for take it while nothing else is read.
	w.svc.mu.Lock()
	used, large := w.svc.used, w.svc.large
	w.svc.mu.Unlock()
	if used > 8<<20 || large > 64 {
		t.Errorf("%d bytes, %d files", used, large)
	}
	c.CloseNow()
	w.settle()

	// Too many, or ids all over the place, end the connection.
	c = w.dial(w.session("", folder, rename))
	for i := range 3000 {
		if err := c.Write(t.Context(), websocket.MessageBinary, listing(manyListed(i)...)); err != nil {
			break
		}
	}
	c.expectClose(websocket.StatusPolicyViolation)
	w.settle()
}

// TestListingMemory: what one connection may keep, all together may not.
func TestListingMemory(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), func(o *Options) { o.ListingBytes = 200 << 10; o.SmallFiles = 1 })
	s := w.session("", folder, rename)
	c := w.dial(s)
	var files []listed
	for i := range 2000 {
		files = append(files, listed{int32(i), 1, someTime, strings.Repeat("p", 200)})
	}
	c.binary(listing(files...))
	c.expectClose(websocket.StatusPolicyViolation)
	w.settle()
	// It has been given back.
	if got := w.put(s, "f", "x", someTime); got != opOK {
		t.Errorf("answer %d", got)
	}
}

func readerOf(c *script) io.Reader {
	r, w := io.Pipe()
	go func() { // ends with the connection
		for {
			if _, _, err := c.Read(context.Background()); err != nil {
				w.CloseWithError(err)
				return
			}
		}
	}()
	return r
}

func manyListed(i int) (files []listed) {
	for j := range 10 {
		files = append(files, listed{int32(uint32(i*10+j) * 100_003), 1 << 40, someTime, "p"})
	}
	return files
}

// TestDataBudget: a client that sends to many files at once, over several connections, faster than the disk.
func TestDataBudget(t *testing.T) {
	t.Parallel()
	const limit = 2 << 20
	w := newWorld(t, t.TempDir(), func(o *Options) { o.Settings.Bytes = limit; o.Settings.Streams = 2; o.ConnBytes = 1 << 20 })
	ctx, cancel := context.WithCancel(context.Background())
	var watch sync.WaitGroup
	most := int64(0)
	watch.Go(func() {
		for ctx.Err() == nil {
			w.svc.mu.Lock()
			most = max(most, w.svc.used)
			w.svc.mu.Unlock()
			time.Sleep(100 * time.Microsecond)
		}
	})
	var all sync.WaitGroup
	for k := range 4 {
		s := w.session(fmt.Sprint("/", k), folder, rename)
		all.Go(func() {
			var files []*uploadclient.File
			for i := range 12 {
				files = append(files, sourceOf(fmt.Sprint("f", i), int64(rounds(3<<20, 1<<18))))
				files = append(files, sourceOf(fmt.Sprint("s", i), smallBytes))
			}
			send(t, s, uploadclient.Options{Parallel: 8, Chunk: 1 << 20}, seqOf(files...))
		})
	}
	all.Wait()
	cancel()
	watch.Wait()
	if most > limit {
		t.Errorf("%d bytes in memory", most)
	}
	for k := range 4 {
		if got := tree(t, filepath.Join(w.dir, fmt.Sprint(k))); len(got) != 24 {
			t.Errorf("%d files", len(got))
		}
	}
}

// TestListingBehindData: a provider lists everything first, and the data of the first files queues behind. Reading must
// never wait for a decision.
func TestListingBehindData(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), nil)
	w.narrow.Store(narrowBytes)
	c := w.dial(w.session("", folder, rename))
	const n = 4000
	var files []listed
	for i := range n {
		files = append(files, listed{int32(i), 1, someTime, fmt.Sprintf("d%d/%0200d", i%7, i)})
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for chunk := range slices.Chunk(files, 500) {
			c.binary(listing(chunk...))
		}
	}()
	<-done
	var out bytes.Buffer
	for counted := int32(0); counted < n; {
		op, v, ok := c.next()
		if !ok {
			t.Fatal(c.err)
		}
		switch op {
		case opOK:
			c.binary(chunk(v, "x"))
		case opCompleted:
			counted = v
		default:
			fmt.Fprintln(&out, op, v)
		}
	}
	if out.Len() > 0 {
		t.Errorf("other answers: %s", out.String())
	}
}
