//go:build e2e

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"maps"
	"mime"
	"net/http"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit/webclient"
)

// TestTorture takes names and trees that break things through every call and back, and compares both sides by walking
// them.
func TestTorture(t *testing.T) {
	w := newWorld(t, settings{})
	ada := w.addPerson("Ada#1815")
	w.running(ada)
	d := w.desk(ada)
	outside := t.TempDir()
	w.must(os.WriteFile(outside+"/treasure", []byte("untouched"), 0o666))

	openWorkshop(t, d.dir).folder("tree", 0o755, func(s *workshop) { s.torture(outside) })
	d.own("tree")
	// Hard links become files of their own; everything else is kept.
	before := snapshot(t, d.local("tree"))
	if longest := longestPath(before); longest < 4096 {
		t.Fatalf("the longest path has only %d bytes", longest)
	}

	t.Run("browse and retrieve", func(t *testing.T) { d.in(t).everythingListed("tree", before) })
	t.Run("download", func(t *testing.T) { d.in(t).everythingDownloads("tree", before) })
	t.Run("search", func(t *testing.T) { d.in(t).everythingFound("tree", before) })
	t.Run("copy, move, trash", func(t *testing.T) {
		d := d.in(t)
		d.copy("tree", "copy", providerapi.ConflictReject, http.StatusOK)
		d.ended(providerapi.TaskSuccess)
		same(t, "the copy", before, snapshot(t, d.local("copy")))
		d.copy("tree", "copy", providerapi.ConflictRename, http.StatusOK)
		d.ended(providerapi.TaskSuccess)
		same(t, "the renamed copy", before, snapshot(t, d.local("copy(1)")))
		same(t, "the source of copies", before, snapshot(t, d.local("tree")))
		d.copy("tree", "tree/modes/itself", providerapi.ConflictRename, http.StatusBadRequest)
		d.copy("tree", "copy", providerapi.ConflictReject, http.StatusConflict)

		inode := snapshot(t, d.local("copy"))
		d.move("copy", "moved\n\xff", providerapi.ConflictReject, http.StatusOK)
		moved := snapshot(t, d.local("moved\n\xff"))
		same(t, "what was moved", before, moved)
		for rel, n := range moved {
			if n.inode != inode[rel].inode {
				t.Fatalf("%q is another file after the move", rel)
			}
		}
		d.move("moved\n\xff", "copy", providerapi.ConflictReject, http.StatusOK)
		d.move("tree", "tree too", providerapi.ConflictReject, http.StatusOK)
		note := make([]byte, 10)
		if n, err := unix.Getxattr(d.local("tree too/attributes/with attribute"), "user.note", note); err != nil || string(note[:n]) != "kept" {
			t.Errorf("the attribute after a move: %q, %v", note, err)
		}
		d.move("tree too", "tree", providerapi.ConflictReject, http.StatusOK)
		d.trash("copy", http.StatusOK)
		same(t, "what is in the trash", before, snapshot(t, d.local("Trash/copy")))
		d.move("copy(1)", "copy", providerapi.ConflictReject, http.StatusOK)
		d.trash("copy", http.StatusOK)
		same(t, "what came second into the trash", before, snapshot(t, d.local("Trash/copy(1)")))
		d.trash("Trash/copy", http.StatusBadRequest)
		d.move("Trash/copy", "back", providerapi.ConflictReject, http.StatusOK)
		same(t, "what came back from the trash", before, snapshot(t, d.local("back")))
		d.trash("back", http.StatusOK)
		// As in a shell, nobody removes what is in a folder that is not writable; not even its owner.
		d.emptyTrash(http.StatusOK)
		if task := d.ended(providerapi.TaskFailure); !strings.Contains(text(task.Status.Progress), "4 of ") {
			t.Errorf("the task says %q", text(task.Status.Progress))
		}
		d.loosen("Trash")
		d.emptyTrash(http.StatusOK)
		d.ended(providerapi.TaskSuccess)
		if left, err := os.ReadDir(d.local("Trash")); err != nil || len(left) > 0 {
			t.Errorf("left in the trash: %v, %v", left, err)
		}
		same(t, "the source after all", before, snapshot(t, d.local("tree")))
		d.noDrafts()
	})
	t.Run("each name", func(t *testing.T) { d.in(t).eachName() })
	t.Run("upload a folder", func(t *testing.T) { d.in(t).uploadFolder(outside) })
	t.Run("what cannot be copied", func(t *testing.T) { d.in(t).copyBroken() })
	t.Run("delete", func(t *testing.T) {
		d := d.in(t)
		d.loosen("tree")
		d.remove("tree", http.StatusOK)
		d.ended(providerapi.TaskSuccess)
		if _, err := os.Lstat(d.local("tree")); err == nil {
			t.Error("the tree is still there")
		}
		d.remove("tree", http.StatusNotFound)
		d.noDrafts()
	})
	if data, err := os.ReadFile(outside + "/treasure"); err != nil || string(data) != "untouched" {
		t.Errorf("what lies outside of the drive: %q, %v", data, err)
	}
}

