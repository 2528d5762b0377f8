package operator

import (
	"context"
	"log/slog"
	"os"
	"time"

	"ucloud-im/internal/driveplan"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/slurmaccounts"
	"ucloud-im/internal/store"
)

// SlurmAccounts is what this package needs of the accounts of Slurm; [slurmaccounts.Service] is the implementation.
type SlurmAccounts interface {
	Overview(ctx context.Context) ([]slurmaccounts.Entry, error)
	Reevaluate(ctx context.Context, owner ident.Owner, category string, dryRun bool) (slurmaccounts.Outcome, error)
	Adopt(ctx context.Context, account string) error
	Evaluate(ctx context.Context, owner ident.Owner, category string) (account string, vars driveplan.Vars, err error)
	Assign(ctx context.Context, owner ident.Owner, category, account string, dryRun bool) (done bool, err error)
	Unassign(ctx context.Context, owner ident.Owner, category string, dryRun bool) (done bool, err error)
	Again(owners ...ident.Owner)
}

func (s *Service) slurmAccountList(ctx context.Context, _ *ipc.Request, _ ipcapi.Empty, send func(ipcapi.SlurmAccountPage, ...*os.File) error) error {
	entries, err := s.o.SlurmAccounts.Overview(ctx)
	if err != nil {
		return err
	}
	local, err := s.localNames(ctx)
	if err != nil {
		return err
	}
	infos := make([]ipcapi.SlurmAccountInfo, len(entries))
	for i, e := range entries {
		infos[i] = slurmAccountInfo(e)
		infos[i].Local = local[e.Owner]
	}
	return sendPages(infos, func(p []ipcapi.SlurmAccountInfo) ipcapi.SlurmAccountPage { return ipcapi.SlurmAccountPage{Items: p} }, send)
}

// localNames are the login names of connected users and the groups of projects.
func (s *Service) localNames(ctx context.Context) (map[ident.Owner]string, error) {
	mappings, err := s.o.Users.Mappings(ctx)
	if err != nil {
		return nil, err
	}
	local := map[ident.Owner]string{}
	for _, m := range mappings {
		if m.State == store.MappingActive {
			local[ident.Owner{User: m.User}] = m.LocalName
		}
	}
	var groups []store.ProjectGroup
	if err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) { groups, err = tx.ProjectGroups(); return err }); err != nil {
		return nil, err
	}
	for _, g := range groups {
		local[ident.Owner{Project: g.Project}] = g.Name
	}
	return local, nil
}

func slurmAccountInfo(e slurmaccounts.Entry) ipcapi.SlurmAccountInfo {
	info := ipcapi.SlurmAccountInfo{
		User: e.Owner.User, Project: e.Owner.Project, Category: e.Category, Account: e.Account, State: ipcapi.SlurmAccountOK, Members: e.Members,
		WantedMinutes: minutes(e.Minutes), WantedLock: e.Locked, AppliedMinutes: minutes(e.AppliedMinutes), AppliedLock: e.AppliedLock,
		AppliedAt: moment(e.AppliedAt), UsedMinutes: e.Used.Minutes, ReportedUnits: e.Used.Report.Units, ReportedAt: moment(e.Used.Report.ReportedAt),
		Problem: e.Problem,
	}
	switch {
	case e.Account == "":
		info.State = ipcapi.SlurmAccountMissing
	case e.Foreign:
		info.State = ipcapi.SlurmAccountForeign
	case e.Problem != "":
		info.State = ipcapi.SlurmAccountDrift
	}
	return info
}

func minutes(n int64) *int64 {
	if n == slurmaccounts.None {
		return nil
	}
	return &n
}

func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func slurmAccountKey(t ipcapi.SlurmAccountTarget) string {
	return ident.Owner{User: t.User, Project: t.Project}.Reference() + "/" + t.Category
}

// changeSlurmAccounts does something to the account of each target, and audits it.
func (s *Service) changeSlurmAccounts(r *ipc.Request, action string, req ipcapi.SlurmAccountMutation, do func(owner ident.Owner, category string) (string, error), more ...slog.Attr) ipcapi.MutationReport {
	return each(req.Targets, slurmAccountKey, func(t ipcapi.SlurmAccountTarget) (status string, err error) {
		owner := ident.Owner{User: t.User, Project: t.Project}
		defer func() {
			s.audit(r, action, err, append([]slog.Attr{
				slog.String("user", text(string(owner.User))), slog.String("project", text(string(owner.Project))),
				slog.String("category", text(t.Category)), slog.String("reason", text(req.Reason)), slog.Bool("dryRun", req.DryRun),
			}, more...)...)
		}()
		if !owner.Valid() {
			return "", failure.New(failure.Invalid, "An owner is exactly one of user and project")
		}
		return do(owner, t.Category)
	})
}

func (s *Service) slurmAccountReevaluate(ctx context.Context, r *ipc.Request, req ipcapi.SlurmAccountMutation) (ipcapi.MutationReport, error) {
	return s.changeSlurmAccounts(r, "slurmaccount.reevaluate", req, func(owner ident.Owner, category string) (string, error) {
		out, err := s.o.SlurmAccounts.Reevaluate(ctx, owner, category, req.DryRun)
		if err == nil && out.Before == out.After {
			return ipcapi.ResultSkipped, nil
		}
		return ipcapi.ResultOK, err
	}), nil
}

