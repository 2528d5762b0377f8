package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"ucloud-im/internal/config"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
)

// socketPath finds the server's socket: as asked for, as configured, or the usual place. An ordinary user cannot read
// the configuration and needs not (contract 41 section 2).
func (a *app) socketPath() (string, error) {
	if a.socket != "" {
		return a.socket, nil
	}
	c, problems := config.Load(a.dir(), config.Options{Role: config.RoleCLI, Getenv: a.getenv})
	if c != nil {
		return c.IPCSocket(), nil
	}
	if a.dirGiven() {
		return "", problems
	}
	if a.verbose {
		a.note("the configuration in %s is not used: %v", a.dir(), problems.Err())
	}
	return DefaultSocket, nil
}

// connect dials the server and makes sure that both sides speak the same version of the protocol.
func (a *app) connect(ctx context.Context) (*ipc.Client, error) {
	path, err := a.socketPath()
	if err != nil {
		return nil, err
	}
	c, err := ipc.Dial(ctx, path, ipc.DialOptions{Timeout: a.timeout, ServerUID: a.serverUID})
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		e := exitf(ExitUnreachable, "UNREACHABLE", "%s", failure.Why(err))
		return nil, withHint(e, "is the service running? socket: %s", path)
	}
	v, err := ipc.Invoke(ctx, c, ipcapi.ServiceVersion, ipcapi.Empty{})
	if err == nil && v.Protocol != ipcapi.Protocol {
		err = exitf(ExitUnreachable, "INCOMPATIBLE", "this program is version %s (protocol %d), the server is version %s (protocol %d)",
			a.hooks.Version.Version, ipcapi.Protocol, v.Version, v.Protocol)
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// call makes one call over a connection of its own.
func call[Req, Resp any](ctx context.Context, a *app, c ipc.Call[Req, Resp], req Req) (Resp, error) {
	ctx, cancel := a.deadline(ctx)
	defer cancel()
	var zero Resp
	client, err := a.connect(ctx)
	if err != nil {
		return zero, err
	}
	defer client.Close()
	return ipc.Invoke(ctx, client, c, req)
}

// list reads a whole list.
func list[Req, Page, Item any](ctx context.Context, a *app, s ipc.Stream[Req, Page], req Req, items func(Page) []Item) ([]Item, error) {
	ctx, cancel := a.deadline(ctx)
	defer cancel()
	client, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	r, err := ipc.Open(ctx, client, s, req)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var out []Item
	for {
		page, _, err := r.Next(ctx)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		out = append(out, items(page)...)
	}
}

// confirm asks before a change. Without a terminal there is nobody to ask, and --yes is needed.
func (a *app) confirm(ctx context.Context, question string) error {
	if a.yes || a.dryRun {
		return nil
	}
	if !isTerminal(a.stdin) {
		return exitf(ExitUsage, "CONFIRMATION", "this changes something and there is no terminal to ask on: add --yes")
	}
	fmt.Fprintf(a.stderr, "%s [y/N] ", clean(question))
	line, err := a.readLine(ctx)
	if err != nil {
		return err
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	return exitf(ExitFailed, "CANCELLED", "cancelled, nothing was changed")
}

// readLine reads an answer, or returns when ctx ends: Ctrl-C must not wait for a line. A read from a terminal cannot be
// interrupted, so its goroutine lives until the answer comes or the process ends, which is next.
func (a *app) readLine(ctx context.Context) (string, error) {
	type answer struct {
		line string
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		line, err := bufio.NewReader(io.LimitReader(a.stdin, 1000)).ReadString('\n')
		if errors.Is(err, io.EOF) {
			err = nil // no answer means no
		}
		got <- answer{line, err}
	}()
	select {
	case ans := <-got:
		return ans.line, ans.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}
