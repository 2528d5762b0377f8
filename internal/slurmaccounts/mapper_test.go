package slurmaccounts

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/driveplan"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("database/sql.(*DB).connectionOpener"))
}

var (
	alice = ident.Owner{User: "Alice#1"}
	bob   = ident.Owner{User: "Bob#2"}
	reef  = ident.Owner{Project: "5b1c0a7e"}
	kelp  = ident.Owner{Project: "77aa"}
)

// people are the local accounts of a test.
type people struct {
	users  map[ident.UCloudUser]driveplan.Account
	groups map[ident.ProjectID]driveplan.Group
}

func (p *people) LocalAccount(_ context.Context, u ident.UCloudUser) (driveplan.Account, bool, error) {
	a, ok := p.users[u]
	return a, ok, nil
}

func (p *people) ProjectGroup(_ context.Context, id ident.ProjectID) (driveplan.Group, bool, error) {
	g, ok := p.groups[id]
	return g, ok, nil
}

func somePeople() *people {
	return &people{
		users: map[ident.UCloudUser]driveplan.Account{
			"Alice#1": {Name: "alice01", UID: 1001, PrimaryGroup: "users"}, "Bob#2": {Name: "Bob02", UID: 1002},
		},
		groups: map[ident.ProjectID]driveplan.Group{"5b1c0a7e": {Name: "reef_models", GID: 3001}, "77aa": {Name: "kelp", GID: 3002}},
	}
}

// pattern is what a configured pattern does, without its checks of values.
func pattern(text string) func(driveplan.Vars) (string, error) {
	return func(v driveplan.Vars) (string, error) {
		out := text
		for name, value := range v {
			if value == "" && strings.Contains(out, "#{"+name+"}") {
				return "", errors.New(name + " is empty")
			}
			out = strings.ReplaceAll(out, "#{"+name+"}", value)
		}
		return out, nil
	}
}

func patterns(users, projects string) Mapping {
	return Mapping{Users: pattern(users), Projects: pattern(projects)}
}

var categories = []Category{
	{Name: "cpu", Partition: "normal", Period: 1, Unit: "Cpu"},
	{Name: "gpu", Partition: "gpu", QoS: "high", Period: 60, Unit: "Gpu"},
}

func newService(t *testing.T, o Options) *Service {
	t.Helper()
	o.Provider = "hpc"
	if o.Store == nil {
		o.Store = storetest.SQLite(t)
	}
	if o.Accounts == nil {
		o.Accounts = somePeople()
	}
	if o.Settings.Categories == nil {
		o.Settings.Categories = categories
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func update(t *testing.T, s *store.Store, f func(tx *store.Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), f); err != nil {
		t.Fatal(err)
	}
}

// project stores a project.
func project(t *testing.T, db *store.Store, id ident.ProjectID, change func(p *providerapi.Project), members ...string) {
	t.Helper()
	doc := providerapi.Project{ID: id}
	doc.Specification.Title = "Reef models"
	for i, m := range members {
		role := "USER"
		if i == 0 {
			role = "PI"
		}
		doc.Status.Members = append(doc.Status.Members, providerapi.ProjectMember{Username: ident.UCloudUser(m), Role: role})
	}
	if change != nil {
		change(&doc)
	}
	update(t, db, func(tx *store.Tx) error {
		_, _, err := tx.PutProject(store.Project{ID: id, ModifiedAt: time.Now(), Document: doc})
		return err
	})
}

func TestPattern(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, users, projects string
		owner                 ident.Owner
		category              string
		want                  string // or part of the error
		fails                 bool
	}{
		{"user", "u_#{localUsername}_#{productCategory}", "-", alice, "cpu", "u_alice01_cpu", false},
		{"capitals are lowered", "u_#{localUsername}", "-", bob, "cpu", "u_bob02", false},
		{"project", "-", "p_#{localGroupName}_#{categoryName}_#{entityType}", reef, "gpu", "p_reef_models_gpu_project", false},
		{"all documented variables", "-", "x#{gid}-#{partition}-#{qos}-#{ucloudProjectId}-#{providerId}", reef, "gpu", "x3001-gpu-high-5b1c0a7e-hpc", false},
		{"no qos", "a#{qos}", "-", alice, "cpu", "needs something that this workspace does not have", true},
		{"the name at UCloud does not fit", "#{ucloudUsername}", "-", alice, "cpu", "cannot be the name", true},
		{"left over", "a_#{what}", "-", alice, "cpu", "still has a placeholder", true},
		{"option", "-#{localUsername}", "-", alice, "cpu", "cannot be the name", true},
		{"root", "root", "-", alice, "cpu", "belongs to the administrators", true},
		{"not connected", "u_#{localUsername}", "-", ident.Owner{User: "Eve#9"}, "cpu", "category cpu: the user is not connected", true},
		{"no group", "-", "p_#{gid}", ident.Owner{Project: "new"}, "cpu", "the project has no group", true},
		{"no such category", "u", "-", alice, "disk", "no machine type", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newService(t, Options{Settings: Settings{Mapping: patterns(tc.users, tc.projects)}})
			got, err := s.Account(t.Context(), tc.owner, "Alice#1", tc.category, "")
			if tc.fails {
				if err == nil || !strings.Contains(failure.Why(err), tc.want) {
					t.Errorf("got %q, %v", got, failure.Why(err))
				}
				return
			}
			if err != nil || got != tc.want {
				t.Errorf("got %q, %v", got, err)
			}
			owner, found, err := s.OwnerOf(t.Context(), tc.want, tc.category)
			if err != nil || !found || owner != tc.owner {
				t.Errorf("reverse: %v %v %v", owner, found, err)
			}
		})
	}
}