func (s *Service) slurmAccountAdopt(ctx context.Context, r *ipc.Request, req ipcapi.SlurmAccountMutation) (ipcapi.MutationReport, error) {
	entries, err := s.o.SlurmAccounts.Overview(ctx)
	if err != nil {
		return ipcapi.MutationReport{}, err
	}
	return s.changeSlurmAccounts(r, "slurmaccount.adopt", req, func(owner ident.Owner, category string) (string, error) {
		for _, e := range entries {
			switch {
			case e.Owner != owner || e.Category != category || e.Account == "":
			case !e.Foreign:
				return ipcapi.ResultSkipped, nil
			case req.DryRun:
				return ipcapi.ResultOK, nil
			default:
				return ipcapi.ResultOK, s.o.SlurmAccounts.Adopt(ctx, e.Account)
			}
		}
		return "", failure.New(failure.NotFound, "This workspace has no Slurm account in the category")
	}), nil
}

// slurmAccountOwner finds the workspace that an operator means: a connected user, a project that Core has described, or
// whoever has an allocation.
func (s *Service) slurmAccountOwner(ctx context.Context, q ipcapi.SlurmAccountOwner) (ident.Owner, error) {
	set := 0
	for _, given := range []bool{q.User != "", q.Project != "", q.Local != "", q.Any != ""} {
		if given {
			set++
		}
	}
	if set != 1 {
		return ident.Owner{}, failure.New(failure.Invalid, "Name exactly one owner: a user, a project or a local name")
	}
	known, err := s.localNames(ctx)
	if err != nil {
		return ident.Owner{}, err
	}
	if err := s.o.Store.View(ctx, func(tx *store.Tx) error {
		projects, err := tx.Projects()
		if err != nil {
			return err
		}
		wallets, err := tx.Wallets()
		for _, p := range projects {
			known[ident.Owner{Project: p.ID}] += ""
		}
		for _, w := range wallets {
			known[w.Owner] += ""
		}
		return err
	}); err != nil {
		return ident.Owner{}, err
	}
	var found []ident.Owner
	for owner, local := range known {
		names := q.Local != "" && local == q.Local || q.Any != "" && local == q.Any
		if names || owner.IsProject() && (owner.Project == q.Project || string(owner.Project) == q.Any) ||
			!owner.IsProject() && (owner.User == q.User || string(owner.User) == q.Any) {
			found = append(found, owner)
		}
	}
	switch len(found) {
	case 0:
		return ident.Owner{}, failure.New(failure.NotFound, "There is no workspace by this name")
	case 1:
		return found[0], nil
	}
	return ident.Owner{}, failure.New(failure.Conflict, "The name is that of %d workspaces: name the user or the project by its UCloud name or id", len(found))
}

func (s *Service) slurmAccountAdd(ctx context.Context, r *ipc.Request, req ipcapi.SlurmAccountAddition) (ipcapi.MutationReport, error) {
	owner, err := s.slurmAccountOwner(ctx, req.Owner)
	if err != nil {
		return ipcapi.MutationReport{}, err
	}
	return s.changeSlurmAccounts(r, "slurmaccount.add", ipcapi.SlurmAccountMutation{
		Targets: []ipcapi.SlurmAccountTarget{{User: owner.User, Project: owner.Project, Category: req.Category}}, Reason: req.Reason, DryRun: req.DryRun,
	}, func(owner ident.Owner, category string) (string, error) {
		return outcome(s.o.SlurmAccounts.Assign(ctx, owner, category, req.Account, req.DryRun))
	}, slog.String("account", text(req.Account))), nil
}

func (s *Service) slurmAccountRemove(ctx context.Context, r *ipc.Request, req ipcapi.SlurmAccountMutation) (ipcapi.MutationReport, error) {
	return s.changeSlurmAccounts(r, "slurmaccount.remove", req, func(owner ident.Owner, category string) (string, error) {
		return outcome(s.o.SlurmAccounts.Unassign(ctx, owner, category, req.DryRun))
	}), nil
}

// outcome is the status of a change that may have had nothing to do.
func outcome(done bool, err error) (string, error) {
	if err == nil && !done {
		return ipcapi.ResultSkipped, nil
	}
	return ipcapi.ResultOK, err
}

func (s *Service) slurmAccountSync(_ context.Context, r *ipc.Request, req ipcapi.SlurmAccountMutation) (ipcapi.MutationReport, error) {
	return s.changeSlurmAccounts(r, "slurmaccount.sync", req, func(owner ident.Owner, _ string) (string, error) {
		if !req.DryRun {
			s.o.SlurmAccounts.Again(owner)
		}
		return ipcapi.ResultOK, nil
	}), nil
}

func (s *Service) slurmAccountEvaluate(ctx context.Context, r *ipc.Request, q ipcapi.SlurmAccountQuestion) (ipcapi.SlurmAccountEvaluation, error) {
	owner, err := s.slurmAccountOwner(ctx, q.Owner)
	if err != nil {
		return ipcapi.SlurmAccountEvaluation{}, err
	}
	account, vars, err := s.o.SlurmAccounts.Evaluate(ctx, owner, q.Category)
	if failure.Is(err, failure.NotFound) {
		return ipcapi.SlurmAccountEvaluation{}, err
	}
	out := ipcapi.SlurmAccountEvaluation{User: owner.User, Project: owner.Project, Category: q.Category, Account: account, Variables: vars}
	if err != nil {
		out.Problem = failure.Why(err)
		s.log.Info("evaluation of an account failed", "byUid", r.Peer.UID(), "owner", owner.Reference(), "category", text(q.Category), "error", err)
	}
	return out, nil
}
