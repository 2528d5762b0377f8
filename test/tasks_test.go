//go:build e2e

package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ucloud-im/internal/devcore"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
)

// TestFileOperations moves, copies, trashes and deletes through the whole chain; what takes longer than a request is
// a task that Core sees to its end, also when the instance is killed meanwhile.
func TestFileOperations(t *testing.T) {
	w := newWorld(t, settings{})
	ada := w.addPerson("Ada#1815")
	w.running(ada)
	drive := w.driveOf(ada)
	home := func(name string) string { return filepath.Join(ada.account.Home, name) }
	for _, dir := range []string{"data", "data/deep"} {
		w.must(os.Mkdir(home(dir), 0o755))
	}
	for _, name := range []string{"data/a.txt", "data/deep/b.txt", "note.txt"} {
		w.must(os.WriteFile(home(name), []byte(name), 0o640))
	}
	w.must(filepath.Walk(ada.account.Home, func(path string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(ada.account.UID), int(ada.account.GID))
	}))
	between := func(path, from, to string, policy providerapi.ConflictPolicy) answer {
		t.Helper()
		return w.raw(ada.name, path, map[string]any{"items": []any{map[string]any{
			"resolvedOldCollection": drive, "resolvedNewCollection": drive,
			"oldId": ada.home() + "/" + from, "newId": ada.home() + "/" + to, "conflictPolicy": policy,
		}}}, nil)
	}
	on := func(path, id string) answer {
		t.Helper()
		return w.raw(ada.name, path, map[string]any{"items": []any{map[string]any{"id": ada.home() + "/" + id, "resolvedCollection": drive}}}, nil)
	}
	check := func(what string, got answer, want int) {
		t.Helper()
		if got.status != want {
			t.Fatalf("%s: %d %s", what, got.status, got.body)
		}
	}
	content := func(name, want string) {
		t.Helper()
		data, err := os.ReadFile(home(name))
		if err != nil || string(data) != want {
			t.Errorf("%s holds %q, %v", name, data, err)
		}
		if info, err := os.Stat(home(name)); err == nil && info.Sys().(*syscall.Stat_t).Uid != uint32(ada.account.UID) {
			t.Errorf("%s belongs to somebody else", name)
		}
	}
	ended := func(n int) {
		t.Helper()
		testkit.Eventually(t, "the task to end at Core", func() bool {
			tasks := w.core.Tasks(ada.name)
			return len(tasks) == n && devcore.Ended(tasks[n-1])
		})
		if last := w.core.Tasks(ada.name)[n-1]; last.Status.State != providerapi.TaskSuccess {
			t.Errorf("the task ended as %+v", last.Status)
		}
	}

	check("move", between("/files/move", "note.txt", "data/note.txt", providerapi.ConflictReject), http.StatusOK)
	content("data/note.txt", "note.txt")
	check("move over a file", between("/files/move", "data/a.txt", "data/note.txt", providerapi.ConflictReject), http.StatusConflict)
	content("data/a.txt", "data/a.txt")

	check("copy", between("/files/copy", "data", "copy", providerapi.ConflictRename), http.StatusOK)
	ended(1)
	content("copy/deep/b.txt", "data/deep/b.txt")
	content("data/deep/b.txt", "data/deep/b.txt")

	check("trash", on("/files/trash", "copy"), http.StatusOK)
	if _, err := os.Stat(home("copy")); err == nil {
		t.Error("what was trashed is still there")
	}
	content("Trash/copy/deep/b.txt", "data/deep/b.txt")
	check("empty what is not the trash", on("/files/emptyTrash", "data"), http.StatusBadRequest)
	check("empty the trash", on("/files/emptyTrash", "Trash"), http.StatusOK)
	ended(2)
	if left, err := os.ReadDir(home("Trash")); err != nil || len(left) > 0 {
		t.Errorf("left in the trash: %v, %v", left, err)
	}
	content("data/a.txt", "data/a.txt")

	// To another file system and back, and merged with what is there. What fails is told.
	w.must(os.Mkdir(home("far"), 0o755))
	w.must(syscall.Mount("tmpfs", home("far"), "tmpfs", 0, "size=4m"))
	t.Cleanup(func() { w.must(syscall.Unmount(home("far"), 2)) }) // MNT_DETACH
	w.must(os.Chown(home("far"), int(ada.account.UID), int(ada.account.GID)))
	check("move to another file system", between("/files/move", "data", "far/data", providerapi.ConflictRename), http.StatusOK)
	ended(3)
	content("far/data/deep/b.txt", "data/deep/b.txt")
	if _, err := os.Stat(home("data")); err == nil {
		t.Error("what was moved is still there")
	}
	check("copy back", between("/files/copy", "far/data", "data", providerapi.ConflictReject), http.StatusOK)
	ended(4)
	check("merge by moving", between("/files/move", "data", "far/data", providerapi.ConflictMergeRename), http.StatusOK)
	ended(5)
	content("far/data/deep/b(1).txt", "data/deep/b.txt")
	check("trash from another file system", on("/files/trash", "far/data"), http.StatusOK)
	ended(6)
	content("Trash/data/deep/b.txt", "data/deep/b.txt")
	if note, err := os.ReadFile(home("Trash/.ucloud-origin/data")); err != nil || !strings.Contains(string(note), "Path="+ada.home()+"/far/data\n") {
		t.Errorf("the origin is %q, %v", note, err)
	}

	w.must(os.WriteFile(home("big"), make([]byte, 8<<20), 0o644))
	w.must(os.Chown(home("big"), int(ada.account.UID), int(ada.account.GID)))
	check("move what does not fit", between("/files/move", "big", "far/big", providerapi.ConflictRename), http.StatusOK)
	testkit.Eventually(t, "the task to fail", func() bool {
		tasks := w.core.Tasks(ada.name)
		return len(tasks) == 7 && devcore.Ended(tasks[6])
	})
	last := w.core.Tasks(ada.name)[6].Status
	if last.State != providerapi.TaskFailure || *last.Progress != "Nothing was moved: there is no space left on the storage (big). The originals were kept" ||
		*last.Body != "big: there is no space left on the storage" {
		t.Errorf("the task ended as %s, %q, %q", last.State, *last.Progress, *last.Body)
	}
	if info, err := os.Stat(home("big")); err != nil || info.Size() != 8<<20 {
		t.Errorf("the original is gone: %v", err)
	}
	if left, err := os.ReadDir(home("far")); err != nil || len(left) > 0 {
		t.Errorf("left on the other file system: %v, %v", left, err)
	}
}
