//go:build e2e

package e2e

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/chromedp"

	"ucloud-im/internal/devcore"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
)

// page is a real browser with the console.
type page struct {
	t         *testing.T
	w         *world
	ctx       context.Context
	downloads string // directory
	shots     int
}

// openBrowser starts a browser. Screenshots go to the directory named by E2E_SCREENSHOTS, if set.
func openBrowser(t *testing.T, w *world, more ...chromedp.ExecAllocatorOption) *page {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath("/usr/bin/chromium"), chromedp.NoSandbox, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true), chromedp.WindowSize(1280, 900))
	alloc, cancelAlloc := chromedp.NewExecAllocator(context.Background(), append(options, more...)...)
	t.Cleanup(cancelAlloc)
	ctx, cancel := chromedp.NewContext(alloc)
	t.Cleanup(cancel)
	p := &page{t: t, w: w, ctx: ctx, downloads: t.TempDir()}
	w.must(chromedp.Do(ctx)) // opens the tab, which lives as long as the context of this call
	_, err := chromedp.CallBrowser(ctx, browser.SetDownloadBehavior, browser.SetDownloadBehaviorParams{
		Behavior: browser.SetDownloadBehaviorBehaviorAllow, DownloadPath: p.downloads,
	})
	w.must(err)
	var cancelTime context.CancelFunc
	p.ctx, cancelTime = context.WithTimeout(ctx, 6*time.Minute)
	t.Cleanup(cancelTime)
	return p
}

func (p *page) do(what string, actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, testkit.Patience)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		p.shot("failed")
		p.t.Fatalf("%s: %v", what, err)
	}
}

func (p *page) click(selector string) {
	p.t.Helper()
	p.do("click "+selector, chromedp.Click(selector))
}

// press clicks on what is there at this moment: in lists that are drawn anew, the mouse may come too late.
func (p *page) press(selector string) {
	p.t.Helper()
	if !eval[bool](p, `(() => { const e = document.querySelector(`+strconv.Quote(selector)+`); e?.click(); return !!e; })()`) {
		p.t.Fatalf("there is no %s", selector)
	}
}

func (p *page) text(selector string) string {
	p.t.Helper()
	s, err := chromedp.Run(p.ctx, chromedp.TextContent(selector))
	if err != nil {
		p.t.Fatalf("text of %s: %v", selector, err)
	}
	return s
}

