package events

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/events/eventwire"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/storetest"
)

// TestStored goes through a whole session on both engines.
func TestStored(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, db *store.Store) {
		h := start(t, db, nil)
		c, from := h.session()
		if from != 0 {
			t.Fatalf("first replay from %d", from)
		}
		at := time.UnixMilli(1_767_225_600_000).UTC()
		c.in <- join(projectMsg(0, "p-1", at, true, "ada#1", "bob#2", "bad\nname"), categoryMsg(0, "storage"), walletMsg(0, 0, 100, walletIsProject, at))
		c.in <- join(userMsg(0, "ada#1"), walletMsg(0, 0, 50, walletLocked, at))
		c.in <- join(projectMsg(1, "alloc", at, false, "eve#3"), walletMsg(1, 0, 1000, walletIsProject, at))

		testkit.Eventually(t, "all wallets stored", func() bool {
			var n int
			view(t, db, func(tx *store.Tx) error {
				all, err := tx.Wallets()
				n = len(all)
				return err
			})
			return n == 3
		})
		view(t, db, func(tx *store.Tx) error {
			for owner, want := range map[ident.Owner]store.Wallet{
				project1:           {CombinedQuota: 100},
				user1:              {CombinedQuota: 50, Locked: true},
				{Project: "alloc"}: {CombinedQuota: 1000, IsAllocator: true},
			} {
				want.Owner, want.Category, want.LastUpdate = owner, "storage", at
				if got, err := tx.Wallet(owner, "storage"); err != nil || got != want {
					t.Errorf("wallet %+v, %v, want %+v", got, err, want)
				}
			}
			for name, want := range map[ident.UCloudUser]bool{"ada#1": true, "bob#2": true, "eve#3": true, "nobody": false} {
				if seen, err := tx.UserSeen(name); err != nil || seen != want {
					t.Errorf("UserSeen(%s) = %v, %v", name, seen, err)
				}
			}
			p, err := tx.Project("p-1")
			if err != nil || len(p.Document.Status.Members) != 2 {
				t.Errorf("project %+v, %v", p, err)
			}
			_, err = tx.Category("storage")
			return err
		})
		// A project can become one that consumes.
		c.in <- projectMsg(1, "alloc", at.Add(time.Second), true, "bob#2")
		owners := map[ident.Owner]bool{}
		var projects []ProjectChange
		for !slices.ContainsFunc(projects, func(p ProjectChange) bool { return p.ID == "alloc" && len(p.Removed) == 1 }) {
			change := <-h.changes
			for _, o := range change.Owners {
				owners[o] = true
			}
			projects = append(projects, change.Projects...)
		}
		if last := projects[len(projects)-1]; !reflect.DeepEqual(last.Removed, []ident.UCloudUser{"eve#3"}) || !slices.Contains(last.Added, "bob#2") {
			t.Errorf("change of members %+v", last)
		}
		if !owners[user1] || !owners[project1] || !owners[ident.Owner{Project: "alloc"}] {
			t.Errorf("owners told: %v", owners)
		}
		view(t, db, func(tx *store.Tx) error {
			w, err := tx.Wallet(ident.Owner{Project: "alloc"}, "storage")
			if w.IsAllocator {
				t.Error("the wallet still counts as an allocator's")
			}
			return err
		})
		if st := h.Status(); st.State != StateUp || st.Records < 8 || st.ConnectedSince.IsZero() || !st.LastEvent.Equal(at.Add(time.Second)) {
			t.Errorf("status %+v", st)
		}
	})
}

// TestPositionWaitsForTheEndOfTheReplay is the reason why no event is lost when a replay breaks off.
func TestPositionWaitsForTheEndOfTheReplay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := storetest.SQLite(t)
		h := start(t, db, nil)
		c, _ := h.session()
		now := time.Now()
		c.in <- join(userMsg(0, "ada#1"), categoryMsg(0, "storage"), walletMsg(0, 0, 1, 0, now))
		time.Sleep(5 * time.Second)
		if p := position(t, db); !p.IsZero() {
			t.Fatalf("position moved to %s in the middle of the replay", p)
		}
		c.CloseNow()
		c, from := h.session()
		if from != 0 {
			t.Fatalf("replay from %d after a broken replay", from)
		}
		c.in <- join(userMsg(0, "bob#2"), categoryMsg(0, "storage"), walletMsg(0, 0, 1, 0, now.Add(-time.Hour)))
		c.in <- join(userMsg(1, "ada#1"), walletMsg(1, 0, 1, 0, now))
		time.Sleep(settleQuiet + time.Second)
		if p := position(t, db); !p.Equal(now.Truncate(time.Millisecond)) {
			t.Fatalf("position %s after the replay, want %s", p, now)
		}
		// From here on it moves with each event.
		live := now.Add(time.Hour)
		c.in <- walletMsg(0, 0, 2, 0, live)
		time.Sleep(time.Second)
		if p := position(t, db); !p.Equal(live.Truncate(time.Millisecond)) {
			t.Fatalf("position %s after a live event, want %s", p, live)
		}
		c.CloseNow()
		if _, from := h.session(); from != live.Add(-margin).UnixMilli() {
			t.Fatalf("replay from %d, want %d", from, live.Add(-margin).UnixMilli())
		}
	})
}

