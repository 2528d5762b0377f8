package store_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

var (
	alice = ident.Owner{User: "Alice#1"}
	ocean = ident.Owner{Project: "5b0c7e1a-22d4-4c1b-9f63-0d2a9b7e4411"}
)

func TestWallets(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		w := store.Wallet{
			Owner: alice, Category: "storage", CombinedQuota: 1<<63 - 1, TotalUsage: 2, RetiredUsage: 3, Locked: true, IsAllocator: true,
			LastUpdate: day,
		}
		with := func(change func(*store.Wallet)) store.Wallet { c := w; change(&c); return c }
		put := func(name string, w store.Wallet, want bool) {
			t.Helper()
			var changed bool
			update(t, s, func(tx *store.Tx) (err error) { changed, err = tx.PutWallet(w); return err })
			if changed != want {
				t.Errorf("%s: changed = %v", name, changed)
			}
		}
		stored := func() store.Wallet {
			return get(t, s, func(tx *store.Tx) (store.Wallet, error) { return tx.Wallet(alice, "storage") })
		}
		put("new", w, true)
		if d := cmp.Diff(w, stored()); d != "" {
			t.Error(d)
		}
		put("same", w, false)
		put("same, another zone and finer", with(func(w *store.Wallet) { w.LastUpdate = day.Add(999).In(time.FixedZone("x", 3600)) }), false)
		put("older", with(func(w *store.Wallet) { w.LastUpdate = day.Add(-time.Millisecond); w.Locked = false }), false)
		put("same time, other content", with(func(w *store.Wallet) { w.TotalUsage = 9 }), true)
		newer := with(func(w *store.Wallet) { w.LastUpdate = day.Add(time.Second); w.Locked = false })
		put("newer", newer, true)
		if d := cmp.Diff(newer, stored()); d != "" {
			t.Error(d)
		}
		// A project whose id is a user's name is another owner, and so is another category.
		put("project", with(func(w *store.Wallet) { w.Owner = ident.Owner{Project: "Alice#1"} }), true)
		put("other category", with(func(w *store.Wallet) { w.Category = "compute" }), true)
		if n := len(get(t, s, (*store.Tx).Wallets)); n != 3 {
			t.Errorf("%d wallets", n)
		}
		if n := len(get(t, s, func(tx *store.Tx) ([]store.Wallet, error) { return tx.WalletsOf(alice) })); n != 2 {
			t.Errorf("%d wallets of Alice", n)
		}
		if err := query(t, s, func(tx *store.Tx) (store.Wallet, error) { return tx.Wallet(ocean, "storage") }); !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}
		for _, o := range []ident.Owner{{}, {User: "a", Project: "b"}} {
			if err := s.Update(t.Context(), func(tx *store.Tx) error {
				_, err := tx.PutWallet(with(func(w *store.Wallet) { w.Owner = o }))
				return err
			}); err == nil {
				t.Errorf("owner %+v is stored", o)
			}
		}
	})
}

func project(id ident.ProjectID, at time.Time, members ...ident.UCloudUser) store.Project {
	p := store.Project{ID: id, ModifiedAt: at}
	p.Document.ID = id
	p.Document.Specification.Title = "Ocean \x00 \u2028 'Model'"
	for _, m := range members {
		p.Document.Status.Members = append(p.Document.Status.Members, providerapi.ProjectMember{Username: m, Role: "USER"})
	}
	return p
}

