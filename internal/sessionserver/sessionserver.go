// Package sessionserver keeps the sessions behind the links of uploads, downloads and transfers (contract 11 sections 1
// and 5.1): an instance asks for them over IPC, the server stores them as one-time tokens, so that they survive a
// restart of either.
//
// # Trust
//
// The caller is an instance, that is, a process of a user. The kernel says which account it has, and the mapping which
// UCloud user that is; nothing of it is taken from the request. What the instance says about the drive is compared with
// what the server knows itself, and decides nothing where the server knows better.
//
// # Properties, and the tests that prove them
//
//   - A session is found by its own user under its own account only; to everybody else it is unknown (TestBoundToAccount).
//   - Whether the user may still use the drive is decided at each use, not at the creation: membership of the project,
//     read-only drives, locked workspaces (TestRechecked).
//   - A user has a bounded number of sessions. When the bound is reached, those that have done their work make room
//     (TestDoneMakesRoom, TestDownloadsMakeRoom).
package sessionserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/onetime"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

// Options are what the handlers need.
type Options struct {
	Store  *store.Store    // required
	Tokens *onetime.Tokens // required, over the same database
	Log    *slog.Logger    // required

	// Limits by purpose. Zero values mean [onetime.UploadLimits], [onetime.DownloadLimits] with an idle time of a day,
	// and [onetime.TransferLimits]. They may change at run time.
	Upload, Download func() onetime.Limits
}

// Server answers the calls of [ipcapi.SessionCreate] and its neighbours.
type Server struct {
	o   Options
	log *slog.Logger
}

// New makes a Server.
func New(o Options) *Server {
	if o.Upload == nil {
		o.Upload = func() onetime.Limits { return onetime.UploadLimits }
	}
	if o.Download == nil {
		o.Download = func() onetime.Limits {
			l := onetime.DownloadLimits
			l.Idle = 24 * time.Hour
			return l
		}
	}
	return &Server{o: o, log: o.Log.With("part", "sessions")}
}

// Register adds the calls to the IPC server.
func (s *Server) Register(to *ipc.Server) {
	ipc.Handle(to, ipcapi.SessionCreate, s.create)
	ipc.Handle(to, ipcapi.SessionPeek, s.peek)
	ipc.Handle(to, ipcapi.SessionConsume, s.consume)
	ipc.Handle(to, ipcapi.SessionTouch, s.touch)
	ipc.Handle(to, ipcapi.SessionWills, s.wills)
	ipc.Handle(to, ipcapi.SessionClose, s.close)
}

// record is what is stored with a token.
type record struct {
	UID      ident.UID     `json:"uid"` // the account that made it
	Drive    ident.DriveID `json:"drive"`
	Owner    ident.Owner   `json:"owner"`
	Category string        `json:"category"`
	Known    bool          `json:"known"` // the drive was one of ours at the time
	Data     []byte        `json:"data"`
	Note     []byte        `json:"note,omitempty"`
	Done     bool          `json:"done,omitempty"`
	Will     []byte        `json:"will,omitempty"`
}

func (s *Server) limits(purpose string) (onetime.Limits, error) {
	switch purpose {
	case ipcapi.PurposeUpload:
		return s.o.Upload(), nil
	case ipcapi.PurposeDownload:
		return s.o.Download(), nil
	case ipcapi.PurposeTransfer:
		return onetime.TransferLimits, nil
	case ipcapi.PurposeSource:
		return onetime.SourceLimits, nil
	case ipcapi.PurposeShell:
		return onetime.TerminalLimits, nil
	}
	return onetime.Limits{}, failure.New(failure.Invalid, "The purpose of the session is unknown")
}

