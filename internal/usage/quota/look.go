package quota

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"ucloud-im/internal/driveplan"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/store"
	"ucloud-im/internal/usage"
)

// state is what the database says about an owner.
type state struct {
	drives  []store.Drive
	wallets map[string]store.Wallet
	quotas  map[string]store.DriveQuota
	usage   map[string]store.DriveUsage
}

func (w *Worker) read(ctx context.Context, owner ident.Owner) (s state, err error) {
	err = w.o.Store.View(ctx, func(tx *store.Tx) error {
		s = state{wallets: map[string]store.Wallet{}, quotas: map[string]store.DriveQuota{}, usage: map[string]store.DriveUsage{}}
		wallets, err := tx.WalletsOf(owner)
		if err != nil {
			return err
		}
		for _, x := range wallets {
			s.wallets[x.Category] = x
		}
		if s.drives, err = tx.DrivesOf(owner); err != nil {
			return err
		}
		for _, d := range s.drives {
			q, err := tx.DriveQuota(d.ProviderGeneratedID)
			if err == nil {
				s.quotas[d.ProviderGeneratedID] = q
			} else if !errors.Is(err, store.ErrNotFound) {
				return err
			}
			u, err := tx.DriveUsage(d.ProviderGeneratedID)
			if err == nil {
				s.usage[d.ProviderGeneratedID] = u
			} else if !errors.Is(err, store.ErrNotFound) {
				return err
			}
		}
		return nil
	})
	return s, err
}

// look does what there is to do for an owner and tells when to look again; the zero time: when something changes.
func (w *Worker) look(ctx context.Context, owner ident.Owner) (again time.Time) {
	sooner := func(t time.Time) {
		if !t.IsZero() && (again.IsZero() || t.Before(again)) {
			again = t
		}
	}
	s, err := w.read(ctx, owner)
	if err != nil {
		if ctx.Err() == nil {
			w.log.Error("the drives of an owner cannot be read", "owner", owner.Reference(), "error", err)
		}
		return time.Now().Add(lookAgain)
	}
	w.mu.Lock()
	categories := w.categories
	anew := w.again[owner]
	delete(w.again, owner)
	w.mu.Unlock()
	applied := false
	for _, d := range s.drives {
		c, ours := categories[d.Category]
		wallet, known := s.wallets[d.Category]
		// Without a word of Core nothing is done, in neither direction.
		if !ours || !known || d.State == store.DriveFailed {
			continue
		}
		did, next, err := w.drive(ctx, c, wallet, d, s, anew)
		if ctx.Err() != nil {
			return time.Time{} // the next start looks at everybody
		}
		if err != nil {
			w.log.Error("the quota of a drive cannot be looked at", "drive", d.Path, "error", err)
			next = time.Now().Add(lookAgain)
		}
		applied = applied || did
		sooner(next)
	}
	if applied {
		w.o.Applied(owner)
	}
	return again
}

// step is one call of a hook that is due.
type step struct {
	hook    *scripts.Hook
	digest  string
	request any
	done    func(*store.DriveQuota) // what holds after success
}

// drive brings one drive up to date; anew has the hook called in any case. did tells that a hook has succeeded.
func (w *Worker) drive(ctx context.Context, c Category, wallet store.Wallet, d store.Drive, s state, anew bool) (did bool, next time.Time, err error) {
	for {
		q := s.quotas[d.ProviderGeneratedID]
		q.ProviderGeneratedID = d.ProviderGeneratedID
		if anew { // as if nothing had been done
			q.Applied, q.Wanted, anew = "", "", false
		}
		st, err := w.step(ctx, c, wallet, d, s, q)
		if err != nil || st == nil {
			return did, time.Time{}, err
		}
		now := time.Now()
		if q.Wanted != st.digest {
			q.Wanted, q.Attempts, q.Since, q.NextAt, q.LastError = st.digest, 0, now, now, ""
		}
		if q.NextAt.IsZero() && !w.revive(d.ProviderGeneratedID) {
			return did, time.Time{}, nil
		}
		if q.NextAt.After(now) {
			return did, q.NextAt, nil
		}
		callErr := st.hook.Call(ctx, scripts.Call{
			Key: "drive/" + d.ProviderGeneratedID, Owner: d.Owner, Request: st.request, Attempt: q.Attempts + 1, Reason: reason(q),
		}, nil)
		if ctx.Err() != nil {
			return did, time.Time{}, nil // says nothing about the hook
		}
		w.conclude(&q, st, callErr)
		if err := w.o.Store.Update(ctx, func(tx *store.Tx) error { return tx.PutDriveQuota(q) }); err != nil {
			return did, time.Time{}, fmt.Errorf("store the outcome: %w", err)
		}
		s.quotas[d.ProviderGeneratedID] = q
		if callErr != nil {
			return did, q.NextAt, nil
		}
		did = true
	}
}

func reason(q store.DriveQuota) string {
	switch {
	case q.Attempts > 0:
		return "retry"
	case q.AppliedAt.IsZero():
		return "first time"
	}
	return "allocation changed"
}

// revive tells whether a drive that waits for an operator may be tried once more: a start or a reload may have changed
// what the hook has complained about.
func (w *Worker) revive(pgid string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.revived[pgid] {
		return false
	}
	w.revived[pgid] = true
	return true
}

