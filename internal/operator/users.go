package operator

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/launcher"
	"ucloud-im/internal/store"
	"ucloud-im/internal/usermap"
)

// checkParallel is how many accounts of a list are looked up at a time; each may be a name service query.
const checkParallel = 4

func (s *Service) userList(ctx context.Context, _ *ipc.Request, req ipcapi.UserListRequest, send func(ipcapi.UserPage, ...*os.File) error) error {
	mappings, err := s.o.Users.Mappings(ctx)
	if err != nil {
		return err
	}
	running := s.running()
	infos := make([]ipcapi.UserInfo, len(mappings))
	var g errgroup.Group
	g.SetLimit(checkParallel)
	for i, m := range mappings {
		infos[i] = userInfo(m, running)
		if req.Check && ctx.Err() == nil {
			g.Go(func() error { s.examine(ctx, &infos[i]); return nil })
		}
	}
	_ = g.Wait() // the functions do not fail
	return sendPages(infos, func(p []ipcapi.UserInfo) ipcapi.UserPage { return ipcapi.UserPage{Items: p} }, send)
}

// running are the instances by user.
func (s *Service) running() map[ident.UCloudUser]launcher.Info {
	out := make(map[ident.UCloudUser]launcher.Info)
	for _, i := range s.o.Instances.List() {
		out[i.User] = i
	}
	return out
}

func userInfo(m store.Mapping, running map[ident.UCloudUser]launcher.Info) ipcapi.UserInfo {
	info := ipcapi.UserInfo{
		User: m.User, LocalName: m.LocalName, UID: m.UID, State: string(m.State), Method: m.Method,
		ConnectedAt: m.ApprovedAt, ExpiresAt: m.ExpiresAt, LastSeenAt: m.LastSeenAt,
	}
	if i, ok := running[m.User]; ok && i.PID != 0 {
		info.Instance = ipcapi.UserInstance{Running: true, Port: i.Port, IdleSeconds: int64(i.Idle / time.Second)}
	}
	return info
}

// examine looks at the account of an active mapping. A broken one is shown as such.
func (s *Service) examine(ctx context.Context, info *ipcapi.UserInfo) {
	if info.State != string(store.MappingActive) {
		return
	}
	if _, err := s.o.Users.Resolve(ctx, info.User); err != nil {
		info.State, info.Problem = ipcapi.StateBroken, failure.Why(err)
	}
}

func (s *Service) userShow(ctx context.Context, _ *ipc.Request, req ipcapi.UserRef) (d ipcapi.UserDetails, err error) {
	m, err := s.o.Users.Mapping(ctx, req.User)
	if err != nil {
		return d, err
	}
	s.o.Instances.Refresh(ctx)
	d.UserInfo = userInfo(m, s.running())
	d.By, d.CreatedAt = m.By, m.CreatedAt
	a, err := s.o.Users.Resolve(ctx, m.User)
	switch {
	case m.State != store.MappingActive:
		d.Launchable = "The connection is " + string(m.State)
	case err != nil:
		d.Launchable, d.State = failure.Why(err), ipcapi.StateBroken
		d.Problem = d.Launchable
	default:
		d.Home, d.Shell, d.Group = a.Home, a.Shell, a.PrimaryGroup
	}
	d.Drives, d.QueuedSteps, d.LastError, err = s.belongings(ctx, m.User)
	if err != nil {
		return d, err
	}
	if i, ok := s.instance(m.User); ok {
		d.Process = &i
	}
	return d, nil
}

// belongings are a user's personal drives, and the deliveries about the connection that are not done yet.
func (s *Service) belongings(ctx context.Context, user ident.UCloudUser) (drives []ipcapi.DriveInfo, queued int, lastErr string, err error) {
	err = s.o.Store.View(ctx, func(tx *store.Tx) error {
		drives, queued, lastErr = []ipcapi.DriveInfo{}, 0, ""
		ds, err := tx.DrivesOf(ident.Owner{User: user})
		if err != nil {
			return err
		}
		for _, d := range ds {
			drives = append(drives, driveInfo(d))
		}
		entries, err := tx.OutboxAll()
		for _, e := range entries {
			if usermap.DeliveryOf(e, user) {
				queued, lastErr = queued+1, e.LastError
			}
		}
		return err
	})
	return drives, queued, lastErr, err
}

