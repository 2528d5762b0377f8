package devcore

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/providerapi/apischema"
)

// exchange is a request with its answer in a recording.
type exchange struct {
	method, target string
	body           string
	status         string
	answer         string
}

var (
	sectionTitle = regexp.MustCompile(`(?m)^## \d+\. (.*)$`)
	exchangeLine = regexp.MustCompile("\\*\\*(end user|Core|provider) → (Core|provider)\\*\\* `([A-Z]+) ([^`]+)`")
	fenced       = regexp.MustCompile("(?s)```\\w*\n(.*?)```")
	answerLine   = regexp.MustCompile("Answer `(\\d+)`")
)

// readRecording gives the exchanges of each section by title: of the end user with Core, and of Core with the provider.
func readRecording(t *testing.T, name string) map[string]map[string]exchange {
	t.Helper()
	data, err := os.ReadFile("../providerapi/testdata/recordings/" + name)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	out := map[string]map[string]exchange{}
	titles := sectionTitle.FindAllStringSubmatchIndex(text, -1)
	for i, at := range titles {
		end := len(text)
		if i+1 < len(titles) {
			end = titles[i+1][0]
		}
		section, title := text[at[1]:end], text[at[2]:at[3]]
		out[title] = map[string]exchange{}
		lines := exchangeLine.FindAllStringSubmatchIndex(section, -1)
		for j, l := range lines {
			end := len(section)
			if j+1 < len(lines) {
				end = lines[j+1][0]
			}
			part := section[l[1]:end]
			e := exchange{method: section[l[6]:l[7]], target: section[l[8]:l[9]]}
			blocks := fenced.FindAllStringSubmatch(part, -1)
			if len(blocks) != 2 {
				continue
			}
			_, e.body, _ = strings.Cut(blocks[0][1], "\n\n")
			e.status, e.answer = answerLine.FindStringSubmatch(part)[1], blocks[1][1]
			out[title][section[l[2]:l[3]]] = e
		}
	}
	return out
}

// readSection is the text of one section.
func readSection(t *testing.T, name, title string) string {
	t.Helper()
	data, err := os.ReadFile("../providerapi/testdata/recordings/" + name)
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(data), ". "+title+"\n")
	if !ok {
		t.Fatalf("no section %q in %s", title, name)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	return text
}

// recorded decodes a body of a recording: what is only hinted at the second time is put in from the first.
type recorded struct{ first map[string]any }

func (r *recorded) decode(t *testing.T, text string) any {
	t.Helper()
	if strings.TrimSpace(text) == "" {
		return nil
	}
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	r.collect(v)
	return r.expand(v)
}

const sameAsFirst = "<same as the first time in this file>"

// collect keeps what is hinted at later.
func (r *recorded) collect(v any) {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range []string{"resolvedSupport", "resolvedProduct", "resolvedApplication", "jobParametersJson"} {
			if e, ok := v[k].(map[string]any); ok && r.first[k] == nil {
				r.first[k] = e
			}
		}
		for _, e := range v {
			r.collect(e)
		}
	case []any:
		for _, e := range v {
			r.collect(e)
		}
	}
}

func (r *recorded) expand(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if e == sameAsFirst {
				v[k] = r.first[k]
				continue
			}
			v[k] = r.expand(e)
		}
	case []any:
		for i := range v {
			v[i] = r.expand(v[i])
		}
	}
	return v
}

// plain drops what means the same as absence on this wire: null, and empty lists and maps.
func plain(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, e := range v {
			if p := plain(e); p != nil {
				out[k] = p
			}
		}
		if len(out) == 0 {
			return nil
		}
		return out
	case []any:
		out := make([]any, 0, len(v))
		for _, e := range v {
			out = append(out, plain(e))
		}
		if len(out) == 0 {
			return nil
		}
		return out
	case string:
		if v == "" {
			return nil
		}
	}
	return v
}

