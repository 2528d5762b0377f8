package operator

import (
	"context"
	"log/slog"
	"os"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/store"
	"ucloud-im/internal/usermap/ticket"
)

// tickets gives the ticket mapper, or why there is none.
func (s *Service) tickets() (*ticket.Method, error) {
	if s.o.Tickets == nil {
		return nil, failure.New(failure.NotFound, "This provider does not connect users by ticket")
	}
	return s.o.Tickets, nil
}

func parse(text string) (ticket.Ticket, error) {
	t, err := ticket.Parse(text)
	if err != nil {
		return t, failure.Wrap(err, failure.Invalid, "%s", sentence(err))
	}
	return t, nil
}

// sentence makes an error text of ours a sentence.
func sentence(err error) string {
	s := err.Error()
	return string(s[0]-'a'+'A') + s[1:]
}

// ticketDescribe tells whom a ticket names, to anybody who has it. Guessing one is hopeless (2^135), and the rate of
// calls is bounded by package ipc.
func (s *Service) ticketDescribe(ctx context.Context, _ *ipc.Request, req ipcapi.TicketRef) (ipcapi.TicketInfo, error) {
	m, err := s.tickets()
	if err != nil {
		return ipcapi.TicketInfo{}, err
	}
	t, err := parse(req.Ticket)
	if err != nil {
		return ipcapi.TicketInfo{}, err
	}
	rec, err := m.Describe(ctx, t)
	if err != nil {
		return ipcapi.TicketInfo{}, err
	}
	key, err := m.Key(ctx, rec)
	if err != nil {
		return ipcapi.TicketInfo{}, err
	}
	info := s.ticketInfo(rec)
	info.KeyFingerprint, info.KeyWithdrawn = key.Fingerprint, key.Withdrawn
	return info, nil
}

// keyOf is the fingerprint of the signing key that came with a ticket, "" for none.
func keyOf(ctx context.Context, m *ticket.Method, t ticket.Ticket) (string, error) {
	rec, err := m.Describe(ctx, t)
	if err != nil {
		return "", err
	}
	key, err := m.Key(ctx, rec)
	return key.Fingerprint, err
}

func (s *Service) ticketInfo(rec store.Ticket) ipcapi.TicketInfo {
	info := ipcapi.TicketInfo{
		Short: ticket.Short(rec.Hash), User: rec.User, State: string(rec.State), CreatedAt: rec.CreatedAt,
		ExpiresAt: rec.ExpiresAt, ClosedAt: rec.ClosedAt, UID: rec.UID, By: rec.By, Message: rec.Message,
		SelfService: s.o.Tickets.SelfService(),
	}
	if rec.State == store.TicketUsed {
		info.State = ipcapi.TicketApproved
	}
	return info
}

// ticketComplete binds the caller's own account. The uid is the kernel's; nothing in the request can change it (contract
// 03 section 7.7).
func (s *Service) ticketComplete(ctx context.Context, r *ipc.Request, req ipcapi.TicketCompletion) (res ipcapi.LinkResult, err error) {
	defer func() {
		s.audit(r, "ticket.complete", err, slog.String("user", text(string(req.User))), slog.String("key", text(req.KeyFingerprint)),
			slog.Bool("dryRun", req.DryRun))
	}()
	m, err := s.tickets()
	if err != nil {
		return res, err
	}
	if !m.SelfService() {
		return res, refused(failure.New(failure.Forbidden, "At this provider an operator completes tickets. Please send them yours"))
	}
	t, err := parse(req.Ticket)
	if err != nil {
		return res, err
	}
	key, err := keyOf(ctx, m, t)
	if err != nil {
		return res, err
	}
	mapping, err := m.Complete(ctx, ticket.Completion{
		Ticket: t, User: req.User, KeyFingerprint: req.KeyFingerprint, Local: r.Peer.UID().String(), By: by(r) + " (self)", DryRun: req.DryRun,
	})
	if err != nil {
		return res, refused(err)
	}
	return withKey(s.linked(ctx, mapping, req.WaitMs, req.DryRun), key, req.KeyFingerprint), nil
}

