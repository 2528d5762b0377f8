package uploads

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"ucloud-im/internal/failure"
)

// The checked protocol is that of uploads with five commands more, for transfers between providers that both know it
// (docs/decisions/0009-transfers.md). A file is complete when its SHA-256 has come and is right; a large file that was
// interrupted goes on where it was.
const (
	opResume   = 7  // to the client: send the file from an offset, an int64; otherwise like opOK
	opHash     = 8  // from the client: the SHA-256 of the whole file, after the last of its data
	opRejected = 9  // to the client: the hash was not that of what has arrived; the file is completed and not stored
	opStored   = 10 // to the client: so many bytes of a file, an int64, will not be needed again
	opAbort    = 11 // from the client, instead of opClose: its user has cancelled the transfer
)

// errDamaged is a file whose hash is not that of what has arrived.
var errDamaged = failure.New(failure.Invalid, "The file has arrived damaged")

// checking is the state of a file of the checked protocol.
type checking struct {
	kept string    // digits of a draft that stays when the connection is lost; "": it does not
	from int64     // where the client begins
	hash hash.Hash // of what is in the draft
	sum  []byte    // as the client says
}

// keptDigits names the draft of one version of a file, for who has the session's token.
func (ses *session) keptDigits(e *entry) string {
	h := sha256.New()
	fmt.Fprintf(h, "draft of a transfer\n%s\n%d\n%d\n%s", ses.token, e.size, e.modified, e.path)
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// claim takes a draft for one connection. If another one has it, such as one that was cut and does not know yet, the file
// is begun anew under another name.
func (s *Service) claim(digits string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drafted == nil {
		s.drafted = map[string]bool{}
	}
	_, taken := s.drafted[digits]
	if !taken {
		s.drafted[digits] = false
	}
	return !taken
}

// unclaim gives a draft back, and tells whether the file was stored meanwhile by another connection.
func (s *Service) unclaim(digits string) (stored bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stored = s.drafted[digits]
	delete(s.drafted, digits)
	return stored
}

// settled is a file that has its name: its draft is not kept any more, whoever has it.
func (c *conn) settled(f *file) {
	if f.check.kept != "" {
		c.s.unclaim(f.check.kept)
		f.check.kept = ""
		return
	}
	if !c.ses.Checked || isSmall(f.size) {
		return
	}
	digits := c.ses.keptDigits(&f.entry)
	c.s.mu.Lock()
	_, held := c.s.drafted[digits]
	if held {
		c.s.drafted[digits] = true
	}
	c.s.mu.Unlock()
	if held {
		return
	}
	if d, err := f.target.dir.KeptDraft(f.target.name, digits, fileMode); err == nil {
		d.Discard()
	}
}

// resume finds what an earlier connection has stored of a large file.
func (c *conn) resume(f *file) (err error) {
	if isSmall(f.size) {
		return nil
	}
	digits := c.ses.keptDigits(&f.entry)
	if !c.s.claim(digits) {
		return nil
	}
	f.check.kept = digits
	if f.target, err = c.locate(&f.entry); err != nil {
		return err
	}
	if f.draft, err = f.target.dir.KeptDraft(f.target.name, digits, fileMode); err != nil {
		return err
	}
	have, err := f.draft.Size()
	if err != nil {
		return err
	}
	if have > f.size {
		have = 0
		err = f.draft.Truncate(0)
	}
	f.check.from, f.received, f.begun = have, have, have
	return err
}

// hashed gives the hash of what is in the draft, reading what earlier connections have put there.
func (f *file) hashed() (hash.Hash, error) {
	k := &f.check
	if k.hash != nil {
		return k.hash, nil
	}
	h := sha256.New()
	if k.from > 0 {
		src, err := f.target.dir.OpenFile(f.draft.Name())
		if err != nil {
			return nil, err
		}
		defer src.Close()
		if _, err := io.CopyN(h, src, k.from); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, fmt.Errorf("read what was stored before: %w", err)
		}
	}
	k.hash = h
	return h, nil
}

// hashCame is the end of a file.
func (c *conn) hashCame(id uint32) error {
	sum, err := c.msg.must(sha256.Size)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.files[id]
	if f == nil {
		if c.ids.get(id) == idUnknown || c.ids.get(id) == idInUse {
			return fmt.Errorf("%w: hash of file id %d, which was not asked for", errFrame, id)
		}
		return nil // late; the file is over
	}
	switch {
	case f.drop || f.whole:
		return nil
	case f.received != f.size:
		return fmt.Errorf("%w: hash of file id %d before its end", errFrame, id)
	}
	f.check.sum = append([]byte(nil), sum...)
	f.whole = true
	c.readyLocked(f)
	return nil
}

// verify compares the hash of a complete file.
func (f *file) verify() error {
	var got []byte
	if isSmall(f.size) {
		sum := sha256.Sum256(f.buf)
		got = sum[:]
	} else {
		h, err := f.hashed()
		if err != nil {
			return err
		}
		got = h.Sum(nil)
	}
	if string(got) != string(f.check.sum) {
		return errDamaged
	}
	return nil
}

// tellLocked queues a command of the checked protocol.
func (c *conn) tellLocked(op byte, id uint32, offset int64) {
	c.extra = binary.BigEndian.AppendUint32(append(c.extra, op), id)
	if op != opRejected {
		c.extra = binary.BigEndian.AppendUint64(c.extra, uint64(offset)) //nolint:gosec // a size
	}
	c.signal()
}

// keep closes a draft that a later connection goes on with. It reports false if there is none.
func (c *conn) keep(f *file) bool {
	if f.check.kept == "" {
		return false
	}
	unwanted := c.s.unclaim(f.check.kept)
	f.check.kept = ""
	c.mu.Lock()
	unwanted = unwanted || f.drop
	c.mu.Unlock()
	c.s.mu.Lock()
	unwanted = unwanted || c.ses.over // cancelled: nobody will go on
	c.s.mu.Unlock()
	if f.draft == nil || unwanted || f.failed {
		return false
	}
	f.draft.Close() //nolint:errcheck // what it holds is read again before it counts
	f.draft = nil
	return true
}
