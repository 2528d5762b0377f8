package intent_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/signkey"
	"ucloud-im/internal/testkit/intentkit"
)

// tablet has a key of the kind that only form 2 has.
var tablet = sync.OnceValue(func() *intentkit.Signer {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	return intentkit.FromPrivate("k3", key)
})

// weakDevice has a key of 1024 bits.
var weakDevice = sync.OnceValue(func() *intentkit.Signer {
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		panic(err)
	}
	return intentkit.FromPrivate("weak", key)
})

// Removal of a file, as a browser asks Core for it.
const sentDeletion = `{"type":"bulk","items":[{"id":"/1/a"}]}`

// form2 is an honest intent of the second form for the removal of a file.
func (w *world) form2(s *intentkit.Signer) string {
	return s.Form2(w.honest(), provider, []byte(sentDeletion))
}

func TestForm2IsAccepted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, device().Public(), tablet().Public())
	for _, s := range []*intentkit.Signer{device(), tablet()} {
		if v := w.want(t, deletion(w.form2(s)), intent.OK); v.Form != intent.Form2 || v.KeyID != s.ID {
			t.Errorf("verdict %+v", v)
		}
	}
	// A query of a browser becomes a document.
	token := tablet().Form2(intentkit.Claims{Call: "files.browse", Username: alice, Project: project, At: w.now}, provider,
		[]byte(`{"itemsPerPage":"50","path":"/4"}`))
	w.want(t, intent.Request{
		Rule:   intent.Rule{Calls: []string{"files.browse"}, Owners: []string{"resolvedCollection"}},
		Target: "POST files/browse", Intent: token,
		Body: []byte(`{"resolvedCollection":{"id":"4","owner":{"createdBy":"x","project":"` + project + `"}},"Browse":{"flags":{"path":"/4"},"itemsPerPage":50}}`),
	}, intent.OK)
}

