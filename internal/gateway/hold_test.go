package gateway

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"ucloud-im/internal/ident"
)

func TestWakeAndHold(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	route := f.routes.lookup(alice).route
	f.routes.Apply(Update{Full: true})
	release := make(chan struct{})
	f.control.onWake(func(ctx context.Context, user ident.UCloudUser) (*Route, string, error) {
		select {
		case <-release:
		case <-ctx.Done():
			return nil, "", ctx.Err()
		}
		return &route, "", nil
	})
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if res := f.core("POST", "/ucloud/birch/files/browse", "{}", alice); res.StatusCode != 200 {
				t.Errorf("got %d %s", res.StatusCode, res.body)
			}
		})
	}
	eventually(t, "all requests held", func() bool { return f.holder.held.Load() == 10 })
	if n := f.control.wakeCount(); n != 1 {
		t.Errorf("%d questions for one user", n)
	}
	close(release)
	wg.Wait()
	if n := f.holder.held.Load(); n != 0 {
		t.Errorf("%d requests still held", n)
	}
	if !strings.Contains(f.log.String(), `"held_ms":`) {
		t.Error("the log does not say that requests were held")
	}
}

// TestRouteFromTheStreamEndsAHold: the answer to the question may be lost with the connection to the server.
func TestRouteFromTheStreamEndsAHold(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	route := f.routes.lookup(alice).route
	f.routes.Apply(Update{Full: true})
	f.control.onWake(func(ctx context.Context, user ident.UCloudUser) (*Route, string, error) {
		f.routes.Apply(Update{Put: []Route{route}})
		<-ctx.Done()
		return nil, "", ctx.Err()
	})
	if res := f.core("GET", "/ucloud/birch/files", "", alice); res.StatusCode != 200 {
		t.Fatalf("got %d %s", res.StatusCode, res.body)
	}
}

func TestHoldIsBoundedInTime(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(f *fixture, _ *Options) { f.settings.Hold.Timeout = 100 * time.Millisecond })
	f.routes.Apply(Update{Full: true})
	f.control.onWake(func(ctx context.Context, _ ident.UCloudUser) (*Route, string, error) {
		<-ctx.Done()
		return nil, "", ctx.Err()
	})
	start := time.Now()
	checkFailure(t, "slow", f.core("POST", "/ucloud/birch/files/browse", "{}", alice), 449)
	if took := time.Since(start); took < 100*time.Millisecond {
		t.Errorf("answered after %s", took)
	}
	// The question goes on: who comes later joins it.
	checkFailure(t, "slow again", f.core("POST", "/ucloud/birch/files/browse", "{}", alice), 449)
	if n := f.control.wakeCount(); n != 1 {
		t.Errorf("%d questions", n)
	}
}

func TestHoldIsBoundedInNumber(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(f *fixture, _ *Options) { f.settings.Hold.Max = 3 })
	f.routes.Apply(Update{Full: true})
	release := make(chan struct{})
	f.control.onWake(func(ctx context.Context, _ ident.UCloudUser) (*Route, string, error) {
		<-release
		return nil, "refused in the end", nil
	})
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			res := f.core("POST", "/ucloud/birch/files/browse", "{}", ident.UCloudUser("user#"+string(rune('a'+i))))
			checkFailure(t, "held", res, 449)
			if !strings.Contains(res.body, "refused in the end") {
				t.Errorf("got %s", res.body)
			}
		})
	}
	eventually(t, "all places taken", func() bool { return f.holder.held.Load() == 3 })
	res := f.core("POST", "/ucloud/birch/files/browse", "{}", alice)
	checkFailure(t, "no place", res, 449)
	if !strings.Contains(res.body, whyBusy) {
		t.Errorf("got %s", res.body)
	}
	close(release)
	wg.Wait()
}