// TestNothingIsLostWhenStoringFails: the record ends the session, the position stays, and the replay repeats it.
func TestNothingIsLostWhenStoringFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := storetest.SQLite(t)
		h := start(t, db, nil)
		c, _ := h.session()
		now := time.Now()
		c.in <- join(userMsg(0, "ada#1"), categoryMsg(0, "storage"), walletMsg(0, 0, 1, 0, now))
		time.Sleep(time.Minute) // settled
		before := position(t, db)
		// A reference that was never introduced, in one message with a good record: neither is stored.
		c.in <- join(userMsg(1, "carol#3"), walletMsg(1, 0, 7, 0, now.Add(time.Hour)), walletMsg(99, 0, 7, 0, now.Add(time.Hour)))
		<-c.closed
		if p := position(t, db); !p.Equal(before) {
			t.Fatalf("position moved to %s", p)
		}
		view(t, db, func(tx *store.Tx) error {
			if _, err := tx.Wallet(ident.Owner{User: "carol#3"}, "storage"); !errors.Is(err, store.ErrNotFound) {
				t.Fatal("half of a message was stored")
			}
			return nil
		})
		c, from := h.session()
		if from != before.Add(-margin).UnixMilli() {
			t.Fatalf("replay from %d", from)
		}
		c.in <- join(userMsg(0, "carol#3"), categoryMsg(0, "storage"), walletMsg(0, 0, 7, 0, now.Add(time.Hour)))
		time.Sleep(time.Second)
		view(t, db, func(tx *store.Tx) error {
			_, err := tx.Wallet(ident.Owner{User: "carol#3"}, "storage")
			return err
		})
		if st := h.Status(); st.State != StateUp || st.LastError != "" {
			t.Fatalf("status %+v", st)
		}
	})
}

func TestOldEventsDoNotOverwrite(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := storetest.SQLite(t)
		h := start(t, db, nil)
		c, _ := h.session()
		now := time.Now()
		c.in <- join(userMsg(0, "ada#1"), categoryMsg(0, "storage"), walletMsg(0, 0, 2, 0, now), walletMsg(0, 0, 1, 0, now.Add(-time.Second)))
		time.Sleep(time.Second)
		view(t, db, func(tx *store.Tx) error {
			w, err := tx.Wallet(user1, "storage")
			if w.CombinedQuota != 2 {
				t.Errorf("quota %d", w.CombinedQuota)
			}
			return err
		})
	})
}

func TestReconnectBacksOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := start(t, storetest.SQLite(t), nil)
		begin := time.Now()
		for range 20 {
			c, _ := h.session()
			c.CloseNow()
		}
		if took := time.Since(begin); took < 5*time.Minute || took > 20*time.Minute {
			t.Fatalf("20 refused sessions within %s", took)
		}
		if n := h.tokens.renewed.Load(); n != 1 {
			t.Fatalf("the token was renewed %d times, want once: a session that breaks at once may mean a refused token", n)
		}
		time.Sleep(time.Second)
		if st := h.Status(); st.State == StateUp || st.LastError == "" {
			t.Fatalf("status %+v", st)
		}
		// A session that worked resets it.
		time.Sleep(2 * time.Minute)
		c, _ := h.session()
		time.Sleep(2 * time.Minute)
		begin = time.Now()
		c.CloseNow()
		h.session()
		if took := time.Since(begin); took > 2*time.Second {
			t.Fatalf("reconnected after %s", took)
		}
	})
}

func TestNoTokenNoConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := storetest.SQLite(t)
		h := start(t, db, func(o *Options) { o.Tokens.(*fakeTokens).none.Store(true) })
		time.Sleep(10 * time.Minute)
		if n := h.dials.Load(); n != 0 {
			t.Fatalf("%d connections without a token", n)
		}
	})
}

