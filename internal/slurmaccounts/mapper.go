package slurmaccounts

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"ucloud-im/internal/driveplan"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/store"
)

// Variables of a mapper beside those of locators (contract 22 section 3, both the documented and the real ones).
const (
	varProductCategory = "productCategory"
	varPartition       = "partition"
	varQoS             = "qos"
	varEntityType      = "entityType"
)

// Account is the Slurm account that a user's job in a workspace is charged to. choice is what the user chose; it counts
// only where the choice is the user's. user must have been found to be the owner, or a member of the project. Errors are
// for the user to read.
func (s *Service) Account(ctx context.Context, owner ident.Owner, user ident.UCloudUser, category, choice string) (string, error) {
	set := s.current()
	c, ok := set.category(category)
	if !ok {
		return "", failure.New(failure.Invalid, "There is no machine type %q at this provider", category)
	}
	stored, project, err := s.stored(ctx, owner, category)
	if err != nil {
		return "", err
	}
	if stored != "" {
		return stored, s.ready(ctx, set, stored)
	}
	if set.Mapping.choice() || personal(project, s.o.Provider) {
		return s.chosen(ctx, user, category, choice)
	}
	name, err := s.mapped(ctx, set, owner, project, c)
	if err != nil {
		return "", missing(err, category)
	}
	if name == "" {
		return "", failure.New(failure.Invalid, "The workspace has no Slurm account in category %s: the provider gives it none. Ask the provider's support.", category)
	}
	if name, err = s.keep(ctx, owner, category, name); err != nil {
		return "", err
	}
	return name, s.ready(ctx, set, name)
}

const (
	// readyWithin is how long a job waits for an account that is being made; Core gives up after 5 s.
	readyWithin = 3 * time.Second
	readyPause  = 50 * time.Millisecond
)

// ready waits until an account that is new has been made in Slurm. What is not as it should be for another reason is for
// Slurm to judge. A product that is free to use has no allocation, so that its account is made by the first job.
func (s *Service) ready(ctx context.Context, set *Settings, account string) error {
	if set.Management.Type != Automatic {
		return nil
	}
	for deadline := time.Now().Add(readyWithin); ; {
		var w store.SlurmWork
		err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) { w, err = tx.SlurmWork("account/" + account); return ignoreMissing(err) })
		if err != nil || !w.AppliedAt.IsZero() || w.Attempts > 0 {
			return err
		}
		if time.Now().After(deadline) {
			return failure.New(failure.Invalid, "Your Slurm account %s is being made. Try again in a minute.", account)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(readyPause):
		}
	}
}

// missing gives an error the sentence that users see.
func missing(err error, category string) error {
	why := ""
	if e, ok := errors.AsType[*scripts.Error](err); ok {
		if why = e.UserMessage; why == "" {
			why = "the provider's script failed. Try again later, or ask the provider's support"
		}
	} else if e, ok := errors.AsType[*failure.Error](err); ok {
		why = e.Why
	}
	kind := failure.KindOf(err)
	if kind == failure.Internal && why != "" {
		kind = failure.Invalid
	}
	if why == "" {
		why = "it cannot be found out at present"
	}
	return failure.Wrap(err, kind, "The workspace has no Slurm account in category %s: %s", category, why)
}

// stored is the account of a workspace on record, if there is one, and the workspace's project, if Core has described one.
func (s *Service) stored(ctx context.Context, owner ident.Owner, category string) (account string, project *store.Project, err error) {
	err = s.o.Store.View(ctx, func(tx *store.Tx) error {
		account, project = "", nil
		a, err := tx.SlurmAccount(owner, category)
		if err == nil {
			account = a.Account
		}
		if err = ignoreMissing(err); err != nil || !owner.IsProject() {
			return err
		}
		p, err := tx.Project(owner.Project)
		if err == nil {
			project = &p
		}
		return ignoreMissing(err)
	})
	return account, project, err
}

