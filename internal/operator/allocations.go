package operator

import (
	"cmp"
	"context"
	"log/slog"
	"os"
	"slices"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/store"
)

// walletKey names an allocation.
type walletKey struct {
	owner    ident.Owner
	category string
}

func (s *Service) allocationList(ctx context.Context, _ *ipc.Request, _ ipcapi.Empty, send func(ipcapi.AllocationPage, ...*os.File) error) error {
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
	var infos []ipcapi.AllocationInfo
	if err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) { infos, err = allocations(tx, local, s.units()); return err }); err != nil {
		return err
	}
	return sendPages(infos, func(p []ipcapi.AllocationInfo) ipcapi.AllocationPage { return ipcapi.AllocationPage{Items: p} }, send)
}

func (s *Service) units() map[string]string {
	if s.o.Units == nil {
		return nil
	}
	return s.o.Units()
}

// allocations joins what Core has said with what was made of it.
func allocations(tx *store.Tx, local map[ident.Owner]string, units map[string]string) ([]ipcapi.AllocationInfo, error) {
	wallets, err := tx.Wallets()
	if err != nil {
		return nil, err
	}
	drives, err := tx.Drives()
	if err != nil {
		return nil, err
	}
	quotas, err := tx.DriveQuotas()
	if err != nil {
		return nil, err
	}
	reports, err := tx.UsageReports()
	if err != nil {
		return nil, err
	}
	machines, err := tx.ComputeUsages()
	if err != nil {
		return nil, err
	}
	groups, err := tx.ProjectGroups()
	if err != nil {
		return nil, err
	}
	for _, g := range groups {
		local[ident.Owner{Project: g.Project}] = g.Name
	}
	byDrive := map[string]store.DriveQuota{}
	for _, q := range quotas {
		byDrive[q.ProviderGeneratedID] = q
	}
	reported := map[walletKey]int64{}
	for _, r := range reports {
		reported[walletKey{r.Owner, r.Category}] += r.Units
	}
	for _, u := range machines {
		reported[walletKey{u.Owner, u.Category}] += u.Report.Units
	}
	of := map[walletKey][]store.Drive{}
	for _, d := range drives {
		key := walletKey{d.Owner, d.Category}
		of[key] = append(of[key], d)
	}
	infos := make([]ipcapi.AllocationInfo, 0, len(wallets))
	for _, w := range wallets {
		key := walletKey{w.Owner, w.Category}
		info := ipcapi.AllocationInfo{
			User: w.Owner.User, Project: w.Owner.Project, Local: local[w.Owner], Category: w.Category, Unit: units[w.Category],
			Quota: w.CombinedQuota, Used: max(w.TotalUsage, reported[key]), Locked: w.Locked, Allocator: w.IsAllocator,
			UpdatedAt: w.LastUpdate, Drives: len(of[key]),
		}
		if info.Quota > 0 {
			info.Percent = int(min(float64(info.Used)/float64(info.Quota)*100, 1e6))
		}
		for _, d := range of[key] {
			q, ok := byDrive[d.ProviderGeneratedID]
			if !ok {
				continue
			}
			if q.Attempts > 0 && q.LastError != "" {
				info.Problem = q.LastError
			}
			if at := q.AppliedAt; !at.IsZero() && (info.AppliedAt == nil || at.Before(*info.AppliedAt)) {
				bytes := q.Bytes
				info.AppliedAt, info.AppliedBytes = &at, &bytes
			}
		}
		infos = append(infos, info)
	}
	slices.SortFunc(infos, func(a, b ipcapi.AllocationInfo) int {
		return cmp.Or(cmp.Compare(a.Category, b.Category), cmp.Compare(a.Project, b.Project), cmp.Compare(a.User, b.User))
	})
	return infos, nil
}

func (s *Service) allocationApply(ctx context.Context, r *ipc.Request, req ipcapi.AllocationMutation) (ipcapi.MutationReport, error) {
	return each(req.Targets, func(t ipcapi.AllocationTarget) string { return ident.Owner(t).Reference() }, func(t ipcapi.AllocationTarget) (status string, err error) {
		owner := ident.Owner(t)
		defer func() {
			s.audit(r, "allocation.apply", err, slog.String("user", text(string(owner.User))), slog.String("project", text(string(owner.Project))),
				slog.String("reason", text(req.Reason)), slog.Bool("dryRun", req.DryRun))
		}()
		if !owner.Valid() {
			return "", failure.New(failure.Invalid, "An owner is exactly one of user and project")
		}
		var wallets []store.Wallet
		err = s.o.Store.View(ctx, func(tx *store.Tx) (err error) { wallets, err = tx.WalletsOf(owner); return err })
		switch {
		case err != nil:
			return "", err
		case len(wallets) == 0:
			return "", failure.New(failure.NotFound, "UCloud has not told us about an allocation of this owner")
		case s.o.Apply == nil:
			return ipcapi.ResultSkipped, nil
		case !req.DryRun:
			s.o.Apply(owner)
		}
		return ipcapi.ResultOK, nil
	}), nil
}
