package operator

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/signingkeys"
	"ucloud-im/internal/store"
)

// maxRevoked is how many keys one call may name.
const maxRevoked = 1000

func signingKey(k store.SigningKey) ipcapi.SigningKey {
	return ipcapi.SigningKey{
		ID: k.ID, User: k.User, Fingerprint: k.Fingerprint, Algorithm: k.Algorithm, State: string(k.State), CreatedAt: k.CreatedAt,
		ActivatedAt: k.ActivatedAt, ExpiresAt: &k.ExpiresAt, EndedAt: k.EndedAt, By: k.By,
	}
}

// meKeys lists the caller's own keys.
func (s *Service) meKeys(ctx context.Context, r *ipc.Request, _ ipcapi.Empty) (page ipcapi.SigningKeyPage, err error) {
	keys, err := s.o.Keys.Of(ctx, r.Grant.User)
	page.Items = make([]ipcapi.SigningKey, 0, len(keys))
	for _, k := range keys {
		page.Items = append(page.Items, signingKey(k))
	}
	return page, err
}

// keyList lists the keys of all users.
func (s *Service) keyList(ctx context.Context, _ *ipc.Request, _ ipcapi.Empty, send func(ipcapi.SigningKeyPage, ...*os.File) error) error {
	for after := ""; ; {
		keys, err := s.o.Keys.Page(ctx, after, pageSize)
		if err != nil || len(keys) == 0 {
			return err
		}
		var page ipcapi.SigningKeyPage
		for _, k := range keys {
			page.Items = append(page.Items, signingKey(k))
		}
		if err := send(page); err != nil {
			return err
		}
		after = keys[len(keys)-1].ID
	}
}

// meRevokeKey revokes keys of the caller's own user. Those of others do not exist for them.
func (s *Service) meRevokeKey(ctx context.Context, r *ipc.Request, req ipcapi.SigningKeyRevocation) (ipcapi.MutationReport, error) {
	return s.revokeKeys(ctx, r, "me.key.revoke", r.Grant.User, fmt.Sprintf("the user (%s)", by(r)), req)
}

func (s *Service) keyRevoke(ctx context.Context, r *ipc.Request, req ipcapi.SigningKeyRevocation) (ipcapi.MutationReport, error) {
	return s.revokeKeys(ctx, r, "key.revoke", "", by(r), req)
}

func (s *Service) revokeKeys(
	ctx context.Context, r *ipc.Request, action string, user ident.UCloudUser, who string, req ipcapi.SigningKeyRevocation,
) (ipcapi.MutationReport, error) {
	if len(req.IDs) > maxRevoked {
		return ipcapi.MutationReport{}, failure.New(failure.Invalid, "Too many keys at once: at most %d", maxRevoked)
	}
	return each(req.IDs, text, func(id string) (string, error) {
		changed, err := s.o.Keys.Revoke(ctx, signingkeys.Revocation{ID: text(id), User: user, By: reasonOf(who, req.Reason), DryRun: req.DryRun})
		s.audit(r, action, err, slog.String("key", text(id)), slog.String("reason", text(req.Reason)), slog.Bool("dryRun", req.DryRun))
		if err == nil && !changed {
			return ipcapi.ResultSkipped, nil
		}
		return ipcapi.ResultOK, err
	}), nil
}
