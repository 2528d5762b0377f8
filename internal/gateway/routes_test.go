package gateway

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
)

func users(t *Table) []string {
	var out []string
	for _, r := range t.Routes() {
		out = append(out, string(r.User))
	}
	return out
}

func TestTableUpdates(t *testing.T) {
	t.Parallel()
	tab := NewTable(slog.New(slog.DiscardHandler))
	put := func(names ...ident.UCloudUser) (out []Route) {
		for i, n := range names {
			out = append(out, Route{User: n, Port: 42001 + i, ID: uint64(i + 1)})
		}
		return out
	}
	for _, step := range []struct {
		u    Update
		want []string
	}{
		{Update{Put: put("a", "b")}, []string{"a", "b"}},
		{Update{Put: put("c"), Remove: []ident.UCloudUser{"a", "x"}}, []string{"b", "c"}},
		{Update{Full: true, Put: put("d", "b")}, []string{"b", "d"}},
		{Update{Full: true}, nil},
	} {
		tab.Apply(step.u)
		if got := users(tab); !slices.Equal(got, step.want) {
			t.Errorf("after %+v: %q, want %q", step.u, got, step.want)
		}
	}
}

func TestUnchangedRouteKeepsItsConnections(t *testing.T) {
	t.Parallel()
	tab := NewTable(slog.New(slog.DiscardHandler))
	r := Route{User: alice, Port: 42001, ID: 1, Generation: 1}
	tab.Apply(Update{Put: []Route{r}})
	in := tab.lookup(alice)
	tab.Apply(Update{Full: true, Put: []Route{r}}) // the server has come back
	if tab.lookup(alice) != in {
		t.Error("the entry was replaced")
	}
	for _, change := range []func(*Route){
		func(r *Route) { r.Generation++ }, func(r *Route) { r.ID++ }, func(r *Route) { r.Port++ }, func(r *Route) { r.UID++ }, func(r *Route) { r.Key[0]++ },
	} {
		before := tab.lookup(alice)
		next := before.route
		change(&next)
		tab.Apply(Update{Put: []Route{next}})
		if tab.lookup(alice) == before || before.begin(nil) == nil {
			t.Errorf("%+v: the old entry is still in use", next)
		}
	}
}

func TestRouteFile(t *testing.T) {
	t.Parallel()
	var log logBuffer
	tab := NewTable(slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	key := hoptoken.NewKey()
	tab.Apply(Update{Put: []Route{{User: alice, UID: 20001, Port: 42001, Key: key, ID: 7, Generation: 3}, {User: bob, UID: 20002, Port: 42002, ID: 8}}})
	path := filepath.Join(t.TempDir(), "routes.json")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { tab.Keep(ctx, path) })
	eventually(t, "the file is written", func() bool { _, err := os.Stat(path); return err == nil })
	tab.Apply(Update{Remove: []ident.UCloudUser{bob}})
	cancel()
	wg.Wait()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("file: %v, %v", st, err)
	}
	if names, _ := os.ReadDir(filepath.Dir(path)); len(names) != 1 {
		t.Errorf("left over: %v", names)
	}
	again := NewTable(slog.New(slog.NewJSONHandler(&log, nil)))
	if err := again.Load(path); err != nil {
		t.Fatal(err)
	}
	if got := again.Routes(); len(got) != 1 || got[0] != tab.Routes()[0] || got[0].Key != key {
		t.Errorf("got %+v", got)
	}
	slog.New(slog.NewTextHandler(&log, nil)).Info("route", "route", again.Routes()[0])
	if strings.Contains(log.String(), string(key[:])) || strings.Contains(log.String(), "key=") {
		t.Error("the key is in the log")
	}

	for name, spoil := range map[string]func(){
		"readable by others": func() { os.Chmod(path, 0o640) },
		"not JSON":           func() { os.WriteFile(path, []byte("{"), 0o600) },
		"other version":      func() { os.WriteFile(path, []byte(`{"version":2}`), 0o600) },
		"short key": func() {
			os.WriteFile(path, []byte(`{"version":1,"routes":[{"user":"a","port":1,"key":"AA=="}]}`), 0o600)
		},
		"symbolic link": func() {
			os.Rename(path, path+".real")
			os.Symlink(path+".real", path)
		},
	} {
		os.Remove(path)
		if err := tab.Save(path); err != nil {
			t.Fatal(err)
		}
		spoil()
		fresh := NewTable(slog.New(slog.DiscardHandler))
		if err := fresh.Load(path); err == nil || fresh.Len() != 0 {
			t.Errorf("%s: %v, %d routes", name, err, fresh.Len())
		}
	}
	if err := NewTable(slog.New(slog.DiscardHandler)).Load(path + ".none"); err != nil {
		t.Errorf("missing file: %v", err)
	}
}

func FuzzRouteFile(f *testing.F) {
	f.Add([]byte(`{"version":1,"routes":[{"user":"a","uid":1,"port":42001,"key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","id":1,"generation":1}]}`))
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		tab := NewTable(slog.New(slog.DiscardHandler))
		if tab.Load(path) != nil && tab.Len() != 0 {
			t.Fatal("a broken file was used in part")
		}
		for _, r := range tab.Routes() {
			if r.User == "" || r.Port < 1 || r.Port > 65535 {
				t.Fatalf("bad route %+v", r)
			}
		}
	})
}
