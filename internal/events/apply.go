package events

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"ucloud-im/internal/events/eventwire"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

// Change says what is different in the database after events were stored. Nothing in it is more than a hint where to
// look: whoever is told compares desired with actual state.
type Change struct {
	Owners     []ident.Owner   // whose wallets changed, the projects in Projects included
	Projects   []ProjectChange // that are new or changed
	Categories []string        // that Core has described
}

// ProjectChange names a project and how its members differ from what was stored before.
type ProjectChange struct {
	ID             ident.ProjectID
	Added, Removed []ident.UCloudUser
}

// changeSet collects changes of several transactions.
type changeSet struct {
	owners     map[ident.Owner]bool
	projects   map[ident.ProjectID]map[ident.UCloudUser]bool // true: added, false: removed
	categories map[string]bool
}

func newChangeSet() changeSet {
	return changeSet{
		owners: map[ident.Owner]bool{}, projects: map[ident.ProjectID]map[ident.UCloudUser]bool{},
		categories: map[string]bool{},
	}
}

func (c changeSet) empty() bool {
	return len(c.owners) == 0 && len(c.projects) == 0 && len(c.categories) == 0
}

// merge adds later, the last word about a member being the later one.
func (c changeSet) merge(later changeSet) {
	maps.Copy(c.owners, later.owners)
	maps.Copy(c.categories, later.categories)
	for id, members := range later.projects {
		if c.projects[id] == nil {
			c.projects[id] = map[ident.UCloudUser]bool{}
		}
		maps.Copy(c.projects[id], members)
	}
}

// change is the set in a stable order.
func (c changeSet) change() Change {
	var out Change
	for o := range c.owners {
		out.Owners = append(out.Owners, o)
	}
	slices.SortFunc(out.Owners, func(a, b ident.Owner) int {
		return cmp.Or(strings.Compare(string(a.User), string(b.User)), strings.Compare(string(a.Project), string(b.Project)))
	})
	for id, members := range c.projects {
		p := ProjectChange{ID: id}
		for u, added := range members {
			if added {
				p.Added = append(p.Added, u)
			} else {
				p.Removed = append(p.Removed, u)
			}
		}
		slices.Sort(p.Added)
		slices.Sort(p.Removed)
		out.Projects = append(out.Projects, p)
	}
	slices.SortFunc(out.Projects, func(a, b ProjectChange) int { return strings.Compare(string(a.ID), string(b.ID)) })
	out.Categories = slices.Sorted(maps.Keys(c.categories))
	return out
}

// references are the numbers that Core has introduced in a session. Users, projects and categories are three separate
// spaces (contract 31 section 3).
type references struct {
	provider   string // our id; categories of others are refused
	log        *slog.Logger
	users      map[uint32]ident.UCloudUser // empty name: one that cannot be used
	noted      map[ident.UCloudUser]bool   // handed to the database in this session
	projects   map[uint32]projectRef       // empty id: one that cannot be used
	categories map[uint32]string
}

type projectRef struct {
	id        ident.ProjectID
	allocator bool // hands resources out and never uses them
}

func newReferences(provider string, log *slog.Logger) *references {
	return &references{
		provider: provider, log: log,
		users: map[uint32]ident.UCloudUser{}, noted: map[ident.UCloudUser]bool{}, projects: map[uint32]projectRef{}, categories: map[uint32]string{},
	}
}

// batch is what is to be stored of one or several messages, with references resolved.
type batch struct {
	users   []ident.UCloudUser // named by Core
	ops     []any              // store.Project, store.Wallet or providerapi.ProductCategory, in the order received
	newest  time.Time          // greatest time stamp of Core's; zero if there is none
	records int
}

