package slurmaccounts

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ucloud-im/internal/driveplan"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/store"
)

// Outcome is what an evaluation came to.
type Outcome struct {
	Owner    ident.Owner
	Category string
	Before   string // empty: there was no account
	After    string
}

// Reevaluate asks the mapping again, whatever is stored, and stores what it says. If it says nothing the entry is
// removed; if it fails the entry stays. With dryRun nothing is stored. Jobs that run stay charged to the workspace that
// started them; an account in Slurm that belongs to nobody any more is locked and never deleted.
func (s *Service) Reevaluate(ctx context.Context, owner ident.Owner, category string, dryRun bool) (Outcome, error) {
	out := Outcome{Owner: owner, Category: category}
	set := s.current()
	c, ok := set.category(category)
	if !ok {
		return out, errNoCategory(category)
	}
	before, project, err := s.stored(ctx, owner, category)
	out.Before = before
	if err != nil {
		return out, err
	}
	if !set.Mapping.choice() && !personal(project, s.o.Provider) {
		if out.After, err = s.mapped(ctx, set, owner, project, c); err != nil {
			return out, operatorError(err)
		}
	}
	if dryRun || out.After == out.Before {
		if !dryRun {
			s.lookAgain(out.After, owner)
		}
		return out, nil
	}
	s.evaluating.Lock()
	defer s.evaluating.Unlock()
	err = s.o.Store.Update(ctx, func(tx *store.Tx) error {
		if out.After == "" {
			return tx.DeleteSlurmAccount(owner, category)
		}
		return tx.PutSlurmAccount(store.SlurmAccount{Owner: owner, Category: category, Account: out.After, CreatedAt: time.Now()})
	})
	if errors.Is(err, store.ErrConflict) {
		return out, failure.Wrap(err, failure.Conflict, "the account %s belongs to another workspace", out.After)
	}
	if err != nil {
		return out, err
	}
	s.mu.Lock()
	s.everyone = true // the old account belongs to nobody now
	s.mu.Unlock()
	s.lookAgain(out.After, owner)
	return out, nil
}

// Evaluate asks the mapping what account a workspace would have, and with which variables; nothing is stored. Where the
// mapping fails the variables are given all the same, as far as they are known.
func (s *Service) Evaluate(ctx context.Context, owner ident.Owner, category string) (account string, vars driveplan.Vars, err error) {
	set := s.current()
	c, ok := set.category(category)
	if !ok {
		return "", nil, errNoCategory(category)
	}
	_, project, err := s.stored(ctx, owner, category)
	if err != nil {
		return "", nil, err
	}
	if set.Mapping.choice() || personal(project, s.o.Provider) {
		return "", nil, failure.New(failure.Invalid, "the account is the user's choice in this workspace")
	}
	if vars, err = s.variables(ctx, set, owner, project, c); err != nil {
		return "", nil, operatorError(err)
	}
	if account, err = mappedBy(ctx, set, owner, vars); err != nil {
		return "", vars, operatorError(err)
	}
	return account, vars, nil
}

// Assign gives a workspace an account by hand, whatever the mapping says, until it is taken away or the mapping is asked
// again. done is false if the workspace has that account already; another one is a conflict.
func (s *Service) Assign(ctx context.Context, owner ident.Owner, category, account string, dryRun bool) (done bool, err error) {
	if _, ok := s.current().category(category); !ok {
		return false, errNoCategory(category)
	}
	if err := CheckName(account); err != nil {
		return false, err
	}
	s.evaluating.Lock()
	defer s.evaluating.Unlock()
	before, _, err := s.stored(ctx, owner, category)
	switch {
	case err != nil:
		return false, err
	case before == account:
		return false, nil
	case before != "":
		return false, failure.New(failure.Conflict, "the workspace has the account %s there; remove that first", before)
	}
	undone := errors.New("only tried")
	err = s.o.Store.Update(ctx, func(tx *store.Tx) error {
		err := tx.PutSlurmAccount(store.SlurmAccount{Owner: owner, Category: category, Account: account, CreatedAt: time.Now()})
		if err == nil && dryRun {
			err = undone
		}
		return err
	})
	switch {
	case errors.Is(err, undone):
		return true, nil
	case errors.Is(err, store.ErrConflict):
		return false, failure.Wrap(err, failure.Conflict, "the account %s belongs to another workspace", account)
	case err != nil:
		return false, err
	}
	s.lookAgain(account, owner)
	return true, nil
}

// Unassign forgets which account a workspace has. The mapping is asked again with the next job or news about the workspace.
// In Slurm an account of ours that belongs to nobody is locked and never deleted. done is false if there is nothing to forget.
func (s *Service) Unassign(ctx context.Context, owner ident.Owner, category string, dryRun bool) (done bool, err error) {
	s.evaluating.Lock()
	defer s.evaluating.Unlock()
	before, _, err := s.stored(ctx, owner, category)
	if err != nil || before == "" || dryRun {
		return before != "", err
	}
	if err := s.o.Store.Update(ctx, func(tx *store.Tx) error { return tx.DeleteSlurmAccount(owner, category) }); err != nil {
		return false, err
	}
	s.mu.Lock()
	s.orphans = time.Time{} // it belongs to nobody now
	s.mu.Unlock()
	s.signal()
	return true, nil
}

func errNoCategory(category string) error {
	return failure.New(failure.NotFound, "there is no machine category %q in the configuration", category)
}

// lookAgain has the work on an account done anew, also if it waits for an operator.
func (s *Service) lookAgain(account string, owner ident.Owner) {
	s.mu.Lock()
	if account != "" {
		s.again[account] = true
	}
	s.mu.Unlock()
	s.Changed(owner)
}

// operatorError makes what a mapping failed with readable for operators.
func operatorError(err error) error {
	if e, ok := errors.AsType[*scripts.Error](err); ok {
		return failure.Wrap(err, failure.Unavailable, "the mapper failed: %s: %s; see \"ucloud scripts\"", e.Kind, e.Message)
	}
	if e, ok := errors.AsType[*failure.Error](err); ok && e.Cause != nil {
		return failure.Wrap(err, e.Kind, "%s: %v", e.Why, e.Cause)
	}
	return fmt.Errorf("evaluate the mapper: %w", err)
}
