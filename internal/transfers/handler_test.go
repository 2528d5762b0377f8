package transfers

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi/apischema"
	"ucloud-im/internal/uploads"
)

func (s *site) source(path string, change map[string]any) map[string]any {
	out := map[string]any{
		"type": "InitiateSource", "sourcePath": path, "sourceCollection": s.drive(), "destinationProvider": "other", "destinationCollection": noDrive,
	}
	for k, v := range change {
		out[k] = v
	}
	return out
}

func (s *site) destination(path string, change map[string]any) map[string]any {
	out := map[string]any{
		"type": "InitiateDestination", "destinationPath": path, "destinationCollection": s.drive(), "sourceProvider": "other",
		"supportedProtocols": []string{"built-in"}, "sourceCollection": noDrive,
	}
	for k, v := range change {
		out[k] = v
	}
	return out
}

// TestSteps: what is refused, with which status and words.
func TestSteps(t *testing.T) {
	t.Parallel()
	s := newSite(t, "a", nil)
	plant(t, s.dir, map[string]string{"file": "x", "dir/file": "x"})
	if err := unix.Mkfifo(s.dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", s.dir+"/out"); err != nil {
		t.Fatal(err)
	}
	readOnly := s.drive("READ")
	foreign := s.drive()
	foreign.Specification.Product.Provider = "b"
	set := func(change func(*Settings)) func() {
		return func() {
			n := testSettings()
			change(&n)
			s.transfer.SetSettings(n)
		}
	}
	off := set(func(n *Settings) { n.Outgoing, n.Incoming = false, false })
	peers := set(func(n *Settings) { n.Peers = []string{"friend"} })
	none := set(func(n *Settings) { n.Peers = nil })
	for name, tc := range map[string]struct {
		req    map[string]any
		before func()
		status int
		why    string
	}{
		"source folder":             {s.source("/5123/dir", nil), nil, 200, ""},
		"source not cleaned":        {s.source("//5123/./x/../dir/", nil), nil, 200, ""},
		"source file":               {s.source("/5123/file", nil), nil, 200, ""},
		"source drive":              {s.source("/5123", nil), nil, 200, ""},
		"source missing":            {s.source("/5123/none", nil), nil, 404, "does not exist"},
		"source leaves the drive":   {s.source("/5123/../5123/dir", nil), nil, 400, "leaves the drive"},
		"source of another drive":   {s.source("/5124/dir", nil), nil, 400, "does not belong"},
		"source special":            {s.source("/5123/fifo", nil), nil, 400, "Only files and folders"},
		"source link outside":       {s.source("/5123/out", nil), nil, 403, "leaves"},
		"source may not be read":    {s.source("/5123/dir", map[string]any{"sourceCollection": s.drive("EDIT")}), nil, 403, "may not read"},
		"source of nobody":          {s.source("/5123/dir", map[string]any{"sourceCollection": noDrive}), nil, 400, "no drive"},
		"source of another":         {s.source("/5123/dir", map[string]any{"sourceCollection": foreign}), nil, 400, "another provider"},
		"source no peer":            {s.source("/5123/dir", map[string]any{"destinationProvider": ""}), nil, 400, "other provider"},
		"source off":                {s.source("/5123/dir", nil), off, 403, "switched off"},
		"source peer not allowed":   {s.source("/5123/dir", nil), peers, 403, "other are not allowed"},
		"source no peer allowed":    {s.source("/5123/dir", nil), none, 403, "not allowed"},
		"source peer allowed":       {s.source("/5123/dir", map[string]any{"destinationProvider": "friend"}), peers, 200, ""},
		"destination":               {s.destination("/5123/new", nil), nil, 200, ""},
		"destination file":          {s.destination("/5123/file", nil), nil, 200, ""},
		"destination drive":         {s.destination("/5123", nil), nil, 200, ""},
		"destination parent":        {s.destination("/5123/none/new", nil), nil, 404, "does not exist"},
		"destination read-only":     {s.destination("/5123/new", map[string]any{"destinationCollection": readOnly}), nil, 403, "may not change"},
		"destination of nobody":     {s.destination("/5123/new", map[string]any{"destinationCollection": noDrive}), nil, 400, "no drive"},
		"destination leaves":        {s.destination("/5123/../../etc", nil), nil, 400, "leaves"},
		"destination link":          {s.destination("/5123/out/new", nil), nil, 403, "leaves"},
		"destination no protocol":   {s.destination("/5123/new", map[string]any{"supportedProtocols": []string{"globus", "rsync"}}), nil, 400, "no protocol"},
		"destination no protocols":  {s.destination("/5123/new", map[string]any{"supportedProtocols": nil}), nil, 400, "no protocol"},
		"destination many":          {s.destination("/5123/new", map[string]any{"supportedProtocols": []string{"x", "built-in", "y"}}), nil, 200, ""},
		"destination off":           {s.destination("/5123/new", nil), off, 403, "switched off"},
		"destination peer":          {s.destination("/5123/new", nil), peers, 403, "other are not allowed"},
		"unknown type":              {map[string]any{"type": "Stop"}, nil, 400, "not known"},
		"no type":                   {map[string]any{"session": "x", "sourcePath": "/5123/dir", "sourceCollection": s.drive()}, nil, 400, "not known"},
		"start of nothing":          {map[string]any{"type": "Start", "sourceCollection": noDrive, "destinationCollection": noDrive}, nil, 404, "not known"},
		"start of something else":   {map[string]any{"type": "Start", "session": "transfersource-999"}, nil, 404, "not known"},
		"start with an upload":      {map[string]any{"type": "Start", "session": "transfer-1"}, nil, 404, "not known"},
		"start with a long session": {map[string]any{"type": "Start", "session": strings.Repeat("x", 1000)}, nil, 404, "not known"},
	} {
		set(func(*Settings) {})()
		if tc.before != nil {
			tc.before()
		}
		status, answer := s.post(tc.req)
		why, _ := answer["why"].(string)
		if status != tc.status || !strings.Contains(why, tc.why) {
			t.Errorf("%s: %d %v", name, status, answer)
			continue
		}
		want := map[string][]string{
			"InitiateSource": {"session", "supportedProtocols", "type"}, "InitiateDestination": {"protocolParameters", "selectedProtocol", "type"},
		}
		if keys, _ := tc.req["type"].(string); status == 200 && len(answer) != len(want[keys]) {
			t.Errorf("%s: the answer has other keys: %v", name, answer)
		}
	}
}

