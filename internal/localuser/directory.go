package localuser

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
)

// Options configure a [Directory]. The zero value is usable.
type Options struct {
	Getent      string        // absolute path; "" means /usr/bin/getent
	ID          string        // absolute path of id(1); "" means /usr/bin/id
	Timeout     time.Duration // for one lookup; 0 means 5 s
	TTL         time.Duration // how long an answer is kept; 0 means 30 s
	NegativeTTL time.Duration // the same for "no such record"; 0 means 5 s
	MaxEntries  int           // bound of the cache; 0 means 20,000
	Now         func() time.Time
}

// outputLimit bounds what one NSS tool may print. A group of 60,000 members with long names stays below it.
const outputLimit = 1 << 20

// Directory looks accounts and groups up. It is safe for concurrent use. Several callers who ask for the same record
// share one process, and answers are kept for a while.
type Directory struct {
	o      Options
	run    tool
	stamp  func() Stamp
	flight singleflight.Group
	uids   batch

	shadowReadable func() bool

	mu      sync.Mutex // guards the fields below
	entries map[string]entry
	seen    Stamp
	epoch   uint64 // grows with every invalidation, so that an answer from before it is not stored
}

type entry struct {
	value   any
	err     error // only errNoRecord is stored
	expires time.Time
}

// NewDirectory makes a directory. It starts nothing.
func NewDirectory(o Options) *Directory {
	if o.Getent == "" {
		o.Getent = "/usr/bin/getent"
	}
	if o.ID == "" {
		o.ID = "/usr/bin/id"
	}
	if o.Timeout == 0 {
		o.Timeout = 5 * time.Second
	}
	if o.TTL == 0 {
		o.TTL = 30 * time.Second
	}
	if o.NegativeTTL == 0 {
		o.NegativeTTL = 5 * time.Second
	}
	if o.MaxEntries == 0 {
		o.MaxEntries = 20_000
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	d := &Directory{
		o: o, run: runTool(o.Timeout, outputLimit), stamp: accountFiles, entries: make(map[string]entry),
		shadowReadable: func() bool { return readable("/etc/shadow") },
	}
	d.uids.getent = func(ctx context.Context, uids []string) ([]byte, error) {
		out, exit, err := d.run(ctx, d.o.Getent, append([]string{"passwd", "--"}, uids...)...)
		switch {
		case exit == exitNotFound:
			err = errNoRecord
		case err != nil:
			return nil, err // whatever it has printed
		}
		return out, err
	}
	return d
}

// ByName gives the account with exactly this login name. Errors are [failure.NotFound] if there is none, and
// [failure.Invalid] for a text that cannot be a login name, numbers included.
func (d *Directory) ByName(ctx context.Context, name string) (Account, error) {
	if !ValidName(name) {
		return Account{}, failure.New(failure.Invalid, "%q cannot be the name of a local account", name)
	}
	a, err := lookup(ctx, d, "n:"+name, func(ctx context.Context) (Account, error) {
		out, err := d.getent(ctx, "passwd", name)
		if err != nil {
			return Account{}, err
		}
		a, err := parsePasswd(out)
		// SSSD may answer for another spelling (ALICE, alice@site); such a record has another name.
		if err == nil && a.Name != name {
			err = errNoRecord
		}
		return a, err
	})
	return a, explain(err, "There is no local account %q", name)
}

// ByUID gives the account with this uid, [failure.NotFound] if there is none.
func (d *Directory) ByUID(ctx context.Context, uid ident.UID) (Account, error) {
	a, err := lookup(ctx, d, "u:"+uid.String(), func(ctx context.Context) (Account, error) {
		return d.uids.lookup(ctx, uid)
	})
	return a, explain(err, "There is no local account with uid %s", uid)
}

// Group gives the group with exactly this name, [failure.NotFound] if there is none.
func (d *Directory) Group(ctx context.Context, name string) (Group, error) {
	if !ValidName(name) {
		return Group{}, failure.New(failure.Invalid, "%q cannot be the name of a local group", name)
	}
	g, err := lookup(ctx, d, "g:"+name, func(ctx context.Context) (Group, error) {
		out, err := d.getent(ctx, "group", name)
		if err != nil {
			return Group{}, err
		}
		g, err := parseGroup(out)
		if err == nil && g.Name != name {
			err = errNoRecord
		}
		return g, err
	})
	return g, explain(err, "There is no local group %q", name)
}

// Groups gives the ids of all groups that a new login of the account would have, the primary one included, sorted.
func (d *Directory) Groups(ctx context.Context, name string) ([]ident.GID, error) {
	if !ValidName(name) {
		return nil, failure.New(failure.Invalid, "%q cannot be the name of a local account", name)
	}
	gids, err := lookup(ctx, d, "i:"+name, func(ctx context.Context) ([]ident.GID, error) {
		// id(1) looks for a name before a number, and numbers are refused above: the answer is about this name.
		out, exit, err := d.run(ctx, d.o.ID, "-G", "--", name)
		if exit == 1 {
			return nil, errNoRecord
		}
		if err != nil {
			return nil, err
		}
		gids, err := parseGroups(out)
		slices.Sort(gids)
		return slices.Compact(gids), err
	})
	return gids, explain(err, "There is no local account %q", name)
}

// Shadow gives the record of the shadow database. ok is false if this process may not read the database, or if it
// holds no such record, as is normal for accounts in a directory.
func (d *Directory) Shadow(ctx context.Context, name string) (s Shadow, ok bool, err error) {
	if !ValidName(name) || !d.shadowReadable() {
		return Shadow{}, false, nil
	}
	s, err = lookup(ctx, d, "s:"+name, func(ctx context.Context) (Shadow, error) {
		out, err := d.getent(ctx, "shadow", name)
		if err != nil {
			return Shadow{}, err
		}
		s, err := parseShadow(out)
		if err == nil && s.Name != name {
			err = errNoRecord
		}
		return s, err
	})
	if errors.Is(err, errNoRecord) {
		return Shadow{}, false, nil
	}
	return s, err == nil, explain(err, "")
}

// ShadowReadable tells whether [Directory.Shadow] can see anything.
func (d *Directory) ShadowReadable() bool { return d.shadowReadable() }

// Stamp is the present state of the local account files. As long as it stays the same, nothing that they say has
// changed. It can be taken without the right to read them.
func (d *Directory) Stamp() Stamp { return d.stamp() }

// Invalidate drops everything that is cached. Call it when accounts are known to have changed; changes of the local
// files are noticed without it.
func (d *Directory) Invalidate() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.clearLocked()
}

