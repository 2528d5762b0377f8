// Package scriptlog keeps the log of extension scripts in the server's database, and answers the IPC calls about it
// (contract 41 section 5.9, contract 42 section A.4).
//
// Viewers may read the log; nobody but this process adds to it. Scripts that instances run for their users will need a
// call with a rate of its own for that: a user could fill the disk with it.
package scriptlog

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/store"
)

const (
	// DefaultRetention is retention.scriptLog.
	DefaultRetention = 30 * 24 * time.Hour
	// keepAtMost bounds the log, whatever the retention: measuring 10,000 drives one by one would fill any disk.
	keepAtMost = 1_000_000

	purgeEvery = time.Hour
	purgeBatch = 2000 // in one transaction, so that other writers get their turn

	pageSize = 100
	// maxListed bounds one list.
	maxListed = 100_000
	// maxSearched is how much of each text goes with a list.
	maxSearched = 4 << 10
)

// Log is the log of scripts.
type Log struct {
	store *store.Store
	keep  func() time.Duration
	log   *slog.Logger
}

var _ scripts.Recorder = (*Log)(nil)

// New makes a log. retention says how long calls are kept (retention.scriptLog); nil means [DefaultRetention].
func New(s *store.Store, retention func() time.Duration, log *slog.Logger) *Log {
	if retention == nil {
		retention = func() time.Duration { return DefaultRetention }
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Log{store: s, keep: retention, log: log.With("part", "scripts")}
}

// RecordScript implements [scripts.Recorder].
func (l *Log) RecordScript(ctx context.Context, e scripts.Entry) {
	err := l.insert(ctx, store.ScriptCall{
		Invocation: e.Invocation, Hook: e.Hook, Path: e.Path, FileHash: e.FileHash, Key: e.Key, Owner: e.Owner, UID: e.UID,
		Attempt: e.Attempt, StartedAt: e.StartedAt, Duration: e.Duration, Result: e.Result, Exit: e.Exit, Signal: e.Signal,
		Message: e.Message, Request: e.Request, Stdout: e.Stdout, Stderr: e.Stderr, StdoutBytes: e.StdoutBytes, StderrBytes: e.StderrBytes,
	})
	if err != nil {
		l.log.Error("a call of a script is not written down", "hook", e.Hook, "invocation", e.Invocation, "result", e.Result, "error", err)
	}
}

func (l *Log) insert(ctx context.Context, c store.ScriptCall) error {
	return l.store.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.InsertScriptCall(c)
		return err
	})
}

// Run removes old calls from time to time until ctx ends.
func (l *Log) Run(ctx context.Context) error {
	tick := time.NewTicker(purgeEvery)
	defer tick.Stop()
	for {
		if err := l.purge(ctx); err != nil && ctx.Err() == nil {
			l.log.Error("old calls of scripts are not removed", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (l *Log) purge(ctx context.Context) error {
	for {
		var n int
		err := l.store.Update(ctx, func(tx *store.Tx) (err error) {
			n, err = tx.PurgeScriptCalls(time.Now().Add(-l.keep()), keepAtMost, purgeBatch)
			return err
		})
		if err != nil || n < purgeBatch {
			return err
		}
	}
}

// Register adds the calls to the server.
func (l *Log) Register(s *ipc.Server) {
	ipc.HandleStream(s, ipcapi.ScriptList, l.list)
	ipc.Handle(s, ipcapi.ScriptShow, l.show)
}

func (l *Log) list(ctx context.Context, _ *ipc.Request, q ipcapi.ScriptListRequest, send func(ipcapi.ScriptPage, ...*os.File) error) error {
	f := store.ScriptFilter{Hook: q.Hook, Failures: q.Failures}
	if q.Since != nil {
		f.Since = *q.Since
	}
	if q.Until != nil {
		f.Until = *q.Until
	}
	for sent := 0; sent < maxListed; {
		// Each page is a transaction of its own: a slow reader must not hold one open.
		var page []store.ScriptCall
		err := l.store.View(ctx, func(tx *store.Tx) (err error) {
			if page, err = tx.ScriptCalls(f, pageSize); err != nil || !q.Texts {
				return err
			}
			for i := range page {
				if page[i], err = tx.ScriptCall(page[i].ID); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil || len(page) == 0 {
			return err
		}
		var out ipcapi.ScriptPage
		for _, c := range page {
			out.Items = append(out.Items, info(c, maxSearched))
		}
		if err := send(out); err != nil {
			return err
		}
		sent += len(page)
		f.Before = page[len(page)-1].ID
	}
	return nil
}

func info(c store.ScriptCall, text int) ipcapi.ScriptInfo {
	return ipcapi.ScriptInfo{
		ID: c.ID, Hook: c.Hook, Path: c.Path, Key: c.Key, User: c.Owner.User, Project: c.Owner.Project, UID: c.UID, Attempt: c.Attempt,
		StartedAt: c.StartedAt, DurationMs: c.Duration.Milliseconds(), Result: c.Result, Exit: c.Exit, Signal: c.Signal, Message: c.Message,
		Request: c.Request[:min(text, len(c.Request))], Stdout: c.Stdout[:min(text, len(c.Stdout))], Stderr: c.Stderr[:min(text, len(c.Stderr))],
	}
}

func (l *Log) show(ctx context.Context, _ *ipc.Request, q ipcapi.ScriptRef) (r ipcapi.ScriptRecord, err error) {
	var c store.ScriptCall
	err = l.store.View(ctx, func(tx *store.Tx) error { c, err = tx.ScriptCall(q.ID); return err })
	if errors.Is(err, store.ErrNotFound) {
		return r, failure.New(failure.NotFound, "There is no call of a script with the number %d", q.ID)
	}
	return ipcapi.ScriptRecord{
		ScriptInfo: info(c, len(c.Request)+len(c.Stdout)+len(c.Stderr)), Invocation: c.Invocation, FileHash: c.FileHash,
		StdoutBytes: c.StdoutBytes, StderrBytes: c.StderrBytes,
	}, err
}
