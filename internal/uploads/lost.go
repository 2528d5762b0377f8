package uploads

import (
	"context"
	"encoding/json"

	"github.com/coder/websocket"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipcapi"
)

// errLost is what becomes of files when nobody knows why their connection ended.
var errLost = failure.New(failure.Invalid, "The connection was lost before everything had arrived")

// blameRest reports the files that were listed and are not stored. A browser takes every end of a connection for the end
// of the upload and shows it as done (contract 11 section 2.3 point 6). Who closes the connection in the regular way has
// counted and does not want the rest; another provider looks by itself what is missing. err is the reader's.
func (c *conn) blameRest(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rest := c.listed - c.completed - c.blamed
	if rest <= 0 || c.ses.Kind == kindTransfer {
		return
	}
	why, fatal := errLost, false
	switch {
	case c.cause == nil:
		switch websocket.CloseStatus(err) {
		case websocket.StatusNormalClosure, websocket.StatusGoingAway, websocket.StatusNoStatusRcvd:
			return
		}
	case c.cause.fatal:
		why, fatal = failure.Wrap(c.cause, failure.Invalid, "%s", c.cause.reason), true
	default:
		why = failure.Wrap(c.cause, failure.Invalid, "The connection was ended before everything had arrived: %s", c.cause.reason)
	}
	var names []string
	for _, f := range c.files {
		if names = append(names, f.path); len(names) == maxReported {
			break
		}
	}
	if c.head != nil && len(names) < maxReported {
		names = append(names, c.head.path)
	}
	for len(names) < maxReported {
		e, ok, err := c.pending.pop()
		if !ok || err != nil {
			break
		}
		names = append(names, e.path)
	}
	c.ses.failAll(names, rest, why, fatal)
}

// leaveWill stores a report that the next instance is to make.
func (s *Service) leaveWill(ctx context.Context, ses *session, r Report) {
	var raw []byte
	for {
		var err error
		if raw, err = json.Marshal(r); err != nil || len(raw) <= ipcapi.MaxSessionWill || len(r.Files) == 0 {
			break
		}
		r.Files = r.Files[:len(r.Files)-1]
	}
	if err := s.o.Sessions.Touch(ctx, ipcapi.SessionNote{Purpose: ses.purpose(), Token: ses.token, Will: raw}); err != nil {
		s.log.Warn("the will of an upload is not stored", "error", err)
	}
}

// interrupted is the will of an upload that is under way.
const interrupted = "the service ended before everything had arrived. Upload again what is missing"

// expectEnd notes an upload that takes a while, once, so that its user hears of it if this process is killed: a browser
// shows the end of the connection as the end of the upload. Another provider looks by itself what is missing.
func (s *Service) expectEnd(ctx context.Context, ses *session) {
	ses.mu.Lock()
	known := ses.willed || ses.Kind == kindTransfer
	ses.willed = ses.willed || !known
	ses.mu.Unlock()
	if !known {
		s.leaveWill(ctx, ses, Report{Info: ses.info(), Why: interrupted})
	}
}

// TakeWills reports what earlier instances could not, in the background. Call it once, when [Options.Failed] works.
func (s *Service) TakeWills() {
	if s.o.Wills == nil || s.o.Failed == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.work.Go(func() {
		ctx, cancel := context.WithTimeout(s.life, reportTimeout)
		defer cancel()
		wills, err := s.o.Wills(ctx)
		if err != nil {
			s.log.Warn("what an earlier instance has left is not known", "error", err)
		}
		for _, raw := range wills {
			var r Report
			if err := json.Unmarshal(raw, &r); err != nil {
				s.log.Error("a will cannot be read", "error", err)
				continue
			}
			if err := s.o.Failed(ctx, r); err != nil {
				s.log.Error("the user cannot be told that an upload was interrupted", "path", r.Path, "why", r.Why, "error", err)
			}
		}
	})
}
