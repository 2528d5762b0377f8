package operator

import (
	"context"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/launcher"
	"ucloud-im/internal/store"
	"ucloud-im/internal/usermap/ticket"
)

// TestEveryCallIsTried makes sure that no call is left out of the tests of who may do what.
func TestEveryCallIsTried(t *testing.T) {
	t.Parallel()
	have := calls()
	found := 0
	for _, name := range []string{"users.go", "status.go", "projects.go", "allocations.go", "scripttrial.go"} {
		f, err := parser.ParseFile(token.NewFileSet(), "../ipcapi/"+name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if kv, ok := n.(*ast.KeyValueExpr); ok {
				if id, ok := kv.Key.(*ast.Ident); ok && id.Name == "Name" {
					call, err := strconv.Unquote(kv.Value.(*ast.BasicLit).Value)
					if err != nil {
						t.Fatal(err)
					}
					found++
					if have[call] == nil {
						t.Errorf("%s is not tried", call)
					}
				}
			}
			return true
		})
	}
	if found < 20 {
		t.Fatalf("only %d calls were found in the source", found)
	}
}

// TestWhoMayDoWhat makes every call as every kind of uid, over the socket and past the command line (contract 41
// sections 2 and 8.5).
//
//attack:actor local user
//attack:does Changes users and tickets as if it were an operator.
//attack:control Operators are root and the members of a group that the operator names.
//attack:remove internal/operator/authorize.go: g.Operator = member(ctx, log, o.Directory, uid, o.OperatorGroup) => g.Operator = true
//attack:actor local user
//attack:does Has a script of the site run with a request of its own, as the service account.
//attack:control Only operators call scripts by hand.
//attack:remove internal/ipcapi/scripttrial.go: Name: "script.try", Access: ipc.AccessOperator => Name: "script.try", Access: ipc.AccessMapped
func TestWhoMayDoWhat(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tk := w.begin(t, alice)
	first := w.begin(t, mary)
	if a := w.as(t, uidKay, request{Call: ipcapi.TicketComplete.Name, Ticket: first, User: mary})[ipcapi.TicketComplete.Name]; a.Status != 200 {
		t.Fatalf("connect uid %d: %+v", uidKay, a)
	}
	var all []request
	for name := range calls() {
		if name != ipcapi.TicketComplete.Name && name != ipcapi.MeDisconnect.Name { // they change something for the next caller
			all = append(all, request{Call: name, Ticket: tk, User: mary})
		}
	}
	anyone := []string{ipcapi.TicketDescribe.Name, ipcapi.MeShow.Name, ipcapi.ServiceVersion.Name}
	viewer := append(slices.Clone(anyone), ipcapi.TicketList.Name, ipcapi.UserList.Name, ipcapi.UserShow.Name,
		ipcapi.ServiceStatus.Name, ipcapi.ConfigRunning.Name, ipcapi.InstanceList.Name, ipcapi.DriveList.Name, ipcapi.GatewayDump.Name,
		ipcapi.ProjectList.Name, ipcapi.ProjectShow.Name, ipcapi.AllocationList.Name, ipcapi.SlurmAccountList.Name, ipcapi.KeyList.Name)
	connected := append(slices.Clone(anyone), ipcapi.MeKeys.Name, ipcapi.MeRevokeKey.Name)
	operator := append(slices.Clone(viewer), ipcapi.TicketApprove.Name, ipcapi.TicketReject.Name, ipcapi.UserAdd.Name,
		ipcapi.UserExpire.Name, ipcapi.UserRemove.Name, ipcapi.UserChange.Name, ipcapi.ConfigReload.Name, ipcapi.InstanceStop.Name, ipcapi.InstanceRestart.Name,
		ipcapi.ProjectMap.Name, ipcapi.ProjectRemove.Name, ipcapi.AllocationApply.Name,
		ipcapi.SlurmAccountReevaluate.Name, ipcapi.SlurmAccountAdopt.Name, ipcapi.SlurmAccountAdd.Name, ipcapi.SlurmAccountRemove.Name,
		ipcapi.SlurmAccountSync.Name, ipcapi.SlurmAccountEvaluate.Name, ipcapi.KeyRevoke.Name,
		ipcapi.ScriptHooks.Name, ipcapi.ScriptTry.Name)
	for _, who := range []struct {
		name string
		uid  ident.UID
		may  []string
	}{
		{"unknown uid", uidNobody, anyone},
		{"connected user", uidKay, connected},
		{"viewer", uidViewer, viewer},
		{"service account", uidService, viewer},
		{"operator", uidOp, operator},
		{"root", 0, append(slices.Clone(operator), "gateway.dump tokens")},
	} {
		for call, a := range w.as(t, who.uid, all...) {
			allowed := slices.Contains(who.may, call)
			if refused := a.Status == failure.Forbidden.Status(); refused == allowed {
				t.Errorf("%s, %s: status %d %s", who.name, call, a.Status, a.Body)
			}
		}
	}
}

