package ticket

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
	"ucloud-im/internal/usermap"
)

// MethodName is what the mapping's Method says for connections made by ticket.
const MethodName = "ticket"

const (
	// DefaultLifetime is how long a ticket can be completed: operators answer mail (contract 40 section 6).
	DefaultLifetime = 14 * 24 * time.Hour
	// closedVisible is how long the page of a completed or rejected ticket shows the outcome (contract 05, D4).
	closedVisible = 24 * time.Hour
	// keepClosed is how long closed tickets stay in the list.
	keepClosed = 90 * 24 * time.Hour
	// A user may begin beginBurst times at once and then once per beginEvery. Each costs a row, and nobody needs more.
	beginBurst = 20
	beginEvery = time.Minute
)

// Options configure a [Method]. Store, Users, PageURL and Log are required.
type Options struct {
	Store *store.Store
	Users *usermap.Service
	Log   *slog.Logger

	// PageURL is the absolute URL of the page that shows a ticket; the ticket is added as query parameter.
	PageURL string
	// Lifetime of a ticket, 0 means DefaultLifetime.
	Lifetime time.Duration
	// MaxOpenPerUser is how many open tickets a user may have; older ones are superseded. 0 means 1.
	MaxOpenPerUser int
	// SelfService lets users complete their own ticket, without an operator.
	SelfService bool
	// Issued runs in the transaction that stores a new ticket. Nil: nobody wants to know.
	Issued func(tx *store.Tx, rec store.Ticket) error

	Now func() time.Time // nil: time.Now
}

// Method is the ticket mapper. It is safe for concurrent use.
type Method struct {
	o   Options
	log *slog.Logger

	mu     sync.Mutex // guards tokens
	tokens map[ident.UCloudUser]bucket
}

var _ usermap.Method = (*Method)(nil)

// bucket is a token bucket: how many beginnings were left at a time.
type bucket struct {
	left float64
	at   time.Time
}

