package jobs

import (
	"context"
	"time"
)

// endAgain is when a job that was cancelled and runs on is cancelled again.
const endAgain = time.Minute

// end ends jobs whose users have asked for it, should the instances not have come to it. Each takes two commands, so one
// that was cancelled is given time to end.
func (m *monitor) end(ctx context.Context, v *view) {
	for key, at := range m.ended {
		if v.began.Sub(at) >= endAgain {
			delete(m.ended, key)
		}
	}
	for i := range v.ending {
		j := &v.ending[i]
		name, ok := m.s.o.Users.LocalName(j.UID)
		if _, again := m.ended[j.Key]; again || !ok {
			continue
		}
		if err := m.s.o.Engine.Cancel(ctx, j.EngineID, name); err != nil {
			if ctx.Err() != nil {
				return
			}
			m.s.log.Warn("a job that its user has ended cannot be cancelled", "job", j.ID, "slurm", j.EngineID, "error", err)
			continue
		}
		if m.ended == nil {
			m.ended = map[int64]time.Time{}
		}
		m.ended[j.Key] = v.began
	}
}
