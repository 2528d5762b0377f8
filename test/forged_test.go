//go:build e2e

package e2e

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/devcore"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit/intentkit"
)

// forger is a provider that requires signed intents, whose Core is in wrong hands: it has Core's token, sees and keeps all
// that users really send, and says what it likes in their names. ada is the victim, eve helps it with her own account.
type forger struct {
	*world
	ada, eve     *person
	drive, other providerapi.Drive // ada's home, and the drive of the project
	project      ident.ProjectID
	dirs         []string // all that may not change
	made         int
	claimed      int
	used         map[[2]int64]bool // issue and expiry of those claims
}

// attempt is one forged request. want are the statuses that are right.
type attempt struct {
	name string
	want []int
	make func(f *forger) devcore.Forgery
}

var (
	unsigned    = []int{482}
	clocks      = []int{http.StatusForbidden}
	replayed    = []int{http.StatusConflict}
	nameless    = []int{http.StatusForbidden} // today's client cannot sign it: its key is not to be thrown away
	contradicts = []int{482, http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound}
	nowhere     = []int{482, http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusMovedPermanently, http.StatusPermanentRedirect, http.StatusTemporaryRedirect}
)

func newForger(t *testing.T) *forger {
	t.Helper()
	w := newWorld(t, settings{intents: intent.ModeRequire, extra: "      userDrives: { locators: [home] }\n"})
	f := &forger{world: w, ada: w.addPerson("Ada#1815"), eve: w.addPerson("Eve#6666")}
	f.project = "5b0f7c1e-3a52-4d0e-9a5b-0c9f3f6f2a11"
	dir := filepath.Join(w.base, "projects", string(f.project))
	w.must(os.Mkdir(dir, 0o770))
	w.must(os.Chown(dir, 0, int(w.site.GID)))
	w.must(os.Chmod(dir, 0o770|os.ModeSetgid))
	w.core.AddProject(f.project, "Analytical engines", f.ada.name, f.eve.name)
	w.must(w.core.Allocate(ident.Owner{Project: f.project}, category, 10))
	w.connectSigned(f.ada, f.eve)
	for name, content := range map[string]string{"victim.txt": "precious", "keep/a.txt": "a", "keep/b.txt": "b", "Trash/old.txt": "old", ".ssh/authorized_keys": "# mine\n"} {
		path := filepath.Join(f.ada.account.Home, name)
		w.must(os.MkdirAll(filepath.Dir(path), 0o700))
		w.must(os.WriteFile(path, []byte(content), 0o600))
	}
	w.owned(f.ada, f.ada.account.Home)
	f.drive = w.driveOf(f.ada)
	settles(func() bool {
		for _, d := range w.drives(f.ada) {
			if d.Owner.Project != nil {
				f.other = d
			}
		}
		return f.other.ID != ""
	})
	f.dirs = []string{f.ada.account.Home, f.eve.account.Home, dir}
	f.honest(t)
	return f
}

// honest is what a user does all day, signed or not as the browser does it. It has to keep working.
func (f *forger) honest(t *testing.T) {
	t.Helper()
	f.made++
	folder := fmt.Sprintf("%s/honest-%d", f.ada.home(), f.made)
	// The second form of an intent, for what the browser sends as it is.
	sent := map[string]any{"items": []any{map[string]any{"id": folder + " second form", "conflictPolicy": "REJECT"}}}
	data, err := json.Marshal(sent)
	f.must(err)
	second := f.key().Form2(f.key().claims(f.ada.name, "files.createFolder", ""), provider, data)
	if err := f.callSigned(f.ada.name, second, http.MethodPost, "/api/files/folder", sent, nil); err != nil {
		t.Errorf("honest folder, in the second form: %v", err)
	}
	if err := f.mkdir(f.ada, folder, providerapi.ConflictReject); err != nil {
		t.Fatalf("honest folder: %v", err)
	}
	if _, err := os.Stat(filepath.Join(f.ada.account.Home, filepath.Base(folder))); err != nil {
		t.Errorf("honest folder: %v", err)
	}
	files, err := f.browse(f.ada, f.ada.home())
	if err != nil || !slices.ContainsFunc(files, func(file providerapi.File) bool { return file.ID == folder }) {
		t.Errorf("honest listing: %v, %v", files, err)
	}
	if _, err := f.browse(f.ada, "/"+string(f.other.ID)); err != nil {
		t.Errorf("honest listing in the project: %v", err)
	}
	items := map[string]any{"items": []any{map[string]any{"id": f.ada.home() + "/victim.txt"}}}
	var links providerapi.BulkResponse[struct{ Endpoint string }]
	if err := f.call(f.ada.name, http.MethodPost, "/api/files/download", items, &links); err != nil {
		t.Errorf("honest download: %v", err)
	}
}

