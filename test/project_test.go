//go:build e2e

package e2e

import (
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/accounts"
	"ucloud-im/internal/testkit/webclient"
)

// project makes a project with a directory that belongs to a group, and gives each member's desk there. made prepares
// the directory before anybody knows of it.
func (w *world) project(id ident.ProjectID, gid ident.GID, made func(dir string), members ...*person) []*desk {
	w.t.Helper()
	dir := filepath.Join(w.base, "projects", string(id))
	w.must(os.Mkdir(dir, 0o700))
	if made != nil {
		made(dir)
	}
	w.must(os.Chown(dir, 0, int(gid)))
	w.must(os.Chmod(dir, 0o770|os.ModeSetgid))
	var names []ident.UCloudUser
	for _, p := range members {
		names = append(names, p.name)
	}
	w.core.AddProject(id, "Project "+string(id[:4]), names...)
	w.must(w.core.Allocate(ident.Owner{Project: id}, category, 10))
	desks := make([]*desk, len(members))
	for i, p := range members {
		testkit.Eventually(w.t, "the project's drive", func() bool {
			for _, d := range w.drives(p) {
				if d.Owner.Project != nil && *d.Owner.Project == id {
					desks[i] = &desk{w: w, t: w.t, who: p, drive: d, dir: dir}
				}
			}
			return desks[i] != nil
		})
	}
	return desks
}

// unixGroup makes a group of accounts and removes it at the end.
func (w *world) unixGroup(people ...*person) ident.GID {
	w.t.Helper()
	name := strings.TrimSuffix(w.site.Group, "g") + "p"
	accounts.Admin(w.t, "groupadd", name)
	w.t.Cleanup(func() { accounts.Admin(w.t, "groupdel", name) })
	for _, p := range people {
		accounts.Admin(w.t, "gpasswd", "-a", p.account.Name, name)
	}
	g, err := user.LookupGroup(name)
	w.must(err)
	gid, err := strconv.ParseUint(g.Gid, 10, 32)
	w.must(err)
	return ident.GID(gid)
}