// TestExamples: the requests of the contract are read, and the answers are as there.
func TestExamples(t *testing.T) {
	t.Parallel()
	s := newSite(t, "hpc-example", nil)
	plant(t, s.dir+"/runs", map[string]string{"x": "x"})
	if err := os.Mkdir(s.dir+"/incoming", 0o777); err != nil {
		t.Fatal(err)
	}
	session := ""
	for _, name := range []string{"1-initiate-source", "2-initiate-destination", "3-start"} {
		raw, err := os.ReadFile("../providerapi/testdata/examples/provider/files.transfer--" + name + ".json")
		if err != nil {
			t.Fatal(err)
		}
		var ex struct {
			Request  map[string]any `json:"request"`
			Response map[string]any `json:"response"`
		}
		raw = bytes.ReplaceAll(raw, []byte(`/data/projects/climate_model`), []byte(s.dir))
		if err := json.Unmarshal(raw, &ex); err != nil {
			t.Fatal(err)
		}
		if session != "" && ex.Request["session"] != nil {
			ex.Request["session"] = session
		}
		status, answer := s.post(ex.Request)
		if status != 200 || len(answer) != len(ex.Response) {
			t.Fatalf("%s: %d %v", name, status, answer)
		}
		for k := range ex.Response {
			if answer[k] == nil {
				t.Errorf("%s: no %s", name, k)
			}
		}
		if v, ok := answer["session"].(string); ok {
			session = v
		}
	}
}

