package transfers

import (
	"context"
	"errors"
	"hash/maphash"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/browserlink"
	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	uploadclient "ucloud-im/internal/uploads/client"
)

const (
	aheadFiles = 1000      // files of one connection that are listed and not completed
	aheadBytes = 256 << 20 // size of files of one connection that are listed and not sent
	senders    = 2         // files that one connection sends at a time
)

// Reasons for which a file is not sent although it is wanted.
var (
	errChanged = failure.New(failure.Conflict, "The file was changed while it was being sent")
	errRepeats = errors.New("the other provider wants the file again and again")
	errGone    = errors.New("the file was removed")
)

// history remembers what was sent by the passes of one attempt, so that a file that changes all the time, and a
// destination that never has enough, come to an end. It is bounded: what does not fit is decided by the number of files
// that the passes send (see runner.settled).
type history struct {
	seed maphash.Seed

	mu    sync.Mutex // guards the fields below
	files map[uint64]try
	pass  map[uint64]uint64 // versions that were sent by the pass under way; they count if it comes to its end
}

// try is how often a file was sent, and as what the last time.
type try struct {
	n       uint8
	version uint64
}

const (
	maxHistory = 100_000
	maxTries   = 2 // how often a file is sent before it is reported
)

func newHistory() *history { return &history{seed: maphash.MakeSeed(), files: map[uint64]try{}} }

// sent notes a file that went out completely.
func (h *history) sent(rel string, version uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pass == nil {
		h.pass = map[uint64]uint64{}
	}
	if len(h.pass) < maxHistory {
		h.pass[maphash.String(h.seed, rel)] = version
	}
}

// passed is the end of a pass. If it was cut, what was sent may not have arrived, and is forgotten.
func (h *history) passed(cut bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k, version := range h.pass {
		if cut {
			break
		}
		h.triedLocked(k, version)
	}
	h.pass = nil
}

// worn tells whether the file has been tried often enough, and whether it was the same each time.
func (h *history) worn(rel string, version uint64) (worn, same bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.files[maphash.String(h.seed, rel)]
	return t.n >= maxTries, t.version == version
}

// tried notes a try, and tells whether there may be another.
func (h *history) tried(rel string, version uint64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.triedLocked(maphash.String(h.seed, rel), version)
}

func (h *history) triedLocked(k, version uint64) bool {
	t, known := h.files[k]
	if !known && len(h.files) >= maxHistory {
		return true
	}
	h.files[k] = try{t.n + 1, version}
	return t.n+1 < maxTries
}

// version tells one state of a file from another.
func (h *history) version(size, ms int64) uint64 {
	return maphash.Comparable(h.seed, [2]int64{size, ms})
}

// counts are what a pass has found and done.
type counts struct {
	listed, listedBytes atomic.Int64
	had, hadBytes       atomic.Int64 // the destination did not want them
	sent, sentBytes     atomic.Int64 // files that went out completely, and their bytes
	stored              atomic.Int64 // files of which the destination says so
	out                 atomic.Int64 // bytes that went out
	again               atomic.Int64 // files that are to be tried again
	unconfirmed         atomic.Int64 // files that the destination wants again and again
	links, special      atomic.Int64
	walked              atomic.Bool // the whole tree is listed
	problems            problems
}

// problems are the files that were not sent, and why.
type problems struct {
	mu    sync.Mutex // guards the fields below
	count int64
	first error
	where string // of the first; below the source
}

func (p *problems) add(rel string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.count++; p.first == nil {
		p.first, p.where = err, rel
	}
}

// pass is one walk over the source.
type pass struct {
	*source
	ctx      context.Context // of this pass
	cancel   context.CancelCauseFunc
	endpoint string
	checked  bool
	client   *http.Client
	conns    int
	maxBytes int64
	history  *history
	counts   *counts
	ids      atomic.Int32
	files    chan *uploadclient.File
}

// run does the pass. The error is why it did not come to its end.
func (p *pass) run() error {
	p.files = make(chan *uploadclient.File)
	var work sync.WaitGroup
	for range p.conns {
		work.Go(func() {
			if err := p.worker(); err != nil {
				p.cancel(err)
			}
		})
	}
	err := p.walk(p)
	p.counts.walked.Store(err == nil)
	close(p.files)
	work.Wait()
	if cause := context.Cause(p.ctx); cause != nil {
		return cause
	}
	return err
}

// file lists a regular file.
func (p *pass) file(rel string, n drives.Node) error {
	total := p.counts.listedBytes.Add(n.Size)
	p.counts.listed.Add(1)
	if p.maxBytes > 0 && total > p.maxBytes {
		return failure.New(failure.TooLarge, "The transfer is larger than this provider allows (%s)", amount(p.maxBytes))
	}
	f := &uploadclient.File{Path: rel, Size: n.Size, Modified: time.Unix(n.Modified.Unix())}
	f.Open = func() (io.ReadCloser, error) { return p.begin(rel, n) }
	select {
	case p.files <- f:
		return nil
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	}
}

func (p *pass) goOn() error { return context.Cause(p.ctx) }

func (p *pass) leftOut(_ string, link bool) {
	if link {
		p.counts.links.Add(1)
	} else {
		p.counts.special.Add(1)
	}
}

