package files

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

const (
	driveMaker = ident.UCloudUser("Ada#1815")
	project    = ident.ProjectID("3f1c9a52-6d07-4e1b-a3c8-90b2f4d7e615")
)

// drivesIn makes a service whose users may make drives below base, in a project's drive and in their own.
func drivesIn(t testing.TB, base string, change func(*Options)) *Service {
	t.Helper()
	return newService(t, func(o *Options) {
		o.DrivePlace = func(_ context.Context, owner ident.Owner, category string) (DrivePlace, error) {
			if category != "storage" {
				return DrivePlace{Why: "not here"}, nil
			}
			parent := testDrive(base)
			parent.Owner = providerapi.ResourceOwner{CreatedBy: owner.User}
			if owner.IsProject() {
				parent.Owner = providerapi.ResourceOwner{CreatedBy: ident.SystemUser, Project: &owner.Project}
			}
			parent.ProviderGeneratedID = testProvider + "-" + owner.Reference() + "\n" + base
			parent.Permissions = nil
			return DrivePlace{Parent: parent, Folder: "Drives"}, nil
		}
		if change != nil {
			change(o)
		}
	})
}

// newDrive is a drive as Core sends it to be made.
func newDrive(id ident.DriveID, title string) providerapi.Drive {
	return providerapi.Drive{
		ID: id, Owner: providerapi.ResourceOwner{CreatedBy: driveMaker}, Permissions: &providerapi.Permissions{},
		Specification: providerapi.DriveSpecification{
			Title: title, Product: providerapi.ProductReference{ID: "storage", Category: "storage", Provider: testProvider},
		},
	}
}

// made is the drive with the id that it got, as Core sends it later.
func made(d providerapi.Drive, pgid string) providerapi.Drive {
	d.ProviderGeneratedID = pgid
	d.Permissions = &providerapi.Permissions{Myself: providerapi.List[providerapi.Permission]{"READ", "EDIT", "ADMIN"}}
	return d
}

func createOne(s *Service, d providerapi.Drive) (string, error) {
	ids, err := s.CreateDrives(context.Background(), []providerapi.Drive{d})
	if err != nil {
		return "", err
	}
	return ids[0], nil
}

