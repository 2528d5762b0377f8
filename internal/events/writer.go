package events

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"ucloud-im/internal/events/eventwire"
	"ucloud-im/internal/store"
)

// write stores what is queued until the reader has ended and the queue is empty, or until something cannot be stored.
func (l *live) write(ctx context.Context) error {
	quiet := time.NewTimer(settleQuiet)
	defer quiet.Stop()
	for {
		messages, done := l.queue.take(maxBatch)
		if len(messages) > 0 {
			if err := l.commit(ctx, messages); err != nil {
				return err
			}
			quiet.Reset(settleQuiet)
		}
		if done {
			return nil
		}
		if len(messages) > 0 {
			continue
		}
		select {
		case <-l.queue.arrived:
		case <-quiet.C:
			if err := l.settle(ctx); err != nil {
				return err
			}
		}
	}
}

// commit stores the records of some messages in one transaction, and with them the position in the stream once the
// replay is over. If one message cannot be understood, those before it are stored and the session ends.
func (l *live) commit(ctx context.Context, messages []queued) error {
	var b batch
	var broken error
	for _, m := range messages {
		var one batch
		records, err := eventwire.Decode(m.data, true)
		if err == nil {
			err = l.refs.resolve(&one, records)
		}
		if err != nil {
			broken = err
			break
		}
		b.join(one)
	}
	now := time.Now()
	settled := l.settled || (now.Sub(l.begun) >= settleAge && l.trustworthy())
	var changes changeSet
	var position time.Time
	err := l.s.o.Store.Update(ctx, func(tx *store.Tx) (err error) {
		if changes, err = b.write(tx, now); err != nil || !settled {
			return err
		}
		position, err = l.move(tx, later(l.newest, b.newest), now)
		return err
	})
	if err != nil {
		return errors.Join(fmt.Errorf("store events: %w", err), broken)
	}
	fullDone := l.full && settled && !l.settled
	l.settled, l.newest = settled, later(l.newest, b.newest)
	l.s.stored(b.records, l.newest, position, fullDone, now)
	l.s.collect(changes)
	return broken
}

// settle is called after a silence: the replay is over, and the position may follow what was stored.
func (l *live) settle(ctx context.Context) error {
	if l.settled || !l.trustworthy() {
		return nil
	}
	now := time.Now()
	var position time.Time
	err := l.s.o.Store.Update(ctx, func(tx *store.Tx) (err error) {
		position, err = l.move(tx, l.newest, now)
		return err
	})
	if err != nil {
		return fmt.Errorf("store the position in the event stream: %w", err)
	}
	l.settled = true
	l.s.stored(0, l.newest, position, l.full, now)
	return nil
}

// trustworthy tells whether Core can have given us everything. It drops events for readers that make it wait, so after
// a stall the position stays where it is and the next session has everything since then sent again.
func (l *live) trustworthy() bool {
	_, _, stalled := l.queue.state()
	return l.accepted.Load() && !stalled
}

// move puts the position to newest. It goes back only after a full replay, which is the last word: Core's clock was
// put right, or Core was restored from a backup.
func (l *live) move(tx *store.Tx, newest, now time.Time) (time.Time, error) {
	position, err := tx.ReplayFrom()
	if err != nil {
		return position, err
	}
	firstAfterFull := l.full && !l.settled
	if newest.After(position) || (firstAfterFull && !newest.IsZero()) {
		position = newest
		if err := tx.SetReplayFrom(newest); err != nil {
			return position, err
		}
	}
	if firstAfterFull {
		err = tx.SetSetting(settingFullReplay, strconv.FormatInt(now.UnixMilli(), 10))
	}
	return position, err
}

func (b *batch) join(o batch) {
	b.users = append(b.users, o.users...)
	b.ops = append(b.ops, o.ops...)
	b.newest = later(b.newest, o.newest)
	b.records += o.records
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// stored updates the status after a commit. position is zero if it did not move.
func (s *Stream) stored(records int, newest, position time.Time, fullDone bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Records += int64(records)
	s.status.LastEvent = later(s.status.LastEvent, newest)
	if !position.IsZero() {
		s.status.Position = position
	}
	if fullDone {
		s.status.LastFullReplay = now
	}
}
