package localuser

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
)

// overflowUID and the one above it stand for "no user" in the kernel and in user namespaces.
const (
	overflowUID = ident.UID(65534)
	noUID       = ident.UID(1<<32 - 1)
)

// PolicyOptions say which accounts may be used (contract 40 section 5, userInstances.*).
type PolicyOptions struct {
	Group      string    // userInstances.group; required unless Self
	MinUID     ident.UID // userInstances.minUid; 0 is refused whatever it says
	MaxUID     ident.UID // userInstances.maxUid; 0 means no limit
	Denied     []string  // userInstances.deniedUsers, login names, compared without case
	ServiceUID ident.UID // the account the server runs as
	// Self is the development mode: instances run as the server's own account, and only as that one. Group and Denied
	// do not apply.
	Self bool
	Now  func() time.Time
}

// Policy decides which local account may have an instance. It is safe for concurrent use.
type Policy struct {
	o   PolicyOptions
	dir *Directory
}

// NewPolicy makes a policy over a directory.
func NewPolicy(dir *Directory, o PolicyOptions) *Policy {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Policy{o: o, dir: dir}
}

// Directory is the directory that the policy asks.
func (p *Policy) Directory() *Directory { return p.dir }

// Checked is an account that [Policy.Check] has accepted. Its zero value names no account.
type Checked struct {
	account   Account
	sawShadow bool
	ok        bool
}

// Account is the record that was checked.
func (c Checked) Account() Account { return c.account }

// Valid is false for the zero value.
func (c Checked) Valid() bool { return c.ok }

// SawShadow tells whether the shadow record was among what was checked. If not, the account must look at its own
// expiry (see package instance).
func (c Checked) SawShadow() bool { return c.sawShadow }

// Check decides about the account uid, which had the login name localName when it was mapped. It is called for each
// mapping and again before each launch (design D6, contract 03 section 7.3). Refusals are [failure.Forbidden] or
// [failure.NotFound] with a sentence for the operator; [failure.Unavailable] means that the decision cannot be made
// now, and is a refusal as well.
func (p *Policy) Check(ctx context.Context, uid ident.UID, localName string) (Checked, error) {
	if err := p.checkUID(uid); err != nil {
		return Checked{}, err
	}
	a, err := p.dir.ByUID(ctx, uid)
	if err != nil {
		return Checked{}, err
	}
	switch {
	case a.Name != localName:
		// The account was deleted and its uid given to somebody else, or the record has several names.
		return Checked{}, failure.New(failure.Forbidden,
			"Uid %s belongs to the account %q now, it was %q when it was connected", uid, a.Name, localName)
	case !ValidName(a.Name):
		return Checked{}, failure.New(failure.Forbidden, "The account name %q cannot be looked up safely", a.Name)
	case noLogin(a.Shell):
		return Checked{}, failure.New(failure.Forbidden, "The account %q has no login shell (%s)", a.Name, a.Shell)
	}
	if !p.o.Self {
		if slices.ContainsFunc(p.o.Denied, func(d string) bool { return strings.EqualFold(d, a.Name) }) {
			return Checked{}, failure.New(failure.Forbidden, "The account %q is excluded by the configuration", a.Name)
		}
		if err := p.checkGroup(ctx, a); err != nil {
			return Checked{}, err
		}
	}
	saw, err := p.checkShadow(ctx, a)
	if err != nil {
		return Checked{}, err
	}
	return Checked{account: a, sawShadow: saw, ok: true}, nil
}

func (p *Policy) checkUID(uid ident.UID) error {
	switch {
	case uid == 0:
		return failure.New(failure.Forbidden, "The account root cannot be used")
	case uid == overflowUID || uid == noUID:
		return failure.New(failure.Forbidden, "Uid %s stands for no account", uid)
	case p.o.Self && uid != p.o.ServiceUID:
		return failure.New(failure.Forbidden, "In development mode instances run as uid %s only", p.o.ServiceUID)
	case p.o.Self:
		return nil
	case uid == p.o.ServiceUID:
		return failure.New(failure.Forbidden, "The service account itself cannot be used")
	case uid < p.o.MinUID:
		return failure.New(failure.Forbidden, "Uid %s is below the lowest allowed one (%s)", uid, p.o.MinUID)
	case p.o.MaxUID != 0 && uid > p.o.MaxUID:
		return failure.New(failure.Forbidden, "Uid %s is above the highest allowed one (%s)", uid, p.o.MaxUID)
	}
	return nil
}

// checkGroup asks for the group first, because one answer serves all users; directories that hide members are asked
// with id(1).
func (p *Policy) checkGroup(ctx context.Context, a Account) error {
	g, err := p.dir.Group(ctx, p.o.Group)
	if err != nil {
		return err
	}
	if a.GID == g.GID || slices.Contains(g.Members, a.Name) {
		return nil
	}
	gids, err := p.dir.Groups(ctx, a.Name)
	if err != nil {
		return err
	}
	if !slices.Contains(gids, g.GID) {
		return failure.New(failure.Forbidden, "%s is not a member of %s (needed to start a user instance)", a.Name, g.Name)
	}
	return nil
}

func (p *Policy) checkShadow(ctx context.Context, a Account) (saw bool, err error) {
	s, ok, err := p.dir.Shadow(ctx, a.Name)
	if err != nil || !ok {
		return false, err
	}
	if s.LockedHash {
		return true, failure.New(failure.Forbidden, "The account %q is locked", a.Name)
	}
	// shadow(5): the account is closed from that day on; 0 is ambiguous there and means "closed" to Linux tools.
	if today := p.o.Now().Unix() / 86400; s.Expires >= 0 && today >= s.Expires {
		return true, failure.New(failure.Forbidden, "The account %q has expired", a.Name)
	}
	return true, nil
}

// noLogin tells whether the shell is one of those that administrators set to close an account.
func noLogin(shell string) bool {
	switch filepath.Base(shell) {
	case "nologin", "false", "true", "sync", "halt", "shutdown":
		return true
	}
	return false
}
