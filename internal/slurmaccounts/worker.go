package slurmaccounts

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/store"
)

const (
	// lookAtAll is how often everything is compared with Slurm although nothing has changed.
	lookAtAll = time.Hour
	// lookAgain is the pause after a look that failed for a reason of ours, or because Slurm did not answer.
	lookAgain = 30 * time.Second
	// settle collects events that come one after the other.
	settle = 200 * time.Millisecond
	// readAll is for how many workspaces all accounts are read at once.
	readAll = 20
)

// patience is how changes of Slurm that fail are repeated: for ever.
var patience = scripts.Retry{Initial: 10 * time.Second, Max: 10 * time.Minute}

// Run looks after accounts until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	var looked time.Time // at everything
	for {
		pause := lookAtAll - time.Since(looked)
		s.mu.Lock()
		all := s.everyone || pause <= 0
		s.everyone = false
		s.mu.Unlock()
		if all {
			if err := s.addEveryone(ctx); err != nil {
				if ctx.Err() == nil {
					s.log.Error("workspaces cannot be listed", "error", err)
				}
				s.mu.Lock()
				s.everyone = true
				s.mu.Unlock()
				pause = lookAgain
			} else {
				looked, pause = time.Now(), lookAtAll
			}
		}
		pause = min(pause, s.Pass(ctx))
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-s.wake:
			timer.Stop()
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(settle):
			}
		case <-timer.C:
		}
	}
}

// addEveryone makes all workspaces due that have accounts, or allocations for which they should have some.
func (s *Service) addEveryone(ctx context.Context) error {
	var owners []ident.Owner
	err := s.o.Store.View(ctx, func(tx *store.Tx) error {
		owners = nil
		accounts, err := tx.SlurmAccounts()
		if err != nil {
			return err
		}
		for _, a := range accounts {
			owners = append(owners, a.Owner)
		}
		wallets, err := tx.Wallets()
		for _, w := range wallets {
			owners = append(owners, w.Owner)
		}
		return err
	})
	if err != nil {
		return err
	}
	s.Changed(owners...)
	s.mu.Lock()
	s.orphans = time.Time{}
	s.mu.Unlock()
	return nil
}

// take removes the workspaces whose time has come. next is how long it takes until another one's comes.
func (s *Service) take() (owners []ident.Owner, orphans bool, next time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	next = lookAtAll
	for o, at := range s.due {
		if wait := at.Sub(now); wait > 0 {
			next = min(next, wait)
			continue
		}
		delete(s.due, o)
		owners = append(owners, o)
	}
	if wait := s.orphans.Sub(now); wait > 0 {
		next = min(next, wait)
	} else {
		orphans, s.orphans = true, now.Add(lookAtAll)
	}
	return owners, orphans, next
}

// Pass looks once at all workspaces that are due, and tells when to look again. Whoever calls it beside [Service.Run]
// waits for nobody else: it is for tests.
func (s *Service) Pass(ctx context.Context) time.Duration {
	set := s.current()
	owners, orphans, next := s.take()
	slices.SortFunc(owners, func(a, b ident.Owner) int { return compareOwners(a, b) })
	look := &look{s: s, set: set}
	if set.Management.Type == Automatic && len(owners) > readAll {
		all, err := s.o.Cluster.Read(ctx, nil)
		if err != nil && ctx.Err() == nil {
			s.log.Warn("Slurm does not tell its accounts", "error", err, "next", lookAgain)
			s.later(owners, lookAgain)
			s.mu.Lock()
			s.orphans = time.Now().Add(lookAgain)
			s.mu.Unlock()
			return min(next, lookAgain)
		}
		look.snapshot = all
	}
	for _, o := range owners {
		at, err := look.owner(ctx, o)
		if ctx.Err() != nil {
			return next // the next start looks at everything
		}
		if err != nil {
			s.log.Error("the accounts of a workspace cannot be looked at", "owner", o.Reference(), "error", err)
			at = time.Now().Add(lookAgain)
		}
		if !at.IsZero() {
			s.later([]ident.Owner{o}, time.Until(at))
			next = min(next, max(time.Until(at), 0))
		}
	}
	if orphans && set.Management.Type == Automatic {
		at, err := look.orphans(ctx)
		if err != nil && ctx.Err() == nil {
			s.log.Error("accounts without workspace cannot be looked at", "error", err)
			at = time.Now().Add(lookAgain)
		}
		if !at.IsZero() {
			s.mu.Lock()
			s.orphans = at
			s.mu.Unlock()
			next = min(next, max(time.Until(at), 0))
		}
	}
	return next
}

