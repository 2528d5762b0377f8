package taskapi

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/files"
	"ucloud-im/internal/fileserver"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi/apischema"
	"ucloud-im/internal/tasks"
)

var _ Controller = (*tasks.Manager)(nil)

// controller notes what is asked for.
type controller struct {
	asked []string
	err   error
}

func (c *controller) Control(_ context.Context, coreID int64, state string) error {
	c.asked = append(c.asked, fmt.Sprint(coreID, " ", state))
	return c.err
}

const (
	user = ident.UCloudUser("AdaLovelace#4821")
	path = "/ucloud/hpc-example/tasks/pauseOrCancel"
)

// server is an instance with the route alone.
func server(t *testing.T, c Controller) func(body string, change func(*hoptoken.Claims)) *httptest.ResponseRecorder {
	t.Helper()
	key := hoptoken.NewKey()
	log := slog.New(slog.DiscardHandler)
	route := Route(c)
	svc := files.New(files.Options{Provider: "hpc-example", Log: log, Timeout: time.Minute})
	t.Cleanup(func() { _ = svc.Close(context.Background()) })
	h := fileserver.New(fileserver.Options{
		Provider: "hpc-example", Files: svc, Log: log, Routes: []fileserver.Route{route},
		Start: ipcapi.Start{Provider: "hpc-example", User: user, UID: 61021, HopKey: key[:]},
	})
	return func(body string, change func(*hoptoken.Claims)) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
		r.Header.Set(ident.HeaderUser, user.HeaderValue())
		claims := hoptoken.Claims{
			UID: 61021, User: user, Method: http.MethodPost, Path: path, RequestID: "0123456789abcdef", Arrival: time.Now(),
			Class: hoptoken.ClassCore,
		}
		if change != nil {
			change(&claims)
		}
		r.Header.Set(hoptoken.Header, hoptoken.Mint(key, claims))
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		return rec
	}
}

func TestPauseOrCancel(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		body  string
		err   error
		want  int
		asked string
	}{
		{`{"id": 1, "requestedState": "SUSPENDED"}`, nil, 200, "[1 SUSPENDED]"},
		{`{"id": 7710, "requestedState": "CANCELLED"}`, nil, 200, "[7710 CANCELLED]"},
		{`{"id": 7710, "requestedState": "RUNNING"}`, nil, 200, "[7710 RUNNING]"},
		{`{"id": 7710, "requestedState": "CANCELLED"}`, failure.New(failure.NotFound, "no"), 404, "[7710 CANCELLED]"},
		{`{"id": 7710, "requestedState": "SUSPENDED"}`, failure.New(failure.Invalid, "no"), 400, "[7710 SUSPENDED]"},
		{`{"id": 7710, "requestedState": "RUNNING"}`, failure.New(failure.Unavailable, "no"), 503, "[7710 RUNNING]"},
		{`{"id": 7710, "requestedState": "SUCCESS"}`, nil, 400, "[]"},
		{`{"id": 7710, "requestedState": "IN_QUEUE"}`, nil, 400, "[]"},
		{`{"id": 7710}`, nil, 400, "[]"},
		{`{"id": 0, "requestedState": "CANCELLED"}`, nil, 404, "[]"},
		{`{"id": -5, "requestedState": "CANCELLED"}`, nil, 404, "[]"},
		{`{"id": "7710", "requestedState": "CANCELLED"}`, nil, 400, "[]"},
		{`{"id": 9223372036854775808, "requestedState": "CANCELLED"}`, nil, 400, "[]"},
		{`[`, nil, 400, "[]"},
		{`{"id": 1, "x": "` + strings.Repeat("x", maxBody) + `"}`, nil, 413, "[]"},
	} {
		c := &controller{err: tc.err}
		rec := server(t, c)(tc.body, nil)
		if rec.Code != tc.want || fmt.Sprint(c.asked) != tc.asked {
			t.Errorf("%.80s: %d, asked %v", tc.body, rec.Code, c.asked)
		}
		if rec.Code == 200 {
			apischema.Provider(t).Response(t, "tasks.pauseOrCancel", rec.Body.Bytes())
		} else {
			apischema.Provider(t).Error(t, rec.Body.Bytes())
		}
	}
}

// Only Core may call it, for this user.
func TestGuarded(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*hoptoken.Claims){
		"browser":      func(c *hoptoken.Claims) { c.Class = hoptoken.ClassBrowser },
		"another user": func(c *hoptoken.Claims) { c.User = "Bob#1" },
		"another uid":  func(c *hoptoken.Claims) { c.UID = 1 },
	} {
		c := &controller{}
		if rec := server(t, c)(`{"id": 1, "requestedState": "CANCELLED"}`, change); rec.Code < 400 || len(c.asked) > 0 {
			t.Errorf("%s: %d, asked %v", name, rec.Code, c.asked)
		}
	}
}

// The example of the contract.
func TestGoldenExample(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../providerapi/testdata/examples/provider/tasks.pauseOrCancel.json")
	if err != nil {
		t.Fatal(err)
	}
	var ex struct {
		Method, Path string
		Request      json.RawMessage
		Response     json.RawMessage
	}
	if err := json.Unmarshal(raw, &ex); err != nil {
		t.Fatal(err)
	}
	c := &controller{}
	rec := server(t, c)(string(ex.Request), nil)
	if ex.Path != path || ex.Method != http.MethodPost || rec.Code != 200 || strings.TrimSpace(rec.Body.String()) != strings.TrimSpace(string(ex.Response)) {
		t.Errorf("%s %s: %d %s", ex.Method, ex.Path, rec.Code, rec.Body)
	}
	if fmt.Sprint(c.asked) != "[7710 CANCELLED]" {
		t.Errorf("asked %v", c.asked)
	}
}
