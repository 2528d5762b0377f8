package driveplan

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

// TestDrivesWaitForTheirQuota: the order is directory, quota, registration (contract 12, "Ordering").
func TestDrivesWaitForTheirQuota(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	owner := ident.Owner{User: "Alice#1"}
	w.accounts.mapUser(owner.User, "alice")
	w.mkdir("home/alice")
	var why string
	var fail error
	var asked store.Drive
	categories := w.categories()
	categories[0].Locators[0].Ready = func(_ context.Context, d store.Drive) (string, error) { asked = d; return why, fail }
	if err := w.SetCategories(categories); err != nil {
		t.Fatal(err)
	}
	w.allocate(owner, 10)
	for _, tc := range []struct {
		why   string
		fail  error
		state store.DriveState
	}{
		{"no quota yet", nil, store.DriveDesired},
		{"", errors.New("no quota yet"), store.DriveDesired},
		{"", nil, store.DriveRegistering},
	} {
		why, fail = tc.why, tc.fail
		if err := w.Evaluate(t.Context(), owner); !errors.Is(err, tc.fail) {
			t.Errorf("%v", err)
		}
		d, ok := w.drive(owner, "home/alice")
		if !ok || d.State != tc.state || (tc.state == store.DriveDesired && d.LastError != "no quota yet") {
			t.Errorf("%+v", d)
		}
	}
	if asked.Path != filepath.Join(w.base, "home/alice") || asked.Category != "storage" {
		t.Errorf("asked about %+v", asked)
	}
}

func TestRecommendations(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	owner, project := ident.Owner{User: "Alice#1"}, ident.Owner{Project: "p"}
	w.accounts.mapUser(owner.User, "alice")
	w.accounts.groups[project.Project] = Group{Name: "pgroup", GID: 7}
	w.allocate(project, 1)
	categories := w.categories()
	home, work := &categories[0].Locators[0], &categories[0].Locators[1]
	home.Owner, home.Group, home.Mode = expand("#{localUsername}"), expand("#{localPrimaryGroup}"), 0o700
	work.Owner, work.Group, work.Mode = expand("root"), expand("#{localGroupName}"), 0o2770
	if err := w.SetCategories(categories); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		d            store.Drive
		user, group  string
		mode         uint32
		variable, is string
	}{
		{store.Drive{Owner: owner, Category: "storage", Locator: "home"}, "alice", "alice", 0o700, VarUID, "1000"},
		{store.Drive{Owner: project, Category: "storage", Locator: "work"}, "root", "pgroup", 0o2770, VarProjectTitle, "Title of p"},
	} {
		r, err := w.Recommend(t.Context(), tc.d)
		if err != nil || r.Owner != tc.user || r.Group != tc.group || r.Mode != tc.mode || r.Vars[tc.variable] != tc.is {
			t.Errorf("%+v, %v", r, err)
		}
	}
	if _, err := w.Recommend(t.Context(), store.Drive{Owner: owner, Category: "storage", Locator: "old"}); !errors.Is(err, ErrNoLocator) {
		t.Error(err)
	}
	if _, err := w.Recommend(t.Context(), store.Drive{Owner: ident.Owner{User: "nobody"}, Category: "storage", Locator: "home"}); err == nil {
		t.Error("a recommendation for a user without account")
	}
}
