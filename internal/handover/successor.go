package handover

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// Successor describes the process that is to take over.
type Successor struct {
	Path string   // absolute; the file may have been replaced since this process started
	Args []string // without the program name
	// Listeners are given to the successor and stay open in this process.
	Listeners []net.Listener
	// Timeout bounds the time until the successor is ready; 0 means 30 s.
	Timeout time.Duration
	// Output receives its standard output and error; nil means those of this process.
	Output *os.File
}

// Running is a successor that is ready.
type Running struct {
	PID int
	// Exited receives the successor's end, if it ends while this process still lives.
	Exited <-chan error
}

// Start runs the successor and returns when it has said that it is ready. On an error it has been ended, and this
// process must go on serving.
func Start(ctx context.Context, s Successor) (*Running, error) {
	if s.Timeout == 0 {
		s.Timeout = 30 * time.Second
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for _, l := range s.Listeners {
		fl, ok := l.(interface{ File() (*os.File, error) })
		if !ok {
			return nil, fmt.Errorf("listener of type %T has no descriptor", l)
		}
		f, err := fl.File()
		if err != nil {
			return nil, fmt.Errorf("duplicate the listener %s: %w", l.Addr(), err)
		}
		files = append(files, f)
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	defer pr.Close()
	files = append(files, pw)

	cmd := exec.Command(s.Path, s.Args...)
	cmd.Env = append(successorEnv(os.Environ()), envCount+"="+strconv.Itoa(len(s.Listeners)))
	cmd.ExtraFiles = files
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if s.Output != nil {
		cmd.Stdout, cmd.Stderr = s.Output, s.Output
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the successor: %w", err)
	}
	pw.Close() // so that the end of the successor is the end of the pipe
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }() // ends with the successor; the next lines wait for it unless it is ready

	stop := context.AfterFunc(ctx, func() { pr.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	pr.SetReadDeadline(time.Now().Add(s.Timeout)) //nolint:errcheck // pipes have deadlines
	if ctx.Err() != nil {
		pr.SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // as above
	}
	line, err := bufio.NewReader(io.LimitReader(pr, 64)).ReadString('\n')
	if err == nil && line == readyLine {
		return &Running{PID: cmd.Process.Pid, Exited: exited}, nil
	}
	cmd.Process.Kill() //nolint:errcheck // it has ended already otherwise
	status := <-exited
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("wait for the successor: %w", context.Cause(ctx))
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, fmt.Errorf("successor was not ready after %s", s.Timeout)
	}
	return nil, fmt.Errorf("successor ended before it was ready: %v", status)
}

// successorEnv removes what belongs to this process alone.
func successorEnv(env []string) []string {
	var out []string
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case envCount, envSystemdPID, envSystemdFDs, envSystemdName:
			continue
		}
		out = append(out, kv)
	}
	return out
}
