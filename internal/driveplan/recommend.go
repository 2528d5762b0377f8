package driveplan

import (
	"context"
	"errors"
	"fmt"

	"ucloud-im/internal/store"
)

// Recommendation says what the directory of a drive should be like (contract 12 section 4), and whose it is on this
// machine.
type Recommendation struct {
	Owner, Group string // names; empty if the configuration has none
	Mode         uint32 // permission bits
	Vars         Vars   // what is known about the owner
}

// ErrNoLocator tells that the locator of a drive is not configured any more.
var ErrNoLocator = errors.New("the locator of the drive is not configured")

// Recommend gives the recommendation for a drive, which may be one that is registered already.
func (p *Planner) Recommend(ctx context.Context, d store.Drive) (Recommendation, error) {
	l := p.locatorOf(d)
	if l == nil {
		return Recommendation{}, ErrNoLocator
	}
	var project *store.Project
	if d.Owner.IsProject() {
		err := p.o.Store.View(ctx, func(tx *store.Tx) error {
			project = nil
			doc, err := tx.Project(d.Owner.Project)
			if errors.Is(err, store.ErrNotFound) {
				return nil
			}
			project = &doc
			return err
		})
		if err != nil {
			return Recommendation{}, fmt.Errorf("read the project of a drive: %w", err)
		}
	}
	vars, err := Variables(ctx, p.o.Accounts, d.Owner, project)
	if err != nil {
		return Recommendation{}, err
	}
	if d.Member != "" {
		if err := memberVariables(ctx, p.o.Accounts, d.Member, vars); err != nil {
			return Recommendation{}, err
		}
	}
	vars[VarLocatorName], vars[VarCategoryName], vars[VarProviderID] = l.Name, d.Category, p.o.Provider
	r := Recommendation{Mode: l.Mode, Vars: vars}
	r.Owner, r.Group, err = l.ownership(vars)
	return r, err
}

// locatorOf is the locator that has made a drive; nil if it is not configured any more.
func (p *Planner) locatorOf(d store.Drive) *Locator {
	p.mu.Lock()
	categories := p.categories
	p.mu.Unlock()
	for _, c := range categories {
		for i := range c.Locators {
			if c.Name == d.Category && c.Locators[i].Name == d.Locator {
				return &c.Locators[i]
			}
		}
	}
	return nil
}

// ownership expands the names of owner and group.
func (l *Locator) ownership(vars Vars) (owner, group string, err error) {
	for _, part := range []struct {
		into *string
		from func(Vars) (string, error)
	}{{&owner, l.Owner}, {&group, l.Group}} {
		if part.from == nil {
			continue
		}
		name, err := part.from(vars)
		if err != nil {
			return "", "", fmt.Errorf("ownership: %w", err)
		}
		*part.into = name
	}
	return owner, group, nil
}
