package driveplan

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

// TestRegistrationRules goes through what Core may answer (contract 05 section C). The fake Core fails the test if it is
// sent anything that could end a real one.
func TestRegistrationRules(t *testing.T) {
	t.Parallel()
	type behaviour = func(context.Context, func() (ident.DriveID, error)) (ident.DriveID, error)
	for name, tc := range map[string]struct {
		prepare func(*fakeCore, string)
		behave  []behaviour
		want    store.DriveState
		sends   int // at least 1; 0: any number
		within  time.Duration
	}{
		"works":                           {want: store.DriveRegistered, sends: 1, within: time.Second},
		"not sent":                        {behave: []behaviour{fails(coreapi.ErrNotSent), fails(coreapi.ErrNotSent)}, want: store.DriveRegistered, sends: 3, within: time.Minute},
		"answer lost":                     {behave: []behaviour{cutAfter}, want: store.DriveRegistered, sends: 1, within: 2 * time.Minute},
		"request lost":                    {behave: []behaviour{cutBefore}, want: store.DriveRegistered, sends: 2, within: 2 * time.Minute},
		"request lost twice":              {behave: []behaviour{cutBefore, cutBefore}, want: store.DriveSuspect, sends: 2, within: time.Hour},
		"lost, then away, then lost":      {behave: []behaviour{cutBefore, fails(coreapi.ErrNotSent), fails(coreapi.ErrNotSent), cutBefore}, want: store.DriveSuspect, sends: 4, within: time.Hour},
		"second answer lost":              {behave: []behaviour{cutBefore, cutAfter}, want: store.DriveSuspect, sends: 2, within: time.Hour},
		"died behind a proxy":             {behave: []behaviour{fails(&coreapi.StatusError{Status: 502}), fails(&coreapi.StatusError{Status: 504})}, want: store.DriveSuspect, sends: 2, within: time.Hour},
		"taken by ours":                   {prepare: ours, want: store.DriveRegistered, sends: 1, within: time.Minute},
		"taken by ours, filter blind":     {prepare: func(c *fakeCore, id string) { ours(c, id); c.noFilter = true }, want: store.DriveRegistered, sends: 1, within: time.Minute},
		"taken by something else":         {prepare: func(c *fakeCore, id string) { c.taken[id] = true }, want: store.DriveSuspect, sends: 1, within: time.Hour},
		"taken by a drive of other owner": {prepare: foreign, want: store.DriveFailed, sends: 1, within: time.Hour},
		"refused, then accepted":          {behave: []behaviour{fails(&coreapi.StatusError{Status: 403}), fails(&coreapi.StatusError{Status: 400})}, want: store.DriveRegistered, sends: 3, within: time.Hour},
		"bug in Core":                     {behave: []behaviour{fails(&coreapi.StatusError{Status: 500})}, want: store.DriveRegistered, sends: 2, within: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, storetest.SQLite(t))
				w.mkdir("projects/p-1")
				w.allocate(sandbox, 10)
				w.core.behave = tc.behave
				if tc.prepare != nil {
					tc.prepare(w.core, GeneratedID("hpc", sandbox, w.base+"/projects/p-1"))
				}
				w.run()
				time.Sleep(tc.within)
				d, _ := w.drive(sandbox, "projects/p-1")
				if d.State != tc.want || w.sends() != tc.sends || (d.State == store.DriveRegistered) != (d.ID != "") {
					t.Fatalf("after %s: %d sends, drive %+v", tc.within, w.sends(), d)
				}
				if d.State != store.DriveRegistered && d.LastError == "" {
					t.Error("nothing tells the operator why")
				}
				// And nothing happens to it any more, whoever looks.
				w.ChangedAll()
				time.Sleep(24 * time.Hour)
				after, _ := w.drive(sandbox, "projects/p-1")
				if after.State != tc.want || w.sends() != tc.sends {
					t.Fatalf("a day later: %d sends, drive %+v", w.sends(), after)
				}
			})
		})
	}
}

func ours(c *fakeCore, id string) {
	p := sandbox.Project
	c.drives[id] = providerapi.Drive{
		ID: "77", ProviderGeneratedID: id, Owner: providerapi.ResourceOwner{CreatedBy: ident.SystemUser, Project: &p},
		Specification: providerapi.DriveSpecification{Product: providerapi.ProductReference{ID: "storage", Category: "storage", Provider: "hpc"}},
	}
}

func foreign(c *fakeCore, id string) {
	ours(c, id)
	d := c.drives[id]
	d.Owner = providerapi.ResourceOwner{CreatedBy: "somebody#1"}
	c.drives[id] = d
}

// TestCrashBetweenAnyTwoSteps ends the process at each point and lets the next one finish, on both engines.
func TestCrashBetweenAnyTwoSteps(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"note", "queue", "queued", "sending", "sent"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, storetest.SQLite(t))
				w.mkdir("projects/p-1")
				w.allocate(sandbox, 10)
				crash := errors.New("crash")
				reached := make(chan struct{})
				switch step {
				case "note", "queue":
					w.fault = func(s string) error {
						if s == step {
							return crash
						}
						return nil
					}
					if err := w.Evaluate(t.Context(), sandbox); !errors.Is(err, crash) {
						t.Fatal(err)
					}
				case "queued":
					if err := w.Evaluate(t.Context(), sandbox); err != nil {
						t.Fatal(err)
					}
				case "sending", "sent":
					w.core.behave = append(w.core.behave, func(ctx context.Context, register func() (ident.DriveID, error)) (ident.DriveID, error) {
						if step == "sent" {
							_, _ = register()
						}
						close(reached)
						<-ctx.Done()
						return "", ctx.Err()
					})
					stop := w.run()
					<-reached
					stop()
				}
				w.restart()
				w.run()
				time.Sleep(5 * time.Minute)
				d, _ := w.drive(sandbox, "projects/p-1")
				if d.State != store.DriveRegistered || len(w.core.drives) != 1 || w.core.drives[d.ProviderGeneratedID].ID != d.ID {
					t.Fatalf("drive %+v, Core %+v", d, w.core.drives)
				}
				want := map[string]int{"sending": 2}[step]
				if n := w.sends(); n != max(want, 1) {
					t.Fatalf("%d sends", n)
				}
			})
		})
	}
}
