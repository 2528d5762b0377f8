package intent

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"strings"
	"testing"
)

// exchange is what a browser sent to a Core, and what a provider received for it.
type exchange struct {
	Name     string          `json:"name"`
	Call     string          `json:"call"`
	Sent     json.RawMessage `json:"sent"`
	Received json.RawMessage `json:"received"`
}

func recorded(t testing.TB) []exchange {
	t.Helper()
	raw, err := os.ReadFile("testdata/recorded.json")
	if err != nil {
		t.Fatal(err)
	}
	var list []exchange
	if err := json.Unmarshal(raw, &list); err != nil || len(list) < 30 {
		t.Fatalf("%d exchanges: %v", len(list), err)
	}
	return list
}

func digestReceived(call string, body []byte) (string, error) {
	tree, err := readTree(body, nil)
	if err != nil {
		return "", err
	}
	return providerDigest(call, tree)
}

// TestReductionOfRecordings: the browser and the provider compute the same from the two sides of real exchanges.
func TestReductionOfRecordings(t *testing.T) {
	t.Parallel()
	digests := map[string]string{}
	for _, x := range recorded(t) {
		sent, err := Digest(x.Call, x.Sent)
		if err != nil {
			t.Errorf("%s (%s): %v", x.Name, x.Call, err)
			continue
		}
		received, err := digestReceived(x.Call, x.Received)
		if err != nil || sent != received {
			tree, _ := readTree(x.Sent, nil)
			c1, _ := canonicalOf(x.Call, asSent(x.Call, tree))
			tree, _ = readTree(x.Received, nil)
			undone, _ := undo(x.Call, tree)
			c2, _ := canonicalOf(x.Call, undone)
			t.Errorf("%s (%s): %v\n sent     %s\n received %s", x.Name, x.Call, err, c1, c2)
		}
		// Different requests have different digests.
		canonical, _ := canonicalOf(x.Call, asSent(x.Call, mustTree(t, x.Sent)))
		if other, known := digests[sent]; known && other != string(canonical) {
			t.Errorf("%s has the digest of another request", x.Name)
		}
		digests[sent] = string(canonical)
		if len(canonical) < 10 {
			t.Errorf("%s: nothing is left: %s", x.Name, canonical)
		}
	}
}