func compareOwners(a, b ident.Owner) int {
	switch ra, rb := a.Reference(), b.Reference(); {
	case ra < rb:
		return -1
	case ra > rb:
		return 1
	}
	return 0
}

// later makes workspaces due after a pause, unless they are due sooner.
func (s *Service) later(owners []ident.Owner, pause time.Duration) {
	at := time.Now().Add(pause)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range owners {
		if old, ok := s.due[o]; !ok || at.Before(old) {
			s.due[o] = at
		}
	}
}

// look is one pass.
type look struct {
	s        *Service
	set      *Settings
	snapshot map[string]State // nil: ask for each workspace
}

// owner does what there is to do for a workspace and tells when to look again; the zero time: when something changes.
func (l *look) owner(ctx context.Context, owner ident.Owner) (again time.Time, err error) {
	sooner := func(t time.Time) {
		if !t.IsZero() && (again.IsZero() || t.Before(again)) {
			again = t
		}
	}
	if l.set.Management.Type == Off {
		return time.Time{}, nil
	}
	wait, err := l.s.mapAll(ctx, l.set, owner)
	if err != nil {
		return time.Time{}, err
	}
	sooner(wait)
	goals, err := l.s.goals(ctx, l.set, owner)
	if err != nil {
		return time.Time{}, err
	}
	l.s.mu.Lock()
	for _, g := range goals {
		if l.s.anew[owner] {
			l.s.again[g.account] = true
		}
	}
	delete(l.s.anew, owner)
	l.s.mu.Unlock()
	for _, g := range goals {
		var at time.Time
		if l.set.Management.Type == Automatic {
			at, err = l.automatic(ctx, g)
		} else {
			at, err = l.scripted(ctx, g)
		}
		if err != nil {
			return time.Time{}, err
		}
		sooner(at)
	}
	return again, nil
}

// mapAgain is the pause after a mapping has failed or has given nothing. A change of owner or project comes before.
const mapAgain = 10 * time.Minute

// mapAll finds the accounts of a workspace in the categories in which it has an allocation (contract 42 section B.10).
func (s *Service) mapAll(ctx context.Context, set *Settings, owner ident.Owner) (again time.Time, err error) {
	if set.Mapping.choice() {
		return time.Time{}, nil
	}
	var missing []Category
	var project *store.Project
	err = s.o.Store.View(ctx, func(tx *store.Tx) error {
		missing, project = nil, nil
		wallets, err := tx.WalletsOf(owner)
		if err != nil {
			return err
		}
		for _, w := range wallets {
			c, ok := set.category(w.Category)
			if !ok || w.IsAllocator || w.CombinedQuota <= 0 {
				continue
			}
			if _, err := tx.SlurmAccount(owner, c.Name); err == nil {
				continue
			} else if !errors.Is(err, store.ErrNotFound) {
				return err
			}
			missing = append(missing, c)
		}
		if len(missing) == 0 || !owner.IsProject() {
			return nil
		}
		p, err := tx.Project(owner.Project)
		if err == nil {
			project = &p
		}
		return ignoreMissing(err)
	})
	if err != nil || personal(project, s.o.Provider) {
		return time.Time{}, err
	}
	for _, c := range missing {
		name, err := s.mapped(ctx, set, owner, project, c)
		if err == nil && name != "" {
			name, err = s.keep(ctx, owner, c.Name, name)
		}
		switch {
		case ctx.Err() != nil:
			return time.Time{}, ctx.Err()
		case err != nil:
			s.log.Info("a workspace has an allocation and no Slurm account yet", "owner", owner.Reference(), "category", c.Name, "why", err, "next", mapAgain)
			again = time.Now().Add(mapAgain)
		case name == "":
			s.log.Info("the mapper gives a workspace no Slurm account", "owner", owner.Reference(), "category", c.Name, "next", mapAgain)
			again = time.Now().Add(mapAgain)
		}
	}
	return again, nil
}

// job is something to do for an account, and what it is known by.
type job struct {
	key, account, digest string
	retry                scripts.Retry
	always               bool // do tells itself whether there is anything to do
	do                   func(w store.SlurmWork) error
	done                 func(tx *store.Tx, w *store.SlurmWork) error // in the transaction that notes the success
}

// parked is an error that only an operator can do something about.
type parked struct{ error }