func TestProjects(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		put := func(name string, p store.Project, want bool, wantPrevious *store.Project) {
			t.Helper()
			var changed bool
			var previous *store.Project
			update(t, s, func(tx *store.Tx) (err error) { changed, previous, err = tx.PutProject(p); return err })
			if changed != want {
				t.Errorf("%s: changed = %v", name, changed)
			}
			if (previous == nil) != (wantPrevious == nil) || previous != nil && (previous.ID != wantPrevious.ID ||
				!previous.ModifiedAt.Equal(wantPrevious.ModifiedAt) || len(previous.Document.Status.Members) != len(wantPrevious.Document.Status.Members)) {
				t.Errorf("%s: previous = %+v", name, previous)
			}
		}
		of := func(u ident.UCloudUser) (ids []ident.ProjectID) {
			for _, p := range get(t, s, func(tx *store.Tx) ([]store.Project, error) { return tx.ProjectsOf(u) }) {
				ids = append(ids, p.ID)
			}
			slices.Sort(ids)
			return ids
		}
		first := project("p1", day, "A#1", "B#2", "A#1") // a member named twice is one member
		put("new", first, true, nil)
		put("same", first, false, &first)
		put("older", project("p1", day.Add(-time.Second)), false, &first)
		put("another", project("p2", day, "A#1"), true, nil)
		got := get(t, s, func(tx *store.Tx) (store.Project, error) { return tx.Project("p1") })
		if got.Document.Specification.Title != first.Document.Specification.Title || len(got.Document.Status.Members) != 3 || !got.ModifiedAt.Equal(day) {
			t.Errorf("%+v", got)
		}
		if a, b := of("A#1"), of("B#2"); !slices.Equal(a, []ident.ProjectID{"p1", "p2"}) || !slices.Equal(b, []ident.ProjectID{"p1"}) {
			t.Errorf("%v, %v", a, b)
		}
		second := project("p1", day, "B#2") // same time, other content
		put("member left", second, true, &first)
		if a := of("A#1"); !slices.Equal(a, []ident.ProjectID{"p2"}) {
			t.Errorf("%v", a)
		}
		if n := len(get(t, s, (*store.Tx).Projects)); n != 2 {
			t.Errorf("%d projects", n)
		}
		if err := query(t, s, func(tx *store.Tx) (store.Project, error) { return tx.Project("p3") }); !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}
	})
}

func TestProjectGroups(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		set := func(p ident.ProjectID, gid ident.GID, name string) error {
			return s.Update(t.Context(), func(tx *store.Tx) error { return tx.SetProjectGroup(p, gid, name) })
		}
		if err := errors.Join(set("p1", 5000, "ocean"), set("p1", 5001, "sea"), set("p1", 5001, "lake"), set("p2", 5000, "ocean")); err != nil {
			t.Fatal(err)
		}
		if err := set("p2", 5001, "x"); !errors.Is(err, store.ErrConflict) {
			t.Errorf("two projects share a group: %v", err)
		}
		if err := set("p3", 0, "root"); err == nil {
			t.Error("a project is mapped to group 0")
		}
		want := []store.ProjectGroup{{Project: "p1", GID: 5001, Name: "lake"}, {Project: "p2", GID: 5000, Name: "ocean"}}
		got := get(t, s, (*store.Tx).ProjectGroups)
		slices.SortFunc(got, func(a, b store.ProjectGroup) int { return strings.Compare(string(a.Project), string(b.Project)) })
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		update(t, s, func(tx *store.Tx) error { return errors.Join(tx.RemoveProjectGroup("p1"), tx.RemoveProjectGroup("p9")) })
		err := s.View(t.Context(), func(tx *store.Tx) error {
			if gid, name, err := tx.ProjectGroup("p2"); gid != 5000 || name != "ocean" || err != nil {
				t.Errorf("%d, %s, %v", gid, name, err)
			}
			_, _, err := tx.ProjectGroup("p1")
			return err
		})
		if !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}
	})
}

