package events

import "time"

// State is how the event stream is.
type State string

// The states.
const (
	StateDown       State = "down"       // between two attempts
	StateConnecting State = "connecting" // not yet accepted by Core
	StateUp         State = "up"
)

// Status is a snapshot for operators.
type Status struct {
	State          State
	ConnectedSince time.Time // of the present session; zero if it is not up
	LastMessage    time.Time // when the last message arrived, of any session
	LastEvent      time.Time // newest time stamp of Core's that was stored
	Position       time.Time // from where the next session replays, before the margin; zero: everything
	LastFullReplay time.Time // last replay of everything that ran to its end
	Records        int64     // stored since the start of the process
	QueuedBytes    int       // received and not yet stored
	Lag            time.Duration
	LastError      string
	NextTry        time.Time // of connecting; zero if none is pending
}

// Status tells how the stream is.
func (s *Stream) Status() Status {
	s.mu.Lock()
	st, q := s.status, s.queue
	s.mu.Unlock()
	if q != nil {
		bytes, since, _ := q.state()
		st.QueuedBytes = bytes
		if !since.IsZero() {
			st.Lag = time.Since(since)
		}
	}
	return st
}

func (s *Stream) setState(state State, err error, next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.State, s.status.NextTry = state, next
	switch state {
	case StateUp:
		s.status.ConnectedSince, s.status.LastError = time.Now(), ""
	case StateDown:
		s.status.ConnectedSince = time.Time{}
		if err != nil {
			s.status.LastError = err.Error()
		}
	default:
		s.status.ConnectedSince = time.Time{}
	}
}

func (s *Stream) sawMessage(at time.Time) {
	s.mu.Lock()
	s.status.LastMessage = at
	s.mu.Unlock()
}
