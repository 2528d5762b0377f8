// Package static finds the account of a user in a file of the operators. It is the [assigned.Look] of identity type Static.
//
// The file is YAML with one line for each user:
//
//	NinaHolm#2207: nholm
//	"Ærø: Person#1": aero
//
// It is read again when it changes, by [File.Run] within some seconds and before each look. A file that is wrong changes
// nothing: the one before it stays in use, and [File.Problem] says why. A user who is no longer in the file is disconnected
// and keeps the account reserved; one who stands there with another account loses the old one, and connects anew.
//
// Who can write the file decides who has which account. So it and all directories above it must belong to root or to our
// account and be writable by nobody else, which is checked at each reading by the descriptor that is read
// (TestFileOfOthers).
package static

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/store"
	"ucloud-im/internal/trustpath"
	"ucloud-im/internal/usermap"
	"ucloud-im/internal/usermap/assigned"
)

// MethodName is what the mapping's Method says for accounts from the file.
const MethodName = "static"

const (
	// look is how often the file is looked at.
	look = 5 * time.Second
	// settle is how long a file must have been left alone before connections end because of it: editors write in pieces.
	settle = 2 * time.Second
)

// Options configure a [File]. All but Temporary are required.
type Options struct {
	Users *usermap.Service
	// Account gives the account with a login name or uid, if the policy allows it.
	Account func(ctx context.Context, nameOrUID string) (usermap.Account, error)
	Log     *slog.Logger
	// Temporary allows the file below sticky directories such as /tmp. For development only.
	Temporary bool
}

// File is a file with accounts. It is safe for concurrent use.
type File struct {
	o     Options
	log   *slog.Logger
	rules trustpath.Rules

	mu      sync.Mutex // guards the fields below, and has one reading at a time
	path    string
	stamp   stamp
	since   time.Time // when the file was first seen as it is
	table   table
	problem error
}

// New reads the file for the first time. A file that is wrong is an error.
func New(path string, o Options) (*File, error) {
	if o.Users == nil || o.Account == nil || o.Log == nil {
		return nil, errors.New("static: Users, Account and Log are required")
	}
	f := &File{
		o: o, log: o.Log.With("part", "accounts"), path: path,
		rules: trustpath.Rules{Account: os.Geteuid(), Temporary: o.Temporary},
	}
	if err := f.readLocked(); err != nil {
		return nil, err
	}
	return f, nil
}

// readLocked reads the file if it has changed. f.mu is held, or nobody else knows f.
func (f *File) readLocked() error {
	t, now, err := read(f.rules, f.path, f.stamp)
	if err != nil {
		if f.problem == nil || f.problem.Error() != err.Error() {
			f.log.Error("the file with accounts cannot be used, what it said before stays in use", "error", err)
		}
		f.problem = err
		return err
	}
	if f.problem = nil; t != nil {
		f.table, f.stamp, f.since = t, now, time.Now()
		f.log.Info("file with accounts read", "file", f.path, "users", len(t))
	}
	return nil
}

// Check reads a file as [File.Set] would, and keeps nothing of it.
func (f *File) Check(path string) error {
	_, _, err := read(f.rules, path, stamp{})
	return err
}

// Set takes another file over, after a reload of the configuration.
func (f *File) Set(ctx context.Context, path string) error {
	f.mu.Lock()
	f.path, f.stamp = path, stamp{}
	err := f.readLocked()
	f.mu.Unlock()
	return errors.Join(err, f.apply(ctx))
}

// Problem is why the file cannot be used as it is, and how many users it names.
func (f *File) Problem() (users int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.table), f.problem
}

// current is the table as the file says now, or as it said when it was last in order, and whether nobody has written to it
// for a moment.
func (f *File) current() (t table, settled bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.readLocked() // kept as the problem
	// A file may claim to be from the future, as after a copy from a machine whose clock is wrong. Then it counts how long
	// it has been as it is.
	return f.table, err == nil && (time.Since(time.Unix(f.stamp.mtim.Unix())) >= settle || time.Since(f.since) >= settle)
}

// Look implements [assigned.Look].
func (f *File) Look(ctx context.Context, q assigned.Query) (usermap.Account, error) {
	t, _ := f.current()
	local, ok := t[q.User]
	if !ok {
		return usermap.Account{}, failure.New(failure.Forbidden, "There is no account for you at this provider. Please ask its operators")
	}
	a, err := f.o.Account(ctx, local)
	switch failure.KindOf(err) {
	case failure.Forbidden, failure.NotFound, failure.Invalid:
		if err != nil {
			// The policy speaks to operators.
			return a, failure.Wrap(fmt.Errorf("account %s of the file: %w", local, err), failure.Forbidden,
				"Your account at this provider cannot be used. Please ask its operators")
		}
	}
	return a, err
}

// Run takes changes of the file over until ctx ends, beginning with those that were made while nobody looked.
func (f *File) Run(ctx context.Context) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		if err := f.apply(ctx); err != nil && ctx.Err() == nil {
			f.log.Error("a change of the file with accounts is not carried out yet", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// apply ends the mappings that the file does not have any more.
func (f *File) apply(ctx context.Context) error {
	t, settled := f.current()
	if !settled {
		return nil
	}
	mappings, err := f.o.Users.Mappings(ctx)
	if err != nil {
		return err
	}
	var problems []error
	for _, m := range mappings {
		if m.Method != MethodName || t[m.User] == m.LocalName {
			continue
		}
		problems = append(problems, f.end(ctx, m, t[m.User]))
	}
	return errors.Join(problems...)
}

// end ends a mapping; local is the account that the user has now, "" for none.
func (f *File) end(ctx context.Context, m store.Mapping, local string) error {
	var err error
	switch {
	case local != "":
		err = f.o.Users.Remove(ctx, m.User, &m.UID, false, "the operators gave another account", false)
	case m.State != store.MappingExpired:
		err = f.o.Users.Expire(ctx, m.User, &m.UID, "taken out of the file of the operators", false)
	default:
		return nil
	}
	switch failure.KindOf(err) {
	case failure.NotFound, failure.Conflict:
		return nil // somebody else was faster
	}
	return err
}
