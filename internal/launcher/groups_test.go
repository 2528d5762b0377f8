package launcher_test

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/launcher"
	"ucloud-im/internal/testkit/accounts"
)

// extraGroup makes a group for the time of the test.
func extraGroup(t *testing.T, u accounts.Account) string {
	t.Helper()
	name := u.Name + "x"
	accounts.Admin(t, "groupadd", name)
	t.Cleanup(func() { accounts.Admin(t, "groupdel", name) })
	return name
}

// TestGroupsFollow changes memberships and does not tell the server: it notices by itself.
func TestGroupsFollow(t *testing.T) {
	t.Parallel()
	u := theSite(t).User(t)
	group := extraGroup(t, u)
	w := newRunning(t, nil, u)
	w.wake(u)
	before := w.about(u)

	accounts.Admin(t, "gpasswd", "-a", u.Name, group)
	w.eventually("a process with the new group serves", func() bool {
		a := w.about(u)
		return a.PID != before.PID && len(a.Groups) == len(before.Groups)+1
	})
	w.eventually("the old one has ended", func() bool { return len(accounts.Processes(u.UID)) == 1 })

	with := w.about(u)
	accounts.Admin(t, "gpasswd", "-d", u.Name, group)
	eventually(t, "the process with the lost group ends", func() bool { return !alive(with.PID) })
	w.eventually("one without it serves", func() bool {
		r := w.get(u, "/about")
		return r.Status == 200 && len(w.about(u).Groups) == len(before.Groups)
	})
}

// TestShrinkingEndsAtOnce covers everything that takes the right to an instance away, while a request is under way.
func TestShrinkingEndsAtOnce(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	for _, tc := range []struct {
		name   string
		change func(w *world, u accounts.Account)
		why    string
	}{
		{"left the allowed group", func(w *world, u accounts.Account) {
			accounts.Admin(w.t, "gpasswd", "-d", u.Name, site.Group)
		}, "not a member"},
		{"no login shell", func(w *world, u accounts.Account) {
			accounts.Admin(w.t, "usermod", "-s", "/bin/false", u.Name)
		}, "no login shell"},
		{"expired, as the account itself sees it", func(w *world, u accounts.Account) {
			accounts.Admin(w.t, "chage", "-E", "1", u.Name)
		}, "closed"},
		{"mapping removed", func(w *world, u accounts.Account) {
			var ok bool
			w.call(w.server, "Unmap", userOf(u), &ok)
			w.call(w.server, "Recheck", []ident.UCloudUser{userOf(u)}, &ok)
		}, "not connected"},
		{"stopped by an operator", func(w *world, u accounts.Account) {
			var ok bool
			w.call(w.server, "Stop", userOf(u), &ok)
		}, "operator"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			u := site.User(t)
			w := newRunning(t, nil, u)
			w.wake(u)
			pid := w.about(u).PID
			slow := make(chan Fetched, 1)
			go func() { slow <- w.post(u, "/work?ms=20000") }()
			w.eventually("a request is under way", func() bool { return w.info(u).Active > 0 })
			tc.change(w, u)
			eventually(t, "it ends", func() bool { return !alive(pid) })
			if s := <-slow; s.Status == 200 {
				t.Error("the request was allowed to finish")
			}
			w.eventually("it is listed as stopped", func() bool {
				i := w.info(u)
				return i.State == launcher.Stopped && strings.Contains(i.Reason, tc.why)
			})
			if c := w.counters(); c.Crashes != 0 {
				t.Errorf("counted as a crash: %+v", c)
			}
		})
	}
}

func TestGroupsOfInstanceAreTheKernels(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	u := site.User(t)
	w := newRunning(t, nil, u)
	w.wake(u)
	a := w.about(u)
	if !slices.Contains(a.Groups, int(site.GID)) {
		t.Fatalf("groups %v, the allowed group is %s", a.Groups, site.GID)
	}
	if got := strings.Fields(a.Status["Groups"]); !slices.Contains(got, strconv.Itoa(int(u.GID))) {
		t.Fatalf("groups %v, the primary group is %s", got, u.GID)
	}
}
