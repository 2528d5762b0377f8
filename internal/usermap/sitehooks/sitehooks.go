// Package sitehooks tells scripts of the site what happens to users: that one was disconnected, and that a ticket was made,
// about which the script may decide (contract 42 sections B.3 and B.3a).
//
// What a script is told is queued in the transaction of the fact, and told until it succeeds or no repetition helps: at least
// once, in the order of each user, also across restarts. So a script may hear of the same thing twice. What is no longer so is
// not told: that a user was disconnected who has the account again, or that there is a ticket which is not open any more; and
// newer news of the same account take the place of older ones (contract 42 section A.3; TestReplaced, TestOldTickets). So the
// queue has at most one call for each account that a user had, and one for each open ticket. One call of each hook is under way
// at a time. Calls that no repetition helps wait until the service starts anew or reads its configuration
// again ([Service.Release]); exit status 77 ends a call, since it says that the script does not want it.
//
// A script that decides about a ticket does what an operator can do, no more: the account must pass the policy and be free,
// and no signing key ever becomes usable by it, because nobody has compared anything (TestDecisions).
package sitehooks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/store"
	"ucloud-im/internal/usermap"
	"ucloud-im/internal/usermap/ticket"
)

// Options configure a [Service]. Store, Hook and Log are required.
type Options struct {
	Store *store.Store
	Log   *slog.Logger
	// Hook gives the configured hook of a name, [scripts.HookUserDisconnected] or [scripts.HookTicketCreated]; nil if there is
	// none. It may change.
	Hook func(name string) *scripts.Hook
	// Decide carries out what a script has decided about a ticket; nil: tickets are not used.
	Decide func(ctx context.Context, hash [32]byte, d ticket.Decision) error
	// Account gives the account with a uid if the policy allows it. It may wait for the name service to know one that the
	// script has just made. Nil: nobody waits.
	Account func(ctx context.Context, uid ident.UID) (usermap.Account, error)

	Now func() time.Time // nil: time.Now
}

// Service makes the calls. It is safe for concurrent use.
type Service struct {
	o    Options
	log  *slog.Logger
	kick map[string]chan struct{} // by the name of the hook
}