func TestCreateDrive(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	check(t, os.Chmod(base, 0o2770|os.ModeSetgid))
	s := drivesIn(t, base, nil)
	d := newDrive("77", "My drive")
	id := must(createOne(s, d))(t)
	if want := "hpc-Ada#1815\n" + base + "/Drives/My drive-77"; id != want {
		t.Fatalf("%q, want %q", id, want)
	}
	for _, dir := range []string{"Drives", "Drives/My drive-77"} {
		info := must(os.Stat(filepath.Join(base, dir)))(t)
		if !info.IsDir() || info.Mode().Perm()&0o707 != 0o700 || info.Mode()&os.ModeSetgid == 0 {
			t.Errorf("%s is %v", dir, info.Mode())
		}
	}
	// Core repeats calls: the same drive, the same folder.
	for range 3 {
		if again := must(createOne(s, d))(t); again != id {
			t.Errorf("a repeated call gives %q", again)
		}
	}
	// The drive is known, and files can be made in it.
	touch(t, base, "Drives/My drive-77/file")
	drive := must(s.driveByID(context.Background(), "77", made(d, id).Permissions))(t)
	check(t, s.CreateFolders(context.Background(), []providerapi.CreateFolder{{ID: "/77/sub", ResolvedCollection: *drive, ConflictPolicy: "REJECT"}}))
	if again := must(createOne(s, d))(t); again != id {
		t.Errorf("with something in it: %q", again)
	}
	// A drive of a project.
	p := newDrive("78", "My drive")
	p.Owner = providerapi.ResourceOwner{CreatedBy: driveMaker, Project: ptr(project)}
	if got, want := must(createOne(s, p))(t), "hpc-"+string(project)+"\n"+base+"/Drives/My drive-78"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestDriveIDsAreNeverTheSame: Core does not survive two equal ids, whatever users do with titles and folders.
func TestDriveIDsAreNeverTheSame(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	s := drivesIn(t, base, nil)
	seen := map[string]bool{}
	titles := []string{"a", "a-1", "a-1-1", "a", "A", "a/b", "a_b", "", "-", "..", ".", "a(1)", strings.Repeat("x", 300), strings.Repeat("x", 301), strings.Repeat("ä", 200), "a\nb", "a\x00b", "Trash", " a "}
	for i, title := range titles {
		for j := range 3 {
			id := must(createOne(s, newDrive(ident.DriveID(fmt.Sprint(i*10+j+1)), title)))(t)
			if seen[id] {
				t.Errorf("%q twice", id)
			}
			seen[id] = true
			_, base, _ := strings.Cut(id, "\n")
			if j == 1 { // the user removes the folder by hand; the name is not used again
				check(t, os.Remove(base))
			}
		}
	}
	if n := len(must(os.ReadDir(filepath.Join(base, "Drives")))(t)); n != 2*len(titles) {
		t.Errorf("%d folders", n)
	}
}

func TestDriveFolderNames(t *testing.T) {
	t.Parallel()
	for title, want := range map[string]string{
		"Plain": "Plain-7", "a/b\\c": "a_b\\c-7", "x\x00y\nz\t": "x_y_z_-7", "..": "_.-7", ".hidden": "_hidden-7", "  spaces  ": "spaces-7", "": "drive-7",
		"Ünïcödé 日本": "Ünïcödé 日本-7", "-rf": "-rf-7", "a\u202eb": "a_b-7", "\U0010FE80": "_-7", "Trash": "Trash-7",
	} {
		if got := driveFolder(title, "7"); got != want {
			t.Errorf("%q becomes %q, want %q", title, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		title := rapid.String().Draw(t, "title")
		id := ident.DriveID(fmt.Sprint(rapid.Int64Min(1).Draw(t, "id")))
		name := driveFolder(title, id)
		last := drives.Numbered(name, drives.MaxNumbered)
		if drives.CheckName(name) != nil || drives.CheckName(last) != nil || !utf8.ValidString(name) || drives.Escape(name) != name || name[0] == '.' ||
			!strings.HasSuffix(name, "-"+string(id)) || !strings.Contains(last, "-"+string(id)+"(9999)") && !strings.Contains(name, ".") {
			t.Fatalf("%q becomes %q, and in need %q", title, name, last)
		}
	})
}

func TestCreateDriveRefusals(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	s := drivesIn(t, base, nil)
	for name, tc := range map[string]struct {
		change func(*providerapi.Drive)
		want   failure.Kind
	}{
		"no id":            {func(d *providerapi.Drive) { d.ID = "" }, failure.Invalid},
		"id not decimal":   {func(d *providerapi.Drive) { d.ID = "../x" }, failure.Invalid},
		"id too long":      {func(d *providerapi.Drive) { d.ID = ident.DriveID(strings.Repeat("1", 30)) }, failure.Invalid},
		"negative":         {func(d *providerapi.Drive) { d.ID = "-1" }, failure.Invalid},
		"other provider":   {func(d *providerapi.Drive) { d.Specification.Product.Provider = "other" }, failure.Invalid},
		"another category": {func(d *providerapi.Drive) { d.Specification.Product.Category = "tape" }, failure.Invalid},
	} {
		d := newDrive("77", "x")
		tc.change(&d)
		if _, err := createOne(s, d); !failure.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.CreateDrives(context.Background(), []providerapi.Drive{newDrive("1", "a"), newDrive("1", "b")}); !failure.Is(err, failure.Invalid) {
		t.Errorf("the same drive twice: %v", err)
	}
	if _, err := createOne(newService(t, nil), newDrive("77", "x")); !failure.Is(err, failure.Invalid) {
		t.Errorf("without a place: %v", err)
	}
	// The place of another workspace than that of the drive.
	forged := drivesIn(t, base, func(o *Options) {
		inner := o.DrivePlace
		o.DrivePlace = func(ctx context.Context, _ ident.Owner, category string) (DrivePlace, error) {
			return inner(ctx, ident.Owner{User: "Eve#1"}, category)
		}
	})
	if _, err := createOne(forged, newDrive("77", "x")); !failure.Is(err, failure.Invalid) {
		t.Errorf("a foreign place: %v", err)
	}
	locked := drivesIn(t, base, func(o *Options) {
		o.Writable = func(context.Context, ident.Owner, string) error {
			return failure.New(failure.PaymentRequired, "locked")
		}
	})
	if _, err := createOne(locked, newDrive("77", "x")); !failure.Is(err, failure.PaymentRequired) {
		t.Errorf("locked: %v", err)
	}
	if left := must(os.ReadDir(base))(t); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	// None of several, when one cannot be made.
	bad := newDrive("2", "b")
	bad.Specification.Product.Category = "tape"
	if _, err := s.CreateDrives(context.Background(), []providerapi.Drive{newDrive("1", "a"), bad}); !failure.Is(err, failure.Invalid) {
		t.Errorf("%v", err)
	}
	if left := must(os.ReadDir(filepath.Join(base, "Drives")))(t); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	// Something else is where the folder should be.
	for _, what := range []string{"file", "link"} {
		other := t.TempDir()
		if what == "file" {
			touch(t, other, "Drives")
		} else {
			check(t, os.Symlink(t.TempDir(), filepath.Join(other, "Drives")))
		}
		if _, err := createOne(drivesIn(t, other, nil), newDrive("77", "x")); !failure.Is(err, failure.Invalid) || !strings.Contains(failure.Why(err), "Drives") {
			t.Errorf("a %s in the way: %v", what, err)
		}
	}
	// The drive that it should be in is gone.
	if _, err := createOne(drivesIn(t, filepath.Join(base, "none"), nil), newDrive("77", "x")); !failure.Is(err, failure.NotFound) {
		t.Errorf("no parent: %v", err)
	}
}

// TestDriveFolderIsTaken: by things that others have put there in advance.
func TestDriveFolderIsTaken(t *testing.T) {
	t.Parallel()
	base, outside := t.TempDir(), t.TempDir()
	check(t, os.MkdirAll(filepath.Join(base, "Drives"), 0o700))
	check(t, os.Symlink(outside, filepath.Join(base, "Drives", "x-1")))
	check(t, os.Symlink("..", filepath.Join(base, "Drives", "x-2")))
	touch(t, base, "Drives/x-1(1)")
	if os.Geteuid() == 0 {
		check(t, os.Mkdir(filepath.Join(base, "Drives", "x-1(2)"), 0o777))
		check(t, os.Chown(filepath.Join(base, "Drives", "x-1(2)"), 12345, 12345))
	} else {
		touch(t, base, "Drives/x-1(2)")
	}
	s := drivesIn(t, base, nil)
	for range 2 {
		if id := must(createOne(s, newDrive("1", "x")))(t); !strings.HasSuffix(id, "/Drives/x-1(3)") {
			t.Errorf("got %q", id)
		}
		if id := must(createOne(s, newDrive("2", "x")))(t); !strings.HasSuffix(id, "/Drives/x-2(1)") {
			t.Errorf("beside a link in the drive: %q", id)
		}
	}
}

// TestCreateDriveTogether: retries that overlap give the same folder.
func TestCreateDriveTogether(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	s := drivesIn(t, base, nil)
	var wg sync.WaitGroup
	ids := make([]string, 16)
	for i := range ids {
		wg.Go(func() { ids[i] = must(createOne(s, newDrive("5", "x")))(t) })
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("%q", ids)
		}
	}
}

func TestDeleteDrive(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	s := drivesIn(t, base, nil)
	d := newDrive("77", "My drive")
	d = made(d, must(createOne(s, d))(t))
	touch(t, base, "Drives/My drive-77/data")
	touch(t, base, "kept")
	remove := func(d providerapi.Drive) error { return s.DeleteDrives(context.Background(), []providerapi.Drive{d}) }

	for name, tc := range map[string]struct {
		change func(*providerapi.Drive)
		want   failure.Kind
	}{
		"made by the provider": {func(d *providerapi.Drive) { d.ProviderGeneratedID = "hpc-Ada#1815\n" + base }, failure.Invalid},
		"the folder of all":    {func(d *providerapi.Drive) { d.ProviderGeneratedID = "hpc-Ada#1815\n" + base + "/Drives" }, failure.Invalid},
		"and with a slash":     {func(d *providerapi.Drive) { d.ProviderGeneratedID = "hpc-Ada#1815\n" + base + "/Drives/" }, failure.Invalid},
		"climbs":               {func(d *providerapi.Drive) { d.ProviderGeneratedID = "hpc-Ada#1815\n" + base + "/Drives/.." }, failure.Invalid},
		"climbs further":       {func(d *providerapi.Drive) { d.ProviderGeneratedID = "hpc-Ada#1815\n" + base + "/Drives/../kept" }, failure.Invalid},
		"deeper":               {func(d *providerapi.Drive) { d.ProviderGeneratedID += "/data" }, failure.Invalid},
		"elsewhere":            {func(d *providerapi.Drive) { d.ProviderGeneratedID = "hpc-Ada#1815\n/etc/Drives/x" }, failure.Invalid},
		"another owner": {func(d *providerapi.Drive) {
			d.ProviderGeneratedID = strings.Replace(d.ProviderGeneratedID, "Ada", "Eve", 1)
		}, failure.Invalid},
		"legacy id":        {func(d *providerapi.Drive) { d.ProviderGeneratedID = "hpc-" + base + "/Drives/My drive-77" }, failure.Invalid},
		"no id":            {func(d *providerapi.Drive) { d.ProviderGeneratedID = "" }, failure.Invalid},
		"other provider":   {func(d *providerapi.Drive) { d.Specification.Product.Provider = "other" }, failure.Invalid},
		"another category": {func(d *providerapi.Drive) { d.Specification.Product.Category = "tape" }, failure.Invalid},
		"reader": {func(d *providerapi.Drive) {
			d.Permissions = &providerapi.Permissions{Myself: providerapi.List[providerapi.Permission]{"READ"}}
		}, failure.Forbidden},
		"nobody": {func(d *providerapi.Drive) { d.Permissions = nil }, failure.Forbidden},
	} {
		bad := d
		tc.change(&bad)
		if err := remove(bad); !failure.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, kept := range []string{"Drives/My drive-77/data", "kept"} {
		must(os.Stat(filepath.Join(base, kept)))(t)
	}
	check(t, remove(d))
	must(os.Stat(filepath.Join(base, "Trash", "My drive-77", "data")))(t)
	if _, err := os.Lstat(filepath.Join(base, "Drives", "My drive-77")); err == nil {
		t.Error("the folder is still there")
	}
	// Core repeats calls, and does not know when the answer was lost.
	check(t, remove(d))
	check(t, drivesIn(t, base, nil).DeleteDrives(context.Background(), []providerapi.Drive{d, d}))
	if n := inTrash(t, base); n != 1 {
		t.Errorf("%d things in the trash", n)
	}
	// When the whole drive is gone, nothing is known about the folder.
	check(t, os.Rename(base, base+".away"))
	if err := remove(d); !failure.Is(err, failure.NotFound) {
		t.Errorf("with the parent gone: %v", err)
	}
	check(t, os.Rename(base+".away", base))
	// Two of the same name.
	for _, id := range []ident.DriveID{"77", "78"} {
		d := newDrive(id, "My drive")
		d = made(d, must(createOne(s, d))(t))
		check(t, remove(d))
	}
	if n := inTrash(t, base); n != 3 {
		t.Errorf("%d things in the trash", n)
	}
}

// inTrash counts what users see in the trash.
func inTrash(t testing.TB, base string) (n int) {
	t.Helper()
	for _, e := range must(os.ReadDir(filepath.Join(base, "Trash")))(t) {
		if e.Name() != originsName {
			n++
		}
	}
	return n
}

// TestDeleteDriveActsOnTheLink: somebody has put a link where the folder was.
func TestDeleteDriveActsOnTheLink(t *testing.T) {
	t.Parallel()
	base, outside := t.TempDir(), t.TempDir()
	touch(t, outside, "secret")
	s := drivesIn(t, base, nil)
	d := newDrive("1", "x")
	d = made(d, must(createOne(s, d))(t))
	check(t, os.Remove(filepath.Join(base, "Drives/x-1")))
	check(t, os.Symlink(outside, filepath.Join(base, "Drives/x-1")))
	check(t, s.DeleteDrives(context.Background(), []providerapi.Drive{d}))
	must(os.Stat(filepath.Join(outside, "secret")))(t)
	if to := must(os.Readlink(filepath.Join(base, "Trash/x-1")))(t); to != outside {
		t.Errorf("the link leads to %s", to)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(base, "Drives/x-1"), &st); err == nil {
		t.Error("it is still there")
	}
}

func TestRenameDrive(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	known := map[ident.DriveID]providerapi.Drive{}
	s := drivesIn(t, base, func(o *Options) {
		o.FindDrive = func(_ context.Context, id ident.DriveID) (providerapi.Drive, error) {
			d, ok := known[id]
			if !ok {
				return d, failure.New(failure.NotFound, "unknown")
			}
			return d, nil
		}
	})
	d := newDrive("77", "My drive")
	known["77"] = made(d, must(createOne(s, d))(t))
	home := made(newDrive("10", "Home"), "hpc-Ada#1815\n"+base)
	known["10"] = home
	known["11"] = home // says it is 10
	for _, tc := range []struct {
		id    ident.DriveID
		title string
		want  failure.Kind // 0: success
	}{
		{"77", "Other", 0},
		{"77", "Other", 0},
		{"77", "a/b", 0},
		{"77", "", failure.Invalid},
		{"77", "  ", failure.Invalid},
		{"77", "a\nb", failure.Invalid},
		{"10", "Mine", failure.Invalid},
		{"11", "Mine", failure.NotFound},
		{"12", "x", failure.NotFound},
	} {
		err := s.RenameDrives(context.Background(), []providerapi.RenameDrive{{ID: tc.id, NewTitle: tc.title}})
		if (tc.want == 0) != (err == nil) || (err != nil && !failure.Is(err, tc.want)) {
			t.Errorf("%s to %q: %v", tc.id, tc.title, err)
		}
	}
	must(os.Stat(filepath.Join(base, "Drives", "My drive-77")))(t)
}
