package roleserver

import (
	"strings"
	"testing"

	"ucloud-im/internal/config"
	"ucloud-im/internal/usermap/scripted"
)

// What this version does of identity types Scripted and Static is accepted, and nothing else.
func TestAssignedIdentity(t *testing.T) {
	t.Parallel()
	const storage = `
  fileSystems:
    disk:
      management: { type: Posix }
      payment: { type: Resource, unit: GB }
      driveLocators:
        home: { entity: User, pattern: "/home/#{localUsername}", freeQuota: 0 }
`
	identity := func(text string) string {
		return base + "services:\n  type: Slurm\n  identityManagement:\n" + text + storage
	}
	for text, want := range map[string]string{
		"    type: Static\n    static: { file: /etc/ucloud/accounts.yml }":                                                                     "",
		"    type: Scripted\n    projectGroups: \"off\"\n    scripted: { onUserConnected: /opt/connect, onUserDisconnected: /opt/disconnect }": "",
		"    type: Scripted\n    scripted: { onUserConnected: /opt/connect, onProjectUpdated: /opt/project }":                                  "projectGroups",
		"    type: Scripted\n    projectGroups: \"off\"\n    scripted: { onUserConnected: { path: /opt/connect, runAs: root } }":               "onUserConnected.runAs",
		"    type: Scripted\n    projectGroups: \"off\"\n    scripted: { onUserConnected: /opt/connect, onProjectArchived: /opt/archived }":    "onProject*",
		"    type: Manual\n    manual: { tickets: { contact: a@b.c }, onTicketCreated: { path: /opt/ticket, passSecrets: [x] } }":              "onTicketCreated.passSecrets",
		"    type: Static\n    groupCache: { refreshCommand: [] }\n    static: { file: /etc/ucloud/accounts.yml }":                             "",
		"    type: Static\n    groupCache: { refreshCommand: [/opt/refresh] }\n    static: { file: /etc/ucloud/accounts.yml }":                 "groupCache.refreshCommand",
	} {
		got := Unsupported(loadText(t, identity(text)))
		switch {
		case want == "" && len(got) != 0:
			t.Errorf("%s: %v", text, got.Err())
		case want != "" && (len(got) == 0 || !strings.HasSuffix(got[0].KeyPath, want) && !strings.HasSuffix(got[len(got)-1].KeyPath, want)):
			t.Errorf("%s: %v, want %s", text, got, want)
		}
	}
}

func TestSuggest(t *testing.T) {
	t.Parallel()
	names := scripted.SplitNames("NinaHolm#2207")
	for users, want := range map[string]string{
		"firstInitialLastName": "nholm", "ucloud": "ninaholm", "#{lastName}_#{firstInitial}": "holm_n", "x#{ucloudUsername}": "xninaholm",
	} {
		if got := suggest(config.Naming{Users: users}, names); got != want {
			t.Errorf("%s: %s, want %s", users, got, want)
		}
	}
	if got := suggest(config.Naming{Users: "#{lastName}_#{firstInitial}"}, scripted.SplitNames("Kaja#1")); got != "kaja" && got != "u_k" {
		t.Errorf("a single name: %s", got)
	}
}