// New makes a service. [Service.Run] makes the calls.
func New(o Options) (*Service, error) {
	if o.Store == nil || o.Hook == nil || o.Log == nil {
		return nil, errors.New("sitehooks: Store, Hook and Log are required")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Service{o: o, log: o.Log.With("part", "site hooks"), kick: map[string]chan struct{}{
		scripts.HookUserDisconnected: make(chan struct{}, 1), scripts.HookTicketCreated: make(chan struct{}, 1),
	}}, nil
}

// Ended is for [usermap.Options]: it queues the news that a user was disconnected.
func (s *Service) Ended(tx *store.Tx, was store.Mapping, cause usermap.Cause) error {
	if s.o.Hook(scripts.HookUserDisconnected) == nil || was.State == store.MappingExpired {
		return nil // nobody wants to know, or knows already
	}
	request := scripts.DisconnectedRequest{
		UCloudUsername: was.User, UID: was.UID, LocalUsername: was.LocalName, Reason: string(cause), Projects: []scripts.DisconnectProject{},
	}
	projects, err := tx.ProjectsOf(was.User)
	if err != nil {
		return err
	}
	for _, p := range projects {
		gid, _, err := tx.ProjectGroup(p.ID)
		switch {
		case err == nil:
			request.Projects = append(request.Projects, scripts.DisconnectProject{UCloudProjectID: p.ID, GID: gid})
		case !errors.Is(err, store.ErrNotFound):
			return err
		}
	}
	return s.queue(tx, scripts.HookUserDisconnected, was.User, request)
}

// ticketNews is what is queued about a ticket.
type ticketNews struct {
	Hash    []byte                `json:"hash"`
	Request scripts.TicketRequest `json:"request"`
}

// TicketIssued is for [ticket.Options]: it queues the news of a ticket.
func (s *Service) TicketIssued(tx *store.Tx, rec store.Ticket) error {
	if s.o.Hook(scripts.HookTicketCreated) == nil {
		return nil
	}
	return s.queue(tx, scripts.HookTicketCreated, rec.User, ticketNews{Hash: rec.Hash[:], Request: scripts.TicketRequest{
		Ticket: ticket.Short(rec.Hash), UCloudUsername: rec.User, ExpiresAt: rec.ExpiresAt.UTC(),
	}})
}

func (s *Service) queue(tx *store.Tx, hook string, user ident.UCloudUser, news any) error {
	payload, err := json.Marshal(news)
	if err != nil {
		return err
	}
	// An account that ends now is not ended yet, so what was said about it earlier is over too.
	earlier, err := tx.CallsOf(hook, string(user))
	if err != nil {
		return err
	}
	for _, c := range earlier {
		over, err := s.over(tx, c)
		if err == nil && over {
			err = tx.CallDone(c.ID)
		}
		if err != nil {
			return err
		}
	}
	tx.AfterCommit(func() { s.wake(hook) })
	return tx.QueueCall(hook, string(user), payload, s.o.Now())
}

// over tells whether what a call says is not so any more.
func (s *Service) over(tx *store.Tx, c store.QueuedCall) (bool, error) {
	if c.Hook == scripts.HookUserDisconnected {
		was, err := readDisconnected(c)
		if err != nil {
			return false, nil // making the call says what is wrong with it
		}
		m, err := tx.MappingByUser(ident.UCloudUser(c.Key))
		if errors.Is(err, store.ErrNotFound) {
			return false, nil
		}
		return err == nil && m.UID == was.UID && m.State != store.MappingExpired, err
	}
	news, err := readTicket(c)
	if err != nil {
		return false, nil
	}
	t, err := tx.TicketByHash([32]byte(news.Hash))
	if errors.Is(err, store.ErrNotFound) {
		return true, nil
	}
	return err == nil && (t.State != store.TicketOpen || !s.o.Now().Before(t.ExpiresAt)), err
}

func readDisconnected(c store.QueuedCall) (r scripts.DisconnectedRequest, err error) {
	if err = json.Unmarshal(c.Payload, &r); err != nil {
		err = fmt.Errorf("read a queued call: %w", err)
	}
	return r, err
}

func readTicket(c store.QueuedCall) (n ticketNews, err error) {
	if err = json.Unmarshal(c.Payload, &n); err != nil || len(n.Hash) != 32 {
		err = errors.Join(errors.New("read a queued call"), err)
	}
	return n, err
}

func (s *Service) wake(hook string) {
	select {
	case s.kick[hook] <- struct{}{}:
	default:
	}
}

// Release has calls made again that no repetition helped, because something may have been mended.
func (s *Service) Release(ctx context.Context) error {
	err := s.o.Store.Update(ctx, func(tx *store.Tx) error { return tx.ReleaseCalls(s.o.Now()) })
	for hook := range s.kick {
		s.wake(hook)
	}
	return err
}

// Status counts the calls that have failed and are made again, and those that wait for an operator.
func (s *Service) Status(ctx context.Context) (failing, parked int, lastError string, err error) {
	err = s.o.Store.View(ctx, func(tx *store.Tx) error {
		failing, parked, lastError, err = tx.QueuedCalls()
		return err
	})
	return failing, parked, lastError, err
}

// Run makes the calls until ctx ends, beginning with what an earlier process has left.
func (s *Service) Run(ctx context.Context) error {
	if err := s.Release(ctx); err != nil && ctx.Err() == nil {
		s.log.Error("calls that wait were not released", "error", err)
	}
	var wg sync.WaitGroup
	for hook, kick := range s.kick {
		wg.Go(func() { s.run(ctx, hook, kick) })
	}
	wg.Wait()
	return nil
}

const (
	idle  = time.Hour
	again = 10 * time.Second // after an error of the database
	batch = 100
)

func (s *Service) run(ctx context.Context, hook string, kick <-chan struct{}) {
	for ctx.Err() == nil {
		pause := s.round(ctx, hook)
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-kick:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// round makes the calls that are due and tells when the next ones are.
func (s *Service) round(ctx context.Context, hook string) time.Duration {
	var heads []store.QueuedCall
	err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) {
		heads, err = tx.QueuedHeads(hook, batch)
		return err
	})
	if err != nil {
		if ctx.Err() == nil {
			s.log.Error("read what scripts are to be told", "hook", hook, "error", err)
		}
		return again
	}
	pause := idle
	for _, c := range heads {
		if wait := c.NextAt.Sub(s.o.Now()); wait > 0 {
			pause = min(pause, wait)
			continue
		}
		if err := s.make(ctx, c); err != nil {
			if ctx.Err() == nil {
				s.log.Error("what came of the call of a script cannot be stored, it is made again", "hook", hook, "error", err)
			}
			return again
		}
		pause = 0 // there may be another one of this user
	}
	return pause
}

// make makes one call and writes down what came of it.
func (s *Service) make(ctx context.Context, c store.QueuedCall) error {
	over := false
	err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) {
		over, err = s.over(tx, c)
		return err
	})
	if err != nil {
		return err
	}
	hook := s.o.Hook(c.Hook)
	if hook != nil && !over { // or nobody wants to know any more
		err = s.call(ctx, hook, c)
	}
	if err != nil && ctx.Err() != nil {
		return err // cut short, the next process does it
	}
	log := s.log.With("hook", c.Hook, "user", c.Key)
	next, repeat := time.Time{}, false
	if e, ok := errors.AsType[*scripts.Error](err); err != nil {
		retry := hook.Retry()
		switch {
		case ok && e.Kind == scripts.NotPermitted:
			log.Info("a script does not want to be told", "message", e.Message)
		case retry.Deadline > 0 && s.o.Now().After(c.CreatedAt.Add(retry.Deadline)):
			log.Error("a script was not told in time, this is given up", "error", err)
		case ok && !e.Kind.Retryable():
			log.Error("a script cannot be told, it waits for a reload or a restart", "error", err)
			repeat = true
		case ok:
			next, repeat = s.o.Now().Add(retry.Pause(c.Attempts+1, e.RetryAfter)), true
		default:
			next, repeat = s.o.Now().Add(retry.Pause(c.Attempts+1, 0)), true
		}
	}
	return s.o.Store.Update(context.WithoutCancel(ctx), func(tx *store.Tx) error {
		stored := error(nil)
		if repeat {
			stored = tx.RetryCall(c.ID, next, err.Error())
		} else {
			stored = tx.CallDone(c.ID)
		}
		if errors.Is(stored, store.ErrNotFound) {
			return nil // newer news have taken its place meanwhile
		}
		return stored
	})
}

