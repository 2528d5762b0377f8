//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/devcore"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/testkit"
)

// TestForgedCore: with signed intents required, a Core in wrong hands gets nothing done in a user's name, however it puts
// together what it has seen; and what users really want keeps working all the while. After each attempt everything below the
// homes and the project's directory is compared, byte by byte.
//
//attack:actor compromised core
//attack:does Sends a request in a user's name without any intent.
//attack:control The instance demands an intent for each call, whatever Core's token says.
//attack:remove internal/fileserver/intents.go: rule.Frame || g.intents.Mode(rule) == intent.ModeOff { => rule.Frame || g.intents.Mode(rule) != "" {
//attack:run stripped
//attack:actor compromised core
//attack:does Asks for a link to download a file, without an intent.
//attack:control A missing intent is a refusal, not a pass.
//attack:remove internal/intent/intent.go: return refuse(Missing, "there is none") => return refuse(OK, "there is none")
//attack:run download
//attack:actor compromised core
//attack:does Puts an SSH key of its own among those of a user, by a call that today's browsers cannot sign.
//attack:control Calls without a name in today's client need an intent as well.
//attack:remove internal/intent/intent.go: return refuse(Unsignable, "there is none") => return refuse(OK, "there is none")
//attack:run SSH key
//attack:actor compromised core
//attack:does Deletes files with what a user signed for making a folder.
//attack:control The intent names the call, and is good for that one only.
//attack:remove internal/intent/intent.go: case !r.Rule.accepts(c.Call): => case false:
//attack:run intent of making for deleting
//attack:actor compromised core
//attack:does Moves files with what a user signed for making a folder.
//attack:control Each route says which calls must have been signed for it.
//attack:remove internal/fileserver/server.go: bulk(o.Files.Move), "files.move" => bulk(o.Files.Move), "files.createFolder"
//attack:run intent of making for moving
//attack:actor compromised core
//attack:does Has a file downloaded with what a user signed for looking at a folder.
//attack:control Links for downloads have a name of their own.
//attack:remove internal/downloads/downloads.go: rule := intent.Rule{Calls: []string{"files.createDownload"}, => rule := intent.Rule{Calls: []string{"files.createDownload", "files.browse"},
//attack:run intent of listing for downloading
//attack:actor compromised core
//attack:does Signs with a key that it made itself.
//attack:control Only keys of this user verify.
//attack:remove internal/intent/verify.go: \t\tif t.verify(k.Public) { => \t\tif t != nil || t.verify(k.Public) {
//attack:run unknown key
//attack:actor compromised core
//attack:does Uses an intent in which another user is named.
//attack:control The intent names the user whose account the instance has.
//attack:remove internal/intent/intent.go: case c.Username != string(v.opts.User): => case false:
//attack:run names another user
//attack:actor compromised core
//attack:does Takes what a user signed for their own workspace to a project's drive.
//attack:control The intent names the workspace, which is that of every drive in the request.
//attack:remove internal/intent/owners.go: case owner == signed: => case owner == owner:
//attack:run own workspace for the project's drive
//attack:actor compromised core
//attack:does Sends what a user signed once more, with another folder.
//attack:control An intent is bound to the first request that it came with.
//attack:remove internal/intent/memory.go: if !u.reads || len(e.requests) >= maxReads || now.Sub(e.first) > readWindow || now.Before(e.first) { => if u.reads && len(e.requests) >= maxReads {
//attack:run replayed with other payload
//attack:actor compromised core
//attack:does Keeps intents for later.
//attack:control An intent ends with its time.
//attack:remove internal/intent/intent.go: case !c.Exp.After(now.Add(-leeway)): => case false:
//attack:run expired
//attack:actor compromised core
//attack:does Uses an intent that a device with a wrong clock made for the future.
//attack:control An intent is no good before its time.
//attack:remove internal/intent/intent.go: case c.Iat.After(now.Add(leeway)): => case false:
//attack:run future
//attack:actor compromised core
//attack:does Has a script in the user's page make intents that are good for a day.
//attack:control The life of intents is bounded.
//attack:remove internal/intent/intent.go: case c.Exp.Sub(c.Iat) > maxAge: => case c.Exp.Sub(c.Iat) > 1000000*maxAge:
//attack:run too long a life
//attack:actor compromised core
//attack:does Sends two intents, of which one program looks at the first and another at the last.
//attack:control Several headers are no intent.
//attack:remove internal/intent/intent.go: return strings.Join(h.Values(HeaderSignedIntent), ", ") => return h.Get(HeaderSignedIntent)
//attack:remove internal/intent/intent.go: \t"strings"\n =>
//attack:remove internal/intent/intent.go: if prefix, ok := strings.CutSuffix(name, "*"); ok && strings.HasSuffix(prefix, ".") && strings.HasPrefix(call, prefix) && len(call) > len(prefix) { => if name == "" {
//attack:run header twice
//attack:actor compromised core
//attack:does Uses the key of a browser whose owner has not proved who they are.
//attack:control A key verifies nothing before the proof.
//attack:remove internal/store/signingkeys.go: return k.State == SigningKeyActive && now.Before(k.ExpiresAt) && k.UID != nil && *k.UID == uid => return k.UID == nil || *k.UID == uid
//attack:run inactive key
//attack:actor compromised core
//attack:does Uploads a key of its own through the link that it passes on, and waits until the user connects.
//attack:control A key comes into use only if its fingerprint was compared.
//attack:remove internal/usermap/ticket/method.go: if c.KeyFingerprint != "" { => if c.KeyFingerprint != "-" {
//attack:remove internal/usermap/ticket/method.go: \t\tif rec.Key == "" {\n\t\t\treturn nil\n\t\t}\n\t\tif err := tx.Forget => \t\tif rec.Key != "-" {\n\t\t\treturn nil\n\t\t}\n\t\tif err := tx.Forget
//attack:run connected without comparing the key
//attack:actor compromised core
//attack:does Goes on with the stolen key of a user who has revoked it.
//attack:control Instances are told at once when keys change.
//attack:remove internal/signingkeys/signingkeys.go: \ts.wake()\n\ts.o.Changed(user) => \ts.wake()
//attack:run revoked key
//attack:actor compromised core
//attack:does Puts another folder into a request that was signed as a whole.
//attack:control The second form has a digest of the payload.
//attack:remove internal/intent/intent.go: if digest != c.Bdy { => if digest == "" {
//attack:run second form: other payload
//attack:actor compromised core
//attack:does Uses at this provider what was signed for another one.
//attack:control The second form names the provider.
//attack:remove internal/intent/intent.go: case t.form == Form2 && c.Aud != v.opts.Provider: => case false:
//attack:run second form: other provider
//attack:actor compromised core
//attack:does Searches a user's files over a socket, whose first message has no intent.
//attack:control First messages are checked like requests.
//attack:remove internal/fileserver/intents.go: if c.intents == nil || c.intents.Mode(rule) == intent.ModeOff { => if c.intents == nil || c.intents.Mode(rule) != "" {
//attack:run sockets/stripped
//attack:actor compromised core
//attack:does Uploads a key of its own through the link that it passes on, before the browser of the user does.
//attack:control A link takes one key; with a second one, neither is of use.
//attack:remove internal/signingkeys/upload.go: case have.Fingerprint != key.Fingerprint(): => case have.Fingerprint == "":
//attack:run connecting
func TestForgedCore(t *testing.T) {
	f := newForger(t)
	list := append(tokens(), requests()...)
	list = append(append(list, secondForm()...), keyAttempts()...)
	if len(list) < 60 {
		t.Errorf("only %d attempts", len(list))
	}
	for i, a := range list {
		t.Run(a.name, func(t *testing.T) { f.try(t, a) })
		f.t, f.world.t = t, t
		if i%10 == 9 {
			f.honest(t)
		}
	}
	t.Run("sockets", func(t *testing.T) { f.sockets(t) })
	f.t, f.world.t = t, t
	t.Run("connecting", func(t *testing.T) { f.connecting(t) })
	f.t, f.world.t = t, t
	f.honest(t)
}