// eval gives the value of an expression in the page.
func eval[T any](p *page, expression string) T {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, testkit.Patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		p.shot("failed")
		p.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

func (p *page) shot(name string) {
	dir := os.Getenv("E2E_SCREENSHOTS")
	if dir == "" {
		return
	}
	p.shots++
	if png, err := chromedp.Run(p.ctx, chromedp.FullScreenshot(100)); err == nil {
		_ = os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s-%02d-%s.png", p.t.Name(), p.shots, name)), png, 0o644)
	}
}

// paths are the entries that the console lists.
func (p *page) paths() []string {
	p.t.Helper()
	return eval[[]string](p, `[...document.querySelectorAll("#files tr")].map((r) => r.dataset.path)`)
}

// listed waits until the console lists exactly these names, in any order.
func (p *page) listed(folder string, names ...string) {
	p.t.Helper()
	want := make([]string, 0, len(names))
	for _, n := range names {
		want = append(want, folder+"/"+n)
	}
	slices.Sort(want)
	var got []string
	if !settles(func() bool {
		got = p.paths()
		slices.Sort(got)
		return slices.Equal(got, want)
	}) {
		p.shot("failed")
		p.t.Fatalf("the console lists %q, want %q; it says %q", got, want, p.text("#message"))
	}
}

// settles waits for a condition.
func settles(cond func() bool) bool {
	for deadline := time.Now().Add(testkit.Patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if cond() {
			return true
		}
	}
	return cond()
}

// tick selects the entries with these paths, and no others.
func (p *page) tick(paths ...string) {
	p.t.Helper()
	list, err := json.Marshal(paths)
	p.w.must(err)
	n := eval[int](p, `(() => {
		const want = new Set(`+string(list)+`);
		let n = 0;
		for (const r of document.querySelectorAll("#files tr")) {
			const box = r.querySelector("input[type=checkbox]");
			if (want.has(r.dataset.path)) n++;
			if (box.checked !== want.has(r.dataset.path)) box.click();
		}
		return n;
	})()`)
	if n != len(paths) {
		p.t.Fatalf("%d of %q are listed", n, paths)
	}
}

// open presses the name of an entry.
func (p *page) open(path string) {
	p.t.Helper()
	name, err := json.Marshal(path)
	p.w.must(err)
	if !eval[bool](p, `(() => {
		const r = [...document.querySelectorAll("#files tr")].find((r) => r.dataset.path === `+string(name)+`);
		r?.querySelector("button.link").click();
		return !!r;
	})()`) {
		p.t.Fatalf("%s is not listed", path)
	}
}

func (p *page) says(text string) {
	p.t.Helper()
	if !settles(func() bool { return strings.Contains(p.text("#message"), text) }) {
		p.shot("failed")
		p.t.Errorf("the console says %q, not %q", p.text("#message"), text)
	}
}

// openDrive opens the console and in it the home drive of the first user.
func (p *page) openDrive() {
	p.t.Helper()
	p.do("open the drive", chromedp.Navigate(p.w.coreURL+"/#key=secret"), chromedp.WaitReady("#drives button"), chromedp.Click("#drives button"),
		chromedp.WaitReady("#files-section:not([hidden])"))
}

// owned makes what is below a directory the account's.
func (w *world) owned(who *person, dir string) {
	w.t.Helper()
	w.must(filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(who.account.UID), int(who.account.GID))
	}))
}

// TestBrowser does in a real browser what the README describes: connect, approve with the printed command, browse,
// make a folder.
func TestBrowser(t *testing.T) {
	testkit.Require(t, testkit.Component("chromium"))
	w := newWorld(t, settings{})
	ada := w.addPerson("Ada#1815")
	w.must(os.WriteFile(filepath.Join(ada.account.Home, "notes.txt"), []byte("engine"), 0o644))
	p := openBrowser(t, w)

	p.do("press Connect", chromedp.Navigate(w.coreURL+"/#key=secret"),
		chromedp.WaitReady("#connect:not([hidden])"), chromedp.Click("#connect"), chromedp.WaitReady("#continue:not([hidden])"))
	p.shot("console")
	link := eval[string](p, `document.getElementById("continue").href`)

	p.do("open the provider's page", chromedp.Navigate(link), chromedp.WaitReady("h1"))
	p.shot("ticket")
	text := p.text("body")
	ticket := ticketPattern.FindString(text)
	if ticket == "" || !strings.Contains(text, "Ada#1815") {
		t.Fatalf("the page shows no ticket for Ada:\n%s", text)
	}
	if _, err := w.cli("connect", ticket, ada.account.Name, "--yes"); err != nil {
		t.Fatal(err)
	}
	// The page reloads itself.
	testkit.Eventually(t, "the page to show success", func() bool {
		body, _ := chromedp.Run(p.ctx, chromedp.Text("body")) // may hit a reload
		return strings.Contains(body, ada.account.Name)
	})
	p.shot("connected")
	w.waitDrive(ada)

	p.openDrive()
	p.listed(ada.home(), "notes.txt")
	p.do("make a folder", chromedp.SendKeys("#folder", "results ü"), chromedp.Click("#folder-form button[type=submit]"))
	p.listed(ada.home(), "notes.txt", "results ü")
	p.shot("files")
	info, err := os.Stat(filepath.Join(ada.account.Home, "results ü"))
	if err != nil || info.Sys().(*syscall.Stat_t).Uid != uint32(ada.account.UID) {
		t.Errorf("the folder: %v, %v", info, err)
	}
}

// injection is a file name that would run a script in a page that takes names for markup.
const injection = `<img src=x onerror=window.hacked=1>`

