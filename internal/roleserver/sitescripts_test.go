package roleserver

import (
	"strings"
	"testing"

	"ucloud-im/internal/config"
	"ucloud-im/internal/scripts"
)

// TestHooksSayWhatTheyAreFor: operators name scripts by their keys in the configuration, and every script of the server can
// be tried, with the form that it is called with.
func TestHooksSayWhatTheyAreFor(t *testing.T) {
	t.Parallel()
	s := planner(t)
	storage := loadText(t, base+managed)
	plan, err := s.storagePlan(storage)
	if err != nil {
		t.Fatal(err)
	}
	identity := func(text string) storagePlan {
		t.Helper()
		_, p, err := s.userHooksOf(loadText(t, base+"services:\n  type: Slurm\n  identityManagement:\n"+text+`
  fileSystems:
    disk:
      management: { type: Posix }
      payment: { type: Resource, unit: GB }
      driveLocators:
        home: { entity: User, pattern: "/home/#{localUsername}", freeQuota: 0 }
`))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	users := identity("    type: Scripted\n    projectGroups: \"off\"\n    scripted: { onUserConnected: /opt/connect, onUserDisconnected: /opt/disconnect }\n")
	tickets := identity("    type: Manual\n    manual: { tickets: { contact: a@b.c }, onTicketCreated: /opt/ticket }\n")
	if err := s.useHooks(ofStorage, plan); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.runner.Close() })
	if err := s.useHooks(ofUsers, tickets); err != nil {
		t.Fatal(err)
	}
	if err := s.useHooks(ofUsers, users); err != nil { // a reload
		t.Fatal(err)
	}
	const disk = "services.fileSystems.disk."
	want := map[string]scripts.Form{
		disk + "driveLocators.work.script": scripts.FormLocator, disk + "management.scripted.onQuotaUpdated": scripts.FormDriveQuota,
		disk + "management.scripted.onUsageReporting":             scripts.FormDriveUsages,
		"services.identityManagement.scripted.onUserConnected":    scripts.FormConnect,
		"services.identityManagement.scripted.onUserDisconnected": scripts.FormDisconnected,
	}
	last := ""
	for _, h := range s.hooks.all() {
		p := h.Options().Purpose
		if want[p.At] != p.Form || p.At <= last {
			t.Errorf("%s has form %q, after %s", p.At, p.Form, last)
		}
		delete(want, p.At)
		if last = p.At; strings.HasPrefix(p.At, disk) && (p.Category != "disk" || p.Locator == "") {
			t.Errorf("%+v", p)
		}
		if p.Form == scripts.FormLocator {
			if p.Accept(t.Context(), scripts.Location{Path: "/work/x"}, true) != nil || p.Accept(t.Context(), scripts.Location{Path: "/etc"}, true) == nil {
				t.Error("the locator's answers are not judged by its roots")
			}
		}
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
	if p := tickets.hooks[0].Options().Purpose; p.At != "services.identityManagement.manual.onTicketCreated" || p.Form != scripts.FormTicket {
		t.Errorf("%+v", p)
	}
	var accounts accountsPlan
	if _, err := s.accountMapping(&accounts.hooks, loadText(t, base+managed+machines), &config.AccountMapper{Type: "Scripted", Script: config.Exec{Path: "/opt/map"}}); err != nil {
		t.Fatal(err)
	}
	if err := s.scriptedAccounting(&accounts, "thin", &config.ScriptedAccounting{
		OnQuotaUpdated: config.Exec{Path: "/opt/a"}, OnProjectUpdated: config.Exec{Path: "/opt/b"}, OnUserDisconnected: config.Exec{Path: "/opt/c"},
		OnUsageReporting: config.Exec{Path: "/opt/d"},
	}); err != nil {
		t.Fatal(err)
	}
	const management = "services.slurm.accountManagement."
	for i, want := range []scripts.Purpose{
		{At: management + "accountMapper.script", Form: scripts.FormAccount},
		{At: management + "accounting.scripted.onQuotaUpdated", Form: scripts.FormAccountQuota},
		{At: management + "accounting.scripted.onProjectUpdated", Form: scripts.FormAccountMembers},
		{At: management + "accounting.scripted.onUserDisconnected", Form: scripts.FormAccountDisconnected},
		{At: management + "accounting.scripted.onUsageReporting", Form: scripts.FormAccountUsage},
	} {
		p := accounts.hooks.hooks[i].Options().Purpose
		if p.At != want.At || p.Form != want.Form || p.Category == "" {
			t.Errorf("%+v, want %+v", p, want)
		}
		if p.Form == scripts.FormAccount && (p.Accept(t.Context(), "physics", true) != nil || p.Accept(t.Context(), "a;b", true) == nil) {
			t.Error("names of accounts are not judged")
		}
	}
}
