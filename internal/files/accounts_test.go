package files

import (
	"cmp"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit/accounts"
)

// accountEnv makes the test binary do one call as the account it runs under, and print the outcome.
const accountEnv = "FILES_ACCOUNT_CHILD"

// accountCall is what the child does: list a folder, describe an entry, make a folder, move something to
// the trash, or search a folder for a text.
type accountCall struct {
	Base, Browse, Retrieve, Folder, Trash, Search string
	Query                                         string // of a search; empty: "needle"
	Replace                                       bool   // a replacement of the instance can be had
	Unmanaged                                     bool   // the provider does not manage accounts; hidden files are not shown
}

type accountResult struct {
	Names []string
	Icons []string     // entries that a search shows as the trash
	Icon  string       // of the entry that was described, or of a folder named Trash that was listed
	Kind  failure.Kind // of the error, if Why is set
	Why   string
	Asked int // how often the service asked for a replacement
}

func accountChild(text string) error {
	var call accountCall
	if err := json.Unmarshal([]byte(text), &call); err != nil {
		return err
	}
	unix.Umask(0o007)
	var res accountResult
	s := New(Options{
		Provider: testProvider, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Settings:    Settings{Unmanaged: call.Unmanaged},
		StaleGroups: func(context.Context) bool { res.Asked++; return call.Replace },
	})
	ctx := context.Background()
	var err error
	switch {
	case call.Browse != "":
		var page providerapi.Page[providerapi.File]
		page, err = s.Browse(ctx, browseRequest(call.Base, call.Browse, func(p *providerapi.BrowseParams) {
			p.Flags.FilterHiddenFiles = &call.Unmanaged
		}))
		res.Names = names(page)
		for _, f := range page.Items {
			if strings.HasSuffix(f.ID, "/Trash") {
				res.Icon = f.Status.Icon
			}
		}
	case call.Retrieve != "":
		var f providerapi.File
		f, err = s.Retrieve(ctx, &providerapi.FilesRetrieve{
			ResolvedCollection: testDrive(call.Base), Retrieve: providerapi.RetrieveParams{ID: "/5012/" + call.Retrieve},
		})
		res.Icon = f.Status.Icon
	case call.Search != "":
		d := testDrive(call.Base)
		s.KnowDrive(&d)
		err = s.Search(ctx, searchFor(cmp.Or(call.Query, "needle"), "/5012/"+call.Search, nil), func(files []providerapi.File) error {
			for _, f := range files {
				res.Names = append(res.Names, strings.TrimPrefix(f.ID, "/5012/"))
				if f.Status.Icon == providerapi.IconTrash {
					res.Icons = append(res.Icons, strings.TrimPrefix(f.ID, "/5012/"))
				}
			}
			return nil
		})
		slices.Sort(res.Names)
	case call.Trash != "":
		err = s.Trash(ctx, []providerapi.FileInDrive{inDrive(call.Base, call.Trash)})
	default:
		err = s.CreateFolders(ctx, []providerapi.CreateFolder{folder(call.Base, call.Folder, providerapi.ConflictReject)})
	}
	if err != nil {
		res.Kind, res.Why = failure.KindOf(err), failure.Why(err)
	}
	return json.NewEncoder(os.Stdout).Encode(res)
}

// testProgram is a copy of this test binary that every account may run.
func testProgram(t *testing.T, dir string) string {
	t.Helper()
	program := filepath.Join(dir, "files.test")
	text := must(os.ReadFile(must(os.Executable())(t)))(t)
	check(t, os.WriteFile(program, text, 0o755))
	return program
}

// callAs does a call as an account with some groups.
func callAs(t *testing.T, program string, a accounts.Account, groups []ident.GID, call accountCall) accountResult {
	t.Helper()
	cmd := a.Command(program)
	cmd.SysProcAttr.Credential = a.Credential(groups...)
	cmd.Dir = "/"
	cmd.Env = append(cmd.Env, accountEnv+"="+string(must(json.Marshal(call))(t)))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	var res accountResult
	check(t, json.Unmarshal(out, &res))
	return res
}