// loosen makes all folders of a tree writable for their owner.
func (d *desk) loosen(rel string) {
	d.t.Helper()
	walkTree(d.t, d.local(rel), func(dir int, name, _ string, st *unix.Stat_t) {
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			d.w.must(unix.Fchmodat(dir, name, st.Mode&0o7777|0o700, 0))
		}
	})
}

func longestPath(tree map[string]node) (longest int) {
	for rel := range tree {
		longest = max(longest, len(rel))
	}
	return longest
}

// everythingListed browses every folder in small pages and in every order, and looks at every entry alone.
func (d *desk) everythingListed(top string, want map[string]node) {
	folders, below := map[string][]string{}, map[string]int{}
	for rel := range want {
		if rel == "" {
			continue
		}
		below[parentOf(rel)]++
		if d.reachable(top + "/" + rel) {
			folders[parentOf(rel)] = append(folders[parentOf(rel)], rel)
		}
	}
	orders := []listing{{perPage: 7}, {sort: providerapi.SortByPath, direction: providerapi.SortDescending, perPage: 250}, {sort: providerapi.SortBySize, perPage: 11}, {sort: providerapi.SortByModifiedAt, direction: providerapi.SortDescending, perPage: 13}}
	for folder, children := range folders {
		for _, how := range orders {
			got := d.browse(joined(top, folder), how)
			ids := map[string]providerapi.File{}
			for _, f := range got {
				if _, twice := ids[f.ID]; twice {
					d.t.Errorf("%+v of %q shows %q twice", how, folder, f.ID)
				}
				ids[f.ID] = f
			}
			for _, rel := range children {
				f, there := ids[d.id(joined(top, rel))]
				if !there {
					d.t.Errorf("%+v of %q does not show %q", how, folder, rel)
					continue
				}
				d.described(rel, f, want[rel])
			}
			if len(got) != below[folder] {
				d.t.Errorf("%+v of %q shows %d entries of %d", how, folder, len(got), below[folder])
			}
		}
	}
	for _, rel := range slices.Sorted(maps.Keys(want)) {
		if d.reachable(joined(top, rel)) {
			f := d.retrieve(joined(top, rel))
			if f.ID != d.id(joined(top, rel)) {
				d.t.Errorf("%q is retrieved as %q", rel, f.ID)
			}
			d.described(rel, f, want[rel])
		}
	}
}

func joined(top, rel string) string {
	if rel == "" {
		return top
	}
	return top + "/" + rel
}

// described compares what Core is told about an entry with what it is. Links are described by what they lead to.
func (d *desk) described(rel string, f providerapi.File, n node) {
	d.t.Helper()
	if n.kind == "link" {
		if wantFolder := strings.HasSuffix(rel, "to a folder"); (f.Status.Type == "DIRECTORY") != wantFolder {
			d.t.Errorf("the link %q is a %s", rel, f.Status.Type)
		}
		return
	}
	if (f.Status.Type == "DIRECTORY") != (n.kind == "folder") || f.Status.UnixMode != int(n.mode&0o777) ||
		int64(f.Status.ModifiedAt) != floorMillis(n.modified) || uint32(f.Status.UnixOwner) != n.uid || uint32(f.Status.UnixGroup) != n.gid ||
		n.kind == "file" && (f.Status.SizeInBytes == nil || *f.Status.SizeInBytes != n.size) {
		d.t.Errorf("%q is %+v and is described as %+v", rel, n, f.Status)
	}
	if f.Status.Icon == "DIRECTORY_TRASH" {
		d.t.Errorf("%q is shown as the trash of the drive", rel)
	}
}

func floorMillis(ns int64) int64 {
	ms := ns / 1e6
	if ns%1e6 < 0 {
		ms--
	}
	return ms
}

