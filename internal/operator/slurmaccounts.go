package operator

import (
	"context"
	"log/slog"
	"os"
	"time"

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
}

func (s *Service) slurmAccountList(ctx context.Context, _ *ipc.Request, _ ipcapi.Empty, send func(ipcapi.SlurmAccountPage, ...*os.File) error) error {
	entries, err := s.o.SlurmAccounts.Overview(ctx)
	if err != nil {
		return err
	}
	mappings, err := s.o.Users.Mappings(ctx)
	if err != nil {
		return err
	}
	local := map[ident.Owner]string{}
	for _, m := range mappings {
		if m.State == store.MappingActive {
			local[ident.Owner{User: m.User}] = m.LocalName
		}
	}
	var groups []store.ProjectGroup
	if err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) { groups, err = tx.ProjectGroups(); return err }); err != nil {
		return err
	}
	for _, g := range groups {
		local[ident.Owner{Project: g.Project}] = g.Name
	}
	infos := make([]ipcapi.SlurmAccountInfo, len(entries))
	for i, e := range entries {
		infos[i] = slurmAccountInfo(e)
		infos[i].Local = local[e.Owner]
	}
	return sendPages(infos, func(p []ipcapi.SlurmAccountInfo) ipcapi.SlurmAccountPage { return ipcapi.SlurmAccountPage{Items: p} }, send)
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
func (s *Service) changeSlurmAccounts(r *ipc.Request, action string, req ipcapi.SlurmAccountMutation, do func(owner ident.Owner, category string) (string, error)) ipcapi.MutationReport {
	return each(req.Targets, slurmAccountKey, func(t ipcapi.SlurmAccountTarget) (status string, err error) {
		owner := ident.Owner{User: t.User, Project: t.Project}
		defer func() {
			s.audit(r, action, err, slog.String("user", text(string(owner.User))), slog.String("project", text(string(owner.Project))),
				slog.String("category", text(t.Category)), slog.String("reason", text(req.Reason)), slog.Bool("dryRun", req.DryRun))
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