// TestRefusedForms: tokens that some library somewhere takes for valid.
//
//attack:actor compromised core
//attack:does Sends an intent without a signature, with the algorithm "none".
//attack:control Only the algorithms of the two forms exist, and a signature is always verified.
//attack:remove internal/intent/token.go: case typ == typForm1 && t.alg == algRS256: => case typ == typForm1 && t.alg != "":
//attack:remove internal/intent/token.go: if t.signature, err = decode64(sig); err != nil || len(t.signature) == 0 { => if t.signature, err = decode64(sig); err != nil {
//attack:remove internal/intent/token.go: 		if t.alg != algRS256 {\n			return false => 		if t.alg != algRS256 {\n			return true
//attack:run none
//attack:actor compromised core
//attack:does Sends an intent that is "signed" by HMAC with the user's public key as the secret, or names an algorithm that the key does not have.
//attack:control The key decides how it is used; the header has to say the same.
//attack:remove internal/intent/token.go: case typ == typForm1 && t.alg == algRS256: => case typ == typForm1 && t.alg != "":
//attack:remove internal/intent/token.go: 		if t.alg != algRS256 {\n			return false => 		if t.alg != algRS256 {\n			return true
//attack:run HS256
//attack:actor compromised core
//attack:does Sends an intent that brings its own key in the header, or says in the header where to find one.
//attack:control A header that has anything but type and algorithm is no intent.
//attack:remove internal/intent/token.go: err = errors.New("is not known") // kid, jwk => // kid, jwk
//attack:run header
//attack:actor compromised core
//attack:does Uses a signature that an Ed25519 key made under a header that says RS256.
//attack:control An Ed25519 key verifies only what says EdDSA.
//attack:remove internal/intent/token.go: if t.alg != algEdDSA || len(key) => if len(key)
//attack:run algorithm of the header
//attack:actor compromised core
//attack:does Has a user's device sign a payload with a claim twice, of which one program reads the first and another the last.
//attack:control A member that stands twice is refused.
//attack:remove internal/intent/token.go: if contains(names, name) { => if len(names) > 1000 {
//attack:run twice
//attack:actor compromised core
//attack:does Writes a used intent in other characters, so that it looks like a new one.
//attack:control An intent has exactly one text: no padding, no line breaks, no unused bits, nothing behind it.
//attack:remove internal/intent/token.go: if strings.ContainsAny(text, "\\r\\n") { => if text == "\\r" {
//attack:remove internal/intent/token.go: base64.RawURLEncoding.Strict() => base64.RawURLEncoding
//attack:run other text
//attack:actor compromised core
//attack:does Passes off a token that the key signed for another purpose, with claims of its own.
//attack:control Exactly the claims of the form are accepted.
//attack:remove internal/intent/token.go: 			err = errors.New("is not known")\n		}\n		return err\n	})\n	if err != nil {\n		return err\n	}\n	required => 			err = nil\n		}\n		return err\n	})\n	if err != nil {\n		return err\n	}\n	required
//attack:run unknown claim
//attack:actor compromised core
//attack:does Has intents made whose nonce can be guessed or is empty, so that two of them are the same.
//attack:control The nonce has at least 128 bits.
//attack:remove internal/intent/token.go: if err == nil && (len(c.Jti) < minNonce || => if err == nil && (len(c.Jti) < 0 ||
//attack:run short nonce
func TestRefusedForms(t *testing.T) {
	t.Parallel()
	w := newWorld(t, device().Public(), tablet().Public())
	head := map[string]any{"typ": "JWT", "alg": "RS256"}
	head2 := func(alg string) map[string]any { return map[string]any{"typ": "ucloud-intent+jwt", "alg": alg} }
	body := w.honest().Form1()
	body2 := func(change func(m map[string]any)) map[string]any {
		m := w.honest().Form2(provider, []byte(sentDeletion))
		change(m)
		return m
	}
	with := func(name string, value any) map[string]any {
		m := w.honest().Form1()
		m[name] = value
		return m
	}
	good := device().Form1(w.honest())
	type form struct{ name, token string }
	groups := map[string][]string{}
	for _, tc := range []form{
		{"none", intentkit.Part(map[string]any{"typ": "JWT", "alg": "none"}) + "." + intentkit.Part(body) + "."},
		{"none", intentkit.Part(map[string]any{"typ": "JWT", "alg": "None"}) + "." + intentkit.Part(body) + "." + intentkit.Part("x")},
		{"HS256", intentkit.HS256(device().Key.DER(), map[string]any{"typ": "JWT", "alg": "HS256"}, body)},
		{"HS256", intentkit.HS256([]byte(device().PEM()), map[string]any{"typ": "JWT", "alg": "HS256"}, body)},
		{"HS256", intentkit.HS256([]byte(device().PEM()), head, body)},
		{"PS256", device().Sign(map[string]any{"typ": "JWT", "alg": "PS256"}, body)},
		{"ES256", device().Sign(map[string]any{"typ": "JWT", "alg": "ES256"}, body)},
		{"header", device().Sign(map[string]any{"typ": "JWT", "alg": "RS256", "jwk": map[string]any{"kty": "RSA"}}, body)},
		{"header", device().Sign(map[string]any{"typ": "JWT", "alg": "RS256", "kid": "k2"}, body)},
		{"header", device().Sign(map[string]any{"typ": "JWT", "alg": "RS256", "crit": []string{"exp"}}, body)},
		{"header", device().Sign(map[string]any{"typ": "JWT", "alg": "RS256", "x5u": "https://x.example.org"}, body)},
		{"header", device().Sign(map[string]any{"typ": "JWT", "alg": "RS256", "jku": "https://x.example.org"}, body)},
		{"header", device().Sign(map[string]any{"typ": "JWT", "alg": "RS256", "x5c": []string{"x"}}, body)},
		{"header", device().Sign(map[string]any{"typ": "JWT", "alg": "RS256", "b64": false, "crit": []string{"b64"}}, body)},
		{"other case", device().Sign(`{"typ":"JWT","ALG":"RS256"}`, body)},
		{"other case", device().Sign(map[string]any{"typ": "jwt", "alg": "RS256"}, body)},
		{"no type", device().Sign(map[string]any{"alg": "RS256"}, body)},
		{"other type", device().Sign(map[string]any{"typ": "dpop+jwt", "alg": "RS256"}, body)},
		{"Ed25519 in form 1", tablet().Form1(w.honest())},
		{"algorithm of the header", tablet().Sign(head2("RS256"), body2(func(map[string]any) {}))},
		{"algorithm of the header", device().Sign(head2("EdDSA"), body2(func(map[string]any) {}))},
		{"twice", device().Sign(head, `{"iat":1767225600,"exp":1767225630,"call":"files.browse","call":"files.delete","username":"Alice#1234","project":null}`)},
		{"twice", device().Sign(head, `{"iat":1767225600,"exp":1767225630,"call":"files.delete","username":"Eve#1","usern\u0061me":"Alice#1234","project":null}`)},
		{"twice", device().Sign(`{"typ":"JWT","alg":"none","alg":"RS256"}`, body)},
		{"other text", good + "="},
		{"other text", strings.Replace(good, ".", "\n.", 1)},
		{"other text", good[:len(good)-1] + string(good[len(good)-1]+1)},
		{"other text", good + ".x"},
		{"other text", " " + good},
		{"other text", good[:len(good)-5] + "\n" + good[len(good)-5:]},
		{"other text", device().Sign(head, `{"iat":1767225600,"exp":1767225630,"call":"files.delete","username":"Alice#1234","project":null} {}`)},
		{"unknown claim", device().Sign(head, with("nbf", 1))},
		{"unknown claim", device().Sign(head, with("aud", provider))},
		{"unknown claim", device().Sign(head2("RS256"), body2(func(m map[string]any) { m["htu"] = "x" }))},
		{"no call", device().Sign(head, `{"iat":1767225600,"exp":1767225630,"username":"Alice#1234","project":null}`)},
		{"no time", device().Sign(head, `{"exp":1767225630,"call":"files.delete","username":"Alice#1234","project":null}`)},
		{"no end", device().Sign(head, `{"iat":1767225600,"call":"files.delete","username":"Alice#1234","project":null}`)},
		{"other case", device().Sign(head, `{"iat":1767225600,"exp":1767225630,"Call":"files.delete","username":"Alice#1234","project":null}`)},
		{"time as text", device().Sign(head, with("exp", "1767225630"))},
		{"time", device().Sign(head, with("exp", nil))},
		{"time", device().Sign(head, with("iat", true))},
		{"time", device().Sign(head, with("iat", []int{1767225600}))},
		{"time", device().Sign(head, `{"iat":-0,"exp":1767225630,"call":"files.delete","username":"Alice#1234","project":null}`)},
		{"time", device().Sign(head, `{"iat":01767225600,"exp":1767225630,"call":"files.delete","username":"Alice#1234","project":null}`)},
		{"no text", device().Sign(head, with("username", nil))},
		{"no text", device().Sign(head, with("call", []string{"files.delete"}))},
		{"no text", device().Sign(head, with("project", 7))},
		{"fraction", device().Sign(head, with("exp", 1767225630.5))},
		{"exponent", device().Sign(head, `{"iat":1767225600,"exp":176722563e1,"call":"files.delete","username":"Alice#1234","project":null}`)},
		{"end before start", device().Sign(head, with("exp", 1767225600))},
		{"negative", device().Sign(head, with("iat", -1))},
		{"huge", device().Sign(head, `{"iat":1767225600,"exp":9223372036854775807,"call":"files.delete","username":"Alice#1234","project":null}`)},
		{"list", device().Sign(head, `["files.delete"]`)},
		{"short nonce", device().Sign(head2("RS256"), body2(func(m map[string]any) { m["jti"] = "1" }))},
		{"no nonce", device().Sign(head2("RS256"), body2(func(m map[string]any) { delete(m, "jti") }))},
		{"no provider", device().Sign(head2("RS256"), body2(func(m map[string]any) { delete(m, "aud") }))},
		{"no digest", device().Sign(head2("RS256"), body2(func(m map[string]any) { delete(m, "bdy") }))},
		{"no project", device().Sign(head2("RS256"), body2(func(m map[string]any) { delete(m, "project") }))},
		{"list of providers", device().Sign(head2("RS256"), body2(func(m map[string]any) { m["aud"] = []string{provider} }))},
		{"long", device().Sign(head, with("call", strings.Repeat("x", 9000)))},
		{"two parts", good[:strings.LastIndexByte(good, '.')]},
		{"not base64", "x!.y.z"},
	} {
		groups[tc.name] = append(groups[tc.name], tc.token)
	}
	for name, tokens := range groups {
		t.Run(name, func(t *testing.T) {
			for _, token := range tokens {
				v := w.check(t, deletion(token))
				if v.Reason != intent.Malformed && v.Reason != intent.Signature {
					t.Errorf("%.150s: %q (%s)", token, v.Reason, v.Detail())
				}
				if failure.KindOf(v.Err()) != failure.BadIntent {
					t.Errorf("answered with %v", v.Err())
				}
			}
		})
	}
	w.want(t, deletion(good), intent.OK) // none of all this has used it up
}

