package jobs

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

// Core is what the service asks of UCloud/Core; [coreapi.Client] is the implementation.
type Core interface {
	UpdateJobs(ctx context.Context, items []providerapi.JobUpdateItem) error
	RetrieveJob(ctx context.Context, id string) (providerapi.Job, error)
	CheckExistence(ctx context.Context, resources []coreapi.Resource) ([]bool, error)
	RegisterJob(ctx context.Context, j providerapi.RegisterJob) (string, error)
	FindJob(ctx context.Context, providerGeneratedID string) (providerapi.Job, bool, error)
}

// Accounts gives Slurm accounts of workspaces.
type Accounts interface {
	// Account is the account with which a user submits for a workspace in a category. choice is what the user has chosen,
	// or empty. An error that the user can do something about has a kind and a sentence (package failure).
	Account(ctx context.Context, owner ident.Owner, user ident.UCloudUser, category, choice string) (string, error)
}

// Chooser is what [Accounts] may be in addition: where the user chooses the account.
type Chooser interface {
	// Choices are the accounts to choose among. mapped: there is nothing to choose.
	Choices(ctx context.Context, owner ident.Owner, user ident.UCloudUser) (mapped bool, accounts []string, err error)
}

// Owners is what [Accounts] may be in addition: it knows whose an account is, for jobs that were submitted without us.
type Owners interface {
	// OwnerOf is the workspace of an account in a category. false: nobody's.
	OwnerOf(ctx context.Context, account, category string) (ident.Owner, bool, error)
}

// Machine is a product with all that a submission needs to know.
type Machine struct {
	ipcapi.JobMachine
	Partition, QoS, Constraint string
	Exclusive                  bool
	FreeToUse                  bool
	MaxTime                    time.Duration // 0: Slurm decides
	MaxNodes                   int           // 0: Slurm decides
}

// Settings are what the configuration says now.
type Settings struct {
	Machine func(ref providerapi.ProductReference) (Machine, bool)
	// Category is the category of a partition and QoS, with its machines. false: none is configured.
	Category func(partition, qos string) (machines []Machine, ok bool)

	Folder           string // name of the folder of all jobs
	PortMin, PortMax int    // 0: no web interfaces
	TimeExtension    bool
	Poll             time.Duration
	Lookback         time.Duration
	RegisterOutside  bool
	Keep             time.Duration // finished jobs
	// SSHLine is what is told to users of jobs about logging in; empty: nothing.
	SSHLine func(localName string) string
}

// Users tells who accounts are; [ucloud-im/internal/usermap.Service] with the directory is the implementation.
type Users interface {
	// LocalName is the login name of an account. false: there is none by this number.
	LocalName(uid ident.UID) (string, bool)
	// Mapped is the active mapping of a login name.
	Mapped(localName string) (ident.UCloudUser, ident.UID, bool)
}

// Options configure a [Service]. All are required where nothing else is said.
type Options struct {
	Provider string
	Store    *store.Store
	Core     Core
	Engine   Engine // nil: jobs are those of the local engine
	Accounts Accounts
	Users    Users
	Settings func() Settings
	// Base is the drive in which the folder of jobs of a workspace lies; nil: the home directory.
	Base  func(ctx context.Context, owner ident.Owner, user ident.UCloudUser) (*ipcapi.FoundDrive, error)
	Log   *slog.Logger
	Audit *slog.Logger     // commands of operators; nil: Log
	Now   func() time.Time // nil: time.Now
}

// Change is what a listener gets: a job as it is after something about it has changed.
type Change struct {
	ipcapi.JobRecord
	Lost bool // it is not at Core, or never was in the engine
}

func (o *Options) check() error {
	if o.Provider == "" || o.Store == nil || o.Core == nil || o.Accounts == nil || o.Users == nil || o.Settings == nil {
		return errors.New("jobs: an option is missing")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Audit == nil {
		o.Audit = o.Log
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Base == nil {
		o.Base = func(context.Context, ident.Owner, ident.UCloudUser) (*ipcapi.FoundDrive, error) { return nil, nil } //nolint:nilnil // the home directory
	}
	return nil
}
