//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/accounts"
)

// search searches through Core, as the web client does, and gives the paths and whether the end was announced.
func (w *world) search(p *person, query, folder string, flags map[string]any) (ids []string, ended bool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, w.coreURL+"/api/files", nil)
	w.must(err)
	defer ws.CloseNow()
	ws.SetReadLimit(4 << 20)
	first, err := json.Marshal(map[string]any{
		"call": "files.streamingSearch", "streamId": "0", "bearer": w.core.Login(p.name), "project": nil,
		"payload": map[string]any{"query": query, "currentFolder": folder, "flags": flags},
	})
	w.must(err)
	w.must(ws.Write(ctx, websocket.MessageText, first))
	for {
		_, data, err := ws.Read(ctx)
		if err != nil {
			if code := websocket.CloseStatus(err); code != websocket.StatusNormalClosure {
				w.t.Errorf("the search ended with %v", err)
			}
			slices.Sort(ids)
			return ids, ended
		}
		var m struct {
			Type    string
			Payload providerapi.SearchAnswer
		}
		w.must(json.Unmarshal(data, &m))
		for _, f := range m.Payload.Batch {
			ids = append(ids, f.ID)
		}
		ended = ended || m.Payload.Type == providerapi.SearchEnd
	}
}

// stopInstance ends the instance of a user, so that the next one knows nothing.
func (w *world) stopInstance(p *person) {
	w.t.Helper()
	if _, err := w.cli("instances", "stop", string(p.name), "--yes"); err != nil {
		w.t.Fatal(err)
	}
}

// TestSearchAndUnknownDrives: searching and deleting name a drive by its id only. Both work in an instance that has never
// seen the drive, which they wake; and both keep to the drives of the user.
func TestSearchAndUnknownDrives(t *testing.T) {
	w := newWorld(t, settings{extra: "files: { searchExclude: [node_modules], searchMaxResults: 20 }\n"})
	ada, eve := w.addPerson("Ada#1815"), w.addPerson("Eve#1984")
	w.running(ada, eve)
	for _, p := range []*person{ada, eve} {
		for _, dir := range []string{"data/deep", "node_modules", "many", ".cache"} {
			w.must(os.MkdirAll(filepath.Join(p.account.Home, dir), 0o755))
		}
		for _, name := range []string{"data/Report A.txt", "data/deep/old report", "node_modules/report", ".cache/report", "victim"} {
			w.must(os.WriteFile(filepath.Join(p.account.Home, name), []byte("x"), 0o644))
		}
		for i := range 50 {
			w.must(os.WriteFile(filepath.Join(p.account.Home, fmt.Sprintf("many/hit%d", i)), nil, 0o644))
		}
		w.must(os.Symlink("/etc", filepath.Join(p.account.Home, "data", "report link")))
		w.must(filepath.Walk(p.account.Home, func(path string, _ os.FileInfo, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(path, int(p.account.UID), int(p.account.GID))
		}))
	}
	testkit.Eventually(t, "Core to know that drives can be searched", func() bool {
		_, ended := w.search(ada, "report", ada.home(), nil)
		return ended
	})

	w.stopInstance(ada)
	want := []string{ada.home() + "/data/Report A.txt", ada.home() + "/data/deep/old report", ada.home() + "/data/report link"}
	if got, ended := w.search(ada, "rePORT", ada.home(), map[string]any{"filterHiddenFiles": true}); !slices.Equal(got, want) || !ended {
		t.Errorf("found %q, end announced: %v", got, ended)
	}
	if got, ended := w.search(ada, "hit", ada.home()+"/many", nil); len(got) != 20 || !ended {
		t.Errorf("%d results of at most 20, end announced: %v", len(got), ended)
	}
	if got, ended := w.search(ada, "report", ada.home()+"/none", nil); len(got) != 0 || !ended {
		t.Errorf("of a folder that does not exist: %q, %v", got, ended)
	}
	if got, _ := w.search(ada, "report", eve.home(), nil); len(got) != 0 { // Core refuses
		t.Errorf("in another user's drive: %q", got)
	}

	remove := func(p *person, drive *person) answer {
		t.Helper()
		return w.send(http.MethodDelete, p.name, "/files", map[string]any{"items": []any{map[string]any{
			"id": drive.home() + "/victim", "createdAt": 0, "owner": map[string]any{"createdBy": p.name},
			"permissions":   map[string]any{"myself": []string{"READ", "EDIT"}},
			"specification": map[string]any{"collection": drive.drive, "product": map[string]any{}},
		}}}, nil)
	}
	w.stopInstance(ada)
	if got := remove(ada, eve); got.status != http.StatusNotFound || !strings.Contains(string(got.body), "workspace") {
		t.Errorf("delete in another user's drive: %d %s", got.status, got.body)
	}
	if got := remove(ada, ada); got.status != http.StatusOK {
		t.Errorf("delete in a drive that the instance has not seen: %d %s", got.status, got.body)
	}
	if _, err := os.Stat(filepath.Join(ada.account.Home, "victim")); err == nil {
		t.Error("it is still there")
	}
	if _, err := os.Stat(filepath.Join(eve.account.Home, "victim")); err != nil {
		t.Error(err)
	}

	// Straight at the gateway: the answer to the upgrade, and callers that are not Core.
	dial := func(token, hint string) (*websocket.Conn, *http.Response) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		header := http.Header{}
		if token != "" {
			header.Set("Authorization", "Bearer "+token)
		}
		ws, res, err := websocket.Dial(ctx, w.gateURL+"/ucloud/"+provider+"/files?usernameHint="+url.QueryEscape(hint), &websocket.DialOptions{HTTPHeader: header})
		if err != nil {
			return nil, res
		}
		return ws, res
	}
	if ws, res := dial(w.core.ServiceToken(), ada.name.HeaderValue()); ws == nil || res.Header.Get("ucloud-no-bearer") != "true" {
		t.Errorf("Core's upgrade: %+v", res)
	} else {
		ws.CloseNow()
	}
	if ws, res := dial("", ada.name.HeaderValue()); ws != nil || res == nil || res.StatusCode != http.StatusNotFound {
		t.Errorf("an upgrade without Core's token: %+v", res)
	}

	// A reload reaches the instance that runs: fewer results, and users may make drives from now on.
	before := accounts.Processes(ada.account.UID)
	file := filepath.Join(w.base, "config/config.yml")
	text, err := os.ReadFile(file)
	w.must(err)
	changed := strings.Replace(string(text), "searchMaxResults: 20", "searchMaxResults: 3", 1)
	changed = strings.Replace(changed, "      driveLocators:", "      userDrives: { locators: [home] }\n      driveLocators:", 1)
	w.must(os.WriteFile(file, []byte(changed), 0o600))
	if out, err := w.cli("config", "reload"); err != nil {
		t.Fatalf("reload: %v %s", err, out)
	}
	testkit.Eventually(t, "the new limit", func() bool { got, _ := w.search(ada, "hit", ada.home()+"/many", nil); return len(got) == 3 })
	testkit.Eventually(t, "Core to let users make drives", func() bool {
		return w.call(ada.name, http.MethodPost, "/api/files/collections", map[string]any{"items": []any{map[string]any{
			"title": "New", "product": map[string]string{"id": category, "category": category, "provider": provider},
		}}}, nil) == nil
	})
	if after := accounts.Processes(ada.account.UID); !slices.Equal(before, after) {
		t.Errorf("another instance: %v, before %v", after, before)
	}
}
