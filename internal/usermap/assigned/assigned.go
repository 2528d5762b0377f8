// Package assigned connects UCloud users to the accounts that the provider itself assigns to them: by a script that makes
// or finds the account (package scripted), or by a file of the operators (package static).
//
//	Begin (Core)      Run, in the background        View (browser)           Decide (browser)
//	 looking ────────▶ found, or failed ───────────▶ both accounts are ─────▶ [usermap.Service.Link]
//	                                                 named, or why not
//
// Core is answered at once, because a new account can take longer than the five seconds that Core waits (contract 03
// section 7.10). There is one look for each user at a time, however often "Connect" is pressed. It is kept in the database
// and survives the process: what was under way is begun again, so whoever looks must be able to bear that.
//
// # Trust
//
// Nobody logs in. What the browser proves is only that it is the one that Core has sent here, and since the account follows
// from the UCloud user, sending the link to somebody else connects nothing of theirs; they are asked all the same, see
// package consent. Core is believed about who the user is, and so nobody can have a signing key here: [Method.Begin] refuses
// them (TestNoKeys).
//
// What is found is not believed. It must pass the account policy, must not belong to another user, and must be the account
// that the user had before, when it is found and again when the user agrees (TestWhatScriptsAnswer in package scripted). A
// found account connects nobody until then.
package assigned

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
	"ucloud-im/internal/usermap"
	"ucloud-im/internal/usermap/consent"
)

const (
	// parallel is how many looks are under way at a time.
	parallel = 8
	// keep is how long the outcome of a look is of use to anybody: far longer than a browser waits.
	keep = 24 * time.Hour

	again      = 5 * time.Second // after an error of the database
	purgeEvery = time.Hour
)

// Query asks for the account of a user.
type Query struct {
	User     ident.UCloudUser
	Existing *ident.UID // of the account that the user has, or had before
}

// Look finds the account of a user. An error of kind Forbidden or NotFound is the answer that there is none, with a sentence
// for the user; any other is trouble, of which the user hears no more than that. A look may be repeated.
type Look func(ctx context.Context, q Query) (usermap.Account, error)

// Options configure a [Method]. All but Now are required.
type Options struct {
	Store   *store.Store
	Users   *usermap.Service
	Consent *consent.Service
	Look    Look
	Log     *slog.Logger

	Method string // what the mapping says about how it was proved
	// Next is where browsers go from the first page: the page that shows [Method.View].
	Next string

	Now func() time.Time // nil: time.Now
}

// Method connects users to assigned accounts. It is safe for concurrent use.
type Method struct {
	o    Options
	log  *slog.Logger
	kick chan struct{}
}

var _ usermap.Method = (*Method)(nil)

