package transfers

import (
	"context"
	"fmt"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/uploads"
)

// incoming is a transfer from another provider that has had a connection in the life of this process.
type incoming struct {
	ref  string
	key  []byte
	peer string

	// Guarded by Service.mu.
	open    int                 // between opened and left; of two that follow each other the second may come first
	watched bool                // a goroutine tells the server
	done    bool                // the server has the end of it
	last    uploads.Transferred // when the last connection was gone
}

// opened is told by uploads that a transfer has a connection.
func (s *Service) opened(info uploads.Info) {
	key, peer, ok := parseRef(info.Ref)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.incoming[info.Ref]
	if in == nil {
		in = &incoming{ref: info.Ref, key: key, peer: peer}
		s.incoming[info.Ref] = in
	}
	in.open++
	if !in.watched && s.life.Err() == nil {
		in.watched = true
		s.work.Go(func() { s.watch(in) })
	}
}

// left is told by uploads that a transfer has no connection any more.
func (s *Service) left(info uploads.Info, t uploads.Transferred) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.incoming[info.Ref]
	if in == nil {
		return
	}
	in.open--
	s.forgetLocked(in)
	in.last = t
}

// forgetLocked forgets a transfer that is over.
func (s *Service) forgetLocked(in *incoming) {
	if in.done && in.open <= 0 && s.incoming[in.ref] == in {
		delete(s.incoming, in.ref)
	}
}

// watch tells the server how far a transfer is as long as it has connections, and ends it when it is cancelled.
func (s *Service) watch(in *incoming) {
	tick := time.NewTicker(s.tickEvery)
	defer tick.Stop()
	var m meter
	for {
		select {
		case <-tick.C:
		case <-s.life.Done():
			return
		}
		s.mu.Lock()
		total, over, done := in.last, in.open <= 0, in.done
		if over || done {
			in.watched = false
		}
		s.mu.Unlock()
		if done {
			return
		}
		p := ipcapi.TransferProgress{Key: in.key, State: ipcapi.TaskState{Percent: -1}}
		if now, ok := s.receiver.Transfer(in.ref); ok {
			total = now
		}
		p.State.Body = fmt.Sprintf("%s | %s", amount(total.Bytes), files(total.Stored))
		rate, perSecond := m.rate(time.Now(), total.Bytes, total.Stored)
		p.State.Text = fmt.Sprintf("%s/s | %.2f files/s", amount(int64(rate)), perSecond)
		if over {
			p.State.Text = "Waiting for " + shorten(in.peer, 60)
		}
		if most := s.settings.Load().MaxBytes; most > 0 && total.Bytes > most {
			p.Outcome = ipcapi.TaskFailed
			p.State.Text = fmt.Sprintf("The transfer is larger than this provider allows (%s)", amount(most))
		}
		if s.ended(p) {
			s.receiver.EndTransfer(in.ref, "the transfer was cancelled")
			if over {
				s.mu.Lock()
				in.done = true
				s.forgetLocked(in)
				s.mu.Unlock()
			}
		}
		if over {
			return
		}
	}
}

// updateTimeout bounds one call to the server.
const updateTimeout = 5 * time.Second

func (s *Service) ended(p ipcapi.TransferProgress) bool {
	ctx, cancel := context.WithTimeout(s.life, updateTimeout)
	defer cancel()
	v, err := s.o.Update(ctx, p)
	if err != nil {
		s.log.Debug("the server was not told about a transfer", "error", err)
	}
	return err == nil && v.Ended
}

// closed is told by uploads that the other provider has sent everything. The error has it told again.
func (s *Service) closed(ctx context.Context, info uploads.Info) error {
	key, peer, ok := parseRef(info.Ref)
	if !ok {
		return nil
	}
	s.mu.Lock()
	in := s.incoming[info.Ref]
	var total uploads.Transferred
	if in != nil {
		total = in.last
	}
	s.mu.Unlock()
	if now, ok := s.receiver.Transfer(info.Ref); ok {
		total = now
	}
	failed := total.Failed
	p := ipcapi.TransferProgress{Key: key, Outcome: ipcapi.TaskSucceeded, State: ipcapi.TaskState{
		Body: fmt.Sprintf("%s | %s", amount(total.Bytes), files(total.Stored)),
		Text: fmt.Sprintf("%s received from %s", files(total.Stored), shorten(peer, 60)), Percent: 100,
	}}
	if failed.Count > 0 {
		p.Outcome, p.State.Percent = ipcapi.TaskFailed, -1
		where := ""
		if len(failed.Files) > 0 {
			where = fmt.Sprintf(" (%s)", failed.Files[0])
		}
		p.State.Text = fmt.Sprintf("%s not stored: %s%s", files(int64(failed.Count)), failed.Why, where)
	}
	return s.conclude(ctx, info.Ref, p)
}

// aborted is told by uploads that the user has cancelled the transfer at the other provider.
func (s *Service) aborted(ctx context.Context, info uploads.Info) error {
	key, peer, ok := parseRef(info.Ref)
	if !ok {
		return nil
	}
	err := s.conclude(ctx, info.Ref, ipcapi.TransferProgress{Key: key, Outcome: ipcapi.TaskCancelled, State: ipcapi.TaskState{
		Text: fmt.Sprintf("The transfer was cancelled at %s", shorten(peer, 60)), Percent: -1,
	}})
	if err == nil {
		s.receiver.EndTransfer(info.Ref, "the transfer was cancelled")
	}
	return err
}

// conclude has the server end the task of a transfer, waiting for it if it is being restarted.
func (s *Service) conclude(ctx context.Context, ref string, p ipcapi.TransferProgress) error {
	for {
		_, err := s.o.Update(ctx, p)
		if err == nil {
			break
		}
		if !failure.Is(err, failure.Unavailable) || sleep(ctx, s.tickEvery/4) != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if in := s.incoming[ref]; in != nil {
		in.done = true
	}
	return nil
}