func (s *Server) create(ctx context.Context, r *ipc.Request, req ipcapi.SessionCreation) (ipcapi.SessionTokens, error) {
	limits, err := s.limits(req.Purpose)
	if err != nil {
		return ipcapi.SessionTokens{}, err
	}
	if len(req.Items) == 0 || len(req.Items) > ipcapi.MaxSessionItems {
		return ipcapi.SessionTokens{}, failure.New(failure.Invalid, "Between 1 and %d sessions can be made at a time", ipcapi.MaxSessionItems)
	}
	var tokens []string
	err = s.o.Store.Update(ctx, func(tx *store.Tx) error {
		tokens = tokens[:0]
		for i := range req.Items {
			item := &req.Items[i]
			// A terminal in a job has no drive.
			if item.Drive == "" && req.Purpose != ipcapi.PurposeShell || item.Object == "" || len(item.Data) > ipcapi.MaxSessionData || len(item.Object) > ipcapi.MaxSessionData {
				return failure.New(failure.Invalid, "The session is not described completely, or at too great length")
			}
			rec := record{UID: r.Peer.UID(), Drive: item.Drive, Owner: item.Owner, Category: item.Category, Data: item.Data}
			if err := allowed(tx, r.Grant.User, req.Purpose, &rec, true); err != nil {
				return err
			}
			text, err := s.issue(tx, r.Grant.User, req.Purpose, item.Object, limits, &rec)
			if err != nil {
				return err
			}
			tokens = append(tokens, text)
		}
		return nil
	})
	if err != nil {
		return ipcapi.SessionTokens{}, err
	}
	return ipcapi.SessionTokens{Tokens: tokens}, nil
}

// issue stores one session. When the user has too many, old ones that have done their work are removed first.
func (s *Server) issue(tx *store.Tx, user ident.UCloudUser, purpose, object string, limits onetime.Limits, rec *record) (string, error) {
	data, err := json.Marshal(rec)
	if err != nil {
		return "", fmt.Errorf("encode session: %w", err)
	}
	spec := onetime.Spec{Purpose: purpose, User: user, Object: object, Limits: limits, Data: data}
	text, err := s.o.Tokens.IssueTx(tx, spec)
	if !failure.Is(err, failure.TooMany) {
		return text, err
	}
	freed, freeErr := makeRoom(tx, user, purpose, s.o.Tokens.Now())
	if freeErr != nil {
		return "", freeErr
	}
	if freed == 0 {
		return "", err
	}
	return s.o.Tokens.IssueTx(tx, spec)
}

const (
	// roomLook is how many sessions are looked at when a user has too many, and roomStep how many make room at a time: the
	// oldest, because a client whose answer was lost may come once more to a session that is done.
	roomLook = 5000
	roomStep = 100
	// downloadRest is after which time without a use a download counts as done. It ends by itself a day later, and who
	// downloads many files makes more of them in a day than there may be.
	downloadRest = 10 * time.Minute
)

func makeRoom(tx *store.Tx, user ident.UCloudUser, purpose string, now time.Time) (freed int, err error) {
	old, err := tx.OldestTokens(user, purpose, roomLook)
	if err != nil {
		return 0, err
	}
	for _, t := range old {
		if freed == roomStep {
			break
		}
		var rec record
		rested := purpose == ipcapi.PurposeDownload && t.UsedAt != nil && now.Sub(*t.UsedAt) > downloadRest
		if json.Unmarshal(t.Data, &rec) == nil && !rec.Done && !rested {
			continue
		}
		if err := tx.DeleteToken(t.Hash); err != nil {
			return freed, err
		}
		freed++
	}
	return freed, nil
}

