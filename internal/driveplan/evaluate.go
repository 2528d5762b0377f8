package driveplan

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
)

// evaluate is one pass over the drives of an owner. waiting tells that another look is needed although nothing failed:
// a directory is not there yet.
func (p *Planner) evaluate(ctx context.Context, owner ident.Owner) (waiting bool, err error) {
	unlock, err := p.lock(ctx, owner)
	if err != nil {
		return false, err
	}
	defer unlock()

	wanted, complete, err := p.wanted(ctx, owner)
	problems := []error{err}
	taken := map[string]bool{}
	for _, l := range wanted {
		id := l.drive.ProviderGeneratedID
		if taken[id] {
			problems = append(problems, fmt.Errorf("locators of %s: two of them yield %s", l.drive.Category, l.drive.Path))
			continue
		}
		taken[id] = true
		wait, err := p.advance(ctx, l)
		waiting = waiting || wait
		problems = append(problems, err)
	}
	if complete {
		problems = append(problems, p.forget(ctx, owner, taken))
	}
	return waiting, errors.Join(problems...)
}

// wanted locates the drives of an owner. complete is false if some locator could not be evaluated, so that nothing can be
// said about what is no longer wanted.
func (p *Planner) wanted(ctx context.Context, owner ident.Owner) (all []located, complete bool, err error) {
	p.mu.Lock()
	categories := p.categories
	p.mu.Unlock()

	var project *store.Project
	wallets := map[string]store.Wallet{}
	err = p.o.Store.View(ctx, func(tx *store.Tx) error {
		project = nil
		clear(wallets)
		list, err := tx.WalletsOf(owner)
		if err != nil {
			return err
		}
		for _, w := range list {
			wallets[w.Category] = w
		}
		if !owner.IsProject() {
			return nil
		}
		doc, err := tx.Project(owner.Project)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		project = &doc
		return err
	})
	if err != nil {
		return nil, false, fmt.Errorf("read allocations: %w", err)
	}
	vars, err := Variables(ctx, p.o.Accounts, owner, project)
	if err != nil {
		return nil, false, err
	}
	complete = true
	var problems []error
	for _, c := range categories {
		w, ok := wallets[c.Name]
		// Allocators hand out and never use; without any quota there is nothing to put into a drive.
		if !ok || w.IsAllocator || (w.CombinedQuota <= 0 && !c.FreeToUse) {
			continue
		}
		for i := range c.Locators {
			l := &c.Locators[i]
			if !l.Entity.serves(owner) {
				continue
			}
			for _, member := range membersFor(l, project) {
				one, err := p.locateFor(ctx, owner, member, c, l, vars)
				switch {
				case errors.Is(err, errNotYet):
					p.log.Debug("drive not located yet", "owner", owner.Reference(), "member", member, "locator", l.Name, "why", err)
				case err != nil:
					complete = false
					problems = append(problems, fmt.Errorf("locator %s/%s: %w", c.Name, l.Name, err))
				case one.drive.Path != "":
					all = append(all, one)
				}
			}
		}
	}
	return all, complete, errors.Join(problems...)
}

// membersFor are the members of a project whom a locator gives a drive of their own. For other locators it is nobody in
// particular.
func membersFor(l *Locator, project *store.Project) []ident.UCloudUser {
	if l.Entity != EntityMemberFiles {
		return []ident.UCloudUser{""}
	}
	if project == nil {
		return nil
	}
	var out []ident.UCloudUser
	for _, m := range project.Document.Status.Members {
		out = append(out, m.Username)
	}
	return out
}

// locateFor evaluates one locator for an owner, or for a member of that project.
func (p *Planner) locateFor(ctx context.Context, owner ident.Owner, member ident.UCloudUser, c Category, l *Locator, vars Vars) (located, error) {
	vars = maps.Clone(vars)
	if member != "" {
		if err := memberVariables(ctx, p.o.Accounts, member, vars); err != nil {
			return located{}, err
		}
	}
	one, err := locate(ctx, p.o.Provider, owner, c, l, vars)
	one.drive.Member = member
	return one, err
}

// advance brings one drive as far as possible. Each step is stored before the next begins.
func (p *Planner) advance(ctx context.Context, l located) (waiting bool, err error) {
	d, err := p.note(ctx, l.drive)
	if err != nil {
		return false, err
	}
	switch d.State {
	case store.DriveDesired, store.DrivePrepared:
	default:
		return false, nil // the outbox has it, Core has it, or an operator does
	}
	if l.locator.Ready != nil {
		switch why, err := l.locator.Ready(ctx, d); {
		case err != nil:
			p.remember(ctx, d.ProviderGeneratedID, err)
			return false, fmt.Errorf("drive %s: %w", d.Path, err)
		case why != "":
			p.remember(ctx, d.ProviderGeneratedID, errors.New(why))
			return true, nil
		}
	}
	if err := p.prepare(ctx, l); err != nil {
		p.remember(ctx, d.ProviderGeneratedID, err)
		if missing(err) && l.locator.Create == nil {
			return true, nil
		}
		return false, fmt.Errorf("drive %s: %w", d.Path, err)
	}
	return false, p.queue(ctx, d.ProviderGeneratedID)
}