func TestHoldDisabledAndRefusals(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.routes.Apply(Update{Full: true})
	f.control.onWake(func(context.Context, ident.UCloudUser) (*Route, string, error) {
		return nil, "Please connect to this provider again.", nil
	})
	res := f.core("POST", "/ucloud/birch/files/browse", "{}", alice)
	checkFailure(t, "refused", res, 449)
	if !strings.Contains(res.body, "Please connect to this provider again.") {
		t.Errorf("the reason is missing: %s", res.body)
	}
	s := f.settings
	s.Hold.Disabled = true
	f.Reconfigure(s)
	checkFailure(t, "disabled", f.core("POST", "/ucloud/birch/files/browse", "{}", alice), 449)
	if n := f.control.wakeCount(); n != 1 {
		t.Errorf("%d questions", n)
	}
}

// TestServerThatIsAwayIsAskedAgain: a restart of the server during a hold loses nothing.
func TestServerThatIsAwayIsAskedAgain(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	route := f.routes.lookup(alice).route
	f.routes.Apply(Update{Full: true})
	var mu sync.Mutex
	asked, checked := 0, 0
	f.control.onWake(func(context.Context, ident.UCloudUser) (*Route, string, error) {
		mu.Lock()
		defer mu.Unlock()
		if asked++; asked < 3 {
			return nil, "", errTest
		}
		return &route, "", nil
	})
	f.control.onToken(func(context.Context, ident.UCloudUser, [32]byte) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		if checked++; checked < 3 {
			return false, errTest
		}
		return true, nil
	})
	res := f.do("GET", "/ucloud/birch/download?token=x&usernameHint="+alice.HintValue(), "")
	if res.StatusCode != 200 || asked != 3 || checked != 3 {
		t.Fatalf("got %d %s after %d and %d questions", res.StatusCode, res.body, asked, checked)
	}
}

// TestClientThatLeavesDoesNotEndTheWake of the others.
func TestClientThatLeavesDoesNotEndTheWake(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	route := f.routes.lookup(alice).route
	f.routes.Apply(Update{Full: true})
	release := make(chan struct{})
	f.control.onWake(func(ctx context.Context, _ ident.UCloudUser) (*Route, string, error) {
		select {
		case <-release:
			return &route, "", nil
		case <-ctx.Done():
			return nil, "", ctx.Err()
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+f.address+"/ucloud/birch/files", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "birch.example.net"
	req.Header.Set("Authorization", bearer())
	req.Header.Set("Ucloud-Username", alice.HeaderValue())
	var wg sync.WaitGroup
	wg.Go(func() {
		if res, err := f.client.Do(req); err == nil {
			res.Body.Close()
			t.Error("the cancelled request was answered")
		}
	})
	eventually(t, "one held", func() bool { return f.holder.held.Load() == 1 })
	wg.Go(func() {
		if res := f.core("POST", "/ucloud/birch/files/browse", "{}", alice); res.StatusCode != 200 {
			t.Errorf("got %d %s", res.StatusCode, res.body)
		}
	})
	eventually(t, "two held", func() bool { return f.holder.held.Load() == 2 })
	cancel()
	eventually(t, "the first gone", func() bool { return f.holder.held.Load() == 1 })
	close(release)
	wg.Wait()
	if n := len(f.alice.seen()); n != 1 {
		t.Errorf("the instance saw %d requests", n)
	}
}

func TestAdoptNeverGoesBack(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	r := f.route(alice, f.alice, 5, 3)
	old := r
	old.Generation = 2
	if in := f.routes.adopt(old); in.route != r {
		t.Errorf("an older generation was adopted: %+v", in.route)
	}
	old = r
	old.ID, old.Generation = 4, 9
	if in := f.routes.adopt(old); in.route != r {
		t.Errorf("an older route was adopted: %+v", in.route)
	}
	f.routes.Apply(Update{Remove: []ident.UCloudUser{alice}})
	if in := f.routes.adopt(r); in != nil {
		t.Error("a removed route came back")
	}
	r.ID = 6
	if in := f.routes.adopt(r); in == nil || in.route != r {
		t.Error("a new route was not adopted")
	}
}

func TestWakeOfAnotherUserIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	route := f.routes.lookup(alice).route
	f.control.onWake(func(context.Context, ident.UCloudUser) (*Route, string, error) { return &route, "", nil })
	checkFailure(t, "route of Alice for Bob", f.core("POST", "/ucloud/birch/files/browse", "{}", bob), 449)
	if n := len(f.alice.seen()); n != 0 {
		t.Error("Bob's request reached Alice's instance")
	}
}

// TestTokenChecksDoNotTakePlacesOfCore: anybody can make up tokens.
func TestTokenChecksDoNotTakePlacesOfCore(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(f *fixture, _ *Options) { f.settings.Hold.Max = 8 })
	route := f.routes.lookup(alice).route
	f.routes.Apply(Update{Full: true})
	f.control.onToken(func(ctx context.Context, _ ident.UCloudUser, _ [32]byte) (bool, error) {
		<-ctx.Done()
		return false, ctx.Err()
	})
	f.control.onWake(func(context.Context, ident.UCloudUser) (*Route, string, error) { return &route, "", nil })
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			res := f.do("GET", "/ucloud/birch/download?token=x&usernameHint="+bob.HintValue(), "")
			checkFailure(t, "made-up token", res, 503)
		})
	}
	eventually(t, "checks under way", func() bool { return f.checks.Load() >= 2 })
	if res := f.core("GET", "/ucloud/birch/files", "", alice); res.StatusCode != 200 {
		t.Errorf("Core got %d %s", res.StatusCode, res.body)
	}
	wg.Wait()
	if n := f.checks.Load(); n != 0 {
		t.Errorf("%d checks under way", n)
	}
}