// TestClaimsAreCompared: what an honest intent is good for, and nothing else.
//
//attack:actor compromised core
//attack:does Takes the user's intent to list a folder, and removes files with it.
//attack:control The call that was signed is the call that is made.
//attack:remove internal/intent/intent.go: case !r.Rule.accepts(c.Call): => case false:
//attack:actor compromised core
//attack:does Uses an intent that another user has signed, in a request in this user's name.
//attack:control The user who signed is the user of the instance.
//attack:remove internal/intent/intent.go: case c.Username != string(v.opts.User): => case false:
//attack:actor compromised core
//attack:does Uses an intent for one provider at another one that knows the same key.
//attack:control An intent of form 2 names its provider.
//attack:remove internal/intent/intent.go: case t.form == Form2 && c.Aud != v.opts.Provider: => case false:
//attack:actor compromised core
//attack:does Puts other files, another job or another script into a request that the user has signed.
//attack:control An intent of form 2 has a digest of the payload.
//attack:remove internal/intent/intent.go: if digest != c.Bdy { => if digest == "" {
//attack:actor compromised core
//attack:does Turns an intent of one workspace against resources of another one.
//attack:control The workspace that was signed is that of each resource in the request.
//attack:remove internal/intent/owners.go: case owner == signed: => case owner == owner:
//attack:actor compromised core
//attack:does Leaves out the documents that say whose the resources are, so that there is nothing to compare.
//attack:control A resource without an owner is refused.
//attack:remove internal/intent/owners.go: case !present && !optional: => case optional && !optional:
//attack:actor compromised core
//attack:does Sends the owner in two spellings, of which the check reads one and the program the other.
//attack:control Members that differ in case only are refused.
//attack:remove internal/intent/tree.go: 		if found {\n			return nil, twoSpellings(name) => 		if found {\n			break
func TestClaimsAreCompared(t *testing.T) {
	t.Parallel()
	w := newWorld(t, device().Public(), tablet().Public())
	change := func(f func(c *intentkit.Claims)) intentkit.Claims {
		c := w.honest()
		f(&c)
		return c
	}
	w.want(t, deletion(device().Form1(change(func(c *intentkit.Claims) { c.Call = "files.browse" }))), intent.WrongCall)
	w.want(t, deletion(device().Form1(change(func(c *intentkit.Claims) { c.Call = "files.delete " }))), intent.WrongCall)
	w.want(t, deletion(device().Form1(change(func(c *intentkit.Claims) { c.Username = "alice#1234" }))), intent.WrongUser)
	w.want(t, deletion(device().Form1(change(func(c *intentkit.Claims) { c.Username = "" }))), intent.WrongUser)
	w.want(t, deletion(tablet().Form2(w.honest(), "other-hpc", []byte(sentDeletion))), intent.Provider)
	w.want(t, deletion(tablet().Form2(w.honest(), provider, []byte(`{"items":[{"id":"/1/b"}]}`))), intent.Payload)
	w.want(t, deletion(tablet().Form2(w.honest(), provider, []byte(`{"items":[]}`))), intent.Payload)

	body := func(owners ...string) []byte {
		var items []string
		for _, o := range owners {
			items = append(items, `{"id":"/1/a","resolvedCollection":{"id":"1","owner":`+o+`}}`)
		}
		return []byte(`{"items":[` + strings.Join(items, ",") + `]}`)
	}
	const (
		mine   = `{"createdBy":"Alice#1234","project":null}`
		short  = `{"createdBy":"Alice#1234"}`
		team   = `{"createdBy":"Bob#1","project":"` + project + `"}`
		other  = `{"createdBy":"Bob#1","project":"other"}`
		nobody = `{"project":null}`
	)
	n := 0
	for _, tc := range []struct {
		project string
		body    []byte
		want    intent.Reason
	}{
		{"", body(mine), intent.OK},
		{"", body(short), intent.OK},
		{"", body(mine, short), intent.OK},
		{"", body(), intent.OK},
		{project, body(team), intent.OK},
		{project, body(team, team), intent.OK},
		{"", body(team), intent.Project},
		{project, body(mine), intent.Project},
		{project, body(other), intent.Project},
		{project, body(team, mine), intent.Workspaces},
		{"", body(mine, other), intent.Workspaces},
		{project, body(nobody), intent.Payload},
		{"", body(nobody), intent.Payload},
		{"", []byte(`{"items":[{"id":"/1/a"}]}`), intent.Payload},
		{"", []byte(`{"items":[{"id":"/1/a","resolvedCollection":null}]}`), intent.Payload},
		{"", []byte(`{"items":7}`), intent.Payload},
		{"", []byte(`{`), intent.Payload},
		{project, []byte(`{"items":[{"resolvedCollection":{"owner":` + team + `,"Owner":` + mine + `}}]}`), intent.Payload},
		{project, []byte(`{"items":[{"resolvedCollection":{"owner":` + team + `,"owner":` + mine + `}}]}`), intent.Payload},
		{project, []byte(`{"Items":[{"ResolvedCollection":{"Owner":` + team + `}}]}`), intent.OK},
	} {
		n++
		w.now = w.now.Add(time.Second) // another intent each time
		r := deletion(device().Form1(change(func(c *intentkit.Claims) { c.Project, c.At = tc.project, w.now })))
		r.Rule.Owners, r.Body = []string{"items[].resolvedCollection"}, tc.body
		if v := w.check(t, r); v.Reason != tc.want {
			t.Errorf("%d: project %q, body %s: %q (%s), want %q", n, tc.project, tc.body, v.Reason, v.Detail(), tc.want)
		}
	}
	// A place that may be empty, and the body itself as the resource.
	w.now = w.now.Add(time.Second)
	r := deletion(device().Form1(change(func(c *intentkit.Claims) { c.At = w.now })))
	r.Rule.Owners, r.Body = []string{"source?", "target?", ""}, []byte(`{"source":{"owner":`+nobody+`},"owner":`+mine+`}`)
	w.want(t, r, intent.OK)
}

