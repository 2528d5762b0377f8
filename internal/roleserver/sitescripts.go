package roleserver

import (
	"cmp"
	"context"
	"iter"
	"slices"
	"sync"

	"ucloud-im/internal/driveplan"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/scripts"
)

// Parts of the configuration that name scripts; each is replaced as a whole by a reload.
const (
	ofStorage  = "storage"
	ofAccounts = "accounts"
	ofLogin    = "login"
	ofUsers    = "users"
)

// hooksInUse are the hooks that the server calls, for operators who call them by hand.
type hooksInUse struct {
	mu     sync.Mutex
	byPart map[string][]*scripts.Hook
}

// useHooks takes over the hooks of a part.
func (s *server) useHooks(part string, p storagePlan) error {
	if err := s.openSpool(p); err != nil {
		return err
	}
	u := &s.hooks
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.byPart == nil {
		u.byPart = map[string][]*scripts.Hook{}
	}
	u.byPart[part] = p.hooks
	return nil
}

// all gives the hooks in use by their keys in the configuration.
func (u *hooksInUse) all() (all []*scripts.Hook) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, hooks := range u.byPart {
		all = append(all, hooks...)
	}
	slices.SortFunc(all, func(a, b *scripts.Hook) int { return cmp.Compare(a.Options().Purpose.At, b.Options().Purpose.At) })
	return all
}

// driveID is for [scripts.Purpose].
func (s *server) driveID(owner ident.Owner, path string) string {
	return driveplan.GeneratedID(s.config.Load().Provider.ID.String(), owner, path)
}

// acceptUID is for [scripts.Purpose]: the account must be one that the policy allows. One that was made for real is given time
// to become known; what a dry run answers need not exist, so nobody waits for it.
func (s *server) acceptUID(ctx context.Context, answer any, dryRun bool) (err error) {
	uid := answer.(ident.UID)
	if dryRun {
		_, err = s.users.Check(ctx, uid.String())
	} else {
		_, err = s.accountOf(ctx, uid)
	}
	return err
}

// firstName is the name of the first entry; empty if there is none.
func firstName[V any](entries iter.Seq2[string, V]) string {
	for name := range entries {
		return name
	}
	return ""
}
