package coreapi

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/providerapi/apischema"
)

func optional(s string) *string { return &s }

func percentage(p float64) *float64 { return &p }

// withoutClock drops the time of a post, which Core ignores.
func withoutClock(t *testing.T, body string) string {
	t.Helper()
	var v struct {
		Update map[string]json.RawMessage `json:"update"`
	}
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		t.Fatal(err)
	}
	delete(v.Update, "modifiedAt")
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestReplayTasks(t *testing.T) {
	t.Parallel()
	const file = "13-tasks.md"
	copying := providerapi.CreateTask{
		User: "recuser", Title: optional("Copying files"), Body: optional("a → b"), Progress: optional("Starting"), Icon: optional("copy"),
		TaskSpecification: providerapi.TaskSpecification{CanPause: true, CanCancel: true},
	}
	if id, err := replay(t, recording(t, file, 1)).CreateTask(t.Context(), copying); err != nil || id != 1 {
		t.Fatalf("create: %d, %v", id, err)
	}
	if _, err := replay(t, recording(t, file, 9)).CreateTask(t.Context(), providerapi.CreateTask{User: "nobody-here", Title: optional("x")}); Status(err) != 404 {
		t.Fatalf("unknown user: %v", err)
	}
	// An answer about somebody else's task must not become the id of ours.
	copying.User = "somebody"
	other := recording(t, file, 1)
	other.request = strings.Replace(other.request, "recuser", "somebody", 1)
	if id, err := replay(t, other).CreateTask(t.Context(), copying); !errors.Is(err, ErrNoAnswer) {
		t.Fatalf("another user's task: %d, %v", id, err)
	}
	if _, err := replay(t).CreateTask(t.Context(), providerapi.CreateTask{}); !errors.Is(err, ErrNotSent) {
		t.Fatalf("no user: %v", err)
	}

	for section, status := range map[int]providerapi.TaskStatus{
		2:  {State: providerapi.TaskRunning, Title: optional("Copying files"), Body: optional("a → b"), Progress: optional("1/2"), Percentage: percentage(50)},
		8:  {State: providerapi.TaskRunning},
		13: {State: providerapi.TaskFailure, Title: optional("Two"), Body: optional("no space"), Progress: optional("Failed"), Percentage: percentage(-1)},
	} {
		rec := recording(t, file, section)
		coreID, want := int64(1), 200
		switch section {
		case 8:
			coreID, want = 99999, 404
		case 13:
			coreID = 2
		}
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			apischema.Core(t).Request(t, "tasks.postStatus", body)
			if got, want := withoutClock(t, string(body)), withoutClock(t, rec.request); mustNormal(t, got) != mustNormal(t, want) {
				t.Errorf("section %d: sent %s, recorded %s", section, got, want)
			}
			if r.Method != rec.method || r.URL.Path != rec.target {
				t.Errorf("section %d: %s %s", section, r.Method, r.URL.Path)
			}
			w.WriteHeader(rec.status)
			_, _ = io.WriteString(w, rec.response)
		}))
		err := testClient(t, srv.URL, staticToken("access.token.sig")).PostTaskStatus(t.Context(), coreID, status)
		srv.Close()
		if want == 200 && err != nil || want != 200 && Status(err) != want {
			t.Errorf("section %d: %v", section, err)
		}
	}
}

func mustNormal(t *testing.T, s string) string {
	raw, err := json.Marshal(normal(t, []byte(s)))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
