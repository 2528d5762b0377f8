package drivelookup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

const (
	// keepFound is how long an answer of Core is good. What matters in it never changes at Core: the owner and the id
	// that we gave the drive.
	keepFound = 10 * time.Minute
	// keepMissing is shorter: the drive may be made at any moment.
	keepMissing = 15 * time.Second
	// maxKept bounds the memory to a few MiB.
	maxKept = 10_000
	// coreTimeout bounds a question to Core. Core itself waits 5 s for the request that caused it.
	coreTimeout = 3 * time.Second
	// maxLimiters bounds how many accounts are told apart.
	maxLimiters = 10_000
)

// Questions to Core: for each account, and in all.
const (
	userRate, userBurst = rate.Limit(1), 20
	allRate, allBurst   = rate.Limit(20), 200
)

// Core is what the service asks of UCloud/Core; [coreapi.Client] is the implementation.
type Core interface {
	RetrieveDrive(ctx context.Context, id ident.DriveID) (providerapi.Drive, error)
}

// Options configure a [Service]. All are required, except UserDrives and Now.
type Options struct {
	Provider string
	Store    *store.Store
	Core     Core
	Log      *slog.Logger
	// UserDrives gives where users may make drives in a category; false: nowhere. nil: nowhere at all.
	UserDrives func(category string) (UserDrives, bool)
	Now        func() time.Time // nil: time.Now
}

// Service finds drives. It is safe for concurrent use and starts nothing.
type Service struct {
	o      Options
	log    *slog.Logger
	flight singleflight.Group

	mu       sync.Mutex // guards the fields below
	kept     map[ident.DriveID]kept
	limiters map[ident.UID]*rate.Limiter
	all      *rate.Limiter
}

// kept is an answer of Core.
type kept struct {
	drive ipcapi.FoundDrive
	found bool
	until time.Time
}

// New makes a Service.
func New(o Options) *Service {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Service{
		o: o, log: o.Log.With("part", "drivelookup"), kept: map[ident.DriveID]kept{},
		limiters: map[ident.UID]*rate.Limiter{}, all: rate.NewLimiter(allRate, allBurst),
	}
}

// Register adds the call to the IPC server.
func (s *Service) Register(srv *ipc.Server) {
	ipc.Handle(srv, ipcapi.DriveFind, func(ctx context.Context, r *ipc.Request, q ipcapi.DriveRef) (ipcapi.FoundDrive, error) {
		return s.Find(ctx, r.Grant.User, r.Peer.UID(), q.ID)
	})
	ipc.Handle(srv, ipcapi.DrivePlace, func(ctx context.Context, r *ipc.Request, q ipcapi.DrivePlaceQuery) (ipcapi.DrivePlaceReply, error) {
		owner := ident.Owner{User: r.Grant.User}
		if q.Project != "" {
			owner = ident.Owner{Project: q.Project}
		}
		return s.Place(ctx, r.Grant.User, owner, q.Category)
	})
}

// errUnknown is the answer for what does not exist, and for what is not the caller's.
var errUnknown = failure.New(failure.NotFound, "This drive does not exist, or you do not belong to its workspace")

// Find gives a drive of the user's workspaces. uid is who pays for a question to Core.
func (s *Service) Find(ctx context.Context, user ident.UCloudUser, uid ident.UID, id ident.DriveID) (ipcapi.FoundDrive, error) {
	if !plausible(id) {
		return ipcapi.FoundDrive{}, failure.New(failure.Invalid, "This is not the id of a drive")
	}
	d, found, err := s.lookUp(ctx, uid, id)
	if err != nil {
		return ipcapi.FoundDrive{}, err
	}
	if !found {
		return ipcapi.FoundDrive{}, errUnknown
	}
	ok, err := s.belongs(ctx, user, d.Owner)
	if err != nil {
		return ipcapi.FoundDrive{}, err
	}
	if !ok {
		return ipcapi.FoundDrive{}, errUnknown
	}
	return d, nil
}

// plausible tells whether Core can have given the id: a positive decimal number in its shortest form.
func plausible(id ident.DriveID) bool {
	n, err := strconv.ParseInt(string(id), 10, 64)
	return err == nil && n > 0 && strconv.FormatInt(n, 10) == string(id)
}