// TestSelfServiceUsesTheKernel connects as a uid and checks that it is this uid that is connected.
func TestSelfServiceUsesTheKernel(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tk := w.begin(t, alice)
	complete := func(uid ident.UID, user ident.UCloudUser) answer {
		return w.as(t, uid, request{Call: ipcapi.TicketComplete.Name, Ticket: tk, User: user})[ipcapi.TicketComplete.Name]
	}
	if a := complete(uidNobody, alice); a.Status != failure.Forbidden.Status() {
		t.Fatalf("an account that the policy refuses was connected: %+v", a)
	}
	if a := complete(uidKay, mary); a.Status != failure.Conflict.Status() {
		t.Fatalf("a ticket was completed for somebody who was not confirmed: %+v", a)
	}
	a := complete(uidKay, alice)
	var res ipcapi.LinkResult
	if err := json.Unmarshal([]byte(a.Body), &res); err != nil || a.Status != 200 {
		t.Fatalf("%+v", a)
	}
	if res.UID != uidKay || res.LocalName != "kay" || res.State != "active" {
		t.Fatalf("connected %+v", res)
	}
	if u, ok := w.users.User(uidKay); !ok || u != alice {
		t.Fatalf("uid %d is %q", uidKay, u)
	}
	if a := complete(uidLee, alice); a.Status != failure.Conflict.Status() {
		t.Fatalf("a used ticket: %+v", a)
	}

	// The user sees and ends their own connection, and nobody else's.
	me := func(uid ident.UID) (m ipcapi.Me) {
		t.Helper()
		if err := json.Unmarshal([]byte(w.as(t, uid, request{Call: ipcapi.MeShow.Name})[ipcapi.MeShow.Name].Body), &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	if m := me(uidKay); !m.Connected || m.User != alice || m.Launchable != "" {
		t.Fatalf("me %+v", m)
	}
	if m := me(uidLee); m.Connected || m.User != "" || m.LocalName != "lee" {
		t.Fatalf("me of somebody else %+v", m)
	}
	if a := w.as(t, uidLee, request{Call: ipcapi.MeDisconnect.Name})[ipcapi.MeDisconnect.Name]; a.Status != failure.Forbidden.Status() {
		t.Fatalf("somebody who is not connected disconnected: %+v", a)
	}
	if a := w.as(t, uidKay, request{Call: ipcapi.MeDisconnect.Name})[ipcapi.MeDisconnect.Name]; a.Status != 200 {
		t.Fatalf("disconnect: %+v", a)
	}
	if m := me(uidKay); m.Connected || m.State != "expired" {
		t.Fatalf("me after disconnecting %+v", m)
	}
}

func TestSelfServiceCanBeOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(o *Options) {
		m, err := ticket.NewMethod(ticket.Options{Store: o.Store, Users: o.Users, Log: o.Log, PageURL: "https://x.example.org/"})
		if err != nil {
			t.Fatal(err)
		}
		o.Tickets = m
	})
	tk := w.begin(t, alice)
	_, err := invoke(t, w, ipcapi.TicketComplete, ipcapi.TicketCompletion{Ticket: tk, User: alice})
	// The text tells it from a refusal of the account.
	if !failure.Is(err, failure.Forbidden) || !strings.Contains(failure.Why(err), "an operator completes tickets") {
		t.Fatalf("got %v", err)
	}
}

