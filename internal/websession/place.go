package websession

import (
	"context"
	"errors"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

// refresh looks at the job of an interface and publishes what has become of it.
func (s *Service) refresh(ctx context.Context, id string) error {
	leave, err := s.take(ctx)
	if err != nil {
		return err
	}
	defer leave()
	var w store.WebInterface
	var sessions []store.WebSession
	err = s.o.Store.View(ctx, func(tx *store.Tx) (err error) {
		if w, err = tx.WebInterfaceByID(id); err != nil {
			return err
		}
		sessions, err = tx.WebSessionsOf(id, s.o.Now())
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		s.hub.remove(id)
		return nil
	}
	if err != nil {
		return err
	}
	rec, err := s.o.Jobs.Visible(ctx, w.CreatedBy, w.UID, w.Job)
	switch {
	case failure.Is(err, failure.NotFound), err == nil && (rec.State.Final() || !rec.Confirmed || rec.UID != w.UID || rec.CreatedBy != w.CreatedBy):
		return s.withdraw(ctx, &w)
	case err != nil:
		return err
	}
	route := ipcapi.WebRoute{ID: w.ID, Kind: w.Kind, Host: w.Host, UID: w.UID, TLS: w.TLS}
	if w.Kind == ipcapi.WebKindWeb {
		route.Cookie = cookieOf(&w)
	}
	for _, session := range sessions {
		route.Grants = append(route.Grants, ipcapi.WebGrant{Hash: session.Hash[:], ExpiresAt: session.ExpiresAt})
	}
	route.Address, route.Port, err = s.place(ctx, &rec, &w)
	if err != nil {
		s.log.Warn("an interface of a job has no place", "interface", id, "error", err)
		route.Address, route.Port = "", 0
	}
	s.hub.put(route)
	return nil
}

// withdraw removes an interface with its sessions and links. What was open is cut off by the gateways at once.
func (s *Service) withdraw(ctx context.Context, w *store.WebInterface) error {
	s.hub.remove(w.ID) // first, whatever the database says
	return s.o.Store.Update(ctx, func(tx *store.Tx) error {
		for _, purpose := range []string{purposeWeb, purposeVNC} {
			if _, err := tx.DeleteTokensOf(purpose, w.ID); err != nil {
				return err
			}
		}
		if err := tx.DeleteWebInterface(w.ID); err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		return nil
	})
}

// loopback is where jobs of the local engine are.
const loopback = "127.0.0.1"

// place is where an interface of a job is now; no address while the job does not run.
func (s *Service) place(ctx context.Context, rec *ipcapi.JobRecord, w *store.WebInterface) (address string, port int, err error) {
	if rec.State != providerapi.JobRunning {
		return "", 0, nil
	}
	if port, _, err = portOf(rec, w, s.o.Settings()); err != nil {
		return "", 0, err
	}
	if rec.Engine == ipcapi.EngineLocal {
		if w.Rank != 0 {
			return "", 0, errors.New("the local engine has one node")
		}
		return loopback, port, nil // where the kernel says whose the listener is
	}
	if w.Rank >= len(rec.Nodes) {
		return "", 0, nil // it has just started
	}
	node := rec.Nodes[w.Rank]
	if !nodeName(node) {
		return "", 0, errors.New("the node has an odd name")
	}
	if err := s.checkNeighbours(ctx, rec, w, node, port); err != nil {
		return "", 0, err
	}
	address, err = s.o.Address(ctx, node)
	return address, port, err
}

// checkNeighbours refuses a port that a job of another account has on the same node (contract 21 section 8.12). What was
// granted comes before what was declared, then who was first. A listener on another machine cannot be asked whose it is,
// so this is what keeps jobs apart there, besides what applications do themselves.
func (s *Service) checkNeighbours(ctx context.Context, rec *ipcapi.JobRecord, w *store.WebInterface, node string, port int) error {
	var open []store.Job
	if err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) { open, err = tx.OpenJobs(); return err }); err != nil {
		return err
	}
	granted := w.Target == ""
	for i := range open {
		other := &open[i]
		if other.UID == rec.UID || other.Engine != rec.Engine {
			continue
		}
		for rank, n := range other.Nodes {
			if n != node {
				continue
			}
			if other.Port == port && (!granted || other.StartedAt.Before(rec.StartedAt)) {
				return errors.New("the port was given to a job of another account")
			}
			for _, t := range other.Targets {
				if t.Rank == rank && t.Port == port && !granted && other.StartedAt.Before(rec.StartedAt) {
					return errors.New("a job of another account has declared the port")
				}
			}
		}
	}
	return nil
}
