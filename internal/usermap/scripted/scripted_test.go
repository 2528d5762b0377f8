package scripted_test

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/localuser"
	"ucloud-im/internal/operator"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/accounts"
	"ucloud-im/internal/usermap"
	"ucloud-im/internal/usermap/consent"
)

// Nobody is connected before they have been shown both accounts and have agreed.
//
//attack:actor malicious identity
//attack:does Has the script name an account and waits: who presses Connect is connected to whatever the script says, unseen.
//attack:control A found account connects nobody; the person is shown both accounts and must agree.
//attack:remove internal/usermap/assigned/browser.go: err = m.o.Consent.Assign(ctx, p, account) => _, err = m.o.Users.Link(ctx, usermap.Link{User: p.User(), Local: account.Name, Method: m.o.Method})
//attack:remove internal/usermap/assigned/browser.go: "ucloud-im/internal/usermap/consent"\n => "ucloud-im/internal/usermap"\n\t"ucloud-im/internal/usermap/consent"\n
func TestFromConnectToMapping(t *testing.T) {
	t.Parallel()
	w := newWorld(t, somePolicy{}, `cat > "$(dirname "$0")/asked"; echo '{"uid":2001}'`)
	cookie := w.connect(t, nina)
	v := w.page(t, cookie)
	if v.Stage != consent.StageAsk || v.User != nina || v.LocalName != "nholm" || !v.Assigned || v.Form == "" {
		t.Fatalf("page %+v", v)
	}
	if got := w.mapping(t, nina); got != "none" {
		t.Fatalf("connected without consent: %s", got)
	}
	if err := w.method.Decide(t.Context(), cookie, "wrong", true); !failure.Is(err, failure.Forbidden) {
		t.Errorf("without the secret of the form: %v", err)
	}
	if err := w.method.Decide(t.Context(), cookie, v.Form, true); err != nil {
		t.Fatal(err)
	}
	if got := w.mapping(t, nina); got != "nholm 2001 pending scripted" {
		t.Fatalf("mapping %s", got)
	}
	if v := w.page(t, cookie); v.Stage != consent.StageConnecting || v.LocalName != "nholm" {
		t.Errorf("page %+v", v)
	}
	var asked scripts.ConnectRequest
	entries := w.log.all()
	if err := json.Unmarshal([]byte(entries[0].Request), &asked); err != nil || len(entries) != 1 {
		t.Fatalf("%d calls, %v", len(entries), err)
	}
	want := scripts.ConnectRequest{UCloudUsername: nina, FirstName: "Nina", LastName: "Holm", SuggestedUsername: "nholm", LaunchGroup: "users"}
	if asked != want {
		t.Errorf("asked %+v", asked)
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	w := newWorld(t, somePolicy{}, `echo '{"uid":2001}'`)
	cookie := w.connect(t, nina)
	v := w.page(t, cookie)
	if err := w.method.Decide(t.Context(), cookie, v.Form, false); err != nil {
		t.Fatal(err)
	}
	if v := w.page(t, cookie); v.Stage != consent.StageCancelled || w.mapping(t, nina) != "none" {
		t.Errorf("page %+v, mapping %s", v, w.mapping(t, nina))
	}
}

// Signing keys prove that a user asked, and here UCloud alone decides who a user is.
//
//attack:actor compromised core
//attack:does Presses Connect in a user's name with a signing key of its own, to be able to sign whatever it likes from then on.
//attack:control Where the provider itself assigns the account, no attempt may bring a signing key.
//attack:remove internal/usermap/assigned/assigned.go: if a.Key != "" { => if false {
func TestNoKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t, somePolicy{}, `echo '{"uid":2001}'`)
	_, err := w.method.Begin(t.Context(), usermap.Attempt{User: nina, Key: "1"})
	if !failure.Is(err, failure.Forbidden) {
		t.Errorf("begun with a key: %v", err)
	}
	if len(w.log.all()) != 0 {
		t.Error("the script was called")
	}
}

