package launcher_test

import (
	"testing"

	"ucloud-im/internal/ident"
)

// TestPolicyAndKeysReachInstances: an instance has the policy of its user, hears that keys have changed, and gets both
// anew when another server has taken it over.
//
//attack:actor compromised instance
//attack:does Goes on with a signing key that its owner has just revoked.
//attack:control The server tells the instance at once that keys have changed.
//attack:remove internal/launcher/api.go: p.send(ipcapi.InstanceItem{Kind: ipcapi.ItemKeys}) => _ = p
//attack:actor compromised core
//attack:does Waits for a restart of the server, during which a key is revoked, and goes on with it.
//attack:control An instance forgets the keys that it knows when it has been without the server.
//attack:remove internal/instance/agent.go: a.lost.Store(0)\n\ta.keysChanged() => a.lost.Store(0)
//attack:actor compromised core
//attack:does Goes on without signatures in instances that a restart of the server with a stricter policy has left running.
//attack:control An instance gets the settings of the server that takes it over.
//attack:remove internal/launcher/adopt.go: s.configure(ctx, p) => _ = s
func TestPolicyAndKeysReachInstances(t *testing.T) {
	t.Parallel()
	u := theSite(t).User(t)
	w := newRunning(t, func(c *serverConfig) { c.Intents = "log" }, u)
	w.wake(u)
	if a := w.about(u); a.Intents != "log for "+string(userOf(u)) || a.Keys != 0 {
		t.Fatalf("at the start: policy %q, keys changed %d times", a.Intents, a.Keys)
	}
	changed := func(user ident.UCloudUser) {
		var ok bool
		w.call(w.server, "KeysChanged", user, &ok)
	}
	changed("Somebody else#1")
	changed(userOf(u))
	w.eventually("the instance hears of its keys", func() bool { return w.about(u).Keys == 1 })

	w.server.kill(t)
	w.cfg.Intents = "require"
	w.startServer()
	w.eventually("the instance has the new policy and forgets the keys", func() bool {
		a := w.about(u)
		return a.Intents == "require for "+string(userOf(u)) && a.Keys == 2
	})
}