// New makes a method. [Method.Run] does the looking.
func New(o Options) (*Method, error) {
	if o.Store == nil || o.Users == nil || o.Consent == nil || o.Look == nil || o.Log == nil || o.Method == "" || o.Next == "" {
		return nil, errors.New("assigned: Store, Users, Consent, Look, Log, Method and Next are required")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Method{o: o, log: o.Log.With("part", "accounts"), kick: make(chan struct{}, 1)}, nil
}

// Begin has the account of the user looked for, unless that is under way, and gives the URL of the page that shows it.
func (m *Method) Begin(ctx context.Context, a usermap.Attempt) (string, error) {
	if a.Key != "" {
		// UCloud alone could have brought all this about, the key included.
		return "", failure.New(failure.Forbidden, "Signing keys cannot be used at this provider")
	}
	now := m.o.Now().UTC()
	err := m.o.Store.Update(ctx, func(tx *store.Tx) error {
		last, err := tx.Assignment(a.User)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		tx.AfterCommit(m.wake)
		if err == nil && last.State == store.AssignmentLooking {
			return nil
		}
		return tx.PutAssignment(store.Assignment{User: a.User, State: store.AssignmentLooking, CreatedAt: now, UpdatedAt: now})
	})
	if err != nil {
		return "", fmt.Errorf("have the account of %q looked for: %w", a.User, err)
	}
	return m.o.Consent.Begin(ctx, a)
}

func (m *Method) wake() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// Run looks for accounts until ctx ends, beginning with what an earlier process has left.
func (m *Method) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	busy, done := map[ident.UCloudUser]bool{}, make(chan ident.UCloudUser, parallel)
	for {
		var looking []store.Assignment
		err := m.o.Store.Update(ctx, func(tx *store.Tx) (err error) {
			if err = tx.PurgeAssignments(m.o.Now().Add(-keep)); err == nil {
				looking, err = tx.AssignmentsLooking()
			}
			return err
		})
		pause := purgeEvery
		if err != nil {
			if ctx.Err() == nil {
				m.log.Error("read which accounts are looked for", "error", err)
			}
			looking, pause = nil, again
		}
		for _, a := range looking {
			if len(busy) == parallel || busy[a.User] {
				continue
			}
			busy[a.User] = true
			wg.Go(func() {
				if !m.find(ctx, a) {
					wait(ctx, again)
				}
				done <- a.User
			})
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case user := <-done:
			delete(busy, user)
		case <-m.kick:
		case <-timer.C:
		}
		timer.Stop()
	}
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

const (
	sayTrouble = "Your account could not be found or made. Please try again later, or ask the operators of this provider"
	sayUseless = "The account that was found for you cannot be used. Please tell the operators of this provider"
	sayAnother = "The account that was found for you is another one than before. Please tell the operators of this provider"
)

// find looks for one account and writes down what came of it. false: that could not be written down.
func (m *Method) find(ctx context.Context, a store.Assignment) bool {
	log := m.log.With("user", a.User)
	account, say, err := m.look(ctx, a.User)
	if err != nil && ctx.Err() != nil {
		return true // cut short, the next process begins anew
	}
	next := a
	next.UpdatedAt = m.o.Now().UTC()
	switch {
	case err != nil:
		next.State, next.Message = store.AssignmentFailed, say
		log.Warn("no account for a user who connects", "error", err)
	default:
		next.State, next.UID, next.LocalName = store.AssignmentFound, account.UID, account.Name
		log.Info("account found", "uid", account.UID, "local", account.Name)
	}
	err = m.o.Store.Update(context.WithoutCancel(ctx), func(tx *store.Tx) error { return tx.PutAssignment(next) })
	if err != nil {
		log.Error("what came of the look for an account cannot be stored, it is repeated", "error", err)
	}
	return err == nil
}

// look gives the account, or what to say to the user.
func (m *Method) look(ctx context.Context, user ident.UCloudUser) (a usermap.Account, say string, err error) {
	q := Query{User: user}
	mapping, err := m.o.Users.Mapping(ctx, user)
	switch {
	case err == nil:
		q.Existing = &mapping.UID
	case !failure.Is(err, failure.NotFound):
		return a, sayTrouble, err
	}
	a, err = m.o.Look(ctx, q)
	switch kind := failure.KindOf(err); {
	case err == nil:
	case kind == failure.Forbidden || kind == failure.NotFound:
		return a, failure.Why(err), err
	default:
		return a, sayTrouble, err
	}
	if q.Existing != nil && a.UID != *q.Existing {
		return a, sayAnother, fmt.Errorf("uid %d was found, and the user has uid %d", a.UID, *q.Existing)
	}
	// Nobody is asked in vain: everything that the connection needs is tried, and nothing written.
	_, err = m.o.Users.Link(ctx, usermap.Link{User: user, Local: a.UID.String(), Method: m.o.Method, By: a.Name, DryRun: true})
	switch failure.KindOf(err) {
	case failure.Conflict, failure.Forbidden, failure.NotFound, failure.Invalid:
		if err != nil {
			return a, sayUseless, err
		}
	}
	return a, sayTrouble, err
}
