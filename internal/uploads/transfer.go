package uploads

import (
	"sync/atomic"

	"github.com/coder/websocket"
)

// Transferred is what has become of a transfer from another provider since its first connection was opened.
type Transferred struct {
	Listed int64 // files
	Stored int64 // files
	Bytes  int64 // received
	Failed Report
}

// moved counts what a session has done.
type moved struct{ listed, stored, bytes atomic.Int64 }

func (ses *session) transferred() Transferred {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	f := ses.failed
	return Transferred{
		Listed: ses.moved.listed.Load(), Stored: ses.moved.stored.Load(), Bytes: ses.moved.bytes.Load(),
		Failed: Report{Info: ses.info(), Count: f.count, Files: f.files, Why: f.why, Fatal: f.fatal},
	}
}

// transfer finds the open session of a transfer.
func (s *Service) transfer(ref string) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ses := range s.sessions {
		if ses.Kind == kindTransfer && ses.Ref == ref && ses.conns > 0 {
			return ses
		}
	}
	return nil
}

// Transfer tells how far a transfer is; false: it has no connection.
func (s *Service) Transfer(ref string) (Transferred, bool) {
	ses := s.transfer(ref)
	if ses == nil {
		return Transferred{}, false
	}
	return ses.transferred(), true
}

// EndTransfer closes the connections of a transfer, because its session has ended. The reason is for the peer.
func (s *Service) EndTransfer(ref, reason string) {
	ses := s.transfer(ref)
	if ses == nil {
		return
	}
	s.mu.Lock()
	var conns []*conn
	for c := range s.conns {
		if c.ses == ses {
			conns = append(conns, c)
		}
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.end(&ending{code: websocket.StatusPolicyViolation, reason: reason})
	}
}
