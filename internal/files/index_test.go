package files

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"ucloud-im/internal/drives"
)

// purse is an allowance of so many bytes.
type purse struct{ left, used int64 }

func (p *purse) take(n int64, must bool) bool {
	if p.used+n > p.left && !must {
		return false
	}
	p.used += n
	return true
}

func (p *purse) give(n int64) { p.used -= n }

type entry struct {
	name string
	key  int64
}

func (e entry) compare(o entry) int {
	if c := compareInt(e.key, o.key); c != 0 {
		return c
	}
	return modelCompare(e.name, o.name)
}

// build makes an index of entries for a listing that goes on after the mark.
func build(t tester, entries []entry, keyed bool, after *mark, descending bool, limit int) (*index, *purse) {
	t.Helper()
	mem := &purse{left: int64(limit)}
	b := newBuilder(keyed, after, descending, mem, limit)
	for _, e := range entries {
		check(t, b.addLocked([]byte(e.name), drives.EntryRegular, e.key))
	}
	x, err := b.finish()
	check(t, err)
	return x, mem
}

// walk lists everything with as many indexes as it takes, in pages of n.
func walk(t tester, entries []entry, keyed, descending bool, limit, n int) (got []entry, indexes int) {
	t.Helper()
	var after *mark
	for {
		x, mem := build(t, entries, keyed, after, descending, limit)
		indexes++
		for {
			page := 0
			var last uint32
			end := x.each(after, descending, func(rec uint32) bool {
				if page == n {
					return false
				}
				page++
				last = rec
				got = append(got, entry{string(x.name(rec)), x.key(rec)})
				return true
			})
			if page > 0 {
				after = x.mark(last)
			} else if !end {
				after = x.far
			}
			if end {
				if x.unmap != nil {
					x.unmap()
				}
				if mem.used != 0 {
					t.Fatalf("%d bytes were not given back", mem.used)
				}
				return got, indexes
			}
			if !x.covers(after, descending) {
				break
			}
		}
		if x.unmap != nil {
			x.unmap()
		}
	}
}

func TestIndexIsASortedSet(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SliceOfNDistinct(fileName(), 0, 200, rapid.ID).Draw(t, "names")
		keyed := rapid.Bool().Draw(t, "keyed")
		entries := make([]entry, len(names))
		for i, n := range names {
			entries[i].name = n
			if keyed {
				entries[i].key = rapid.Int64Range(-3, 3).Draw(t, "key")
			}
		}
		descending := rapid.Bool().Draw(t, "descending")
		got, _ := walk(t, entries, keyed, descending, 1<<20, rapid.IntRange(1, 50).Draw(t, "page"))
		slices.SortFunc(entries, entry.compare)
		if descending {
			slices.Reverse(entries)
		}
		if !slices.Equal(got, entries) {
			t.Fatalf("got %+v, want %+v", got, entries)
		}
	})
}

// TestIndexBeyondItsMemory lists more entries than fit into the memory allowed: nothing is lost, and the memory holds.
func TestIndexBeyondItsMemory(t *testing.T) {
	t.Parallel()
	const n, limit = 90_000, 1 << 20
	entries := make([]entry, n)
	for i, at := range rand.New(rand.NewPCG(1, 2)).Perm(n) {
		entries[at] = entry{name: fmt.Sprintf("Name-%06d", i), key: int64(i % 7)}
	}
	for _, keyed := range []bool{false, true} {
		for _, descending := range []bool{false, true} {
			in := slices.Clone(entries)
			if !keyed {
				for i := range in {
					in[i].key = 0
				}
			}
			got, indexes := walk(t, in, keyed, descending, limit, 1000)
			slices.SortFunc(in, entry.compare)
			if descending {
				slices.Reverse(in)
			}
			if !slices.Equal(got, in) {
				t.Fatalf("keyed %v, descending %v: got %d entries of %d", keyed, descending, len(got), len(in))
			}
			if indexes < 2 {
				t.Errorf("%d indexes: the limit was not exercised", indexes)
			}
			x, _ := build(t, in, keyed, nil, descending, limit)
			if size := len(x.data) + 4*len(x.order); size > limit {
				t.Errorf("the index has %d bytes", size)
			}
			x.unmap()
		}
	}
}

// TestIndexWithOddSamples has names whose order the sample tells nothing about.
func TestIndexWithOddSamples(t *testing.T) {
	t.Parallel()
	for name, makeName := range map[string]func(i int) string{
		"sorted":            func(i int) string { return fmt.Sprintf("%08d", i) },
		"reversed":          func(i int) string { return fmt.Sprintf("%08d", 99_999_999-i) },
		"one bucket's keys": func(i int) string { return fmt.Sprintf("same-beginning-%d-%d", i%2, i) },
		"far behind":        func(i int) string { return fmt.Sprintf("%0200d", i*7919%60_000) },
		"differing case":    func(i int) string { return fmt.Sprintf("%c%d", 'A'+rune(i%2)*32, i) },
		"last is first": func(i int) string {
			if i > 59_000 {
				return fmt.Sprintf("!%d", i)
			}
			return fmt.Sprintf("x%d", i)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			entries := make([]entry, 60_000)
			for i := range entries {
				entries[i].name = makeName(i)
			}
			got, _ := walk(t, entries, false, false, 64<<20, 777)
			slices.SortFunc(entries, entry.compare)
			if !slices.Equal(got, entries) {
				t.Fatal("not the sorted entries")
			}
		})
	}
}

// TestRepeatedEntriesAreListedOnce: some file systems report an entry twice when the directory changes.
func TestRepeatedEntriesAreListedOnce(t *testing.T) {
	t.Parallel()
	x, _ := build(t, []entry{{"b", 0}, {"a", 0}, {"b", 0}, {"A", 0}, {"b", 0}}, false, nil, false, 1<<20)
	var got []string
	x.each(nil, false, func(rec uint32) bool {
		got = append(got, string(x.name(rec)))
		return true
	})
	if !slices.Equal(got, []string{"A", "a", "b"}) {
		t.Fatalf("got %q", got)
	}
}