// keyAttempts are right intents of wrong keys.
func keyAttempts() []attempt {
	one := func(name string, key func(f *forger) *browserKey) attempt {
		return attempt{name, unsigned, func(f *forger) devcore.Forgery {
			k := key(f)
			return f.folder(k.Sign(rs256, f.claims()))
		}}
	}
	return []attempt{
		one("inactive key", func(f *forger) *browserKey {
			k := f.newKey()
			f.giveKey(f.ada, k) // by ada herself, who has not proven yet who she is
			return k
		}),
		one("key uploaded by Core", func(f *forger) *browserKey {
			// Core asks for the connection in ada's name and uploads a key of its own, through the link that it sees first.
			k := f.newKey()
			page := f.giveKey(f.ada, k)
			f.ticketAt(page) // it even has the ticket: without an account here that is good for nothing
			return k
		}),
		one("connected without comparing the key", func(f *forger) *browserKey {
			// The ticket is completed, but nobody has compared the key that came with it: it does not come into use.
			k := f.newKey()
			ticket := f.ticketAt(f.giveKey(f.ada, k))
			if _, err := f.cli("connect", ticket, f.ada.account.Name, "--yes"); err != nil {
				f.t.Logf("refused: %v", err)
			}
			return k
		}),
		one("revoked key", func(f *forger) *browserKey {
			old, k := f.key(), f.newKey()
			f.addDevice(f.ada, k)
			if err := f.mkdir(f.ada, f.ada.home()+"/by the second device", "REJECT"); err != nil {
				f.t.Errorf("the second device: %v", err)
			}
			if _, err := f.cli("keys", "revoke", k.Key.Fingerprint(), "--yes"); err != nil {
				f.t.Error(err)
			}
			settles(func() bool { _, err := f.browse(f.ada, f.ada.home()); return err != nil }) // the instance hears of it a moment later
			f.signers[f.ada.name] = old                                                         // the first device goes on
			return k
		}),
	}
}

