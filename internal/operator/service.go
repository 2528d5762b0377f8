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
	"ucloud-im/internal/launcher"
	"ucloud-im/internal/store"
)

func (s *Service) version(context.Context, *ipc.Request, ipcapi.Empty) (ipcapi.VersionInfo, error) {
	return s.o.Version, nil
}

func (s *Service) status(ctx context.Context, _ *ipc.Request, _ ipcapi.Empty) (ipcapi.StatusReport, error) {
	rep := s.o.Status(ctx)
	if rep.Health == "" {
		rep.Health = ipcapi.HealthOK
		for _, p := range rep.Parts {
			rep.Health = rep.Health.Worse(p.Health)
		}
	}
	rep.Provider, rep.Version = s.o.Provider, s.o.Version
	return rep, nil
}

func (s *Service) configReload(ctx context.Context, r *ipc.Request, req ipcapi.Reload) (rep ipcapi.ReloadReport, err error) {
	defer func() { s.audit(r, "config.reload", err, slog.Bool("dryRun", req.DryRun)) }()
	if s.o.Reload == nil {
		return rep, failure.New(failure.NotFound, "This server cannot read its configuration again")
	}
	return s.o.Reload(ctx, req.DryRun)
}

func (s *Service) configRunning(context.Context, *ipc.Request, ipcapi.Empty) (ipcapi.RunningConfig, error) {
	if s.o.Running == nil {
		return ipcapi.RunningConfig{}, failure.New(failure.NotFound, "This server cannot show its configuration")
	}
	return s.o.Running()
}

func (s *Service) instanceList(ctx context.Context, _ *ipc.Request, _ ipcapi.Empty, send func(ipcapi.InstancePage, ...*os.File) error) error {
	s.o.Instances.Refresh(ctx)
	list := s.o.Instances.List()
	infos := make([]ipcapi.InstanceInfo, len(list))
	for i, in := range list {
		infos[i] = instanceInfo(in)
	}
	return sendPages(infos, func(p []ipcapi.InstanceInfo) ipcapi.InstancePage { return ipcapi.InstancePage{Items: p} }, send)
}

func instanceInfo(i launcher.Info) ipcapi.InstanceInfo {
	last := i.Reason
	if last == "" && i.PID == 0 {
		last = i.LastOutput
	}
	return ipcapi.InstanceInfo{
		UID: i.UID, LocalName: i.LocalName, User: i.User, State: string(i.State), PID: i.PID, Port: i.Port, StartedAt: i.Since,
		IdleSeconds: int64(i.Idle / time.Second), MemoryBytes: i.MemoryBytes, Requests: i.Requests, Active: i.Active,
		Restarts: i.Crashes, Build: i.Build, LastError: last,
	}
}

// instance is the user's instance, if the launcher knows one.
func (s *Service) instance(user ident.UCloudUser) (ipcapi.InstanceInfo, bool) {
	i, ok := s.running()[user]
	if !ok {
		return ipcapi.InstanceInfo{}, false
	}
	return instanceInfo(i), true
}

func (s *Service) instanceStop(ctx context.Context, r *ipc.Request, req ipcapi.InstanceMutation) (ipcapi.MutationReport, error) {
	reason := reasonOf("stopped by an operator", req.Reason)
	return s.mutateInstances(r, "instance.stop", req, func(u ident.UCloudUser) error {
		return s.o.Instances.StopUser(ctx, u, reason)
	}), nil
}

func (s *Service) instanceRestart(ctx context.Context, r *ipc.Request, req ipcapi.InstanceMutation) (ipcapi.MutationReport, error) {
	return s.mutateInstances(r, "instance.restart", req, func(u ident.UCloudUser) error {
		return s.o.Instances.Restart(ctx, u)
	}), nil
}

func (s *Service) mutateInstances(r *ipc.Request, action string, req ipcapi.InstanceMutation, do func(ident.UCloudUser) error) ipcapi.MutationReport {
	running := s.running()
	return each(req.Users, func(u ident.UCloudUser) string { return string(u) }, func(u ident.UCloudUser) (string, error) {
		if _, ok := running[u]; !ok {
			return ipcapi.ResultSkipped, nil
		}
		var err error
		if !req.DryRun {
			err = do(u)
		}
		s.audit(r, action, err, slog.String("user", text(string(u))), slog.String("reason", text(req.Reason)), slog.Bool("dryRun", req.DryRun))
		return ipcapi.ResultOK, err
	})
}

func (s *Service) driveList(ctx context.Context, _ *ipc.Request, _ ipcapi.Empty, send func(ipcapi.DrivePage, ...*os.File) error) error {
	var infos []ipcapi.DriveInfo
	err := s.o.Store.View(ctx, func(tx *store.Tx) error {
		ds, err := tx.Drives()
		infos = make([]ipcapi.DriveInfo, len(ds))
		if err != nil {
			return err
		}
		usages, err := tx.DriveUsages()
		measured := make(map[string]store.DriveUsage, len(usages))
		for _, u := range usages {
			measured[u.ProviderGeneratedID] = u
		}
		for i, d := range ds {
			infos[i] = driveInfo(d)
			if u, ok := measured[d.ProviderGeneratedID]; ok {
				infos[i].Method, infos[i].UsageError = u.Method, u.LastError
				if !u.MeasuredAt.IsZero() {
					infos[i].UsedBytes, infos[i].MeasuredAt = &u.Bytes, &u.MeasuredAt
				}
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	return sendPages(infos, func(p []ipcapi.DriveInfo) ipcapi.DrivePage { return ipcapi.DrivePage{Items: p} }, send)
}

func driveInfo(d store.Drive) ipcapi.DriveInfo {
	return ipcapi.DriveInfo{
		Key: d.ProviderGeneratedID, ID: d.ID, User: d.Owner.User, Project: d.Owner.Project, Member: d.Member, Title: d.Title,
		Category: d.Category, Product: d.Product, Locator: d.Locator, Path: d.Path, ReadOnly: d.ReadOnly,
		State: string(d.State), LastError: d.LastError, UpdatedAt: d.UpdatedAt,
	}
}

// gatewayDump shows the route table. Who has a route's key can act as its user, so keys are for root alone (contract 41
// section 2).
func (s *Service) gatewayDump(_ context.Context, r *ipc.Request, req ipcapi.GatewayDumpRequest) (state ipcapi.GatewayState, err error) {
	if req.Tokens {
		defer func() { s.audit(r, "gateway.dump.tokens", err) }()
		if !r.Grant.Root {
			return state, failure.New(failure.Forbidden, "Only root may see the keys of routes")
		}
	}
	if s.o.Gateway != nil {
		return s.o.Gateway(req.Tokens)
	}
	if req.Tokens {
		return state, failure.New(failure.NotFound, "This server does not show the keys of routes")
	}
	for _, i := range s.o.Instances.List() {
		state.Routes = append(state.Routes, ipcapi.RouteInfo{User: i.User, UID: i.UID, Port: i.Port, Generation: i.Generation})
	}
	return state, nil
}