// everythingDownloads gets every file that can be named.
func (d *desk) everythingDownloads(top string, want map[string]node) {
	n := 0
	for _, rel := range slices.Sorted(maps.Keys(want)) {
		if want[rel].kind != "file" || !d.reachable(joined(top, rel)) {
			continue
		}
		n++
		endpoint := d.downloadFrom(joined(top, rel))
		res, err := webclient.Download(d.t.Context(), endpoint, 0)
		if err != nil {
			d.t.Errorf("download %q: %v", rel, err)
			continue
		}
		h := sha256.New()
		size, err := io.Copy(h, res.Body)
		res.Body.Close()
		if sum := hex.EncodeToString(h.Sum(nil)); err != nil || sum != want[rel].content || size != want[rel].size || res.ContentLength != size {
			d.t.Errorf("%q arrives as %d bytes (announced %d) instead of %d: %v", rel, size, res.ContentLength, want[rel].size, err)
		}
		kind, params, err := mime.ParseMediaType(res.Header.Get("Content-Disposition"))
		if err != nil || kind != "attachment" || params["filename"] == "" || strings.ContainsAny(params["filename"], "\r\n/\x00") {
			d.t.Errorf("%q has the disposition %q: %v", rel, res.Header.Get("Content-Disposition"), err)
		}
		if name := path.Base(rel); plainName(name) && params["filename"] != name {
			d.t.Errorf("%q is saved as %q", name, params["filename"])
		}
		if res.Header.Get("X-Content-Type-Options") != "nosniff" {
			d.t.Errorf("%q may be sniffed", rel)
		}
	}
	if n < 2*len(oddNames) {
		d.t.Errorf("only %d files were downloaded", n)
	}
	// Links are followed in the drive and not out of it.
	if got := string(d.download(joined(top, "links/to a file"))); got != "content of plain" {
		d.t.Errorf("through a link: %q", got)
	}
	for _, rel := range []string{"links/out/treasure", "links/absolute", "links/up/etc/passwd"} {
		if got := d.w.raw(d.who.name, "/files/download", d.one(joined(top, rel)), nil); got.status < 400 {
			d.t.Errorf("%q can be downloaded: %s", rel, got.body)
		}
	}
}

// everythingFound searches for every odd name, and compares with what the tree holds.
func (d *desk) everythingFound(top string, want map[string]node) {
	found := func(rel, query string) map[string]bool {
		ids := map[string]bool{}
		for _, f := range d.search(joined(top, rel), query) {
			if ids[f.ID] {
				d.t.Errorf("%q is found twice", f.ID)
			}
			ids[f.ID] = true
		}
		return ids
	}
	for _, name := range oddNames {
		// The words of a search are trimmed by nobody, so these are names like others; but there is no search for nothing.
		if strings.TrimSpace(name) == "" {
			continue
		}
		if ids := found("names", escaped(name)); !ids[d.id(joined(top, "names/"+name))] {
			d.t.Errorf("%q is not found: %v", name, ids)
		}
	}
	expected := map[string]bool{}
	for rel := range want {
		if strings.Contains(strings.ToLower(path.Base(rel)), "level") && d.reachable(joined(top, rel)) {
			expected[d.id(joined(top, rel))] = true
		}
	}
	ids := found("", "LEVEL")
	for id := range expected {
		if !ids[id] {
			d.t.Errorf("%q is not found", id)
		}
	}
	// What cannot be named by a call may be left out; nothing outside of the tree may come in by a link.
	for id := range ids {
		if !strings.HasPrefix(id, d.id(top)+"/deep/") {
			d.t.Errorf("%q is found", id)
		}
	}
	if ids := found("", "treasure"); len(ids) != 0 {
		d.t.Errorf("outside of the drive is found %v", ids)
	}
	if len(expected) < 10 {
		d.t.Errorf("only %d files were to be found", len(expected))
	}
}

// plainName tells whether a name has nothing that is better left out of the name of a file that a browser saves.
func plainName(name string) bool {
	return strings.ContainsFunc(name, unicode.IsLetter) && !strings.ContainsFunc(escaped(name), func(r rune) bool { return !unicode.IsGraphic(r) || r >= 0x10FE00 })
}

