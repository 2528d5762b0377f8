package files

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
)

// oddNames are names that are hard to bear: bytes that are no text, control characters, quotes, the longest ones.
var oddNames = []string{
	"plain.txt", "\xff\xfe", "a\nb", "tab\t\x01\x7f", `q'"\`, "-rf", " ", "%2e%2e", "\u202egnp.exe", "\U0010FEFF", "~", "…", ".hidden", "..a",
	strings.Repeat("x", 255), strings.Repeat("ä", 127), strings.Repeat("\xff", 255), "a." + strings.Repeat("y", 253), originsName,
}

// TestTrashNotesOrigins: the trash remembers where its entries come from, whatever their names, and forgets when it is
// emptied.
func TestTrashNotesOrigins(t *testing.T) {
	t.Parallel()
	base, _ := furnish(t)
	s, work := newWorking(t, base)
	notes := filepath.Join(base, trashName, originsName)
	for _, name := range oddNames {
		for range 2 { // the second one finds the name taken
			check(t, os.WriteFile(filepath.Join(base, "dir", name), nil, 0o600))
			item := inDrive(base, "")
			item.ID = "/5012/dir/" + drives.Escape(name)
			check(t, s.Trash(context.Background(), []providerapi.FileInDrive{item}))
		}
		first := 0
		if name == originsName {
			first = 1
		}
		for n := first; n < first+2; n++ {
			got := drives.Numbered(name, n)
			st, err := os.Lstat(filepath.Join(base, trashName, got))
			if err != nil {
				t.Errorf("%q is not in the trash as %q", name, got)
				continue
			}
			lines := strings.Split(string(must(os.ReadFile(filepath.Join(notes, got)))(t)), "\n")
			path, err := url.PathUnescape(strings.TrimPrefix(lines[1], "Path="))
			if lines[0] != "[Trash Info]" || err != nil || path != "/5012/dir/"+drives.Escape(name) || len(lines) != 5 {
				t.Errorf("%q: %q", got, lines)
			}
			if want := fmt.Sprintf("Inode=%d", st.Sys().(*syscall.Stat_t).Ino); lines[3] != want {
				t.Errorf("%q: %q, want %q", got, lines[3], want)
			}
		}
	}
	// A link is trashed itself, and a folder as a whole.
	check(t, trashOne(s, base, "out"))
	check(t, trashOne(s, base, "full"))
	if !strings.Contains(content(notes, "out"), "Path=/5012/out\n") || !strings.Contains(content(notes, "full"), "Path=/5012/full\n") {
		t.Error("the origin of a link or a folder is not known")
	}
	time.Sleep(20 * time.Millisecond)
	check(t, emptyOne(s, base, trashName))
	if left := must(os.ReadDir(filepath.Join(base, trashName)))(t); len(left) != 0 || work.failed != nil {
		t.Errorf("left in the trash: %v, %v", left, work.failed)
	}
}

// TestHostileOrigins: whatever somebody puts in the place of the notes, trashing works, and nothing else is touched.
func TestHostileOrigins(t *testing.T) {
	t.Parallel()
	for name, plant := range map[string]func(notes, outside string) error{
		"link":          func(notes, outside string) error { return os.Symlink(outside, notes) },
		"dangling link": func(notes, outside string) error { return os.Symlink(filepath.Join(outside, "new"), notes) },
		"file":          func(notes, _ string) error { return os.WriteFile(notes, []byte("mine"), 0o600) },
		"fifo":          func(notes, _ string) error { return unix.Mkfifo(notes, 0o600) },
		"link in it": func(notes, outside string) error {
			if err := os.Mkdir(notes, 0o700); err != nil {
				return err
			}
			return os.Symlink(filepath.Join(outside, "f"), filepath.Join(notes, "a.txt"))
		},
		"folder in it": func(notes, _ string) error { return os.MkdirAll(filepath.Join(notes, "a.txt", "x"), 0o700) },
		"fifo in it": func(notes, _ string) error {
			if err := os.Mkdir(notes, 0o700); err != nil {
				return err
			}
			return unix.Mkfifo(filepath.Join(notes, "a.txt"), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base, outside := furnish(t)
			check(t, plant(filepath.Join(base, trashName, originsName), outside))
			s, work := newWorking(t, base)
			check(t, trashOne(s, base, "a.txt"))
			if content(base, "Trash/a.txt") != "a.txt" {
				t.Error("it is not in the trash")
			}
			check(t, emptyOne(s, base, trashName))
			if work.failed != nil || content(base, "Trash/a.txt") != "" {
				t.Errorf("it is not removed: %v", work.failed)
			}
			if left := must(os.ReadDir(outside))(t); len(left) != 1 || content(outside, "f") != "outside" {
				t.Error("outside has changed")
			}
		})
	}
}

// TestOddNames takes hard names through all operations; texts about them can be read by people.
func TestOddNames(t *testing.T) {
	t.Parallel()
	base, _ := furnishFar(t, "size=10m")
	s, work := newWorking(t, base)
	ctx := context.Background()
	id := func(parts ...string) string {
		for i := range parts {
			parts[i] = drives.Escape(parts[i])
		}
		return "/5012/" + strings.Join(parts, "/")
	}
	item := func(from, to string, policy providerapi.ConflictPolicy) []providerapi.MoveFile {
		m := moveItem(base, "", "", policy)
		m.OldID, m.NewID = from, to
		return []providerapi.MoveFile{m}
	}
	for _, name := range oddNames {
		if name == originsName {
			continue
		}
		made := folder(base, "", "REJECT")
		made.ID = id("dir", name)
		check(t, s.CreateFolders(ctx, []providerapi.CreateFolder{made}))
		check(t, os.WriteFile(filepath.Join(base, "dir", name, name), []byte(name), 0o640))
		check(t, os.Symlink(name, filepath.Join(base, "dir", name, "link")))
		work.specs, work.jobs, work.failed = nil, nil, nil
		check(t, s.Move(ctx, item(id("dir", name), id("full", "m"), "REJECT")))
		check(t, s.Move(ctx, item(id("full", "m"), id("full", name), "REJECT")))
		check(t, s.Copy(ctx, item(id("full", name), id("other", name), "REJECT")))
		check(t, s.Move(ctx, item(id("other", name), id("far", name), "REJECT")))
		check(t, s.Copy(ctx, item(id("far", name), id("full", name), "RENAME")))
		if work.failed != nil {
			t.Fatalf("%q: %v", name, work.failed)
		}
		for _, at := range []string{"full/" + name, "full/" + drives.Numbered(name, 1), "far/" + name} {
			if content(base, at+"/"+name) != name || content(base, at+"/link") != "link:"+name {
				t.Errorf("%q is not whole", at)
			}
		}
		for _, spec := range work.specs {
			if n := len([]rune(spec.Title)); n > 200 || len(spec.Title) > 1024 {
				t.Errorf("a title has %d characters", n)
			}
		}
		// What fails names it.
		check(t, unix.Mkfifo(filepath.Join(base, "far", name, "fifo"), 0o600))
		check(t, s.Copy(ctx, item(id("far", name), id("full", name), "RENAME")))
		if why := failure.Why(work.failed); len([]rune(why)) > 200 || !strings.Contains(why, "/fifo)") || !strings.Contains(why, string([]rune(drives.Escape(name))[:1])) {
			t.Errorf("%q: %q", name, why)
		}
		trashed := inDrive(base, "")
		trashed.ID = id("full", name)
		check(t, s.Trash(ctx, []providerapi.FileInDrive{trashed}))
		gone := deleteItem("")
		gone.ID = id("full", drives.Numbered(name, 1))
		check(t, s.Delete(ctx, []providerapi.DeleteFile{gone}))
		if content(base, "full/"+name) != "" || content(base, "full/"+drives.Numbered(name, 1)) != "" {
			t.Errorf("%q is still there", name)
		}
	}
}

// TestRetention: what is too old goes, once a day, and only if that is configured.
func TestRetention(t *testing.T) {
	t.Parallel()
	base, _ := furnish(t)
	var at time.Time
	work := &fakeTasks{keep: true}
	s := newService(t, func(o *Options) {
		o.Tasks = work
		o.Now = func() time.Time { return at }
	})
	work.s = s
	at = time.Now()
	look := func() int {
		t.Helper()
		must(s.Browse(context.Background(), browseRequest(base, "", nil)))(t)
		s.gate.wait.Wait()
		return len(work.specs)
	}
	if look() != 0 {
		t.Fatal("it is not configured")
	}
	s.SetSettings(Settings{TrashRetention: 30 * 24 * time.Hour})
	for range 2 {
		if look() != 1 {
			t.Fatalf("%d tasks", len(work.specs))
		}
	}
	if spec := work.specs[0]; !spec.Hidden || spec.Kind != kindEmptyTrash {
		t.Errorf("%+v", spec)
	}
	check(t, work.run(context.Background(), 0))
	if content(base, "Trash/old") != "Trash/old" {
		t.Error("it was not too old")
	}
	at = at.Add(29 * 24 * time.Hour)
	look()
	check(t, work.run(context.Background(), 1))
	if content(base, "Trash/old") != "Trash/old" {
		t.Error("it was not too old yet")
	}
	at = at.Add(48 * time.Hour)
	look()
	check(t, work.run(context.Background(), 2))
	if content(base, "Trash/old") != "" || content(base, "Trash") != "dir" || content(base, "a.txt") != "a.txt" {
		t.Error("it was too old, or something else has gone")
	}
	at = at.Add(48 * time.Hour)
	check(t, os.Remove(filepath.Join(base, trashName)))
	n := len(work.specs)
	if look() != n {
		t.Error("a task for a trash that is not there")
	}
	s.SetSettings(Settings{TrashRetention: time.Hour})
	at = at.Add(48 * time.Hour)
	check(t, os.Mkdir(filepath.Join(base, trashName), 0o700))
	req := browseRequest(base, "", nil)
	req.ResolvedCollection = testDrive(base, providerapi.PermissionRead)
	must(s.Browse(context.Background(), req))(t)
	s.gate.wait.Wait()
	if len(work.specs) != n {
		t.Error("a task for a user who may only read")
	}
}
