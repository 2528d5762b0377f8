package usermap

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/observability"
	"ucloud-im/internal/store"
)

// Account is a local account that the policy allows.
type Account struct {
	Name         string
	UID          ident.UID
	GID          ident.GID
	Home         string
	Shell        string
	PrimaryGroup string
}

// Policy decides which local accounts may be used: uid in range, exists, in the allowed group, not locked (contract 03
// section 7.3).
type Policy interface {
	// Check looks the account up by login name, or by uid if the text is a number, and refuses it with an error of
	// kind Forbidden or NotFound that an operator and the user may read.
	Check(ctx context.Context, nameOrUID string) (Account, error)
}

// Method is a way to prove that a UCloud user and a local account belong to the same person.
type Method interface {
	// Begin starts a proof for the user and gives the absolute URL to which the browser goes next. It answers within
	// Core's limit of 5 s (contract 03 section 2.3).
	Begin(ctx context.Context, a Attempt) (redirectURL string, err error)
}

// Attempt is one press of "Connect" at UCloud.
type Attempt struct {
	User ident.UCloudUser // whom Core has named
	// Key is the id of the signing key that the user's browser has uploaded on the way, "" for none. It must not be used
	// for anything until the proof has succeeded, and then becomes usable in the transaction of [Service.Link].
	Key string
	// Secret, if there is one, is the same when a browser makes the same attempt again, as when a page is loaded anew: it is
	// then to find the proof that it has begun, and not another one. Who knows it may begin the proof.
	Secret observability.Secret
}

// Core is what this package asks of UCloud/Core. Errors are those of package coreapi.
type Core interface {
	ClearConnection(ctx context.Context, user ident.UCloudUser) error
	ApproveConnection(ctx context.Context, user ident.UCloudUser) error
}

// Options configure a [Service]. Store, Core, Policy and Log are required.
type Options struct {
	Store  *store.Store
	Core   Core
	Policy Policy
	Log    *slog.Logger

	// OnActive is called after a user's mapping has become active, OnInactive after it ceased to be. Both are called
	// without locks held, possibly more than once for one change, and must return quickly: Core waits. Nil means that
	// nobody wants to know.
	OnActive   func(ctx context.Context, user ident.UCloudUser)
	OnInactive func(ctx context.Context, user ident.UCloudUser, uid ident.UID, reason string)

	// Ended runs inside each transaction that ends a mapping; was is the mapping as it was before. Whatever must not outlive
	// a connection ends here, because a crash may follow the commit at once; its error undoes the ending. An expired mapping
	// that is removed later ends twice. Nil: nothing to do.
	Ended func(tx *store.Tx, was store.Mapping, cause Cause) error

	// ActivateKey makes the signing key that came with a proof usable, in the transaction that stores the mapping. proof
	// is Link.Method. Nil: there are no signing keys.
	ActivateKey func(tx *store.Tx, user ident.UCloudUser, key string, a Account, proof string) error

	Now func() time.Time // nil: time.Now
}

// Cause is why a mapping ended, as scripts are told (contract 42 section B.3).
type Cause string

// The causes.
const (
	CauseUser     Cause = "user"     // at the provider, by ucloud me disconnect
	CauseExpired  Cause = "expired"  // its time is over
	CauseOperator Cause = "operator" // by a command or a file of theirs
	CauseCore     Cause = "core"     // UCloud says so, usually because the user pressed "Disconnect" there
)

// Service keeps the mappings. It is safe for concurrent use.
type Service struct {
	o   Options
	log *slog.Logger

	// table is the set of active mappings as last read; see reload.
	table atomic.Pointer[table]
	stale atomic.Bool // the last reload failed

	// mu serialises reading the table from the store, so that an older state never replaces a newer one, and guards
	// changed, which is closed and replaced after every change.
	mu      sync.Mutex
	changed chan struct{}
}

// Binding is an active mapping.
type Binding struct {
	User      ident.UCloudUser
	UID       ident.UID
	LocalName string
	ExpiresAt time.Time // zero: never
}

// table holds the active mappings in both directions. It is immutable.
type table struct {
	byUID  map[ident.UID]Binding
	byUser map[ident.UCloudUser]Binding
}