func TestDeadConnectionIsNoticed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := start(t, storetest.SQLite(t), nil)
		c, _ := h.session()
		time.Sleep(10 * time.Minute)
		select {
		case <-c.closed:
			t.Fatal("a quiet session was ended")
		default:
		}
		c.mute.Store(true)
		time.Sleep(pingEvery + pingWait + time.Second)
		select {
		case <-c.closed:
		default:
			t.Fatal("the session goes on without answers to its pings")
		}
	})
}

func TestReplayUsersAreSentOnceUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := storetest.SQLite(t)
		add := func(u ident.UCloudUser) {
			if err := db.Update(t.Context(), func(tx *store.Tx) error { return tx.AddReplayUser(u) }); err != nil {
				t.Fatal(err)
			}
		}
		add("ada#1") // while there is no session
		h := start(t, db, nil)
		c := newFakeConn()
		c.mute.Store(true)
		h.conns <- c
		h.authFrame(c)
		time.Sleep(time.Second)
		// Core has not shown that it accepted the token: the request could get lost.
		select {
		case m := <-c.out:
			t.Fatalf("sent %x before the session was accepted", m)
		case <-time.After(pingWait):
		}
		c, _ = h.session()
		if m := <-c.out; !reflect.DeepEqual(m, eventwire.AppendReplayUser(nil, "ada#1")) {
			t.Fatalf("sent %x", m)
		}
		add("bob#2") // while there is one
		h.ReplayUsers()
		if m := <-c.out; !reflect.DeepEqual(m, eventwire.AppendReplayUser(nil, "bob#2")) {
			t.Fatalf("sent %x", m)
		}
		time.Sleep(time.Second)
		view(t, db, func(tx *store.Tx) error {
			users, err := tx.ReplayUsers()
			if len(users) != 0 {
				t.Errorf("still noted: %v", users)
			}
			return err
		})
	})
}

func TestNightlyReplayAndRestarts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := storetest.SQLite(t)
		h := start(t, db, nil)
		at := time.Now()
		full, sessions := 0, 0
		end := time.Now().Add(72 * time.Hour)
		for time.Now().Before(end) {
			c, from := h.session()
			sessions++
			if from == 0 {
				full++
				if sessions > 1 && time.Now().Local().Hour() != DefaultReplayHour {
					t.Errorf("full replay at %s", time.Now().Local())
				}
			}
			c.in <- join(userMsg(0, "ada#1"), categoryMsg(0, "storage"), walletMsg(0, 0, 1, 0, at))
			<-c.closed
		}
		if full < 3 || full > 5 {
			t.Errorf("%d full replays in three days", full)
		}
		if sessions < 18 || sessions > 30 {
			t.Errorf("%d sessions in three days, want one every four hours or so", sessions)
		}
		if h.Status().LastFullReplay.IsZero() {
			t.Error("no full replay in the status")
		}
	})
}

func TestFullReplayCanMoveThePositionBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := storetest.SQLite(t)
		wrong := time.Now().Add(365 * 24 * time.Hour) // Core's clock was wrong once
		if err := db.Update(t.Context(), func(tx *store.Tx) error { return tx.SetReplayFrom(wrong) }); err != nil {
			t.Fatal(err)
		}
		h := start(t, db, nil)
		c, from := h.session()
		if from != 0 {
			t.Fatal("no full replay although none is noted")
		}
		at := time.Now()
		c.in <- join(userMsg(0, "ada#1"), categoryMsg(0, "storage"), walletMsg(0, 0, 1, 0, at))
		time.Sleep(time.Minute)
		if p := position(t, db); !p.Equal(at.Truncate(time.Millisecond)) {
			t.Fatalf("position %s", p)
		}
	})
}

func TestStalledReaderIsNotTrusted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := storetest.SQLite(t)
		h := start(t, db, func(o *Options) { o.MaxQueue = 200 })
		c, _ := h.session()
		// The writer is held up, so the queue fills.
		release := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			_ = db.Update(context.Background(), func(*store.Tx) error { <-release; return nil })
		})
		time.Sleep(time.Second)
		for i := range 20 {
			c.in <- userMsg(uint32(i), fmt.Sprint("user#", i))
		}
		time.Sleep(5 * time.Second)
		if st := h.Status(); st.Lag == 0 && st.QueuedBytes == 0 {
			t.Errorf("status shows no lag: %+v", st)
		}
		close(release)
		wg.Wait()
		c.in <- join(userMsg(100, "ada#1"), categoryMsg(0, "storage"), walletMsg(100, 0, 1, 0, time.Now()))
		time.Sleep(time.Hour)
		view(t, db, func(tx *store.Tx) error {
			_, err := tx.Wallet(user1, "storage")
			return err
		})
		if p := position(t, db); !p.IsZero() {
			t.Fatalf("position moved to %s although Core may have dropped events", p)
		}
	})
}

