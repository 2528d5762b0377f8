package devcore

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/providerapi/apischema"
)

// TestReplayDrives makes the recorded calls of an end user about drives one after the other, and compares with the
// recording what the provider gets and what the end user gets.
func TestReplayDrives(t *testing.T) {
	t.Parallel()
	sections := readRecording(t, "06-drives.md")
	r := recorded{first: map[string]any{}}
	r.decode(t, sections["The provider browses its drives"]["provider"].answer)
	files := recorded{first: map[string]any{}}
	browse := files.decode(t, readRecording(t, "07-files.md")["Browse a folder"]["Core"].body)
	var answer string
	var got exchange
	c, cs := newCore(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		got = exchange{method: req.Method, target: strings.Replace(req.URL.Path, "/rec/", "/recprov/", 1), body: string(body)}
		if id, ok := apischema.Provider(t).Find(req.Method, req.URL.Path); !ok {
			t.Errorf("%s %s is no call of Core", req.Method, req.URL.Path)
		} else {
			apischema.Provider(t).Request(t, id, body)
		}
		if strings.Contains(answer, `"statusCode": 400`) {
			w.WriteHeader(http.StatusBadRequest)
		}
		io.WriteString(w, answer)
	}))
	recordedDrives(t, c, browse)
	delete(c.drives, "10")
	c.change(func(s *providerapi.FSSupport) {
		s.Collection = providerapi.FSSupportCollection{ACLModifiable: true, UsersCanCreate: true, UsersCanDelete: true, UsersCanRename: true}
	})
	c.nextID = 6
	for _, title := range []string{"The user creates a drive", "The user renames it", "Labels", "The provider refuses a creation with 400", "The user deletes a drive"} {
		s := sections[title]
		user, core := s["end user"], s["Core"]
		if user.method == "" || core.method == "" {
			t.Fatalf("section %q: %+v", title, s)
		}
		if strings.Contains(title, "refuses") {
			c.nextID = 8
		}
		got, answer = exchange{}, core.answer
		req, err := http.NewRequest(user.method, cs.URL+user.target, strings.NewReader(user.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+c.Login("recuser"))
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if got.method != core.method || got.target != core.target {
			t.Fatalf("%s: the provider got %s %s, recorded %s %s; the end user got %s", title, got.method, got.target, core.method, core.target, body)
		}
		if title == "The user creates a drive" || strings.Contains(title, "refuses") || title == "The user renames it" {
			if diff := cmp.Diff(neutralDrive(plain(r.decode(t, core.body))), neutralDrive(plain(r.decode(t, got.body)))); diff != "" {
				t.Errorf("%s, to the provider (-recorded +ours):\n%s", title, diff)
			}
		}
		if diff := cmp.Diff(plain(r.decode(t, user.answer)), plain(r.decode(t, string(body)))); diff != "" {
			t.Errorf("%s, to the end user (-recorded +ours):\n%s", title, diff)
		}
	}
	if c.drives["7"] != nil || c.drives["9"] != nil {
		t.Error("a drive is left")
	}
}

// neutralDrive drops what depends on the moment, and what recording 06 and 07 describe with different features.
func neutralDrive(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if k == "createdAt" || k == "status" {
				delete(v, k)
				continue
			}
			neutralDrive(e)
		}
	case []any:
		for _, e := range v {
			neutralDrive(e)
		}
	}
	return v
}
