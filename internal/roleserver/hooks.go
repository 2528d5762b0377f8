package roleserver

import (
	"context"
	"time"

	"ucloud-im/internal/config"
	"ucloud-im/internal/events"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/launcher"
	"ucloud-im/internal/operator"
	"ucloud-im/internal/store"
)

// stopTimeout bounds the end of an instance whose user has lost the mapping.
const stopTimeout = 30 * time.Second

// nameTimeout bounds the look-up of a name that only a list wants.
const nameTimeout = 2 * time.Second

// userActive is told that a user's mapping has become active: drives that needed the local name can be made now, and
// Core is asked for everything about the user, which the stream may have dropped before.
func (s *server) userActive(ctx context.Context, user ident.UCloudUser) {
	s.events.ReplayUsers()
	owners := []ident.Owner{{User: user}}
	if err := s.store.View(context.WithoutCancel(ctx), func(tx *store.Tx) error {
		owners = owners[:1]
		projects, err := tx.ProjectsOf(user)
		for _, p := range projects { // which may give each member a drive
			owners = append(owners, ident.Owner{Project: p.ID})
		}
		return err
	}); err != nil {
		s.log.Error("the projects of a new user cannot be read; their drives are looked at later", "user", user, "error", err)
	}
	s.ownersChanged(owners...)
	if err := s.gifts.Connected(context.WithoutCancel(ctx), user); err != nil {
		s.log.Error("the free quota of a user is asked for with the next start", "user", user, "error", err)
	}
}

// userInactive is told that a user's mapping has ended. The call that caused it must be answered quickly, so the
// instance ends beside it. Links, keys and what scripts are told have been ended with it, see [server.mappingEnded].
func (s *server) userInactive(ctx context.Context, user ident.UCloudUser, uid ident.UID, reason string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	s.background.Go(func() {
		defer cancel()
		s.membershipChanged(ctx, user)
		s.interfacesLost(ctx, user)
		if err := s.tasks.UserInactive(ctx, user, uid); err != nil {
			s.log.Error("tasks of a disconnected user were not cancelled, the next start does it", "user", user, "error", err)
		}
		if err := s.launcher.StopUser(ctx, user, reason); err != nil {
			s.log.Error("instance of a disconnected user was not stopped", "user", user, "error", err)
		}
	})
}

// localName is the login name of a uid for lists, "" if there is none.
func (s *server) localName(uid ident.UID) string {
	ctx, cancel := context.WithTimeout(context.Background(), nameTimeout)
	defer cancel()
	account, err := s.directory.ByUID(ctx, uid)
	if err != nil {
		return ""
	}
	return account.Name
}

// userSeen notes that a user works here. Nothing waits for it.
func (s *server) userSeen(user ident.UCloudUser) {
	s.background.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		s.users.Seen(ctx, user)
	})
}

// eventsChanged is told what the event stream has changed.
func (s *server) eventsChanged(ctx context.Context, c events.Change) {
	s.ownersChanged(c.Owners...)
	var members []ident.UCloudUser
	for _, p := range c.Projects {
		members = append(append(members, p.Added...), p.Removed...)
	}
	s.interfacesChecked(members)
	if len(members) > 0 {
		s.launcher.Recheck(ctx, members...)
	}
}

// projectChanged is told that a project has another group: drives that needed it can be made now.
func (s *server) projectChanged(ctx context.Context, id ident.ProjectID, members []ident.UCloudUser) {
	s.directory.Invalidate()
	s.ownersChanged(ident.Owner{Project: id})
	if len(members) > 0 {
		s.launcher.Recheck(ctx, members...)
	}
}

// groupRules says which groups projects may have. Groups of ordinary users begin where their accounts do.
func (s *server) groupRules(ctx context.Context, cfg *config.Config) operator.GroupRules {
	r := operator.GroupRules{MinGID: ident.GID(cfg.UserInstances.MinUID)} //nolint:gosec // bounded by the configuration
	for _, name := range []string{cfg.UserInstances.Group.String(), cfg.CLI.OperatorGroup.String(), cfg.CLI.ViewerGroup.String()} {
		if name != "" {
			r.Denied = append(r.Denied, name)
		}
	}
	if own, err := s.directory.ByUID(ctx, s.serviceUID); err == nil {
		if g, err := s.directory.GroupByID(ctx, own.GID); err == nil {
			r.Denied = append(r.Denied, g.Name)
		}
	}
	return r
}

// registerCalls adds the IPC calls that need several parts.
func (s *server) registerCalls() {
	ipc.Handle(s.ipc, ipcapi.GatewayToken, func(ctx context.Context, _ *ipc.Request, q ipcapi.TokenQuery) (ipcapi.TokenReply, error) {
		var hash [32]byte
		if len(q.Hash) != len(hash) {
			return ipcapi.TokenReply{}, nil
		}
		open, err := s.tokens.Open(ctx, [32]byte(q.Hash), q.User, ipcapi.SessionPurposes()...)
		return ipcapi.TokenReply{Open: open}, err
	})
	ipc.Handle(s.ipc, ipcapi.InstanceRecheck, func(ctx context.Context, r *ipc.Request, _ ipcapi.Empty) (ipcapi.RecheckReply, error) {
		s.directory.Invalidate()
		s.launcher.Recheck(ctx, r.Grant.User)
		for _, i := range s.launcher.List() {
			if i.User == r.Grant.User {
				return ipcapi.RecheckReply{Replaced: i.Renew || i.State != launcher.Running}, nil
			}
		}
		return ipcapi.RecheckReply{}, nil
	})
}

// expireTickets notes tickets whose time is over. Only lists depend on it, so once an hour is enough.
func (s *server) expireTickets(ctx context.Context) error {
	if s.tickets == nil {
		return nil
	}
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		if _, err := s.tickets.ExpireOld(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("expired tickets were not noted", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// outboxCounts counts the deliveries that wait, and those that wait for an operator.
func (s *server) outboxCounts(ctx context.Context) (queued, suspect int, err error) {
	err = s.store.View(ctx, func(tx *store.Tx) error {
		entries, err := tx.OutboxAll()
		queued, suspect = 0, 0
		for _, e := range entries {
			if e.State == store.OutboxSuspect {
				suspect++
			} else {
				queued++
			}
		}
		return err
	})
	return queued, suspect, err
}
