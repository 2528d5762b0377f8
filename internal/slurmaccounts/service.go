package slurmaccounts

import (
	"context"
	"errors"
	"log/slog"
	"regexp"
	"slices"
	"sync"
	"time"

	"ucloud-im/internal/driveplan"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/store"
)

// Category is a machine category: one pair of partition and QoS.
type Category struct {
	Name      string
	Partition string
	QoS       string // empty: whatever Slurm gives
	// Period is the minutes of one unit of the product's quota: 1, 60 or 1440 (contract 30 section 1).
	Period    int64
	Unit      string // of the product, for scripts: Cpu, Gpu, Memory or a currency
	Money     bool   // the quota is an amount of money and cannot be a limit of Slurm
	FreeToUse bool   // has no wallets
}

// Mapping says which account a workspace has. With neither patterns nor script it is the user's choice.
type Mapping struct {
	Users, Projects func(driveplan.Vars) (string, error)
	Script          func(ctx context.Context, owner ident.Owner, vars driveplan.Vars) (string, error)
	// LocalName gives variable ucloudUsername the local name (contract 42 section C).
	LocalName bool
}

func (m Mapping) choice() bool { return m.Users == nil && m.Projects == nil && m.Script == nil }

// The ways in which accounts are looked after.
const (
	Off       = ""
	Automatic = "Automatic"
	Scripted  = "Scripted"
)

// How a locked account is stopped.
const (
	LockMaxJobs   = "maxJobs0"
	LockMaxSubmit = "maxSubmit0"
	LockNone      = "none"
)

// Management is who looks after accounts in Slurm, and how.
type Management struct {
	Type string // Off, Automatic or Scripted

	// For Automatic.
	KeepFairshare     bool
	Parent            string // of new accounts; empty: root
	CreateUsers       bool
	SetDefaultAccount bool
	Cleanup           bool   // remove members who left
	WhenLocked        string // LockMaxJobs, LockMaxSubmit or LockNone

	// For Scripted.
	QuotaUpdated, ProjectUpdated, Disconnected *scripts.Hook // Disconnected may be nil
}

// Settings are what a reload of the configuration may change.
type Settings struct {
	Categories []Category
	Mapping    Mapping
	Management Management
}

func (s *Settings) category(name string) (Category, bool) {
	i := slices.IndexFunc(s.Categories, func(c Category) bool { return c.Name == name })
	if i < 0 {
		return Category{}, false
	}
	return s.Categories[i], true
}

// Options configure a [Service]. All but Cluster and Log are required.
type Options struct {
	Provider string
	Store    *store.Store
	Accounts driveplan.Accounts // who users and projects are on this machine
	Cluster  Cluster            // nil: there is no Slurm
	Settings Settings
	Log      *slog.Logger // nil discards
}

// Service finds and looks after accounts. [Service.Run] does the work; the other methods may be called at any time.
type Service struct {
	o    Options
	log  *slog.Logger
	wake chan struct{} // holds one element: due has changed

	evaluating sync.Mutex // one evaluation at a time stores its outcome

	mu       sync.Mutex                // guards what follows
	settings *Settings                 // replaced as a whole
	everyone bool                      // all accounts are due
	due      map[ident.Owner]time.Time // workspaces to look at, and when
	orphans  time.Time                 // when accounts without workspace are looked at
	anew     map[ident.Owner]bool      // workspaces with whose accounts work is done whatever was done before
	again    map[string]bool           // accounts whose work is done whatever was done before
	revived  map[string]bool           // work that waited for an operator and was tried again since the last start or reload
}

// New makes a service. It does no I/O.
func New(o Options) (*Service, error) {
	if o.Provider == "" || o.Store == nil || o.Accounts == nil {
		return nil, errors.New("slurm accounts: provider id, store and local accounts are required")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Service{
		o: o, log: o.Log.With("part", "slurm accounts"), wake: make(chan struct{}, 1),
		due: map[ident.Owner]time.Time{}, anew: map[ident.Owner]bool{}, again: map[string]bool{}, revived: map[string]bool{},
	}
	return s, s.SetSettings(o.Settings)
}

// SetSettings replaces the settings, for a reload, and has all accounts looked at.
func (s *Service) SetSettings(set Settings) error {
	for _, c := range set.Categories {
		if c.Name == "" || c.Partition == "" || c.Period <= 0 {
			return errors.New("slurm accounts: a category needs a name, a partition and a period")
		}
	}
	switch m := set.Management; {
	case m.Type == Automatic && s.o.Cluster == nil:
		return errors.New("slurm accounts: accounting Automatic needs Slurm")
	case m.Type == Scripted && (m.QuotaUpdated == nil || m.ProjectUpdated == nil):
		return errors.New("slurm accounts: accounting Scripted needs its scripts")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settings, s.everyone, s.revived = &set, true, map[string]bool{}
	s.signal()
	return nil
}

func (s *Service) current() *Settings {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.settings
}

func (s *Service) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Changed has the accounts of workspaces looked at soon: their wallets or members changed. It never blocks.
func (s *Service) Changed(owners ...ident.Owner) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range owners {
		if o.Valid() {
			s.due[o] = time.Time{}
		}
	}
	s.signal()
}

// Again is Changed, and has everything done for their accounts even if there is nothing new, or if it waits for an
// operator.
func (s *Service) Again(owners ...ident.Owner) {
	s.mu.Lock()
	for _, o := range owners {
		if o.Valid() {
			s.anew[o] = true
		}
	}
	s.mu.Unlock()
	s.Changed(owners...)
}

// accountName is what Slurm takes and cannot be mistaken for an option (contract 22 section 7.1).
var accountName = regexp.MustCompile(`^[a-z][a-z0-9._-]{0,99}$`)

// CheckName refuses what must not become the account of a workspace.
func CheckName(name string) error {
	switch {
	case !accountName.MatchString(name):
		return failure.New(failure.Invalid, "%q cannot be the name of a Slurm account: it must begin with a small letter, and consist of small letters, digits, '.', '_' and '-'", name)
	case name == "root":
		return failure.New(failure.Invalid, "the Slurm account root belongs to the administrators")
	}
	return nil
}
