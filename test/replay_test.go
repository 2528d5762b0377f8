//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/testkit/storetest"
)

// recorded is one exchange of a recording of a real Core, in the direction Core → provider.
type recorded struct {
	file, title  string
	method, path string
	onBehalf     bool
	body         []byte
	status       string
}

var (
	sectionTitle = regexp.MustCompile(`(?m)^## (.*)$`)
	exchange     = regexp.MustCompile("(?s)\\*\\*Core → provider\\*\\* `([A-Z]+) ([^`]+)`([^\n]*)\n\n```\n(.*?)\n```\n\nAnswer `(\\d+)`")
)

// recordings reads the exchanges of some recordings. Bodies that were shortened ("<same as the first time…>") still
// decode: the shortened members are ones that a provider ignores.
func recordings(t *testing.T, names ...string) []recorded {
	t.Helper()
	var out []recorded
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join("../internal/providerapi/testdata/recordings", name))
		if err != nil {
			t.Fatal(err)
		}
		text := string(data)
		for _, m := range exchange.FindAllStringSubmatchIndex(text, -1) {
			group := func(i int) string { return text[m[2*i]:m[2*i+1]] }
			if strings.Contains(group(3), "fault injected") {
				continue // the answer was the recorder's, not a provider's
			}
			headers, body, _ := strings.Cut(group(4), "\n\n")
			titles := sectionTitle.FindAllStringSubmatch(text[:m[0]], -1)
			title := ""
			if len(titles) > 0 {
				title = titles[len(titles)-1][1]
			}
			out = append(out, recorded{
				file: name, title: title, method: group(1), path: group(2), body: []byte(body), status: group(5),
				onBehalf: strings.Contains(headers, "Ucloud-Username:"),
			})
		}
	}
	return out
}

// TestRecordingsReplay sends what a real Core has sent, to the byte where it matters, and checks the answers against
// the description. The recordings' user and drive become ours.
func TestRecordingsReplay(t *testing.T) {
	w := newWorld(t, settings{})
	ada := w.addPerson("recuser")
	w.running(ada)
	w.must(os.WriteFile(filepath.Join(ada.account.Home, "a.txt"), []byte("abc"), 0o644))
	w.must(os.Mkdir(filepath.Join(ada.account.Home, "sub"), 0o755))
	drive, err := json.Marshal(w.driveOf(ada))
	w.must(err)

	covered := map[string]int{}
	for _, r := range recordings(t, "02-token-refresh.md", "03-products.md", "05-connect.md", "07-files.md", "08-provider-faults.md") {
		path := strings.TrimPrefix(r.path, "/ucloud/recprov")
		served := path == "/files/browse" || path == "/files/retrieve" || path == "/files/folder" ||
			strings.HasPrefix(path, "/integration/") || strings.HasSuffix(path, "/retrieveProducts") || strings.HasPrefix(path, "/provider/branding/")
		if !served || strings.HasPrefix(path, "/integration/unlinked") {
			continue
		}
		body := withDrive(t, r.body, drive, ada.drive)
		var who ident.UCloudUser
		if r.onBehalf {
			who = ada.name
		}
		if path == "/integration/connect" && bytes.Contains(body, []byte("recadmin")) {
			continue // the recording's administrator is nobody here
		}
		name := fmt.Sprintf("%s %s: %s", r.file, r.title, path)
		got := w.send(r.method, who, path, body, func(req *http.Request) {
			req.Header.Set("User-Agent", "Go-http-client/1.1")
			req.Header.Set("Accept-Encoding", "gzip")
		})
		if fmt.Sprint(got.status) != r.status {
			t.Errorf("%s: %d %s, recorded %s\nrequest: %s", name, got.status, got.body, r.status, body)
		}
		covered[path]++
	}
	for _, path := range []string{"/files/browse", "/files/retrieve", "/files/folder", "/integration/connect", "/integration/retrieveManifest", "/files/collections/retrieveProducts"} {
		if covered[path] == 0 {
			t.Errorf("no recording of %s was replayed", path)
		}
	}
	// init, with the header that Core attaches to it (recording 08).
	if got := w.raw(ada.name, "/integration/init", []byte(`{"username":"recuser"}`), nil); got.status != http.StatusOK || strings.TrimSpace(string(got.body)) != "{}" {
		t.Errorf("init: %d %s", got.status, got.body)
	}
	if got := w.raw(ada.name, "/integration/init", []byte(`{"username":"somebody"}`), nil); got.status != http.StatusBadRequest && got.status != http.StatusForbidden {
		t.Errorf("init for another user than the header's: %d %s", got.status, got.body)
	}
}

// withDrive puts our drive in place of the recording's, and its id in place of theirs in paths.
func withDrive(t *testing.T, body, drive []byte, id ident.DriveID) []byte {
	t.Helper()
	if len(bytes.TrimSpace(body)) == 0 {
		return nil
	}
	var doc any
	if err := json.Unmarshal(body, &doc); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	path := regexp.MustCompile(`^/(4|10)(/|$)`)
	var walk func(any) any
	walk = func(v any) any {
		switch v := v.(type) {
		case map[string]any:
			for k, e := range v {
				if k == "resolvedCollection" {
					v[k] = json.RawMessage(drive)
				} else {
					v[k] = walk(e)
				}
			}
		case []any:
			for i := range v {
				v[i] = walk(v[i])
			}
		case string:
			return path.ReplaceAllString(v, "/"+string(id)+"$2")
		}
		return v
	}
	out, err := json.Marshal(walk(doc))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestPostgres runs the story with PostgreSQL as the database, whose password is a secret like those of TestCanaries.
func TestPostgres(t *testing.T) {
	o := storetest.PostgresOptions(t)
	p := o.Postgres
	w := newWorld(t, settings{
		database: "type: postgres",
		server: fmt.Sprintf("database:\n  host: { address: %q, port: %d }\n  database: %s\n  username: %s\n  password: %q\n  sslMode: disable\n",
			p.Host, p.Port, p.Database, p.User, p.Password.Reveal()),
	})
	ada := w.addPerson("Ada#1815")
	w.running(ada)
	watch := &witness{seen: map[string]string{}}
	uids := map[uint32]bool{uint32(w.site.Service.UID): true, uint32(ada.account.UID): true} //nolint:gosec // uids fit
	watch.look(uids)
	starts := w.server.startCount()
	w.server.signal(9)
	w.waitServer(starts)
	watch.look(uids)
	if _, err := w.browse(ada, ada.home()); err != nil {
		t.Error(err)
	}
	w.cleanMapping(ada)

	password := p.Password.Reveal()
	secrets := &canaries{t: t, secrets: map[string]string{}}
	secrets.add("the database's password in an address", url.QueryEscape(password))
	secrets.add("the beginning of the database's password", password[:9]) // what follows could be quoted in many ways
	if len(watch.seen) < 4 {
		t.Errorf("only %d arguments and environments were seen", len(watch.seen))
	}
	for text, where := range watch.seen {
		secrets.look(where, []byte(text))
	}
	secrets.look("the server's log", w.server.out.all())
	secrets.look("the gateway's log", w.gateway.out.all())
}

// cleanMapping removes a person as an operator would.
func (w *world) cleanMapping(p *person) {
	w.t.Helper()
	if _, err := w.cli("users", "remove", string(p.name), "--yes"); err != nil {
		w.t.Error(err)
	}
}