// TestTrashOfAFileSystem: where one drive is a whole file system, the trash is in the topmost folder that the user can
// change. In a drive of their own a user without permission has none.
func TestTrashOfAFileSystem(t *testing.T) {
	t.Parallel()
	site := accounts.New(t, "trash")
	ada := site.User(t)
	program := testProgram(t, site.Dir)
	base := filepath.Join(site.Dir, "all")
	own := filepath.Join(base, "home", "ada")
	check(t, os.MkdirAll(filepath.Join(own, "deep", "er"), 0o755))
	for _, p := range []string{own, filepath.Join(own, "deep"), filepath.Join(own, "deep", "er")} {
		check(t, os.Chown(p, int(ada.UID), int(ada.GID)))
	}
	for _, p := range []string{"home/ada/deep/er/f", "home/theirs"} {
		check(t, os.WriteFile(filepath.Join(base, p), []byte(p), 0o644))
	}
	// A folder of that name higher up that is somebody else's is no trash.
	check(t, os.Mkdir(filepath.Join(base, "Trash"), 0o755))
	if res := callAs(t, program, ada, nil, accountCall{Base: base, Trash: "home/ada/deep/er/f"}); res.Kind != failure.Forbidden {
		t.Errorf("in a managed drive: %+v", res)
	}
	if res := callAs(t, program, ada, nil, accountCall{Base: base, Trash: "home/ada/deep/er/f", Unmanaged: true}); res.Why != "" {
		t.Errorf("own file: %+v", res)
	}
	if got := content(own, "Trash/f"); got != "home/ada/deep/er/f" {
		t.Errorf("in the trash is %q", got)
	}
	// The web client offers to empty what has the icon, and nothing else.
	check(t, os.Mkdir(filepath.Join(own, "deep", "Trash"), 0o755))
	for folder, want := range map[string]string{".": "", "home/ada": providerapi.IconTrash, "home/ada/deep": ""} {
		listed := callAs(t, program, ada, nil, accountCall{Base: base, Browse: folder, Unmanaged: true})
		described := callAs(t, program, ada, nil, accountCall{Base: base, Retrieve: folder + "/Trash", Unmanaged: true})
		if listed.Icon != want || described.Icon != want || listed.Why != "" || described.Why != "" {
			t.Errorf("trash in %s: listed %+v, described %+v", folder, listed, described)
		}
	}
	for unmanaged, want := range map[bool][]string{false: {"Trash"}, true: {"home/ada/Trash"}} {
		res := callAs(t, program, ada, nil, accountCall{Base: base, Search: ".", Query: "trash", Unmanaged: unmanaged})
		if !slices.Equal(res.Icons, want) || !slices.Equal(res.Names, []string{"Trash", "home/ada/Trash", "home/ada/deep/Trash"}) {
			t.Errorf("found, unmanaged %v: %+v", unmanaged, res)
		}
	}
	if res := callAs(t, program, ada, nil, accountCall{Base: base, Browse: "."}); res.Icon != providerapi.IconTrash {
		t.Errorf("in a managed drive: %+v", res)
	}
	for rel, want := range map[string]failure.Kind{
		"home/theirs": failure.Invalid, "home/ada/Trash": failure.Invalid, "home/ada/Trash/f": failure.Invalid, "home/ada": failure.Invalid,
	} {
		if res := callAs(t, program, ada, nil, accountCall{Base: base, Trash: rel, Unmanaged: true}); res.Why == "" || res.Kind != want {
			t.Errorf("%s: %+v", rel, res)
		}
	}
}

