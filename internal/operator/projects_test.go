package operator

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/localuser"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

const (
	reef, lake, root ident.ProjectID = "5b1c0a7e-0d0f-4f5e-9b51-2f0d1f7e77aa", "6c1c0a7e-0d0f-4f5e-9b51-2f0d1f7e77ab", "7d1c0a7e-0d0f-4f5e-9b51-2f0d1f7e77ac"

	gidReef, gidLake, gidLow, gidUsers = ident.GID(3_900_000_201), ident.GID(3_900_000_202), ident.GID(30), ident.GID(3_900_000_203)
)

// projectGroups are the local groups; gone are those that were removed.
type projectGroups struct{ gone *sync.Map }

func (g projectGroups) has(gid ident.GID) bool {
	_, removed := g.gone.Load(gid)
	return !removed
}

var localGroups = map[string]ident.GID{"reef": gidReef, "lake": gidLake, "low": gidLow, "users": gidUsers}

func (g projectGroups) Group(_ context.Context, name string) (localuser.Group, error) {
	if gid, ok := localGroups[name]; ok && g.has(gid) {
		return localuser.Group{Name: name, GID: gid}, nil
	}
	return localuser.Group{}, failure.New(failure.NotFound, "There is no local group %q", name)
}

func (g projectGroups) GroupByID(_ context.Context, gid ident.GID) (localuser.Group, error) {
	for name, id := range localGroups {
		if id == gid && g.has(gid) {
			return localuser.Group{Name: name, GID: id}, nil
		}
	}
	return localuser.Group{}, failure.New(failure.NotFound, "There is no local group with the id %s", gid)
}

func (g projectGroups) Groups(_ context.Context, name string) ([]ident.GID, error) {
	if name == "kay" {
		return []ident.GID{100, gidReef}, nil
	}
	return []ident.GID{100}, nil
}

func (projectGroups) Invalidate() {}