// try does a job unless it is done, or failed lately, and notes the outcome. It tells when to try again.
func (s *Service) try(ctx context.Context, j job) (again time.Time, err error) {
	var w store.SlurmWork
	err = s.o.Store.View(ctx, func(tx *store.Tx) (err error) { w, err = tx.SlurmWork(j.key); return ignoreMissing(err) })
	if err != nil {
		return time.Time{}, err
	}
	before := w
	if w.Key == "" {
		w = store.SlurmWork{Key: j.key, Minutes: None}
	}
	w.Account = j.account
	s.mu.Lock()
	anew := s.again[j.account]
	s.mu.Unlock()
	now := time.Now()
	if anew {
		w.Applied, w.Wanted = "", ""
	}
	if !j.always && w.Applied == j.digest {
		return time.Time{}, nil
	}
	if w.Wanted != j.digest {
		w.Wanted, w.Attempts, w.Since, w.NextAt, w.LastError = j.digest, 0, now, now, ""
	}
	if w.NextAt.IsZero() && !s.revive(j.key) {
		return time.Time{}, nil
	}
	if w.NextAt.After(now) {
		return w.NextAt, nil
	}
	fail := j.do(w)
	if ctx.Err() != nil {
		return time.Time{}, ctx.Err() // says nothing about the job
	}
	if fail == nil {
		w.Applied, w.Attempts, w.NextAt, w.LastError = j.digest, 0, now, ""
		if w.AppliedAt.IsZero() || before.Applied != j.digest || before.Attempts > 0 {
			w.AppliedAt = now
		}
	} else {
		s.conclude(&w, j, fail)
	}
	err = s.o.Store.Update(ctx, func(tx *store.Tx) error {
		out := w
		if fail == nil && j.done != nil {
			if err := j.done(tx, &out); err != nil {
				return err
			}
		} else if fail != nil { // what do has noted on its way counts
			if now, err := tx.SlurmWork(j.key); err == nil {
				out.Locked = now.Locked
			} else if !errors.Is(err, store.ErrNotFound) {
				return err
			}
		}
		if fail == nil && unchanged(before, out) {
			return nil
		}
		return tx.PutSlurmWork(out)
	})
	if err != nil {
		return time.Time{}, fmt.Errorf("store the outcome: %w", err)
	}
	if fail != nil {
		return w.NextAt, nil
	}
	return time.Time{}, nil
}

// unchanged tells whether nothing but the time of the look is new.
func unchanged(a, b store.SlurmWork) bool {
	a.NextAt, b.NextAt = time.Time{}, time.Time{}
	return a == b
}

// conclude notes a failure.
func (s *Service) conclude(w *store.SlurmWork, j job, err error) {
	now := time.Now()
	w.Attempts++
	w.LastError = err.Error()
	var asked time.Duration
	park := j.retry.Deadline > 0 && now.Sub(w.Since) > j.retry.Deadline
	if _, ok := errors.AsType[parked](err); ok {
		park = true
	}
	if e, ok := errors.AsType[*scripts.Error](err); ok {
		asked = e.RetryAfter
		park = park || !e.Kind.Retryable()
	}
	if park {
		s.log.Error("a Slurm account waits for an operator", "account", j.account, "work", j.key, "error", err)
		w.NextAt = time.Time{}
		s.mu.Lock()
		s.revived[j.key] = true // not before the next start or reload
		s.mu.Unlock()
		return
	}
	w.NextAt = now.Add(j.retry.Pause(w.Attempts, asked))
	s.log.Warn("a Slurm account is not as it should be yet", "account", j.account, "work", j.key, "error", err, "attempts", w.Attempts, "next", w.NextAt)
}

// revive tells whether work that waits for an operator may be tried once more.
func (s *Service) revive(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.revived[key] {
		return false
	}
	s.revived[key] = true
	return true
}

// done forgets that an account was to be looked at anew.
func (s *Service) done(account string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.again, account)
}

// Status says how accounts are.
type Status struct {
	Type     string
	Accounts int // of workspaces
	Failing  int // tried and not done; tried again by themselves
	Parked   int // wait for an operator
	Error    string
}

// Status counts. Error is the newest error.
func (s *Service) Status(ctx context.Context) (st Status, err error) {
	var works []store.SlurmWork
	st.Type = s.current().Management.Type
	err = s.o.Store.View(ctx, func(tx *store.Tx) error {
		accounts, err := tx.SlurmAccounts()
		if err != nil {
			return err
		}
		names := map[string]bool{}
		for _, a := range accounts {
			names[a.Account] = true
		}
		st.Accounts = len(names)
		works, err = tx.SlurmWorks()
		return err
	})
	var newest time.Time
	for _, w := range works {
		switch {
		case w.Attempts == 0:
			continue
		case w.NextAt.IsZero():
			st.Parked++
		default:
			st.Failing++
		}
		if !w.Since.Before(newest) {
			newest, st.Error = w.Since, w.LastError
		}
	}
	return st, err
}
