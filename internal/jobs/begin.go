package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

const (
	// leave is how long an instance may start sbatch. Core waits 5 s for the whole.
	leave = 20 * time.Second
	// settling is how long after the leave sbatch may be on its way to slurmctld. Instances kill it 10 s after the leave.
	settling = time.Minute
	// maxBegun is how many submissions of one account may be under way.
	maxBegun = 64
	// maxUnconfirmed is how many submitted jobs of one account may wait for Core's word that they are the account's: Core is
	// asked about each, and those of others wait behind them.
	maxUnconfirmed = 1000
)

// idForm is what may be an id of a job: it goes into comments and names of folders.
var idForm = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// comment is the mark by which a job is found again in Slurm.
func (s *Service) comment(id string) string { return "ucloud:" + s.o.Provider + ":" + id }

// claimOf is the id in a comment of ours.
func (s *Service) claimOf(comment string) (string, bool) {
	id, ok := strings.CutPrefix(comment, "ucloud:"+s.o.Provider+":")
	return id, ok && idForm.MatchString(id)
}

// wanted is a submission that has been looked at.
type wanted struct {
	job      providerapi.Job
	document string
	owner    ident.Owner
	machine  Machine
	limit    time.Duration
	account  string
	base     *ipcapi.FoundDrive
}

// begin gives leave to submit a job.
func (s *Service) begin(ctx context.Context, r *ipc.Request, b ipcapi.JobBeginning) (ipcapi.JobGrant, error) {
	return s.Begin(ctx, r.Grant.User, r.Peer.UID(), b)
}

// Begin gives a user, who is the account uid, leave to submit a job.
func (s *Service) Begin(ctx context.Context, user ident.UCloudUser, uid ident.UID, b ipcapi.JobBeginning) (ipcapi.JobGrant, error) {
	w, err := s.look(user, b)
	if err != nil {
		return ipcapi.JobGrant{}, err
	}
	// What was submitted needs no leave any more, whatever has become of allocation and membership.
	if known, err := s.submittedBefore(ctx, user, uid, w.job.ID); err != nil || known != nil {
		if err != nil {
			return ipcapi.JobGrant{}, err
		}
		return s.grant(known, w, true), nil
	}
	if err := s.mayRun(ctx, user, w); err != nil {
		return ipcapi.JobGrant{}, err
	}
	if w.account, err = s.o.Accounts.Account(ctx, w.owner, user, w.machine.Category, b.Account); err != nil {
		return ipcapi.JobGrant{}, err
	}
	if w.account == "" && s.o.Engine != nil {
		return ipcapi.JobGrant{}, failure.New(failure.Invalid, "There is no Slurm account for this workspace on machines of the kind %q", w.machine.Category)
	}
	if w.base, err = s.o.Base(ctx, w.owner, user); err != nil {
		return ipcapi.JobGrant{}, err
	}
	var row store.Job
	known := false
	err = s.o.Store.Update(ctx, func(tx *store.Tx) error {
		known = false
		row, err = tx.JobOf(w.job.ID, uid)
		switch {
		case errors.Is(err, store.ErrNotFound):
			return s.insertBegun(tx, &row, user, uid, w)
		case err != nil:
			return err
		case row.CreatedBy != user:
			return errUnknown
		case row.Submission == store.JobSubmitted:
			known = true
			return nil
		case row.Submission == store.JobBegun:
			return failure.New(failure.Conflict, "This job is being submitted. Wait a moment.")
		}
		return s.beginAgain(tx, &row, w)
	})
	if err != nil {
		return ipcapi.JobGrant{}, err
	}
	return s.grant(&row, w, known), nil
}