// TestKept: what was found is kept when the mapping changes, until an operator has it evaluated again.
func TestKept(t *testing.T) {
	t.Parallel()
	s := newService(t, Options{Settings: Settings{Mapping: patterns("old_#{localUsername}", "p_#{localGroupName}")}})
	ctx := t.Context()
	if got, err := s.Account(ctx, alice, "Alice#1", "cpu", ""); err != nil || got != "old_alice01" {
		t.Fatal(got, err)
	}
	if err := s.SetSettings(Settings{Categories: categories, Mapping: patterns("new_#{localUsername}", "p_#{localGroupName}")}); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Account(ctx, alice, "Alice#1", "cpu", ""); err != nil || got != "old_alice01" {
		t.Fatal(got, err)
	}
	for _, dry := range []bool{true, false} {
		out, err := s.Reevaluate(ctx, alice, "cpu", dry)
		if err != nil || out.Before != "old_alice01" || out.After != "new_alice01" {
			t.Fatal(out, err)
		}
	}
	if got, err := s.Account(ctx, alice, "Alice#1", "cpu", ""); err != nil || got != "new_alice01" {
		t.Fatal(got, err)
	}
	if _, found, err := s.OwnerOf(ctx, "old_alice01", "cpu"); found || err != nil {
		t.Error("the old account still has an owner", err)
	}
}

// TestAccountOfAnother: two workspaces never share an account, or one could use up what the other has paid for.
func TestAccountOfAnother(t *testing.T) {
	t.Parallel()
	s := newService(t, Options{Settings: Settings{Mapping: patterns("shared", "shared")}})
	ctx := t.Context()
	if got, err := s.Account(ctx, alice, "Alice#1", "cpu", ""); err != nil || got != "shared" {
		t.Fatal(got, err)
	}
	if got, err := s.Account(ctx, alice, "Alice#1", "gpu", ""); err != nil || got != "shared" {
		t.Fatal("one workspace may have one account for all categories", got, err)
	}
	got, err := s.Account(ctx, reef, "Alice#1", "cpu", "")
	if !failure.Is(err, failure.Conflict) || !strings.Contains(failure.Why(err), "belongs to another workspace") {
		t.Error(got, err)
	}
	if _, err := s.Reevaluate(ctx, reef, "cpu", false); !failure.Is(err, failure.Conflict) {
		t.Error(err)
	}
}

// TestNames: a name from a script is checked like any other.
func TestNames(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"-i", "a b", "a;touch pwned", "a,b", "a=b", "A", "root", "ünder", strings.Repeat("a", 101), "a\nb", "1a"} {
		s := newService(t, Options{Settings: Settings{Mapping: Mapping{
			Script: func(context.Context, ident.Owner, driveplan.Vars) (string, error) { return name, nil },
		}}})
		if got, err := s.Account(t.Context(), alice, "Alice#1", "cpu", ""); !failure.Is(err, failure.Invalid) {
			t.Errorf("%q was taken: %q, %v", name, got, err)
		}
	}
}