// note stores a newly desired drive and returns the row.
func (p *Planner) note(ctx context.Context, want store.Drive) (row store.Drive, err error) {
	ref, ok := p.o.Products.Reference(want.Category)
	if !ok {
		return row, fmt.Errorf("category %s has no product", want.Category)
	}
	want.Product = ref.ID
	if err := p.at("note"); err != nil {
		return row, err
	}
	err = p.o.Store.Update(ctx, func(tx *store.Tx) error {
		have, err := tx.Drive(want.ProviderGeneratedID)
		switch {
		case errors.Is(err, store.ErrNotFound):
			want.UpdatedAt = time.Now()
			row = want
			return tx.PutDrive(want)
		case err != nil:
			return err
		}
		row = have
		if have.Category != want.Category || have.Product != want.Product {
			if unsent(have.State) {
				want.UpdatedAt = time.Now()
				row = want
				return tx.PutDrive(want)
			}
			// Core must never see an id with another product (contract 05 section C, rule 1).
			return fmt.Errorf("drive %s belongs to category %s and stays there", have.Path, have.Category)
		}
		if have.Member != want.Member && !unsent(have.State) {
			return fmt.Errorf("drive %s is registered for %q and cannot become that of %q", have.Path, have.Member, want.Member)
		}
		if unsent(have.State) && (have.Member != want.Member || have.Title != want.Title || have.ReadOnly != want.ReadOnly || have.Locator != want.Locator) {
			row.Title, row.ReadOnly, row.Locator, row.Member = want.Title, want.ReadOnly, want.Locator, want.Member
			return tx.PutDrive(row)
		}
		return nil
	})
	return row, err
}

// unsent tells whether Core cannot know about a drive in this state.
func unsent(s store.DriveState) bool { return s == store.DriveDesired || s == store.DrivePrepared }

// prepare makes sure that the directory is there.
func (p *Planner) prepare(ctx context.Context, l located) error {
	if l.locator.Owned != nil {
		return checkOwned(ctx, l)
	}
	err := checkDirectory(l.root, l.drive.Path)
	if err == nil || !missing(err) || l.locator.Create == nil {
		return err
	}
	d := Directory{Path: l.drive.Path, Root: l.root, Mode: l.locator.Mode, Vars: l.vars}
	if d.Owner, d.Group, err = l.locator.ownership(l.vars); err != nil {
		return err
	}
	if err := l.locator.Create(ctx, d); err != nil {
		return fmt.Errorf("make the directory: %w", err)
	}
	return checkDirectory(l.root, l.drive.Path) // trust nobody, not even the maker
}

// queue marks a drive as prepared and, if all gates are open, puts its registration into the outbox. Both are one
// transaction, so there is never a drive in state registering without its entry.
func (p *Planner) queue(ctx context.Context, id string) error {
	if err := p.at("queue"); err != nil {
		return err
	}
	payload, err := encodePayload(id)
	if err != nil {
		return err
	}
	return p.o.Store.Update(ctx, func(tx *store.Tx) error {
		d, err := tx.Drive(id)
		if err != nil || !unsent(d.State) {
			return err
		}
		why, err := p.gate(tx, d)
		if err != nil {
			return err
		}
		d.State, d.LastError, d.UpdatedAt = store.DrivePrepared, why, time.Now()
		if why == "" {
			d.State = store.DriveRegistering
			if _, err := tx.Enqueue(KindRegister, outboxKey(id), payload, d.UpdatedAt); err != nil {
				return err
			}
		}
		return tx.PutDrive(d)
	})
}

// gate tells why a drive must not be registered now, in words; empty means that it may (contract 05 section C, rules 1
// and 2). Whoever opens a gate calls Changed or ChangedAll, so a closed one is nothing to wait for actively.
func (p *Planner) gate(tx *store.Tx, d store.Drive) (why string, err error) {
	ref, ok := p.o.Products.Reference(d.Category)
	switch {
	case !ok || ref.ID != d.Product:
		return "the product is not in the configuration", nil
	case !p.o.Products.Declared(d.Category):
		return "Core has not accepted the product yet", nil
	}
	if d.Owner.IsProject() {
		if _, err := tx.Project(d.Owner.Project); errors.Is(err, store.ErrNotFound) {
			return "Core has not named the project yet", nil
		} else if err != nil || d.Member == "" {
			return "", err
		}
	}
	user := d.Owner.User
	if d.Member != "" {
		user = d.Member
	}
	seen, err := tx.UserSeen(user)
	if err == nil && !seen {
		why = "Core has not named the user yet"
	}
	return why, err
}

// remember notes why a drive does not advance, for operators.
func (p *Planner) remember(ctx context.Context, id string, why error) {
	err := p.o.Store.Update(ctx, func(tx *store.Tx) error {
		d, err := tx.Drive(id)
		if err != nil || !unsent(d.State) || (d.State == store.DriveDesired && d.LastError == why.Error()) {
			return err
		}
		d.State, d.LastError, d.UpdatedAt = store.DriveDesired, why.Error(), time.Now()
		return tx.PutDrive(d)
	})
	if err != nil && ctx.Err() == nil {
		p.log.Error("the state of a drive cannot be stored", "error", err)
	}
}

// forget removes drives that are no longer wanted and that Core cannot know: a mapping or locator changed before their
// directory appeared. Drives that Core knows or may know stay.
func (p *Planner) forget(ctx context.Context, owner ident.Owner, wanted map[string]bool) error {
	var stale bool
	err := p.o.Store.View(ctx, func(tx *store.Tx) error {
		rows, err := tx.DrivesOf(owner)
		stale = false
		for _, d := range rows {
			stale = stale || (unsent(d.State) && !wanted[d.ProviderGeneratedID])
		}
		return err
	})
	if err != nil || !stale {
		return err
	}
	return p.o.Store.Update(ctx, func(tx *store.Tx) error {
		rows, err := tx.DrivesOf(owner)
		if err != nil {
			return err
		}
		for _, d := range rows {
			if unsent(d.State) && !wanted[d.ProviderGeneratedID] {
				if err := tx.DeleteDrive(d.ProviderGeneratedID); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func (p *Planner) at(step string) error {
	if p.fault == nil {
		return nil
	}
	return p.fault(step)
}