// TestStartTwice: a start that is repeated finds the same task; with something else it is refused.
func TestStartTwice(t *testing.T) {
	t.Parallel()
	a, b := newSite(t, "a", nil), newSite(t, "b", nil)
	plant(t, a.dir+"/data", map[string]string{"x": "x"})
	_, one := a.post(a.source("/5123/data", nil))
	_, two := b.post(b.destination("/5123/in", nil))
	start := func(parameters any) (int, map[string]any) {
		return a.post(map[string]any{
			"type": "Start", "session": one["session"], "selectedProtocol": "built-in", "protocolParameters": parameters,
			"sourceCollection": noDrive, "destinationCollection": noDrive,
		})
	}
	endpoint := two["protocolParameters"].(map[string]any)["Endpoint"].(string)
	for _, p := range []any{
		map[string]any{"endpoint": endpoint}, map[string]any{"Endpoint": endpoint}, map[string]any{"Endpoint": endpoint, "more": 1},
	} {
		if status, answer := start(p); status != 200 || len(answer) != 1 || answer["type"] != "Start" {
			t.Fatalf("%d %v", status, answer)
		}
	}
	if all := a.board.all(); len(all) != 1 {
		t.Errorf("%d tasks", len(all))
	}
	if status, answer := start(map[string]any{"Endpoint": endpoint + "x"}); status != 409 {
		t.Errorf("with something else: %d %v", status, answer)
	}
	for want, p := range map[int][]any{
		400: {nil, "x", map[string]any{}, map[string]any{"Endpoint": ""}, map[string]any{"Endpoint": 5}},
		403: {
			map[string]any{"Endpoint": "ftp://127.0.0.1/"},
			map[string]any{"Endpoint": "wss://10.0.0.1/x"},
			map[string]any{"Endpoint": "wss://u:p@example.org/x"},
			map[string]any{"Endpoint": "wss://169.254.169.254/latest"},
		},
	} {
		for _, parameters := range p {
			if status, answer := start(parameters); status != want {
				t.Errorf("%v: %d %v", parameters, status, answer)
			}
		}
	}
	status, answer := a.post(map[string]any{
		"type": "Start", "session": one["session"], "selectedProtocol": "globus", "protocolParameters": map[string]any{"Endpoint": endpoint},
	})
	if status != 400 {
		t.Errorf("another protocol: %d %v", status, answer)
	}
}

// TestServerAway: without the server nothing is promised, and no session of an upload is left without its task.
func TestServerAway(t *testing.T) {
	t.Parallel()
	s := newSite(t, "a", nil)
	s.board.away = failure.New(failure.Unavailable, "away")
	if status, answer := s.post(s.destination("/5123/in", nil)); status != 503 {
		t.Errorf("%d %v", status, answer)
	}
	if n := s.sessions.open(ipcapi.PurposeTransfer); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
	// The end of a transfer is not lost: the source is to say it again.
	s.transfer.tickEvery = 1
	key := make([]byte, 16)
	ctx, cancel := withTimeout(t)
	defer cancel()
	if err := s.transfer.closed(ctx, uploads.Info{Ref: refOf(key, "b"), Transfer: true}); !failure.Is(err, failure.Unavailable) {
		t.Errorf("%v", err)
	}
}

// TestErrorsOfCore: what is refused is an error document as Core reads it.
func TestErrorsOfCore(t *testing.T) {
	t.Parallel()
	s := newSite(t, "a", nil)
	_, answer := s.post(map[string]any{"type": "Stop"})
	raw, err := json.Marshal(answer)
	if err != nil {
		t.Fatal(err)
	}
	apischema.Provider(t).Error(t, raw)
}

func TestPassedErrors(t *testing.T) {
	t.Parallel()
	if final, err := passed("b", errors.New("connection reset")); final || failure.KindOf(err) != failure.BadGateway {
		t.Error(final, err)
	}
	if final, err := passed("b", failure.New(failure.Forbidden, "no")); !final || failure.Why(err) != "no" {
		t.Error(final, err)
	}
	if final, _ := passed("b", unix.EMFILE); final {
		t.Error("a lack of descriptors is taken for the end")
	}
}
