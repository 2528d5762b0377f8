package intent_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/testkit/intentkit"
)

// TestOddClaims: values that are almost right.
func TestOddClaims(t *testing.T) {
	t.Parallel()
	w := newWorld(t, device().Public())
	signed := func(name string, value any) intent.Request {
		m := w.honest().Form1()
		m[name] = value
		return deletion(device().Sign(map[string]any{"typ": "JWT", "alg": "RS256"}, m))
	}
	for _, username := range []string{"alice#1234", "Alice#1234 ", "Alice#1234\u200b", "\uff21lice#1234", "Alice#1234\x00", "Alice", ""} {
		w.want(t, signed("username", username), intent.WrongUser)
	}
	for _, call := range []string{"Files.delete", "files.delete.", "files", "files.*", "*", "", "files.provider.hpc-example.delete", "DELETE /api/files"} {
		w.want(t, signed("call", call), intent.WrongCall)
	}
	for _, call := range []string{"ssh_keys", "ssh_keys.", "ssh_keysx.create", "SSH_keys.create"} {
		r := signed("call", call)
		r.Rule = intent.Rule{Calls: []string{"ssh_keys.*"}}
		w.want(t, r, intent.WrongCall)
	}
	// The largest times that have a form: whatever is added to them does not turn over.
	m := w.honest().Form1()
	m["iat"], m["exp"] = int64(1)<<53-30, int64(1)<<53
	w.want(t, deletion(device().Sign(map[string]any{"typ": "JWT", "alg": "RS256"}, m)), intent.Future)
	m["iat"] = 0
	w.want(t, deletion(device().Sign(map[string]any{"typ": "JWT", "alg": "RS256"}, m)), intent.Life)
	// The own workspace as an empty text, or left out, is that of null and no other.
	bodies := map[string]intent.Reason{
		`{"items":[{"owner":{"createdBy":"Alice#1234"}}]}`:                           intent.OK,
		`{"items":[{"owner":{"createdBy":"Alice#1234","project":""}}]}`:              intent.OK,
		`{"items":[{"owner":{"createdBy":"x","project":"` + project + `"}}]}`:        intent.Project,
		`{"items":[{"owner":{"createdBy":"x","project":{"id":"` + project + `"}}}]}`: intent.Payload,
	}
	for body, want := range bodies {
		for _, member := range []string{`,"project":null`, `,"project":""`, ``} {
			w.now = w.now.Add(time.Second)
			payload := fmt.Sprintf(`{"iat":%d,"exp":%d,"call":"files.delete","username":"Alice#1234"%s}`, w.now.Unix(), w.now.Unix()+30, member)
			r := deletion(device().Sign(map[string]any{"typ": "JWT", "alg": "RS256"}, payload))
			r.Rule.Owners, r.Body = []string{"items[]"}, []byte(body)
			w.want(t, r, want)
		}
	}
}

// named is a request in which drives have no documents.
func (w *world) named(form func(intentkit.Claims) string, workspace, body string) intent.Request {
	w.now = w.now.Add(time.Second) // another intent each time
	c := w.honest()
	c.Project = workspace
	return intent.Request{
		Rule:   intent.Rule{Calls: []string{"files.delete"}, Owners: []string{"items[]?"}, Drives: []string{"items[].specification.collection", "folder"}},
		Intent: form(c), Target: "DELETE files", Body: []byte(body),
	}
}

