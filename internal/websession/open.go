package websession

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/onetime"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

// open gives a link to an interface of a job.
func (s *Service) open(ctx context.Context, r *ipc.Request, req ipcapi.WebOpening) (ipcapi.WebOpened, error) {
	set := s.o.Settings()
	switch {
	case req.Kind == ipcapi.WebKindWeb && !set.Web:
		return ipcapi.WebOpened{}, failure.New(failure.Invalid, "Web interfaces of jobs are not offered by this provider")
	case req.Kind == ipcapi.WebKindVNC && !set.VNC:
		return ipcapi.WebOpened{}, failure.New(failure.Invalid, "Desktops of jobs are not offered by this provider")
	case req.Kind != ipcapi.WebKindWeb && req.Kind != ipcapi.WebKindVNC:
		return ipcapi.WebOpened{}, failure.New(failure.Invalid, "This kind of interface is unknown")
	case !jobName(req.Job) || len(req.Target) > ipcapi.MaxWebTarget:
		return ipcapi.WebOpened{}, failure.New(failure.NotFound, "This job does not exist, or you do not belong to its workspace")
	}
	rec, err := s.o.Jobs.Visible(ctx, r.Grant.User, r.Peer.UID(), req.Job)
	if err != nil {
		return ipcapi.WebOpened{}, err
	}
	w := store.WebInterface{
		Job: rec.ID, UID: rec.UID, CreatedBy: rec.CreatedBy, Rank: req.Rank, Kind: req.Kind, Target: req.Target, CreatedAt: s.o.Now(),
	}
	if err := mayOpen(&rec, &w); err != nil {
		return ipcapi.WebOpened{}, err
	}
	port, tls, err := portOf(&rec, &w, set)
	if err != nil {
		return ipcapi.WebOpened{}, err
	}
	if req.Port != 0 && req.Port != port {
		return ipcapi.WebOpened{}, failure.New(failure.Forbidden, "The application listens on port %d, and this job was given port %d", req.Port, port)
	}
	w.TLS = tls || req.TLS && req.Target == ""
	token, err := s.store(ctx, set, r, &w)
	if err != nil {
		return ipcapi.WebOpened{}, err
	}
	if err := s.refresh(ctx, w.ID); err != nil {
		return ipcapi.WebOpened{}, err
	}
	if w.Kind == ipcapi.WebKindVNC {
		return ipcapi.WebOpened{URL: set.PublicURL + "/ucloud/" + s.o.Provider + "/vnc?token=" + token}, nil
	}
	return ipcapi.WebOpened{URL: set.Scheme + "://" + w.Host + set.Port + "/ucloud/" + s.o.Provider + "/authorize-app?token=" + token}, nil
}

// mayOpen tells whether the job can have such an interface now.
func mayOpen(rec *ipcapi.JobRecord, w *store.WebInterface) error {
	ranks := rec.Replicas
	if len(rec.Nodes) > 0 {
		ranks = len(rec.Nodes)
	}
	switch {
	case rec.State.Final():
		return failure.New(failure.Conflict, "The job has ended")
	case !rec.Confirmed:
		return failure.New(failure.Conflict, "UCloud has not confirmed this job yet. Try again in a moment")
	case w.Rank < 0 || w.Rank >= max(ranks, 1):
		return failure.New(failure.Invalid, "The job has no node with the number %d", w.Rank)
	case w.Kind == ipcapi.WebKindVNC && rec.State != providerapi.JobRunning:
		return failure.New(failure.Conflict, "The desktop can be opened when the job runs")
	}
	return nil
}

// portOf is the port of an interface: what the server has granted, or what was declared at the submission.
func portOf(rec *ipcapi.JobRecord, w *store.WebInterface, set Settings) (port int, tls bool, err error) {
	if w.Target == "" {
		if rec.ApplicationType != w.Kind || rec.Port == 0 {
			return 0, false, failure.New(failure.NotFound, "The application has no interface of this kind")
		}
		return rec.Port, w.TLS, nil
	}
	i := slices.IndexFunc(rec.Targets, func(t ipcapi.JobTarget) bool {
		return t.Target == w.Target && t.Rank == w.Rank && t.Type == w.Kind
	})
	if i < 0 {
		return 0, false, failure.New(failure.NotFound, "The job has no interface with this name")
	}
	t := rec.Targets[i]
	if t.Port < set.PortMin || t.Port > set.PortMax {
		return 0, false, failure.New(failure.Forbidden, "The interface uses port %d, and this provider allows ports from %d to %d", t.Port, set.PortMin, set.PortMax)
	}
	return t.Port, t.TLS, nil
}

