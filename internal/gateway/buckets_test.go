package gateway

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestBucketsModel compares with the bucket that everybody knows: tokens that come back with time.
func TestBucketsModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r := rateOf{perSecond: float64(rapid.IntRange(1, 50).Draw(t, "rate")), burst: float64(rapid.IntRange(1, 100).Draw(t, "burst"))}
		b := newBuckets[string](10)
		now := b.start
		tokens := r.burst
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			pause := time.Duration(rapid.IntRange(0, 500).Draw(t, "ms")) * time.Millisecond
			now = now.Add(pause)
			tokens = min(r.burst, tokens+pause.Seconds()*r.perSecond)
			if tokens-1 > -1e-3 && tokens-1 < 1e-3 {
				continue // too near to tell with floating point numbers
			}
			wait, ok := b.take("k", r, now)
			if ok != (tokens >= 1) {
				t.Fatalf("taken: %t with %f tokens", ok, tokens)
			}
			if ok {
				tokens--
			} else if want := (1 - tokens) / r.perSecond; wait.Seconds() < want-1e-3 || wait.Seconds() > want+1e-3 {
				t.Fatalf("wait %s, want %f s", wait, want)
			}
		}
	})
}

func TestBucketsGiveBack(t *testing.T) {
	t.Parallel()
	b, r := newBuckets[int](10), rateOf{1, 3}
	now := b.start
	for range 20 {
		if _, ok := b.take(1, r, now); !ok {
			t.Fatal("what was given back is missing")
		}
		b.giveBack(1, r)
	}
	if _, ok := b.peek(1, r, now); !ok {
		t.Error("peek")
	}
	for i := range 4 {
		if _, ok := b.take(1, r, now); ok != (i < 3) {
			t.Errorf("token %d: %t", i, ok)
		}
	}
	if _, ok := b.take(1, rateOf{}, now); !ok {
		t.Error("no rate is no limit")
	}
}

// TestBucketsAreBounded: somebody with a /48 and time has more addresses than any table has room for. The table does not
// grow, and whoever is deep in debt is not forgotten because of it.
//
//attack:actor internet
//attack:does Sends requests from each of the networks of a /48, so that the gateway remembers all of them.
//attack:control The tables of addresses have a bound, and forget the least important entry when they are full.
//attack:remove internal/gateway/buckets.go: len(b.full) >= b.max { => false {
func TestBucketsAreBounded(t *testing.T) {
	t.Parallel()
	b, r := newBuckets[netip.Addr](1000), rateOf{1, 100}
	now := b.start
	debtor := netip.MustParseAddr("192.0.2.1")
	for range 100 {
		b.take(debtor, r, now)
	}
	a := netip.MustParseAddr("2001:db8:1::").As16()
	for i := range 1 << 16 {
		binary.BigEndian.PutUint16(a[6:], uint16(i))
		if _, ok := b.take(source(netip.AddrFrom16(a)), r, now); !ok {
			t.Fatal("refused because the table is full")
		}
		if n := b.len(); n > 1000 {
			t.Fatalf("%d entries", n)
		}
	}
	if _, ok := b.take(debtor, r, now); ok {
		t.Error("the debtor was forgotten")
	}
	b.sweep(now.Add(200 * time.Second))
	if n := b.len(); n != 0 {
		t.Errorf("%d entries after a sweep", n)
	}
}

func TestSource(t *testing.T) {
	t.Parallel()
	for in, want := range map[string][2]string{
		"192.0.2.7":               {"192.0.2.7", "invalid IP"},
		"::ffff:192.0.2.7":        {"192.0.2.7", "invalid IP"},
		"2001:db8:1:2:3:4:5:6":    {"2001:db8:1:2::", "2001:db8:1::"},
		"2001:db8:1:2:ffff::1":    {"2001:db8:1:2::", "2001:db8:1::"},
		"fe80::1%eth0":            {"fe80::", "fe80::"},
		"2001:db8:1:ffff::%dummy": {"2001:db8:1:ffff::", "2001:db8:1::"},
	} {
		ip := netip.MustParseAddr(in)
		if got := [2]string{source(ip).String(), site(ip).String()}; got != want {
			t.Errorf("%s: %v", in, got)
		}
	}
}

func BenchmarkBuckets(b *testing.B) {
	t, r := newBuckets[netip.Addr](maxBuckets), rateOf{200, 2000}
	now := t.start
	b.Run("one address", func(b *testing.B) {
		ip := netip.MustParseAddr("192.0.2.7")
		for b.Loop() {
			t.take(ip, r, now)
		}
	})
	b.Run("new addresses", func(b *testing.B) {
		a, i := netip.MustParseAddr("2001:db8::").As16(), uint64(0)
		for b.Loop() {
			i++
			binary.BigEndian.PutUint64(a[2:], i)
			t.take(netip.AddrFrom16(a), r, now)
		}
	})
}
