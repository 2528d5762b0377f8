//go:build e2e

package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
)

// TestDrivesOfUsers makes, uses, renames and deletes drives through Core, where the configuration allows it; and tries
// the same with drives that are the provider's, or somebody else's.
func TestDrivesOfUsers(t *testing.T) {
	w := newWorld(t, settings{extra: "      userDrives: { locators: [home], directory: My drives }\n"})
	ada, eve := w.addPerson("Ada#1815"), w.addPerson("Eve#1984")
	w.running(ada, eve)
	create := func(p *person, title string) (string, error) {
		var res providerapi.BulkResponse[providerapi.FindByID]
		err := w.call(p.name, http.MethodPost, "/api/files/collections", map[string]any{"items": []any{map[string]any{
			"title": title, "product": map[string]string{"id": category, "category": category, "provider": provider},
		}}}, &res)
		if err != nil || len(res.Responses) != 1 {
			return "", err
		}
		return res.Responses[0].ID, nil
	}
	change := func(p *person, method, path, id string, more map[string]any) error {
		item := map[string]any{"id": id}
		for k, v := range more {
			item[k] = v
		}
		return w.call(p.name, method, "/api/files/collections"+path, map[string]any{"items": []any{item}}, nil)
	}
	find := func(p *person, id string) (d providerapi.Drive) {
		t.Helper()
		i := slices.IndexFunc(w.drives(p), func(d providerapi.Drive) bool { return string(d.ID) == id })
		if i < 0 {
			t.Fatalf("%s has no drive %s", p.name, id)
		}
		return w.drives(p)[i]
	}
	var id string
	testkit.Eventually(t, "Core to know that drives can be made", func() (ok bool) {
		var err error
		id, err = create(ada, "Field notes")
		return err == nil
	})
	folder := filepath.Join(ada.account.Home, "My drives", "Field notes-"+id)
	if got, want := find(ada, id).ProviderGeneratedID, provider+"-Ada#1815\n"+folder; got != want {
		t.Fatalf("the drive is %q, want %q", got, want)
	}
	for _, dir := range []string{folder, filepath.Dir(folder)} {
		info, err := os.Stat(dir)
		w.must(err)
		if uid := info.Sys().(*syscall.Stat_t).Uid; uid != uint32(ada.account.UID) || info.Mode().Perm() != 0o770 {
			t.Errorf("%s belongs to %d, mode %o", dir, uid, info.Mode().Perm())
		}
	}

	// The drive is one like others, also for an instance that has not made it, and of which the server knows nothing.
	w.must(w.mkdir(ada, "/"+id+"/2031/May", providerapi.ConflictReject))
	w.stopInstance(ada)
	if got, ended := w.search(ada, "may", "/"+id, nil); !slices.Equal(got, []string{"/" + id + "/2031/May"}) || !ended {
		t.Errorf("found %q, end announced: %v", got, ended)
	}
	if files, err := w.browse(ada, ada.home()+"/My drives"); err != nil || len(files) != 1 {
		t.Errorf("in the home drive: %+v, %v", files, err)
	}

	w.must(change(ada, http.MethodPost, "/rename", id, map[string]any{"newTitle": "Notes of the field"}))
	w.must(change(ada, http.MethodPost, "/updateLabels", id, map[string]any{"labels": map[string]string{"colour": "blue"}}))
	if d := find(ada, id); d.Specification.Title != "Notes of the field" || d.Specification.Labels["colour"] != "blue" {
		t.Errorf("the drive is %+v", d.Specification)
	}

	// Drives of the provider, and of others.
	home := string(ada.drive)
	if err := change(ada, http.MethodPost, "/rename", home, map[string]any{"newTitle": "Mine"}); status(err) != http.StatusBadRequest {
		t.Errorf("a home is renamed: %v", err)
	}
	if err := change(ada, http.MethodDelete, "", home, nil); status(err) != http.StatusBadRequest {
		t.Errorf("a home is deleted: %v", err)
	}
	drive := find(ada, id)
	items := func(d providerapi.Drive) map[string]any { return map[string]any{"items": []any{d}} }
	for _, path := range []string{"/files/collections", "/shares"} {
		for _, method := range []string{http.MethodPost, http.MethodDelete} {
			if got := w.send(method, eve.name, path, items(drive), nil); got.status != http.StatusBadRequest {
				t.Errorf("%s %s by somebody else: %d %s", method, path, got.status, got.body)
			}
		}
	}
	if got := w.raw(eve.name, "/files/collections/rename", map[string]any{"items": []any{map[string]any{"id": id, "newTitle": "x"}}}, nil); got.status != http.StatusNotFound {
		t.Errorf("renamed by somebody else: %d %s", got.status, got.body)
	}
	forged := drive
	forged.ProviderGeneratedID = provider + "-Ada#1815\n" + filepath.Dir(folder) + "/../.ssh"
	if got := w.send(http.MethodDelete, ada.name, "/files/collections", items(forged), nil); got.status != http.StatusBadRequest {
		t.Errorf("a forged drive is deleted: %d %s", got.status, got.body)
	}
	if _, err := os.Stat(filepath.Join(folder, "2031", "May")); err != nil {
		t.Fatal(err)
	}

	// Titles again and again, and folders that are removed by hand: never the same id, which Core would not survive.
	w.must(os.RemoveAll(folder))
	again, err := create(ada, "Field notes")
	w.must(err)
	if find(ada, again).ProviderGeneratedID == drive.ProviderGeneratedID {
		t.Error("two drives have the same id")
	}
	w.must(change(ada, http.MethodDelete, "", id, nil)) // its folder is gone already
	drive = find(ada, again)
	folder = filepath.Join(ada.account.Home, "My drives", "Field notes-"+again)
	w.must(os.WriteFile(filepath.Join(folder, "data"), []byte("x"), 0o644))
	w.must(change(ada, http.MethodDelete, "", again, nil))
	if _, err := os.Stat(filepath.Join(ada.account.Home, "Trash", filepath.Base(folder), "data")); err != nil {
		t.Error(err)
	}
	if got := w.send(http.MethodDelete, ada.name, "/files/collections", items(drive), nil); got.status != http.StatusOK {
		t.Errorf("deleted once more: %d %s", got.status, got.body)
	}
	if drives := w.drives(ada); slices.ContainsFunc(drives, func(d providerapi.Drive) bool { return string(d.ID) == again }) {
		t.Error("Core still has the drive")
	}

	// A project has no drive of the locators that are named, and a title is not a path.
	p := w.core.AddProject(ident.ProjectID("5b0f7c1e-3a52-4d0e-9a5b-0c9f3f6f2a11"), "Climate", ada.name)
	inProject := drive
	inProject.ID, inProject.ProviderGeneratedID, inProject.Owner.Project = "9001", "", &p
	if got := w.raw(ada.name, "/files/collections", items(inProject), nil); got.status != http.StatusBadRequest && got.status != http.StatusNotFound {
		t.Errorf("made in a project without a place: %d %s", got.status, got.body)
	}
	odd, err := create(ada, "../../etc/passwd")
	w.must(err)
	if got := find(ada, odd).ProviderGeneratedID; !strings.HasSuffix(got, "/My drives/_._.._etc_passwd-"+odd) {
		t.Errorf("%q", got)
	}
}