// TestBrowserOperations renames, moves, copies, trashes and deletes with the buttons of the console.
func TestBrowserOperations(t *testing.T) {
	testkit.Require(t, testkit.Component("chromium"))
	w := newWorld(t, settings{})
	ada := w.addPerson("Ada#1815")
	w.connect(ada)
	home := func(name string) string { return filepath.Join(ada.account.Home, name) }
	odd := []string{injection, "line\nbreak", "right\u202eexe.txt", "bad\xff.txt", `"quoted" & 'so'`}
	for _, name := range odd {
		w.must(os.WriteFile(home(name), []byte(name), 0o640))
	}
	w.must(os.MkdirAll(home("data/deep"), 0o750))
	w.must(os.WriteFile(home("data/deep/a.txt"), []byte("deep"), 0o640))
	w.must(os.WriteFile(home("note.txt"), []byte("a note"), 0o640))
	w.must(os.WriteFile(home(".hidden"), nil, 0o640))
	w.owned(ada, ada.account.Home)
	root := ada.home()
	all := []string{injection, "line\nbreak", "right\u202eexe.txt", "bad\U0010feff.txt", `"quoted" & 'so'`, "data", "note.txt"}
	with := func(names ...string) []string { return append(slices.Clone(all), names...) }
	without := func(gone string, names ...string) []string {
		return append(slices.DeleteFunc(slices.Clone(all), func(n string) bool { return n == gone }), names...)
	}
	exists := func(name string) bool { _, err := os.Lstat(home(name)); return err == nil }

	p := openBrowser(t, w)
	p.openDrive()
	p.listed(root, all...)
	if n := eval[int](p, `document.querySelectorAll("#columns img").length + (window.hacked || 0)`); n != 0 {
		t.Error("a file name became markup")
	}
	if got := p.text("#files"); !strings.Contains(got, injection) || !strings.Contains(got, "line\u240abreak") || !strings.Contains(got, `bad\xff.txt`) ||
		strings.Contains(got, "\u202e") {
		t.Errorf("names are shown as %q", got)
	}
	p.shot("odd-names")
	p.click("#hidden")
	p.listed(root, with(".hidden")...)
	p.click("#hidden")
	p.listed(root, all...)

	// Sorting.
	for _, first := range []string{"right\u202eexe.txt", `"quoted" & 'so'`} {
		p.click(`[data-sort="PATH"]`)
		if !settles(func() bool { got := p.paths(); return len(got) > 1 && got[0] == root+"/"+first }) {
			t.Errorf("%q is not first in %q", first, p.paths())
		}
	}

	// Rename never overwrites.
	rename := func(from, to string) {
		t.Helper()
		p.tick(root + "/" + from)
		p.click("#rename")
		p.do("type the name", chromedp.WaitReady("#rename-dialog[open]"), chromedp.SetValue("#rename-name", to))
		p.shot("rename")
		p.click("#rename-dialog button[value=yes]")
	}
	rename("note.txt", injection)
	p.says("409")
	if data, err := os.ReadFile(home("note.txt")); err != nil || string(data) != "a note" {
		t.Errorf("after a refused rename: %q, %v", data, err)
	}
	rename("note.txt", "a note ü.txt")
	p.listed(root, without("note.txt", "a note ü.txt")...)
	rename("a note ü.txt", "note.txt")
	p.listed(root, all...)

	// Move into a folder, chosen in the dialog, and back.
	to := func(button, folder string, paths ...string) {
		t.Helper()
		p.tick(paths...)
		p.click(button)
		p.do("the dialog", chromedp.WaitReady("#target-dialog[open]"))
		for _, part := range strings.Split(folder, "/") {
			if part == "" { // up to the root of the drive
				p.do("the drive", chromedp.WaitReady("#target-path .link"))
				p.press("#target-path .link")
				continue
			}
			if !settles(func() bool {
				return eval[bool](p, `(() => {
					const b = [...document.querySelectorAll("#target-folders .link")].find((b) => b.textContent === "`+part+`");
					b?.click();
					return !!b;
				})()`)
			}) {
				t.Fatalf("the dialog does not offer %s: %s", part, p.text("#target-folders"))
			}
		}
		last := folder[strings.LastIndex(folder, "/")+1:]
		if !settles(func() bool { return last == "" || strings.HasSuffix(p.text("#target-path"), last) }) {
			t.Fatalf("the dialog is at %s", p.text("#target-path"))
		}
		p.shot("target")
		p.click("#target-yes")
	}
	to("#move", "data/deep", root+"/note.txt", root+"/line\nbreak")
	if !settles(func() bool {
		return exists("data/deep/note.txt") && exists("data/deep/line\nbreak") && !exists("note.txt")
	}) {
		t.Fatalf("nothing was moved; the console says %q", p.text("#message"))
	}
	w.must(os.Rename(home("data/deep/note.txt"), home("note.txt")))
	w.must(os.Rename(home("data/deep/line\nbreak"), home("line\nbreak")))
	p.click("#refresh")
	p.listed(root, all...)

	// Copy a folder beside itself: a task.
	to("#copy", "", root+"/data")
	p.listed(root, with("data(1)")...)
	if !settles(func() bool {
		return exists("data(1)/deep/a.txt") && eval[bool](p, `!!document.querySelector("#tasks li[data-state=SUCCESS]")`)
	}) {
		t.Fatalf("no copy; the tasks are %q", p.text("#tasks"))
	}
	p.shot("copied")

	// Trash, look into it, empty it.
	p.tick(root+"/data(1)", root+"/"+injection)
	p.click("#trash")
	p.listed(root, without(injection, "Trash")...)
	p.open(root + "/Trash")
	p.listed(root+"/Trash", "data(1)", injection)
	p.tick(root + "/Trash/" + injection)
	if !eval[bool](p, `document.getElementById("trash").disabled`) {
		t.Error("what is in the trash can be trashed again")
	}
	p.click("#delete")
	p.do("confirm", chromedp.WaitReady("#confirm-dialog[open]"))
	p.shot("confirm")
	p.click("#confirm-yes")
	p.listed(root+"/Trash", "data(1)")
	p.click("#empty-trash")
	p.do("confirm", chromedp.WaitReady("#confirm-dialog[open]"))
	p.click("#confirm-yes")
	p.listed(root + "/Trash")
	if !exists("Trash") || !exists("data/deep/a.txt") {
		t.Error("too much was deleted")
	}
	p.shot("empty-trash")
}