// TestMadeUpTokensLeaveOthersTheirs: who makes up tokens uses up the questions of one address, and not those of others.
//
//attack:actor internet
//attack:does Asks for unknown links without end, so that nobody's link to a sleeping instance is looked up any more.
//attack:control Each address has its own share of the questions about one-time tokens.
//attack:remove internal/gateway/sources.go: if wait, ok := s.checks.take(source(ex.client.ip), l.checkRate(10), ex.arrival); !ok { => if wait, ok := s.checks.take(source(ex.client.ip), rateOf{}, ex.arrival); !ok {
func TestMadeUpTokensLeaveOthersTheirs(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(f *fixture, _ *Options) { f.settings.Limits.TokenChecksPerSecond = 10 })
	now := time.Now()
	// asks tells how many of n questions of an address may be asked at one moment.
	asks := func(ip string, n int) (may int) {
		for range n {
			ex := &exchange{g: f.Gateway, settings: f.Gateway.settings.Load(), client: client{ip: netip.MustParseAddr(ip)}, user: alice, limited: true, arrival: now}
			if ex.mayAsk() == nil {
				may++
			}
		}
		return may
	}
	if n := asks("192.0.2.1", 30); n != 2 {
		t.Errorf("one address: %d questions", n)
	}
	for _, ip := range []string{"192.0.2.2", "2001:db8::1"} {
		if n := asks(ip, 1); n != 1 {
			t.Errorf("%s may not ask", ip)
		}
	}
	f.sources.prove(alice, netip.MustParseAddr("192.0.2.4"), now)
	all := 4
	for i := range 50 {
		all += asks(fmt.Sprintf("198.51.100.%d", i), 1)
	}
	if all != 20 {
		t.Errorf("all addresses: %d questions", all)
	}
	if asks("192.0.2.3", 1) != 0 || asks("192.0.2.4", 1) != 1 {
		t.Error("strangers use up the questions of a user who is known at an address")
	}
}

// TestTokenChecksAreLimited: a link to a sleeping instance gets 429 when its address has asked too often.
func TestTokenChecksAreLimited(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(f *fixture, _ *Options) { f.settings.Limits.TokenChecksPerSecond = 0.001 })
	f.routes.Apply(Update{Full: true})
	for i, want := range []int{404, 429} {
		res := f.do("GET", "/ucloud/birch/download?token=x&usernameHint="+bob.HintValue(), "")
		if res.StatusCode != want || (want == 429) != (res.Header.Get("Retry-After") != "") {
			t.Errorf("question %d: %d %v", i, res.StatusCode, res.Header)
		}
	}
	if n := f.limited(limitChecks); n != 1 {
		t.Errorf("%v refusals counted", n)
	}
}