// eachName renames, trashes and makes entries of every odd name one by one.
func (d *desk) eachName() {
	openWorkshop(d.t, d.dir).folder("one by one", 0o755, func(s *workshop) { s.folder("other", 0o755, nil) })
	d.own("one by one")
	at := func(name string) string { return "one by one/" + name }
	for _, name := range oddNames {
		d.folder(at(name), providerapi.ConflictReject, http.StatusOK)
		d.folder(at(name), providerapi.ConflictReject, http.StatusConflict)
		d.move(at(name), at("other/"+name), providerapi.ConflictReject, http.StatusOK)
	}
	names := func() (all []string) {
		entries, err := os.ReadDir(d.local(at("other")))
		d.w.must(err)
		for _, e := range entries {
			all = append(all, e.Name())
		}
		slices.Sort(all)
		return all
	}
	if got, want := names(), slices.Sorted(slices.Values(oddNames)); !slices.Equal(got, want) {
		d.t.Errorf("the folders are %q instead of %q", got, want)
	}
	// A name that is taken gets a number, before the extension, and never more than 255 bytes.
	for _, name := range oddNames {
		d.folder(at("other/"+name), providerapi.ConflictRename, http.StatusOK)
	}
	if got := names(); len(got) != 2*len(oddNames) {
		d.t.Errorf("%d names after taking each twice, want %d", len(got), 2*len(oddNames))
	}
	for _, name := range names() {
		d.trash(at("other/"+name), http.StatusOK)
	}
	if got := names(); len(got) != 0 {
		d.t.Errorf("not in the trash: %q", got)
	}
	got := slices.DeleteFunc(d.browse("Trash", listing{perPage: 50}), func(f providerapi.File) bool {
		return path.Base(f.ID) == ".ucloud-origin" // the notes about where everything comes from
	})
	if len(got) != 2*len(oddNames) {
		d.t.Errorf("%d entries in the trash, want %d", len(got), 2*len(oddNames))
	}
	d.emptyTrash(http.StatusOK)
	d.ended(providerapi.TaskSuccess)
}

// uploadFolder drops a folder of a laptop into the drive and compares.
func (d *desk) uploadFolder(outside string) {
	t := d.t
	source := t.TempDir()
	openWorkshop(t, source).folder("dropped", 0o755, func(s *workshop) {
		s.torture(outside)
		s.file("large", 0o644, string(pattern(40_000_001))) // three messages
	})
	top := source + "/dropped"
	files := laptop(t, top)
	d.upload("uploaded", "FOLDER", providerapi.ConflictRename, files)
	want, got := snapshot(t, top), snapshot(t, d.local("uploaded"))
	// What a browser does not send is not there; what it sends is the user's, with the time of the laptop in milliseconds.
	expected := map[string]bool{"": true}
	for _, f := range files {
		n := want[f.Path]
		have := got[f.Path]
		if have.kind != "file" || have.content != n.content || have.mode != 0o660 || have.uid != uint32(d.who.account.UID) || !sameTime(have.modified, f.Modified) {
			t.Errorf("%q is %+v instead of %+v", f.Path, have, n)
		}
		for rel := f.Path; rel != ""; rel = parentOf(rel) {
			expected[rel] = true
		}
	}
	for rel, n := range got {
		if !expected[rel] {
			t.Errorf("%q is too much", rel)
		}
		if n.kind == "folder" && (n.mode != 0o770 || n.uid != uint32(d.who.account.UID)) {
			t.Errorf("the folder %q is %+v", rel, n)
		}
	}
	if len(got) != len(expected) {
		t.Errorf("%d entries instead of %d", len(got), len(expected))
	}

	// Once more: nothing is sent. Those whose time could not be kept are exceptions.
	var c webclient.Client
	again, err := c.Upload(t.Context(), d.uploadTo("uploaded", "FOLDER", providerapi.ConflictRename).Endpoint, files)
	odd := 0
	for _, f := range files {
		if !sensibleTime(f.Modified) {
			odd++
		}
	}
	if err != nil || again.Completed != len(files) || len(again.Skipped) < len(files)-odd {
		t.Errorf("the second time %+v of %d files: %v", again, len(files), err)
	}
	same(t, "after the second time", got, snapshotLike(t, d.local("uploaded"), got, files))

	// Every name as a single file.
	d.folder("singles", providerapi.ConflictReject, http.StatusOK)
	for _, name := range oddNames {
		file := memoryFile("", []byte("single "+name), time.Now())
		d.upload("singles/"+name, "FILE", providerapi.ConflictReject, []webclient.File{file})
	}
	single := snapshot(t, d.local("singles"))
	if len(single) != len(oddNames)+1 {
		t.Errorf("%d single files of %d", len(single)-1, len(oddNames))
	}
	d.upload("singles/plain", "FILE", providerapi.ConflictRename, []webclient.File{memoryFile("", []byte("second"), time.Now())})
	d.upload("singles/plain", "FILE", providerapi.ConflictReplace, []webclient.File{memoryFile("", []byte("replaced"), time.Now())})
	for name, content := range map[string]string{"plain": "replaced", "plain(1)": "second"} {
		if data, err := os.ReadFile(d.local("singles/" + name)); err != nil || string(data) != content {
			t.Errorf("%s holds %q, %v", name, data, err)
		}
	}
	d.noDrafts()
	for _, name := range []string{"uploaded", "singles"} {
		d.remove(name, http.StatusOK)
		d.ended(providerapi.TaskSuccess)
	}
}