// look decodes and checks what can be checked without asking anybody.
func (s *Service) look(user ident.UCloudUser, b ipcapi.JobBeginning) (*wanted, error) {
	if len(b.Job) > ipcapi.MaxJob {
		return nil, failure.New(failure.TooLarge, "The description of the job is too long")
	}
	w := &wanted{}
	if err := json.Unmarshal(b.Job, &w.job); err != nil {
		return nil, failure.Wrap(err, failure.Invalid, "The description of the job cannot be read")
	}
	spec := &w.job.Specification
	w.owner = w.job.Owner.Workspace()
	set := s.o.Settings()
	m, ok := set.Machine(spec.Product)
	switch {
	case !idForm.MatchString(w.job.ID):
		return nil, failure.New(failure.Invalid, "This is not the id of a job")
	case user == "" || w.job.Owner.CreatedBy != user || !w.owner.Valid():
		return nil, failure.New(failure.Forbidden, "This job is somebody else's")
	case !ok:
		return nil, failure.New(failure.Invalid, "There is no machine %q here", clip(spec.Product.ID, 100))
	case spec.Replicas < 1:
		return nil, failure.New(failure.Invalid, "A job needs at least one node")
	case m.MaxNodes > 0 && spec.Replicas > m.MaxNodes:
		return nil, failure.New(failure.Invalid, "A job may have at most %d nodes of this kind", m.MaxNodes)
	case spec.Replicas > maxReplicas:
		return nil, failure.New(failure.Invalid, "A job cannot have that many nodes")
	}
	w.machine = m
	if spec.TimeAllocation != nil {
		w.limit = spec.TimeAllocation.Duration()
	}
	if m.MaxTime > 0 && w.limit > m.MaxTime {
		return nil, failure.New(failure.Invalid, "A job on machines of this kind may run for at most %s", duration(m.MaxTime))
	}
	var err error
	w.document, err = withoutSecrets(b.Job)
	return w, err
}

const maxReplicas = 100_000

// mayRun checks membership and wallet.
func (s *Service) mayRun(ctx context.Context, user ident.UCloudUser, w *wanted) error {
	return s.o.Store.View(ctx, func(tx *store.Tx) error {
		if w.owner.IsProject() {
			belongs, _, err := member(tx, w.owner.Project, user)
			if err != nil {
				return err
			}
			if !belongs {
				return failure.New(failure.NotFound, "You do not belong to this project, as far as this provider knows. If you joined it just now, try again in a minute.")
			}
		}
		if w.machine.FreeToUse {
			return nil
		}
		wallet, err := tx.Wallet(w.owner, w.machine.Category)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if err != nil || wallet.Locked {
			return failure.New(failure.PaymentRequired, "The allocation of this workspace for %s is used up or has expired", w.machine.Category)
		}
		return nil
	})
}

// submittedBefore is the row of a job of the caller that has been submitted, nil if it has not.
func (s *Service) submittedBefore(ctx context.Context, user ident.UCloudUser, uid ident.UID, id string) (found *store.Job, err error) {
	err = s.o.Store.View(ctx, func(tx *store.Tx) error {
		found = nil
		j, err := tx.JobOf(id, uid)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err == nil && j.Submission == store.JobSubmitted && j.CreatedBy == user {
			found = &j
		}
		return err
	})
	return found, err
}

// insertBegun stores the first attempt.
func (s *Service) insertBegun(tx *store.Tx, row *store.Job, user ident.UCloudUser, uid ident.UID, w *wanted) error {
	open, err := tx.OpenJobsOf(uid)
	if err != nil {
		return err
	}
	begun, unconfirmed := 0, 0
	for i := range open {
		switch {
		case open[i].Submission == store.JobBegun:
			begun++
		case open[i].CoreKnown == 0:
			unconfirmed++
		}
	}
	if begun >= maxBegun || unconfirmed >= maxUnconfirmed {
		return failure.New(failure.TooMany, "Too many jobs are being submitted. Try again in a few minutes.")
	}
	now := s.o.Now()
	*row = store.Job{ID: w.job.ID, UID: uid, CreatedBy: user, CreatedAt: now, Attempt: 1}
	s.fill(row, w, now)
	row.Key, err = tx.InsertJob(*row)
	return err
}

// beginAgain stores another attempt of a job of which nothing runs.
func (s *Service) beginAgain(tx *store.Tx, row *store.Job, w *wanted) error {
	if err := tx.DropJobUpdates(row.Key); err != nil {
		return err
	}
	*row = store.Job{Key: row.Key, ID: row.ID, UID: row.UID, CreatedBy: row.CreatedBy, CreatedAt: row.CreatedAt, Attempt: row.Attempt + 1}
	s.fill(row, w, s.o.Now())
	if err := tx.UpdateJob(*row); err != nil {
		return err
	}
	return tx.SetJobDocument(row.Key, w.document)
}

