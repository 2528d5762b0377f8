package transfers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/browserlink"
	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/tasks"
	uploadclient "ucloud-im/internal/uploads/client"
)

// kindSend is the kind of the tasks of a source. Unfinished ones are taken up by later versions, so the name stays.
const kindSend = "transfer"

// sendParams is what a task that sends is about.
type sendParams struct {
	Drive    ident.DriveID `json:"drive"`
	Base     string        `json:"base"` // providerGeneratedId
	Path     string        `json:"path"` // UCloud path
	Peer     string        `json:"peer"` // provider that receives
	Protocol string        `json:"protocol"`
	Endpoint string        `json:"endpoint"`
}

// sendState is what is kept about a task that sends. The files are not: the destination knows which it has.
type sendState struct {
	Passes int   `json:"passes"` // that came to their end
	Files  int64 `json:"files"`  // sent by all passes
	Bytes  int64 `json:"bytes"`
	// Of the last pass that came to its end.
	Listed      int64 `json:"listed"`
	ListedBytes int64 `json:"listedBytes"`
	Sent        int64 `json:"sent"`
	Still       int   `json:"still,omitempty"` // passes in a row that did not send less than the one before
	// Result is set when all that can be there is there, and the destination has not been told yet.
	Result *sendResult `json:"result,omitempty"`
	// GoneSince is since when the destination says that it does not know the session.
	GoneSince time.Time `json:"goneSince,omitzero"`
}

// sendResult is how a task ends.
type sendResult struct {
	Summary string       `json:"summary"`
	Failed  string       `json:"failed,omitempty"` // why not everything was sent
	Kind    failure.Kind `json:"kind,omitempty"`   // of Failed
}

const (
	// maxStill is after how many passes in a row that did not send less than the one before a transfer ends.
	maxStill = 3
	// goneFor is how long a destination may say that it does not know the session, while it is being maintained for
	// instance, before that is taken for the truth.
	goneFor = 15 * time.Minute
	// retryPause is between two passes when the first was cut, but brought the transfer forward. Without progress the
	// task goes back to the queue, with pauses that grow.
	retryPause = 4 * time.Second
	watchEvery = 200 * time.Millisecond
	saveEvery  = 20 * time.Second
)

// errPaused ends a pass because the user has paused the task.
var errPaused = errors.New("the task is paused")

// job is a task under way; [tasks.Task] is one.
type job interface {
	Params() json.RawMessage
	Saved() json.RawMessage
	Save(state json.RawMessage) error
	Progress(p tasks.Progress)
	Summary(text string)
	Checkpoint(ctx context.Context) error
	Paused() bool
}

// runner is one attempt at a task.
type runner struct {
	s       *Service
	job     job
	params  sendParams
	state   sendState
	history *history
	client  *http.Client
	meter   meter
	most    int64 // files that the destination had after a pass that was cut
}

// runSend is the task of a source.
func (s *Service) runSend(ctx context.Context, j job) error {
	r := &runner{s: s, job: j, history: newHistory()}
	if err := json.Unmarshal(j.Params(), &r.params); err != nil {
		return fmt.Errorf("decode task: %w", err)
	}
	if saved := j.Saved(); len(saved) > 0 {
		if err := json.Unmarshal(saved, &r.state); err != nil {
			return fmt.Errorf("decode state of task: %w", err)
		}
	}
	set := s.settings.Load()
	if err := set.mayTransfer(set.Outgoing, outgoing, r.params.Peer); err != nil {
		return err // it may have been switched off meanwhile
	}
	if err := set.Dial.Check(r.params.Endpoint); err != nil {
		return err
	}
	r.client = set.Dial.Client()
	defer r.client.CloseIdleConnections()
	for r.state.Result == nil {
		if err := j.Checkpoint(ctx); err != nil {
			r.abort(ctx)
			return err
		}
		err := r.pass(ctx, set)
		switch {
		case ctx.Err() != nil:
			r.abort(ctx)
			return context.Cause(ctx)
		case errors.Is(err, errPaused), err == nil:
			continue
		}
		if err := r.wait(ctx, err); err != nil {
			return err
		}
	}
	if err := r.close(ctx); err != nil {
		return err
	}
	r.job.Summary(r.state.Result.Summary)
	if why := r.state.Result.Failed; why != "" {
		return failure.New(r.state.Result.Kind, "%s", why)
	}
	return nil
}

