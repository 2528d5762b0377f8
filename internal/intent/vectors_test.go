package intent

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/signkey"
	"ucloud-im/internal/testkit"
)

type vectorFile struct {
	Provider, Username string
	Ed25519Seed        string
	Keys               map[string]string
	Vectors            []vector
}

type vector struct {
	Name, Key, Call        string
	Now                    int64
	Header, Payload, Token string
	Sent, Received         json.RawMessage
	Reduced, Bdy           string
	Owners                 []string
	Provider               string // if it is not that of the file
	Reason                 Reason
	Document               bool // stands in docs/protocol-intents.md
}

func readVectors(t testing.TB) vectorFile {
	t.Helper()
	raw, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var f vectorFile
	if err := json.Unmarshal(raw, &f); err != nil || len(f.Vectors) < 9 {
		t.Fatalf("%d vectors: %v", len(f.Vectors), err)
	}
	return f
}

// TestVectors: what docs/protocol-intents.md promises to people who write clients.
func TestVectors(t *testing.T) {
	t.Parallel()
	f := readVectors(t)
	text, err := os.ReadFile("../../docs/protocol-intents.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(text)
	var keys []Key
	for name, pem := range f.Keys {
		key, err := signkey.Parse(pem)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(doc, pem) {
			t.Errorf("the document has another key %s", name)
		}
		keys = append(keys, Key{ID: name, Public: key.Public()})
	}
	seed, err := hex.DecodeString(f.Ed25519Seed)
	if err != nil {
		t.Fatal(err)
	}
	private := ed25519.NewKeyFromSeed(seed)
	shown := 0
	for _, x := range f.Vectors {
		provider := f.Provider
		if x.Provider != "" {
			provider = x.Provider
		}
		v := New(Options{
			Provider: provider, User: ident.UCloudUser(f.Username),
			Keys: func(context.Context, bool) ([]Key, error) { return keys, nil },
			Now:  func() time.Time { return time.Unix(x.Now, 0) },
		})
		got, err := v.Check(t.Context(), Request{
			Rule: Rule{Calls: []string{x.Call}, Owners: x.Owners}, Intent: x.Token, Target: "POST x", Body: x.Received,
		})
		if err != nil || got.Reason != x.Reason || got.KeyID != x.Key {
			t.Errorf("%s: %+v, %v", x.Name, got, err)
		}
		input := base64.RawURLEncoding.EncodeToString([]byte(x.Header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(x.Payload))
		if !strings.HasPrefix(x.Token, input+".") {
			t.Errorf("%s: the token is not of this header and payload", x.Name)
		}
		if x.Key == "ed25519" && x.Token != input+"."+base64.RawURLEncoding.EncodeToString(ed25519.Sign(private, []byte(input))) {
			t.Errorf("%s: the signature is another one", x.Name)
		}
		if x.Sent != nil {
			canonical, err := canonicalOf(x.Call, asSent(x.Call, mustTree(t, x.Sent)))
			if err != nil || string(canonical) != x.Reduced {
				t.Errorf("%s: canonical form %s, %v", x.Name, canonical, err)
			}
			if d, err := Digest(x.Call, x.Sent); err != nil || d != x.Bdy {
				t.Errorf("%s: digest %s, %v", x.Name, d, err)
			}
		}
		if !x.Document {
			continue
		}
		shown++
		for _, part := range []string{x.Header, x.Payload, x.Token, x.Reduced, x.Bdy} {
			if !strings.Contains(doc, part) {
				t.Errorf("%s: the document lacks %s", x.Name, part)
			}
		}
	}
	if shown < 4 {
		t.Errorf("the document shows %d vectors", shown)
	}
}

// TestDocumentNamesEveryReason: the table of what is checked is complete.
func TestDocumentNamesEveryReason(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/protocol-intents.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []Reason{
		Missing, Unsignable, Malformed, NoKey, Signature, WrongCall, WrongUser, Project, Workspaces, WrongDrive, Provider, Payload, Expired,
		Future, Life, Replayed, Busy,
	} {
		if !strings.Contains(string(text), "`"+string(r)+"`") {
			t.Errorf("the document does not have the reason %s", r)
		}
		if !slices.Contains(Reasons(), r) {
			t.Errorf("numbers about the reason %s would be counted as something else", r)
		}
	}
}

// TestDocumentedJavaScript runs the code of the document on what browsers sent, if there is something to run it with.
func TestDocumentedJavaScript(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Component("node"))
	node, err := testkit.Program("node")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../docs/protocol-intents.md")
	if err != nil {
		t.Fatal(err)
	}
	_, code, found := strings.Cut(string(text), "```js\n")
	code, _, closed := strings.Cut(code, "```")
	if !found || !closed {
		t.Fatal("the document has no code")
	}
	type request struct {
		Call string          `json:"call"`
		Sent json.RawMessage `json:"sent"`
	}
	var requests []request
	var want []string
	add := func(call string, sent json.RawMessage) {
		tree := mustTree(t, sent)
		canonical, err := canonicalOf(call, tree)
		if err != nil {
			t.Fatal(err)
		}
		requests, want = append(requests, request{call, sent}), append(want, string(canonical))
	}
	for _, x := range recorded(t) {
		add(x.Call, x.Sent)
	}
	for _, x := range readVectors(t).Vectors {
		if x.Sent != nil {
			add(x.Call, x.Sent)
		}
	}
	add("files.other", json.RawMessage(`{"items":[[],{},null,0,-0.0,1e21,1e-7,123456789.125,{"resolvedX":1,"parameters":{"resolvedX":1,"parameters":{"resolvedX":2}}}],"\ufb33":"\u2028\u0007\ud83d\ude00","\ud83d\ude00":true}`))
	if len(requests) < 20 {
		t.Fatalf("%d requests", len(requests))
	}
	input, err := json.Marshal(requests)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(node, "-e", code+`
const requests = JSON.parse(require("fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(requests.map(({ call, sent }) => {
  if (sent.type === "bulk") delete sent.type;
  if (call === "jobs.create") for (const item of sent.items) { delete item.sshEnabled; delete (item.parameters || {}).ucMetricSampleRate; }
  return canonical(reduce(sent));
})));`)
	cmd.Stdin = strings.NewReader(string(input))
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var got []string
	if err := json.Unmarshal(out, &got); err != nil || len(got) != len(want) {
		t.Fatalf("%d answers: %v", len(got), err)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%s\n JavaScript %s\n here       %s", requests[i].Call, got[i], want[i])
		}
	}
}