func TestKeysAreForRoot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const call = "gateway.dump tokens"
	if a := w.as(t, uidOp, request{Call: call})[call]; a.Status != failure.Forbidden.Status() || strings.Contains(a.Body, "secret-key") {
		t.Fatalf("operator: %+v", a)
	}
	if a := w.as(t, uidOp, request{Call: ipcapi.GatewayDump.Name})[ipcapi.GatewayDump.Name]; a.Status != 200 || strings.Contains(a.Body, "secret-key") {
		t.Fatalf("operator without keys: %+v", a)
	}
	if a := w.as(t, 0, request{Call: call})[call]; !strings.Contains(a.Body, "secret-key") {
		t.Fatalf("root: %+v", a)
	}
	if !strings.Contains(w.audit.String(), "gateway.dump.tokens") {
		t.Fatalf("not audited:\n%s", w.audit)
	}
}

func TestApprove(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tk := w.begin(t, alice)
	info := must(t, w, ipcapi.TicketDescribe, ipcapi.TicketRef{Ticket: strings.ToLower(tk)})
	if info.User != alice || info.State != ipcapi.TicketOpen || !info.SelfService {
		t.Fatalf("described as %+v", info)
	}
	approve := func(a ipcapi.TicketApproval) (ipcapi.LinkResult, error) { return invoke(t, w, ipcapi.TicketApprove, a) }
	if _, err := approve(ipcapi.TicketApproval{Ticket: tk, User: alice, Local: "root"}); !failure.Is(err, failure.Forbidden) {
		t.Fatalf("root: %v", err)
	}
	past := time.Now().Add(-time.Hour)
	if _, err := approve(ipcapi.TicketApproval{Ticket: tk, User: alice, Local: "kay", ExpiresAt: &past}); !failure.Is(err, failure.Invalid) {
		t.Fatalf("an expiry in the past: %v", err)
	}
	if _, err := approve(ipcapi.TicketApproval{Ticket: tk[:8], User: alice, Local: "kay"}); !failure.Is(err, failure.Invalid) {
		t.Fatalf("half a ticket: %v", err)
	}
	res, err := approve(ipcapi.TicketApproval{Ticket: tk, User: alice, Local: "kay", DryRun: true, WaitMs: 10_000})
	if err != nil || res.State != "pending" || res.UID != uidKay {
		t.Fatalf("dry run: %+v, %v", res, err)
	}
	if _, ok := w.users.User(uidKay); ok {
		t.Fatal("a dry run connected")
	}
	if res, err = approve(ipcapi.TicketApproval{Ticket: tk, User: alice, Local: itoa(uidKay), WaitMs: 10_000, Reason: "mail of today"}); err != nil || res.State != "active" {
		t.Fatalf("%+v, %v", res, err)
	}
	if !strings.Contains(w.audit.String(), `action=ticket.approve result=ok`) || !strings.Contains(w.audit.String(), "mail of today") ||
		!strings.Contains(w.audit.String(), "result=403") {
		t.Fatalf("audit:\n%s", w.audit)
	}
	if plain := strings.ReplaceAll(tk, "-", ""); strings.Contains(w.audit.String(), tk) || strings.Contains(w.audit.String(), plain) {
		t.Fatalf("the ticket is in the audit:\n%s", w.audit)
	}
}

func TestRejectReportsPerItem(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tk := w.begin(t, alice)
	rep := must(t, w, ipcapi.TicketReject, ipcapi.TicketRejection{Tickets: []string{"zzzzzzzz", tk}, Message: "Please\nmail us"})
	if len(rep.Results) != 2 || rep.Results[0].Status != ipcapi.ResultFailed || rep.Results[0].Error.Status != 404 || rep.Results[1].Status != ipcapi.ResultOK {
		t.Fatalf("%+v", rep)
	}
	if strings.Contains(rep.Results[1].Key, tk) {
		t.Fatal("the report repeats the ticket")
	}
	if info := must(t, w, ipcapi.TicketDescribe, ipcapi.TicketRef{Ticket: tk}); info.Message != "Please mail us" || info.State != ipcapi.TicketRejected {
		t.Fatalf("%+v", info)
	}
}