func (d *Directory) clearLocked() {
	clear(d.entries)
	d.epoch++
}

func (d *Directory) getent(ctx context.Context, database, key string) ([]byte, error) {
	out, exit, err := d.run(ctx, d.o.Getent, database, "--", key)
	if exit == exitNotFound {
		return nil, errNoRecord
	}
	return out, err
}

// lookup answers from the cache or by fetch. It is a function because methods have no type parameters.
func lookup[T any](ctx context.Context, d *Directory, key string, fetch func(context.Context) (T, error)) (T, error) {
	var zero T
	e, epoch, ok := d.cached(key)
	v, err := e.value, e.err
	if !ok {
		// The lookup outlives a caller who gives up, because others may be waiting for the same answer. The epoch is
		// part of the key, so that nobody joins a lookup that began before an invalidation.
		ch := d.flight.DoChan(strconv.FormatUint(epoch, 10)+" "+key, func() (any, error) {
			v, err := fetch(context.WithoutCancel(ctx))
			d.store(key, epoch, v, err)
			return v, err
		})
		select {
		case <-ctx.Done():
			return zero, ctx.Err()
		case r := <-ch:
			v, err = r.Val, r.Err
		}
	}
	if err != nil {
		return zero, err
	}
	return v.(T), nil
}

// cached gives what is stored and still good, and the epoch in which a new lookup would be made.
func (d *Directory) cached(key string) (e entry, epoch uint64, ok bool) {
	now, files := d.o.Now(), d.stamp()
	d.mu.Lock()
	defer d.mu.Unlock()
	if files != d.seen {
		d.clearLocked()
		d.seen = files
	}
	e, ok = d.entries[key]
	if !ok || !now.Before(e.expires) {
		return entry{}, d.epoch, false
	}
	return e, d.epoch, true
}

func (d *Directory) store(key string, epoch uint64, v any, err error) {
	ttl := d.o.TTL
	switch {
	case errors.Is(err, errNoRecord):
		ttl = d.o.NegativeTTL
	case err != nil:
		return // a timeout or a broken directory is asked again
	}
	now := d.o.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.epoch != epoch {
		return
	}
	if len(d.entries) >= d.o.MaxEntries {
		for k, e := range d.entries {
			if !now.Before(e.expires) {
				delete(d.entries, k)
			}
		}
		if len(d.entries) >= d.o.MaxEntries {
			clear(d.entries)
		}
	}
	d.entries[key] = entry{value: v, err: err, expires: now.Add(ttl)}
}

// explain turns a lookup error into one with a kind. What an operator must see (a hanging directory) stays in the
// cause.
func explain(err error, format string, args ...any) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errNoRecord):
		return failure.Wrap(err, failure.NotFound, format, args...)
	case errors.Is(err, context.Canceled):
		return err
	}
	return failure.Wrap(fmt.Errorf("look up account: %w", err), failure.Unavailable,
		"The account database of this machine does not answer")
}