func TestDrives(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		d := store.Drive{
			ProviderGeneratedID: "slurm-Alice#1\n/home/alice", Owner: alice, Category: "storage", Product: "home", Locator: "home",
			Title: "Home", Path: "/home/alice", ReadOnly: true, State: store.DriveDesired, LastError: "x", UpdatedAt: day,
		}
		put := func(d store.Drive) error {
			return s.Update(t.Context(), func(tx *store.Tx) error { return tx.PutDrive(d) })
		}
		stored := func() store.Drive {
			return get(t, s, func(tx *store.Tx) (store.Drive, error) { return tx.Drive(d.ProviderGeneratedID) })
		}
		if err := put(d); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(d, stored()); diff != "" {
			t.Error(diff)
		}
		if err := query(t, s, func(tx *store.Tx) (store.Drive, error) { return tx.DriveByID("") }); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("the empty id is found: %v", err)
		}
		d.ID, d.State, d.Path, d.ReadOnly, d.LastError, d.Owner = "42", store.DriveRegistered, "/new", false, "", ocean
		other := store.Drive{ProviderGeneratedID: "other", Owner: alice, State: store.DrivePrepared}
		third := store.Drive{ProviderGeneratedID: "third", Owner: alice, State: store.DrivePrepared} // several without id
		if err := errors.Join(put(d), put(other), put(third)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(d, get(t, s, func(tx *store.Tx) (store.Drive, error) { return tx.DriveByID("42") })); diff != "" {
			t.Error(diff)
		}
		other.ID = "42"
		if err := put(other); !errors.Is(err, store.ErrConflict) {
			t.Errorf("two drives with an id: %v", err)
		}
		for name, bad := range map[string]store.Drive{
			"no id":      {Owner: alice, State: store.DriveDesired},
			"no owner":   {ProviderGeneratedID: "x", State: store.DriveDesired},
			"wild state": {ProviderGeneratedID: "x", Owner: alice, State: "wild"},
		} {
			if err := put(bad); err == nil {
				t.Errorf("%s is stored", name)
			}
		}
		if n := len(get(t, s, func(tx *store.Tx) ([]store.Drive, error) { return tx.DrivesOf(alice) })); n != 2 {
			t.Errorf("%d drives of Alice", n)
		}
		update(t, s, func(tx *store.Tx) error { return tx.DeleteDrive("other") })
		if n := len(get(t, s, (*store.Tx).Drives)); n != 2 {
			t.Errorf("%d drives", n)
		}
		if err := s.Update(t.Context(), func(tx *store.Tx) error { return tx.DeleteDrive("other") }); !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}
	})
}

func TestSettings(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		replayFrom := func() time.Time { return get(t, s, (*store.Tx).ReplayFrom) }
		if got := replayFrom(); !got.IsZero() {
			t.Errorf("replay from %v at first", got)
		}
		for _, at := range []time.Time{day, day.Add(-time.Hour), {}} {
			update(t, s, func(tx *store.Tx) error { return tx.SetReplayFrom(at) })
			if got := replayFrom(); !got.Equal(at) {
				t.Errorf("replay from %v, want %v", got, at)
			}
		}

		update(t, s, func(tx *store.Tx) error {
			return errors.Join(tx.SeeUser("A#1", day), tx.SeeUser("A#1", day.Add(-time.Hour)), tx.SeeUser("A#1", day.Add(time.Hour)))
		})
		for u, want := range map[ident.UCloudUser]bool{"A#1": true, "a#1": false, "A#1 ": false} {
			if got := get(t, s, func(tx *store.Tx) (bool, error) { return tx.UserSeen(u) }); got != want {
				t.Errorf("%q seen: %v", u, got)
			}
		}

		update(t, s, func(tx *store.Tx) error {
			return errors.Join(tx.AddReplayUser("A#1"), tx.AddReplayUser("A#1"), tx.AddReplayUser("B#2"), tx.RemoveReplayUser("B#2"), tx.RemoveReplayUser("C#3"))
		})
		if got := get(t, s, (*store.Tx).ReplayUsers); !slices.Equal(got, []ident.UCloudUser{"A#1"}) {
			t.Errorf("replays %v", got)
		}

		category := providerapi.ProductCategory{Name: "c", FreeToUse: true}
		update(t, s, func(tx *store.Tx) error {
			return errors.Join(tx.PutCategory("c", providerapi.ProductCategory{}), tx.PutCategory("c", category),
				tx.SetDeclared("c", "hash1", day), tx.SetDeclared("c", "hash2", day))
		})
		if got := get(t, s, func(tx *store.Tx) (providerapi.ProductCategory, error) { return tx.Category("c") }); got != category {
			t.Errorf("%+v", got)
		}
		if got := get(t, s, func(tx *store.Tx) (string, error) { return tx.Declared("c") }); got != "hash2" {
			t.Errorf("declared %q", got)
		}
		for _, f := range []func(tx *store.Tx) error{
			func(tx *store.Tx) error { _, err := tx.Declared("d"); return err },
			func(tx *store.Tx) error { _, err := tx.Category("d"); return err },
		} {
			if err := s.View(t.Context(), f); !errors.Is(err, store.ErrNotFound) {
				t.Error(err)
			}
		}
	})
}

