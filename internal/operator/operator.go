// Package operator answers the IPC calls behind the operator's command line, and those that users make about
// themselves (contract 41).
//
// # Who may do what
//
// Package ipc refuses callers below the access class of a call; the class of a uid is what [NewAuthorizer] says, from
// the kernel's uid and the local groups. The handlers here check what a class cannot express: a user binds and
// disconnects nothing but the account that the kernel reports (TestSelfServiceUsesTheKernel), and keys are shown to root
// only (TestKeysAreForRoot). No request holds the caller's identity.
//
// # Audit
//
// Every change, refused ones included, leaves one line in the audit log: who by uid and by login session, what, on
// whom, with which result. It is written by [Service.audit] after the fact, so a line that says "ok" is true.
package operator

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"time"

	"golang.org/x/sync/semaphore"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/launcher"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/signingkeys"
	"ucloud-im/internal/store"
	"ucloud-im/internal/usermap"
	"ucloud-im/internal/usermap/ticket"
)

const (
	// maxWait bounds how long a call waits until a new connection is active.
	maxWait = 30 * time.Second
	// pageSize is how many rows travel in one item of a list.
	pageSize = 200
	// maxText bounds reasons and messages in bytes.
	maxText = 1000
)

// Instances is what this package needs of the launcher.
type Instances interface {
	List() []launcher.Info
	Refresh(ctx context.Context) // has the instances report fresh numbers
	StopUser(ctx context.Context, user ident.UCloudUser, reason string) error
	Restart(ctx context.Context, user ident.UCloudUser) error
}

// Options configure a [Service]. Users, Store, Instances, Status, Log and Audit are required.
type Options struct {
	Users     *usermap.Service
	Tickets   *ticket.Method // nil: the ticket mapper is off
	Store     *store.Store
	Instances Instances

	Status  func(ctx context.Context) ipcapi.StatusReport
	Version ipcapi.VersionInfo // Protocol and, if empty, Platform are filled in
	// Reload reads the configuration again; nil: not possible.
	Reload func(ctx context.Context, dryRun bool) (ipcapi.ReloadReport, error)
	// Running gives the redacted configuration in use; nil: not possible.
	Running func() (ipcapi.RunningConfig, error)
	// Gateway gives what the gateways know, with the keys of the routes if asked for; nil: made of the instances.
	Gateway func(keys bool) (ipcapi.GatewayState, error)

	// Groups looks up groups of projects, and GroupRules says which are possible; nil: projects cannot be mapped.
	Groups     Groups
	GroupRules func(ctx context.Context) GroupRules
	// ProjectChanged is told that a project has another group, or none; nil: nobody.
	ProjectChanged func(ctx context.Context, id ident.ProjectID, members []ident.UCloudUser)

	// Units gives the unit of each storage product; nil: none is known.
	Units func() map[string]string
	// Apply has the quotas of an owner set again, whatever was done before; nil: nobody sets quotas. It must not block.
	Apply func(owner ident.Owner)

	// SlurmAccounts keeps the accounts of Slurm; nil: there are none.
	SlurmAccounts SlurmAccounts

	// Scripts gives the hooks that may be called by hand; nil: there are none.
	Scripts func() []*scripts.Hook

	// Keys looks after the signing keys of users; nil: there are none.
	Keys *signingkeys.Service

	Provider     string
	UCloudPublic string // where UCloud is, for people

	Log   *slog.Logger
	Audit *slog.Logger // where audit lines go; "part" is set here
	Now   func() time.Time
}

// Service holds the handlers.
type Service struct {
	o     Options
	log   *slog.Logger
	trail *slog.Logger
}