// TestBrowserTask watches a copy in the task list, pauses it, lets it go on, and cancels it.
func TestBrowserTask(t *testing.T) {
	testkit.Require(t, testkit.Component("chromium"))
	w := newWorld(t, settings{})
	ada := w.addPerson("Ada#1815")
	w.connect(ada)
	const folders, files = 100, 600
	for i := range folders {
		dir := filepath.Join(ada.account.Home, "many", fmt.Sprint(i))
		w.must(os.MkdirAll(dir, 0o755))
		for j := range files {
			w.must(os.WriteFile(filepath.Join(dir, fmt.Sprint(j)), []byte("x"), 0o644))
		}
	}
	w.must(os.Chown(ada.account.Home, int(ada.account.UID), int(ada.account.GID)))
	p := openBrowser(t, w)
	p.openDrive()
	root := ada.home()
	p.tick(root + "/many")
	p.click("#copy")
	p.do("the dialog", chromedp.WaitReady("#target-dialog[open]"), chromedp.WaitReady("#target-path .link"), chromedp.Click("#target-yes"))
	press := func(name string) {
		t.Helper()
		if !settles(func() bool {
			return eval[bool](p, `(() => {
				const b = [...document.querySelectorAll("#tasks button:not([hidden])")].find((b) => b.textContent === "`+name+`");
				b?.click();
				return !!b;
			})()`)
		}) {
			p.shot("failed")
			t.Fatalf("no button %s: %s", name, p.text("#tasks"))
		}
	}
	state := func(want providerapi.TaskState) {
		t.Helper()
		if !settles(func() bool {
			tasks := w.core.Tasks(ada.name)
			return len(tasks) == 1 && tasks[0].Status.State == want &&
				eval[bool](p, `document.querySelector("#tasks li")?.dataset.state === "`+string(want)+`"`)
		}) {
			p.shot("failed")
			t.Fatalf("the task is not %s: %s", want, p.text("#tasks"))
		}
	}
	state(providerapi.TaskRunning)
	p.shot("running")
	press("Pause")
	state(providerapi.TaskSuspended)
	p.shot("paused")
	press("Resume")
	state(providerapi.TaskRunning)
	press("Cancel")
	state(providerapi.TaskCancelled)
	p.shot("cancelled")
	if !devcore.Ended(w.core.Tasks(ada.name)[0]) {
		t.Error("a cancelled task is not at its end")
	}
}