// pass does one pass and decides whether there is to be another one.
func (r *runner) pass(ctx context.Context, set *state) error {
	src, err := r.open(set)
	if err != nil {
		return err
	}
	defer src.close()
	c := &counts{}
	p := &pass{
		source: src, endpoint: r.params.Endpoint, checked: r.params.Protocol == protocolChecked, client: r.client, conns: max(set.Connections, 1), maxBytes: set.MaxBytes,
		history: r.history, counts: c,
	}
	if src.top == nil {
		p.conns = 1
	}
	p.ctx, p.cancel = context.WithCancelCause(ctx)
	var beside sync.WaitGroup
	beside.Go(func() { r.watch(p) })
	beside.Go(func() { r.keep(p) })
	err = p.run()
	p.cancel(context.Canceled)
	beside.Wait()
	r.state.Files += c.sent.Load()
	r.state.Bytes += c.sentBytes.Load()
	r.tell(c, err == nil)
	r.history.passed(err != nil)
	if err != nil {
		has := c.had.Load() + c.stored.Load()
		progress := c.stored.Load() > 0 && has > r.most
		r.most = max(r.most, has)
		return &brokenPass{err, progress}
	}
	r.state.GoneSince = time.Time{}
	r.settled(c)
	return r.save()
}

// brokenPass is a pass that did not come to its end.
type brokenPass struct {
	error
	progress bool // the destination has more than it had after any pass before
}

func (e *brokenPass) Unwrap() error { return e.error }

// open opens what is to be sent.
func (r *runner) open(set *state) (*source, error) {
	ref, err := set.set.Drive(&providerapi.Drive{
		ID: r.params.Drive, ProviderGeneratedID: r.params.Base,
		Specification: providerapi.DriveSpecification{Product: providerapi.ProductReference{Provider: r.s.o.Provider}},
	})
	if err != nil {
		return nil, err
	}
	path, err := ref.Path(r.params.Path)
	if err != nil {
		return nil, err
	}
	src, err := openSource(ref, path)
	if errors.Is(err, unix.ENOENT) {
		return nil, failure.Wrap(err, failure.NotFound, "What was to be transferred does not exist any more")
	}
	return src, browserlink.Refuse(err)
}

// settled decides after a pass whether everything is there. It is when a pass had nothing to send; and there is no point
// in going on when passes do not send less any more.
func (r *runner) settled(c *counts) {
	st := &r.state
	sent, again := c.sent.Load(), c.again.Load()
	if st.Passes > 0 && sent >= st.Sent {
		st.Still++
	} else {
		st.Still = 0
	}
	st.Passes++
	st.Listed, st.ListedBytes, st.Sent = c.listed.Load(), c.listedBytes.Load(), sent
	unconfirmed := c.unconfirmed.Load()
	if sent > 0 || again > 0 {
		if st.Still < maxStill {
			return
		}
		unconfirmed += sent
	}
	st.Result = r.result(c, unconfirmed, again)
}

// result puts into words how the transfer has ended.
func (r *runner) result(c *counts, unconfirmed, again int64) *sendResult {
	st := &r.state
	res := &sendResult{Summary: fmt.Sprintf("%s transferred (%s)", files(st.Files), amount(st.Bytes))}
	if had := st.Listed - st.Files; had > 0 {
		res.Summary += fmt.Sprintf(", %d were there already or not accepted", had)
	}
	left := ""
	if n := c.links.Load(); n > 0 {
		left += fmt.Sprintf(", %s left out", plural(n, "link"))
	}
	if n := c.special.Load(); n > 0 {
		left += fmt.Sprintf(", %s left out", plural(n, "special file"))
	}
	if unconfirmed > 0 {
		left += fmt.Sprintf(", %s not confirmed by %s", files(unconfirmed), r.params.Peer)
	}
	res.Summary += left
	p := &c.problems
	if again > 0 {
		p.count += again
		if p.first == nil {
			p.first = errChanged
		}
	}
	if p.count > 0 {
		cause := browserlink.Refuse(p.first)
		where := ""
		if p.where != "" {
			where = fmt.Sprintf(" (%s)", drives.Escape(p.where))
		}
		res.Kind = failure.KindOf(cause)
		res.Failed = fmt.Sprintf("%d of %s not transferred: %s%s%s", p.count, files(max(st.Listed, p.count)), failure.Why(cause), where, left)
	}
	return res
}

// close tells the destination that the transfer is over, on a connection of its own. A session that is not known there
// any more has heard it before.
func (r *runner) close(ctx context.Context) error {
	r.job.Progress(tasks.Progress{Body: r.body(nil), Text: "Finishing", Percent: 100})
	for try := 0; ; try++ {
		if err := r.job.Checkpoint(ctx); err != nil {
			return err
		}
		c, err := uploadclient.Dial(ctx, r.params.Endpoint, uploadclient.Options{HTTP: r.client})
		var refused *uploadclient.RefusedError
		if errors.As(err, &refused) && refused.Status == http.StatusNotFound {
			return nil
		}
		if err == nil {
			stop := context.AfterFunc(ctx, c.Abort)
			err = c.Finish()
			stop()
		}
		switch {
		case err == nil, errors.Is(err, uploadclient.ErrUnsure) && try > 0:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, uploadclient.ErrUnsure):
			continue // if it has heard it, it does not know the session now
		}
		return tasks.Transient(failure.Wrap(err, failure.BadGateway, "The provider %s could not be told that the transfer is over", r.params.Peer))
	}
}