// future refuses an expiry that has passed.
func (s *Service) future(at *time.Time) error {
	if at != nil && !at.After(s.o.Now()) {
		return failure.New(failure.Invalid, "The time of expiry has passed already")
	}
	return nil
}

func (s *Service) userAdd(ctx context.Context, r *ipc.Request, req ipcapi.UserAddition) (res ipcapi.LinkResult, err error) {
	defer func() {
		s.audit(r, "user.add", err, slog.String("user", text(string(req.User))), slog.String("local", text(req.Local)),
			slog.Bool("noApprove", req.NoApprove), slog.String("reason", text(req.Reason)), slog.Bool("dryRun", req.DryRun))
	}()
	if _, err := ident.ParseUCloudUser(string(req.User)); err != nil {
		return res, failure.Wrap(err, failure.Invalid, "This cannot be a UCloud user name")
	}
	if err := s.future(req.ExpiresAt); err != nil {
		return res, err
	}
	m, err := s.o.Users.Link(ctx, usermap.Link{
		User: req.User, Local: req.Local, Method: usermap.MethodOperator, By: by(r), ExpiresAt: req.ExpiresAt,
		NoApprove: req.NoApprove, DryRun: req.DryRun,
	})
	if err != nil {
		return res, refused(err)
	}
	return s.linked(ctx, m, req.WaitMs, req.DryRun), nil
}

func (s *Service) userExpire(ctx context.Context, r *ipc.Request, req ipcapi.UserMutation) (ipcapi.MutationReport, error) {
	return s.mutateUsers(r, "user.expire", req, func(t ipcapi.UserTarget) error {
		return s.o.Users.Expire(ctx, t.User, &t.UID, reasonOf("ended by an operator", req.Reason), req.DryRun)
	}), nil
}

func (s *Service) userRemove(ctx context.Context, r *ipc.Request, req ipcapi.UserMutation) (ipcapi.MutationReport, error) {
	return s.mutateUsers(r, "user.remove", req, func(t ipcapi.UserTarget) error {
		return s.o.Users.Remove(ctx, t.User, &t.UID, req.Purge, reasonOf("removed by an operator", req.Reason), req.DryRun)
	}), nil
}

func (s *Service) mutateUsers(r *ipc.Request, action string, req ipcapi.UserMutation, do func(ipcapi.UserTarget) error) ipcapi.MutationReport {
	return each(req.Targets, func(t ipcapi.UserTarget) string { return string(t.User) }, func(t ipcapi.UserTarget) (string, error) {
		err := do(t)
		s.audit(r, action, err, slog.String("user", text(string(t.User))), slog.Uint64("uid", uint64(t.UID)), slog.Bool("purge", req.Purge),
			slog.String("reason", text(req.Reason)), slog.Bool("dryRun", req.DryRun))
		return ipcapi.ResultOK, err
	})
}

func reasonOf(what, given string) string {
	if given = text(given); given == "" {
		return what
	}
	return fmt.Sprintf("%s: %s", what, given)
}

// stopPatience is how long an answer waits for the end of an instance. Most end at once.
const stopPatience = 15 * time.Second

// userChange gives a user another account.
func (s *Service) userChange(ctx context.Context, r *ipc.Request, req ipcapi.UserAccountChange) (res ipcapi.UserAccountChanged, err error) {
	defer func() {
		s.audit(r, "user.change", err, slog.String("user", text(string(req.User))), slog.Uint64("uid", uint64(req.UID)),
			slog.String("local", text(req.Local)), slog.String("reason", text(req.Reason)), slog.Bool("dryRun", req.DryRun))
	}()
	was, now, err := s.o.Users.Change(ctx, usermap.Change{
		User: req.User, UID: req.UID, Local: req.Local, By: by(r), Reason: reasonOf("given another account by an operator", req.Reason), DryRun: req.DryRun,
	})
	if err != nil {
		return res, refused(err)
	}
	res = ipcapi.UserAccountChanged{
		User: was.User, OldUID: was.UID, OldLocalName: was.LocalName, UID: now.UID, LocalName: now.LocalName, State: string(now.State),
	}
	if !req.DryRun {
		// It is ended beside this as well. Waiting makes the answer true.
		ctx, cancel := context.WithTimeout(ctx, stopPatience)
		defer cancel()
		res.Ending = s.o.Instances.StopUser(ctx, req.User, "your local account was changed") != nil
	}
	return res, nil
}