// fill sets what an attempt sets.
func (s *Service) fill(row *store.Job, w *wanted, now time.Time) {
	spec := &w.job.Specification
	row.Owner, row.Engine, row.Submission, row.Until = w.owner, s.engine(), store.JobBegun, now.Add(leave)
	row.Account, row.Partition, row.QoS = w.account, w.machine.Partition, w.machine.QoS
	row.Product, row.Category = w.machine.Name, w.machine.Category
	row.State = providerapi.JobInQueue
	row.Name = clip(spec.Name, 200)
	row.AppName, row.AppVersion = clip(spec.Application.Name, 200), clip(spec.Application.Version, 200)
	row.Replicas, row.LimitMs, row.Document = spec.Replicas, w.limit.Milliseconds(), w.document
	if app := w.job.Status.ResolvedApplication; app != nil {
		switch t := app.Invocation.ApplicationType; t {
		case providerapi.ApplicationWeb, providerapi.ApplicationVNC:
			row.AppType = t
			if set := s.o.Settings(); set.PortMin > 0 && set.PortMax >= set.PortMin {
				row.Port = set.PortMin + rand.IntN(set.PortMax-set.PortMin+1) //nolint:gosec // spreads, protects nothing
			}
		case providerapi.ApplicationBatch:
			row.AppType = t
		}
	}
}

// grant is the answer.
func (s *Service) grant(row *store.Job, w *wanted, known bool) ipcapi.JobGrant {
	return ipcapi.JobGrant{
		Known: known, ProviderGeneratedID: row.PGID, Engine: row.Engine, Account: row.Account, Partition: w.machine.Partition,
		QoS: w.machine.QoS, Constraint: w.machine.Constraint, Comment: s.comment(row.ID), Machine: w.machine.JobMachine,
		Exclusive: w.machine.Exclusive, MaxTimeMs: w.machine.MaxTime.Milliseconds(), MaxNodes: w.machine.MaxNodes, Base: w.base,
		Folder: s.o.Settings().Folder, Port: row.Port, Attempt: row.Attempt, Until: row.Until,
	}
}

// withoutSecrets is the document as it is stored: without values that carry secrets, and without what Core has anyway and
// what is long (contract 20 section 7 rule 12).
func withoutSecrets(raw []byte) (string, error) {
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(raw, &doc); err != nil {
		return "", failure.Wrap(err, failure.Invalid, "The description of the job cannot be read")
	}
	without(doc, "updates")
	if err := edit(doc, "status", func(status map[string]json.RawMessage) error {
		for _, long := range []string{"resolvedApplication", "resolvedProduct", "resolvedSupport", "jobParametersJson"} {
			without(status, long)
		}
		return nil
	}); err != nil {
		return "", err
	}
	secret := func(value json.RawMessage) bool {
		var kind struct {
			Type string `json:"type"`
		}
		return json.Unmarshal(value, &kind) != nil || kind.Type == "api_server"
	}
	if err := edit(doc, "specification", func(spec map[string]json.RawMessage) error {
		if err := edit(spec, "parameters", func(all map[string]json.RawMessage) error {
			for name, value := range all {
				if secret(value) {
					delete(all, name)
				}
			}
			return nil
		}); err != nil {
			return err
		}
		unambiguous(spec, "resources")
		var list, kept []json.RawMessage
		if err := json.Unmarshal(spec["resources"], &list); err != nil || list == nil {
			delete(spec, "resources")
			return nil
		}
		kept = []json.RawMessage{}
		for _, value := range list {
			if !secret(value) {
				kept = append(kept, value)
			}
		}
		b, err := json.Marshal(kept)
		spec["resources"] = b
		return err
	}); err != nil {
		return "", err
	}
	b, err := json.Marshal(doc)
	return string(b), err
}

// without removes a member however its name is written: package json reads "Specification" as "specification", and so would
// whoever decodes the document later.
func without(doc map[string]json.RawMessage, key string) {
	for name := range doc {
		if strings.EqualFold(name, key) {
			delete(doc, name)
		}
	}
}

// unambiguous leaves of a member only what has its exact name.
func unambiguous(doc map[string]json.RawMessage, key string) {
	exact, ok := doc[key]
	without(doc, key)
	if ok {
		doc[key] = exact
	}
}

// edit changes an object within an object; one that is not there, or is no object, is removed.
func edit(doc map[string]json.RawMessage, key string, f func(map[string]json.RawMessage) error) error {
	unambiguous(doc, key)
	var inner map[string]json.RawMessage
	if err := json.Unmarshal(doc[key], &inner); err != nil || inner == nil {
		delete(doc, key)
		return nil
	}
	if err := f(inner); err != nil {
		return err
	}
	b, err := json.Marshal(inner)
	doc[key] = b
	return err
}

// clip makes a text from a caller fit for a column and a sentence.
func clip(text string, most int) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "")
	}
	return text
}

// duration says a length of time in words.
func duration(d time.Duration) string {
	switch {
	case d >= 48*time.Hour && d%(24*time.Hour) == 0:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	case d%time.Hour == 0:
		return fmt.Sprintf("%d hours", d/time.Hour)
	}
	return fmt.Sprintf("%d minutes", d/time.Minute)
}