// abortWait bounds what a cancel waits for: it has to act within a second.
const abortWait = 700 * time.Millisecond

// abort tells a destination that knows the checked protocol that the user has cancelled the transfer. Others keep their
// session until it expires, or is cancelled there.
func (r *runner) abort(ctx context.Context) {
	if !errors.Is(context.Cause(ctx), tasks.ErrCancelled) || r.params.Protocol != protocolChecked {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortWait)
	defer cancel()
	c, err := uploadclient.Dial(ctx, r.params.Endpoint, uploadclient.Options{HTTP: r.client, Checked: true})
	if err == nil {
		defer context.AfterFunc(ctx, c.Abort)()
		err = c.Cancel(abortWait)
	}
	if err != nil {
		r.s.log.Debug("the destination was not told of a cancelled transfer", "error", err)
	}
}

// wait decides what comes after a pass that was cut: another one, or the end of the attempt.
func (r *runner) wait(ctx context.Context, err error) error {
	final, err := r.judge(err)
	if final {
		return err
	}
	if again := r.save(); again != nil {
		return again
	}
	broken, ok := errors.AsType[*brokenPass](err)
	if !ok || !broken.progress {
		return tasks.Transient(err)
	}
	r.job.Progress(tasks.Progress{Body: r.body(nil), Text: failure.Why(err) + ". Trying again", Percent: -1})
	for end := r.s.o.Now().Add(r.s.retryPause); r.s.o.Now().Before(end) && !r.job.Paused(); {
		if err := sleep(ctx, min(watchEvery, r.s.retryPause)); err != nil {
			return err
		}
	}
	return nil
}

// judge tells whether an error is the end of the task.
func (r *runner) judge(err error) (final bool, _ error) {
	var refused *uploadclient.RefusedError
	gone := errors.As(err, &refused) && (refused.Status == http.StatusNotFound || refused.Status == http.StatusGone)
	if !gone {
		r.state.GoneSince = time.Time{}
		return passed(r.params.Peer, err)
	}
	now := r.s.o.Now()
	if r.state.GoneSince.IsZero() {
		r.state.GoneSince = now
	}
	return now.Sub(r.state.GoneSince) >= goneFor, failure.Wrap(err, failure.NotFound,
		"The provider %s does not know the transfer any more; it may have been cancelled there", r.params.Peer)
}

func (r *runner) save() error {
	raw, err := json.Marshal(r.state)
	if err != nil {
		return fmt.Errorf("encode state of task: %w", err)
	}
	return r.job.Save(raw)
}

// watch tells about the progress of a pass, and ends it when the task is paused.
func (r *runner) watch(p *pass) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-tick.C:
		}
		if r.job.Paused() {
			p.cancel(errPaused)
			return
		}
		r.tell(p.counts, false)
	}
}

// keep saves now and then how much was sent, so that an interrupted transfer does not forget it.
func (r *runner) keep(p *pass) {
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-tick.C:
		}
		st := r.state // nobody changes it during a pass
		st.Files += p.counts.sent.Load()
		st.Bytes += p.counts.sentBytes.Load()
		if raw, err := json.Marshal(st); err != nil || r.job.Save(raw) != nil {
			return // the task ends
		}
	}
}

// tell passes on the progress.
func (r *runner) tell(c *counts, done bool) {
	rate, perSecond := r.meter.rate(time.Now(), c.out.Load(), c.sent.Load())
	percent := -1.0
	if total := c.listedBytes.Load(); done {
		percent = 100
	} else if c.walked.Load() && total > 0 {
		// What went out of files that are not complete counts as well.
		percent = 100 * float64(min(c.hadBytes.Load()+c.out.Load(), total)) / float64(total)
	}
	r.job.Progress(tasks.Progress{
		Body: r.body(c), Text: fmt.Sprintf("%s/s | %.2f files/s", amount(int64(rate)), perSecond), Percent: min(percent, 100),
	})
}

// body is how much has been done: of the pass under way, or of all.
func (r *runner) body(c *counts) string {
	if c == nil {
		return fmt.Sprintf("%s | %s", amount(r.state.Bytes), files(r.state.Files))
	}
	doneBytes, done := c.hadBytes.Load()+c.out.Load(), c.had.Load()+c.sent.Load()
	total, all := c.listedBytes.Load(), c.listed.Load()
	if !c.walked.Load() {
		return fmt.Sprintf("%s | %s", amount(doneBytes), files(done))
	}
	return fmt.Sprintf("%s/%s | %d / %s", amount(min(doneBytes, total)), amount(total), done, files(all))
}

// sleep waits, or gives the cause of the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
