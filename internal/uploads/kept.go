package uploads

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/browserlink"
	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/fileserver"
	"ucloud-im/internal/websock"
)

// The two older protocols send one file in order, over many requests or connections (contract 11 sections 3 and 4). What
// has been acknowledged is kept in a draft with a name that only the token can give, and its length in the session's
// note, so that the client can go on after a restart. Bytes beyond that length were never acknowledged, and are cut.

// errGap is a part that does not continue what is there.
var errGap = errors.New("the part does not continue the file")

func errOffset(have int64) error {
	return failure.Wrap(errGap, failure.Conflict, "The upload continues at byte %d", have)
}

// appendKept stores the next part of a file, and the file if that was the last one. It gives the length that is stored
// now. With rewind the part may begin earlier, because an acknowledgement was lost.
func (s *Service) appendKept(ctx context.Context, ses *session, st *state, pl *place, offset, total int64, src io.Reader, rewind bool, tn *turn) (int64, error) {
	if err := s.takeTurn(ctx, ses, tn); err != nil {
		return 0, err
	}
	defer ses.endTurn()
	ctx = context.WithoutCancel(ctx)
	if ses.Kind != kindFile || pl.parent == nil {
		return 0, failure.New(failure.Invalid, "This link is not for a single file")
	}
	t := target{dir: pl.parent, rel: relParent, name: pl.name}
	ses.mu.Lock()
	n := ses.note
	ses.mu.Unlock()
	if n.Done && n.Size == total && s.isStored(t, n) {
		return total, nil // the answer to the last part was lost
	}
	if n.Done {
		n = note{}
	}
	d, err := t.dir.KeptDraft(t.name, ses.draftDigits(), fileMode)
	if errors.Is(err, drives.ErrDraftBusy) { // by an instance that is being replaced
		err = failure.Wrap(err, failure.Conflict, "The upload is going on over another connection, try again in a moment")
	}
	if err != nil {
		return 0, err
	}
	defer d.Close() //nolint:errcheck // complete has looked at the error where it counts
	stored, err := s.cutKept(d, n.Stored, offset, total, rewind)
	if err != nil {
		if stored == 0 {
			d.Discard() // there is nothing in it
		}
		return stored, err
	}
	end, err := s.copyKept(d, offset, total, &heardReader{src, &tn.heard})
	if err != nil {
		if browserlink.StorageBroken(err) {
			d.Discard()
			s.save(ctx, ses, note{})
			return 0, err
		}
		if stored == 0 {
			d.Discard()
			return 0, err
		}
		return stored, errors.Join(err, d.Truncate(stored))
	}
	if end < total {
		if end > stored {
			s.save(ctx, ses, note{Stored: end})
		}
		return end, nil
	}
	if err := s.completeKept(ctx, ses, st, d, t, total); err != nil {
		d.Discard()
		s.save(ctx, ses, note{})
		return 0, err
	}
	return end, nil
}

// isStored tells whether the file of the note still has its name.
func (s *Service) isStored(t target, n note) bool {
	missing := 0
	for i := 0; i <= drives.MaxNumbered && missing < 2; i++ {
		old, err := t.dir.Target(drives.Numbered(t.name, i))
		if err != nil {
			missing++
		} else if old.Regular && old.Inode == n.Inode && old.Size == n.Size {
			return true
		}
	}
	return false
}

// cutKept makes the draft as long as what was acknowledged, and checks that the part at offset continues it. With
// rewind it may begin earlier: then it is written once more over what is there, which stays, because it may be that the
// part comes late over a connection that was lost, while a newer one is further.
func (s *Service) cutKept(d *drives.Draft, stored, offset, total int64, rewind bool) (int64, error) {
	size, err := d.Size()
	if err != nil {
		return 0, err
	}
	if stored = min(stored, size); rewind && stored > total {
		stored = offset // another file
	}
	if size > stored {
		if err := d.Truncate(stored); err != nil {
			return 0, err
		}
	}
	if offset > stored || offset < stored && !rewind {
		return stored, errOffset(stored)
	}
	return stored, nil
}