// call makes one call.
func (s *Service) call(ctx context.Context, hook *scripts.Hook, c store.QueuedCall) error {
	user := ident.UCloudUser(c.Key)
	call := scripts.Call{Key: "user/" + c.Key, Owner: ident.Owner{User: user}, Attempt: c.Attempts + 1, Reason: "change"}
	if c.Hook == scripts.HookUserDisconnected {
		request, err := readDisconnected(c)
		if err != nil {
			return err
		}
		call.Request = request
		return hook.Call(ctx, call, nil)
	}
	news, err := readTicket(c)
	if err != nil {
		return err
	}
	call.Request = news.Request
	var reply scripts.TicketReply
	if err := hook.Call(ctx, call, &reply); err != nil {
		return err
	}
	if reply.Decision == "" || s.o.Decide == nil {
		return nil
	}
	d := ticket.Decision{By: "script " + scripts.HookTicketCreated, Message: reply.UserMessage}
	if reply.Decision == scripts.DecideApprove {
		uid := ident.UID(*reply.UID) //nolint:gosec // checked by the reply
		if d.Local = uid.String(); s.o.Account != nil {
			_, err = s.o.Account(ctx, uid)
		}
	}
	if err == nil {
		err = s.o.Decide(ctx, [32]byte(news.Hash), d)
	}
	if err != nil && ctx.Err() != nil {
		return err // the service ends, which says nothing about the decision
	}
	switch failure.KindOf(err) {
	case failure.Conflict, failure.Forbidden, failure.NotFound, failure.Invalid:
		if err != nil { // another answer may be better, but nobody would ask for it
			s.log.Error("what a script has decided about a ticket cannot be done, the ticket stays as it is", "user", user,
				"ticket", news.Request.Ticket, "decision", reply.Decision, "error", err)
			return nil
		}
	}
	return err
}