func TestScript(t *testing.T) {
	t.Parallel()
	var asked driveplan.Vars
	var fail error
	answer := ""
	s := newService(t, Options{Settings: Settings{Mapping: Mapping{
		LocalName: true,
		Script: func(_ context.Context, o ident.Owner, v driveplan.Vars) (string, error) {
			asked = v
			return answer, fail
		},
	}}})
	ctx := t.Context()
	fail = &scripts.Error{Kind: scripts.NotPermitted, UserMessage: "Your project has ended."}
	if _, err := s.Account(ctx, alice, "Alice#1", "gpu", ""); failure.Why(err) != "The workspace has no Slurm account in category gpu: Your project has ended." {
		t.Error(failure.Why(err))
	}
	fail = nil
	if _, err := s.Account(ctx, alice, "Alice#1", "gpu", ""); !strings.HasPrefix(failure.Why(err), "The workspace has no Slurm account in category gpu: ") {
		t.Error(failure.Why(err))
	}
	answer = "hpc_alice"
	if got, err := s.Account(ctx, alice, "Alice#1", "gpu", ""); err != nil || got != "hpc_alice" {
		t.Error(got, err)
	}
	want := driveplan.Vars{
		"providerId": "hpc", "categoryName": "gpu", "productCategory": "gpu", "partition": "gpu", "qos": "high", "entityType": "User",
		"ucloudUsername": "alice01", "localUsername": "alice01", "uid": "1001", "localPrimaryGroup": "users",
	}
	for k, v := range want {
		if asked[k] != v {
			t.Errorf("%s is %q", k, asked[k])
		}
	}
	if len(asked) != len(want) {
		t.Errorf("asked with %v", asked)
	}
}

// TestChoice: where the choice is the user's, only accounts that Slurm gives the user count.
func TestChoice(t *testing.T) {
	t.Parallel()
	slurm := &fakeCluster{of: map[string][]string{"alice01": {"physics", "bio", "root"}, "Bob02": {"bio"}}}
	s := newService(t, Options{Cluster: slurm})
	ctx := t.Context()
	if _, all, err := s.Choices(ctx, alice, "Alice#1"); err != nil || !slices.Equal(all, []string{"bio", "physics"}) {
		t.Error(all, err)
	}
	for _, tc := range []struct {
		user         ident.UCloudUser
		choice, want string
		fails        bool
	}{
		{"Alice#1", "bio", "bio", false},
		{"Alice#1", "", "it is not clear which one the job is for. Choose one: bio, physics", true},
		{"Alice#1", "chem", "You cannot use the Slurm account \"chem\"", true},
		{"Alice#1", "root", "You cannot use", true},
		{"Bob#2", "", "bio", false},
		{"Eve#3", "", "not connected", true},
	} {
		got, err := s.Account(ctx, ident.Owner{User: tc.user}, tc.user, "cpu", tc.choice)
		if tc.fails && (err == nil || !strings.Contains(failure.Why(err), tc.want)) || !tc.fails && (err != nil || got != tc.want) {
			t.Errorf("%s, %q: %q, %v", tc.user, tc.choice, got, err)
		}
	}
	if n, err := rows(t, s); n != 0 || err != nil {
		t.Error("a choice was stored", n, err)
	}
}

func rows(t *testing.T, s *Service) (n int, err error) {
	t.Helper()
	err = s.o.Store.View(t.Context(), func(tx *store.Tx) error {
		all, err := tx.SlurmAccounts()
		n = len(all)
		return err
	})
	return n, err
}

