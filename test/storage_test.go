//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"

	"ucloud-im/internal/devcore"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/webclient"
)

// desk is a person at work in one drive. Its calls are those that Core makes for that person.
type desk struct {
	w     *world
	t     *testing.T
	who   *person
	drive providerapi.Drive
	dir   string // where the drive is on this machine
}

// desk gives the person's home drive, with a running instance.
func (w *world) desk(p *person) *desk {
	w.t.Helper()
	return &desk{w: w, t: w.t, who: p, drive: w.driveOf(p), dir: p.account.Home}
}

// in gives the same desk for a part of the test.
func (d *desk) in(t *testing.T) *desk {
	c := *d
	c.t = t
	return &c
}

// escaped is a local name as it stands in JSON. It is the rule of contract 10 section 2 number 4 once more, so that
// a mistake in the implementation does not stay unseen.
func escaped(name string) string {
	var b strings.Builder
	for name != "" {
		r, n := utf8.DecodeRuneInString(name)
		if r == utf8.RuneError && n == 1 || r >= 0x10FE80 && r <= 0x10FEFF {
			for i := range n {
				b.WriteRune(0x10FE00 + rune(name[i]))
			}
		} else {
			b.WriteString(name[:n])
		}
		name = name[n:]
	}
	return b.String()
}

// id is the UCloud path of a local path in the drive.
func (d *desk) id(rel string) string {
	id := "/" + string(d.drive.ID)
	if rel != "" {
		id += "/" + escaped(rel)
	}
	return id
}

func (d *desk) local(rel string) string { return filepath.Join(d.dir, rel) }

// call makes a call and demands a status; the answer is checked against the description and decoded.
func (d *desk) call(method, path string, body any, want int, into any) {
	d.t.Helper()
	got := d.w.send(method, d.who.name, path, body, nil)
	if got.status != want {
		d.t.Fatalf("%s %s for %s: %d instead of %d: %s", method, path, d.who.name, got.status, want, got.body)
	}
	if into != nil {
		if err := json.Unmarshal(got.body, into); err != nil {
			d.t.Fatalf("%s %s: %v", method, path, err)
		}
	}
}

type items[T any] struct {
	Items []T `json:"items"`
}

func (d *desk) move(from, to string, policy providerapi.ConflictPolicy, want int) {
	d.t.Helper()
	d.call(http.MethodPost, "/files/move", items[providerapi.MoveFile]{[]providerapi.MoveFile{d.between(from, to, policy)}}, want, nil)
}

func (d *desk) copy(from, to string, policy providerapi.ConflictPolicy, want int) {
	d.t.Helper()
	d.call(http.MethodPost, "/files/copy", items[providerapi.MoveFile]{[]providerapi.MoveFile{d.between(from, to, policy)}}, want, nil)
}

func (d *desk) between(from, to string, policy providerapi.ConflictPolicy) providerapi.MoveFile {
	return providerapi.MoveFile{ResolvedOldCollection: d.drive, ResolvedNewCollection: d.drive, OldID: d.id(from), NewID: d.id(to), ConflictPolicy: policy}
}

func (d *desk) trash(rel string, want int) {
	d.t.Helper()
	d.call(http.MethodPost, "/files/trash", d.one(rel), want, nil)
}

func (d *desk) emptyTrash(want int) {
	d.t.Helper()
	d.call(http.MethodPost, "/files/emptyTrash", d.one("Trash"), want, nil)
}

func (d *desk) one(rel string) any {
	return items[providerapi.FileInDrive]{[]providerapi.FileInDrive{{ID: d.id(rel), ResolvedCollection: d.drive}}}
}

// remove is the permanent deletion.
func (d *desk) remove(rel string, want int) {
	d.t.Helper()
	d.call(http.MethodDelete, "/files", d.removal(rel), want, nil)
}

// removal is a file as Core sends it for its deletion.
func (d *desk) removal(rel string) any {
	return items[map[string]any]{[]map[string]any{{
		"id": d.id(rel), "createdAt": 0, "owner": d.drive.Owner, "permissions": d.drive.Permissions, "updates": []any{},
		"status":        map[string]any{"type": "DIRECTORY"},
		"specification": map[string]any{"collection": d.drive.ID, "product": d.drive.Specification.Product},
	}}}
}

func (d *desk) folder(rel string, policy providerapi.ConflictPolicy, want int) {
	d.t.Helper()
	d.call(http.MethodPost, "/files/folder", items[providerapi.CreateFolder]{[]providerapi.CreateFolder{{ID: d.id(rel), ConflictPolicy: policy, ResolvedCollection: d.drive}}}, want, nil)
}

