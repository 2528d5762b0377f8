package operator

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"

	"golang.org/x/sync/semaphore"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/scripts"
)

// maxTrials is how many calls of scripts by hand run or wait for their turn at once.
const maxTrials = 2

// trials are the calls of scripts by hand (contract 41 section 5.9, contract 42 section A.6). What a script answers has no
// effect here; the call itself is in the script log.
type trials struct {
	s     *Service
	hooks func() []*scripts.Hook
	slots *semaphore.Weighted
}

func (t *trials) register(srv *ipc.Server) {
	ipc.Handle(srv, ipcapi.ScriptHooks, t.list)
	ipc.Handle(srv, ipcapi.ScriptTry, t.try)
}

func (t *trials) list(context.Context, *ipc.Request, ipcapi.Empty) (l ipcapi.ScriptHookList, err error) {
	for _, h := range t.hooks() {
		l.Items = append(l.Items, scriptHook(h))
	}
	return l, nil
}

func scriptHook(h *scripts.Hook) ipcapi.ScriptHook {
	o, file := h.Options(), h.Inspect()
	info := ipcapi.ScriptHook{
		Key: o.Purpose.At, Hook: o.Name, Path: o.Path, Args: o.Args, TimeoutMs: o.Timeout.Milliseconds(), Protocol: o.Protocol,
		Concurrency: o.Concurrency, Environment: slices.AppendSeq([]string{}, maps.Keys(o.Environment)), Changes: h.Changes(),
		UID: ident.UID(os.Geteuid()), FileHash: file.Hash, Problem: file.Problem, //nolint:gosec // a uid
	}
	slices.Sort(info.Environment)
	if file.Problem == "" {
		info.FileOwner, info.FileMode = &file.Owner, fmt.Sprintf("%04o", file.Mode)
	}
	return info
}

func (t *trials) try(ctx context.Context, r *ipc.Request, req ipcapi.ScriptTrialRequest) (out ipcapi.ScriptTrial, err error) {
	defer func() {
		attrs := []slog.Attr{slog.String("hook", text(req.Key)), slog.Bool("dryRun", req.DryRun), slog.String("reason", text(req.Reason))}
		if out.Call != nil {
			attrs = append(attrs, slog.String("invocation", out.Call.Invocation), slog.String("script", out.Call.Result))
		}
		t.s.audit(r, "script.try", err, attrs...)
	}()
	hooks := t.hooks()
	i := slices.IndexFunc(hooks, func(h *scripts.Hook) bool { return h.Options().Purpose.At == req.Key })
	if i < 0 {
		return out, failure.New(failure.NotFound, "There is no script %q", text(req.Key))
	}
	if !t.slots.TryAcquire(1) {
		return out, failure.New(failure.Unavailable, "%d scripts are being called by hand already: try again when one has ended", maxTrials)
	}
	defer t.slots.Release(1)
	got, err := hooks[i].Try(ctx, req.Input, req.DryRun, fmt.Sprintf("by hand, uid %d", r.Peer.UID()))
	if err != nil {
		return out, failure.Wrap(err, failure.Invalid, "The script was not called: %v", err)
	}
	out = ipcapi.ScriptTrial{ScriptHook: scriptHook(hooks[i]), Status: ipcapi.ScriptOK, Objection: got.Objection, Call: &ipcapi.ScriptTrialRecord{
		Invocation: got.Invocation, StartedAt: got.StartedAt, DurationMs: got.Duration.Milliseconds(), Result: got.Result, Exit: got.Exit,
		Signal: got.Signal, Message: got.Message, Request: got.Request, Stdout: got.Stdout, Stderr: got.Stderr,
		StdoutBytes: got.StdoutBytes, StderrBytes: got.StderrBytes,
	}}
	if got.Result != string(ipcapi.ScriptOK) || got.Objection != "" {
		out.Status = ipcapi.ScriptFailed
	}
	return out, nil
}