// TestBrowserDrives makes a drive, renames it and deletes it with the buttons of the console.
func TestBrowserDrives(t *testing.T) {
	testkit.Require(t, testkit.Component("chromium"))
	w := newWorld(t, settings{extra: "      userDrives: { locators: [home], directory: Drives }\n"})
	ada := w.addPerson("Ada#1815")
	w.connect(ada)
	p := openBrowser(t, w)
	p.do("open the console", chromedp.Navigate(w.coreURL+"/#key=secret"), chromedp.WaitReady("#drive-form:not([hidden])"),
		chromedp.SendKeys("#drive-title", "Data of "+injection), chromedp.Click("#drive-form button"))
	titles := func(want ...string) {
		t.Helper()
		var got string
		if !settles(func() bool {
			got = p.text("#drives")
			for _, title := range want {
				if !strings.Contains(got, title) {
					return false
				}
			}
			return eval[int](p, `document.querySelectorAll("#drives li").length`) == len(want)
		}) {
			p.shot("failed")
			t.Fatalf("the drives are %q, want %q; the console says %q", got, want, p.text("#message"))
		}
	}
	titles("Home", "Data of "+injection)
	eval[bool](p, `(() => { [...document.querySelectorAll("#drives button")].find((b) => b.textContent.includes("Data of")).click(); return true; })()`)
	p.do("the new drive", chromedp.WaitReady("#drive-rename:not([hidden])"), chromedp.SendKeys("#folder", "in here"), chromedp.Click("#folder-form button"))
	if !settles(func() bool { return len(p.paths()) == 1 }) {
		t.Fatalf("no folder in the new drive: %q", p.text("#message"))
	}
	made, err := filepath.Glob(filepath.Join(ada.account.Home, "Drives", "*", "in here"))
	if err != nil || len(made) != 1 {
		t.Errorf("on disk there is %q, %v", made, err)
	}
	p.shot("drive")
	p.do("rename", chromedp.Click("#drive-rename"), chromedp.WaitReady("#rename-dialog[open]"), chromedp.SetValue("#rename-name", "Old data"),
		chromedp.Click("#rename-dialog button[value=yes]"))
	titles("Home", "Old data")
	p.do("delete", chromedp.WaitReady("#drive-delete:not([hidden])"), chromedp.Click("#drive-delete"), chromedp.WaitReady("#confirm-dialog[open]"), chromedp.Click("#confirm-yes"))
	titles("Home")
	if _, err := os.Stat(filepath.Join(ada.account.Home, "Drives", filepath.Base(filepath.Dir(made[0])))); err == nil {
		t.Error("the folder of the deleted drive is still in its place")
	}
}

