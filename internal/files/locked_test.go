package files

import (
	"context"
	"path/filepath"
	"testing"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// TestLockedWorkspace: nothing is added to a workspace that Core has locked, and everything else goes on.
func TestLockedWorkspace(t *testing.T) {
	t.Parallel()
	locked := ident.Owner{Project: "locked"}
	s := newService(t, func(o *Options) {
		o.Writable = func(_ context.Context, owner ident.Owner, category string) error {
			if owner == locked && category == "storage" {
				return failure.New(failure.PaymentRequired, "locked")
			}
			return nil
		}
	})
	mine, _ := furnish(t)
	theirs, _ := furnish(t)
	in := func(base string, owner ident.ProjectID) providerapi.Drive {
		d := testDrive(base)
		d.Owner.Project = &owner
		d.ProviderGeneratedID = testProvider + "-" + string(owner) + "\n" + base
		return d
	}
	closed, open := in(mine, locked.Project), in(theirs, "open")
	archive := in(theirs, locked.Project)
	archive.Specification.Product.Category = "archive"
	move := func(from, to providerapi.Drive, name string) error {
		return moveOne(s, providerapi.MoveFile{ResolvedOldCollection: from, ResolvedNewCollection: to, OldID: "/5012/" + name, NewID: "/5012/" + name + "2"})
	}
	check(t, s.CreateFolders(t.Context(), []providerapi.CreateFolder{{ID: "/5012/new", ResolvedCollection: open}}))
	for name, err := range map[string]error{
		"folder":                      s.CreateFolders(t.Context(), []providerapi.CreateFolder{{ID: "/5012/new", ResolvedCollection: closed}}),
		"move from another workspace": move(open, closed, "dir"),
		"move from another product":   move(archive, closed, "dir"),
		"copy": s.Copy(t.Context(), []providerapi.MoveFile{{
			ResolvedOldCollection: open, ResolvedNewCollection: closed, OldID: "/5012/dir", NewID: "/5012/dir2",
		}}),
		"copy within": s.Copy(t.Context(), []providerapi.MoveFile{{
			ResolvedOldCollection: closed, ResolvedNewCollection: closed, OldID: "/5012/dir", NewID: "/5012/dir2",
		}}),
	} {
		if !failure.Is(err, failure.PaymentRequired) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if content(mine, "new") != "" || content(mine, "dir2") != "" || content(theirs, "dir") != "dir" {
		t.Error("something was added to a locked workspace")
	}
	check(t, move(closed, closed, "dir"))
	check(t, move(closed, open, "other")) // out of it
	check(t, s.Trash(t.Context(), []providerapi.FileInDrive{{ID: "/5012/dir2", ResolvedCollection: closed}}))
	if content(mine, "dir2") != "" || content(mine, filepath.Join("Trash", "dir2")) != "dir" || content(theirs, "other2") != "dir" {
		t.Error("a locked workspace cannot be tidied up")
	}
}