func (d *desk) retrieve(rel string) (f providerapi.File) {
	d.t.Helper()
	yes := true
	d.call(http.MethodPost, "/files/retrieve", map[string]any{
		"resolvedCollection": d.drive,
		"retrieve":           map[string]any{"id": d.id(rel), "flags": providerapi.FileFlags{IncludeSizes: &yes, IncludeTimestamps: &yes, IncludeUnixInfo: &yes}},
	}, http.StatusOK, &f)
	return f
}

// listing is how a directory is asked for.
type listing struct {
	sort, direction string
	perPage         int
}

// browse lists a directory to its end, page by page.
func (d *desk) browse(rel string, how listing) (all []providerapi.File) {
	d.t.Helper()
	var next *string
	for {
		page := d.page(rel, how, next)
		all = append(all, page.Items...)
		if next = page.Next; next == nil {
			return all
		}
	}
}

func (d *desk) page(rel string, how listing, next *string) (page providerapi.Page[providerapi.File]) {
	d.t.Helper()
	d.call(http.MethodPost, "/files/browse", d.browseBody(rel, how, next), http.StatusOK, &page)
	return page
}

func (d *desk) browseBody(rel string, how listing, next *string) providerapi.FilesBrowse {
	yes, no := true, false
	id := d.id(rel)
	body := providerapi.FilesBrowse{ResolvedCollection: d.drive, Browse: providerapi.BrowseParams{
		Flags:        providerapi.FileFlags{Path: &id, IncludeSizes: &yes, IncludeTimestamps: &yes, IncludeUnixInfo: &yes, FilterHiddenFiles: &no},
		ItemsPerPage: how.perPage, Next: next,
	}}
	if how.sort != "" {
		body.Browse.SortBy = &how.sort
	}
	if how.direction != "" {
		body.Browse.SortDirection = &how.direction
	}
	return body
}

// search searches below a folder as Core does (contract 13 section 3.1), to the end of the results.
func (d *desk) search(rel, query string) (all []providerapi.File) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(d.w.gateURL, "http")+"/ucloud/"+provider+"/files?usernameHint="+d.who.name.HintValue(), &websocket.DialOptions{
		HTTPHeader: http.Header{"Authorization": {"Bearer " + d.w.core.ServiceToken()}},
	})
	if err != nil {
		d.t.Fatalf("search: %v", err)
	}
	defer ws.CloseNow()
	ws.SetReadLimit(16 << 20)
	first, err := json.Marshal(map[string]any{
		"call": "files.provider." + provider + ".streamingSearch", "streamId": "ignored", "bearer": "", "project": nil,
		"payload": map[string]any{
			"query": query, "owner": d.drive.Owner, "flags": providerapi.FileFlags{}, "currentFolder": d.id(rel),
			"category": map[string]any{"name": d.drive.Specification.Product.Category, "provider": provider},
		},
	})
	if err == nil {
		err = ws.Write(ctx, websocket.MessageText, first)
	}
	for err == nil {
		var msg []byte
		if _, msg, err = ws.Read(ctx); err != nil {
			break
		}
		var answer struct {
			Payload struct {
				Type  string             `json:"type"`
				Batch []providerapi.File `json:"batch"`
			} `json:"payload"`
		}
		if err = json.Unmarshal(msg, &answer); err != nil {
			break
		}
		all = append(all, answer.Payload.Batch...)
		if answer.Payload.Type == "end_of_results" {
			return all
		}
	}
	d.t.Fatalf("search %q below %q: %v", query, rel, err)
	return nil
}

type uploadSession struct {
	Endpoint string `json:"endpoint"`
	Protocol string `json:"protocol"`
	Token    string `json:"token"`
}

// uploadTo makes a session for a file or a folder.
func (d *desk) uploadTo(rel, kind string, policy providerapi.ConflictPolicy) uploadSession {
	d.t.Helper()
	var res struct {
		Responses []uploadSession `json:"responses"`
	}
	d.call(http.MethodPost, "/files/upload", items[map[string]any]{[]map[string]any{{
		"id": d.id(rel), "type": kind, "supportedProtocols": []string{"CHUNKED", "WEBSOCKET"}, "conflictPolicy": policy, "resolvedCollection": d.drive,
	}}}, http.StatusOK, &res)
	if len(res.Responses) != 1 || res.Responses[0].Protocol != "WEBSOCKET_V2" {
		d.t.Fatalf("the session is %+v", res)
	}
	return res.Responses[0]
}

// upload sends files as a browser does, and demands that all of them are completed and none skipped.
func (d *desk) upload(rel, kind string, policy providerapi.ConflictPolicy, files []webclient.File) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var c webclient.Client
	res, err := c.Upload(ctx, d.uploadTo(rel, kind, policy).Endpoint, files)
	if err != nil || res.Completed != len(files) {
		d.t.Fatalf("upload to %q: %d of %d files: %v", rel, res.Completed, len(files), err)
	}
	for _, i := range res.Skipped {
		d.t.Errorf("the upload of %q to %q was skipped", files[i].Path, rel)
	}
}