func (f *forger) key() *browserKey { return f.signers[f.ada.name] }

// claims are what ada's browser would sign for making a folder at this moment.
func (f *forger) claims(change ...func(map[string]any)) map[string]any {
	// No two are alike, whatever time has passed between them: they would be taken for replays.
	var times [2]int64
	for times[0] == 0 || f.used[times] {
		f.claimed++
		iat := time.Now().Unix() - int64(f.claimed/20%20)
		times = [2]int64{iat, iat + 40 + int64(f.claimed%20)}
	}
	if f.used == nil {
		f.used = map[[2]int64]bool{}
	}
	f.used[times] = true
	c := map[string]any{"iat": times[0], "exp": times[1], "call": "files.createFolder", "username": string(f.ada.name), "project": nil}
	for _, do := range change {
		do(c)
	}
	return c
}

func set(name string, v any) func(map[string]any) { return func(c map[string]any) { c[name] = v } }

func without(name string) func(map[string]any) { return func(c map[string]any) { delete(c, name) } }

var rs256 = map[string]any{"typ": "JWT", "alg": "RS256"}

// signed is an intent of ada's real key.
func (f *forger) signed(change ...func(map[string]any)) string {
	return f.key().Sign(rs256, f.claims(change...))
}

// to is a forged call of the files API in ada's name.
func (f *forger) to(method, operation string, body any, intents ...string) devcore.Forgery {
	data, err := json.Marshal(body)
	f.must(err)
	return devcore.Forgery{Method: method, Path: "/ucloud/" + provider + "/" + operation, User: f.ada.name, Body: string(data), Intents: intents}
}

// bulkOf is a bulk request of one item.
func bulkOf(members ...any) map[string]any {
	item := map[string]any{}
	for i := 0; i < len(members); i += 2 {
		item[members[i].(string)] = members[i+1]
	}
	return map[string]any{"items": []any{item}}
}

// folder makes a folder in ada's home: the crime of most attempts.
func (f *forger) folder(intents ...string) devcore.Forgery {
	f.made++
	return f.to("POST", "files/folder", bulkOf("id", fmt.Sprintf("%s/pwned-%d", f.ada.home(), f.made), "conflictPolicy", "REJECT", "resolvedCollection", f.drive), intents...)
}

// seen is what ada has really signed for a call, and sent.
func (f *forger) seen(operation string) devcore.Captured {
	list := f.core.Captured()
	slices.Reverse(list)
	for _, c := range list {
		if c.User == f.ada.name && strings.HasSuffix(c.Path, "/"+operation) && len(c.Intents) > 0 {
			return c
		}
	}
	f.t.Fatalf("ada has not called %s", operation)
	return devcore.Captured{}
}

// try sends a forgery: it is refused with a right status, and nothing has changed.
func (f *forger) try(t *testing.T, a attempt) {
	t.Helper()
	f.world.t = t
	forgery := a.make(f)
	before := f.tree(f.dirs...)
	res, err := f.core.Forge(t.Context(), forgery)
	if err != nil {
		t.Fatal(err)
	}
	if d := differences(before, f.tree(f.dirs...)); len(d) > 0 {
		t.Errorf("the forged request reached the file system:\n%s", strings.Join(d, "\n"))
	}
	if !slices.Contains(a.want, res.Status) {
		t.Errorf("status %d, want %v: %s", res.Status, a.want, res.Body)
	}
	if res.Status == 482 && (strings.Contains(res.Body, "key") || strings.Contains(res.Body, "project")) {
		t.Errorf("the answer says why: %s", res.Body)
	}
	if _, err := f.browse(f.ada, f.ada.home()); err != nil {
		t.Errorf("an honest call afterwards: %v", err)
	}
}

