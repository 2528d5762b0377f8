package intentclient

import (
	"context"
	"errors"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/ipcapi"
)

// TestDriveBook: what is kept of the server's answers, and what a server that is away means.
func TestDriveBook(t *testing.T) {
	t.Parallel()
	now := time.Unix(1767225600, 0)
	asked := 0
	var answer error
	drive := ipcapi.FoundDrive{ID: "4", ProviderGeneratedID: "x\n/home/alice", Owner: ident.Owner{Project: "p"}}
	b := drivebook{now: func() time.Time { return now }, find: func(context.Context, ident.DriveID) (ipcapi.FoundDrive, error) {
		asked++
		return drive, answer
	}}
	want := func(wantFound bool, wantAsked int) {
		t.Helper()
		asked = 0
		d, found, err := b.get(t.Context(), "4")
		if err != nil || found != wantFound || asked != wantAsked {
			t.Errorf("found %v after %d questions: %v", found, asked, err)
		}
		if found && d != (intent.Drive{ProviderID: "x\n/home/alice", Project: "p"}) {
			t.Errorf("drive %+v", d)
		}
	}
	unavailable := failure.New(failure.Unavailable, "away")
	answer = unavailable
	if _, _, err := b.get(t.Context(), "4"); !errors.Is(err, unavailable) {
		t.Errorf("a drive that cannot be asked for: %v", err)
	}
	answer = failure.New(failure.NotFound, "none")
	want(false, 1)
	want(false, 0)
	now = now.Add(missingLife)
	answer = nil
	want(true, 1)
	want(true, 0)
	// It is where it was, also while the server is away or refuses to look.
	now = now.Add(driveLife)
	answer = unavailable
	want(true, 1)
	answer = failure.New(failure.TooMany, "slowly")
	want(true, 1)
	answer = failure.New(failure.NotFound, "you do not belong to its workspace") // the user has left it
	want(true, 1)
	answer = nil
	want(true, 1)
	want(true, 0)
	for n := range 3 * maxDrives {
		if _, _, err := b.get(t.Context(), ident.UID(n+10).String()); err != nil {
			t.Fatal(err)
		}
	}
	if len(b.drives) > maxDrives {
		t.Errorf("%d drives are kept", len(b.drives))
	}
}