// downloadFrom makes a session.
func (d *desk) downloadFrom(rel string) string {
	d.t.Helper()
	var res struct {
		Responses []struct {
			Endpoint string `json:"endpoint"`
		} `json:"responses"`
	}
	d.call(http.MethodPost, "/files/download", d.one(rel), http.StatusOK, &res)
	if len(res.Responses) != 1 {
		d.t.Fatalf("the session is %+v", res)
	}
	return res.Responses[0].Endpoint
}

func (d *desk) download(rel string) []byte {
	d.t.Helper()
	res, err := webclient.Download(context.Background(), d.downloadFrom(rel), 0)
	if err != nil {
		d.t.Fatalf("download %q: %v", rel, err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		d.t.Fatalf("download %q: %v", rel, err)
	}
	return data
}

// ended waits for the next task of the person to end at Core, and demands its state.
func (d *desk) ended(want providerapi.TaskState) providerapi.Task {
	d.t.Helper()
	all := d.endedAll(1)
	if got := all[0]; got.Status.State != want {
		d.t.Fatalf("the task %q ended as %s: %s", text(got.Status.Title), got.Status.State, text(got.Status.Progress))
	}
	return all[0]
}

// endedAll waits for the next n tasks.
func (d *desk) endedAll(n int) []providerapi.Task {
	d.t.Helper()
	var all []providerapi.Task
	testkit.Eventually(d.t, fmt.Sprintf("%d tasks of %s to end at Core", n, d.who.name), func() bool {
		if all = d.w.core.Tasks(d.who.name); len(all) < d.who.seen+n {
			return false
		}
		all = all[d.who.seen : d.who.seen+n]
		for _, task := range all {
			if !devcore.Ended(task) {
				return false
			}
		}
		return true
	})
	d.who.seen += n
	return all
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// make makes what a person makes in a shell: as that account, below the drive.
func (d *desk) own(rels ...string) {
	d.t.Helper()
	for _, rel := range rels {
		chownAll(d.t, d.local(rel), d.who.account.UID, d.who.account.GID)
	}
}

// chownAll gives a tree to an account.
func chownAll(t *testing.T, top string, uid ident.UID, gid ident.GID) {
	t.Helper()
	walkTree(t, top, func(dir int, name, rel string, st *unix.Stat_t) {
		if err := unix.Fchownat(dir, name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Fatalf("chown %q: %v", rel, err)
		}
		if st.Mode&0o6000 != 0 && st.Mode&unix.S_IFMT != unix.S_IFLNK { // chown takes these bits away
			if err := unix.Fchmodat(dir, name, st.Mode&0o7777, 0); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// walkTree visits everything below and including top, by descriptors, so that no path is too long for it. A folder comes
// before its content; rel is "" for top.
func walkTree(t *testing.T, top string, visit func(dir int, name, rel string, st *unix.Stat_t)) {
	t.Helper()
	parent, err := unix.Open(filepath.Dir(top), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(parent)
	var walk func(dir int, name, rel string)
	walk = func(dir int, name, rel string) {
		var st unix.Stat_t
		if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Fatalf("stat %q: %v", rel, err)
		}
		visit(dir, name, rel, &st)
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return
		}
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatalf("open %q: %v", rel, err)
		}
		f := os.NewFile(uintptr(fd), name)
		defer f.Close()
		names, err := f.Readdirnames(-1)
		if err != nil {
			t.Fatalf("list %q: %v", rel, err)
		}
		if rel != "" {
			rel += "/"
		}
		for _, child := range names {
			walk(fd, child, rel+child)
		}
	}
	walk(parent, filepath.Base(top), "")
}

// hiddenName is the form of the names under which things are made before they get their own.
var hiddenName = regexp.MustCompile(`(?s)^\.(.+\.ucloud-upload|ucloud-link|ucloud-removed|ucloud-[a-z]+)-[0-9a-f]{16}$`)

// drafts finds what an operation must not leave behind.
func drafts(t *testing.T, top string) (found []string) {
	t.Helper()
	walkTree(t, top, func(_ int, name, rel string, _ *unix.Stat_t) {
		if hiddenName.MatchString(name) && !slices.Contains(oddNames, name) {
			found = append(found, rel)
		}
	})
	return found
}

// noDrafts demands that the drive holds no debris.
func (d *desk) noDrafts() {
	d.t.Helper()
	if found := drafts(d.t, d.dir); len(found) > 0 {
		d.t.Errorf("left behind: %q", found)
	}
}
