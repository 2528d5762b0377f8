package operator

import (
	"context"
	"log/slog"
	"slices"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/localuser"
)

// Directory looks accounts and groups up; [localuser.Directory] is the implementation.
type Directory interface {
	ByUID(ctx context.Context, uid ident.UID) (localuser.Account, error)
	Group(ctx context.Context, name string) (localuser.Group, error)
	Groups(ctx context.Context, name string) ([]ident.GID, error)
}

// AuthorizerOptions say who is what (contract 41 section 2).
type AuthorizerOptions struct {
	// User gives the UCloud user of a uid by an active mapping.
	User       func(ident.UID) (ident.UCloudUser, bool)
	Directory  Directory
	ServiceUID ident.UID // the account of the server, gateway and tools

	// Local groups, cli.operatorGroup and cli.viewerGroup. Empty or missing: nobody.
	OperatorGroup string
	ViewerGroup   string

	Log *slog.Logger
}

// NewAuthorizer makes the function that tells the IPC server what a uid may do. A group that cannot be looked up has
// no members for the moment: not knowing is never a yes.
func NewAuthorizer(o AuthorizerOptions) ipc.Authorizer {
	log := o.Log.With("part", "operator")
	return func(ctx context.Context, p ipc.Peer) (ipc.Grant, error) {
		uid := p.UID()
		g := ipc.Grant{Root: uid == 0, Service: uid == o.ServiceUID}
		g.User, g.Mapped = o.User(uid)
		switch {
		case g.Root:
			g.Operator, g.Viewer = true, true
		case g.Service:
			// doctor reads the status; what operators may change is not for a process that faces the network.
			g.Viewer = true
		default:
			g.Operator = member(ctx, log, o.Directory, uid, o.OperatorGroup)
			g.Viewer = g.Operator || member(ctx, log, o.Directory, uid, o.ViewerGroup)
		}
		return g, nil
	}
}

// member tells whether the account belongs to the group. The group is asked first: on most machines that is one cached
// answer for all callers.
func member(ctx context.Context, log *slog.Logger, d Directory, uid ident.UID, name string) bool {
	if name == "" {
		return false
	}
	g, err := d.Group(ctx, name)
	if failure.Is(err, failure.NotFound) {
		return false
	}
	var a localuser.Account
	if err == nil {
		a, err = d.ByUID(ctx, uid)
	}
	if err == nil && (a.GID == g.GID || slices.Contains(g.Members, a.Name)) {
		return true
	}
	// Directories may hide the members of a group.
	var gids []ident.GID
	if err == nil {
		gids, err = d.Groups(ctx, a.Name)
	}
	if err != nil {
		if !failure.Is(err, failure.NotFound) {
			log.Warn("a group cannot be looked up, nobody is in it for now", "group", name, "uid", uid, "error", err)
		}
		return false
	}
	return slices.Contains(gids, g.GID)
}
