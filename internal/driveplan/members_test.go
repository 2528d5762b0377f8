package driveplan

import (
	"context"
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

// TestMemberFiles: each connected member of a project has a drive that the others do not reach, as soon as there is a
// directory, and nobody loses one that UCloud knows.
func TestMemberFiles(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, db *store.Store) {
		w := newWorld(t, db)
		members := w.base + "/members"
		w.mkdir("members")
		files := Locator{
			Name: "members", Entity: EntityMemberFiles, AllowedRoots: []string{members}, Pattern: expand(members + "/#{localGroupName}-#{localUsername}"),
			Title: expand("Member Files: #{ucloudUsername}"), Needs: []string{VarLocalUsername, VarLocalGroupName},
			Owner: expand("#{localUsername}"), Group: expand("#{localGroupName}"), Mode: 0o700,
		}
		if err := w.SetCategories([]Category{{Name: "storage", Locators: []Locator{files}}}); err != nil {
			t.Fatal(err)
		}
		w.accounts.groups[sandbox.Project] = Group{Name: "reef", GID: 2000}
		w.accounts.mapUser(karin.User, "karin01")
		w.accounts.mapUser("Lee#1", "lee01")
		people := func(names ...ident.UCloudUser) {
			w.allocate(sandbox, 10)
			w.update(func(tx *store.Tx) error {
				p := providerapi.Project{ID: sandbox.Project}
				p.Specification.CanConsumeResources = true
				for _, n := range names {
					p.Status.Members = append(p.Status.Members, providerapi.ProjectMember{Username: n, Role: "USER"})
					if n != "Unseen#1" {
						if err := tx.SeeUser(n, time.Now()); err != nil {
							return err
						}
						w.core.users[n] = true
					}
				}
				_, _, err := tx.PutProject(store.Project{ID: sandbox.Project, ModifiedAt: time.Now().Add(time.Second), Document: p})
				return err
			})
		}
		people(karin.User, "Lee#1", "NotConnected#1", "Unseen#1")
		w.accounts.mapUser("Unseen#1", "unseen")
		for _, name := range []string{"reef-karin01", "reef-unseen"} {
			w.mkdir("members/" + name)
		}
		if err := w.Evaluate(t.Context(), sandbox); err != nil {
			t.Fatal(err)
		}
		w.run()
		d := w.waitFor(sandbox, "members/reef-karin01", store.DriveRegistered)
		if d.Member != karin.User || d.Owner != sandbox || d.Title != "Member Files: Karin#2718" {
			t.Errorf("%+v", d)
		}
		at := w.core.drives[d.ProviderGeneratedID]
		if at.Owner.CreatedBy != karin.User || *at.Owner.Project != sandbox.Project {
			t.Errorf("at Core: %+v", at.Owner)
		}
		r, err := w.Recommend(t.Context(), d)
		if err != nil || r.Owner != "karin01" || r.Group != "reef" || r.Vars[VarProjectTitle] != "" || r.Vars[VarUID] != "1000" {
			t.Errorf("%+v, %v", r, err)
		}
		// No directory yet; a user whom Core has not named would end Core.
		if lee, _ := w.drive(sandbox, "members/reef-lee01"); lee.State != store.DriveDesired {
			t.Errorf("without a directory: %+v", lee)
		}
		if u, _ := w.drive(sandbox, "members/reef-unseen"); u.State != store.DrivePrepared || u.LastError == "" {
			t.Errorf("of somebody whom Core has not named: %+v", u)
		}
		w.mkdir("members/reef-lee01")
		w.Changed(sandbox)
		w.waitFor(sandbox, "members/reef-lee01", store.DriveRegistered)
		// Somebody leaves: what UCloud knows stays, what it does not know is forgotten.
		people(karin.User)
		if err := w.Evaluate(context.Background(), sandbox); err != nil {
			t.Fatal(err)
		}
		if _, ok := w.drive(sandbox, "members/reef-unseen"); ok {
			t.Error("the drive of somebody who left is still wanted")
		}
		if lee, ok := w.drive(sandbox, "members/reef-lee01"); !ok || lee.State != store.DriveRegistered {
			t.Errorf("%+v", lee)
		}
	})
}