// sockets are forged first messages of a search.
func (f *forger) sockets(t *testing.T) {
	f.world.t = t
	signed := func(call string) string { return f.signIn(f.ada.name, call, "") }
	payload := map[string]any{
		"query": "victim", "owner": f.drive.Owner, "currentFolder": f.ada.home(), "flags": map[string]any{},
		"category": map[string]any{"name": category, "provider": provider},
	}
	frame := func(intent any, more ...any) string {
		m := map[string]any{"call": "files.provider." + provider + ".streamingSearch", "streamId": "ignored", "bearer": "", "project": nil, "payload": payload}
		if intent != nil {
			m["signedIntent"] = intent
		}
		for i := 0; i < len(more); i += 2 {
			m[more[i].(string)] = more[i+1]
		}
		data, err := json.Marshal(m)
		f.must(err)
		return string(data)
	}
	search := func(t *testing.T, query string, first ...string) devcore.ForgedSocket {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
		defer cancel()
		path := "/ucloud/" + provider + "/files" + query
		res, err := f.core.ForgeSocket(ctx, f.ada.name, path, first, func(m string) bool {
			return strings.Contains(m, "end_of_results") || strings.Contains(m, `"response"`)
		})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	found := func(res devcore.ForgedSocket) bool {
		return strings.Contains(strings.Join(res.Messages, "\n"), "victim.txt")
	}
	if res := search(t, "", frame(signed("files.streamingSearch"))); !found(res) {
		t.Fatalf("a signed search finds nothing: %+v", res)
	}
	altered := func(text string) string {
		parts := strings.Split(text, ".")
		parts[2] = "AAAA" + parts[2][4:]
		return strings.Join(parts, ".")
	}
	now := time.Now().Unix()
	for name, first := range map[string][]string{
		"stripped":                 {frame(nil)},
		"null":                     {`{"signedIntent":null,` + frame(nil)[1:]},
		"empty":                    {frame("")},
		"no text":                  {frame(map[string]any{"a": 1})},
		"other call":               {frame(signed("files.createFolder"))},
		"altered":                  {frame(altered(signed("files.streamingSearch")))},
		"of another user":          {frame(f.signIn(f.eve.name, "files.streamingSearch", ""))},
		"expired":                  {frame(f.signed(set("call", "files.streamingSearch"), set("iat", now-3600), set("exp", now-3570)))},
		"twice":                    {`{"signedIntent":"x.y.z",` + frame(signed("files.createFolder"))[1:]},
		"in the payload":           {frame(nil, "payload", map[string]any{"query": "victim", "currentFolder": f.ada.home(), "owner": f.drive.Owner, "flags": map[string]any{}, "category": payload["category"], "signedIntent": signed("files.streamingSearch")})},
		"in the second message":    {frame(nil), frame(signed("files.streamingSearch"))},
		"signed for another place": {frame(f.signed(set("call", "files.streamingSearch"), set("project", f.project)))},
	} {
		t.Run(name, func(t *testing.T) {
			f.world.t = t
			if res := search(t, "", first...); found(res) {
				t.Errorf("the forged search has found something: %+v", res)
			}
		})
	}
	t.Run("in the query", func(t *testing.T) {
		f.world.t = t
		if res := search(t, "?usernameHint="+f.ada.name.HeaderValue()+"&signedIntent="+signed("files.streamingSearch"), frame(nil)); found(res) {
			t.Errorf("the forged search has found something: %+v", res)
		}
	})
	f.world.t = t
	if res := search(t, "", frame(signed("files.streamingSearch"))); !found(res) {
		t.Errorf("a signed search finds nothing afterwards: %+v", res)
	}
}

// connecting: the link with which keys are uploaded passes through Core's hands first. It neither connects nor proves anything.
func (f *forger) connecting(t *testing.T) {
	f.world.t = t
	mary := f.addPerson("Mary#1834")
	mine := f.newKey()
	link := f.askToConnect(mary)
	page, err := f.uploadKey(link, mine.PEM(), f.coreURL)
	f.must(err)
	f.ticketAt(page)
	if f.core.Connected(mary.name) {
		t.Error("an uploaded key has connected a user")
	}
	// Mary's own browser comes second: she is told that something is wrong, and neither key is of use.
	if next, err := f.uploadKey(link, f.newKey().PEM(), f.coreURL); err == nil {
		t.Errorf("a second key was taken for the same link: %s", next)
	}
	forged := f.to("POST", "files/folder", bulkOf("id", "/9001/pwned", "conflictPolicy", "REJECT", "resolvedCollection", f.drive), mine.Form1(mine.claims(mary.name, "files.createFolder", "")))
	forged.User = mary.name
	before := f.tree(f.dirs...)
	for range 3 { // as Core repeats calls
		res, err := f.core.Forge(t.Context(), forged)
		if err != nil || res.Status < 400 {
			t.Errorf("in the name of a user who is not connected: %+v, %v", res, err)
		}
	}
	if d := differences(before, f.tree(f.dirs...)); len(d) > 0 {
		t.Error(d)
	}
	// A page of another origin may not upload.
	if _, err := f.uploadKey(f.askToConnect(mary), f.newKey().PEM(), "https://evil.example"); err == nil {
		t.Error("a key was taken from another origin")
	}
	// With a key of her own, compared, all is well.
	f.connectSigned(mary)
	if err := f.mkdir(mary, mary.home()+"/mine", "REJECT"); err != nil {
		t.Error(err)
	}
}

// TestUnsignedTraffic: the same honest traffic works without any signature where the policy is off, and where it is log; the
// recordings of a real Core are replayed against the former (TestRecordingsReplay).
func TestUnsignedTraffic(t *testing.T) {
	for _, mode := range []string{intent.ModeOff, intent.ModeLog} {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t, settings{intents: mode})
			ada := w.addPerson("Ada#1815")
			w.running(ada)
			if err := w.mkdir(ada, ada.home()+"/unsigned", "REJECT"); err != nil {
				t.Error(err)
			}
			// A wrong signature is no reason to refuse anything either.
			got := w.send(http.MethodPost, ada.name, "/files/folder", bulkOf("id", ada.home()+"/badly signed", "conflictPolicy", "REJECT", "resolvedCollection", w.driveOf(ada)),
				func(r *http.Request) { r.Header.Set("UCloud-Signed-Intent", "x.y.z") })
			if got.status != http.StatusOK {
				t.Errorf("%d %s", got.status, got.body)
			}
			files, err := w.browse(ada, ada.home())
			if err != nil || len(files) != 2 {
				t.Errorf("%v, %v", files, err)
			}
		})
	}
}