// Whatever a script answers, the account must be one that this user may have.
//
//attack:actor malicious script
//attack:does Answers the uid of an account that belongs to another UCloud user.
//attack:control Everything that a connection needs is tried before the user is shown an account.
//attack:remove internal/usermap/assigned/assigned.go: _, err = m.o.Users.Link(ctx, usermap.Link{User: user, Local: a.UID.String(), Method: m.o.Method, By: a.Name, DryRun: true}) => _ = usermap.Link{}
//attack:run of another user
//attack:actor malicious script
//attack:does Answers another uid than before for a user who comes back, so that they work with somebody else's files.
//attack:control A user who had an account gets that one or none.
//attack:remove internal/usermap/assigned/assigned.go: if q.Existing != nil && a.UID != *q.Existing { => if false {
//attack:run another one than before
//attack:actor malicious script
//attack:does Answers 0, the uid of root.
//attack:control The uid of a reply is that of an ordinary account, before anybody looks it up.
//attack:remove internal/scripts/identity.go: case *r.UID <= 0 || *r.UID >= 1<<32-1: => case false:
//attack:run root
func TestWhatScriptsAnswer(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		script string
		before func(t *testing.T, w *world)
		say    string // "": the user is asked
	}{
		"an account":              {`echo '{"uid":2001}'`, nil, ""},
		"with remarks":            {`echo '{"uid":2001,"message":"created","more":[]}'`, nil, ""},
		"the same as before":      {`echo '{"uid":2001}'`, func(t *testing.T, w *world) { t.Helper(); w.link(t, nina, "nholm") }, ""},
		"nothing":                 {`exit 0`, nil, "could not be made"},
		"no uid":                  {`echo '{}'`, nil, "could not be made"},
		"a text":                  {`echo '{"uid":"2001"}'`, nil, "could not be made"},
		"a fraction":              {`echo '{"uid":2001.5}'`, nil, "could not be made"},
		"garbage after the JSON":  {`echo '{"uid":2001} {"uid":2002}'`, nil, "could not be made"},
		"root":                    {`echo '{"uid":0}'`, nil, "could not be made"},
		"negative":                {`echo '{"uid":-1}'`, nil, "could not be made"},
		"wraps around":            {`echo '{"uid":4294969297}'`, nil, "could not be made"},
		"nobody's":                {`echo '{"uid":3000}'`, nil, "cannot be used"},
		"not allowed":             {`echo '{"uid":2004}'`, nil, "cannot be used"},
		"of another user":         {`echo '{"uid":2002}'`, func(t *testing.T, w *world) { t.Helper(); w.link(t, mary, "mary") }, "cannot be used"},
		"another one than before": {`echo '{"uid":2003}'`, func(t *testing.T, w *world) { t.Helper(); w.link(t, nina, "nholm") }, "another one than before"},
		"not permitted":           {`echo '{"userMessage":"Ask your group first"}'; exit 77`, nil, "Ask your group first"},
		"not permitted, no word":  {`exit 77`, nil, "cannot have an account"},
		"broken":                  {`exit 1`, nil, "tell the operators of this provider the number"},
		"bad data":                {`exit 65`, nil, "could not be made"},
		"again":                   {`[ "$UCLOUD_ATTEMPT" = 2 ] || exit 75; echo '{"uid":2001}'`, nil, ""},
		"always again":            {`exit 75`, nil, "could not be made"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, somePolicy{}, tc.script)
			if tc.before != nil {
				tc.before(t, w)
			}
			was := w.mapping(t, nina)
			v := w.page(t, w.connect(t, nina))
			switch {
			case tc.say == "" && (v.Stage != consent.StageAsk || v.LocalName != "nholm"):
				t.Errorf("page %+v", v)
			case tc.say != "" && (v.Stage != consent.StageFailed || !strings.Contains(v.Message, tc.say)):
				t.Errorf("page %+v", v)
			case strings.Contains(v.Message, string(mary)):
				t.Errorf("the page names somebody else: %s", v.Message)
			}
			if got := w.mapping(t, nina); got != was {
				t.Errorf("mapping %s, was %s", got, was)
			}
		})
	}
}

// With real accounts: those that the policy refuses are refused.
//
//attack:actor malicious script
//attack:does Answers the uid of the account that the service itself runs as.
//attack:control Every account passes the policy, and the policy refuses the service account.
//attack:remove internal/localuser/policy.go: case uid == p.o.ServiceUID: => case false:
//attack:remove internal/localuser/policy.go: case uid < p.o.MinUID: => case false:
//attack:remove internal/localuser/policy.go: case noLogin(a.Shell): => case noLogin(a.Shell) && false:
//attack:remove internal/localuser/policy.go: if err := p.checkGroup(ctx, a); err != nil { => if err := error(nil); err != nil {
//attack:remove internal/localuser/policy.go: if s.LockedHash { => if false {
//attack:run service
//attack:actor malicious script
//attack:does Answers the uid of an account that is not in the group of users.
//attack:control Every account passes the policy, and the policy demands the group.
//attack:remove internal/localuser/policy.go: if err := p.checkGroup(ctx, a); err != nil { => if err := error(nil); err != nil {
//attack:run no member
//attack:actor malicious script
//attack:does Answers a uid above the range that the operators have set aside for users.
//attack:control Every account passes the policy, and the policy demands the range.
//attack:remove internal/localuser/policy.go: case p.o.MaxUID != 0 && uid > p.o.MaxUID: => case false:
//attack:run above the range
func TestRealAccounts(t *testing.T) {
	t.Parallel()
	site := accounts.New(t, "scr")
	member, other, high := site.User(t), site.User(t), site.User(t)
	accounts.Admin(t, "gpasswd", "-d", other.Name, site.Group)
	policy := operator.NewPolicy(localuser.NewPolicy(localuser.NewDirectory(localuser.Options{}), localuser.PolicyOptions{
		Group: site.Group, MinUID: member.UID, MaxUID: other.UID, ServiceUID: site.Service.UID,
	}))
	for name, tc := range map[string]struct {
		uid  ident.UID
		want consent.Stage
	}{
		"member": {member.UID, consent.StageAsk}, "no member": {other.UID, consent.StageFailed},
		"service": {site.Service.UID, consent.StageFailed}, "above the range": {high.UID, consent.StageFailed},
		"daemon": {1, consent.StageFailed}, "nobody": {65534, consent.StageFailed},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, policy, `echo '{"uid":`+tc.uid.String()+`}'`)
			if v := w.page(t, w.connect(t, nina)); v.Stage != tc.want {
				t.Errorf("page %+v", v)
			}
		})
	}
}