// ticketApprove binds an account that an operator names.
func (s *Service) ticketApprove(ctx context.Context, r *ipc.Request, req ipcapi.TicketApproval) (res ipcapi.LinkResult, err error) {
	defer func() {
		s.audit(r, "ticket.approve", err, slog.String("user", text(string(req.User))), slog.String("local", text(req.Local)),
			slog.String("key", text(req.KeyFingerprint)), slog.String("reason", text(req.Reason)), slog.Bool("dryRun", req.DryRun))
	}()
	m, err := s.tickets()
	if err != nil {
		return res, err
	}
	t, err := parse(req.Ticket)
	if err != nil {
		return res, err
	}
	if err := s.future(req.ExpiresAt); err != nil {
		return res, err
	}
	key, err := keyOf(ctx, m, t)
	if err != nil {
		return res, err
	}
	mapping, err := m.Complete(ctx, ticket.Completion{
		Ticket: t, User: req.User, KeyFingerprint: req.KeyFingerprint, Local: req.Local, By: by(r), ExpiresAt: req.ExpiresAt, DryRun: req.DryRun,
	})
	if err != nil {
		return res, refused(err)
	}
	return withKey(s.linked(ctx, mapping, req.WaitMs, req.DryRun), key, req.KeyFingerprint), nil
}

// withKey adds to the answer what became of the signing key that came with the ticket. A confirmation of another key has
// been refused before.
func withKey(res ipcapi.LinkResult, key, confirmed string) ipcapi.LinkResult {
	if confirmed == "" {
		res.KeyUnused = key
	} else {
		res.KeyFingerprint = key
	}
	return res
}

// linked is the answer after a mapping was stored.
func (s *Service) linked(ctx context.Context, m store.Mapping, waitMs int64, dryRun bool) ipcapi.LinkResult {
	res := ipcapi.LinkResult{User: m.User, UID: m.UID, LocalName: m.LocalName, State: string(m.State)}
	if !dryRun {
		res.State = s.waitActive(ctx, m.User, waitMs)
	}
	return res
}

func (s *Service) ticketReject(ctx context.Context, r *ipc.Request, req ipcapi.TicketRejection) (ipcapi.MutationReport, error) {
	m, err := s.tickets()
	if err != nil {
		return ipcapi.MutationReport{}, err
	}
	message := text(req.Message)
	return each(req.Tickets, shortOf, func(t string) (string, error) {
		err := m.Reject(ctx, t, by(r), message, req.DryRun)
		s.audit(r, "ticket.reject", err, slog.String("ticket", shortOf(t)), slog.String("message", message), slog.Bool("dryRun", req.DryRun))
		return ipcapi.ResultOK, err
	}), nil
}

// shortOf is how a ticket is called in logs and reports: a whole one must not stand there.
func shortOf(textOrShort string) string {
	if t, err := ticket.Parse(textOrShort); err == nil {
		return ticket.Short(t.Hash())
	}
	if s := text(textOrShort); len(s) <= 8 {
		return s
	}
	return "(not a ticket)"
}

func (s *Service) ticketList(ctx context.Context, _ *ipc.Request, _ ipcapi.Empty, send func(ipcapi.TicketPage, ...*os.File) error) error {
	m, err := s.tickets()
	if err != nil {
		return err
	}
	recs, err := m.List(ctx)
	if err != nil {
		return err
	}
	infos := make([]ipcapi.TicketInfo, len(recs))
	for i, rec := range recs {
		infos[i] = s.ticketInfo(rec)
	}
	return sendPages(infos, func(p []ipcapi.TicketInfo) ipcapi.TicketPage { return ipcapi.TicketPage{Items: p} }, send)
}