func TestChangesAreCollectedWhileTheHookWorks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := storetest.SQLite(t)
		block := make(chan struct{})
		var mu sync.Mutex
		var all []Change
		calls := func() []Change {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(all)
		}
		h := start(t, db, func(o *Options) {
			o.Changed = func(_ context.Context, c Change) {
				mu.Lock()
				all = append(all, c)
				mu.Unlock()
				<-block
			}
		})
		c, _ := h.session()
		c.in <- categoryMsg(0, "storage")
		time.Sleep(time.Second)
		for i := range 50 {
			c.in <- join(userMsg(uint32(i), fmt.Sprint("user#", i)), walletMsg(uint32(i), 0, 1, 0, time.Now()))
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Second)
		close(block)
		time.Sleep(time.Second)
		if got := calls(); len(got) != 2 || len(got[1].Owners) != 50 {
			t.Fatalf("%d calls", len(got))
		}
		// The same again is no change.
		c.in <- walletMsg(0, 0, 1, 0, time.Now().Add(-time.Hour))
		time.Sleep(time.Second)
		if len(calls()) != 2 {
			t.Fatal("an old event was told")
		}
	})
}

// TestRealSocket runs against a real WebSocket server that behaves like Core.
func TestRealSocket(t *testing.T) {
	t.Parallel()
	db := storetest.SQLite(t)
	frames := make(chan []byte, 10)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/accounting/notifications" || r.URL.RawQuery != "" || r.Header.Get("Authorization") != "" {
			t.Errorf("handshake %s %v", r.URL, r.Header)
		}
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.CloseNow() //nolint:errcheck // Core closes without a close frame
		kind, m, err := c.Read(r.Context())
		if err != nil || kind != websocket.MessageBinary {
			t.Errorf("first frame: %v, %v", kind, err)
			return
		}
		frames <- m
		if strings.HasSuffix(string(m), "t0") {
			return // a refused token
		}
		now := time.Now()
		big := strings.Repeat("x", 100)
		var members []string
		for i := range 3000 {
			members = append(members, fmt.Sprint(big, i))
		}
		// Larger than the library's own limit, and in several frames.
		wr, err := c.Writer(r.Context(), websocket.MessageBinary)
		if err != nil {
			return
		}
		for chunk := range slices.Chunk(join(projectMsg(0, "p-1", now, true, members...), categoryMsg(0, "storage"),
			walletMsg(0, 0, 9, walletIsProject, now)), 4096) {
			if _, err := wr.Write(chunk); err != nil {
				return
			}
		}
		if wr.Close() != nil {
			return
		}
		for {
			_, m, err := c.Read(r.Context())
			if err != nil {
				return
			}
			frames <- m
		}
	}))
	t.Cleanup(srv.Close)
	hc, err := coreapi.NewHTTPClient(coreapi.HTTPOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(hc.CloseIdleConnections)
	tokens := &fakeTokens{}
	s, err := New(Options{
		BaseURL: srv.URL, Provider: "hpc", HTTP: hc, Tokens: tokens, Store: db,
		Retry: coreapi.Backoff{Initial: 10 * time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	wg.Go(func() { _ = s.Run(ctx) })
	if m := <-frames; !strings.HasSuffix(string(m), "t0") {
		t.Fatalf("first frame %x", m)
	}
	if m := <-frames; !strings.HasSuffix(string(m), "t1") {
		t.Fatalf("the token was not renewed: %x", m)
	}
	testkit.Eventually(t, "the wallet is stored", func() bool {
		return db.View(t.Context(), func(tx *store.Tx) error {
			_, err := tx.Wallet(project1, "storage")
			return err
		}) == nil
	})
	if err := db.Update(t.Context(), func(tx *store.Tx) error { return tx.AddReplayUser("ada#1") }); err != nil {
		t.Fatal(err)
	}
	s.ReplayUsers()
	if m := <-frames; !reflect.DeepEqual(m, eventwire.AppendReplayUser(nil, "ada#1")) {
		t.Fatalf("frame %x", m)
	}
}
