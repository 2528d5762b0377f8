package intentclient

import (
	"context"
	"sync"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/ipcapi"
)

// FindDrive asks the server for a drive of the user's workspaces. The kinds NotFound, Forbidden, Invalid and TooMany say
// that the server knows none; every other error, that it could not be asked.
type FindDrive func(ctx context.Context, id ident.DriveID) (ipcapi.FoundDrive, error)

const (
	// driveLife is how long an answer counts. The place of a drive does not change in its life.
	driveLife = 5 * time.Minute
	// missingLife is the same for a drive that is not known: it may be new.
	missingLife = 10 * time.Second
	maxDrives   = 256
	// driveTimeout bounds one question. Core gives up on a call after 5 s.
	driveTimeout = 2 * time.Second
)

// drivebook keeps what the server has said of drives.
type drivebook struct {
	find FindDrive
	now  func() time.Time

	mu     sync.Mutex
	drives map[ident.DriveID]driveEntry
}

type driveEntry struct {
	drive intent.Drive
	found bool
	until time.Time
}

// get gives a drive, for [intent.Options].
func (b *drivebook) get(ctx context.Context, id string) (intent.Drive, bool, error) {
	b.mu.Lock()
	e, ok := b.drives[ident.DriveID(id)]
	b.mu.Unlock()
	if ok && b.now().Before(e.until) {
		return e.drive, e.found, nil
	}
	ctx, cancel := context.WithTimeout(ctx, driveTimeout)
	defer cancel()
	d, err := b.find(ctx, ident.DriveID(id))
	switch {
	case err == nil && d.ProviderGeneratedID != "":
		return b.keep(id, driveEntry{
			drive: intent.Drive{ProviderID: d.ProviderGeneratedID, Project: string(d.Owner.Project)}, found: true, until: b.now().Add(driveLife),
		})
	case err == nil, failure.Is(err, failure.NotFound), failure.Is(err, failure.Forbidden), failure.Is(err, failure.Invalid), failure.Is(err, failure.TooMany):
		// What was known once is not forgotten because somebody makes the server refuse to look.
		if ok && e.found {
			return e.drive, true, nil
		}
		return b.keep(id, driveEntry{until: b.now().Add(missingLife)})
	case ok && e.found:
		return e.drive, true, nil // the server is away, and drives stay where they are
	}
	return intent.Drive{}, false, err
}

func (b *drivebook) keep(id string, e driveEntry) (intent.Drive, bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.drives) >= maxDrives || b.drives == nil {
		b.drives = map[ident.DriveID]driveEntry{} // whoever has so many asks again
	}
	b.drives[ident.DriveID(id)] = e
	return e.drive, e.found, nil
}