// heardReader notes when data comes.
type heardReader struct {
	io.Reader
	heard *atomic.Int64
}

func (r *heardReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.heard.Store(time.Now().UnixNano())
	return n, err
}

// errSource is a part whose sender stopped.
var errSource = errors.New("read upload")

func (s *Service) copyKept(d *drives.Draft, offset, total int64, src io.Reader) (int64, error) {
	buf := s.newPiece()
	defer s.oldPiece(buf)
	for {
		n, err := readFull(src, buf[:])
		if int64(n) > total-offset {
			return offset, errSurplus
		}
		if n > 0 {
			if _, err := d.WriteAt(buf[:n], offset); err != nil {
				return offset, err
			}
			offset += int64(n)
		}
		switch {
		case err == io.EOF: //nolint:errorlint // only the bare one is the end; a connection that breaks off wraps it
			return offset, nil
		case err != nil:
			return offset, fmt.Errorf("%w: %w", errSource, err)
		}
	}
}

// readFull is io.ReadFull, except that the end of src is io.EOF also after some bytes: a body that breaks off must be
// told from one that ends. Bytes that come with another error do not count, see [message.next].
func readFull(src io.Reader, p []byte) (n int, err error) {
	for n < len(p) {
		k, err := src.Read(p[n:])
		if err != nil && err != io.EOF { //nolint:errorlint // see copyKept
			return n, err
		}
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (s *Service) completeKept(ctx context.Context, ses *session, st *state, d *drives.Draft, t target, total int64) error {
	e := entry{size: total}
	p, err := examine(ses, t, &e, s.now())
	if err != nil {
		return err
	}
	inode, err := d.Inode()
	if err != nil {
		return err
	}
	if err := s.complete(ses, st, d, t, &e, p); err != nil {
		return err
	}
	if !st.NoSync {
		if err := t.dir.Sync(); err != nil {
			return err
		}
	}
	s.drafts.offer(t.dir)
	s.save(ctx, ses, note{Inode: inode, Size: total, Done: true, Stored: total})
	return nil
}

// serveChunk is one part of an upload in chunks.
func (s *Service) serveChunk(w http.ResponseWriter, c *fileserver.Call) error {
	st := s.state.Load()
	origin, err := st.links.Origin(c.Request)
	if err != nil {
		return err
	}
	browserlink.AllowOrigin(w.Header(), origin, "")
	token, err := browserlink.Token(c.Request, headerToken)
	if err != nil {
		return err
	}
	offset, err := decimal(c.Header, headerOffset)
	if err != nil {
		return err
	}
	total, err := decimal(c.Header, headerTotal)
	if err != nil {
		return err
	}
	if c.ContentLength > maxMessage {
		return failure.New(failure.TooLarge, "The part is larger than %d bytes", maxMessage)
	}
	if offset > total || c.ContentLength > total-offset {
		return errSurplus
	}
	rec, n, err := s.open(c.Context(), token)
	if err != nil {
		return err
	}
	ses, err := s.enter(token, rec, n)
	if err != nil {
		return err
	}
	defer s.leave(ses)
	pl, err := s.openPlace(c.Context(), st, &rec)
	if err != nil {
		return err
	}
	defer pl.close()
	body := http.MaxBytesReader(w, c.Body, maxMessage)
	tn := &turn{abort: func() {
		http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // the connection may be over
	}}
	_, err = s.appendKept(c.Context(), ses, st, pl, offset, total, body, false, tn)
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		err = failure.Wrap(err, failure.TooLarge, "The part is larger than %d bytes", maxMessage)
	}
	if errors.Is(err, errSource) {
		err = failure.Wrap(err, failure.Invalid, "The connection was lost")
	}
	if err != nil {
		return browserlink.Refuse(err)
	}
	return c.Write(w, struct{}{})
}

// decimal reads a header that is a number.
func decimal(h http.Header, name string) (int64, error) {
	values := h.Values(name)
	if len(values) == 1 {
		if n, err := strconv.ParseUint(values[0], 10, 63); err == nil {
			return int64(n), nil //nolint:gosec // 63 bits
		}
	}
	return 0, failure.New(failure.Invalid, "The header %s is missing or not a number", name)
}

// serveV1 is one connection of protocol V1.
func (s *Service) serveV1(ws *websock.Conn, st *state, ses *session, pl *place, heard *atomic.Int64, log *slog.Logger) {
	defer pl.close()
	ctx, cancel := context.WithCancel(s.life)
	defer cancel()
	done := make(chan struct{})
	go func() { // ends with ctx
		defer close(done)
		s.watchV1(ctx, heard, ws)
	}()
	err := s.runV1(ctx, ws, st, ses, pl)
	cancel()
	<-done
	code, reason := websocket.StatusNormalClosure, "done"
	switch e := (*ending)(nil); {
	case err == nil:
	case errors.As(err, &e):
		code, reason = e.code, e.reason
	case websocket.CloseStatus(err) >= 0 || errors.Is(err, context.Canceled):
		code, reason = websocket.StatusGoingAway, "closed"
	case errors.Is(err, errSource):
		reason = "lost"
	default:
		refused := browserlink.Refuse(err)
		code, reason = websocket.StatusInternalError, failure.Why(refused)
		ses.fail("", refused, browserlink.StorageBroken(err))
	}
	ws.Close(code, reason) //nolint:errcheck // the client may be gone
	log.Debug("upload connection ended", "why", reason, "error", err)
}

// watchV1 cuts a connection that is silent or whose service ends.
func (s *Service) watchV1(ctx context.Context, heard *atomic.Int64, ws *websock.Conn) {
	tick := time.NewTicker(max(s.o.Silence/8, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			if s.life.Err() != nil {
				ws.CloseNow() //nolint:errcheck // it is to end
			}
			return
		case now := <-tick.C:
			if now.Sub(time.Unix(0, heard.Load())) >= s.o.Silence {
				ws.CloseNow() //nolint:errcheck // it is to end
				return
			}
		}
	}
}

// runV1 reads "<offset> <total>", then data until the file is complete. It answers with how much is stored.
func (s *Service) runV1(ctx context.Context, ws *websock.Conn, st *state, ses *session, pl *place) error {
	kind, r, err := ws.Reader(context.Background())
	if err != nil {
		return err
	}
	head, err := io.ReadAll(io.LimitReader(r, 64))
	if err != nil {
		return err
	}
	offset, total, ok := parseV1(string(head))
	if kind != websocket.MessageText || !ok || len(head) == 64 {
		return &ending{code: websocket.StatusProtocolError, reason: "the first message is not \"<offset> <size>\""}
	}
	tn := &turn{abort: func() { ws.CloseNow() }} //nolint:errcheck // it is to end
	for {
		var part io.Reader = strings.NewReader("")
		if offset < total {
			if kind, r, err = ws.Reader(context.Background()); err != nil {
				return err
			}
			if kind != websocket.MessageBinary {
				return &ending{code: websocket.StatusUnsupportedData, reason: "text is not expected"}
			}
			part = r
		}
		if offset, err = s.appendKept(ctx, ses, st, pl, offset, total, part, true, tn); err != nil {
			if errors.Is(err, errGap) {
				return &ending{code: websocket.StatusPolicyViolation, reason: failure.Why(err), err: err}
			}
			return err
		}
		answer, cancel := context.WithTimeout(ctx, s.o.WriteTimeout)
		err = ws.Write(answer, websocket.MessageText, strconv.AppendInt(nil, offset, 10))
		cancel()
		if err != nil {
			return err
		}
		if offset == total {
			return nil
		}
	}
}

func parseV1(text string) (offset, total int64, ok bool) {
	a, b, found := strings.Cut(text, " ")
	x, err1 := strconv.ParseUint(a, 10, 63)
	y, err2 := strconv.ParseUint(b, 10, 63)
	if !found || err1 != nil || err2 != nil || x > y || y > math.MaxInt64 {
		return 0, 0, false
	}
	return int64(x), int64(y), true //nolint:gosec // 63 bits
}
