package files

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
)

func folder(base, rel string, policy providerapi.ConflictPolicy) providerapi.CreateFolder {
	return providerapi.CreateFolder{ID: "/5012/" + rel, ConflictPolicy: policy, ResolvedCollection: testDrive(base)}
}

func TestCreateFolder(t *testing.T) {
	t.Parallel()
	const (
		rename  = providerapi.ConflictRename
		reject  = providerapi.ConflictReject
		replace = providerapi.ConflictReplace
		merge   = providerapi.ConflictMergeRename
	)
	for _, tc := range []struct {
		name   string
		rel    string
		policy providerapi.ConflictPolicy
		want   failure.Kind // 0: success
		made   string
	}{
		{name: "new", rel: "new", policy: reject, made: "new"},
		{name: "new by rename", rel: "new", policy: rename, made: "new"},
		{name: "with parents", rel: "a/b/c", policy: reject, made: "a/b/c"},
		{name: "below a folder", rel: "dir/sub", policy: reject, made: "dir/sub"},
		{name: "through a link inside", rel: "in/sub", policy: reject, made: "dir/sub"},
		{name: "escaped", rel: "x\U0010FEFF", policy: reject, made: "x\xff"},
		{name: "backslash", rel: `..\..\x`, policy: reject, made: `..\..\x`},
		{name: "exists, rejected", rel: "dir", policy: reject, want: failure.Conflict},
		{name: "exists, no policy", rel: "dir", want: failure.Conflict},
		{name: "exists, renamed", rel: "v1.2", policy: rename, made: "v1(1).2"},
		{name: "exists, replaced", rel: "dir", policy: replace, made: "dir/kept"},
		{name: "exists, merged", rel: "dir", policy: merge, made: "dir/kept"},
		{name: "file, rejected", rel: "file", policy: reject, want: failure.Conflict},
		{name: "file, replaced", rel: "file", policy: replace, want: failure.Conflict},
		{name: "file, merged", rel: "file", policy: merge, want: failure.Conflict},
		{name: "file, renamed", rel: "file", policy: rename, made: "file(1)"},
		{name: "link inside, merged", rel: "in", policy: merge},
		{name: "link outside, merged", rel: "out", policy: merge, want: failure.Conflict},
		{name: "dangling, rejected", rel: "dangling", policy: reject, want: failure.Conflict},
		{name: "below a file", rel: "file/x", policy: reject, want: failure.NotFound},
		{name: "below a dangling link", rel: "dangling/x", policy: reject, want: failure.NotFound},
		{name: "through a link outside", rel: "out/x", policy: reject, want: failure.Forbidden},
		{name: "with parents through a link outside", rel: "out/x/y", policy: reject, want: failure.Forbidden},
		{name: "drive, rejected", rel: "", policy: reject, want: failure.Conflict},
		{name: "drive, renamed", rel: "", policy: rename, want: failure.Invalid},
		{name: "drive, merged", rel: "", policy: merge},
		{name: "unknown policy", rel: "x", policy: "OVERWRITE", want: failure.Invalid},
		{name: "name too long", rel: strings.Repeat("x", 256), policy: reject, want: failure.Invalid},
		{name: "climbs", rel: "../../x", policy: reject, want: failure.Invalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			tmp := t.TempDir()
			base := filepath.Join(tmp, "drive")
			check(t, os.MkdirAll(filepath.Join(base, "dir", "kept"), 0o770))
			check(t, os.MkdirAll(filepath.Join(base, "v1.2"), 0o770))
			check(t, os.Mkdir(filepath.Join(tmp, "outside"), 0o770))
			touch(t, base, "file")
			check(t, os.Symlink(filepath.Join(base, "dir"), filepath.Join(base, "in")))
			check(t, os.Symlink("../outside", filepath.Join(base, "out")))
			check(t, os.Symlink("missing", filepath.Join(base, "dangling")))
			s := newService(t, nil)
			err := s.CreateFolders(context.Background(), []providerapi.CreateFolder{folder(base, tc.rel, tc.policy)})
			if (tc.want == 0) != (err == nil) || (err != nil && !failure.Is(err, tc.want)) {
				t.Fatalf("got %v", err)
			}
			if tc.made != "" {
				if st, err := os.Stat(filepath.Join(base, tc.made)); err != nil || !st.IsDir() {
					t.Errorf("%s was not made: %v", tc.made, err)
				}
			}
			if left, _ := os.ReadDir(filepath.Join(tmp, "outside")); len(left) != 0 {
				t.Errorf("made %s outside", left[0].Name())
			}
			if _, err := os.Lstat(filepath.Join(base, "file", "x")); err == nil {
				t.Error("a file has become a directory")
			}
		})
	}
}