// tokens are wrong intents for making a folder.
func tokens() []attempt {
	folder := func(name string, want []int, intents func(f *forger) []string) attempt {
		return attempt{name, want, func(f *forger) devcore.Forgery { return f.folder(intents(f)...) }}
	}
	one := func(name string, want []int, text func(f *forger) string) attempt {
		return folder(name, want, func(f *forger) []string { return []string{text(f)} })
	}
	claim := func(name string, want []int, change ...func(map[string]any)) attempt {
		return one(name, want, func(f *forger) string { return f.signed(change...) })
	}
	header := func(name string, members map[string]any) attempt {
		return one(name, unsigned, func(f *forger) string { return f.key().Sign(members, f.claims()) })
	}
	now := func() int64 { return time.Now().Unix() }
	cut := func(text string, change func(parts []string)) string {
		parts := strings.Split(text, ".")
		change(parts)
		return strings.Join(parts, ".")
	}
	return []attempt{
		folder("stripped", unsigned, func(*forger) []string { return nil }),
		one("empty", unsigned, func(*forger) string { return "" }),
		one("other call", unsigned, func(f *forger) string { return f.signIn(f.ada.name, "files.browse", "") }),
		claim("call in other letters", unsigned, set("call", "Files.CreateFolder")),
		claim("call of the provider", unsigned, set("call", "files.provider."+provider+".createFolder")),
		claim("call with wildcard", unsigned, set("call", "files.*")),
		claim("no call", unsigned, without("call")),
		one("other user's intent", unsigned, func(f *forger) string { return f.signIn(f.eve.name, "files.createFolder", "") }),
		one("key of another user", unsigned, func(f *forger) string { return f.signers[f.eve.name].Sign(rs256, f.claims()) }),
		claim("names another user", unsigned, set("username", "Eve#6666")),
		claim("names no user", unsigned, set("username", "")),
		claim("username without claim", unsigned, without("username")),
		claim("other project", unsigned, set("project", "5b0f7c1e-3a52-4d0e-9a5b-0c9f3f6f2a11")),
		one("replayed with other payload", replayed, func(f *forger) string { return f.seen("files/folder").Intents[0] }),
		claim("expired", clocks, set("iat", now()-3600), set("exp", now()-3570)),
		claim("future", clocks, set("iat", now()+3600), set("exp", now()+3630)),
		claim("too long a life", clocks, set("exp", now()+86400)),
		claim("without end", unsigned, without("exp")),
		claim("without beginning", unsigned, without("iat")),
		claim("times as text", unsigned, set("exp", "9999999999")),
		claim("times beyond numbers", unsigned, set("exp", 1e300)),
		claim("unknown claim", unsigned, set("aud", provider)),
		one("claims twice", unsigned, func(f *forger) string {
			data, err := json.Marshal(f.claims())
			f.must(err)
			return f.key().Sign(rs256, string(data[:len(data)-1])+`,"call":"files.createFolder"}`)
		}),
		one("none", unsigned, func(f *forger) string {
			return intentkit.Part(map[string]any{"typ": "JWT", "alg": "none"}) + "." + intentkit.Part(f.claims()) + "."
		}),
		one("none in other letters", unsigned, func(f *forger) string {
			return cut(f.signed(), func(p []string) { p[0] = intentkit.Part(map[string]any{"typ": "JWT", "alg": "nOnE"}) })
		}),
		one("HS256 with the public key", unsigned, func(f *forger) string {
			return intentkit.HS256([]byte(f.key().PEM()), map[string]any{"typ": "JWT", "alg": "HS256"}, f.claims())
		}),
		one("HS256 with the key's bytes", unsigned, func(f *forger) string {
			return intentkit.HS256(f.key().Key.DER(), map[string]any{"typ": "JWT", "alg": "HS256"}, f.claims())
		}),
		one("HS256 that calls itself RS256", unsigned, func(f *forger) string { return intentkit.HS256([]byte(f.key().PEM()), rs256, f.claims()) }),
		one("ES256", unsigned, func(f *forger) string { return es256(f.t, f.claims()) }),
		one("RS512", unsigned, func(f *forger) string {
			return cut(f.signed(), func(p []string) { p[0] = intentkit.Part(map[string]any{"typ": "JWT", "alg": "RS512"}) })
		}),
		one("unknown key", unsigned, func(f *forger) string { return f.newKey().Sign(rs256, f.claims()) }),
		one("embedded key", unsigned, func(f *forger) string {
			k := f.newKey()
			pub := k.Public().Public.(*rsa.PublicKey)
			jwk := map[string]any{"kty": "RSA", "e": "AQAB", "n": base64.RawURLEncoding.EncodeToString(pub.N.Bytes())}
			return k.Sign(map[string]any{"typ": "JWT", "alg": "RS256", "jwk": jwk}, f.claims())
		}),
		header("key id", map[string]any{"typ": "JWT", "alg": "RS256", "kid": "../../../../dev/null"}),
		header("key address", map[string]any{"typ": "JWT", "alg": "RS256", "jku": "http://127.0.0.1:1/keys"}),
		header("critical extension", map[string]any{"typ": "JWT", "alg": "RS256", "crit": []string{"exp"}}),
		header("compressed", map[string]any{"typ": "JWT", "alg": "RS256", "zip": "DEF"}),
		header("other type", map[string]any{"typ": "at+jwt", "alg": "RS256"}),
		folder("header twice", unsigned, func(f *forger) []string { i := f.signed(); return []string{i, i} }),
		folder("wrong and right header", unsigned, func(f *forger) []string { return []string{"x.y.z", f.signed()} }),
		one("two intents in a header", unsigned, func(f *forger) string { return f.signed() + ", " + f.signed() }),
		one("with a scheme", unsigned, func(f *forger) string { return "Bearer " + f.signed() }),
		one("signature altered", unsigned, func(f *forger) string {
			return cut(f.signed(), func(p []string) { p[2] = "AAAA" + p[2][4:] })
		}),
		one("signature of another intent", unsigned, func(f *forger) string {
			return cut(f.signed(), func(p []string) { p[2] = strings.Split(f.seen("files/folder").Intents[0], ".")[2] })
		}),
		one("no signature", unsigned, func(f *forger) string { return cut(f.signed(), func(p []string) { p[2] = "" }) }),
		one("captured intent for another call, altered", unsigned, func(f *forger) string {
			return cut(f.seen("files/browse").Intents[0], func(p []string) { p[1] = intentkit.Part(f.claims()) })
		}),
		one("captured intent with a later end", unsigned, func(f *forger) string {
			return cut(f.seen("files/folder").Intents[0], func(p []string) { p[1] = intentkit.Part(f.claims(set("exp", now()+59))) })
		}),
		one("padded", unsigned, func(f *forger) string { return f.signed() + "==" }),
		one("four parts", unsigned, func(f *forger) string { return f.signed() + ".x" }),
		one("long", append([]int{http.StatusRequestHeaderFieldsTooLarge, http.StatusBadRequest}, unsigned...), func(f *forger) string {
			return f.key().Sign(rs256, f.claims(set("project", strings.Repeat("x", 20<<10))))
		}),
	}
}

