package uploads

import (
	"maps"
	"slices"
	"sync/atomic"

	"github.com/coder/websocket"

	"ucloud-im/internal/drives"
)

// Transferred is what has become of a transfer from another provider in the life of this process.
type Transferred struct {
	Listed int64  // files, in all passes
	Stored int64  // files
	Bytes  int64  // received
	Failed Report // files that failed and have not been stored since
}

// moved counts what a session has done.
type moved struct{ listed, stored, bytes atomic.Int64 }

// maxMissing bounds the memory for files that failed.
const maxMissing = 10_000

// failing notes files of a transfer that were not stored. The lock is held.
func (ses *session) failing(rels []string, why string) {
	if ses.missing == nil {
		ses.missing = map[string]string{}
	}
	for _, rel := range rels {
		if len(ses.missing) < maxMissing {
			ses.missing[rel] = why
		}
	}
}

// there notes that a file of a transfer is there: a pass of the other provider lists everything again.
func (ses *session) there(rel string) {
	if ses.Kind != kindTransfer {
		return
	}
	ses.mu.Lock()
	delete(ses.missing, rel)
	ses.mu.Unlock()
}

func (ses *session) transferred() Transferred {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	t := Transferred{
		Listed: ses.moved.listed.Load(), Stored: ses.moved.stored.Load(), Bytes: ses.moved.bytes.Load(),
		Failed: Report{Info: ses.info(), Count: len(ses.missing)},
	}
	rels := slices.Sorted(maps.Keys(ses.missing))
	for i, rel := range rels[:min(len(rels), maxReported)] {
		full := ses.Path
		if rel != "" {
			full += "/" + drives.Escape(rel)
		}
		if i == 0 {
			t.Failed.Why = ses.missing[rel]
		}
		t.Failed.Files = append(t.Failed.Files, full)
	}
	return t
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
	ses.over = true
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