// TestBrowserErrors: what a centre's permissions forbid is explained, and an upload whose instance is killed can be
// tried again.
func TestBrowserErrors(t *testing.T) {
	testkit.Require(t, testkit.Component("chromium"))
	w := newWorld(t, settings{})
	ada := w.addPerson("Ada#1815")
	w.running(ada)
	// Not in the root of the drive, where unreadable entries are left out.
	root := ada.home() + "/data"
	home := func(name string) string { return filepath.Join(ada.account.Home, "data", name) }
	w.must(os.MkdirAll(home("read-only"), 0o755))
	w.must(os.Mkdir(home("closed"), 0o755))
	w.must(os.WriteFile(home("secret"), []byte("x"), 0o600))
	w.owned(ada, ada.account.Home)
	for name, mode := range map[string]os.FileMode{"read-only": 0o555, "closed": 0o000, "secret": 0o000} {
		w.must(os.Chmod(home(name), mode))
	}
	source := filepath.Join(t.TempDir(), "big.bin")
	big := make([]byte, 80<<20)
	rand.NewChaCha8([32]byte{2}).Read(big)
	w.must(os.WriteFile(source, big, 0o644))
	p := openBrowser(t, w)
	p.openDrive()
	p.listed(ada.home(), "data")
	p.open(root)
	p.listed(root, "read-only", "closed", "secret")
	// says waits for an error that is more than a number.
	says := func(what, status string) {
		t.Helper()
		var got string
		if !settles(func() bool {
			got = p.text("#message.error")
			return strings.Contains(got, "("+status+")") && len(got) > 20
		}) {
			p.shot("failed")
			t.Errorf("%s: the console says %q", what, got)
		}
	}
	refused := func(what, status string, do func()) {
		t.Helper()
		eval[bool](p, `(() => { const m = document.getElementById("message"); m.className = "error"; m.textContent = ""; return true; })()`)
		do()
		says(what, status)
	}
	refused("open a closed folder", "404", func() { p.open(root + "/closed") })
	refused("download an unreadable file", "404", func() { p.open(root + "/secret") })
	p.open(root + "/read-only")
	p.listed(root + "/read-only")
	refused("make a folder in a read-only one", "403", func() {
		p.do("type", chromedp.SendKeys("#folder", "new"), chromedp.Click("#folder-form button"))
	})
	p.shot("refused")
	p.do("upload into a read-only folder", chromedp.SetUploadFiles("#upload-files", []string{source}))
	p.uploadState("failed")
	if text := p.text("#uploads"); !strings.Contains(text, "(403)") || strings.Contains(text, "undefined") {
		t.Errorf("the refused upload says %q", text)
	}
	p.press("#uploads li button:nth-of-type(2)")

	p.press("#path .link:nth-of-type(2)")
	p.listed(root, "read-only", "closed", "secret")
	// Only a part of the file gets out of the page, so that the upload is not over before the kill.
	eval[bool](p, `(() => {
		const send = WebSocket.prototype.send;
		let sent = 0;
		WebSocket.prototype.send = function (data) {
			sent += data.byteLength || data.size || 0;
			if (sent < 40 << 20) send.call(this, data);
		};
		window.sendAgain = () => { WebSocket.prototype.send = send; };
		return true;
	})()`)
	p.do("upload", chromedp.SetUploadFiles("#upload-files", []string{source}))
	if !settles(func() bool { return strings.Contains(p.text("#uploads"), "MiB of 80.0 MiB") }) {
		t.Fatalf("the upload does not begin: %q", p.text("#uploads"))
	}
	w.must(syscall.Kill(w.instances()[ada.name].PID, syscall.SIGKILL))
	p.uploadState("failed")
	eval[bool](p, `(() => { window.sendAgain(); return true; })()`)
	if text := p.text("#uploads"); !strings.Contains(text, "connection") {
		t.Errorf("the cut upload says %q", text)
	}
	if _, err := os.Stat(home("big.bin")); err == nil {
		t.Error("half a file has its name")
	}
	p.shot("cut")
	p.press("#uploads li button:nth-of-type(1)")
	p.uploadState("done")
	if data, err := os.ReadFile(home("big.bin")); err != nil || !bytes.Equal(data, big) {
		t.Errorf("after another try: %d bytes, %v", len(data), err)
	}
	p.listed(root, "read-only", "closed", "secret", "big.bin")
}

