package operator

import (
	"context"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/localuser"
	"ucloud-im/internal/usermap"
)

// NewPolicy makes the account policy that package usermap asks out of the machine's. A text of digits is a uid, never a
// login name (contract 03 section 3.3).
func NewPolicy(p *localuser.Policy) usermap.Policy { return policy{p} }

type policy struct{ p *localuser.Policy }

// Check implements [usermap.Policy].
func (p policy) Check(ctx context.Context, nameOrUID string) (usermap.Account, error) {
	var a localuser.Account
	var err error
	if uid, numeric := ident.ParseUID(nameOrUID); numeric == nil {
		a, err = p.p.Directory().ByUID(ctx, uid)
	} else {
		a, err = p.p.Directory().ByName(ctx, nameOrUID)
	}
	if err != nil {
		return usermap.Account{}, err
	}
	checked, err := p.p.Check(ctx, a.UID, a.Name)
	if err != nil {
		return usermap.Account{}, err
	}
	a = checked.Account()
	return usermap.Account{Name: a.Name, UID: a.UID, GID: a.GID, Home: a.Home, Shell: a.Shell}, nil
}