// TestDrivesAreWhereTheProviderPutThem: the ids of drives are signed, and the documents that say where they are are not.
//
//attack:actor compromised core
//attack:does Leaves a signed request as it is, and says of the drive in it that it is another directory.
//attack:control Where a drive is, and whose, is compared with what the provider itself knows.
//attack:remove internal/intent/drives.go: known.ProviderID != place || => known.ProviderID+place == "" ||
//attack:run other place
//attack:actor compromised core
//attack:does Says of a drive of one project that it belongs to the one for which the user has signed.
//attack:control Whose a drive is is compared with what the provider itself knows.
//attack:remove internal/intent/drives.go: || known.Project != project) => || known.Project+project == "")
//attack:run other owner
//attack:actor compromised core
//attack:does Describes the drive of a signed request twice: as it is, and once more under the same name in other letters, which the program takes instead.
//attack:control Documents of drives are found in every spelling of their name, and two of them are refused.
//attack:remove internal/intent/tree.go: if strings.EqualFold(want, name) { => if want == name {
//attack:run twice in other letters
func TestDrivesAreWhereTheProviderPutThem(t *testing.T) {
	t.Parallel()
	const place = `hpc-example-Alice#1234\n/home/alice`
	known := func(id string) (intent.Drive, bool, error) {
		if id != "4" {
			return intent.Drive{}, false, nil
		}
		return intent.Drive{ProviderID: "hpc-example-Alice#1234\n/home/alice", Project: project}, true, nil
	}
	request := func(w *world, drive string) intent.Request {
		c := w.honest()
		c.Call, c.Project = "files.trash", project
		return intent.Request{
			Rule:   intent.Rule{Calls: []string{"files.trash"}, Owners: []string{"items[].resolvedCollection"}},
			Intent: tablet().Form2(c, provider, []byte(`{"items":[{"id":"/4/a"}]}`)), Target: "POST files/trash",
			Body: []byte(`{"items":[{"id":"/4/a","resolvedCollection":` + drive + `}]}`),
		}
	}
	owner := `"owner":{"createdBy":"Alice#1234","project":"` + project + `"}`
	honest := `{"id":"4","providerGeneratedId":"` + place + `",` + owner + `}`
	for _, tc := range []struct {
		name, drive string
		want        intent.Reason
	}{
		{"honest", honest, intent.OK},
		{"not known here", `{"id":"5","providerGeneratedId":"elsewhere",` + owner + `}`, intent.OK},
		{"other place", `{"id":"4","providerGeneratedId":"` + place + `/secret",` + owner + `}`, intent.WrongDrive},
		{"no place", `{"id":"4",` + owner + `}`, intent.WrongDrive},
		{"id as a number", `{"id":4,"providerGeneratedId":"x",` + owner + `}`, intent.WrongDrive},
		{"two places", `{"id":"4","providerGeneratedId":"` + place + `","providergeneratedid":"x",` + owner + `}`, intent.Payload},
		{"twice in other letters", honest + `,"resolvedcollection":{"id":"4","providerGeneratedId":"x",` + owner + `}`, intent.Payload},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, tablet().Public())
			w.drive = known
			w.want(t, request(w, tc.drive), tc.want)
		})
	}
	t.Run("other owner", func(t *testing.T) {
		w := newWorld(t, tablet().Public())
		w.drive = func(string) (intent.Drive, bool, error) {
			return intent.Drive{ProviderID: "hpc-example-Alice#1234\n/home/alice", Project: "other"}, true, nil
		}
		w.want(t, request(w, `{"id":"4","providerGeneratedId":"`+place+`",`+owner+`}`), intent.WrongDrive)
	})
	t.Run("the server is away", func(t *testing.T) {
		w := newWorld(t, tablet().Public())
		w.drive = func(string) (intent.Drive, bool, error) { return intent.Drive{}, false, errors.New("away") }
		if _, err := w.Check(t.Context(), request(w, `{"id":"4",`+owner+`}`)); !failure.Is(err, failure.Unavailable) {
			t.Errorf("got %v", err)
		}
	})
}