// TestDrivesInAProject: a drive that one member makes is usable by the others, as the centre's permissions say, and
// nobody else can do anything with it.
func TestDrivesInAProject(t *testing.T) {
	w := newWorld(t, settings{extra: "      userDrives: { locators: [home, work] }\n"})
	ada, grace, eve := w.addPerson("Ada#1815"), w.addPerson("Grace#1906"), w.addPerson("Eve#1984")
	w.running(ada, grace, eve)
	const id = ident.ProjectID("5b0f7c1e-3a52-4d0e-9a5b-0c9f3f6f2a11")
	dir := filepath.Join(w.base, "projects", string(id))
	w.must(os.Mkdir(dir, 0o770))
	w.must(os.Chown(dir, 0, int(w.site.GID)))
	w.must(os.Chmod(dir, 0o770|os.ModeSetgid))
	w.core.AddProject(id, "Analytical engines", ada.name, grace.name)
	w.must(w.core.Allocate(ident.Owner{Project: id}, category, 10))
	testkit.Eventually(t, "the project's drive", func() bool {
		return slices.ContainsFunc(w.drives(grace), func(d providerapi.Drive) bool { return d.Specification.Title == "Work" })
	})
	drive := w.driveOf(ada)
	drive.ID, drive.ProviderGeneratedID, drive.Specification.Title = "9001", "", "Plans"
	drive.Owner = providerapi.ResourceOwner{CreatedBy: ada.name}
	project := id
	drive.Owner.Project = &project
	items := func() map[string]any { return map[string]any{"items": []any{drive}} }
	if got := w.raw(eve.name, "/files/collections", items(), nil); got.status != http.StatusNotFound {
		t.Errorf("made by somebody who is no member: %d %s", got.status, got.body)
	}
	got := w.raw(ada.name, "/files/collections", items(), nil)
	want := provider + "-" + string(id) + "\n" + filepath.Join(dir, "Drives", "Plans-9001")
	var made providerapi.BulkResponse[providerapi.FindByID]
	if got.status != http.StatusOK || json.Unmarshal(got.body, &made) != nil || len(made.Responses) != 1 || made.Responses[0].ID != want {
		t.Fatalf("%d %s, want %q", got.status, got.body, want)
	}
	drive.ProviderGeneratedID = want
	info, err := os.Stat(filepath.Join(dir, "Drives", "Plans-9001"))
	w.must(err)
	st := info.Sys().(*syscall.Stat_t)
	if st.Uid != uint32(ada.account.UID) || st.Gid != uint32(w.site.GID) || info.Mode().Perm() != 0o770 || info.Mode()&os.ModeSetgid == 0 {
		t.Errorf("the folder belongs to %d:%d, mode %v", st.Uid, st.Gid, info.Mode())
	}
	// Another member works in it, and so does the first one with what that has made.
	for i, p := range []*person{grace, ada} {
		got := w.raw(p.name, "/files/folder", map[string]any{"items": []any{map[string]any{
			"id": []string{"/9001/a", "/9001/a/b"}[i], "conflictPolicy": "REJECT", "resolvedCollection": drive,
		}}}, nil)
		if got.status != http.StatusOK {
			t.Errorf("%s makes a folder: %d %s", p.name, got.status, got.body)
		}
	}
	if got := w.send(http.MethodDelete, eve.name, "/files/collections", items(), nil); got.status != http.StatusNotFound {
		t.Errorf("deleted by somebody who is no member: %d %s", got.status, got.body)
	}
	if got := w.send(http.MethodDelete, grace.name, "/files/collections", items(), nil); got.status != http.StatusOK {
		t.Errorf("deleted by another member: %d %s", got.status, got.body)
	}
	if _, err := os.Stat(filepath.Join(dir, "Trash", "Plans-9001", "a", "b")); err != nil {
		t.Error(err)
	}
	if got := w.send(http.MethodDelete, ada.name, "/files/collections", items(), nil); got.status != http.StatusOK {
		t.Errorf("deleted again: %d %s", got.status, got.body)
	}
}