// TestBrowserSearch looks for names, opens the folder of a result, and stops a search.
func TestBrowserSearch(t *testing.T) {
	testkit.Require(t, testkit.Component("chromium"))
	w := newWorld(t, settings{})
	ada := w.addPerson("Ada#1815")
	w.connect(ada)
	for _, name := range []string{"results/2024/Report.txt", "results/2024/other.txt", "reports/a.txt", "deep/er/still/report " + injection, ".report"} {
		path := filepath.Join(ada.account.Home, name)
		w.must(os.MkdirAll(filepath.Dir(path), 0o755))
		w.must(os.WriteFile(path, []byte("x"), 0o644))
	}
	w.owned(ada, ada.account.Home)
	p := openBrowser(t, w)
	p.openDrive()
	root := ada.home()
	p.listed(root, "results", "reports", "deep")
	search := func(query string) {
		t.Helper()
		p.do("search", chromedp.WaitReady("#search-form:not([hidden])"), chromedp.SetValue("#query", query), chromedp.Click("#search-form button"))
	}
	status := func(want string) {
		t.Helper()
		if !settles(func() bool { return p.text("#results-status") == want }) {
			p.shot("failed")
			t.Fatalf("the search says %q, not %q; results %q", p.text("#results-status"), want, p.text("#results"))
		}
	}
	search("report")
	status("3 results")
	p.shot("results")
	if got := p.text("#results"); !strings.Contains(got, "results/2024/Report.txt") || !strings.Contains(got, "reports/") || !strings.Contains(got, injection) {
		t.Errorf("the results are %q", got)
	}
	if n := eval[int](p, `document.querySelectorAll("#columns img").length + (window.hacked || 0)`); n != 0 {
		t.Error("a file name became markup")
	}
	// A result leads to its folder.
	eval[bool](p, `(() => { [...document.querySelectorAll("#results .link")].find((b) => b.textContent.includes("Report.txt")).click(); return true; })()`)
	p.listed(root+"/results/2024", "Report.txt", "other.txt")
	if marked := eval[string](p, `document.querySelector("#files tr.mark")?.dataset.path || ""`); marked != root+"/results/2024/Report.txt" {
		t.Errorf("pointed out is %q", marked)
	}
	p.shot("found")
	search("nothing like this")
	status("nothing found")
	// Stopped before anything can have come.
	eval[bool](p, `(() => {
		document.getElementById("query").value = "t";
		document.getElementById("search-form").requestSubmit();
		document.getElementById("stop").click();
		return true;
	})()`)
	status("stopped, 0 results")
	p.click("#results-close")
	p.do("closed", chromedp.WaitReady("#results-section[hidden]"))
	p.click("#hidden")
	p.listed(root+"/results/2024", "Report.txt", "other.txt")
	p.press("#path .link")
	p.listed(root, "results", "reports", "deep", ".report")
	search("report")
	status("4 results")
}

