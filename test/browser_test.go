//go:build e2e

package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"ucloud-im/internal/testkit"
)

// TestBrowser does in a real browser what the README describes: connect, approve with the printed command, browse,
// make a folder. Screenshots go to the directory named by E2E_SCREENSHOTS, if set.
func TestBrowser(t *testing.T) {
	testkit.Require(t, testkit.Component("chromium"))
	w := newWorld(t, settings{})
	ada := w.addPerson("Ada#1815")
	w.must(os.WriteFile(filepath.Join(ada.account.Home, "notes.txt"), []byte("engine"), 0o644))

	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath("/usr/bin/chromium"), chromedp.NoSandbox, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true), chromedp.WindowSize(1100, 900))
	alloc, cancelAlloc := chromedp.NewExecAllocator(t.Context(), options...)
	defer cancelAlloc()
	ctx, cancel := chromedp.NewContext(alloc)
	defer cancel()
	ctx, cancelTime := context.WithTimeout(ctx, 2*time.Minute)
	defer cancelTime()
	run := func(what string, actions ...chromedp.Action[chromedp.Void]) {
		t.Helper()
		if err := chromedp.Do(ctx, actions...); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	text := func(selector string) string {
		t.Helper()
		s, err := chromedp.Run(ctx, chromedp.Text(selector))
		if err != nil {
			t.Fatalf("text of %s: %v", selector, err)
		}
		return s
	}
	shot := func(name string) {
		t.Helper()
		png, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
		w.must(err)
		if dir := os.Getenv("E2E_SCREENSHOTS"); dir != "" {
			w.must(os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644))
		}
	}

	run("press Connect", chromedp.Navigate(w.coreURL+"/#key=secret"),
		chromedp.WaitVisible("#connect"), chromedp.Click("#connect"), chromedp.WaitVisible("#continue"))
	shot("1-console")
	link, err := chromedp.Run(ctx, chromedp.JavascriptAttribute[string]("#continue", "href"))
	w.must(err)

	run("open the provider's page", chromedp.Navigate(link), chromedp.WaitReady("h1"))
	shot("2-ticket")
	page := text("body")
	ticket := ticketPattern.FindString(page)
	if ticket == "" || !strings.Contains(page, "Ada#1815") {
		t.Fatalf("the page shows no ticket for Ada:\n%s", page)
	}
	if _, err := w.cli("connect", ticket, ada.account.Name, "--yes"); err != nil {
		t.Fatal(err)
	}
	// The page reloads itself.
	testkit.Eventually(t, "the page to show success", func() bool {
		body, _ := chromedp.Run(ctx, chromedp.Text("body")) // may hit a reload
		return strings.Contains(body, ada.account.Name)
	})
	shot("3-connected")
	w.waitDrive(ada)

	run("open the drive", chromedp.Navigate(w.coreURL+"/#key=secret"), chromedp.WaitVisible("#drives button"), chromedp.Click("#drives button"),
		chromedp.WaitVisible("#files tr"))
	if files := text("#files"); !strings.Contains(files, "notes.txt") {
		t.Errorf("the console shows %q", files)
	}
	run("make a folder", chromedp.SendKeys("#folder", "results ü"), chromedp.Click("#folder-form button[type=submit]"))
	testkit.Eventually(t, "the folder in the console", func() bool {
		return strings.Contains(text("#files"), "results ü/")
	})
	shot("4-files")
	info, err := os.Stat(filepath.Join(ada.account.Home, "results ü"))
	if err != nil || info.Sys().(*syscall.Stat_t).Uid != uint32(ada.account.UID) {
		t.Errorf("the folder: %v, %v", info, err)
	}
}