func ignoreMissing(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// personal tells whether a project is somebody's personal project at this provider, which has no account of its own
// (contract 22 section 3).
func personal(p *store.Project, provider string) bool {
	return p != nil && p.Document.Status.PersonalProviderProjectFor != nil && *p.Document.Status.PersonalProviderProjectFor == provider
}

// mapped asks the mapping. An empty name means that it gives none.
func (s *Service) mapped(ctx context.Context, set *Settings, owner ident.Owner, project *store.Project, c Category) (string, error) {
	vars, err := s.variables(ctx, set, owner, project, c)
	if err != nil {
		return "", err
	}
	return mappedBy(ctx, set, owner, vars)
}

// mappedBy is mapped for callers who have the variables already.
func mappedBy(ctx context.Context, set *Settings, owner ident.Owner, vars driveplan.Vars) (name string, err error) {
	if set.Mapping.Script != nil {
		if name, err = set.Mapping.Script(ctx, owner, vars); err != nil || name == "" {
			return "", err
		}
	} else {
		pattern := set.Mapping.Users
		if owner.IsProject() {
			pattern = set.Mapping.Projects
		}
		if pattern == nil {
			return "", nil
		}
		if name, err = pattern(vars); err != nil {
			return "", failure.Wrap(err, failure.Invalid, "the provider's pattern for accounts needs something that this workspace does not have")
		}
		name = strings.ToLower(name)
	}
	if strings.Contains(name, "#{") {
		return "", failure.New(failure.Invalid, "the name %q still has a placeholder", name)
	}
	return name, CheckName(name)
}

// variables are what a mapping is given. An owner who is not known on this machine is an error: the account that came of
// it would be kept for ever.
func (s *Service) variables(ctx context.Context, set *Settings, owner ident.Owner, project *store.Project, c Category) (driveplan.Vars, error) {
	v, err := driveplan.Variables(ctx, s.o.Accounts, owner, project)
	if err != nil {
		return nil, err
	}
	v[driveplan.VarProviderID], v[driveplan.VarCategoryName], v[varProductCategory] = s.o.Provider, c.Name, c.Name
	v[varPartition], v[varQoS] = c.Partition, c.QoS
	if owner.IsProject() {
		v[varEntityType] = "Project"
		if v[driveplan.VarLocalGroupName] == "" {
			return nil, failure.New(failure.Invalid, "the project has no group at this provider yet")
		}
		return v, nil
	}
	v[varEntityType] = "User"
	if v[driveplan.VarLocalUsername] == "" {
		return nil, failure.New(failure.Invalid, "the user is not connected to this provider")
	}
	if set.Mapping.LocalName {
		v[driveplan.VarUCloudUsername] = v[driveplan.VarLocalUsername]
	}
	return v, nil
}

// keep stores what a mapping has said, unless another evaluation was faster, and has the account made.
func (s *Service) keep(ctx context.Context, owner ident.Owner, category, name string) (string, error) {
	s.evaluating.Lock()
	defer s.evaluating.Unlock()
	err := s.o.Store.Update(ctx, func(tx *store.Tx) error {
		a, err := tx.SlurmAccount(owner, category)
		switch {
		case err == nil:
			name = a.Account
			return nil
		case !errors.Is(err, store.ErrNotFound):
			return err
		}
		return tx.PutSlurmAccount(store.SlurmAccount{Owner: owner, Category: category, Account: name, CreatedAt: time.Now()})
	})
	if errors.Is(err, store.ErrConflict) {
		s.log.Error("two workspaces would share a Slurm account; the second has none", "account", name, "owner", owner.Reference(), "category", category)
		return "", failure.Wrap(err, failure.Conflict, "The workspace has no Slurm account in category %s: the account that it should have belongs to another workspace. Ask the provider's support.", category)
	}
	if err != nil {
		return "", err
	}
	s.Changed(owner)
	return name, nil
}

// chosen takes the user's choice. Slurm itself enforces that the user may use the account.
func (s *Service) chosen(ctx context.Context, user ident.UCloudUser, category, choice string) (string, error) {
	all, err := s.accountsOf(ctx, user)
	if err != nil {
		return "", err
	}
	switch {
	case choice != "" && slices.Contains(all, choice):
		return choice, nil
	case choice != "":
		return "", failure.New(failure.Invalid, "You cannot use the Slurm account %q. %s", choice, have(all))
	case len(all) == 1:
		return all[0], nil
	case len(all) == 0:
		return "", failure.New(failure.Invalid, "The workspace has no Slurm account in category %s: you are in none. Ask the provider's support.", category)
	}
	return "", failure.New(failure.Invalid, "You have several Slurm accounts, and it is not clear which one the job is for. Choose one: %s", strings.Join(all, ", "))
}

func have(all []string) string {
	if len(all) == 0 {
		return "You have none."
	}
	return "You have: " + strings.Join(all, ", ") + "."
}

// noSlurm is the account of all users where jobs run without Slurm. It means nothing.
const noSlurm = "local"

// accountsOf are the accounts that a user is in, as Slurm says.
func (s *Service) accountsOf(ctx context.Context, user ident.UCloudUser) ([]string, error) {
	account, ok, err := s.o.Accounts.LocalAccount(ctx, user)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, failure.New(failure.Forbidden, "You are not connected to this provider")
	}
	if s.o.Cluster == nil {
		return []string{noSlurm}, nil
	}
	all, err := s.o.Cluster.AccountsOf(ctx, account.Name)
	if err != nil {
		return nil, failure.Wrap(err, failure.Unavailable, "Slurm does not tell at present which accounts you have. Try again later.")
	}
	all = slices.DeleteFunc(slices.Clone(all), func(a string) bool { return CheckName(a) != nil })
	slices.Sort(all)
	return slices.Compact(all), nil
}

// Choices are the accounts among which a user may choose in a workspace. mapped: there is nothing to choose, the provider
// knows the account.
func (s *Service) Choices(ctx context.Context, owner ident.Owner, user ident.UCloudUser) (mapped bool, accounts []string, err error) {
	set := s.current()
	if !set.Mapping.choice() {
		var project *store.Project
		if owner.IsProject() {
			err := s.o.Store.View(ctx, func(tx *store.Tx) error {
				p, err := tx.Project(owner.Project)
				if err == nil {
					project = &p
				}
				return ignoreMissing(err)
			})
			if err != nil {
				return false, nil, err
			}
		}
		if !personal(project, s.o.Provider) {
			return true, nil, nil
		}
	}
	accounts, err = s.accountsOf(ctx, user)
	return false, accounts, err
}

// OwnerOf is the reverse: the workspace to which an account belongs in a category. found is false for accounts that are
// not known here.
func (s *Service) OwnerOf(ctx context.Context, account, category string) (owner ident.Owner, found bool, err error) {
	err = s.o.Store.View(ctx, func(tx *store.Tx) error {
		owner, found = ident.Owner{}, false
		all, err := tx.SlurmAccountOwners(account)
		for _, a := range all {
			if a.Category == category {
				owner, found = a.Owner, true
			}
		}
		return err
	})
	return owner, found, err
}