// TestTimes: the clocks of users' devices are off, and no key is to be thrown away for it.
//
//attack:actor compromised core
//attack:does Keeps an intent and uses it later.
//attack:control An intent is good for half a minute, and for the time by which clocks may be off.
//attack:remove internal/intent/intent.go: case !c.Exp.After(now.Add(-leeway)): => case false:
//attack:actor compromised core
//attack:does Has a device with a wrong clock sign for the future, and waits.
//attack:control An intent from the future is refused.
//attack:remove internal/intent/intent.go: case c.Iat.After(now.Add(leeway)): => case false:
//attack:actor compromised core
//attack:does Has a client, which it delivers, sign intents that are valid for years.
//attack:control The life of an intent is bounded.
//attack:remove internal/intent/intent.go: case c.Exp.Sub(c.Iat) > maxAge: => case c.Exp.Sub(c.Iat) > 1000000*maxAge:
func TestTimes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, device().Public())
	for _, tc := range []struct {
		iat, exp time.Duration
		want     intent.Reason
	}{
		{0, 30 * time.Second, intent.OK},
		{-60 * time.Second, -30 * time.Second, intent.OK}, // the clock is slow
		{-90 * time.Second, -60 * time.Second, intent.Expired},
		{-89 * time.Second, -59 * time.Second, intent.OK},
		{60 * time.Second, 90 * time.Second, intent.OK}, // the clock is fast
		{61 * time.Second, 91 * time.Second, intent.Future},
		{time.Hour, 2 * time.Hour, intent.Life},
		{0, 60 * time.Second, intent.OK},
		{0, 61 * time.Second, intent.Life},
		{-24 * time.Hour, 24 * time.Hour, intent.Life},
	} {
		c := w.honest()
		c.At, c.Life = w.now.Add(tc.iat), tc.exp-tc.iat
		w.want(t, deletion(device().Form1(c)), tc.want)
	}
}

