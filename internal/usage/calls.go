package usage

import (
	"context"
	"errors"
	"slices"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/store"
	"ucloud-im/internal/usage/scan"
)

const (
	// lease is how long a scan belongs to an instance that says nothing.
	lease = 10 * time.Minute
	// askAgain is when an instance looks for the next scan.
	askAgain = 15 * time.Minute
	// askNever is that where nothing is measured by scans.
	askNever = 6 * time.Hour
	// scanFailed is the pause after a scan that failed.
	scanFailed = time.Hour
)

// Register adds the calls of instances to the server.
func (s *Service) Register(srv *ipc.Server) {
	ipc.Handle(srv, ipcapi.UsageLocked, s.locked)
	ipc.Handle(srv, ipcapi.UsageWork, s.work)
	ipc.Handle(srv, ipcapi.UsageScanned, s.scanned)
}

// Locked tells whether new data of an owner must be refused. known is false for a wallet that Core has never spoken of,
// which counts as locked (contract 30 section 4).
func (s *Service) Locked(ctx context.Context, owner ident.Owner, category string) (locked, known bool, err error) {
	s.mu.Lock()
	free := s.categories[category].FreeToUse
	s.mu.Unlock()
	if free { // has no wallets
		return false, true, nil
	}
	var w store.Wallet
	err = s.o.Store.View(ctx, func(tx *store.Tx) error { w, err = tx.Wallet(owner, category); return err })
	if errors.Is(err, store.ErrNotFound) {
		return true, false, nil
	}
	return w.Locked || err != nil, err == nil, err
}

func (s *Service) locked(ctx context.Context, r *ipc.Request, q ipcapi.LockQuery) (ipcapi.LockReply, error) {
	owner := ident.Owner{User: r.Grant.User}
	if q.Project != "" {
		projects, err := s.projects(ctx, r.Grant.User)
		if err != nil {
			return ipcapi.LockReply{}, err
		}
		if !slices.Contains(projects, q.Project) {
			return ipcapi.LockReply{}, failure.New(failure.Forbidden, "You are not a member of this project")
		}
		owner = ident.Owner{Project: q.Project}
	}
	locked, known, err := s.Locked(ctx, owner, q.Category)
	return ipcapi.LockReply{Locked: locked, Known: known}, err
}

func (s *Service) projects(ctx context.Context, u ident.UCloudUser) (ids []ident.ProjectID, err error) {
	err = s.o.Store.View(ctx, func(tx *store.Tx) error {
		ids = nil
		list, err := tx.ProjectsOf(u)
		for _, p := range list {
			ids = append(ids, p.ID)
		}
		return err
	})
	return ids, err
}

// work hands out the scan that has waited longest among the drives of the caller.
func (s *Service) work(ctx context.Context, r *ipc.Request, _ ipcapi.Empty) (job ipcapi.UsageJob, err error) {
	uid := r.Peer.UID()
	err = s.o.Store.Update(ctx, func(tx *store.Tx) error {
		job = ipcapi.UsageJob{RetryMs: askNever.Milliseconds()}
		if !s.scans() {
			return nil
		}
		job.RetryMs = askAgain.Milliseconds()
		owners := []ident.Owner{{User: r.Grant.User}}
		projects, err := tx.ProjectsOf(r.Grant.User)
		if err != nil {
			return err
		}
		for _, p := range projects {
			owners = append(owners, ident.Owner{Project: p.ID})
		}
		best, state, err := s.candidate(tx, r.Grant.User, owners, uid)
		if err != nil || best == nil {
			return err
		}
		s.mu.Lock()
		rate := s.categories[best.Category].ScanRate
		s.mu.Unlock()
		job = ipcapi.UsageJob{Drive: best.ProviderGeneratedID, Path: best.Path, State: state, Rate: rate}
		if err := s.byQuota(tx, *best, &job); err != nil {
			return err
		}
		now := time.Now()
		return tx.PutUsageScan(store.UsageScan{
			ProviderGeneratedID: best.ProviderGeneratedID, State: state, UID: uid, LeaseUntil: now.Add(lease), UpdatedAt: now,
		})
	})
	return job, err
}