// TestSharedProject: what one member makes in the directory of a project, in any way, the others can use, because the
// directory belongs to the group and passes that on. Who is not in the group has nothing of it, whatever Core says.
func TestSharedProject(t *testing.T) {
	w := newWorld(t, settings{})
	ada, grace, eve := w.addPerson("Ada#1815"), w.addPerson("Grace#1906"), w.addPerson("Eve#6666")
	group := w.unixGroup(ada, grace)
	w.running(ada, grace, eve)
	// For UCloud all three are members.
	desks := w.project("5b0f7c1e-3a52-4d0e-9a5b-0c9f3f6f2a12", group, nil, ada, grace, eve)
	a, g, e := desks[0], desks[1], desks[2]
	one := func(content string) []webclient.File {
		return []webclient.File{memoryFile("", []byte(content), time.Now())}
	}
	// group gives the whole directory, and demands that all of it is shared.
	shared := func(t *testing.T) map[string]node {
		t.Helper()
		tree := snapshot(t, a.dir)
		for rel, n := range tree {
			want := uint32(0o660)
			if n.kind == "folder" {
				want = 0o2770
			}
			if n.gid != uint32(group) || n.mode != want {
				t.Errorf("%q is %+v, want group %d, mode %o", rel, n, group, want)
			}
		}
		return tree
	}
	content := func(t *testing.T, d *desk, rel, want string) {
		t.Helper()
		if got := string(d.in(t).download(rel)); got != want {
			t.Errorf("%s downloads %q with %q instead of %q", d.who.name, rel, got, want)
		}
	}

	t.Run("made by one, used by the other", func(t *testing.T) {
		a, g := a.in(t), g.in(t)
		a.folder("data/raw", providerapi.ConflictReject, http.StatusOK)
		a.upload("data/raw/one.csv", "FILE", providerapi.ConflictRename, one("from Ada"))
		a.upload("data/run", "FOLDER", providerapi.ConflictRename, []webclient.File{memoryFile("deep/er/two.csv", []byte("two"), time.Now())})
		shared(t)
		// Grace reads, replaces, adds, renames and removes what is Ada's.
		content(t, g, "data/raw/one.csv", "from Ada")
		g.upload("data/raw/one.csv", "FILE", providerapi.ConflictReplace, one("from Grace"))
		g.upload("data/run/deep/er/three.csv", "FILE", providerapi.ConflictReject, one("three"))
		g.folder("data/run/deep/new", providerapi.ConflictReject, http.StatusOK)
		content(t, a, "data/raw/one.csv", "from Grace")
		g.copy("data/run", "data/copy", providerapi.ConflictReject, http.StatusOK)
		g.ended(providerapi.TaskSuccess)
		g.move("data/raw/one.csv", "data/one.csv", providerapi.ConflictReject, http.StatusOK)
		shared(t)
		// And the other way round.
		a.copy("data/copy", "data/copy of Ada", providerapi.ConflictReject, http.StatusOK)
		a.ended(providerapi.TaskSuccess)
		a.upload("data/copy/deep/er/two.csv", "FILE", providerapi.ConflictReplace, one("two by Ada"))
		content(t, g, "data/copy/deep/er/two.csv", "two by Ada")
		a.move("data/copy", "data/run/moved", providerapi.ConflictReject, http.StatusOK)
		a.remove("data/run/moved/deep", http.StatusOK)
		a.ended(providerapi.TaskSuccess)
		tree := shared(t)
		for rel, owner := range map[string]*person{"data/run/deep/er/two.csv": ada, "data/run/deep/er/three.csv": grace, "data/copy of Ada/deep/er/three.csv": ada, "data/one.csv": grace} {
			if n := tree[rel]; n.uid != uint32(owner.account.UID) {
				t.Errorf("%q belongs to %d: %+v", rel, n.uid, n)
			}
		}
	})
	t.Run("the trash is everybody's", func(t *testing.T) {
		a, g := a.in(t), g.in(t)
		a.trash("data/run", http.StatusOK)
		g.trash("data/one.csv", http.StatusOK)
		shared(t)
		var names []string
		for _, f := range g.browse("Trash", listing{}) {
			names = append(names, f.ID)
		}
		if !slices.Contains(names, g.id("Trash/run")) || !slices.Contains(names, g.id("Trash/one.csv")) {
			t.Errorf("Grace sees %q", names)
		}
		if icon := g.retrieve("Trash").Status.Icon; icon != "DIRECTORY_TRASH" {
			t.Errorf("the icon is %q", icon)
		}
		content(t, g, "Trash/run/deep/er/two.csv", "two")
		g.move("Trash/run", "data/rescued", providerapi.ConflictReject, http.StatusOK)
		a.folder("data/by Ada", providerapi.ConflictReject, http.StatusOK)
		a.trash("data/by Ada", http.StatusOK)
		g.emptyTrash(http.StatusOK)
		g.ended(providerapi.TaskSuccess)
		if left := g.browse("Trash", listing{}); len(left) != 0 {
			t.Errorf("left in the trash: %+v", left)
		}
	})
	t.Run("private files stay private", func(t *testing.T) {
		w.must(os.WriteFile(filepath.Join(a.dir, "data/private"), []byte("secret"), 0o600))
		w.must(os.Chown(filepath.Join(a.dir, "data/private"), int(ada.account.UID), int(group)))
		w.must(os.Chmod(filepath.Join(a.dir, "data/private"), 0o600))
		content(t, a, "data/private", "secret")
		if got := w.raw(grace.name, "/files/download", g.one("data/private"), nil); got.status < 400 {
			t.Errorf("Grace may download it: %s", got.body)
		}
		w.must(os.Remove(filepath.Join(a.dir, "data/private")))
	})
	t.Run("who is not in the group", func(t *testing.T) {
		before := shared(t)
		refused := func(what string, got answer) {
			t.Helper()
			if got.status < 400 || got.status >= 500 || got.status == 449 {
				t.Errorf("Eve may %s: %d %s", what, got.status, got.body)
			}
		}
		raw := func(path string, body any) answer { return w.raw(eve.name, path, body, nil) }
		refused("list", raw("/files/browse", providerapi.FilesBrowse{ResolvedCollection: e.drive, Browse: providerapi.BrowseParams{Flags: providerapi.FileFlags{Path: ptr(e.id(""))}}}))
		refused("look at a file", raw("/files/retrieve", map[string]any{"resolvedCollection": e.drive, "retrieve": map[string]any{"id": e.id("data/rescued"), "flags": providerapi.FileFlags{}}}))
		refused("download", raw("/files/download", e.one("data/rescued/deep/er/two.csv")))
		refused("trash", raw("/files/trash", e.one("data")))
		refused("empty the trash", raw("/files/emptyTrash", e.one("Trash")))
		refused("make a folder", raw("/files/folder", items[providerapi.CreateFolder]{[]providerapi.CreateFolder{{ID: e.id("mine"), ConflictPolicy: providerapi.ConflictRename, ResolvedCollection: e.drive}}}))
		refused("move", raw("/files/move", items[providerapi.MoveFile]{[]providerapi.MoveFile{e.between("data", "mine", providerapi.ConflictRename)}}))
		refused("copy", raw("/files/copy", items[providerapi.MoveFile]{[]providerapi.MoveFile{e.between("data", "mine", providerapi.ConflictRename)}}))
		refused("upload", raw("/files/upload", items[map[string]any]{[]map[string]any{{"id": e.id("mine"), "type": "FILE", "supportedProtocols": []string{"WEBSOCKET"}, "conflictPolicy": "RENAME", "resolvedCollection": e.drive}}}))
		// Copying between drives is as little a way as a link in her own.
		home := w.desk(eve)
		across := providerapi.MoveFile{ResolvedOldCollection: e.drive, ResolvedNewCollection: home.drive, OldID: e.id("data"), NewID: home.id("stolen"), ConflictPolicy: providerapi.ConflictRename}
		refused("copy to her home", raw("/files/copy", items[providerapi.MoveFile]{[]providerapi.MoveFile{across}}))
		w.must(os.Symlink(filepath.Join(a.dir, "data/rescued/deep/er/two.csv"), home.local("link")))
		refused("download through a link", raw("/files/download", home.one("link")))
		same(t, "the project", before, snapshot(t, a.dir))
		if tasks := w.core.Tasks(eve.name); len(tasks) != 0 {
			t.Errorf("Eve has tasks: %+v", tasks)
		}
	})
	t.Run("who leaves the group", func(t *testing.T) {
		// The instance has the groups of its start; the server replaces it when they are no longer the account's.
		accounts.Admin(t, "gpasswd", "-d", grace.account.Name, strings.TrimSuffix(w.site.Group, "g")+"p")
		testkit.Eventually(t, "Grace to lose the directory", func() bool {
			_, err := w.browse(grace, g.id(""))
			return status(err) == http.StatusNotFound || status(err) == http.StatusForbidden
		})
		accounts.Admin(t, "gpasswd", "-a", grace.account.Name, strings.TrimSuffix(w.site.Group, "g")+"p")
		testkit.Eventually(t, "Grace to have the directory again", func() bool { _, err := w.browse(grace, g.id("")); return err == nil })
	})
}