func TestUsers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.begin(t, alice)
	if _, err := invoke(t, w, ipcapi.UserAdd, ipcapi.UserAddition{User: "Typo#1", Local: "kay"}); !failure.Is(err, failure.Invalid) {
		t.Fatalf("a user whom UCloud never named: %v", err)
	}
	if _, err := invoke(t, w, ipcapi.UserAdd, ipcapi.UserAddition{User: "a\nb", Local: "kay"}); !failure.Is(err, failure.Invalid) {
		t.Fatalf("a name with a line break: %v", err)
	}
	if res := must(t, w, ipcapi.UserAdd, ipcapi.UserAddition{User: alice, Local: "kay", WaitMs: 10_000}); res.State != "active" {
		t.Fatalf("%+v", res)
	}
	w.instances.set(launcher.Info{User: alice, UID: uidKay, PID: 77, Port: 42007, Idle: 3 * time.Second, State: "running"})
	list, err := collect(t.Context(), w.client, ipcapi.UserList, ipcapi.UserListRequest{Check: true}, func(p ipcapi.UserPage) []ipcapi.UserInfo { return p.Items })
	if err != nil || len(list) != 1 || list[0].User != alice || list[0].Instance.Port != 42007 || list[0].ConnectedAt == nil {
		t.Fatalf("%+v, %v", list, err)
	}
	d := must(t, w, ipcapi.UserShow, ipcapi.UserRef{User: alice})
	if d.Launchable != "" || d.Home != "/home/kay" || d.Process == nil || d.QueuedSteps != 0 {
		t.Fatalf("%+v", d)
	}
	if _, err := invoke(t, w, ipcapi.UserShow, ipcapi.UserRef{User: mary}); !failure.Is(err, failure.NotFound) {
		t.Fatalf("%v", err)
	}

	// A mapping that is not as it was shown is left alone.
	rep := must(t, w, ipcapi.UserRemove, ipcapi.UserMutation{Targets: []ipcapi.UserTarget{{User: alice, UID: 1}, {User: mary, UID: 2}}})
	if rep.Results[0].Error == nil || rep.Results[0].Error.Status != 409 || rep.Results[1].Error == nil || rep.Results[1].Error.Status != 404 {
		t.Fatalf("%+v", rep)
	}
	rep = must(t, w, ipcapi.UserExpire, ipcapi.UserMutation{Targets: []ipcapi.UserTarget{{User: alice, UID: uidKay}}, Reason: "left"})
	if rep.Results[0].Status != ipcapi.ResultOK {
		t.Fatalf("%+v", rep)
	}
	if d := must(t, w, ipcapi.UserShow, ipcapi.UserRef{User: alice}); d.State != "expired" || d.Launchable == "" {
		t.Fatalf("%+v", d)
	}
	rep = must(t, w, ipcapi.UserRemove, ipcapi.UserMutation{Targets: []ipcapi.UserTarget{{User: alice, UID: uidKay}}, Purge: true})
	if rep.Results[0].Status != ipcapi.ResultOK {
		t.Fatalf("%+v", rep)
	}
	must(t, w, ipcapi.UserAdd, ipcapi.UserAddition{User: alice, Local: "kay", WaitMs: 10_000})
	change := ipcapi.UserAccountChange{User: alice, UID: uidKay, Local: "lee", Reason: "typed wrong", DryRun: true}
	for _, dry := range []bool{true, false} {
		change.DryRun = dry
		before := len(w.instances.done())
		res := must(t, w, ipcapi.UserChange, change)
		if res.OldLocalName != "kay" || res.LocalName != "lee" || res.State != "active" || res.Ending {
			t.Fatalf("%+v", res)
		}
		// The answer comes when the instance of the old account has ended.
		if stopped := w.instances.done()[before:]; len(stopped) == 0 != dry {
			t.Fatalf("dry run %t: stopped %q", dry, stopped)
		}
	}
	if _, err := invoke(t, w, ipcapi.UserChange, change); !failure.Is(err, failure.Conflict) {
		t.Fatalf("changed twice: %v", err)
	}
	w.instances.mu.Lock()
	w.instances.stuck = true
	w.instances.mu.Unlock()
	if res := must(t, w, ipcapi.UserChange, ipcapi.UserAccountChange{User: alice, UID: uidLee, Local: "kay"}); !res.Ending {
		t.Errorf("%+v, and the instance has not ended", res)
	}
	for _, action := range []string{"user.add", "user.expire", "user.remove", "user.change"} {
		if !strings.Contains(w.audit.String(), "action="+action+" result=ok") {
			t.Errorf("%s is not audited:\n%s", action, w.audit)
		}
	}
}

func TestLongListsComeInPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const n = 2*pageSize + 1
	if err := w.store.Update(t.Context(), func(tx *store.Tx) error {
		for i := range n {
			id := strconv.Itoa(i)
			if err := tx.PutDrive(store.Drive{
				ProviderGeneratedID: id, Owner: ident.Owner{User: alice}, Title: id, Path: "/d/" + id, State: store.DriveDesired, UpdatedAt: time.Now(),
			}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	pages := 0
	drives, err := collect(t.Context(), w.client, ipcapi.DriveList, ipcapi.Empty{}, func(p ipcapi.DrivePage) []ipcapi.DriveInfo { pages++; return p.Items })
	if err != nil || len(drives) != n || pages != 3 {
		t.Fatalf("%d drives in %d pages, %v", len(drives), pages, err)
	}
}

func TestInstances(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.instances.set(launcher.Info{User: alice, UID: uidKay, PID: 77, State: "running"})
	both := []ident.UCloudUser{alice, mary}
	rep := must(t, w, ipcapi.InstanceStop, ipcapi.InstanceMutation{Users: both, DryRun: true})
	if rep.Results[0].Status != ipcapi.ResultOK || rep.Results[1].Status != ipcapi.ResultSkipped || len(w.instances.done()) != 0 {
		t.Fatalf("dry run: %+v, %q", rep, w.instances.done())
	}
	must(t, w, ipcapi.InstanceStop, ipcapi.InstanceMutation{Users: both, Reason: "update"})
	must(t, w, ipcapi.InstanceRestart, ipcapi.InstanceMutation{Users: both})
	if want := []string{"stop Alice#1234: stopped by an operator: update", "restart Alice#1234"}; !slices.Equal(w.instances.done(), want) {
		t.Fatalf("%q", w.instances.done())
	}
}

func TestStatusIsTheWorstPart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if rep := must(t, w, ipcapi.ServiceStatus, ipcapi.Empty{}); rep.Health != ipcapi.HealthWarning || rep.Provider != "example" {
		t.Fatalf("%+v", rep)
	}
}

// TestTheProtocolIsNamed: command lines refuse a server that speaks another protocol, or does not say which.
func TestTheProtocolIsNamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if v := must(t, w, ipcapi.ServiceVersion, ipcapi.Empty{}); v.Protocol != ipcapi.Protocol || v.Platform == "" {
		t.Fatalf("%+v", v)
	}
}

//attack:actor local user
//attack:does Takes advantage of a directory that does not answer, or of a group that does not exist.
//attack:control Not knowing who is an operator is a no.
//attack:remove internal/operator/authorize.go: if failure.Is(err, failure.NotFound) {\n\t\treturn false\n\t}\n\tvar a => if failure.Is(err, failure.NotFound) {\n\t\treturn true\n\t}\n\tvar a
func TestUnknownGroupsMeanNobody(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	for _, tc := range []struct {
		name  string
		group string
		d     directory
	}{
		{"missing", "no-such-group", directory{}},
		{"none configured", "", directory{}},
		{"name service away", "ops", directory{broken: true}},
	} {
		if member(context.Background(), log, tc.d, uidOp, tc.group) {
			t.Errorf("%s: everybody is an operator", tc.name)
		}
	}
	for uid, want := range map[ident.UID]bool{uidOp: true, uidViewer: false, uidNobody: false} {
		if got := member(context.Background(), log, directory{}, uid, "ops"); got != want {
			t.Errorf("uid %d: %v", uid, got)
		}
	}
}