// byQuota says which quota of the file system would tell what a drive holds: that of the user who has nothing else
// there, or that of a project's group. A member's drive is a part of both.
func (s *Service) byQuota(tx *store.Tx, d store.Drive, job *ipcapi.UsageJob) error {
	if d.Member != "" {
		return nil
	}
	if d.Owner.IsProject() {
		gid, _, err := tx.ProjectGroup(d.Owner.Project)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		job.Quota, job.GID = ipcapi.QuotaGroup, gid
		return err
	}
	job.Quota = ipcapi.QuotaUser
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, c := range s.categories {
		for locator, roots := range c.Roots {
			if name != d.Category || locator != d.Locator {
				job.Others = append(job.Others, roots...)
			}
		}
	}
	return nil
}

// scans tells whether any category is measured by scans.
func (s *Service) scans() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.categories {
		if c.Scan {
			return true
		}
	}
	return false
}

// candidate is the drive that an instance should scan next; nil: none.
func (s *Service) candidate(tx *store.Tx, user ident.UCloudUser, owners []ident.Owner, uid ident.UID) (best *store.Drive, state []byte, err error) {
	now := time.Now()
	var waits time.Time
	for _, owner := range owners {
		drives, err := tx.DrivesOf(owner)
		if err != nil {
			return nil, nil, err
		}
		for _, d := range drives {
			s.mu.Lock()
			c := s.categories[d.Category]
			_, wanted := s.needScan[d.ProviderGeneratedID]
			s.mu.Unlock()
			if !c.Scan || !wanted || !measurable(d.State) || (d.Member != "" && d.Member != user) {
				continue
			}
			u, err := tx.DriveUsage(d.ProviderGeneratedID)
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return nil, nil, err
			}
			pause := c.ScanInterval
			if u.Method == MethodQuota { // that costs nothing
				pause = c.Interval
			}
			if now.Sub(u.MeasuredAt) < pause || (u.Misses > 0 && now.Sub(u.TriedAt) < scanFailed) {
				continue
			}
			sc, err := tx.UsageScan(d.ProviderGeneratedID)
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return nil, nil, err
			}
			if err == nil && sc.UID != uid && now.Before(sc.LeaseUntil) {
				continue // somebody else of the project is at it
			}
			if best == nil || u.MeasuredAt.Before(waits) {
				best, state, waits = &d, sc.State, u.MeasuredAt
			}
		}
	}
	return best, state, nil
}

// scanned takes in where a scan is. It comes from a process of the user: of a drive that the user may read it can say
// what it likes, of others nothing, because only who was given the scan may speak of it.
func (s *Service) scanned(ctx context.Context, r *ipc.Request, p ipcapi.UsageProgress) (v ipcapi.UsageVerdict, err error) {
	if len(p.State) > ipcapi.MaxScanState || len(p.Error) > 1000 {
		return v, failure.New(failure.TooLarge, "The state of the scan is too long")
	}
	state, err := scan.Decode(p.State)
	if err != nil {
		return v, failure.Wrap(err, failure.Invalid, "The state of the scan is damaged")
	}
	id := p.Drive
	finished := false
	err = s.o.Store.Update(ctx, func(tx *store.Tx) error {
		v, finished = ipcapi.UsageVerdict{}, false
		sc, err := tx.UsageScan(id)
		if errors.Is(err, store.ErrNotFound) || (err == nil && sc.UID != r.Peer.UID()) {
			return nil // not the caller's, or not any more
		}
		if err != nil {
			return err
		}
		if !state.Done && p.Error == "" {
			now := time.Now()
			sc.State, sc.LeaseUntil, sc.UpdatedAt, v.Continue = p.State, now.Add(lease), now, true
			return tx.PutUsageScan(sc)
		}
		finished = true
		m := Measurement{Bytes: state.Totals.Bytes, Files: state.Totals.Files, Method: MethodScan}
		u, err := note(tx, id, m, p.Error == "", errors.New("scan: "+p.Error))
		if err == nil && p.Error == "" && p.Quota {
			u.Method = MethodQuota
			err = tx.PutDriveUsage(u)
		}
		if err == nil && p.Error == "" && state.Totals.Unreadable+state.Totals.Lost > 0 {
			u.LastError = "parts of the drive could not be read by the scan"
			err = tx.PutDriveUsage(u)
		}
		if err != nil {
			return err
		}
		return tx.DeleteUsageScan(id)
	})
	if err == nil && finished {
		signal(s.dirty)
	}
	return v, err
}