func mustTree(t testing.TB, body []byte) any {
	t.Helper()
	tree, err := readTree(body, nil)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// TestExamplesCanBeReduced: no example of a call of Core is refused by the reduction for its form.
func TestExamplesCanBeReduced(t *testing.T) {
	t.Parallel()
	const dir = "../providerapi/testdata/examples/provider/"
	for file, call := range map[string]string{
		"files.browse": "files.browse", "files.collections.create": "files.collections.create", "jobs.attachResource": "jobs.attachResource",
		"files.collections.updateAcl": "files.collections.updateAcl", "files.transfer--1-initiate-source": "files.transfer",
		"jobs.create": "jobs.create", "jobs.extend": "jobs.extend", "jobs.updateAcl": "jobs.updateAcl", "ssh.keyUploaded": "ssh_keys.create",
		"jobs.onUpdatedLabels": "jobs.updateLabels", "jobs.terminate": "jobs.terminate", "files.retrieve": "files.retrieve",
	} {
		raw, err := os.ReadFile(dir + file + ".json")
		if err != nil {
			t.Fatal(err)
		}
		var example struct{ Request json.RawMessage }
		if err := json.Unmarshal(raw, &example); err != nil {
			t.Fatal(err)
		}
		if _, err := digestReceived(call, example.Request); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// TestDigestCoversTheRequest: each change is one that a Core could make to do something else in the user's name.
//
//attack:actor compromised core
//attack:does Adds a second spelling of a member that was signed ("ID" beside "id"), which the program reads instead.
//attack:control The digest of a request with two spellings of a name is not computed.
//attack:remove internal/intent/tree.go: for _, f := range o {\n		if !strings.EqualFold(f.name, name) {\n			continue\n		}\n		if found {\n			return nil, twoSpellings(name) => for _, f := range o {\n		if f.name != name {\n			continue\n		}\n		if found {\n			return nil, twoSpellings(name)
//attack:actor compromised core
//attack:does Gives a job a parameter that was not signed, under a name that looks like one that Core adds.
//attack:control Names in maps are the user's, and are all covered.
//attack:remove internal/intent/tree.go: if !isMap && strings.HasPrefix(name, resolvedPrefix) && => if strings.HasPrefix(name, resolvedPrefix) &&
func TestDigestCoversTheRequest(t *testing.T) {
	t.Parallel()
	const job = `{"id":"11","owner":{"createdBy":"a","project":null},"specification":{"product":{"id":"p","category":"c","provider":"x"},
		"application":{"name":"app","version":"1"},"name":"n","parameters":{"command":{"type":"text","value":"echo"},"ucMetricSampleRate":{"type":"text","value":"0ms"}},
		"resources":[{"type":"file","path":"/4/sub"}],"timeAllocation":{"hours":1}},"status":{"resolvedProduct":{"x":1}}}`
	const item = `{"id":"/4/a","conflictPolicy":"RENAME","resolvedCollection":{"id":"4"}}`
	for _, tc := range []struct{ call, honest, old, forged string }{
		{"jobs.create", `{"items":[` + job + `]}`, `"echo"`, `"touch pwned"`},
		{"jobs.create", `{"items":[` + job + `]}`, `"name":"app"`, `"name":"other"`},
		{"jobs.create", `{"items":[` + job + `]}`, `/4/sub`, `/4/secret`},
		{"jobs.create", `{"items":[` + job + `]}`, `"hours":1`, `"hours":100`},
		{"jobs.create", `{"items":[` + job + `]}`, `"command":{`, `"Command":{`},
		{"jobs.create", `{"items":[` + job + `]}`, `"resources":[`, `"resources":[{"type":"file","path":"/5/x"},`},
		{"jobs.create", `{"items":[` + job + `]}`, `"command":{`, `"resolvedExtra":{"type":"text","value":"x"},"command":{`},
		{"jobs.create", `{"items":[` + job + `]}`, `{"items":[`, `{"items":[` + job + `,`},
		{"jobs.create", `{"items":[` + job + `]}`, `"specification":{`, `"Specification":{"name":"z"},"specification":{`},
		{"jobs.create", `{"items":[` + job + `]}`, `"name":"n"`, `"name":"n","NAME":"z"`},
		{"jobs.create", `{"items":[` + job + `]}`, `{"items":[`, `{"ITEMS":[{}],"items":[`},
		{"jobs.terminate", `{"items":[` + job + `]}`, `"id":"11"`, `"id":"12"`},
		{"jobs.terminate", `{"items":[` + job + `]}`, `"id":"11"`, `"id":"11","Id":"12"`},
		{"jobs.terminate", `{"items":[` + job + `]}`, `"id":"11"`, `"id":"11","id":"12"`},
		{"jobs.extend", `{"items":[{"job":` + job + `,"requestedTime":{"hours":2}}]}`, `"hours":2`, `"hours":3`},
		{"jobs.extend", `{"items":[{"job":` + job + `,"requestedTime":{"hours":2}}]}`, `"11"`, `"12"`},
		{"files.trash", `{"items":[` + item + `]}`, `"/4/a"`, `"/4/b"`},
		{"files.createFolder", `{"items":[` + item + `]}`, `RENAME`, `REPLACE`},
		{"files.createFolder", `{"items":[` + item + `]}`, `"id":`, `"ID":"/4/b","id":`},
		{"files.createFolder", `{"items":[` + item + `]}`, `"id":`, `"id":"/4/b","id":`},
		{"files.createFolder", `{"items":[` + item + `]}`, `"id":"/4/a"`, `"id":"/4/a","\u0131d":"/4/b"`},
		{"files.browse", `{"Browse":{"flags":{"path":"/4"},"itemsPerPage":50}}`, `"/4"`, `"/5"`},
		{"files.browse", `{"Browse":{"flags":{"path":"/4"},"itemsPerPage":50}}`, `"Browse"`, `"browse":{"flags":{"path":"/5"}},"Browse"`},
		{"tasks.pauseOrCancel", `{"id":1,"requestedState":"CANCELLED"}`, `:1,`, `:2,`},
		{"files.collections.updateAcl", `{"items":[{"resource":{"id":"7"},"added":[{"permissions":["READ"]}]}]}`, `["READ"]`, `["EDIT"]`},
	} {
		honest, err := digestReceived(tc.call, []byte(tc.honest))
		if err != nil {
			t.Errorf("%s: %v", tc.call, err)
			continue
		}
		if strings.Count(tc.honest, tc.old) == 0 {
			t.Errorf("%s has no %q", tc.call, tc.old)
		}
		forged, err := digestReceived(tc.call, []byte(strings.Replace(tc.honest, tc.old, tc.forged, 1)))
		if err == nil && forged == honest {
			t.Errorf("%s: %s for %s goes unnoticed", tc.call, tc.forged, tc.old)
		}
	}
}

// TestWhatCoreMayChange: members that Core adds, and the ways of writing nothing, do not change the digest.
func TestWhatCoreMayChange(t *testing.T) {
	t.Parallel()
	sent, err := Digest("jobs.create", []byte(`{"type":"bulk","items":[{"name":"n","sshEnabled":true,"replicas":1.0,"parameters":{"a":{"type":"floating_point","value":1e2}}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	received, err := digestReceived("jobs.create", []byte(`{"items":[{"id":"1","specification":{"hostname":null,"labels":{},"replicas":1,"name":"n","resources":[],
		"parameters":{"ucMetricSampleRate":{"type":"text","value":"0ms"},"a":{"readOnly":false,"port":0,"server":"","type":"floating_point","value":100,"specification":{"inputs":null}}}}}]}`))
	if err != nil || received != sent {
		t.Errorf("%s and %s: %v", sent, received, err)
	}
	if a, b := mustDigest(t, "ssh_keys.create", `{"items":[1]}`), mustDigest(t, "ssh_keys.delete", `{}`); a != b {
		t.Error("what Core composes by itself has a digest of its own")
	}
}

func mustDigest(t *testing.T, call, body string) string {
	t.Helper()
	d, err := Digest(call, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestCanonicalForm(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ in, want string }{
		// RFC 8785 section 3.2.2 and 3.2.3.
		{
			`{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],"string":"\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/","literals":[null,true,false]}`,
			`{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\u000f\nA'B\"\\\\\"/"}`,
		},
		{
			`{"\u20ac":"Euro Sign","\r":"Carriage Return","\ufb33":"Hebrew Letter Dalet With Dagesh","1":"One","\ud83d\ude00":"Emoji: Grinning Face","\u0080":"Control","\u00f6":"Latin Small Letter O With Diaeresis"}`,
			"{\"\\r\":\"Carriage Return\",\"1\":\"One\",\"\u0080\":\"Control\",\"ö\":\"Latin Small Letter O With Diaeresis\",\"€\":\"Euro Sign\",\"😀\":\"Emoji: Grinning Face\",\"\ufb33\":\"Hebrew Letter Dalet With Dagesh\"}",
		},
		{"[\"<a>&\u2028\\u0007\\b\\f\\t\\u007f\"]", "[\"<a>&\u2028\\u0007\\b\\f\\t\u007f\"]"},
		{` { "b" : [ ] , "a" : { } } `, `{"a":{},"b":[]}`},
		{`[56,{"d":true,"10":null,"1":[]}]`, `[56,{"1":[],"10":null,"d":true}]`},
		{
			`[-0,-0.0,0e9,1e21,1e-6,1e-7,0.1,9007199254740991]`,
			`[0,0,0,1e+21,0.000001,1e-7,0.1,9007199254740991]`,
		},
	} {
		tree, err := readTree([]byte(tc.in), nil)
		if err != nil {
			t.Errorf("%s: %v", tc.in, err)
			continue
		}
		got, err := appendCanonical(nil, tree)
		if err != nil || string(got) != tc.want {
			t.Errorf("%v\n got  %s\n want %s", err, got, tc.want)
		}
	}
	for _, bad := range []string{
		`{"a":1,"a":2}`, `{"a":{"b":1,"\u0062":2}}`, `{`, `[1,]`, `1 2`, `{"a"}`, "\"\xff\"", strings.Repeat("[", 100) + strings.Repeat("]", 100),
		`nul`, `{"resolvedX":[1}`, `{"resolvedX":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`,
	} {
		if _, err := readTree([]byte(bad), nil); err == nil {
			t.Errorf("%.60s is accepted", bad)
		}
	}
}

// TestNumbers has the samples of RFC 8785 appendix B.
func TestNumbers(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		bits uint64
		want string
	}{
		{0x0000000000000000, "0"},
		{0x8000000000000000, "0"},
		{0x0000000000000001, "5e-324"},
		{0x8000000000000001, "-5e-324"},
		{0x7fefffffffffffff, "1.7976931348623157e+308"},
		{0xffefffffffffffff, "-1.7976931348623157e+308"},
		{0x4340000000000000, "9007199254740992"},
		{0xc340000000000000, "-9007199254740992"},
		{0x4430000000000000, "295147905179352830000"},
		{0x44b52d02c7e14af5, "9.999999999999997e+22"},
		{0x44b52d02c7e14af6, "1e+23"},
		{0x44b52d02c7e14af7, "1.0000000000000001e+23"},
		{0x444b1ae4d6e2ef4e, "999999999999999700000"},
		{0x444b1ae4d6e2ef4f, "999999999999999900000"},
		{0x444b1ae4d6e2ef50, "1e+21"},
		{0x3eb0c6f7a0b5ed8c, "9.999999999999997e-7"},
		{0x3eb0c6f7a0b5ed8d, "0.000001"},
		{0x41b3de4355555553, "333333333.3333332"},
		{0x41b3de4355555554, "333333333.33333325"},
		{0x41b3de4355555555, "333333333.3333333"},
		{0x41b3de4355555556, "333333333.3333334"},
		{0x41b3de4355555557, "333333333.33333343"},
		{0xbecbf647612f3696, "-0.0000033333333333333333"},
		{0x43143ff3c1cb0959, "1424953923781206.2"},
	} {
		if got := string(appendDouble(nil, math.Float64frombits(tc.bits))); got != tc.want {
			t.Errorf("%016x: %s, want %s", tc.bits, got, tc.want)
		}
	}
	for _, bad := range []string{"9007199254740992", "-9007199254740992", "99999999999999999999", "1e20", "-9007199254740993.0", "1e400", "x", ""} {
		if b, err := appendNumber(nil, bad); err == nil {
			t.Errorf("%s is taken for %s", bad, b)
		}
	}
}

func TestTooManyValues(t *testing.T) {
	t.Parallel()
	read := func(body string) error {
		r := reader{dec: json.NewDecoder(strings.NewReader(body)), nodes: maxNodes - 5} // as if there had been so many
		_, err := r.value(0, false)
		return err
	}
	if err := read(`[1,2,3,4]`); err != nil {
		t.Error(err)
	}
	if err := read(`[1,2,3,4,5]`); !errors.Is(err, errTooLarge) {
		t.Errorf("got %v", err)
	}
	// What Core adds and nobody looks at does not count.
	if err := read(`{"resolvedX":[1,2,3,4,5,6,7,8],"a":[1,2]}`); err != nil {
		t.Error(err)
	}
}