// allowed decides whether the user may use the drive now (contract 11 section 1 and "must get right"). What the server
// has registered itself it knows better than the record. Permissions inside of a project are Core's, and are not known
// here: they were checked by Core and by the instance when the session was made.
func allowed(tx *store.Tx, user ident.UCloudUser, purpose string, rec *record, creating bool) error {
	// Who has used up the storage needs a terminal to make room.
	write := purpose != ipcapi.PurposeDownload && purpose != ipcapi.PurposeSource && purpose != ipcapi.PurposeShell
	owner, category := rec.Owner, rec.Category
	if rec.Drive == "" {
		return member(tx, user, owner)
	}
	d, err := tx.DriveByID(rec.Drive)
	switch {
	case err == nil:
		owner, category = d.Owner, d.Category
		if creating {
			rec.Known = true
		}
		if write && d.ReadOnly {
			return failure.New(failure.Forbidden, "Nothing can be written to this drive at the moment")
		}
	case !errors.Is(err, store.ErrNotFound):
		return err
	case rec.Known:
		return failure.New(failure.NotFound, "The drive does not exist any more")
	}
	if err := member(tx, user, owner); err != nil {
		return err
	}
	if !write || !owner.Valid() {
		return nil
	}
	w, err := tx.Wallet(owner, category)
	switch {
	case err == nil && w.Locked:
		return failure.New(failure.PaymentRequired, "The storage allocation of this workspace is used up")
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return err
	}
	return nil
}

// member refuses who has left the project, as far as the server knows.
func member(tx *store.Tx, user ident.UCloudUser, owner ident.Owner) error {
	if !owner.IsProject() {
		return nil
	}
	p, err := tx.Project(owner.Project)
	switch {
	case err == nil && !slices.ContainsFunc([]providerapi.ProjectMember(p.Document.Status.Members), func(m providerapi.ProjectMember) bool { return m.Username == user }):
		return failure.New(failure.Forbidden, "You are not a member of the project any more")
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return err
	}
	return nil
}

// errUnknown is the answer to every session that is not the caller's, as if it did not exist.
func errUnknown(why string) error {
	return failure.Wrap(errors.New(why), failure.NotFound, "This link is not valid, or it has expired")
}

// open decodes the record of an accepted token and checks whose it is.
func open(r *ipc.Request, g onetime.Grant) (record, error) {
	var rec record
	if err := json.Unmarshal(g.Data, &rec); err != nil {
		return record{}, fmt.Errorf("decode session: %w", err)
	}
	if rec.UID != r.Peer.UID() {
		return record{}, errUnknown("the session was made by another account")
	}
	return rec, nil
}

func (s *Server) expect(r *ipc.Request, ref ipcapi.SessionRef) (onetime.Expect, error) {
	if r.Grant.User == "" { // the access class excludes it
		return onetime.Expect{}, errUnknown("the caller has no user")
	}
	if _, err := s.limits(ref.Purpose); err != nil {
		return onetime.Expect{}, err
	}
	return onetime.Expect{Purpose: ref.Purpose, User: r.Grant.User}, nil
}

// lookUp finds a session and checks that it may be used now. With use it counts as a use.
func (s *Server) lookUp(ctx context.Context, r *ipc.Request, ref ipcapi.SessionRef, use bool) (ipcapi.Session, error) {
	e, err := s.expect(r, ref)
	if err != nil {
		return ipcapi.Session{}, err
	}
	g, err := s.o.Tokens.Peek(ctx, ref.Token, e)
	if err != nil {
		return ipcapi.Session{}, err
	}
	rec, err := open(r, g)
	if err != nil {
		return ipcapi.Session{}, err
	}
	err = s.o.Store.View(ctx, func(tx *store.Tx) error { return allowed(tx, r.Grant.User, ref.Purpose, &rec, false) })
	if err != nil {
		return ipcapi.Session{}, err
	}
	if use {
		if g, err = s.o.Tokens.Consume(ctx, ref.Token, e); err != nil {
			return ipcapi.Session{}, err
		}
	}
	return ipcapi.Session{Object: g.Object, Data: rec.Data, Note: rec.Note, EndsAt: g.EndsAt}, nil
}

func (s *Server) peek(ctx context.Context, r *ipc.Request, ref ipcapi.SessionRef) (ipcapi.Session, error) {
	return s.lookUp(ctx, r, ref, false)
}

func (s *Server) consume(ctx context.Context, r *ipc.Request, ref ipcapi.SessionRef) (ipcapi.Session, error) {
	return s.lookUp(ctx, r, ref, true)
}