// store keeps the interface and a new token for it.
func (s *Service) store(ctx context.Context, set Settings, r *ipc.Request, w *store.WebInterface) (token string, err error) {
	w.ID = idOf(w)
	purpose := purposeVNC
	if w.Kind == ipcapi.WebKindWeb {
		purpose = purposeWeb
	}
	err = s.o.Store.Update(ctx, func(tx *store.Tx) error {
		if w.Kind == ipcapi.WebKindWeb {
			if err := s.name(tx, set, w); err != nil {
				return err
			}
		}
		if err := tx.PutWebInterface(*w); err != nil {
			return err
		}
		token, err = s.o.Tokens.IssueTx(tx, onetime.Spec{Purpose: purpose, User: r.Grant.User, Object: w.ID, Limits: onetime.WebLimits})
		return err
	})
	return token, err
}

// name finds the host name. Names of different interfaces that come to the same get an addition.
func (s *Service) name(tx *store.Tx, set Settings, w *store.WebInterface) error {
	if known, err := tx.WebInterfaceByID(w.ID); err == nil {
		w.Host = known.Host
		return nil
	} else if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	for _, exact := range []bool{false, true} {
		w.Host = hostOf(set.Prefix, set.Suffix, w, exact)
		if slices.ContainsFunc(set.OwnHosts, func(own string) bool { return strings.EqualFold(own, w.Host) }) {
			return failure.New(failure.Internal, "The host name of the application is the provider's own")
		}
		_, err := tx.WebInterfaceByHost(w.Host)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return failure.New(failure.Conflict, "The host name of the application is in use")
}

// exchange uses a token up and makes a session (contract 21 section 8.2). Everything that can be wrong with a token has
// the same answer.
func (s *Service) exchange(ctx context.Context, _ *ipc.Request, req ipcapi.WebExchange) (ipcapi.WebExchanged, error) {
	gone := failure.New(failure.NotFound, "This link is not valid, or it has expired")
	if len(req.Hash) != 32 || (req.Kind == ipcapi.WebKindWeb) != (req.Host != "") {
		return ipcapi.WebExchanged{}, gone
	}
	var raw [32]byte
	rand.Read(raw[:]) //nolint:errcheck // never fails, crypto/rand documents it
	value := base64.RawURLEncoding.EncodeToString(raw[:])
	session := store.WebSession{Hash: onetime.Hash(value), CreatedAt: s.o.Now().Truncate(time.Millisecond)}
	session.ExpiresAt = session.CreatedAt.Add(s.o.SessionLife)
	w, err := s.use(ctx, req, &session)
	if err != nil {
		return ipcapi.WebExchanged{}, err
	}
	ok, err := s.maySee(ctx, session.User, &w)
	if err != nil {
		return ipcapi.WebExchanged{}, err
	}
	if !ok {
		return ipcapi.WebExchanged{}, gone
	}
	if err := s.o.Store.Update(ctx, func(tx *store.Tx) error { return s.keep(tx, session) }); err != nil {
		return ipcapi.WebExchanged{}, err
	}
	if err := s.refresh(ctx, w.ID); err != nil {
		return ipcapi.WebExchanged{}, err
	}
	route, ok := s.hub.route(w.ID)
	if !ok {
		return ipcapi.WebExchanged{}, gone // the job has ended
	}
	return ipcapi.WebExchanged{Value: value, ExpiresAt: session.ExpiresAt, Route: route}, nil
}

// use uses the token up, finds the interface it is for, and notes both in the session.
func (s *Service) use(ctx context.Context, req ipcapi.WebExchange, session *store.WebSession) (w store.WebInterface, err error) {
	gone := func(err error) error {
		if errors.Is(err, store.ErrNotFound) {
			return failure.New(failure.NotFound, "This link is not valid, or it has expired")
		}
		return err
	}
	err = s.o.Store.Update(ctx, func(tx *store.Tx) (err error) {
		e := onetime.Expect{Purpose: purposeVNC, Unbound: true}
		if req.Kind == ipcapi.WebKindWeb {
			if w, err = tx.WebInterfaceByHost(req.Host); err != nil {
				return gone(err)
			}
			e = onetime.Expect{Purpose: purposeWeb, Object: w.ID}
		}
		g, err := s.o.Tokens.ConsumeHashTx(tx, [32]byte(req.Hash), e)
		if err != nil {
			return gone(err)
		}
		session.User, session.Interface = g.User, g.Object
		w, err = tx.WebInterfaceByID(g.Object)
		return gone(err)
	})
	if err == nil && w.Kind != req.Kind {
		err = fmt.Errorf("a token for %s opened %s", req.Kind, w.ID)
	}
	return w, err
}

// keep stores a session; the oldest of the interface make room.
func (s *Service) keep(tx *store.Tx, session store.WebSession) error {
	live, err := tx.WebSessionsOf(session.Interface, s.o.Now())
	if err != nil {
		return err
	}
	for len(live) >= s.o.MaxSessions {
		if err := tx.DeleteWebSession(live[len(live)-1].Hash); err != nil {
			return err
		}
		live = live[:len(live)-1]
	}
	return tx.InsertWebSession(session)
}
