package files

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/tasks"
)

// retiring remembers when the trash of a drive was looked at for what is too old.
type retiring struct {
	mu   sync.Mutex // guards the field below
	last map[ident.DriveID]time.Time
}

const (
	// retireEvery is how often the trash of a drive is looked at.
	retireEvery = 24 * time.Hour
	// maxRetiring bounds the memory; a user has a few dozen drives.
	maxRetiring = 512
	// retireTimeout bounds the storing of the task.
	retireTimeout = 10 * time.Second
)

// due tells whether it is time for a drive, and notes that it was.
func (r *retiring) due(id ident.DriveID, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.last[id]) < retireEvery {
		return false
	}
	if r.last == nil || len(r.last) >= maxRetiring {
		r.last = map[ident.DriveID]time.Time{}
	}
	r.last[id] = now
	return true
}

// retire has what is in the trash of a drive for longer than files.trash.retention says removed by a background task that
// the user does not see. It looks at a drive when its user does, once a day at most, and does not keep the request
// waiting. Where one drive is a whole file system there may be many trashes, of which none is looked at.
func (s *Service) retire(d *providerapi.Drive) {
	st := s.state.Load()
	if st.TrashRetention <= 0 || st.Unmanaged || s.o.Tasks == nil || !d.May(providerapi.PermissionEdit) || !s.retiring.due(d.ID, s.now()) {
		return
	}
	drive := *d
	s.gate.wait.Go(func() { // Close waits for it
		ctx, cancel := context.WithTimeout(s.life, retireTimeout)
		defer cancel()
		if err := s.submitRetirement(ctx, st, &drive, s.now().Add(-st.TrashRetention)); err != nil {
			s.log.Warn("old things stay in the trash", "drive", drive.ID, "error", err)
		}
	})
}

func (s *Service) submitRetirement(ctx context.Context, st *state, d *providerapi.Drive, until time.Time) error {
	p, err := s.changeable(st, d, "/"+string(d.ID)+"/"+trashName)
	if err != nil {
		return err
	}
	r, err := run(ctx, s.gate, p.ref.Base(), func() (removal, error) { return lookAtTrash(st, p) }, nil)
	if errors.Is(err, unix.ENOENT) || failure.Is(err, failure.Invalid) {
		return nil // there is no trash
	}
	if err != nil {
		return err
	}
	r.Drive, r.Base, r.Until = d.ID, d.ProviderGeneratedID, until.UnixNano()
	params, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = s.o.Tasks.Submit(ctx, tasks.Spec{
		Kind: kindEmptyTrash, Title: "Removing what is too old from the trash", Icon: "trash", Hidden: true, Params: params,
	})
	return err
}