// New makes a service and reads the active mappings. Call [Service.Repair] before serving and [Service.Run] for
// expiry.
func New(ctx context.Context, o Options) (*Service, error) {
	if o.Store == nil || o.Core == nil || o.Policy == nil || o.Log == nil {
		return nil, errors.New("usermap: Store, Core, Policy and Log are required")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.OnActive == nil {
		o.OnActive = func(context.Context, ident.UCloudUser) {}
	}
	if o.Ended == nil {
		o.Ended = func(*store.Tx, store.Mapping, Cause) error { return nil }
	}
	if o.OnInactive == nil {
		o.OnInactive = func(context.Context, ident.UCloudUser, ident.UID, string) {}
	}
	if o.ActivateKey == nil {
		o.ActivateKey = func(*store.Tx, ident.UCloudUser, string, Account, string) error {
			return errors.New("usermap: a proof came with a signing key, and there are none")
		}
	}
	s := &Service{o: o, log: o.Log.With("part", "usermap"), changed: make(chan struct{})}
	s.table.Store(&table{})
	if err := s.reload(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// User is the UCloud user who owns the uid by an active mapping.
func (s *Service) User(uid ident.UID) (ident.UCloudUser, bool) {
	b, ok := s.table.Load().byUID[uid]
	if !ok || s.over(b) {
		return "", false
	}
	return b.User, true
}

// Account is the active mapping of the user.
func (s *Service) Account(user ident.UCloudUser) (Binding, bool) {
	b, ok := s.table.Load().byUser[user]
	if !ok || s.over(b) {
		return Binding{}, false
	}
	return b, true
}

// Bindings goes through the active mappings, in no order.
func (s *Service) Bindings() iter.Seq2[ident.UCloudUser, Binding] {
	return func(yield func(ident.UCloudUser, Binding) bool) {
		for user, b := range s.table.Load().byUser {
			if !s.over(b) && !yield(user, b) {
				return
			}
		}
	}
}

// Active counts the active mappings.
func (s *Service) Active() int { return len(s.table.Load().byUser) }

// over tells whether the binding's time has run out although nobody has written that down yet.
func (s *Service) over(b Binding) bool {
	return !b.ExpiresAt.IsZero() && !s.o.Now().Before(b.ExpiresAt)
}

// ErrNotConnected is in the chain of the error of [Service.Resolve] for a user without an active mapping.
var ErrNotConnected = errors.New("no active mapping")

// Resolve gives the account of a user for a launch: the mapping must be active, the policy must agree now, and the
// login name must still belong to the uid, as both may have been given to somebody else since (contract 03 section
// 7.3). The error is a sentence for the user.
func (s *Service) Resolve(ctx context.Context, user ident.UCloudUser) (Account, error) {
	b, ok := s.Account(user)
	if !ok {
		return Account{}, failure.Wrap(ErrNotConnected, failure.NoInstance,
			"You are not connected to this provider. Connect in UCloud and try again")
	}
	a, err := s.o.Policy.Check(ctx, b.UID.String())
	if err != nil {
		return Account{}, err
	}
	if a.UID != b.UID || a.Name != b.LocalName {
		return Account{}, failure.Wrap(
			fmt.Errorf("uid %d was %q when it was connected and is %q now", b.UID, b.LocalName, a.Name),
			failure.Forbidden, "Your local account has changed. Please ask the operators of this provider")
	}
	return a, nil
}

// Mapping is the stored mapping of a user in any state but removed.
func (s *Service) Mapping(ctx context.Context, user ident.UCloudUser) (m store.Mapping, err error) {
	err = s.o.Store.View(ctx, func(tx *store.Tx) error {
		m, err = tx.MappingByUser(user)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return m, failure.Wrap(err, failure.NotFound, "There is no mapping for %q", user)
	}
	return m, err
}

// MappingOf is the stored mapping of a uid in any state but removed.
func (s *Service) MappingOf(ctx context.Context, uid ident.UID) (m store.Mapping, err error) {
	err = s.o.Store.View(ctx, func(tx *store.Tx) error {
		m, err = tx.MappingByUID(uid)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return m, failure.Wrap(err, failure.NotFound, "There is no mapping for uid %d", uid)
	}
	return m, err
}

// Mappings are all stored mappings but removed ones, oldest first.
func (s *Service) Mappings(ctx context.Context) (ms []store.Mapping, err error) {
	err = s.o.Store.View(ctx, func(tx *store.Tx) error {
		ms, err = tx.Mappings()
		return err
	})
	return ms, err
}

// Check asks the policy about an account, as Link does.
func (s *Service) Check(ctx context.Context, nameOrUID string) (Account, error) {
	return s.o.Policy.Check(ctx, nameOrUID)
}

// WaitActive returns nil once the user's mapping is active, or the context's error. It is how a command can say
// "connected" instead of "queued" (contract 05 section D, decision on D5).
func (s *Service) WaitActive(ctx context.Context, user ident.UCloudUser) error {
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if _, ok := s.Account(user); ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Seen notes that the user has been active just now. It is cheap enough for every launch; an error is logged only,
// because nothing depends on it.
func (s *Service) Seen(ctx context.Context, user ident.UCloudUser) {
	err := s.o.Store.Update(ctx, func(tx *store.Tx) error { return tx.TouchMapping(user, s.o.Now()) })
	if err != nil {
		s.log.Warn("note the last use of a mapping", "user", user, "error", err)
	}
}

// reload reads the active mappings and wakes everybody who waits for a change. It is called after every commit and
// before the change is reported to anybody.
func (s *Service) reload(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ms, err := s.Mappings(ctx)
	if err != nil {
		// Knowing too little is safe, knowing a mapping that has ended is not.
		s.table.Store(&table{})
		s.stale.Store(true)
		s.signalLocked() // for Run, which tries again
		return fmt.Errorf("read the mappings: %w", err)
	}
	t := &table{byUID: make(map[ident.UID]Binding, len(ms)), byUser: make(map[ident.UCloudUser]Binding, len(ms))}
	for _, m := range ms {
		if m.State != store.MappingActive {
			continue
		}
		b := Binding{User: m.User, UID: m.UID, LocalName: m.LocalName}
		if m.ExpiresAt != nil {
			b.ExpiresAt = *m.ExpiresAt
		}
		t.byUID[m.UID], t.byUser[m.User] = b, b
	}
	s.table.Store(t)
	s.stale.Store(false)
	s.signalLocked()
	return nil
}

// signalLocked wakes everybody who waits for a change. s.mu is held.
func (s *Service) signalLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// update runs one write transaction and makes its effect visible to lookups before it returns.
func (s *Service) update(ctx context.Context, fn func(tx *store.Tx) error) error {
	if err := s.o.Store.Update(ctx, fn); err != nil {
		return err
	}
	// A caller who has gone away must not leave us with an outdated table.
	return s.reload(context.WithoutCancel(ctx))
}

// quoted shortens a text for a message.
func quoted(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}