// The account must be the one that was shown when the user agrees, too.
func TestAccountChangesBeforeConsent(t *testing.T) {
	t.Parallel()
	w := newWorld(t, somePolicy{}, `echo '{"uid":2002}'`)
	cookie := w.connect(t, nina)
	v := w.page(t, cookie)
	w.link(t, mary, "mary") // meanwhile
	if err := w.method.Decide(t.Context(), cookie, v.Form, true); err != nil {
		t.Fatal(err)
	}
	if v := w.page(t, cookie); v.Stage != consent.StageFailed || w.mapping(t, nina) != "none" {
		t.Errorf("page %+v, mapping %s", v, w.mapping(t, nina))
	}
}

// Somebody who presses the button many times makes one account.
//
//attack:actor local user
//attack:does Presses Connect many times at once, to have an account made for each.
//attack:control There is one look for each user at a time, and further attempts join it.
//attack:remove internal/usermap/assigned/assigned.go: if len(busy) == parallel || busy[a.User] { => if len(busy) == parallel {
func TestOneCallForMany(t *testing.T) {
	t.Parallel()
	w := newWorld(t, somePolicy{}, `d=$(dirname "$0"); touch "$d/running"; while [ ! -e "$d/go" ]; do sleep 0.02; done; echo '{"uid":2001}'`)
	cookies := make([]string, 4)
	var wg sync.WaitGroup
	for i := range cookies {
		if i == 0 {
			cookies[0] = w.connect(t, nina)
			testkit.Eventually(t, "the script runs", func() bool { return exists(w.dir + "/running") })
			continue
		}
		wg.Go(func() { cookies[i] = w.connect(t, nina) })
	}
	wg.Wait()
	for _, c := range cookies {
		if v, err := w.method.View(t.Context(), c); err != nil || v.Stage != consent.StageChecking || v.User != nina {
			t.Errorf("page %+v, %v", v, err)
		}
	}
	touch(t, w.dir+"/go")
	for _, c := range cookies {
		if v := w.page(t, c); v.Stage != consent.StageAsk {
			t.Errorf("page %+v", v)
		}
	}
	if n := len(w.log.all()); n != 1 {
		t.Errorf("%d calls of the script", n)
	}
	// Two browsers ask, one is answered twice: there is one mapping, and the other page says what there is.
	v := w.page(t, cookies[1])
	for range 2 {
		if err := w.method.Decide(t.Context(), cookies[1], v.Form, true); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.mapping(t, nina); !strings.HasPrefix(got, "nholm 2001 ") {
		t.Errorf("mapping %s", got)
	}
}

// A failed look is repeated with the next press, and other users do not wait for one whose script hangs.
//
//attack:actor malicious script
//attack:does Hangs for one user, so that nobody else gets an account.
//attack:control Each program has a time limit, after which it is killed with all its children.
//attack:remove internal/scripts/process.go: limit := time.NewTimer(s.timeout) => limit := time.NewTimer(24 * s.timeout)
func TestHangingScript(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	writeScript(t, dir, `case $(cat) in *Nina*) sleep 1000 & sleep 1000;; *) echo '{"uid":2002}';; esac`)
	w, err := open(t.Context(), dir, somePolicy{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.store.Close() })
	t.Cleanup(func() { _ = w.runner.Close() })
	w.setHookTimeout(t, 8*time.Second) // enough for the other script on a busy machine
	w.run(t)
	first, second := w.connect(t, nina), w.connect(t, mary)
	if v := w.page(t, first); v.Stage != consent.StageFailed || !strings.Contains(v.Message, "could not be made") {
		t.Errorf("page %+v", v)
	}
	if v := w.page(t, second); v.Stage != consent.StageAsk {
		t.Errorf("page of the other %+v", v)
	}
	writeScript(t, dir, `echo '{"uid":2001}'`)
	if v := w.page(t, w.connect(t, nina)); v.Stage != consent.StageAsk {
		t.Errorf("page after another try %+v", v)
	}
	var a store.Assignment
	if err := w.store.View(t.Context(), func(tx *store.Tx) (err error) { a, err = tx.Assignment(nina); return err }); err != nil || a.UID != 2001 {
		t.Errorf("%+v, %v", a, err)
	}
}