// TestKeysThatCount: an intent is as good as the key that verifies it.
//
//attack:actor compromised core
//attack:does Signs in the user's name with a key of its own, or with one that was revoked or never became active.
//attack:control A signature has to verify with a key that counts now.
//attack:remove internal/intent/verify.go: 		if t.verify(k.Public) { => 		if t != nil || t.verify(k.Public) {
//attack:actor compromised core
//attack:does Signs with a key that has expired, of a device that was sold.
//attack:control Expired keys do not count.
//attack:remove internal/intent/verify.go: if k.ID != "" && !expired && => _ = expired\n		if k.ID != "" &&
//attack:actor compromised core
//attack:does Gets a weak key past the upload, and signs with its private half, which it computed.
//attack:control A weak key verifies nothing, whoever stored it.
//attack:remove internal/intent/verify.go: signkey.Check(k.Public) == nil { => signkey.Check(k.Public) != k.Public {
//attack:actor compromised core
//attack:does Repeats a request that was signed with a key which the user has revoked meanwhile.
//attack:control That a signature has been verified before counts only while its key does.
//attack:remove internal/intent/verify.go: 		if k.ID == id {\n			return id\n		}\n	} => 		if k.ID == id {\n			return id\n		}\n	}\n	if id != "" {\n		return id\n	}
func TestKeysThatCount(t *testing.T) {
	t.Parallel()
	w := newWorld(t, device().Public())
	w.want(t, deletion(otherDevice().Form1(w.honest())), intent.Signature)
	good := deletion(device().Form1(w.honest()))
	w.want(t, good, intent.OK)

	// Revoked: neither a new intent nor one that was seen before is good any more.
	w.keys, w.fresh = nil, nil
	w.want(t, good, intent.NoKey)
	w.keys, w.fresh = []intent.Key{otherDevice().Public()}, []intent.Key{otherDevice().Public()}
	w.want(t, good, intent.Signature)

	// A device that was connected just now is found by a fresh look.
	w = newWorld(t, otherDevice().Public())
	w.fresh = []intent.Key{otherDevice().Public(), device().Public()}
	w.want(t, deletion(device().Form1(w.honest())), intent.OK)
	if w.reads != 1 {
		t.Errorf("%d fresh looks", w.reads)
	}

	// Two browsers of one user that ask for the like within a second sign the same claims.
	w = newWorld(t, device().Public(), otherDevice().Public())
	same := w.honest()
	w.want(t, deletion(device().Form1(same)), intent.OK)
	second := deletion(otherDevice().Form1(same))
	second.Body = []byte(`{"items":[{"id":"/1/z"}]}`)
	w.want(t, second, intent.OK)

	key := device().Public()
	key.Expires = w.now.Add(time.Minute)
	w = newWorld(t, key)
	w.want(t, deletion(device().Form1(w.honest())), intent.OK)
	w.now = key.Expires
	w.want(t, deletion(device().Form1(w.honest())), intent.NoKey)

	w = newWorld(t, weakDevice().Public())
	w.want(t, deletion(weakDevice().Form1(w.honest())), intent.NoKey)
	if signkey.Check(weakDevice().Public().Public) == nil {
		t.Error("the key is not weak")
	}
}