// TestBrowserTransfer uploads files and a folder through the inputs of the page, and downloads them again.
func TestBrowserTransfer(t *testing.T) {
	testkit.Require(t, testkit.Component("chromium"))
	w := newWorld(t, settings{})
	ada := w.addPerson("Ada#1815")
	w.connect(ada)
	root := ada.home()

	// What is uploaded: odd names, an empty file, and one of several chunks.
	source := t.TempDir()
	stamp := time.Date(2021, 3, 4, 5, 6, 7, 123e6, time.UTC)
	put := func(name string, data []byte) string {
		t.Helper()
		path := filepath.Join(source, name)
		w.must(os.MkdirAll(filepath.Dir(path), 0o755))
		w.must(os.WriteFile(path, data, 0o644))
		w.must(os.Chtimes(path, stamp, stamp))
		return path
	}
	big := make([]byte, 40<<20+17)
	rand.NewChaCha8([32]byte{1}).Read(big)
	content := map[string][]byte{
		"plain.txt": []byte("plain"), "empty": {}, "ü – 名前.txt": []byte("unicode"), injection: []byte("markup"), `quote"'&.txt`: []byte("quotes"), "big.bin": big,
	}
	var singles, names []string
	for name, data := range content {
		singles = append(singles, put(name, data))
		names = append(names, name)
	}
	tree := map[string][]byte{}
	for i := range 300 {
		tree[fmt.Sprintf("part %d/sub/file %d.dat", i%7, i)] = bytes.Repeat([]byte{byte(i)}, i*10)
	}
	tree["empty"] = nil
	tree[injection] = []byte("markup")
	for name, data := range tree {
		put("data set/"+name, data)
	}

	p := openBrowser(t, w)
	p.openDrive()
	p.do("choose files", chromedp.SetUploadFiles("#upload-files", singles))
	p.shot("uploading")
	p.listed(root, names...)
	finished := func(n int) {
		t.Helper()
		if !settles(func() bool {
			return eval[int](p, `document.querySelectorAll("#uploads li[data-state=done]").length`) == n
		}) {
			p.shot("failed")
			t.Fatalf("the uploads are %q", p.text("#uploads"))
		}
	}
	finished(len(singles))
	p.do("choose a folder", chromedp.SetUploadFiles("#upload-folder", []string{filepath.Join(source, "data set")}))
	finished(len(singles) + 1)
	p.listed(root, append(names, "data set")...)
	p.shot("uploaded")
	stored := func(name string, want []byte) {
		t.Helper()
		path := filepath.Join(ada.account.Home, name)
		data, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(data, want) {
			t.Errorf("%s: %d bytes, want %d, %v", name, len(data), len(want), err)
			return
		}
		info, err := os.Stat(path)
		w.must(err)
		if info.Sys().(*syscall.Stat_t).Uid != uint32(ada.account.UID) || !info.ModTime().Equal(stamp) {
			t.Errorf("%s belongs to %d, modified %s", name, info.Sys().(*syscall.Stat_t).Uid, info.ModTime())
		}
	}
	for name, data := range content {
		stored(name, data)
	}
	for name, data := range tree {
		stored("data set/"+name, data)
	}
	if n := eval[int](p, `document.querySelectorAll("#columns img").length + (window.hacked || 0)`); n != 0 {
		t.Error("a file name became markup")
	}
	if v := w.core.Tasks(ada.name); len(v) > 0 {
		t.Errorf("an upload without problems made tasks: %+v", v)
	}

	// The same file again gets another name.
	p.do("choose a file again", chromedp.SetUploadFiles("#upload-files", []string{filepath.Join(source, "plain.txt")}))
	p.listed(root, append(names, "data set", "plain(1).txt")...)

	downloaded := func(name string) []byte {
		t.Helper()
		path := filepath.Join(p.downloads, name)
		if !settles(func() bool {
			// The browser holds the name with an empty file while it writes beside it.
			info, err := os.Stat(path)
			unfinished, _ := filepath.Glob(filepath.Join(p.downloads, "*.crdownload"))
			return err == nil && info.Size() > 0 && len(unfinished) == 0
		}) {
			left, _ := os.ReadDir(p.downloads)
			p.shot("failed")
			t.Fatalf("%s was not downloaded; there is %v; the console says %q", name, left, p.text("#message"))
		}
		data, err := os.ReadFile(path)
		w.must(err)
		return data
	}
	p.open(root + "/big.bin")
	if got := downloaded("big.bin"); !bytes.Equal(got, big) {
		t.Errorf("big.bin came back different: %d bytes, want %d", len(got), len(big))
	}
	p.tick(root + "/data set")
	p.click("#download")
	archive := downloaded("data set.zip")
	z, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
	w.must(err)
	found := 0
	for _, f := range z.File {
		if strings.HasSuffix(f.Name, "/") {
			continue
		}
		want, ok := tree[strings.TrimPrefix(f.Name, "data set/")]
		r, err := f.Open()
		w.must(err)
		var data bytes.Buffer
		_, err = data.ReadFrom(r)
		if r.Close(); err != nil || !ok || !bytes.Equal(data.Bytes(), want) {
			t.Errorf("%s in the archive: %d bytes, want %d, %v", f.Name, data.Len(), len(want), err)
		}
		found++
	}
	if found != len(tree) {
		t.Errorf("%d files in the archive, want %d", found, len(tree))
	}
	p.shot("downloaded")
}
