package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/ipcapi"
)

// terminal is a pseudo-terminal: tty is the end of the program, the file that is returned the end of the person.
func terminal(t *testing.T) (person, tty *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tty.Close() })
	return person, tty
}

// TestTheTerminalIsAsked answers the question of connect in all ways. The UCloud user must be named before the question.
func TestTheTerminalIsAsked(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		answer string
		code   int
	}{
		{"y\n", ExitOK},
		{"YES\n", ExitOK},
		{"n\n", ExitFailed},
		{"\n", ExitFailed},
		{"yesterday\n", ExitFailed},
		{"\x04", ExitFailed}, // end of input
	} {
		t.Run(fmt.Sprintf("%q", tc.answer), func(t *testing.T) {
			t.Parallel()
			w := testWorld(t)
			tk, err := w.begin("Alice#1234")
			if err != nil {
				t.Fatal(err)
			}
			person, tty := terminal(t)
			if _, err := io.WriteString(person, tc.answer); err != nil {
				t.Fatal(err)
			}
			code, out, errs := w.run(t, tty, "connect", tk, "kay")
			if code != tc.code {
				t.Fatalf("exit code %d\n%s%s", code, out, errs)
			}
			if !strings.Contains(errs, "Alice#1234") || !strings.Contains(errs, "[y/N]") {
				t.Errorf("the question was %q", errs)
			}
			if _, ok := w.users.User(uidKay); ok != (tc.code == ExitOK) {
				t.Errorf("connected: %v", ok)
			}
		})
	}
}

func TestInterruptedQuestion(t *testing.T) {
	t.Parallel()
	w := testWorld(t)
	tk, err := w.begin("Alice#1234")
	if err != nil {
		t.Fatal(err)
	}
	_, tty := terminal(t)
	ctx, cancel := context.WithCancel(t.Context())
	asked := &trigger{text: "[y/N]", fire: cancel}
	code := Run(ctx, []string{"--socket", w.socket, "connect", tk, "kay"}, func(string) string { return "" }, tty, io.Discard, asked, Hooks{})
	if code != ExitInterrupted {
		t.Fatalf("exit code %d", code)
	}
	if _, ok := w.users.User(uidKay); ok {
		t.Fatal("connected without an answer")
	}
}

// trigger calls fire when a text has been written.
type trigger struct {
	text string
	fire func()
	mu   sync.Mutex
	seen bytes.Buffer
}

func (tr *trigger) Write(p []byte) (int, error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.seen.Write(p)
	if strings.Contains(tr.seen.String(), tr.text) {
		tr.fire()
	}
	return len(p), nil
}

// TestKeysAreShownBeforeTheyCount: the answer at a terminal stands for the comparison of a signing key only if the key was
// shown (decision 14).
//
//attack:actor compromised core
//attack:does Sends a signing key of its own for a user who runs connect with --quiet, and so never sees which key it is.
//attack:control A command that shows no key, or asks nothing, takes none without --key.
//attack:remove internal/cli/connect.go: case a.yes || a.quiet || !isTerminal(a.stdin): => case a.yes || !isTerminal(a.stdin):
func TestKeysAreShownBeforeTheyCount(t *testing.T) {
	t.Parallel()
	info := ipcapi.TicketInfo{User: "Alice#1234", KeyFingerprint: "SHA256:x"}
	_, tty := terminal(t)
	for name, tc := range map[string]struct {
		app  app
		want string
	}{
		"asked": {app{stdin: tty}, "SHA256:x"},
		"quiet": {app{stdin: tty, quiet: true}, ""},
		"yes":   {app{stdin: tty, yes: true}, ""},
		"pipe":  {app{stdin: strings.NewReader("y\n")}, ""},
	} {
		got, err := (&keyFlags{}).confirmed(&tc.app, info, true)
		if got != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