// secondForm are intents of the form with a digest, which protects the payload as well.
func secondForm() []attempt {
	typ := map[string]any{"typ": "ucloud-intent+jwt", "alg": "RS256"}
	// sent is what ada's browser sends to make a folder, and what Core is to make of it.
	try := func(name string, want []int, change func(f *forger, c map[string]any), rewrite func(f *forger, body string) string) attempt {
		return attempt{"second form: " + name, want, func(f *forger) devcore.Forgery {
			r := f.folder()
			var body struct {
				Items []struct {
					ID             string `json:"id"`
					ConflictPolicy string `json:"conflictPolicy"`
				} `json:"items"`
			}
			f.must(json.Unmarshal([]byte(r.Body), &body))
			sent, err := json.Marshal(body)
			f.must(err)
			c := intentkit.Claims{Call: "files.createFolder", Username: string(f.ada.name)}.Form2(provider, sent)
			if change != nil {
				change(f, c)
			}
			r.Intents = []string{f.key().Sign(typ, c)}
			if rewrite != nil {
				r.Body = rewrite(f, r.Body)
			}
			return r
		}}
	}
	to := func(name string, v any) func(*forger, map[string]any) {
		return func(_ *forger, c map[string]any) { c[name] = v }
	}
	drop := func(name string) func(*forger, map[string]any) {
		return func(_ *forger, c map[string]any) { delete(c, name) }
	}
	replace := func(from, to string) func(*forger, string) string {
		return func(f *forger, body string) string {
			return strings.ReplaceAll(body, f.ada.home()+from, f.ada.home()+to)
		}
	}
	return []attempt{
		try("other payload", unsigned, nil, replace("/pwned", "/also-pwned")),
		try("deeper payload", unsigned, nil, replace("/pwned", "/keep/pwned")),
		try("other policy", unsigned, nil, func(_ *forger, body string) string { return strings.Replace(body, `"REJECT"`, `"REPLACE"`, 1) }),
		try("second item", unsigned, nil, func(f *forger, body string) string {
			item := body[strings.Index(body, "[")+1 : strings.LastIndex(body, "]")]
			return strings.Replace(body, "[", "["+strings.ReplaceAll(item, "/pwned", "/also-pwned")+",", 1)
		}),
		try("member twice", contradicts, nil, func(f *forger, body string) string {
			return strings.Replace(body, `"id":"`+f.ada.home(), `"id":"`+f.ada.home()+`/also-pwned","id":"`+f.ada.home(), 1)
		}),
		try("member in other letters", contradicts, nil, func(f *forger, body string) string {
			return strings.Replace(body, `"conflictPolicy"`, `"ID":"`+f.ada.home()+`/also-pwned","conflictPolicy"`, 1)
		}),
		try("digest of nothing", unsigned, to("bdy", "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"), nil),
		try("without digest", unsigned, drop("bdy"), nil),
		try("other provider", unsigned, to("aud", "elsewhere"), nil),
		try("several providers", unsigned, to("aud", []string{"elsewhere", provider}), nil),
		try("without provider", unsigned, drop("aud"), nil),
		try("short nonce", unsigned, to("jti", "1"), nil),
		try("without nonce", unsigned, drop("jti"), nil),
		try("without project", unsigned, drop("project"), nil),
		try("other project", unsigned, to("project", "5b0f7c1e-3a52-4d0e-9a5b-0c9f3f6f2a11"), nil),
		try("other call", unsigned, to("call", "files.trash"), nil),
		try("expired", clocks, func(_ *forger, c map[string]any) { c["iat"], c["exp"] = time.Now().Unix()-3600, time.Now().Unix()-3570 }, nil),
		{"second form: claims of it under the header of the first", unsigned, func(f *forger) devcore.Forgery {
			return f.folder(f.key().Sign(rs256, intentkit.Claims{Call: "files.createFolder", Username: string(f.ada.name)}.Form2(provider, []byte(`{}`))))
		}},
		{"second form: claims of the first under its header", unsigned, func(f *forger) devcore.Forgery { return f.folder(f.key().Sign(typ, f.claims())) }},
	}
}