func putProject(t *testing.T, db *store.Store, id ident.ProjectID, title string, archived, consumes bool, members ...ident.UCloudUser) {
	t.Helper()
	p := providerapi.Project{ID: id}
	p.Specification.Title, p.Specification.CanConsumeResources, p.Status.Archived = title, consumes, archived
	for _, m := range members {
		p.Status.Members = append(p.Status.Members, providerapi.ProjectMember{Username: m, Role: "USER"})
	}
	if err := db.Update(t.Context(), func(tx *store.Tx) error {
		_, _, err := tx.PutProject(store.Project{ID: id, Document: p})
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// TestProjects goes through the life of a mapping: which groups are possible, who is told, what is shown and written down.
func TestProjects(t *testing.T) {
	t.Parallel()
	var gone sync.Map
	var mu sync.Mutex // the detector of races does not see what a socket orders
	var told []string
	heard := func() []string { mu.Lock(); defer mu.Unlock(); return slices.Clone(told) }
	w := newWorld(t, func(o *Options) {
		o.Groups = projectGroups{&gone}
		o.GroupRules = func(context.Context) GroupRules { return GroupRules{MinGID: 1000, Denied: []string{"users"}} }
		o.ProjectChanged = func(_ context.Context, id ident.ProjectID, members []ident.UCloudUser) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, string(id)+" "+string(members[0]))
		}
	})
	if _, err := invoke(t, w, ipcapi.TicketApprove, ipcapi.TicketApproval{Ticket: w.begin(t, alice), User: alice, Local: "kay", WaitMs: 10_000}); err != nil {
		t.Fatal(err)
	}
	putProject(t, w.store, reef, "Reef models", false, true, alice, mary)
	putProject(t, w.store, lake, "Lake", true, true, mary)
	putProject(t, w.store, root, "Allocator", false, false, mary)

	for _, tc := range []struct {
		id    ident.ProjectID
		group string
		want  failure.Kind
		why   string
	}{
		{reef, "nothing", failure.NotFound, "no local group"},
		{reef, "4294967295", failure.NotFound, "no local group"},
		{reef, "low", failure.Forbidden, "begin at 1000"},
		{reef, "30", failure.Forbidden, "begin at 1000"},
		{reef, "users", failure.Forbidden, "a meaning of its own"},
		{"unknown", "reef", failure.NotFound, "has not told us"},
		{root, "reef", failure.Invalid, "hands resources out"},
	} {
		_, err := invoke(t, w, ipcapi.ProjectMap, ipcapi.ProjectMapping{ID: tc.id, Group: tc.group})
		if failure.KindOf(err) != tc.want || !strings.Contains(failure.Why(err), tc.why) {
			t.Errorf("%s as %s: %v", tc.group, tc.id, err)
		}
	}
	d := must(t, w, ipcapi.ProjectMap, ipcapi.ProjectMapping{ID: reef, Group: "reef", DryRun: true})
	if d.State != ipcapi.ProjectMapped || len(heard()) != 0 {
		t.Errorf("dry run: %+v, %v", d, heard())
	}
	if d = must(t, w, ipcapi.ProjectShow, ipcapi.ProjectRef{ID: reef}); d.State != ipcapi.ProjectUnmapped || d.GID != nil {
		t.Errorf("after the dry run: %+v", d)
	}
	d = must(t, w, ipcapi.ProjectMap, ipcapi.ProjectMapping{ID: reef, Group: gidReef.String(), Reason: "first"})
	if d.Group != "reef" || *d.GID != gidReef || d.Members != 2 || d.Connected != 1 || len(d.People) != 2 {
		t.Errorf("%+v", d)
	}
	if kay, unknown := d.People[0], d.People[1]; kay.LocalName != "kay" || kay.InGroup == nil || !*kay.InGroup || unknown.UID != nil || unknown.InGroup != nil {
		t.Errorf("%+v", d.People)
	}
	must(t, w, ipcapi.ProjectMap, ipcapi.ProjectMapping{ID: reef, Group: "reef"}) // again changes nothing
	if got := heard(); !slices.Equal(got, []string{string(reef) + " Alice#1234", string(reef) + " Alice#1234"}) {
		t.Errorf("told %q", got)
	}
	// One group belongs to one project, and one project to one group.
	for _, m := range []ipcapi.ProjectMapping{{ID: lake, Group: "reef"}, {ID: reef, Group: "lake"}, {ID: lake, Group: "reef", DryRun: true}} {
		if _, err := invoke(t, w, ipcapi.ProjectMap, m); !failure.Is(err, failure.Conflict) {
			t.Errorf("%+v: %v", m, err)
		}
	}
	must(t, w, ipcapi.ProjectMap, ipcapi.ProjectMapping{ID: lake, Group: "lake"})
	gone.Store(gidLake, true)
	states := map[string]string{}
	for _, p := range list(t, w) {
		states[p.Title] = p.State
	}
	if states["Reef models"] != ipcapi.ProjectMapped || states["Lake"] != ipcapi.ProjectBroken || states["Allocator"] != ipcapi.ProjectUnmapped {
		t.Errorf("%v", states)
	}

	mu.Lock()
	told = nil
	mu.Unlock()
	remove := func(id ident.ProjectID, gid ident.GID, force bool) ipcapi.MutationResult {
		return must(t, w, ipcapi.ProjectRemove, ipcapi.ProjectMutation{Targets: []ipcapi.ProjectTarget{{ID: id, GID: gid}}, Force: force}).Results[0]
	}
	if r := remove(reef, gidReef, false); r.Error == nil || r.Error.Status != 403 {
		t.Errorf("a project that lives: %+v", r)
	}
	if r := remove(reef, gidLake, true); r.Error == nil || r.Error.Status != 409 {
		t.Errorf("another group than shown: %+v", r)
	}
	if r := remove(lake, gidLake, false); r.Error != nil || r.Status != ipcapi.ResultOK {
		t.Errorf("an archived project: %+v", r)
	}
	if r := remove(reef, gidReef, true); r.Error != nil || len(heard()) != 2 {
		t.Errorf("by force: %+v, %v", r, heard())
	}
	if r := remove(reef, gidReef, true); r.Status != ipcapi.ResultSkipped {
		t.Errorf("again: %+v", r)
	}
	audit := w.audit.String()
	for _, want := range []string{"action=project.map result=ok", "action=project.map result=403", "action=project.remove result=ok", "action=project.remove result=403", "reason=first"} {
		if !strings.Contains(audit, want) {
			t.Errorf("the audit log lacks %q", want)
		}
	}
}

func list(t *testing.T, w *world) []ipcapi.ProjectInfo {
	t.Helper()
	all, err := collect(t.Context(), w.client, ipcapi.ProjectList, ipcapi.Empty{}, func(p ipcapi.ProjectPage) []ipcapi.ProjectInfo { return p.Items })
	if err != nil {
		t.Fatal(err)
	}
	return all
}
