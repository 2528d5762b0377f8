package driveplan

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

// TestPathChanges: when a script comes to another path, a second drive is registered under an id of its own; the first
// one stays as it is, since Core can neither move nor remove it.
func TestPathChanges(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, storetest.SQLite(t))
		w.mkdir("projects/old")
		var path atomic.Value
		path.Store(w.base + "/projects/old")
		l := Locator{Name: "work", Entity: EntityProject, AllowedRoots: []string{w.base + "/projects"}, Script: func(context.Context, Vars) (Found, error) {
			return Found{Path: path.Load().(string)}, nil
		}}
		if err := w.SetCategories([]Category{{Name: "storage", Locators: []Locator{l}}}); err != nil {
			t.Fatal(err)
		}
		w.allocate(sandbox, 10)
		w.run()
		time.Sleep(time.Minute)
		first, _ := w.drive(sandbox, "projects/old")
		if first.State != store.DriveRegistered {
			t.Fatalf("%+v", first)
		}
		w.mkdir("projects/new")
		path.Store(w.base + "/projects/new")
		time.Sleep(lookAtAll + 2*time.Hour) // nobody tells us
		second, _ := w.drive(sandbox, "projects/new")
		if second.State != store.DriveRegistered || second.ID == first.ID {
			t.Errorf("%+v", second)
		}
		if again, _ := w.drive(sandbox, "projects/old"); again.State != store.DriveRegistered || again.ID != first.ID || w.sends() != 2 {
			t.Errorf("%+v, %d registrations", again, w.sends())
		}
	})
}