// es256 is a token of a kind of key that nobody has here.
func es256(t *testing.T, claims any) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	input := intentkit.Part(map[string]any{"typ": "JWT", "alg": "ES256"}) + "." + intentkit.Part(claims)
	sum := sha256.Sum256([]byte(input))
	sig, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(sig)
}

// requests are right intents at wrong places, and calls of all kinds without any.
func requests() []attempt {
	to := func(name string, want []int, method, operation string, body func(f *forger) any, intents func(f *forger) []string) attempt {
		return attempt{name, want, func(f *forger) devcore.Forgery {
			if intents == nil {
				return f.to(method, operation, body(f))
			}
			return f.to(method, operation, body(f), intents(f)...)
		}}
	}
	bare := func(name string, want []int, method, operation string, body func(f *forger) any) attempt {
		return to(name, want, method, operation, body, nil)
	}
	created := func(f *forger) []string { return []string{f.signed()} }
	victim := func(f *forger) string { return f.ada.home() + "/victim.txt" }
	pwned := func(f *forger) string { return f.ada.home() + "/pwned" }
	move := func(f *forger) any {
		return bulkOf("oldId", victim(f), "newId", pwned(f), "conflictPolicy", "REPLACE", "resolvedOldCollection", f.drive, "resolvedNewCollection", f.drive)
	}
	entry := func(f *forger) any { return bulkOf("id", victim(f), "resolvedCollection", f.drive) }
	whole := func(f *forger) any {
		return bulkOf("id", victim(f), "createdAt", 0, "owner", f.drive.Owner, "permissions", f.drive.Permissions,
			"specification", map[string]any{"collection": f.drive.ID, "product": f.drive.Specification.Product}, "status", map[string]any{})
	}
	upload := func(f *forger) any {
		return bulkOf("id", pwned(f), "type", "FILE", "supportedProtocols", []string{"WEBSOCKET"}, "conflictPolicy", "REPLACE", "resolvedCollection", f.drive)
	}
	drive := func(f *forger) any {
		d := f.drive
		d.ID, d.ProviderGeneratedID, d.Specification.Title = "9001", "", "pwned"
		return map[string]any{"items": []any{d}}
	}
	same := func(f *forger) any { return map[string]any{"items": []any{f.drive}} }
	path := func(name, path string, want []int) attempt {
		return attempt{name, want, func(f *forger) devcore.Forgery {
			r := f.folder()
			r.Path = path
			return r
		}}
	}
	also := func(name string, want []int, change func(f *forger, r *devcore.Forgery)) attempt {
		return attempt{name, want, func(f *forger) devcore.Forgery {
			r := f.folder()
			change(f, &r)
			return r
		}}
	}
	return []attempt{
		bare("list", unsigned, "POST", "files/browse", func(f *forger) any {
			return map[string]any{"resolvedCollection": f.drive, "Browse": map[string]any{"flags": map[string]any{"path": f.ada.home()}, "itemsPerPage": 10}}
		}),
		bare("look", unsigned, "POST", "files/retrieve", func(f *forger) any {
			return map[string]any{"resolvedCollection": f.drive, "retrieve": map[string]any{"id": victim(f), "flags": map[string]any{}}}
		}),
		bare("move", unsigned, "POST", "files/move", move),
		bare("copy", unsigned, "POST", "files/copy", move),
		bare("trash", unsigned, "POST", "files/trash", entry),
		bare("empty trash", unsigned, "POST", "files/emptyTrash", func(f *forger) any {
			return bulkOf("id", f.ada.home()+"/Trash", "resolvedCollection", f.drive)
		}),
		bare("delete", unsigned, "DELETE", "files", whole),
		bare("upload", unsigned, "POST", "files/upload", upload),
		bare("download", unsigned, "POST", "files/download", entry),
		bare("make a drive", unsigned, "POST", "files/collections", drive),
		bare("rename a drive", unsigned, "POST", "files/collections/rename", func(f *forger) any { return bulkOf("id", f.drive.ID, "newTitle", "pwned") }),
		bare("delete a drive", unsigned, "DELETE", "files/collections", same),
		bare("change access", unsigned, "POST", "files/collections/updateAcl", func(f *forger) any {
			return bulkOf("resource", f.drive, "added", []any{}, "deleted", []any{})
		}),
		bare("transfer", nameless, "POST", "files/transfer", func(f *forger) any {
			return map[string]any{"type": "InitiateSource", "sourcePath": f.ada.home(), "sourceCollection": f.drive, "destinationProvider": "elsewhere"}
		}),
		bare("SSH key", nameless, "POST", "ssh/keyUploaded", func(f *forger) any {
			return map[string]any{"username": f.ada.name, "allKeys": []any{map[string]any{
				"id": "1", "owner": f.ada.name, "createdAt": 0,
				"specification": map[string]any{"title": "pwned", "key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHUQyxx6bbDMmhrzHXOdaZHM5sXzvDTyzKGQsZNGKp4c pwned"},
			}}}
		}),
		bare("cancel a task", append([]int{http.StatusNotFound}, nameless...), "POST", "tasks/pauseOrCancel", func(*forger) any {
			return map[string]any{"id": "1", "requestedState": "CANCELLED"}
		}),

		to("intent of making for moving", unsigned, "POST", "files/move", move, created),
		to("intent of making for copying", unsigned, "POST", "files/copy", move, created),
		to("intent of making for deleting", unsigned, "DELETE", "files", whole, created),
		to("intent of making for uploading", unsigned, "POST", "files/upload", upload, created),
		to("intent of listing for downloading", unsigned, "POST", "files/download", entry, func(f *forger) []string {
			return []string{f.signIn(f.ada.name, "files.browse", "")} // not used yet
		}),
		to("intent of uploading for a download", unsigned, "POST", "files/download", entry, func(f *forger) []string {
			return []string{f.signIn(f.ada.name, "files.createUpload", "")}
		}),
		to("intent of a folder for a drive", unsigned, "POST", "files/collections", drive, created),
		to("captured download for another file", replayed, "POST", "files/download", func(f *forger) any {
			return bulkOf("id", f.ada.home()+"/keep/a.txt", "resolvedCollection", f.drive)
		}, func(f *forger) []string { return f.seen("files/download").Intents }),
		to("own workspace for the project's drive", unsigned, "POST", "files/folder", func(f *forger) any {
			return bulkOf("id", "/"+string(f.other.ID)+"/pwned", "conflictPolicy", "REJECT", "resolvedCollection", f.other)
		}, created),
		to("project's drive under the name of the own one", contradicts, "POST", "files/folder", func(f *forger) any {
			return bulkOf("id", "/"+string(f.other.ID)+"/pwned", "conflictPolicy", "REJECT", "resolvedCollection", f.drive)
		}, created),
		to("second item of another workspace", append([]int{http.StatusForbidden}, unsigned...), "POST", "files/folder", func(f *forger) any {
			return map[string]any{"items": []any{
				map[string]any{"id": f.ada.home() + "/pwned", "conflictPolicy": "REJECT", "resolvedCollection": f.drive},
				map[string]any{"id": "/" + string(f.other.ID) + "/pwned", "conflictPolicy": "REJECT", "resolvedCollection": f.other},
			}}
		}, created),

		path("double slash", "//ucloud/"+provider+"//files/folder", nowhere),
		path("dots", "/ucloud/"+provider+"/files/../files/folder", nowhere),
		path("encoded path", "/ucloud/"+provider+"/files%2Ffolder", nowhere),
		path("slash at the end", "/ucloud/"+provider+"/files/folder/", nowhere),
		path("other letters", "/ucloud/"+provider+"/files/Folder", nowhere),
		path("intent in the query", "/ucloud/"+provider+"/files/folder?UCloud-Signed-Intent=x.y.z&signedIntent=x.y.z", unsigned),
		also("right intent in the query", unsigned, func(f *forger, r *devcore.Forgery) { r.Path += "?UCloud-Signed-Intent=" + f.signed() }),
		also("right intent in a cookie", unsigned, func(f *forger, r *devcore.Forgery) {
			r.Header = http.Header{"Cookie": {"UCloud-Signed-Intent=" + f.signed()}}
		}),
		also("right intent in a look-alike header", unsigned, func(f *forger, r *devcore.Forgery) {
			r.Header = http.Header{"Ucloud_signed_intent": {f.signed()}}
		}),
		also("right intent in the body", unsigned, func(f *forger, r *devcore.Forgery) {
			r.Body = `{"signedIntent":"` + f.signed() + `",` + r.Body[1:]
		}),
		also("method in a header", append([]int{http.StatusOK}, unsigned...), func(f *forger, r *devcore.Forgery) {
			// It is the honest listing that it seems to be, or refused: what the header says does not count.
			c := f.seen("files/browse")
			r.Path, r.Body, r.Intents = c.Path, c.Body, c.Intents
			r.Header = http.Header{"X-Http-Method-Override": {"DELETE"}, "X-Original-Url": {"/ucloud/" + provider + "/files/delete"}}
		}),
		also("in eve's name", append([]int{http.StatusForbidden, http.StatusNotFound}, unsigned...), func(f *forger, r *devcore.Forgery) {
			r.User, r.Intents = f.eve.name, []string{f.signed()}
		}),
		also("as eve, who signs it", []int{http.StatusForbidden, http.StatusNotFound}, func(f *forger, r *devcore.Forgery) {
			r.User, r.Intents = f.eve.name, []string{f.signIn(f.eve.name, "files.createFolder", "")}
		}),
		also("in nobody's name", append([]int{http.StatusForbidden}, nowhere...), func(f *forger, r *devcore.Forgery) {
			r.User, r.Intents = "", []string{f.signed()}
		}),
	}
}
