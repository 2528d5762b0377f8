package launcher_test

import (
	"testing"

	"ucloud-im/internal/testkit/accounts"
)

func TestLaunchBothSudoModes(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	for name, program := range map[string]string{"direct": directProgram, "pam session": pamProgram, "stock rule": stockProgram} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := site.User(t)
			w := newRunning(t, func(c *serverConfig) { c.Program = site.Dir + "/" + program }, u)
			route := w.wake(u)
			if route.Port != w.cfg.First || len(route.Key) != 32 {
				t.Fatalf("route %+v", route)
			}
			a := w.about(u)
			if a.UID != int(u.UID) {
				t.Fatalf("runs as uid %d, want %s", a.UID, u.UID)
			}
			// No sudo is left behind: everything that runs as the user is the instance.
			eventually(t, "only the instance runs", func() bool {
				p := accounts.Processes(u.UID)
				return len(p) == 1 && p[0] == a.PID
			})
		})
	}
}
