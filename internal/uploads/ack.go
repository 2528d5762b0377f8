package uploads

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipcapi"
)

// gather is how long answers are collected when there are many. A single file never waits: the first answer after a
// pause goes out at once.
const gather = 2 * time.Millisecond

// answerLocked queues OK or SKIP.
func (c *conn) answerLocked(op byte, id uint32) {
	c.out = binary.BigEndian.AppendUint32(append(c.out, op), id)
	c.signal()
}

// write sends answers. It is the only sender of binary messages.
func (c *conn) write(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	var last time.Time
	var frame []byte
	for {
		select {
		case <-c.wake:
		case <-ctx.Done():
			return
		}
		if since := time.Since(last); since < gather {
			timer.Reset(gather - since)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return
			}
		}
		for {
			if frame = c.nextFrame(frame[:0]); len(frame) == 0 {
				break
			}
			if err := c.send(ctx, frame); err != nil {
				if !errors.Is(err, context.DeadlineExceeded) {
					c.ws.CloseNow() //nolint:errcheck // it is gone, and the reader is to find that out
					return
				}
				c.end(&ending{code: websocket.StatusPolicyViolation, reason: "answers are not taken", err: err})
				return
			}
			c.kick() // decisions may have waited for the answers to go
		}
		last = time.Now()
	}
}

func (c *conn) send(ctx context.Context, frame []byte) error {
	ctx, cancel := context.WithTimeout(ctx, c.s.o.WriteTimeout)
	defer cancel()
	err := c.ws.Write(ctx, websocket.MessageBinary, frame)
	if err != nil && ctx.Err() != nil {
		err = errors.Join(err, ctx.Err()) // the library does not always say so
	}
	return err
}

// nextFrame collects the next message: answers, and the number of completed files if it has changed. Once the
// connection ends nothing is acknowledged any more.
func (c *conn) nextFrame(frame []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return nil
	}
	n := min(len(c.out), outLimit)
	frame = append(frame, c.out[:n]...)
	c.out = c.out[:copy(c.out, c.out[n:])]
	frame = append(frame, c.extra...) // bounded by the files in flight
	c.extra = c.extra[:0]
	if c.completed != c.acked && len(c.out) == 0 {
		c.acked = c.completed
		frame = binary.BigEndian.AppendUint32(append(frame, opCompleted), uint32(c.completed)) //nolint:gosec // an int32 on the wire
	}
	return frame
}

// watch ends a connection that does nothing, and makes sure that the session may still be used.
func (c *conn) watch(ctx context.Context) {
	o := &c.s.o
	tick := time.NewTicker(max(min(o.ListingTimeout, o.Silence, o.PingInterval, o.TouchInterval)/8, time.Millisecond))
	defer tick.Stop()
	will := time.NewTimer(o.WillAfter)
	defer will.Stop()
	touched, pinged := time.Now(), time.Now()
	for {
		select {
		case <-tick.C:
		case <-will.C:
			if !c.unfinished() {
				will.Reset(o.WillAfter)
				continue
			}
			c.tasks.Go(func() { c.s.expectEnd(ctx, c.ses) })
			continue
		case <-ctx.Done():
			return
		}
		now := time.Now()
		if e := c.tooQuiet(now); e != nil {
			c.end(e)
			return
		}
		if now.Sub(pinged) >= o.PingInterval && now.Sub(time.Unix(0, c.heard.Load())) >= o.PingInterval {
			pinged = now
			// The answer counts as a sign of life by arriving. A reader that is held up by the disk does not see it, which
			// is why nothing follows from its absence here.
			c.tasks.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, o.PingInterval/2)
				defer cancel()
				_ = c.ws.Ping(ctx)
			})
		}
		if now.Sub(touched) >= o.TouchInterval {
			touched = now
			if e := c.touch(ctx); e != nil {
				c.end(e)
				return
			}
		}
	}
}

func (c *conn) unfinished() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.listed > c.completed
}

// tooQuiet applies the rules for silent connections (contract 11 sections 2.3 and 2.5).
func (c *conn) tooQuiet(now time.Time) *ending {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := &c.s.o
	switch {
	case c.listed == c.completed && now.Sub(c.calm) >= o.ListingTimeout:
		return &ending{code: websocket.StatusNormalClosure, reason: "nothing to do"}
	case (len(c.files) > 0 || c.within.Load()) && !c.blocked.Load() && now.Sub(time.Unix(0, c.heard.Load())) >= o.Silence:
		return &ending{code: websocket.StatusPolicyViolation, reason: "the client is silent"}
	}
	return nil
}

// touch asks whether the session may still be used: the user may have been disconnected, or the drive locked. A server
// that is away changes nothing.
func (c *conn) touch(ctx context.Context) *ending {
	err := c.s.o.Sessions.Touch(ctx, ipcapi.SessionNote{Purpose: c.ses.purpose(), Token: c.ses.token})
	switch failure.KindOf(err) {
	case failure.NotFound, failure.Forbidden, failure.PaymentRequired:
		if err != nil {
			return &ending{websocket.StatusPolicyViolation, failure.Why(err), err, true}
		}
	}
	return nil
}
