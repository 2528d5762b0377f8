package uploadclient

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Serve is Send for files that are found while others are sent, first and those of a channel, until that is closed and
// all are completed. A peer that closes a connection on which there is nothing to do ends it without an error, and with
// more: the rest of the files is for another connection.
func (c *Conn) Serve(ctx context.Context, first *File, files <-chan *File) (more bool, err error) {
	stop := context.AfterFunc(ctx, func() { c.cancel(context.Cause(ctx)) })
	defer stop()
	c.went()
	listing := c.list(append(make([]byte, 0, listingBytes), opListing), first)
	due := time.NewTimer(flushAfter)
	defer due.Stop()
	stalled := time.NewTicker(max(c.o.Stall/8, time.Millisecond))
	defer stalled.Stop()
	flush := func() error {
		if len(listing) == 1 {
			return nil
		}
		err := c.write(listing)
		listing = listing[:1]
		return err
	}
	for open := true; ; {
		source := files
		if !open || !c.room() {
			source = nil
			if err := flush(); err != nil {
				return false, err
			}
		}
		if !open && c.outstanding() == 0 {
			if done, err := c.settled(); done || err != nil {
				return false, err
			}
		}
		select {
		case f, ok := <-source:
			if open = ok; !ok {
				continue
			}
			if len(listing)+24+len(f.Path) > listingBytes {
				if err := flush(); err != nil {
					return false, err
				}
			}
			if len(listing) == 1 {
				due.Reset(flushAfter)
			}
			listing = c.list(listing, f)
		case <-due.C:
			if err := flush(); err != nil {
				return false, err
			}
		case <-c.change:
		case <-stalled.C:
			if c.outstanding() > 0 && time.Since(time.Unix(0, c.moved.Load())) > c.o.Stall {
				return false, ErrStalled
			}
		case <-c.ctx.Done():
			err := context.Cause(c.ctx)
			done, _ := c.settled()
			if ctx.Err() == nil && len(listing) == 1 && c.outstanding() == 0 && done && errors.Is(err, ErrClosed) {
				return open, nil
			}
			return false, err
		}
	}
}

// settled tells, when the peer has completed everything, whether we have as well: an empty file is completed when it is
// wanted, while it waits here to be sent. What is completed must have been wanted or skipped.
func (c *Conn) settled() (done bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.files {
		if !s.wanted {
			return false, fmt.Errorf("%w: a file is completed that was neither wanted nor skipped", ErrProtocol)
		}
	}
	return c.busy == 0 && len(c.files) == 0, nil
}

// room tells whether one more file may be listed.
func (c *Conn) room() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.aheadLocked() < int64(c.o.Ahead) && (c.o.Bytes <= 0 || c.ahead < c.o.Bytes || len(c.files) == 0)
}

// aheadLocked is how many files are listed and not completed, or not yet sent: the peer completes an empty file when it
// wants it, and we have it in the queue for a moment longer.
func (c *Conn) aheadLocked() int64 { return max(c.res.Listed-c.res.Completed, int64(len(c.files))) }

// went notes that something goes on.
func (c *Conn) went() { c.moved.Store(time.Now().UnixNano()) }