// NewMethod makes a ticket mapper.
func NewMethod(o Options) (*Method, error) {
	if o.Store == nil || o.Users == nil || o.Log == nil {
		return nil, errors.New("ticket: Store, Users and Log are required")
	}
	if u, err := url.Parse(o.PageURL); err != nil || !u.IsAbs() {
		return nil, fmt.Errorf("ticket: PageURL %q must be absolute: Core passes it on as it is", o.PageURL)
	}
	if o.Lifetime == 0 {
		o.Lifetime = DefaultLifetime
	}
	if o.MaxOpenPerUser == 0 {
		o.MaxOpenPerUser = 1
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Method{o: o, log: o.Log.With("part", "tickets"), tokens: make(map[ident.UCloudUser]bucket)}, nil
}

// SelfService tells whether users may complete their own tickets.
func (m *Method) SelfService() bool { return m.o.SelfService }

// Begin gives the user a new ticket, superseding older ones, and returns the URL of its page. An attempt that is made again gets
// the ticket that it has got.
func (m *Method) Begin(ctx context.Context, a usermap.Attempt) (string, error) {
	user := a.User
	if !m.allow(user) {
		return "", failure.New(failure.TooMany, "You have started to connect very often. Please wait a minute")
	}
	t, now := New(), m.o.Now().UTC()
	if a.Secret != "" {
		t = derive(a.Secret.Reveal())
	}
	again := false
	err := m.o.Store.Update(ctx, func(tx *store.Tx) error {
		if a.Secret != "" {
			_, err := tx.TicketByHash(t.Hash())
			if again = err == nil; again || !errors.Is(err, store.ErrNotFound) {
				return err
			}
		}
		rec := store.Ticket{
			Hash: t.Hash(), User: user, CreatedAt: now, ExpiresAt: now.Add(m.o.Lifetime), State: store.TicketOpen, Key: a.Key,
		}
		if err := tx.InsertTicket(rec, m.o.MaxOpenPerUser); err != nil || m.o.Issued == nil {
			return err
		}
		return m.o.Issued(tx, rec)
	})
	if err != nil {
		return "", fmt.Errorf("store a ticket for %q: %w", user, err)
	}
	if !again {
		m.log.Info("ticket issued", "user", user, "ticket", Short(t.Hash()))
	}
	return m.o.PageURL + "?ticket=" + url.QueryEscape(t.String()), nil
}

// allow takes one from the user's bucket. Buckets that are full again are forgotten, so the map is as large as the
// number of users who began within the last minutes.
func (m *Method) allow(user ident.UCloudUser) bool {
	now := m.o.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	refill := func(b bucket) bucket {
		b.left = min(beginBurst, b.left+float64(now.Sub(b.at))/float64(beginEvery))
		b.at = now
		return b
	}
	if len(m.tokens) > 1000 {
		for u, b := range m.tokens {
			if refill(b).left >= beginBurst {
				delete(m.tokens, u)
			}
		}
	}
	b, ok := m.tokens[user]
	if !ok {
		b = bucket{left: beginBurst, at: now}
	}
	b = refill(b)
	allowed := b.left >= 1
	if allowed {
		b.left--
	}
	m.tokens[user] = b
	return allowed
}

// Describe looks a ticket up. Its state is the effective one: an open ticket whose time is over is expired. An unknown
// ticket is NotFound.
func (m *Method) Describe(ctx context.Context, t Ticket) (rec store.Ticket, err error) {
	err = m.o.Store.View(ctx, func(tx *store.Tx) error {
		rec, err = tx.TicketByHash(t.Hash())
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return rec, errUnknown(err)
	}
	if err != nil {
		return rec, err
	}
	return m.effective(rec), nil
}

func (m *Method) effective(rec store.Ticket) store.Ticket {
	if rec.State == store.TicketOpen && !m.o.Now().Before(rec.ExpiresAt) {
		rec.State = store.TicketExpired
	}
	return rec
}

func errUnknown(cause error) error {
	return failure.Wrap(cause, failure.NotFound, "There is no such ticket. Please compare it with the page, or press \"Connect\" in UCloud again")
}

// Key is the signing key that came with a ticket. The zero value is none.
type Key struct {
	Fingerprint string
	// Withdrawn tells that there was one, and it cannot become usable any more: it was revoked, is too old, or somebody
	// else has used the same link.
	Withdrawn bool
}

// Key gives the signing key of an open ticket.
func (m *Method) Key(ctx context.Context, rec store.Ticket) (key Key, err error) {
	if rec.Key == "" || rec.State != store.TicketOpen {
		return Key{}, nil
	}
	err = m.o.Store.View(ctx, func(tx *store.Tx) error {
		key, err = m.key(tx, rec)
		return err
	})
	return key, err
}

func (m *Method) key(tx *store.Tx, rec store.Ticket) (Key, error) {
	k, err := tx.SigningKey(rec.Key)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return Key{Withdrawn: true}, nil
	case err != nil:
		return Key{}, err
	case k.User != rec.User || k.State != store.SigningKeyPending || !m.o.Now().Before(k.ExpiresAt):
		return Key{Withdrawn: true}, nil
	}
	return Key{Fingerprint: k.Fingerprint}, nil
}

// Completion uses a ticket up.
type Completion struct {
	Ticket Ticket
	// User is whom the person at the keyboard was shown and has confirmed.
	User ident.UCloudUser
	// KeyFingerprint is what a person has compared, of the signing key that came with the ticket. Only then the key
	// becomes usable; if it is empty, the connection is made without a key. A program that decides about tickets must
	// leave it empty: it has nothing to compare with, and UCloud/Core could have uploaded the key.
	KeyFingerprint string
	// Local is the account: what the kernel reports, or what an operator typed.
	Local     string
	By        string
	ExpiresAt *time.Time
	DryRun    bool
}

// Complete closes the ticket and stores the mapping, in one transaction: if either is refused, the ticket stays open
// (contract 05, D5). Errors are those of [usermap.Service.Link], and Conflict for a ticket that is not open, names
// another user, or came with another signing key than the one that was confirmed.
func (m *Method) Complete(ctx context.Context, c Completion) (store.Mapping, error) {
	rec, err := m.Describe(ctx, c.Ticket) // whose key it is cannot change
	if err != nil {
		return store.Mapping{}, err
	}
	link := usermap.Link{User: c.User, Local: c.Local, Method: MethodName, By: c.By, ExpiresAt: c.ExpiresAt, DryRun: c.DryRun}
	if c.KeyFingerprint != "" {
		link.Key = rec.Key
	}
	link.Also = func(tx *store.Tx, a usermap.Account) error {
		rec, err := tx.TicketByHash(c.Ticket.Hash())
		if errors.Is(err, store.ErrNotFound) {
			return errUnknown(err)
		}
		if err != nil {
			return err
		}
		if err := usable(m.effective(rec), c.User); err != nil {
			return err
		}
		if err := m.settleKey(tx, rec, c.KeyFingerprint); err != nil {
			return err
		}
		err = tx.CloseTicket(rec.Hash, store.TicketUsed, &a.UID, c.By, "", m.o.Now())
		if errors.Is(err, store.ErrConflict) {
			return failure.Wrap(err, failure.Conflict, "The ticket has been used meanwhile")
		}
		return err
	}
	return m.o.Users.Link(ctx, link)
}

// settleKey decides about the signing key of a ticket: it is the one that was confirmed, or it is forgotten.
func (m *Method) settleKey(tx *store.Tx, rec store.Ticket, confirmed string) error {
	if confirmed == "" {
		if rec.Key == "" {
			return nil
		}
		if err := tx.ForgetSigningKey(rec.Key); !errors.Is(err, store.ErrNotFound) {
			return err
		}
		return nil
	}
	if rec.Key == "" {
		return failure.New(failure.Conflict, "No signing key came with this ticket")
	}
	key, err := m.key(tx, rec)
	switch {
	case err != nil:
		return err
	case key.Withdrawn:
		return failure.New(failure.Conflict, "The signing key that came with this ticket cannot be used any more. "+
			"Please press \"Connect\" in UCloud again")
	case !sameFingerprint(key.Fingerprint, confirmed):
		// Not telling which one it is: a fingerprint is there to be compared, not to be copied from an error.
		return failure.New(failure.Conflict, "The signing key that came with this ticket is not the one that was confirmed. "+
			"Do not connect: somebody else may have put their key there")
	}
	return nil
}

// sameFingerprint compares what a person gives with what it must be. The name of the hash may be left out.
func sameFingerprint(want, given string) bool {
	const prefix = "SHA256:"
	given = strings.TrimSpace(given)
	return given != "" && strings.TrimPrefix(want, prefix) == strings.TrimPrefix(given, prefix)
}

// usable refuses a ticket that cannot be completed for the user.
func usable(rec store.Ticket, confirmed ident.UCloudUser) error {
	switch rec.State {
	case store.TicketOpen:
	case store.TicketUsed:
		return failure.New(failure.Conflict, "The ticket has been used already")
	case store.TicketSuperseded:
		return failure.New(failure.Conflict, "There is a newer ticket of the same UCloud user. Please use that one")
	case store.TicketRejected:
		return failure.New(failure.Conflict, "The ticket has been rejected by the operators")
	default:
		return failure.New(failure.Conflict, "The ticket has expired. Please press \"Connect\" in UCloud again")
	}
	if rec.User != confirmed {
		// Not naming the right user here: whoever guesses must not be told.
		return failure.New(failure.Conflict, "The ticket belongs to another UCloud user than the one that was confirmed")
	}
	return nil
}

// List gives all tickets with their effective states.
func (m *Method) List(ctx context.Context) (list []store.Ticket, err error) {
	err = m.o.Store.View(ctx, func(tx *store.Tx) error {
		list, err = tx.Tickets()
		return err
	})
	for i := range list {
		list[i] = m.effective(list[i])
	}
	return list, err
}

// Reject closes an open ticket, given as text or short form. The user sees the message on the page.
func (m *Method) Reject(ctx context.Context, textOrShort, by, message string, dryRun bool) error {
	return m.o.Store.Update(ctx, func(tx *store.Tx) error {
		rec, err := m.find(tx, textOrShort)
		if err != nil {
			return err
		}
		if rec = m.effective(rec); rec.State != store.TicketOpen {
			return failure.New(failure.Conflict, "The ticket is not open: it is %s", rec.State)
		}
		if dryRun {
			return nil
		}
		return tx.CloseTicket(rec.Hash, store.TicketRejected, nil, by, message, m.o.Now())
	})
}

// find looks a ticket up by its text, or by its short form if that is unambiguous among the open ones.
func (m *Method) find(tx *store.Tx, textOrShort string) (store.Ticket, error) {
	if t, err := Parse(textOrShort); err == nil {
		rec, err := tx.TicketByHash(t.Hash())
		if errors.Is(err, store.ErrNotFound) {
			return rec, errUnknown(err)
		}
		return rec, err
	}
	all, err := tx.Tickets()
	if err != nil {
		return store.Ticket{}, err
	}
	var found []store.Ticket
	for _, rec := range all {
		if Short(rec.Hash) == textOrShort {
			found = append(found, rec)
		}
	}
	switch len(found) {
	case 0:
		return store.Ticket{}, errUnknown(store.ErrNotFound)
	case 1:
		return found[0], nil
	}
	return store.Ticket{}, failure.New(failure.Conflict, "Several tickets have this short form. Please give the whole ticket")
}

// ExpireOld notes tickets whose time is over, gives their number, and forgets those that were closed long ago. Nothing
// depends on it but the list, as the time is checked at every use.
func (m *Method) ExpireOld(ctx context.Context) (n int, err error) {
	now := m.o.Now()
	err = m.o.Store.Update(ctx, func(tx *store.Tx) error {
		if n, err = tx.ExpireTickets(now); err != nil {
			return err
		}
		_, err := tx.PurgeTickets(now.Add(-keepClosed))
		return err
	})
	return n, err
}

// Stage is how far a ticket has come, as its page shows it.
type Stage int

// The stages.
const (
	StageOpen       Stage = iota + 1 // shown with instructions
	StageConnecting                  // completed, Core has not confirmed yet
	StageConnected
	StageRejected
)

// View is what the page of a ticket shows.
type View struct {
	Stage     Stage
	User      ident.UCloudUser
	Ticket    Ticket
	ExpiresAt time.Time
	Key       Key    // of StageOpen
	LocalName string // from StageConnecting on
	Message   string // of StageRejected
}

// View gives the page's content for the text in its URL. Unknown, superseded and expired tickets, and those closed for
// more than a day, are NotFound and cannot be told apart.
func (m *Method) View(ctx context.Context, text string) (View, error) {
	gone := failure.New(failure.NotFound, "This ticket does not exist or is no longer valid")
	t, err := Parse(text)
	if err != nil {
		return View{}, gone
	}
	rec, err := m.Describe(ctx, t)
	if failure.Is(err, failure.NotFound) {
		return View{}, gone
	}
	if err != nil {
		return View{}, err
	}
	v := View{User: rec.User, Ticket: t, ExpiresAt: rec.ExpiresAt, Message: rec.Message}
	fresh := rec.ClosedAt != nil && m.o.Now().Before(rec.ClosedAt.Add(closedVisible))
	switch {
	case rec.State == store.TicketOpen:
		v.Stage = StageOpen
		v.Key, err = m.Key(ctx, rec)
		return v, err
	case rec.State == store.TicketRejected && fresh:
		v.Stage = StageRejected
		return v, nil
	case rec.State != store.TicketUsed || !fresh:
		return View{}, gone
	}
	mapping, err := m.o.Users.Mapping(ctx, rec.User)
	switch {
	case failure.Is(err, failure.NotFound):
		return View{}, gone
	case err != nil:
		return View{}, err
	case rec.UID == nil || mapping.UID != *rec.UID:
		return View{}, gone // the user has been connected in another way since
	}
	v.LocalName = mapping.LocalName
	switch mapping.State {
	case store.MappingActive:
		v.Stage = StageConnected
	case store.MappingPending, store.MappingApproved:
		v.Stage = StageConnecting
	default:
		return View{}, gone
	}
	return v, nil
}