// TestTwoUsersInAProject works with real accounts in a setgid project directory: the kernel's permissions decide, and
// each denial gets its meaning.
func TestTwoUsersInAProject(t *testing.T) {
	t.Parallel()
	site := accounts.New(t, "files")
	ada, grace, eve := site.User(t), site.User(t), site.User(t)
	program := testProgram(t, site.Dir)
	base := filepath.Join(site.Dir, "project")
	check(t, os.Mkdir(base, 0o770))
	check(t, os.Chown(base, 0, int(site.GID)))
	check(t, os.Chmod(base, 0o770|os.ModeSetgid))

	as := func(a accounts.Account, groups []ident.GID, call accountCall) accountResult {
		t.Helper()
		call.Base = base
		return callAs(t, program, a, groups, call)
	}
	member := []ident.GID{site.GID}

	if res := as(ada, member, accountCall{Folder: "shared/deep"}); res.Why != "" {
		t.Fatalf("a member makes a folder: %+v", res)
	}
	for _, n := range []string{"shared", "shared/deep"} {
		var st unix.Stat_t
		check(t, unix.Stat(filepath.Join(base, n), &st))
		if st.Mode&0o7777 != 0o2770 || ident.GID(st.Gid) != site.GID || ident.UID(st.Uid) != ada.UID {
			t.Errorf("%s has mode %o, owner %d, group %d", n, st.Mode, st.Uid, st.Gid)
		}
	}
	if res := as(grace, member, accountCall{Folder: "shared/deep/hers"}); res.Why != "" {
		t.Errorf("another member goes on: %+v", res)
	}
	if res := as(grace, member, accountCall{Browse: "shared/deep"}); !slices.Equal(res.Names, []string{"hers"}) {
		t.Errorf("another member lists: %+v", res)
	}

	// A folder that one member keeps private.
	check(t, os.Mkdir(filepath.Join(base, "private"), 0o700))
	check(t, os.Chown(filepath.Join(base, "private"), int(ada.UID), int(ada.GID)))
	if res := as(grace, member, accountCall{Browse: "private"}); res.Kind != failure.NotFound || res.Asked != 0 {
		t.Errorf("list a private folder: %+v", res)
	}
	if res := as(grace, member, accountCall{Retrieve: "private/x"}); res.Kind != failure.NotFound || res.Asked != 0 {
		t.Errorf("look into a private folder: %+v", res)
	}
	if res := as(grace, member, accountCall{Folder: "private/x"}); res.Kind != failure.Forbidden || res.Asked != 0 {
		t.Errorf("make a folder in a private one: %+v", res)
	}
	if res := as(ada, member, accountCall{Folder: "private/x"}); res.Why != "" {
		t.Errorf("the owner makes one: %+v", res)
	}

	// Where one drive is a whole file system, its root shows what one can read.
	if res := as(grace, member, accountCall{Browse: "."}); !slices.Equal(res.Names, []string{"private", "shared"}) {
		t.Errorf("list a managed drive: %+v", res)
	}
	if res := as(grace, member, accountCall{Browse: ".", Unmanaged: true}); !slices.Equal(res.Names, []string{"shared"}) {
		t.Errorf("list an unmanaged drive: %+v", res)
	}

	// Eve is no member, or her instance does not know it yet.
	for _, call := range []accountCall{{Browse: "."}, {Browse: "shared"}, {Retrieve: "shared"}, {Folder: "x"}} {
		if res := as(eve, nil, call); res.Kind != failure.NotFound || res.Asked != 1 {
			t.Errorf("without the group, %+v: %+v", call, res)
		}
		call.Replace = true
		if res := as(eve, nil, call); res.Kind != failure.NoInstance || res.Asked != 1 {
			t.Errorf("with old groups, %+v: %+v", call, res)
		}
		call.Replace = false
		if res := as(eve, member, call); res.Why != "" || res.Asked != 0 {
			t.Errorf("with new groups, %+v: %+v", call, res)
		}
	}
}

// TestSearchAsAUser: what a user may not read is left out, without an error.
func TestSearchAsAUser(t *testing.T) {
	t.Parallel()
	site := accounts.New(t, "search")
	ada, eve := site.User(t), site.User(t)
	program := testProgram(t, site.Dir)
	base := filepath.Join(site.Dir, "shared")
	for _, dir := range []string{"open/needle", "private/needle", "blind/needle", "dropbox", "searchonly"} {
		check(t, os.MkdirAll(filepath.Join(base, dir), 0o755))
	}
	touch(t, base, "open/needle.txt", "private/needle.txt", "blind/needle.txt", "searchonly/needle.txt", "dropbox/needle.txt")
	for dir, mode := range map[string]os.FileMode{"private": 0o700, "blind": 0o444, "searchonly": 0o111, "dropbox": 0o733} {
		check(t, os.Chown(filepath.Join(base, dir), int(ada.UID), int(ada.GID)))
		check(t, os.Chmod(filepath.Join(base, dir), mode))
	}
	// In a folder that can be listed but not entered, names are seen and nothing else: they are left out as in listings.
	open := []string{"open/needle", "open/needle.txt"}
	for _, tc := range []struct {
		who    accounts.Account
		folder string
		want   []string
	}{
		{eve, ".", open},
		{eve, "open", open},
		{eve, "private", nil},
		{eve, "searchonly", nil},
		{eve, "private/needle", nil},
		{eve, "searchonly/needle.txt", []string{"searchonly/needle.txt"}},
		{ada, ".", append(slices.Clone(open), "private/needle", "private/needle.txt", "dropbox/needle.txt")},
	} {
		slices.Sort(tc.want)
		if res := callAs(t, program, tc.who, nil, accountCall{Base: base, Search: tc.folder}); res.Why != "" || !slices.Equal(res.Names, tc.want) {
			t.Errorf("%s in %s: %+v, want %q", tc.who.Name, tc.folder, res, tc.want)
		}
	}
	check(t, os.Chmod(base, 0o700))
	if res := callAs(t, program, eve, nil, accountCall{Base: base, Search: "open"}); len(res.Names) > 0 || res.Asked != 1 {
		t.Errorf("a drive that cannot be entered: %+v", res)
	}
}