// lookUp gives a drive whoever it belongs to.
func (s *Service) lookUp(ctx context.Context, uid ident.UID, id ident.DriveID) (d ipcapi.FoundDrive, found bool, err error) {
	err = s.o.Store.View(ctx, func(tx *store.Tx) error {
		row, err := tx.DriveByID(id)
		if errors.Is(err, store.ErrNotFound) {
			found = false
			return nil
		}
		d, found = foundDrive(&row), err == nil
		return err
	})
	if err != nil || found {
		return d, found, err
	}
	if k, ok := s.keptOf(id); ok {
		return k.drive, k.found, nil
	}
	if err := s.mayAsk(uid); err != nil {
		return d, false, err
	}
	// Whoever asks meanwhile waits for the same answer, also if the first one has hung up.
	answer := s.flight.DoChan(string(id), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), coreTimeout)
		defer cancel()
		return s.ask(ctx, id)
	})
	select {
	case r := <-answer:
		if r.Err != nil {
			return d, false, r.Err
		}
		k := r.Val.(kept) //nolint:forcetypeassert // see ask
		return k.drive, k.found, nil
	case <-ctx.Done():
		return d, false, ctx.Err()
	}
}

func (s *Service) keptOf(id ident.DriveID) (kept, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, ok := s.kept[id]
	return k, ok && s.o.Now().Before(k.until)
}

// mayAsk bounds the questions to Core.
func (s *Service) mayAsk(uid ident.UID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.o.Now()
	l := s.limiters[uid]
	if l == nil {
		if len(s.limiters) >= maxLimiters {
			for other, old := range s.limiters { // who has not asked for long is as good as new
				if old.TokensAt(now) >= userBurst {
					delete(s.limiters, other)
				}
			}
		}
		l = rate.NewLimiter(userRate, userBurst)
		s.limiters[uid] = l
	}
	if !l.AllowN(now, 1) || !s.all.AllowN(now, 1) {
		return failure.New(failure.TooMany, "Too many drives are being looked up. Try again in a few seconds.")
	}
	return nil
}

// ask asks Core and keeps the answer.
func (s *Service) ask(ctx context.Context, id ident.DriveID) (kept, error) {
	d, err := s.o.Core.RetrieveDrive(ctx, id)
	now := s.o.Now()
	k := kept{until: now.Add(keepMissing)}
	switch status := coreapi.Status(err); {
	case status == http.StatusForbidden || status == http.StatusNotFound: // not ours, or unknown (recordings 06 section 9)
	case err != nil:
		// A 4xx, since Core does not show the text of anything else, and 503 would make it repeat the call.
		return k, failure.Wrap(err, failure.NotFound, "UCloud could not be asked about this drive. Try again later.")
	default:
		k.drive, err = s.translate(&d)
		if err != nil {
			s.log.Warn("Core describes a drive of ours that is none", "drive", id, "error", err)
		} else {
			k.found = true
			if d.ProviderGeneratedID != "" { // else it is being made
				k.until = now.Add(keepFound)
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.kept) >= maxKept {
		for other, old := range s.kept {
			if !now.Before(old.until) || len(s.kept) >= maxKept {
				delete(s.kept, other) // any one: it is asked for again
			}
		}
	}
	s.kept[id] = k
	return k, nil
}

// translate takes from Core's drive what instances need.
func (s *Service) translate(d *providerapi.Drive) (ipcapi.FoundDrive, error) {
	p := d.Specification.Product
	owner := d.Owner.Workspace()
	switch {
	case p.Provider != s.o.Provider:
		return ipcapi.FoundDrive{}, fmt.Errorf("its product is of provider %q", p.Provider)
	case !owner.Valid() || owner.User == ident.SystemUser:
		return ipcapi.FoundDrive{}, errors.New("it has no owner")
	}
	return ipcapi.FoundDrive{
		ID: d.ID, Owner: owner, ProviderGeneratedID: d.ProviderGeneratedID, Title: d.Specification.Title,
		Product: p.ID, Category: p.Category,
	}, nil
}

// belongs tells whether the workspace is the user's own or one of the user's projects, as Core has described it last.
func (s *Service) belongs(ctx context.Context, user ident.UCloudUser, owner ident.Owner) (bool, error) {
	if user == "" || !owner.Valid() {
		return false, nil
	}
	if !owner.IsProject() {
		return owner.User == user, nil
	}
	member := false
	err := s.o.Store.View(ctx, func(tx *store.Tx) error {
		p, err := tx.Project(owner.Project)
		if errors.Is(err, store.ErrNotFound) {
			member = false
			return nil
		}
		member = slices.ContainsFunc(p.Document.Status.Members, func(m providerapi.ProjectMember) bool { return m.Username == user })
		return err
	})
	return member, err
}
