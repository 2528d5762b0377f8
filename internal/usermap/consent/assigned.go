package consent

import (
	"context"
	"errors"

	"ucloud-im/internal/store"
	"ucloud-im/internal/usermap"
)

// Opened is where a browser goes from the first page, and the cookie that binds it.
type Opened struct {
	URL    string
	Cookie string
}

// Waiting gives the login of a browser that waits for an account, where no identity provider is asked; nil if it has come
// further. A browser without a login is NotFound.
func (s *Service) Waiting(ctx context.Context, cookie string) (*Pending, error) {
	rec, err := s.find(ctx, cookie)
	if err != nil || rec.Stage != store.LoginStarted {
		return nil, err
	}
	return &Pending{rec: rec}, nil
}

// Assign notes the account that the provider has found for the user of a waiting login, which then waits for the person to
// agree. It does what [Service.Prove] does after a login. The identity is the user's own, as the provider knows no other.
func (s *Service) Assign(ctx context.Context, p *Pending, a usermap.Account) error {
	rec := p.rec
	rec.Stage = store.LoginChecking
	err := s.o.Store.Update(ctx, func(tx *store.Tx) error { return tx.MoveLogin(rec, store.LoginStarted) })
	if errors.Is(err, store.ErrConflict) {
		return nil // the browser asks twice at a time, and the other request does it
	}
	if err != nil {
		return err
	}
	p.rec = rec
	return s.Prove(ctx, p, Proof{Issuer: "provider/" + s.o.Method, Subject: string(rec.User), Account: a})
}