func (p *pass) problem(rel string, err error) { p.counts.problems.add(rel, err) }

// worker sends files over one connection at a time. It connects when there is a file to send, and again when the
// destination has closed a connection on which there was nothing to do.
func (p *pass) worker() error {
	for {
		var first *uploadclient.File
		select {
		case f, ok := <-p.files:
			if !ok {
				return nil
			}
			first = f
		case <-p.ctx.Done():
			return nil
		}
		more, err := p.connection(first)
		if err != nil || !more {
			return err
		}
	}
}

func (p *pass) connection(first *uploadclient.File) (more bool, err error) {
	c, err := uploadclient.Dial(p.ctx, p.endpoint, uploadclient.Options{
		HTTP: p.client, NextID: func() int32 { return p.ids.Add(1) - 1 }, Ahead: aheadFiles, Bytes: aheadBytes, Parallel: senders, Checked: p.checked,
		Event: p.event, Progress: func(n int) { p.counts.out.Add(int64(n)) },
	})
	if err != nil {
		return false, err
	}
	more, err = c.Serve(p.ctx, first, p.files)
	res := c.Result()
	p.counts.stored.Add(max(res.Completed-res.Skipped-res.Unreadable-res.Rejected, 0))
	p.counts.again.Add(res.Rejected)
	if err != nil {
		c.Abort()
		return false, err
	}
	return more, c.Close()
}

// event counts what becomes of a file.
func (p *pass) event(f *uploadclient.File, e uploadclient.Event) {
	switch e {
	case uploadclient.Skipped:
		p.counts.had.Add(1)
		p.counts.hadBytes.Add(f.Size)
	case uploadclient.Sent:
		p.history.sent(f.Path, p.history.version(f.Size, f.Modified.UnixMilli()))
		p.counts.sent.Add(1)
		p.counts.sentBytes.Add(f.Size)
	}
}

// begin opens a file that is wanted.
func (p *pass) begin(rel string, n drives.Node) (io.ReadCloser, error) {
	ms := time.Unix(n.Modified.Unix()).UnixMilli()
	if worn, same := p.history.worn(rel, p.history.version(n.Size, ms)); worn && same {
		p.counts.unconfirmed.Add(1)
		return nil, errRepeats
	} else if worn {
		p.problem(rel, errChanged)
		return nil, errChanged
	}
	f, err := p.open(rel)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, errGone // by its owner, and not our business any more
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ESTALE):
		p.cancel(err) // nothing about this file
		return nil, err
	case err != nil:
		p.problem(rel, err)
		return nil, err
	}
	r := &reading{File: f, pass: p, rel: rel, node: n}
	if err := r.Check(); err != nil {
		f.Close() //nolint:errcheck // only read
		return nil, err
	}
	return r, nil
}

// reading is a file that is being sent.
type reading struct {
	*os.File
	pass   *pass
	rel    string
	node   drives.Node // as it was listed
	off    int64
	failed error // it is counted
}

// Read implements [io.Reader].
func (r *reading) Read(b []byte) (int, error) {
	n, err := r.File.Read(b)
	r.off += int64(n)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		if r.failed == nil {
			r.failed = err
			r.pass.problem(r.rel, err)
		}
	case r.off > r.node.Size, n == 0 && len(b) > 0 && r.off < r.node.Size:
		_ = r.Check() // it has become longer or shorter
	}
	return n, err
}

// Check tells whether the file is what was listed: the same inode with the same size and time.
func (r *reading) Check() error {
	if r.failed != nil {
		return r.failed
	}
	now, err := drives.NodeOf(r.File)
	if err == nil && now.Same(r.node) && now.Size == r.node.Size && now.Modified == r.node.Modified {
		return nil
	}
	r.failed = errors.Join(errChanged, err)
	// The next pass lists it as it is then.
	if r.pass.history.tried(r.rel, 0) {
		r.pass.counts.again.Add(1)
	} else {
		r.pass.problem(r.rel, errChanged)
	}
	return r.failed
}

// passed is the error of a connection in the terms of the task: whether it may pass, and what the user reads.
func passed(peer string, err error) (final bool, _ error) {
	var refused *uploadclient.RefusedError
	switch {
	case errors.Is(err, uploadclient.ErrProtocol):
		return true, failure.Wrap(err, failure.BadGateway, "The provider %s does not follow the protocol of transfers", peer)
	case errors.As(err, &refused):
		switch refused.Status {
		case http.StatusForbidden, http.StatusPaymentRequired, http.StatusUnauthorized, http.StatusRequestEntityTooLarge:
			return true, failure.Wrap(err, failure.Forbidden, "The provider %s does not accept the transfer (%d)", peer, refused.Status)
		}
		return false, failure.Wrap(err, failure.BadGateway, "The provider %s does not accept the transfer now (%d)", peer, refused.Status)
	case errors.Is(err, uploadclient.ErrStalled):
		return false, failure.Wrap(err, failure.BadGateway, "The provider %s does not go on", peer)
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ESTALE):
		return false, browserlink.Refuse(err)
	}
	if _, ok := errors.AsType[*failure.Error](err); ok {
		return true, err
	}
	return false, failure.Wrap(err, failure.BadGateway, "The connection to the provider %s was lost", peer)
}
