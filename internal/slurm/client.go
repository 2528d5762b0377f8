package slurm

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The limits that apply where the options have none.
const (
	DefaultTimeout   = 30 * time.Second
	DefaultMaxOutput = 1 << 30
	maxStderr        = 16 << 10
	maxText          = 64 << 20 // of answers that are read at once
	maxCount         = 1 << 31
)

// Options of a client.
type Options struct {
	Binaries  string        // directory of the commands; empty: they are looked up in the search path
	Timeout   time.Duration // of each command
	MaxOutput int64         // bytes that a command may print
	Log       *slog.Logger
}

// Client runs the commands of Slurm. It is safe for concurrent use.
type Client struct {
	options Options
	cluster string // for sacctmgr; empty: all that slurmdbd serves
	// changes lets one change of accounts run at a time: slurmdbd mixes up associations that are changed together.
	changes chan struct{}
}

// New makes a client. Nothing is run yet.
func New(o Options) *Client {
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	if o.MaxOutput <= 0 {
		o.MaxOutput = DefaultMaxOutput
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Client{options: o, changes: make(chan struct{}, 1)}
}

// command is one run of a program.
type command struct {
	program string
	args    []string
	env     []string // in addition to the clean environment
	dir     string
	input   []byte
}

// Program is the path of one of Slurm's commands, for programs that start it themselves (srun in a terminal).
func (c *Client) Program(name string) string {
	if c.options.Binaries != "" {
		return filepath.Join(c.options.Binaries, name)
	}
	return name
}

// environment is what all commands get: the C locale, UTC, and times in seconds. SLURM_CONF is the one variable that is
// handed on, because the commands cannot work without it where it is set.
func (c *Client) environment(cmd command) []string {
	env := []string{
		"PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
		"LC_ALL=C", "TZ=UTC",
	}
	if cmd.program != "sbatch" { // jobs get all variables of sbatch that begin with SLURM_
		env = append(env, "SLURM_TIME_FORMAT=%s")
	}
	for _, name := range []string{"SLURM_CONF", "LD_LIBRARY_PATH"} {
		if v := os.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return append(env, cmd.env...)
}

// head keeps the beginning of what is written and forgets the rest.
type head struct {
	bytes.Buffer
	limit int
}

func (h *head) Write(p []byte) (int, error) {
	if room := h.limit - h.Len(); room > 0 {
		h.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// errTooMuch is the cause when a command prints more than it may.
var errTooMuch = errors.New("more output than allowed")

// stream runs a command and gives its output to read while it runs. It returns when the command and everything it
// started have ended. An error of read ends the command.
func (c *Client) stream(ctx context.Context, cmd command, read func(io.Reader) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	x := exec.CommandContext(ctx, c.Program(cmd.program), cmd.args...)
	x.Env = c.environment(cmd)
	x.Dir = cmd.dir
	if x.Dir == "" {
		x.Dir = "/"
	}
	x.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	x.Cancel = func() error { return killGroup(x.Process.Pid) }
	x.WaitDelay = 2 * time.Second
	if cmd.input != nil {
		f, err := inMemory(cmd.input)
		if err != nil {
			return &CommandError{Program: cmd.program, Exit: -1, Cause: err}
		}
		defer f.Close() //nolint:errcheck // nothing is lost
		x.Stdin = f
	}
	stderr := &head{limit: maxStderr}
	x.Stderr = stderr
	// A pipe of our own: that of exec would be closed by Wait, which has to run while the output is read, or a
	// grandchild that keeps the pipe open could hold up the reader for ever.
	out, in, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("%s: %w", cmd.program, err)
	}
	defer out.Close() //nolint:errcheck // only read from
	x.Stdout = in
	if err := x.Start(); err != nil {
		_ = in.Close()
		return &CommandError{Program: cmd.program, Exit: -1, Cause: err}
	}
	_ = in.Close()
	waited := make(chan error, 1)
	go func() {
		err := x.Wait()
		_ = killGroup(x.Process.Pid) // what it may have left behind
		// Output that is in the pipe is still read; a writer that got away is not waited for.
		_ = out.SetReadDeadline(time.Now().Add(time.Second))
		waited <- err
	}()
	limited := &limitedReader{r: out, left: c.options.MaxOutput}
	readErr := read(limited)
	if readErr != nil && !limited.ended {
		cancel() // nobody reads what it still prints
	}
	runErr := <-waited
	switch {
	case readErr != nil && (runErr == nil || !limited.ended):
		return fmt.Errorf("%s: %w", cmd.program, readErr)
	case runErr != nil: // explains what is wrong with its output, too
		e := &CommandError{Program: cmd.program, Exit: -1, Stderr: strings.TrimSpace(stderr.String()), Cause: runErr, TimedOut: errors.Is(ctx.Err(), context.DeadlineExceeded)}
		if exit, ok := errors.AsType[*exec.ExitError](runErr); ok && exit.Exited() {
			e.Exit = exit.ExitCode()
		}
		return e
	}
	return nil
}

// limitedReader reads at most so much, and tells whether it has come to the end.
type limitedReader struct {
	r     io.Reader
	left  int64
	ended bool
}

func (l *limitedReader) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, errTooMuch
	}
	n, err := l.r.Read(p[:min(int64(len(p)), l.left)])
	l.left -= int64(n)
	if errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
		l.ended = true
	}
	return n, err
}

// inMemory is a file that holds b and has no name. A pipe would not do for a program that outlives this process: it could
// read half of a script, and take it for the whole.
func inMemory(b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("ucloud-input", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "input")
	if _, err = f.Write(b); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("fill a file in memory: %w", err)
	}
	return f, nil
}

func killGroup(pid int) error {
	err := syscall.Kill(-pid, syscall.SIGKILL)
	if errors.Is(err, syscall.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// output runs a command whose answer is small.
func (c *Client) output(ctx context.Context, cmd command) (string, error) {
	var text []byte
	err := c.stream(ctx, cmd, func(r io.Reader) error {
		var err error
		text, err = io.ReadAll(io.LimitReader(r, maxText))
		if err == nil && len(text) == maxText {
			err = errTooMuch
		}
		return err
	})
	return string(text), err
}

// separator is a word that nobody can have put into a job: it is new for every call.
func separator() string { return "|" + rand.Text()[:9] + ":" }

// exclusive runs do while no other change of accounts runs.
func (c *Client) exclusive(ctx context.Context, do func() error) error {
	select {
	case c.changes <- struct{}{}:
		defer func() { <-c.changes }()
		return do()
	case <-ctx.Done():
		return ctx.Err()
	}
}