func parentOf(rel string) string {
	i := strings.LastIndexByte(rel, '/')
	if i < 0 {
		return ""
	}
	return rel[:i]
}

// sensibleTime tells whether a time may be kept: not before the epoch, and not in the far future (contract 11 section
// 2.4).
func sensibleTime(ms int64) bool { return ms > 0 && ms < time.Now().Add(23*time.Hour).UnixMilli() }

func sameTime(ns, ms int64) bool {
	if !sensibleTime(ms) {
		return time.Since(time.Unix(0, ns)) < time.Hour && time.Since(time.Unix(0, ns)) > -time.Minute
	}
	return ns == ms*1e6
}

// snapshotLike is a snapshot with the times of files that have no time of their own taken from another one.
func snapshotLike(t *testing.T, top string, other map[string]node, files []webclient.File) map[string]node {
	t.Helper()
	all := snapshot(t, top)
	for rel, n := range all {
		if n.kind == "folder" {
			n.modified = other[rel].modified
			all[rel] = n
		}
	}
	for _, f := range files {
		if n := all[f.Path]; !sensibleTime(f.Modified) {
			n.modified = other[f.Path].modified
			all[f.Path] = n
		}
	}
	return all
}

// copyBroken copies a tree of which parts cannot be copied: the rest is there, and the task says what is not.
func (d *desk) copyBroken() {
	t := d.t
	openWorkshop(t, d.dir).folder("broken", 0o755, func(s *workshop) {
		s.file("good", 0o644, "good")
		s.must("fifo", unix.Mkfifoat(s.dir, "fifo", 0o644))
		s.must("socket", unix.Mknodat(s.dir, "socket", unix.S_IFSOCK|0o644, 0))
		s.file("unreadable", 0o000, "secret")
		s.folder("closed", 0o000, func(s *workshop) { s.file("in it", 0o644, "x") })
		s.folder("setgid", 0o2770, func(s *workshop) { s.file("in it", 0o644, "x") })
		s.file("suid", 0o4755, "x")
	})
	d.own("broken")
	for _, f := range d.browse("broken", listing{perPage: 50}) {
		if name := path.Base(f.ID); (name == "fifo" || name == "socket") && (f.Status.Type != "FILE" || f.Status.SizeInBytes == nil || *f.Status.SizeInBytes != 0) {
			t.Errorf("%s is shown as %+v", name, f.Status)
		}
	}
	for _, name := range []string{"fifo", "socket", "unreadable", "closed/in it"} {
		if got := d.w.raw(d.who.name, "/files/download", d.one("broken/"+name), nil); got.status < 400 || got.status >= 500 {
			t.Errorf("download of %s: %d %s", name, got.status, got.body)
		}
	}
	d.copy("broken", "less broken", providerapi.ConflictReject, http.StatusOK)
	task := d.ended(providerapi.TaskFailure)
	if message := text(task.Status.Progress); !strings.Contains(message, "4 of ") || !strings.Contains(message, "broken/") {
		t.Errorf("the task says %q", message)
	}
	got := snapshot(t, d.local("less broken"))
	for rel, mode := range map[string]uint32{"good": 0o644, "setgid": 0o770, "setgid/in it": 0o644, "suid": 0o755} {
		if n := got[rel]; n.kind == "" || n.mode&0o777 != mode || n.kind == "file" && n.mode != mode {
			t.Errorf("%s is %+v", rel, n)
		}
	}
	for _, rel := range []string{"fifo", "socket", "unreadable", "closed/in it"} {
		if n, there := got[rel]; there {
			t.Errorf("%s was copied: %+v", rel, n)
		}
	}
	// Moving and deleting act on the entries themselves, whatever they are.
	for _, name := range []string{"fifo", "socket", "unreadable", "suid"} {
		d.move("broken/"+name, "broken/"+name+" moved", providerapi.ConflictReject, http.StatusOK)
		d.trash("broken/"+name+" moved", http.StatusOK)
	}
	w := openWorkshop(t, d.local("broken"))
	w.must("closed", unix.Fchmodat(w.dir, "closed", 0o700, 0))
	for _, name := range []string{"broken", "less broken"} {
		d.trash(name, http.StatusOK)
	}
	d.emptyTrash(http.StatusOK)
	d.ended(providerapi.TaskSuccess)
	if left, err := os.ReadDir(d.local("Trash")); err != nil || len(left) > 0 {
		t.Errorf("left in the trash: %v, %v", left, err)
	}
}