// conclude notes in q how a call ended.
func (w *Worker) conclude(q *store.DriveQuota, st *step, err error) {
	now := time.Now()
	if err == nil {
		q.Attempts, q.NextAt, q.LastError = 0, now, ""
		st.done(q)
		return
	}
	q.Attempts++
	q.LastError = err.Error()
	var asked time.Duration
	retry := st.hook.Retry()
	park := retry.Deadline > 0 && now.Sub(q.Since) > retry.Deadline
	if e, ok := errors.AsType[*scripts.Error](err); ok {
		asked = e.RetryAfter
		park = park || !e.Kind.Retryable()
	}
	if park {
		// The runner has logged the failure; this is about what it means.
		w.log.Error("the quota of a drive waits for an operator", "drive", q.ProviderGeneratedID, "error", err)
		q.NextAt = time.Time{}
		w.mu.Lock()
		w.revived[q.ProviderGeneratedID] = true // not before the next start or reload
		w.mu.Unlock()
		return
	}
	q.NextAt = now.Add(retry.Pause(q.Attempts, asked))
}

// step is what is to be done for a drive; nil: nothing.
func (w *Worker) step(ctx context.Context, c Category, wallet store.Wallet, d store.Drive, s state, q store.DriveQuota) (*step, error) {
	units, locked := wallet.CombinedQuota, wallet.Locked
	if wallet.IsAllocator { // hands out and never uses
		units, locked = 0, true
	}
	bytes, exact, err := usage.Bytes(units, c.UnitBytes)
	if err != nil {
		return nil, err
	}
	if !exact {
		w.log.Warn("a quota is larger than can be written down", "owner", d.Owner.Reference(), "category", c.Name, "units", units)
	}
	locked = locked || bytes == 0
	if bytes == 0 && q.AppliedAt.IsZero() && (d.State == store.DriveDesired || d.State == store.DrivePrepared) {
		return nil, nil //nolint:nilnil // there is nothing to take away
	}
	update := scripts.QuotaUpdate{CombinedQuotaInBytes: bytes, Locked: locked, SharedBetween: shared(s.drives, c.Name)}
	digest, err := digestOf(d, update)
	if err != nil {
		return nil, err
	}
	change, removal := q.Applied != digest, bytes == 0 && !q.Removed && c.Removed != nil
	if !change && !removal {
		return nil, nil //nolint:nilnil // all is as it should be
	}
	description, owner, err := w.describe(ctx, d)
	if err != nil {
		if q.AppliedAt.IsZero() {
			return nil, err
		}
		// The directory is there, and a lock must not wait for a user to be connected again.
		w.log.Warn("the owner of a drive is not known here at present", "drive", d.Path, "error", err)
	}
	if !change {
		return &step{
			hook: c.Removed, digest: "removed " + digest, done: func(q *store.DriveQuota) { q.Removed = true },
			request: scripts.RemovedRequest{Drive: description, Owner: owner, Reason: "there is no allocation any more"},
		}, nil
	}
	request := scripts.QuotaRequest{Drive: description, QuotaUpdate: update, Owner: owner, FirstTime: q.AppliedAt.IsZero()}
	if u, ok := s.usage[d.ProviderGeneratedID]; ok && !u.MeasuredAt.IsZero() {
		request.UsageInBytes = &u.Bytes
	}
	return &step{hook: c.Updated, digest: digest, request: request, done: func(q *store.DriveQuota) {
		q.Applied, q.AppliedAt, q.Bytes, q.Locked = digest, time.Now(), bytes, locked
		q.Removed = q.Removed && bytes == 0
	}}, nil
}

// describe says what the hook needs to know about a drive. One whose locator is gone has no recommendations any more.
func (w *Worker) describe(ctx context.Context, d store.Drive) (scripts.DriveDescription, scripts.Workspace, error) {
	out := scripts.DriveDescription{Title: d.Title, LocatorName: d.Locator, CategoryName: d.Category, FilePath: d.Path}
	owner := scripts.WorkspaceOf(d.Owner)
	r, err := w.o.Recommend(ctx, d)
	if errors.Is(err, driveplan.ErrNoLocator) {
		return out, owner, nil
	}
	if err != nil {
		return out, owner, fmt.Errorf("recommend owner and mode: %w", err)
	}
	out.RecommendedOwnerName, out.RecommendedGroupName = r.Owner, r.Group
	out.RecommendedPermissions = fmt.Sprintf("%04o", r.Mode)
	Identify(&owner, r.Vars)
	return out, owner, nil
}

// Identify adds to a workspace what is known about it on this machine.
func Identify(w *scripts.Workspace, vars driveplan.Vars) {
	if n, err := strconv.ParseUint(vars[driveplan.VarUID], 10, 32); err == nil {
		uid := ident.UID(n)
		w.UID = &uid
	}
	if n, err := strconv.ParseUint(vars[driveplan.VarGID], 10, 32); err == nil {
		gid := ident.GID(n)
		w.GID = &gid
	}
	w.LocalUsername, w.LocalGroupName = vars[driveplan.VarLocalUsername], vars[driveplan.VarLocalGroupName]
	w.UCloudProjectTitle = vars[driveplan.VarProjectTitle]
}

// shared are the paths of several drives that share a quota; nil for one.
func shared(drives []store.Drive, category string) (paths []string) {
	for _, d := range drives {
		if d.Category == category && d.State != store.DriveFailed {
			paths = append(paths, d.Path)
		}
	}
	if len(paths) < 2 {
		return nil
	}
	slices.Sort(paths)
	return paths
}

// digestOf identifies what a hook is told: which directory, and what about it. Names and titles may change without need
// for another call.
func digestOf(d store.Drive, u scripts.QuotaUpdate) (string, error) {
	raw, err := json.Marshal([]any{d.ProviderGeneratedID, d.Path, u})
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:]), nil
}