// TestFreshLooksAreBounded: bad signatures do not make the server read keys at their pace.
//
//attack:actor compromised core
//attack:does Floods an instance with bad signatures, each of which makes the server read the user's keys again.
//attack:control Keys are read again a few times a minute at most.
//attack:remove internal/intent/verify.go: if len(l.used) >= freshBurst { => if len(l.used) >= 1<<20 {
func TestFreshLooksAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, device().Public())
	for range 50 {
		w.want(t, deletion(otherDevice().Form1(w.honest())), intent.Signature)
	}
	if w.reads > 5 {
		t.Errorf("%d fresh looks", w.reads)
	}
	w.now = w.now.Add(time.Hour)
	w.fresh = []intent.Key{otherDevice().Public()}
	w.want(t, deletion(otherDevice().Form1(w.honest())), intent.OK)
}

// TestReplays: an intent is for one request, which Core may repeat.
//
//attack:actor compromised core
//attack:does Uses the intent of a request for another payload, of which form 1 says nothing.
//attack:control An intent for a call that changes something is good for the one request with which it came first.
//attack:remove internal/intent/memory.go: if !u.reads || len(e.requests) => if len(e.requests)
//attack:run other payload
//attack:actor compromised core
//attack:does Uses the intent of a request at another path that accepts the same call.
//attack:control What an intent is good for is bound to method and path.
//attack:remove internal/intent/memory.go: []string{r.Target, r.FrameCall} => []string{r.FrameCall}
//attack:run other path
//attack:actor compromised core
//attack:does Repeats a signed request as often as it likes within the life of the intent.
//attack:control The same request is accepted about as often as an honest Core repeats it.
//attack:remove internal/intent/memory.go: if r.count >= maxRepeats { => if r.count >= 1<<20 {
//attack:run repeats
//attack:actor compromised core
//attack:does Keeps the intent with which the user listed a folder, and lists all other folders with it.
//attack:control An intent of form 1 that reads is shared only by requests of the same moment, which the web client cannot tell apart.
//attack:remove internal/intent/memory.go: now.Sub(e.first) > readWindow => now.Sub(e.first) > 1000*readWindow
//attack:run reads later
//attack:actor compromised core
//attack:does Lists many folders at once with the intent to list one.
//attack:control The number of requests that share an intent is bounded.
//attack:remove internal/intent/memory.go: len(e.requests) >= maxReads || => len(e.requests) >= 1<<20 ||
//attack:run many reads
//attack:actor compromised core
//attack:does Repeats a listing that was signed in form 2 with other flags, which the digest does not cover.
//attack:control An intent of form 2 is never shared by several requests.
//attack:remove internal/intent/intent.go: readOnly(t.claims.Call) && t.form == Form1 => readOnly(t.claims.Call)
//attack:run reads in form 2
func TestReplays(t *testing.T) {
	t.Parallel()
	browse := intent.Rule{Calls: []string{"files.browse"}}
	listing := func(w *world, token, path string) intent.Request {
		return intent.Request{
			Rule: browse, Intent: token, Target: "POST files/browse",
			Body: fmt.Appendf(nil, `{"Browse":{"flags":{"path":%q}}}`, path),
		}
	}
	reading := func(w *world) intentkit.Claims {
		c := w.honest()
		c.Call = "files.browse"
		return c
	}
	t.Run("other payload", func(t *testing.T) {
		t.Parallel()
		for _, form := range []func(w *world) string{
			func(w *world) string { return device().Form1(w.honest()) },
			func(w *world) string { return w.form2(tablet()) },
		} {
			w := newWorld(t, device().Public(), tablet().Public())
			first := deletion(form(w))
			w.want(t, first, intent.OK)
			other := first
			other.Body = []byte(`{"items": [{"id":"/1/a"}]}`) // the digest of form 2 is the same
			w.want(t, other, intent.Replayed)
			w.want(t, first, intent.OK)
		}
	})
	t.Run("other path", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, device().Public())
		r := deletion(device().Form1(w.honest()))
		w.want(t, r, intent.OK)
		r.Target = "POST /ucloud/hpc-example/files/other"
		w.want(t, r, intent.Replayed)
	})
	t.Run("repeats", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, device().Public())
		r := deletion(device().Form1(w.honest()))
		for i := range 6 { // as Core does when it is answered 449 or 503
			w.now = w.now.Add(500 * time.Millisecond)
			if v := w.check(t, r); !v.OK() {
				t.Fatalf("try %d: %s", i, v.Reason)
			}
		}
		passed := 0
		for range 100 {
			if w.check(t, r).OK() {
				passed++
			}
		}
		if passed > 10 {
			t.Errorf("the same request passes %d times more", passed)
		}
	})
	t.Run("reads at once", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, device().Public())
		token := device().Form1(reading(w))
		for i := range 10 {
			w.want(t, listing(w, token, fmt.Sprint("/4/", i)), intent.OK)
		}
	})
	t.Run("reads later", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, device().Public())
		token := device().Form1(reading(w))
		w.want(t, listing(w, token, "/4/a"), intent.OK)
		w.now = w.now.Add(6 * time.Second)
		w.want(t, listing(w, token, "/4/b"), intent.Replayed)
		w.want(t, listing(w, token, "/4/a"), intent.OK)
	})
	t.Run("many reads", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, device().Public())
		token, passed := device().Form1(reading(w)), 0
		for i := range 200 {
			if w.check(t, listing(w, token, fmt.Sprint("/4/", i))).OK() {
				passed++
			}
		}
		if passed > 30 {
			t.Errorf("one intent lists %d folders", passed)
		}
	})
	t.Run("reads in form 2", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, tablet().Public())
		r := listing(w, tablet().Form2(reading(w), provider, []byte(`{"path":"/4"}`)), "/4")
		w.want(t, r, intent.OK)
		r.Body = []byte(`{"Browse":{"flags":{"path":"/4"},"next":"2"}}`)
		w.want(t, r, intent.Replayed)
	})
}

