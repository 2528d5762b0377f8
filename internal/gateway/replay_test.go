package gateway

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"ucloud-im/internal/ident"
)

// coreCall does what UCloud/Core does for a call on behalf of a user, as recorded: a limit of 5 s for each request, no
// Content-Type, and after 449 or 503 a call of init, which carries the user's header too, a pause and the same request
// again, five times at most (contract 00 section 4). pause stands for Core's 500 ms.
func (f *fixture) coreCall(path, body string, pause time.Duration) (int, string) {
	f.t.Helper()
	send := func(path, body string) (int, string) {
		ctx, cancel := context.WithTimeout(f.t.Context(), 5*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, "POST", "http://"+f.address+path, strings.NewReader(body))
		if err != nil {
			f.t.Fatal(err)
		}
		req.Host = "birch.example.net"
		req.Header.Set("Authorization", bearer())
		req.Header.Set("Ucloud-Username", alice.HeaderValue())
		req.Header.Set("Accept-Encoding", "gzip")
		res, err := f.client.Do(req)
		if err != nil {
			return 502, ""
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			return 502, ""
		}
		return res.StatusCode, string(b)
	}
	for attempt := 0; ; attempt++ {
		status, answer := send(path, body)
		if status != 449 && status != 503 || attempt == 5 {
			return status, answer
		}
		send("/ucloud/birch/integration/init", `{"username":"Alice#1234"}`)
		time.Sleep(pause)
	}
}

// TestRecordedFaults plays recording 08 against the gateway: what Core did there leads, with our gateway between Core and
// the instance, to the result that Core's user should see, and to no repetition that would be wrong.
func TestRecordedFaults(t *testing.T) {
	t.Parallel()
	const folder, body = "/ucloud/birch/files/folder", `{"items":[{"id":"/4/n","conflictPolicy":"REJECT"}]}`
	const pause = 20 * time.Millisecond
	for _, tc := range []struct {
		name     string
		instance func(w http.ResponseWriter, n int) // nil: as usual; n counts from 1
		status   int
		calls    int // that the instance has seen
		inits    int // that IM/Server has seen
	}{
		{"as usual", nil, 200, 1, 0},
		{"502 is not repeated (7)", func(w http.ResponseWriter, _ int) { http.Error(w, `{"why":"bad gateway"}`, http.StatusBadGateway) }, http.StatusBadGateway, 1, 0},
		{"500 (9)", func(w http.ResponseWriter, _ int) {
			http.Error(w, `{"why":"internal"}`, http.StatusInternalServerError)
		}, 500, 1, 0},
		{"403 (11)", func(w http.ResponseWriter, _ int) { http.Error(w, `{"why":"not yours"}`, http.StatusForbidden) }, 403, 1, 0},
		{"402 (15)", func(w http.ResponseWriter, _ int) {
			http.Error(w, `{"why":"quota used up"}`, http.StatusPaymentRequired)
		}, 402, 1, 0},
		{"closed without an answer is not repeated (21)", func(w http.ResponseWriter, _ int) { panic(http.ErrAbortHandler) }, http.StatusBadGateway, 1, 0},
		{"slow, but within Core's time (23)", func(w http.ResponseWriter, _ int) {
			time.Sleep(200 * time.Millisecond)
			fmt.Fprint(w, "{}")
		}, 200, 1, 0},
		{"its own 503 once (4)", func(w http.ResponseWriter, n int) {
			if n == 1 {
				http.Error(w, `{"why":"starting"}`, http.StatusServiceUnavailable)
				return
			}
			fmt.Fprint(w, "{}")
		}, 200, 2, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			var mu sync.Mutex
			calls := 0
			f.alice.handle(func(w http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				mu.Lock()
				calls++
				n := calls
				mu.Unlock()
				if string(b) != body || r.Header.Get("Content-Type") != "" {
					t.Errorf("the instance saw %q, %v", b, r.Header)
				}
				if tc.instance == nil {
					fmt.Fprint(w, "{}")
					return
				}
				tc.instance(w, n)
			})
			status, answer := f.coreCall(folder, body, pause)
			mu.Lock()
			defer mu.Unlock()
			if status != tc.status || calls != tc.calls || len(f.server.seen()) != tc.inits {
				t.Errorf("got %d %q after %d calls and %d inits", status, answer, calls, len(f.server.seen()))
			}
		})
	}

	t.Run("no instance, init starts it (1)", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t, func(f *fixture, _ *Options) { f.settings.Hold.Disabled = true })
		route := f.routes.lookup(alice).route
		f.routes.Apply(Update{Full: true})
		f.server.handle(func(w http.ResponseWriter, r *http.Request) {
			f.routes.Apply(Update{Put: []Route{route}})
			fmt.Fprint(w, "{}")
		})
		if status, answer := f.coreCall(folder, body, pause); status != 200 || len(f.alice.seen()) != 1 {
			t.Errorf("got %d %q", status, answer)
		}
	})
	t.Run("449 for ever (3), the reason reaches the user", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t)
		f.routes.Apply(Update{Full: true})
		f.control.onWake(func(context.Context, ident.UCloudUser) (*Route, string, error) { return nil, "Connect again.", nil })
		status, answer := f.coreCall(folder, body, pause)
		if status != 449 || !strings.Contains(answer, `"why":"Connect again."`) || len(f.server.seen()) != 5 || f.control.wakeCount() != 6 {
			t.Errorf("got %d %q, %d inits, %d wakes", status, answer, len(f.server.seen()), f.control.wakeCount())
		}
	})
	t.Run("503 for ever (5): the port is dead", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t, func(f *fixture, _ *Options) { f.settings.Hold.Timeout = 100 * time.Millisecond })
		f.routeTo(freePort(t), 2, 1)
		status, _ := f.coreCall(folder, body, pause)
		if status != 503 || len(f.server.seen()) != 5 {
			t.Errorf("got %d, %d inits", status, len(f.server.seen()))
		}
	})
}