func TestTokens(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		k := store.Token{
			Hash: [32]byte{1}, Purpose: "upload", User: "A#1", Object: "/x", CreatedAt: day, ExpiresAt: day.Add(time.Hour),
			IdleTimeout: time.Minute, FirstUseBy: ptr(day.Add(time.Second)), UsesLeft: -1, Data: []byte("d"),
		}
		update(t, s, func(tx *store.Tx) error { return tx.InsertToken(k) })
		if err := s.Update(t.Context(), func(tx *store.Tx) error { return tx.InsertToken(k) }); !errors.Is(err, store.ErrConflict) {
			t.Errorf("same hash: %v", err)
		}
		stored := func(tx *store.Tx) (store.Token, error) { return tx.TokenByHash(k.Hash) }
		if d := cmp.Diff(k, get(t, s, stored)); d != "" {
			t.Error(d)
		}
		next := func(want time.Time) {
			t.Helper()
			if err := s.View(t.Context(), func(tx *store.Tx) error {
				at, ok, err := tx.TokensNextEnd()
				if !ok || !at.Equal(want) {
					t.Errorf("next end %v, %v, want %v", at, ok, want)
				}
				return err
			}); err != nil {
				t.Error(err)
			}
		}
		next(day.Add(time.Second))
		k.UsedAt, k.Data, k.UsesLeft = ptr(day.Add(30*time.Second)), nil, 7
		update(t, s, func(tx *store.Tx) error { return tx.UpdateToken(k) })
		if d := cmp.Diff(k, get(t, s, stored)); d != "" {
			t.Error(d)
		}
		next(day.Add(90 * time.Second))
		purge := func(now time.Time) (n int) {
			update(t, s, func(tx *store.Tx) (err error) { n, err = tx.PurgeTokens(now); return err })
			return n
		}
		if a, b := purge(day.Add(90*time.Second-time.Millisecond)), purge(day.Add(90*time.Second)); a != 0 || b != 1 {
			t.Errorf("purged %d and %d", a, b)
		}
		for _, f := range []func(tx *store.Tx) error{
			func(tx *store.Tx) error { _, err := tx.TokenByHash(k.Hash); return err },
			func(tx *store.Tx) error { return tx.UpdateToken(k) },
			func(tx *store.Tx) error { return tx.DeleteToken(k.Hash) },
		} {
			if err := s.Update(t.Context(), f); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("purged token: %v", err)
			}
		}
	})
}

func TestTokenEndsAt(t *testing.T) {
	t.Parallel()
	const s = time.Second
	for name, tc := range map[string]struct {
		token store.Token
		want  time.Duration
	}{
		"total":                   {store.Token{}, 100 * s},
		"first use":               {store.Token{FirstUseBy: ptr(day.Add(10 * s))}, 10 * s},
		"first use later":         {store.Token{FirstUseBy: ptr(day.Add(200 * s))}, 100 * s},
		"used":                    {store.Token{FirstUseBy: ptr(day.Add(10 * s)), UsedAt: ptr(day)}, 100 * s},
		"idle from issue":         {store.Token{IdleTimeout: 20 * s}, 20 * s},
		"idle from use":           {store.Token{IdleTimeout: 20 * s, UsedAt: ptr(day.Add(15 * s))}, 35 * s},
		"idle does not prolong":   {store.Token{IdleTimeout: 20 * s, UsedAt: ptr(day.Add(95 * s))}, 100 * s},
		"first use before idle":   {store.Token{IdleTimeout: 20 * s, FirstUseBy: ptr(day.Add(10 * s))}, 10 * s},
		"idle before a first use": {store.Token{IdleTimeout: 5 * s, FirstUseBy: ptr(day.Add(10 * s))}, 5 * s},
	} {
		tc.token.CreatedAt, tc.token.ExpiresAt = day, day.Add(100*s)
		if got := tc.token.EndsAt().Sub(day); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}