// TestUnsignedClaimsDoNotCount: an intent that nobody signed uses up nothing and tells nothing.
func TestUnsignedClaimsDoNotCount(t *testing.T) {
	t.Parallel()
	w := newWorld(t, device().Public())
	c := w.honest()
	good := device().Form1(c)
	forged := good[:strings.LastIndexByte(good, '.')+1] + base64.RawURLEncoding.EncodeToString(make([]byte, 256))
	v := w.want(t, deletion(forged), intent.Signature)
	if v.KeyID != "" || v.Call != "files.delete" {
		t.Errorf("verdict %+v", v)
	}
	c.Call = "files.browse"
	wrong := device().Form1(c)
	forged = wrong[:strings.LastIndexByte(wrong, '.')+1] + "AAAA"
	if v := w.want(t, deletion(forged), intent.Signature); v.Call != "files.delete" {
		t.Errorf("verdict %+v", v)
	}
	other := deletion(good)
	other.Body = []byte(`{"items":[{"id":"/1/z"}]}`)
	w.want(t, other, intent.OK) // the forged one has not bound the honest one to its payload
	// A signature that verified before does not help another one under the same claims.
	w.want(t, deletion(forged[:strings.LastIndexByte(forged, '.')+1]+"AAAA"), intent.Signature)
	other.Intent = good[:strings.LastIndexByte(good, '.')+1] + base64.RawURLEncoding.EncodeToString(make([]byte, 256))
	w.want(t, other, intent.Signature)
}
