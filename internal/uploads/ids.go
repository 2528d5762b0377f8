package uploads

import "errors"

// idState is what a connection knows about a file id.
type idState uint8

const (
	idUnknown  idState = iota // never listed
	idInUse                   // listed, and not completed
	idFinished                // completed; may be listed again
	idSkipped                 // the client has skipped it before we decided
)

const (
	idsPerPage = 1 << 15
	pageBytes  = idsPerPage / 4
	// maxPages allows ids over a range of 67 million, or 16 MiB for ids that are scattered on purpose.
	maxPages = 2048
)

// errScattered is a client whose ids cannot be remembered in bounded memory. Clients count upwards.
var errScattered = errors.New("the file ids are too far apart")

// idTable remembers all ids of a connection with two bits each, for as long as the connection lives: data that arrives
// late for a file that is over must be told from data for a file that never was.
type idTable struct {
	charge func(bytes int64) error
	pages  map[uint32]*[pageBytes]byte
}

func (t *idTable) get(id uint32) idState {
	p := t.pages[id/idsPerPage]
	if p == nil {
		return idUnknown
	}
	i := id % idsPerPage
	return idState(p[i/4] >> (i % 4 * 2) & 3)
}

func (t *idTable) set(id uint32, s idState) error {
	p := t.pages[id/idsPerPage]
	if p == nil {
		if len(t.pages) >= maxPages {
			return errScattered
		}
		if err := t.charge(pageBytes); err != nil {
			return err
		}
		if t.pages == nil {
			t.pages = map[uint32]*[pageBytes]byte{}
		}
		p = new([pageBytes]byte)
		t.pages[id/idsPerPage] = p
	}
	i := id % idsPerPage
	shift := i % 4 * 2
	p[i/4] = p[i/4]&^(3<<shift) | byte(s)<<shift
	return nil
}

func (t *idTable) close() {
	_ = t.charge(-int64(len(t.pages)) * pageBytes)
	t.pages = nil
}