// recordedDrives makes the simulator know the drives of recording 07.
func recordedDrives(t *testing.T, c *Core, browse any) {
	t.Helper()
	decode := func(v, into any) {
		t.Helper()
		data, err := json.Marshal(v)
		if err == nil {
			err = json.Unmarshal(data, into)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var home providerapi.Drive
	resolved := browse.(map[string]any)["resolvedCollection"].(map[string]any)
	decode(resolved, &home)
	var support resolvedSupport
	decode(resolved["status"].(map[string]any)["resolvedSupport"], &support)
	home.Status = providerapi.DriveStatus{}
	home.Permissions.Myself = nil
	second := home
	second.ID, second.CreatedAt, second.ProviderGeneratedID, second.Specification.Title = "10", 1795447960334, "", "My drive"
	c.AddUser("recuser")
	c.AddUser("other")
	c.drives["4"], c.drives["10"] = &home, &second
	c.categories["rec-storage"] = &category{products: map[string]providerapi.Product{"rec-storage": support.Product}}
	c.support.storage = map[string]providerapi.FSSupport{"rec-storage": support.Support}
}

// TestReplayFiles makes each recorded call of an end user and compares with the recording what the provider gets and
// what the end user gets.
func TestReplayFiles(t *testing.T) {
	t.Parallel()
	sections := readRecording(t, "07-files.md")
	r := recorded{first: map[string]any{}}
	first := r.decode(t, sections["Browse a folder"]["Core"].body)
	done := 0
	for title, s := range sections {
		user, core := s["end user"], s["Core"]
		if user.method == "" || strings.HasPrefix(user.target, "/api/jobs/") || user.target == "/api/files/transfer" || user.target == "/api/files/search" ||
			strings.HasPrefix(title, "A user without") {
			continue
		}
		done++
		t.Run(title, func(t *testing.T) {
			var got exchange
			c, cs := newCore(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				body, _ := io.ReadAll(req.Body)
				got = exchange{method: req.Method, target: strings.Replace(req.URL.Path, "/rec/", "/recprov/", 1), body: string(body)}
				if user := req.Header.Get(ident.HeaderUser); user != "cmVjdXNlcg==" {
					t.Errorf("user header %q", user)
				}
				if id, ok := apischema.Provider(t).Find(req.Method, req.URL.Path); !ok {
					t.Errorf("%s %s is no call of Core", req.Method, req.URL.Path)
				} else {
					apischema.Provider(t).Request(t, id, body)
				}
				io.WriteString(w, core.answer)
			}))
			recordedDrives(t, c, first)
			req, err := http.NewRequest(user.method, cs.URL+user.target, strings.NewReader(user.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+c.Login("recuser"))
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			answer, _ := io.ReadAll(res.Body)
			if got.method != core.method || got.target != core.target {
				t.Fatalf("the provider got %s %s, recorded %s %s; the end user got %s", got.method, got.target, core.method, core.target, answer)
			}
			if diff := cmp.Diff(plain(r.decode(t, core.body)), plain(r.decode(t, got.body))); diff != "" {
				t.Errorf("to the provider (-recorded +ours):\n%s", diff)
			}
			if diff := cmp.Diff(plain(r.decode(t, user.answer)), plain(r.decode(t, string(answer)))); diff != "" {
				t.Errorf("to the end user (-recorded +ours):\n%s", diff)
			}
		})
	}
	if done < 12 {
		t.Errorf("only %d sections were replayed", done)
	}
}

// TestCoreChecks: what Core refuses never reaches the provider (contract 10 section 4).
func TestCoreChecks(t *testing.T) {
	t.Parallel()
	sections := readRecording(t, "07-files.md")
	r := recorded{first: map[string]any{}}
	browse := r.decode(t, sections["Browse a folder"]["Core"].body)
	item := func(id string) string { return `{"items":[{"id":"` + id + `"}]}` }
	pair := func(from, to string) string {
		return `{"items":[{"oldId":"` + from + `","newId":"` + to + `","conflictPolicy":"REJECT"}]}`
	}
	readOnly := func(c *Core) { c.change(func(s *providerapi.FSSupport) { s.Files.IsReadOnly = true }) }
	for _, tc := range []struct {
		name, who, method, target, body string
		prepare                         func(c *Core)
		want                            int
	}{
		{name: "stranger browses", who: "other", method: "GET", target: "/api/files/browse?path=%2F4", want: 403},
		{name: "no path", method: "GET", target: "/api/files/browse", want: 400},
		{name: "unknown drive", method: "GET", target: "/api/files/browse?path=%2F99", want: 403},
		{name: "dots lead to another drive", method: "GET", target: "/api/files/retrieve?id=" + url.QueryEscape("/4/../99/x"), want: 403},
		{name: "stranger downloads", who: "other", method: "POST", target: "/api/files/download", body: item("/4/a"), want: 403},
		{name: "stranger uploads", who: "other", method: "POST", target: "/api/files/upload", body: item("/4/a"), want: 403},
		{name: "second item is not allowed", method: "POST", target: "/api/files/trash", body: `{"items":[{"id":"/4/a"},{"id":"/99/a"}]}`, want: 403},
		{name: "move out of a foreign drive", method: "POST", target: "/api/files/move", body: pair("/99/a", "/4/a"), want: 403},
		{name: "copy into a foreign drive", method: "POST", target: "/api/files/copy", body: pair("/4/a", "/99/a"), want: 403},
		{name: "folder, read-only", method: "POST", target: "/api/files/folder", body: item("/4/a"), prepare: readOnly, want: 403},
		{name: "upload, read-only", method: "POST", target: "/api/files/upload", body: item("/4/a"), prepare: readOnly, want: 403},
		{name: "delete, read-only", method: "DELETE", target: "/api/files", body: item("/4/a"), prepare: readOnly, want: 403},
		{
			name: "trash before the first poll", method: "POST", target: "/api/files/trash", body: item("/4/a"),
			prepare: func(c *Core) { c.support.storage = nil }, want: 404,
		},
		{
			name: "no trash", method: "POST", target: "/api/files/emptyTrash", body: item("/4/Trash"),
			prepare: func(c *Core) { c.change(func(s *providerapi.FSSupport) { s.Files.TrashSupported = false }) }, want: 404,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c, cs := newCore(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s reached the provider", r.URL) }))
			recordedDrives(t, c, browse)
			if tc.prepare != nil {
				tc.prepare(c)
			}
			if tc.who == "" {
				tc.who = "recuser"
			}
			req, err := http.NewRequest(tc.method, cs.URL+tc.target, strings.NewReader(tc.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+c.Login(ident.UCloudUser(tc.who)))
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body, _ := io.ReadAll(res.Body)
			if res.StatusCode != tc.want {
				t.Errorf("%d %s, want %d", res.StatusCode, body, tc.want)
			}
			apischema.Core(t).Error(t, body)
		})
	}
}

// change alters what the provider has announced.
func (c *Core) change(f func(*providerapi.FSSupport)) {
	s := c.support.storage["rec-storage"]
	f(&s)
	c.support.storage = map[string]providerapi.FSSupport{"rec-storage": s}
}

// TestResponseCount: sessions without one response per item are no good, and the provider is blamed.
func TestResponseCount(t *testing.T) {
	t.Parallel()
	sections := readRecording(t, "07-files.md")
	r := recorded{first: map[string]any{}}
	c, cs := newCore(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"responses":[{"endpoint":"http://x/"}]}`)
	}))
	recordedDrives(t, c, r.decode(t, sections["Browse a folder"]["Core"].body))
	token := c.Login("recuser")
	if status, body, err := post(t, cs.URL+"/api/files/download", token, `{"items":[{"id":"/4/a"},{"id":"/4/b"}]}`); err != nil || status != http.StatusBadGateway {
		t.Errorf("%d %s %v", status, body, err)
	}
	if len(c.Violations()) != 1 {
		t.Errorf("violations %v", c.Violations())
	}
	if status, body, err := post(t, cs.URL+"/api/files/download", token, `{"items":[{"id":"/4/a"}]}`); err != nil || status != http.StatusOK || !bytes.Contains([]byte(body), []byte("http://x/")) {
		t.Errorf("%d %s %v", status, body, err)
	}
}
