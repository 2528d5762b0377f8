package operator

import (
	"context"
	"log/slog"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/store"
)

// meShow tells a local user about themselves. The uid is the kernel's.
func (s *Service) meShow(ctx context.Context, r *ipc.Request, _ ipcapi.Empty) (ipcapi.Me, error) {
	me := ipcapi.Me{
		UID: r.Peer.UID(), State: "none", Provider: s.o.Provider, Page: s.o.UCloudPublic, Drives: []ipcapi.DriveInfo{},
	}
	if a, err := s.o.Users.Check(ctx, me.UID.String()); err != nil {
		me.Launchable = failure.Why(err)
	} else {
		me.LocalName = a.Name
	}
	m, err := s.o.Users.MappingOf(ctx, me.UID)
	if failure.Is(err, failure.NotFound) {
		if me.Launchable == "" {
			me.Launchable = "You are not connected to UCloud"
		}
		return me, nil
	}
	if err != nil {
		return me, err
	}
	me.User, me.State, me.LocalName = m.User, string(m.State), m.LocalName
	me.ConnectedAt, me.ExpiresAt = m.ApprovedAt, m.ExpiresAt
	if m.State != store.MappingActive {
		me.Launchable = "Your connection is " + string(m.State)
		return me, nil
	}
	me.Connected = true
	if _, err := s.o.Users.Resolve(ctx, m.User); err != nil {
		me.Launchable = failure.Why(err)
	}
	if me.Drives, _, _, err = s.belongings(ctx, m.User); err != nil {
		return me, err
	}
	if i, ok := s.instance(m.User); ok {
		me.Instance = &i
	}
	return me, nil
}

// meDisconnect ends the caller's own connection, the one of the kernel's uid.
func (s *Service) meDisconnect(ctx context.Context, r *ipc.Request, req ipcapi.MeDisconnection) (_ ipcapi.Empty, err error) {
	defer func() {
		s.audit(r, "me.disconnect", err, slog.String("user", string(r.Grant.User)), slog.String("reason", text(req.Reason)))
	}()
	uid := r.Peer.UID()
	return ipcapi.Empty{}, s.o.Users.Disconnect(ctx, r.Grant.User, uid, reasonOf("disconnected by the user", req.Reason))
}