// resolve turns records into what is to be stored, in order, and adds it to b. A wallet whose reference was never
// introduced is an error: we and Core no longer speak of the same things.
func (r *references) resolve(b *batch, records []eventwire.Record) error {
	for _, rec := range records {
		b.records++
		switch rec := rec.(type) {
		case eventwire.User:
			name, err := ident.ParseUCloudUser(rec.Username)
			if err != nil {
				r.log.Warn("Core named a user that cannot exist here; wallets of it are left out", "error", err)
			} else {
				r.see(b, name)
			}
			r.users[rec.Ref] = name
		case eventwire.Project:
			r.project(b, rec)
		case eventwire.Category:
			c := rec.Category
			if c.Name == "" || (r.provider != "" && c.Provider != r.provider) {
				return fmt.Errorf("%w: category %q of provider %q", eventwire.ErrProtocol, c.Name, c.Provider)
			}
			r.categories[rec.Ref] = c.Name
			b.ops = append(b.ops, c)
		case eventwire.Wallet:
			if err := r.wallet(b, rec); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *references) project(b *batch, rec eventwire.Project) {
	p := rec.Project
	if !usableProjectID(p.ID) {
		r.log.Warn("Core named a project that cannot exist here; wallets of it are left out", "project", string(p.ID))
		r.projects[rec.Ref] = projectRef{}
		return
	}
	// A member that cannot be a user here can never be mapped; without it the others keep their access.
	p.Status.Members = slices.DeleteFunc(slices.Clone(p.Status.Members), func(m providerapi.ProjectMember) bool {
		_, err := ident.ParseUCloudUser(string(m.Username))
		if err != nil {
			r.log.Warn("a member of a project is left out", "project", string(p.ID), "error", err)
		}
		return err != nil
	})
	for _, m := range p.Status.Members {
		r.see(b, m.Username)
	}
	r.projects[rec.Ref] = projectRef{id: p.ID, allocator: !p.Specification.CanConsumeResources}
	b.ops = append(b.ops, store.Project{ID: p.ID, ModifiedAt: rec.ModifiedAt.Time(), Document: p})
	b.saw(rec.ModifiedAt)
}

// see notes a user, once in a session: if the note is not stored, the session is over.
func (r *references) see(b *batch, u ident.UCloudUser) {
	if !r.noted[u] {
		r.noted[u] = true
		b.users = append(b.users, u)
	}
}

func usableProjectID(id ident.ProjectID) bool {
	_, err := ident.ParseUCloudUser(string(id)) // the same rules: bounded, UTF-8, no control characters
	return err == nil
}

func (r *references) wallet(b *batch, rec eventwire.Wallet) error {
	category, ok := r.categories[rec.Category]
	if !ok {
		return fmt.Errorf("%w: wallet refers to unknown category %d", eventwire.ErrProtocol, rec.Category)
	}
	w := store.Wallet{
		Category: category, CombinedQuota: rec.CombinedQuota, TotalUsage: rec.TotalUsage, RetiredUsage: rec.RetiredUsage,
		Locked: rec.Locked, LastUpdate: rec.LastUpdate.Time(),
	}
	if rec.IsProject {
		p, ok := r.projects[rec.Workspace]
		if !ok {
			return fmt.Errorf("%w: wallet refers to unknown project %d", eventwire.ErrProtocol, rec.Workspace)
		}
		w.Owner.Project, w.IsAllocator = p.id, p.allocator
	} else {
		u, ok := r.users[rec.Workspace]
		if !ok {
			return fmt.Errorf("%w: wallet refers to unknown user %d", eventwire.ErrProtocol, rec.Workspace)
		}
		w.Owner.User = u
	}
	b.saw(rec.LastUpdate)
	if w.Owner.Valid() {
		b.ops = append(b.ops, w)
	}
	return nil
}

func (b *batch) saw(t providerapi.Millis) {
	if t > 0 && t.Time().After(b.newest) {
		b.newest = t.Time()
	}
}

// write stores the batch. It has no effect but through tx, which may run it more than once.
func (b *batch) write(tx *store.Tx, now time.Time) (changeSet, error) {
	changes := newChangeSet()
	for _, u := range b.users {
		if err := tx.SeeUser(u, now); err != nil {
			return changes, err
		}
	}
	for _, op := range b.ops {
		var err error
		switch op := op.(type) {
		case store.Project:
			err = writeProject(tx, op, changes)
		case providerapi.ProductCategory:
			changes.categories[op.Name] = true
			err = tx.PutCategory(op.Name, op)
		case store.Wallet:
			var changed bool
			if changed, err = tx.PutWallet(op); changed {
				changes.owners[op.Owner] = true
			}
		}
		if err != nil {
			return changes, err
		}
	}
	return changes, nil
}

func writeProject(tx *store.Tx, p store.Project, changes changeSet) error {
	changed, previous, err := tx.PutProject(p)
	if err != nil || !changed {
		return err
	}
	members := map[ident.UCloudUser]bool{}
	for _, m := range p.Document.Status.Members {
		members[m.Username] = true
	}
	if previous != nil {
		for _, m := range previous.Document.Status.Members {
			if members[m.Username] {
				delete(members, m.Username) // was there, is there
			} else {
				members[m.Username] = false
			}
		}
	}
	one := newChangeSet()
	one.projects[p.ID] = members
	one.owners[ident.Owner{Project: p.ID}] = true
	changes.merge(one)

	// A project can become an allocator, or cease to be one, without an update of its wallets.
	wallets, err := tx.WalletsOf(ident.Owner{Project: p.ID})
	if err != nil {
		return err
	}
	for _, w := range wallets {
		if allocator := !p.Document.Specification.CanConsumeResources; w.IsAllocator != allocator {
			w.IsAllocator = allocator
			if _, err := tx.PutWallet(w); err != nil {
				return err
			}
		}
	}
	return nil
}