// New makes the handlers.
func New(o Options) (*Service, error) {
	if o.Users == nil || o.Store == nil || o.Instances == nil || o.Status == nil || o.Log == nil || o.Audit == nil {
		return nil, errors.New("operator: Users, Store, Instances, Status, Log and Audit are required")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	// What this package answers decides which protocol the server speaks.
	o.Version.Protocol = ipcapi.Protocol
	if o.Version.Platform == "" {
		o.Version.Platform = runtime.GOOS + "/" + runtime.GOARCH
	}
	return &Service{o: o, log: o.Log.With("part", "operator"), trail: o.Audit.With("part", "audit")}, nil
}

// Register adds the handlers to the IPC server.
func (s *Service) Register(srv *ipc.Server) {
	ipc.Handle(srv, ipcapi.TicketDescribe, s.ticketDescribe)
	ipc.Handle(srv, ipcapi.TicketComplete, s.ticketComplete)
	ipc.Handle(srv, ipcapi.TicketApprove, s.ticketApprove)
	ipc.Handle(srv, ipcapi.TicketReject, s.ticketReject)
	ipc.HandleStream(srv, ipcapi.TicketList, s.ticketList)

	ipc.HandleStream(srv, ipcapi.UserList, s.userList)
	ipc.Handle(srv, ipcapi.UserShow, s.userShow)
	ipc.Handle(srv, ipcapi.UserAdd, s.userAdd)
	ipc.Handle(srv, ipcapi.UserExpire, s.userExpire)
	ipc.Handle(srv, ipcapi.UserRemove, s.userRemove)
	ipc.Handle(srv, ipcapi.UserChange, s.userChange)

	ipc.Handle(srv, ipcapi.MeShow, s.meShow)
	ipc.Handle(srv, ipcapi.MeDisconnect, s.meDisconnect)

	ipc.Handle(srv, ipcapi.ServiceVersion, s.version)
	ipc.Handle(srv, ipcapi.ServiceStatus, s.status)
	ipc.Handle(srv, ipcapi.ConfigReload, s.configReload)
	ipc.Handle(srv, ipcapi.ConfigRunning, s.configRunning)
	ipc.HandleStream(srv, ipcapi.InstanceList, s.instanceList)
	ipc.Handle(srv, ipcapi.InstanceStop, s.instanceStop)
	ipc.Handle(srv, ipcapi.InstanceRestart, s.instanceRestart)
	ipc.HandleStream(srv, ipcapi.DriveList, s.driveList)
	ipc.Handle(srv, ipcapi.GatewayDump, s.gatewayDump)
	ipc.HandleStream(srv, ipcapi.AllocationList, s.allocationList)
	ipc.Handle(srv, ipcapi.AllocationApply, s.allocationApply)
	if s.o.Keys != nil {
		ipc.Handle(srv, ipcapi.MeKeys, s.meKeys)
		ipc.Handle(srv, ipcapi.MeRevokeKey, s.meRevokeKey)
		ipc.HandleStream(srv, ipcapi.KeyList, s.keyList)
		ipc.Handle(srv, ipcapi.KeyRevoke, s.keyRevoke)
	}
	if s.o.Scripts != nil {
		(&trials{s: s, hooks: s.o.Scripts, slots: semaphore.NewWeighted(maxTrials)}).register(srv)
	}
	if s.o.SlurmAccounts != nil {
		ipc.HandleStream(srv, ipcapi.SlurmAccountList, s.slurmAccountList)
		ipc.Handle(srv, ipcapi.SlurmAccountReevaluate, s.slurmAccountReevaluate)
		ipc.Handle(srv, ipcapi.SlurmAccountAdopt, s.slurmAccountAdopt)
		ipc.Handle(srv, ipcapi.SlurmAccountAdd, s.slurmAccountAdd)
		ipc.Handle(srv, ipcapi.SlurmAccountRemove, s.slurmAccountRemove)
		ipc.Handle(srv, ipcapi.SlurmAccountSync, s.slurmAccountSync)
		ipc.Handle(srv, ipcapi.SlurmAccountEvaluate, s.slurmAccountEvaluate)
	}
	if s.o.Groups != nil {
		ipc.HandleStream(srv, ipcapi.ProjectList, s.projectList)
		ipc.Handle(srv, ipcapi.ProjectShow, s.projectShow)
		ipc.Handle(srv, ipcapi.ProjectMap, s.projectMap)
		ipc.Handle(srv, ipcapi.ProjectRemove, s.projectRemove)
	}
}

// sendPages sends a list in pages.
func sendPages[T, P any](items []T, page func([]T) P, send func(P, ...*os.File) error) error {
	for len(items) > 0 {
		n := min(pageSize, len(items))
		if err := send(page(items[:n])); err != nil {
			return err
		}
		items = items[n:]
	}
	return nil
}

// each applies a change to each item and reports per item; it goes on after errors (contract 41 CLI-11).
func each[T any](items []T, key func(T) string, do func(T) (status string, err error)) ipcapi.MutationReport {
	report := ipcapi.MutationReport{Results: make([]ipcapi.MutationResult, 0, len(items))}
	for _, item := range items {
		res := ipcapi.MutationResult{Key: key(item)}
		status, err := do(item)
		if res.Status = status; err != nil {
			res.Status = ipcapi.ResultFailed
			res.Error = &ipcapi.MutationError{Status: failure.KindOf(err).Status(), Message: failure.Why(err)}
		}
		report.Results = append(report.Results, res)
	}
	return report
}

// waitActive waits as long as the caller asked for, within bounds, and gives the state that was reached.
func (s *Service) waitActive(ctx context.Context, user ident.UCloudUser, waitMs int64) string {
	wait := min(max(0, time.Duration(waitMs)*time.Millisecond), maxWait)
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if s.o.Users.WaitActive(ctx, user) == nil {
		return string(store.MappingActive)
	}
	m, err := s.o.Users.Mapping(context.WithoutCancel(ctx), user)
	if err != nil {
		return string(store.MappingPending) // it was a moment ago
	}
	return string(m.State)
}

// refused marks a refusal of the account policy, so that it can be told from one of the caller (contract 41 section 3,
// exit codes 7 and 77).
func refused(err error) error {
	e, ok := errors.AsType[*failure.Error](err)
	if !ok || e.Kind != failure.Forbidden {
		return err
	}
	return &failure.Error{Kind: e.Kind, Why: e.Why, Code: ipcapi.CodePolicy, Cause: err}
}