func (s *Server) touch(ctx context.Context, r *ipc.Request, n ipcapi.SessionNote) (ipcapi.Empty, error) {
	ref := ipcapi.SessionRef{Purpose: n.Purpose, Token: n.Token}
	if len(n.Note) > ipcapi.MaxSessionNote {
		return ipcapi.Empty{}, failure.New(failure.Invalid, "The note is longer than %d bytes", ipcapi.MaxSessionNote)
	}
	if len(n.Will) > ipcapi.MaxSessionWill {
		return ipcapi.Empty{}, failure.New(failure.Invalid, "The will is longer than %d bytes", ipcapi.MaxSessionWill)
	}
	if n.Note == nil && !n.Done && n.Will == nil && !n.NoWill {
		_, err := s.lookUp(ctx, r, ref, true)
		return ipcapi.Empty{}, err
	}
	e, err := s.expect(r, ref)
	if err != nil {
		return ipcapi.Empty{}, err
	}
	// What is noted is a fact, also if the user may not use the session any more.
	err = s.o.Store.Update(ctx, func(tx *store.Tx) error {
		g, err := s.o.Tokens.ConsumeTx(tx, n.Token, e)
		if err != nil {
			return err
		}
		rec, err := open(r, g)
		if err != nil {
			return err
		}
		if n.Note != nil {
			rec.Note = n.Note
		}
		rec.Done = rec.Done || n.Done
		if n.Will != nil || n.NoWill {
			rec.Will = n.Will
		}
		t, err := tx.TokenByHash(onetime.Hash(n.Token))
		if err != nil {
			return err
		}
		if t.Data, err = json.Marshal(rec); err != nil {
			return fmt.Errorf("encode session: %w", err)
		}
		return tx.UpdateToken(t)
	})
	return ipcapi.Empty{}, err
}

// wills gives what an earlier instance has left to do, once.
func (s *Server) wills(ctx context.Context, r *ipc.Request, req ipcapi.SessionWillsOf) (ipcapi.Wills, error) {
	if _, err := s.expect(r, ipcapi.SessionRef{Purpose: req.Purpose}); err != nil {
		return ipcapi.Wills{}, err
	}
	var reply ipcapi.Wills
	// Nearly always there are none, which costs no change of the database.
	find := func(tx *store.Tx, take bool) error {
		reply.Wills = nil
		all, err := tx.OldestTokens(r.Grant.User, req.Purpose, roomLook)
		if err != nil {
			return err
		}
		for _, t := range all {
			var rec record
			if json.Unmarshal(t.Data, &rec) != nil || rec.UID != r.Peer.UID() || rec.Will == nil {
				continue
			}
			if len(reply.Wills) == ipcapi.MaxWills {
				break
			}
			reply.Wills = append(reply.Wills, rec.Will)
			if !take {
				continue
			}
			rec.Will = nil
			if t.Data, err = json.Marshal(rec); err != nil {
				return fmt.Errorf("encode session: %w", err)
			}
			if err := tx.UpdateToken(t); err != nil {
				return err
			}
		}
		return nil
	}
	err := s.o.Store.View(ctx, func(tx *store.Tx) error { return find(tx, false) })
	if err == nil && reply.Wills != nil {
		err = s.o.Store.Update(ctx, func(tx *store.Tx) error { return find(tx, true) })
	}
	return reply, err
}

// close ends a session. One that is over already is as good as one that ends now.
func (s *Server) close(ctx context.Context, r *ipc.Request, ref ipcapi.SessionRef) (ipcapi.Empty, error) {
	e, err := s.expect(r, ref)
	if err != nil {
		return ipcapi.Empty{}, err
	}
	err = s.o.Store.Update(ctx, func(tx *store.Tx) error {
		g, err := s.o.Tokens.ConsumeTx(tx, ref.Token, e)
		if err != nil {
			return err
		}
		if _, err := open(r, g); err != nil {
			return err
		}
		return tx.DeleteToken(onetime.Hash(ref.Token))
	})
	if failure.Is(err, failure.NotFound) {
		err = nil
	}
	return ipcapi.Empty{}, err
}
