package terminal

import (
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkEcho is a key stroke from a browser to a program in the terminal and back: two WebSocket messages, the socket of
// the holder, and the pseudo-terminal. BenchmarkEchoPlain is the pseudo-terminal alone.
func BenchmarkEcho(b *testing.B) {
	w := newWorld(b, nil)
	s := w.open(w.openJob())
	s.input("stty raw -echo; echo rea'dy'; exec cat\r")
	s.until("ready")
	for b.Loop() {
		s.out.Reset()
		s.input("x")
		s.when("the echo", func() bool { return strings.Contains(s.out.String(), "x") })
	}
}

func BenchmarkEchoPlain(b *testing.B) {
	cmd := exec.Command("cat")
	tty, err := startOnTerminal(cmd, size{80, 24})
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 100)
	for b.Loop() {
		if _, err := tty.WriteString("x"); err != nil {
			b.Fatal(err)
		}
		if _, err := tty.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
	cmd.Process.Signal(unix.SIGKILL) //nolint:errcheck // it ends in any case
	tty.Close()                      //nolint:errcheck // nothing was written
	cmd.Wait()                       //nolint:errcheck // it was killed
}
