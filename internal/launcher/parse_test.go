package launcher

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/ident"
)

func TestParseStatus(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	st, err := parseStatus(raw)
	if err != nil {
		t.Fatal(err)
	}
	if st.ppid != int32(os.Getppid()) || st.uids[1] != uint64(os.Geteuid()) || st.gids[0] != uint64(os.Getgid()) {
		t.Fatalf("%+v", st)
	}
	for name, change := range map[string]func(string) string{
		"no Uid":       func(s string) string { return strings.Replace(s, "Uid:", "Xid:", 1) },
		"three uids":   func(s string) string { return strings.Replace(s, "Uid:\t0\t0\t0\t0", "Uid:\t0\t0\t0", 1) },
		"no CapAmb":    func(s string) string { return strings.Replace(s, "CapAmb:", "CapXxx:", 1) },
		"not a number": func(s string) string { return strings.Replace(s, "PPid:\t", "PPid:\tx", 1) },
	} {
		if text := change(string(raw)); text != string(raw) {
			if _, err := parseStatus([]byte(text)); err == nil {
				t.Errorf("%s: accepted", name)
			}
		}
	}
	const caps = "PPid:\t1\nUid:\t5\t5\t5\t5\nGid:\t5\t5\t5\t5\nGroups:\t5 6\nCapInh:\t0000000000000000\n" +
		"CapPrm:\t0000000000000400\nCapEff:\t0000000000000000\nCapAmb:\t0000000000000000\n"
	if st, err := parseStatus([]byte(caps)); err != nil || !st.capabilities {
		t.Errorf("a capability is overlooked: %+v, %v", st, err)
	}
}

func TestParseStartTime(t *testing.T) {
	t.Parallel()
	raw := "42 (a ) b (c) R 1 42 42 0 -1 4194304 100 0 0 0 0 0 0 0 20 0 1 0 123456 1000 10\n"
	if n, err := parseStartTime([]byte(raw)); err != nil || n != 123456 {
		t.Fatalf("%d, %v", n, err)
	}
	a, err := startTimeOf(int32(os.Getpid()))
	if err != nil || a == 0 {
		t.Fatalf("%d, %v", a, err)
	}
}

func FuzzParseStatus(f *testing.F) {
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte("Uid:\nGid:"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if st, err := parseStatus(b); err == nil && (len(st.uids) != 4 || len(st.gids) != 4) {
			t.Fatalf("%+v", st)
		}
		parseStartTime(b) //nolint:errcheck // must not panic
	})
}

func FuzzAccountEvent(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x80\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00passwd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(_ *testing.T, b []byte) { accountEvent(b) })
}

func goodRecord() record {
	return record{
		Version: 1, User: "Alice#1", UID: 1000, LocalName: "alice", Port: 42000, Inode: 7, Route: 8, Generation: 1,
		HopKey: make([]byte, 32), PID: 100, StartTime: 5, Groups: []ident.GID{1000}, Since: time.Unix(100, 0).UTC(),
	}
}

func TestRegistry(t *testing.T) {
	t.Parallel()
	dir, err := openPrivateDir(t.TempDir() + "/instances")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.close()
	g := &registry{dir: dir, log: quiet()}
	want := goodRecord()
	if err := g.save(want); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"2000.json": `{"version":1}`, "2001.json": "not json", "2002.json": "", "1001.json": mustJSON(t, want),
	} {
		if err := dir.replace(name, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := g.load()
	if err != nil || len(got) != 1 || !reflect.DeepEqual(got[0], want) {
		t.Fatalf("%+v, %v", got, err)
	}
	if names, _ := dir.names(".json"); len(names) != 1 {
		t.Fatalf("bad records stay: %v", names)
	}
	g.remove(want.UID)
	if got, err := g.load(); err != nil || len(got) != 0 {
		t.Fatalf("%+v, %v", got, err)
	}
}

func mustJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(mustJSON(f, goodRecord())))
	f.Add([]byte(`{"version":1,"uid":0}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(b)
		if err != nil {
			return
		}
		if r.UID == 0 || r.PID <= 1 || len(r.HopKey) != 32 || r.Port < 1 || r.Port > 65535 {
			t.Fatalf("accepted %+v", r)
		}
	})
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]time.Duration{
		0: 0, 1: 0, 2: 500 * time.Millisecond, 3: time.Second, 4: 2 * time.Second, 20: 30 * time.Second, 1000: 30 * time.Second,
	} {
		if got := backoff(n); got != want {
			t.Errorf("backoff(%d) = %v, want %v", n, got, want)
		}
	}
}

func TestCompareGroups(t *testing.T) {
	t.Parallel()
	g := func(n ...ident.GID) []ident.GID { return n }
	for _, tc := range []struct {
		name         string
		have, want   []ident.GID
		lost, gained bool
	}{
		{"same", g(1, 2), g(2, 1), false, false},
		{"lost", g(1, 2), g(1), true, false},
		{"gained", g(1), g(1, 2), false, true},
		{"both", g(1, 2), g(1, 3), true, true},
		{"none", nil, nil, false, false},
	} {
		if lost, gained := compareGroups(tc.have, tc.want); lost != tc.lost || gained != tc.gained {
			t.Errorf("%s: lost %v, gained %v", tc.name, lost, gained)
		}
	}
}
