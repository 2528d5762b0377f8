package intent

import (
	"context"
	"os"
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/signkey"
)

// benchmarkCheck verifies the intent of the vector with a name, for a request of the size that Core makes of a listing.
func benchmarkCheck(b *testing.B, name string, remember bool) {
	f := readVectors(b)
	var keys []Key
	for id, pem := range f.Keys {
		key, err := signkey.Parse(pem)
		if err != nil {
			b.Fatal(err)
		}
		keys = append(keys, Key{ID: id, Public: key.Public()})
	}
	for _, x := range f.Vectors {
		if x.Name != name {
			continue
		}
		now := time.Unix(x.Now, 0)
		v := New(Options{
			Provider: f.Provider, User: ident.UCloudUser(f.Username), Now: func() time.Time { return now },
			Keys: func(context.Context, bool) ([]Key, error) { return keys, nil },
		})
		r := Request{Rule: Rule{Calls: []string{x.Call}, Owners: x.Owners}, Intent: x.Token, Target: "POST x", Body: x.Received}
		b.ReportAllocs()
		for b.Loop() {
			if !remember {
				v.seen.entries = nil
			} else {
				for _, e := range v.seen.entries {
					e.requests[0].count = 1
				}
			}
			if verdict, err := v.Check(b.Context(), r); err != nil || !verdict.OK() {
				b.Fatalf("%+v: %v", verdict, err)
			}
		}
		return
	}
	b.Fatalf("no vector %s", name)
}

func BenchmarkCheckRS256(b *testing.B)    { benchmarkCheck(b, "form 1", false) }
func BenchmarkCheckEd25519(b *testing.B)  { benchmarkCheck(b, "listing a folder", false) }
func BenchmarkCheckRepeated(b *testing.B) { benchmarkCheck(b, "form 1", true) }

// BenchmarkOff is what every call costs while the policy is off.
func BenchmarkOff(b *testing.B) {
	p, r := NewPolicy(ModeOff, nil, nil), Rule{Calls: []string{"files.browse"}}
	for b.Loop() {
		if p.Mode(r) != ModeOff {
			b.Fatal("not off")
		}
	}
}

// BenchmarkDigestOfJob reduces the body of a submission as Core sends it.
func BenchmarkDigestOfJob(b *testing.B) {
	body, err := os.ReadFile("../providerapi/testdata/examples/provider/jobs.create.json")
	if err != nil {
		b.Fatal(err)
	}
	tree, err := readTree(body, nil)
	if err != nil {
		b.Fatal(err)
	}
	request, err := tree.(object).member("request")
	if err != nil {
		b.Fatal(err)
	}
	if body, err = appendCanonical(nil, request); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		tree, err := readTree(body, nil)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := providerDigest("jobs.create", tree); err != nil {
			b.Fatal(err)
		}
	}
}

// TestMemoryTakesWhatItSays: the bound in docs/decisions/0013-signed-intents.md.
func TestMemoryTakesWhatItSays(t *testing.T) {
	result := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var m memory
			now := time.Unix(1767225600, 0)
			for n := range maxEntries {
				d := [32]byte{byte(n), byte(n >> 8)}
				if m.use(d, usage{request: d, keyID: "k", exp: now}, now, time.Minute) != OK {
					b.Fatal("no room")
				}
			}
		}
	})
	// What is allocated in all, which is more than what stays.
	if per := result.AllocedBytesPerOp(); per > 2<<20 {
		t.Errorf("%d bytes for %d intents", per, maxEntries)
	}
}