// TestNamedDrives: the workspace of a drive that has no document is what the provider knows.
//
//attack:actor compromised core
//attack:does Removes files in a project with what the user has signed for their own workspace, and leaves out whose they are.
//attack:control Of a drive that only its id names, the workspace is looked up and compared with the signed one.
//attack:remove internal/intent/drives.go: case known.Project == c.workspace(): => case known.Project != "-":
//attack:actor compromised core
//attack:does Writes the id of a drive so that the check does not find it and the call does.
//attack:control What names no drive where one must be named is refused.
//attack:remove internal/intent/drives.go: if !isDriveID(id) {\n\t\t\t\treturn Payload, => if false {\n\t\t\t\treturn Payload,
func TestNamedDrives(t *testing.T) {
	t.Parallel()
	w := newWorld(t, device().Public())
	w.drive = func(id string) (intent.Drive, bool, error) {
		switch id {
		case "4":
			return intent.Drive{Project: project}, true, nil
		case "6":
			return intent.Drive{}, true, nil
		case "7":
			return intent.Drive{}, false, errors.New("away")
		}
		return intent.Drive{}, false, nil
	}
	body := func(folder string, drives ...string) string {
		var items []string
		for _, d := range drives {
			items = append(items, `{"id":"/x","specification":{"collection":`+d+`}}`)
		}
		return `{"folder":"` + folder + `","items":[` + strings.Join(items, ",") + `]}`
	}
	for _, tc := range []struct {
		workspace, body string
		want            intent.Reason
	}{
		{project, body("/4/a", `"4"`), intent.OK},
		{project, body("/4", `"4"`, `4`), intent.OK},
		{"", body("/6", `"6"`), intent.OK},
		{"", body("/6"), intent.OK},
		{"", body("/99", `"99"`), intent.OK}, // not known here
		{"", body("/99", `"4"`), intent.Project},
		{"", body("/4"), intent.Project},
		{"", body("//4/a"), intent.Project},
		{"", body("/./4/a"), intent.Project},
		{"other", body("/4", `"6"`), intent.Project},
		{"", body("/4", `"6"`), intent.Workspaces},
		{project, body("/4", `"6"`, `"4"`), intent.Workspaces},
		{"", body("/../6"), intent.Payload},
		{"", body("/6", `""`), intent.Payload},
		{"", body("/6", `"-6"`), intent.Payload},
		{"", body("/6", `{"id":6}`), intent.Payload},
		{"", `{"folder":"/6","items":[{"id":"/6/a"}]}`, intent.Payload},
		{"", `{"folder":"/6","Folder":"/4","items":[]}`, intent.Payload},
		{"", `{"folder":"/6","items":[{"specification":{"collection":"6"},"Specification":{"collection":"4"}}]}`, intent.Payload},
		{"", `{"items":[]}`, intent.Payload},
	} {
		r := w.named(device().Form1, tc.workspace, tc.body)
		if v := w.check(t, r); v.Reason != tc.want {
			t.Errorf("workspace %q, %s: %q (%s), want %q", tc.workspace, tc.body, v.Reason, v.Detail(), tc.want)
		}
	}
	if _, err := w.Check(t.Context(), w.named(device().Form1, "", body("/7"))); !failure.Is(err, failure.Unavailable) {
		t.Errorf("the server is away: %v", err)
	}
}

// TestManyDrivesAreNotAskedFor: one request does not make the server look up any number of drives.
//
//attack:actor compromised core
//attack:does Names thousands of drives in one request, for each of which the instance asks the server.
//attack:control A request makes an instance ask for 32 drives at most, and for each once.
//attack:remove internal/intent/drives.go: if len(l.known) >= maxDrives { => if len(l.known) >= 1<<30 {
func TestManyDrivesAreNotAskedFor(t *testing.T) {
	t.Parallel()
	w := newWorld(t, device().Public())
	asked := 0
	w.drive = func(string) (intent.Drive, bool, error) {
		asked++
		return intent.Drive{}, false, nil
	}
	body := func(ids int) []byte {
		var items []string
		for i := range 2000 {
			items = append(items, fmt.Sprintf(`{"resolvedCollection":{"id":"%d","owner":{"createdBy":"Alice#1234"}}}`, 1+i%ids))
		}
		return []byte(`{"items":[` + strings.Join(items, ",") + `]}`)
	}
	r := w.named(device().Form1, "", "")
	r.Rule = intent.Rule{Calls: []string{"files.delete"}, Owners: []string{"items[].resolvedCollection"}}
	r.Body = body(2000)
	if _, err := w.Check(t.Context(), r); !failure.Is(err, failure.TooLarge) || asked > 32 {
		t.Errorf("%d questions: %v", asked, err)
	}
	asked = 0
	r.Body = body(20)
	w.want(t, r, intent.OK)
	if asked != 20 {
		t.Errorf("%d questions for 20 drives", asked)
	}
}

// TestTroubleIsNoWrongSignature: however often a new device tries while keys cannot be read, it keeps its key.
//
//attack:actor internet
//attack:does Keeps the server busy, so that the browsers of users who have just connected throw their keys away.
//attack:control A signature is not called wrong as long as the newest keys cannot be read, whatever the number of tries.
//attack:remove internal/intent/verify.go: case !v.fresh.known(now): => case !v.fresh.known(now) && false:
func TestTroubleIsNoWrongSignature(t *testing.T) {
	t.Parallel()
	w := newWorld(t, device().Public())
	w.fresh = []intent.Key{device().Public(), otherDevice().Public()}
	w.deaf = errors.New("the server is away")
	r := deletion(otherDevice().Form1(w.honest()))
	for range 12 {
		if v, err := w.Check(t.Context(), r); !failure.Is(err, failure.Unavailable) {
			t.Fatalf("%q, %v", v.Reason, err)
		}
	}
	if w.reads > 5 {
		t.Errorf("%d fresh looks", w.reads)
	}
	w.deaf = nil
	w.now = w.now.Add(41 * time.Second)
	w.want(t, r, intent.OK)
	w.want(t, deletion(tablet().Form1(w.honest())), intent.Malformed)
	w.want(t, deletion(weakDevice().Form1(w.honest())), intent.Signature)
}