func TestFolderNeedsEditPermission(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	s := newService(t, nil)
	item := folder(base, "x", providerapi.ConflictReject)
	item.ResolvedCollection = testDrive(base, providerapi.PermissionRead)
	if err := s.CreateFolders(context.Background(), []providerapi.CreateFolder{item}); !failure.Is(err, failure.Forbidden) {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Lstat(filepath.Join(base, "x")); err == nil {
		t.Fatal("the folder was made")
	}
}

// TestAllItemsAreTried: one failure does not keep the others from being done, and the text says how many failed.
func TestAllItemsAreTried(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	check(t, os.Mkdir(filepath.Join(base, "taken"), 0o770))
	s := newService(t, nil)
	err := s.CreateFolders(context.Background(), []providerapi.CreateFolder{
		folder(base, "a", "REJECT"), folder(base, "taken", "REJECT"), folder(base, "b", "REJECT"), folder(base, "../x", "REJECT"),
	})
	if !failure.Is(err, failure.Conflict) || !strings.Contains(failure.Why(err), "2 of 4 items failed") {
		t.Fatalf("got %v", err)
	}
	for _, n := range []string{"a", "b"} {
		if _, err := os.Stat(filepath.Join(base, n)); err != nil {
			t.Error(err)
		}
	}
	if err := s.CreateFolders(context.Background(), nil); err != nil {
		t.Errorf("no items: %v", err)
	}
}

// TestSameNameAtTheSameTime: each of many simultaneous requests gets a folder of its own.
func TestSameNameAtTheSameTime(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	s := newService(t, nil)
	const n = 40
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			check(t, s.CreateFolders(context.Background(), []providerapi.CreateFolder{folder(base, "deep/er/x.y", "RENAME")}))
		})
	}
	wg.Wait()
	want := []string{"x.y"}
	for i := 1; i < n; i++ {
		want = append(want, fmt.Sprintf("x(%d).y", i))
	}
	slices.Sort(want)
	var got []string
	for _, e := range must(os.ReadDir(filepath.Join(base, "deep", "er")))(t) {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		t.Fatalf("got %q", got)
	}
}

// TestModeOfNewFolders checks what the umask of an instance and the setgid bit of a project directory make of them.
func TestModeOfNewFolders(t *testing.T) {
	// Not parallel: the umask belongs to the process.
	old := unix.Umask(0o007)
	defer unix.Umask(old)
	base := t.TempDir()
	check(t, os.Chmod(base, 0o770|os.ModeSetgid))
	s := newService(t, nil)
	check(t, s.CreateFolders(context.Background(), []providerapi.CreateFolder{folder(base, "a/b", "REJECT")}))
	for _, n := range []string{"a", "a/b"} {
		if mode := must(os.Stat(filepath.Join(base, n)))(t).Mode(); mode != os.ModeDir|os.ModeSetgid|0o770 {
			t.Errorf("%s has mode %v", n, mode)
		}
	}
}

func TestRetrieve(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	check(t, os.WriteFile(filepath.Join(base, "file"), []byte("abc"), 0o640))
	check(t, os.Mkdir(filepath.Join(base, "Trash"), 0o750))
	check(t, os.Symlink("/etc/passwd", filepath.Join(base, "out")))
	s := newService(t, nil)
	get := func(id string) (providerapi.File, error) {
		return s.Retrieve(context.Background(), &providerapi.FilesRetrieve{
			ResolvedCollection: testDrive(base), Retrieve: providerapi.RetrieveParams{ID: id},
		})
	}
	if f := must(get("/5012//file"))(t); f.ID != "/5012/file" || *f.Status.SizeInBytes != 3 || f.Status.UnixMode != 0o640 {
		t.Errorf("file: %+v", f)
	}
	if f := must(get("/5012/"))(t); f.ID != "/5012" || f.Status.Type != providerapi.TypeDirectory || f.Status.Icon != "" {
		t.Errorf("drive: %+v", f)
	}
	if f := must(get("/5012/Trash"))(t); f.Status.Icon != providerapi.IconTrash {
		t.Errorf("trash: %+v", f)
	}
	if f := must(get("/5012/out"))(t); f.Status.Type != providerapi.TypeFile || *f.Status.SizeInBytes != 0 {
		t.Errorf("link: %+v", f)
	}
	for id, want := range map[string]failure.Kind{
		"/5012/missing": failure.NotFound, "/5012/file/x": failure.NotFound, "/5012/out/x": failure.NotFound,
		"/5013/file": failure.Invalid, "": failure.Invalid,
	} {
		if _, err := get(id); !failure.Is(err, want) {
			t.Errorf("%q: %v", id, err)
		}
	}
}