// TestPersonalProject: in a personal project of this provider the user chooses, whatever the mapping says.
func TestPersonalProject(t *testing.T) {
	t.Parallel()
	slurm := &fakeCluster{of: map[string][]string{"alice01": {"bio", "physics"}}}
	s := newService(t, Options{Cluster: slurm, Settings: Settings{Mapping: patterns("u", "p_#{localGroupName}")}})
	ours, other := "hpc", "elsewhere"
	project(t, s.o.Store, reef.Project, func(p *providerapi.Project) { p.Status.PersonalProviderProjectFor = &ours }, "Alice#1")
	project(t, s.o.Store, kelp.Project, func(p *providerapi.Project) { p.Status.PersonalProviderProjectFor = &other }, "Alice#1")
	if got, err := s.Account(t.Context(), reef, "Alice#1", "cpu", "physics"); err != nil || got != "physics" {
		t.Error(got, err)
	}
	if mapped, all, err := s.Choices(t.Context(), reef, "Alice#1"); mapped || len(all) != 2 || err != nil {
		t.Error(mapped, all, err)
	}
	if got, err := s.Account(t.Context(), kelp, "Alice#1", "cpu", "physics"); err != nil || got != "p_kelp" {
		t.Error(got, err)
	}
	if mapped, all, err := s.Choices(t.Context(), kelp, "Alice#1"); !mapped || len(all) != 0 || err != nil {
		t.Error(mapped, all, err)
	}
}

// TestByHand: an account that an operator gives holds against the mapping until it is taken away; nobody else's account can
// be given, and nothing is stored by trying.
func TestByHand(t *testing.T) {
	t.Parallel()
	w := newWorld(t, automatic())
	w.allocate(alice, "cpu", nil)
	ctx := t.Context()
	account := func() string {
		t.Helper()
		a, _, err := w.stored(ctx, alice, "cpu")
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	name, vars, err := w.Evaluate(ctx, alice, "cpu")
	if err != nil || name != "u_alice01_cpu" || vars["uid"] != "1001" || vars["partition"] != "normal" || account() != "" {
		t.Errorf("%q %v %v, stored %q", name, vars, err, account())
	}
	for _, tc := range []struct {
		owner             ident.Owner
		category, account string
		kind              failure.Kind
	}{
		{alice, "none", "physics", failure.NotFound},
		{alice, "cpu", "Physics", failure.Invalid},
		{alice, "cpu", "root", failure.Invalid},
		{alice, "cpu", "-x", failure.Invalid},
		{alice, "cpu", "", failure.Invalid},
	} {
		if _, err := w.Assign(ctx, tc.owner, tc.category, tc.account, false); !failure.Is(err, tc.kind) {
			t.Errorf("%+v: %v", tc, err)
		}
	}
	if done, err := w.Assign(ctx, alice, "cpu", "physics", true); !done || err != nil || account() != "" {
		t.Errorf("dry run: %v %v, stored %q", done, err, account())
	}
	for _, want := range []bool{true, false} {
		if done, err := w.Assign(ctx, alice, "cpu", "physics", false); done != want || err != nil || account() != "physics" {
			t.Errorf("%v %v, stored %q", done, err, account())
		}
	}
	w.look()
	if _, made := w.slurm.accounts["physics"]; !made || len(w.slurm.accounts) != 1 {
		t.Errorf("in Slurm: %v", w.slurm.accounts)
	}
	for _, dry := range []bool{true, false} {
		if _, err := w.Assign(ctx, bob, "cpu", "physics", dry); !failure.Is(err, failure.Conflict) {
			t.Errorf("another's account was given: %v", err)
		}
		if _, err := w.Assign(ctx, alice, "cpu", "other", dry); !failure.Is(err, failure.Conflict) || account() != "physics" {
			t.Errorf("an account was replaced: %v", err)
		}
	}
	if name, err := w.Account(ctx, alice, alice.User, "cpu", ""); err != nil || name != "physics" {
		t.Errorf("a job is charged to %q, %v", name, err)
	}
	if done, err := w.Unassign(ctx, alice, "cpu", true); !done || err != nil || account() != "physics" {
		t.Errorf("dry run: %v %v", done, err)
	}
	for _, want := range []bool{true, false} {
		if done, err := w.Unassign(ctx, alice, "cpu", false); done != want || err != nil || account() != "" {
			t.Errorf("%v %v, stored %q", done, err, account())
		}
	}
	w.Pass(ctx)
	if st := w.slurm.accounts["physics"]; st.MaxSubmit != 0 {
		t.Errorf("an account that is nobody's can be used: %+v", st)
	}
	w.look()
	if account() != "u_alice01_cpu" {
		t.Errorf("the mapping was not asked again: %q", account())
	}
}