// TestFullDisk: when the storage is full, uploads and copies fail where the user sees it, what was there stays, and
// nothing half done is left.
func TestFullDisk(t *testing.T) {
	w := newWorld(t, settings{})
	ada := w.addPerson("Ada#1815")
	w.running(ada)
	const size = 16 << 20
	mounted := func(dir string) {
		w.must(unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=16m"))
		t.Cleanup(func() {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	d := w.project("5b0f7c1e-3a52-4d0e-9a5b-0c9f3f6f2a13", ada.account.GID, mounted, ada)[0]
	home := w.desk(ada)
	free := func() int64 {
		var st unix.Statfs_t
		w.must(unix.Statfs(d.dir, &st))
		return int64(st.Bavail) * st.Bsize
	}
	d.upload("old", "FILE", providerapi.ConflictReject, []webclient.File{memoryFile("", pattern(6<<20), time.Unix(1e9, 0))})
	before, left := snapshot(t, d.dir), free()
	failed := func(t *testing.T, d *desk, what string) {
		t.Helper()
		task := d.in(t).ended(providerapi.TaskFailure)
		message := text(task.Status.Title) + " " + text(task.Status.Body) + " " + text(task.Status.Progress)
		if !strings.Contains(message, what) || !strings.Contains(strings.ToLower(message), "full") && !strings.Contains(strings.ToLower(message), "space") {
			t.Errorf("the task says %q, and should name %q", message, what)
		}
		now := snapshot(t, d.dir)
		top := now[""]
		top.modified = before[""].modified // of what came and went
		now[""] = top
		same(t, "the drive", before, now)
		if now := free(); now < left {
			t.Errorf("%d bytes are lost", left-now)
		}
	}
	upload := func(t *testing.T, rel, kind string, policy providerapi.ConflictPolicy, files ...webclient.File) (webclient.Result, error) {
		t.Helper()
		d := d.in(t)
		var c webclient.Client
		return c.Upload(t.Context(), d.uploadTo(rel, kind, policy).Endpoint, files)
	}

	t.Run("upload over an old file", func(t *testing.T) {
		res, err := upload(t, "old", "FILE", providerapi.ConflictReplace, memoryFile("", pattern(size), time.Now()))
		if err == nil || res.Completed != 0 {
			t.Errorf("the upload is a success: %+v, %v", res, err)
		}
		failed(t, d, "old")
	})
	t.Run("upload of a folder", func(t *testing.T) {
		var files []webclient.File
		for i := range 40 {
			files = append(files, memoryFile("file "+strconv.Itoa(i), pattern(1<<20+i), time.Now()))
		}
		res, err := upload(t, "folder", "FOLDER", providerapi.ConflictRename, files...)
		if err == nil || res.Completed >= len(files) {
			t.Errorf("the upload is a success: %+v, %v", res, err)
		}
		// What was completed is there; the rest is not.
		task := d.in(t).ended(providerapi.TaskFailure)
		if message := text(task.Status.Title) + text(task.Status.Progress); !strings.Contains(message, "folder") {
			t.Errorf("the task says %q", message)
		}
		got := snapshot(t, d.local("folder"))
		complete := 0
		for i, f := range files {
			n, there := got[f.Path]
			if there && n.size != f.Size {
				t.Errorf("%q has %d bytes of %d", f.Path, n.size, f.Size)
			}
			if there {
				complete++
				if data, err := os.ReadFile(d.local("folder/" + f.Path)); err != nil || string(data) != string(pattern(1<<20+i)) {
					t.Errorf("%q has other content, %v", f.Path, err)
				}
			}
		}
		if complete < res.Completed || complete == 0 {
			t.Errorf("%d files are there, %d were completed", complete, res.Completed)
		}
		d.in(t).noDrafts()
		w.must(os.RemoveAll(d.local("folder")))
		// The parents of the removed folder have a new time.
		before = snapshot(t, d.dir)
	})
	t.Run("copy into the full drive", func(t *testing.T) {
		openWorkshop(t, home.dir).folder("large", 0o755, func(s *workshop) {
			s.file("fits", 0o644, "small")
			s.file("too large", 0o644, string(pattern(size)))
		})
		home.own("large")
		home := home.in(t)
		across := providerapi.MoveFile{
			ResolvedOldCollection: home.drive, ResolvedNewCollection: d.drive, OldID: home.id("large/too large"), NewID: d.id("copy"), ConflictPolicy: providerapi.ConflictRename,
		}
		home.call(http.MethodPost, "/files/copy", items[providerapi.MoveFile]{[]providerapi.MoveFile{across}}, http.StatusOK, nil)
		failed(t, d, "too large")

		across.NewID, across.OldID, across.ConflictPolicy = d.id("old"), home.id("large/too large"), providerapi.ConflictReplace
		home.call(http.MethodPost, "/files/copy", items[providerapi.MoveFile]{[]providerapi.MoveFile{across}}, http.StatusOK, nil)
		failed(t, d, "too large")

		// Of a folder the rest may stay, and the task tells what is missing.
		across.OldID, across.NewID, across.ConflictPolicy = home.id("large"), d.id("folder"), providerapi.ConflictReject
		home.call(http.MethodPost, "/files/copy", items[providerapi.MoveFile]{[]providerapi.MoveFile{across}}, http.StatusOK, nil)
		task := d.in(t).ended(providerapi.TaskFailure)
		if !strings.Contains(text(task.Status.Progress), "too large") {
			t.Errorf("the task says %q", text(task.Status.Progress))
		}
		if _, err := os.Stat(d.local("folder/too large")); err == nil {
			t.Error("half a file has its name")
		}
		d.in(t).noDrafts()
		w.must(os.RemoveAll(d.local("folder")))
		before = snapshot(t, d.dir)
	})
	t.Run("move into the full drive", func(t *testing.T) {
		across := providerapi.MoveFile{
			ResolvedOldCollection: home.drive, ResolvedNewCollection: d.drive, OldID: home.id("large"), NewID: d.id("moved"), ConflictPolicy: providerapi.ConflictReject,
		}
		source := snapshot(t, home.local("large"))
		got := w.raw(ada.name, "/files/move", items[providerapi.MoveFile]{[]providerapi.MoveFile{across}}, nil)
		if got.status >= 500 || got.status == 200 && d.in(t).ended(providerapi.TaskFailure).TaskID == 0 {
			t.Errorf("the move: %d %s", got.status, got.body)
		}
		same(t, "the source of the move", source, snapshot(t, home.local("large")))
		d.in(t).noDrafts()
		w.must(os.RemoveAll(d.local("moved")))
		before = snapshot(t, d.dir)
	})
	t.Run("nothing left at all", func(t *testing.T) {
		// Not a byte: what says so must be the call itself, or a task.
		w.must(os.WriteFile(d.local("filler"), nil, 0o600))
		fd, err := unix.Open(d.local("filler"), unix.O_WRONLY, 0)
		w.must(err)
		w.must(unix.Fallocate(fd, 0, 0, free()))
		w.must(unix.Close(fd))
		before, left = snapshot(t, d.dir), free()
		res, err := upload(t, "new", "FILE", providerapi.ConflictRename, memoryFile("", []byte("one more"), time.Now()))
		if err == nil || res.Completed != 0 {
			t.Errorf("the upload is a success: %+v, %v", res, err)
		}
		failed(t, d, "new")
		w.must(os.Remove(d.local("filler")))
	})
	// There is room again.
	d.upload("new", "FILE", providerapi.ConflictRename, []webclient.File{memoryFile("", []byte("one more"), time.Now())})
}
