package scripts

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/testkit"
)

// goldenRequest has a hook called by a program that keeps what it is asked, and compares that with a file. What differs
// from call to call is taken out.
func goldenRequest(t *testing.T, hook string, request, reply any, answer string) {
	t.Helper()
	s := newSite(t, nil)
	h := s.hook(t, hook, `cat > "`+s.dir+`/asked"; cat <<'END'
`+answer+`
END`, nil)
	if err := h.Call(t.Context(), Call{Key: "k", Request: request}, reply); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(s.dir, "asked"))
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	meta, ok := doc["_meta"].(map[string]any)
	if !ok || meta["hook"] != hook {
		t.Errorf("_meta %v", doc["_meta"])
	}
	delete(doc, "_meta")
	text, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	testkit.Golden(t, strings.ReplaceAll(t.Name(), "/", "-")+".json", append(text, '\n'))
}

// The examples of contract 42 sections B.1, B.3 and B.3a.
func TestUserHooks(t *testing.T) {
	t.Parallel()
	t.Run("connected", func(t *testing.T) {
		t.Parallel()
		var reply UIDReply
		goldenRequest(t, HookUserConnected, ConnectRequest{
			UCloudUsername: "OskarLind#2291", FirstName: "Oskar", LastName: "Lind", SuggestedUsername: "olind", LaunchGroup: "ucloud_users",
		}, &reply, `{"uid":20119,"message":"created olind"}`)
		if *reply.UID != 20119 {
			t.Errorf("uid %d", *reply.UID)
		}
	})
	t.Run("disconnected", func(t *testing.T) {
		t.Parallel()
		goldenRequest(t, HookUserDisconnected, DisconnectedRequest{
			UCloudUsername: "OskarLind#2291", UID: 20119, LocalUsername: "olind", Reason: "user",
			Projects: []DisconnectProject{{UCloudProjectID: "5b1c0a7e-0d0f-4f5e-9b51-2f0d1f7e77aa", GID: 30417}},
		}, nil, "")
	})
	t.Run("ticket", func(t *testing.T) {
		t.Parallel()
		var reply TicketReply
		goldenRequest(t, HookTicketCreated, TicketRequest{
			Ticket: "3f9a", UCloudUsername: "OskarLind#2291", ExpiresAt: time.Date(2031, 2, 17, 9, 0, 0, 0, time.UTC),
		}, &reply, `{"decision":"reject","userMessage":"Please ask your group first"}`)
		if diff := cmp.Diff(TicketReply{Decision: "reject", UserMessage: "Please ask your group first"}, reply); diff != "" {
			t.Error(diff)
		}
	})
}

func TestTicketReplies(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	for name, tc := range map[string]struct {
		out  string
		want Kind
	}{
		"nothing":         {"", ""},
		"an empty object": {"{}", ""},
		"approve":         {`{"decision":"approve","uid":2001}`, ""},
		"approve nobody":  {`{"decision":"approve"}`, InvalidReply},
		"approve root":    {`{"decision":"approve","uid":0}`, InvalidReply},
		"something else":  {`{"decision":"yes"}`, InvalidReply},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := s.hook(t, HookTicketCreated, "echo '"+tc.out+"'", nil)
			var reply TicketReply
			err := h.Call(t.Context(), Call{}, &reply)
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if e := asError(t, err); e.Kind != tc.want {
				t.Errorf("%v", e)
			}
		})
	}
}

// A user name is data of strangers: it reaches the program in JSON and nowhere else.
//
//attack:actor compromised core
//attack:does Names a user whose name is a shell command, in the hope that it becomes part of a command line.
//attack:control Nothing of UCloud is placed in the arguments or the environment of a script; it travels as JSON in a file and on standard input.
//attack:remove internal/scripts/runner.go: program: p, args: append(append([]string{}, h.o.Args...), r.o.Spool+"/"+name), stdin: stdin, => program: p, args: append(append([]string{}, h.o.Args...), string(v.c.Owner.User), r.o.Spool+"/"+name), stdin: stdin,
func TestUserNameIsOnlyInJSON(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	name := ident.UCloudUser("A'\";$(touch " + s.dir + "/pwned)`touch " + s.dir + "/pwned`\n|&#1")
	h := s.hook(t, HookUserConnected, `
		for word in "$@"; do eval "x=$word"; done # a careless script
		env > "`+s.dir+`/env"; printf '%s\n' "$#" > "`+s.dir+`/count"
		jq -c '{uid: 2001, message: .ucloudUsername}' "$1"`, nil)
	var reply UIDReply
	err := h.Call(t.Context(), Call{
		Key: "user/" + string(name), Owner: ident.Owner{User: name}, Request: ConnectRequest{UCloudUsername: name},
	}, &reply)
	if err != nil {
		t.Fatal(err)
	}
	env, err := os.ReadFile(filepath.Join(s.dir, "env"))
	if err != nil {
		t.Fatal(err)
	}
	count, err := os.ReadFile(filepath.Join(s.dir, "count"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(env), "touch") || string(count) != "1\n" {
		t.Errorf("%s arguments, environment:\n%s", count, env)
	}
	if _, err := os.Lstat(filepath.Join(s.dir, "pwned")); err == nil {
		t.Error("a part of the name was executed")
	}
	var asked ConnectRequest
	if err := json.Unmarshal([]byte(s.log.last(t).Request), &asked); err != nil || asked.UCloudUsername != name {
		t.Errorf("the script was asked about %q: %v", asked.UCloudUsername, err)
	}
}

func TestOneQuickRetryForAPerson(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		body  string
		calls int
		kind  Kind
	}{
		"temporary, then not": {`[ "$UCLOUD_ATTEMPT" = 2 ] || exit 75; echo '{"uid":2001}'`, 2, ""},
		"temporary":           {`exit 75`, 2, Temporary},
		"failed":              {`exit 1`, 1, Failed},
		"not permitted":       {`echo '{"userMessage":"Not you"}'; exit 77`, 1, NotPermitted},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, nil)
			h := s.hook(t, HookUserConnected, tc.body, nil)
			var reply UIDReply
			err := h.CallForPerson(t.Context(), Call{Key: "user/x"}, &reply)
			if s.log.count() != tc.calls {
				t.Errorf("%d calls", s.log.count())
			}
			if tc.kind == "" {
				if err != nil {
					t.Error(err)
				}
			} else if e := asError(t, err); e.Kind != tc.kind {
				t.Errorf("%v", e)
			}
		})
	}
}
