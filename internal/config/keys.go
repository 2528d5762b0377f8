package config

import (
	"reflect"
	"strings"
)

// keyInfo is what the tags of a struct field say about a key. Parser, JSON Schema and reference text are made from the
// same tags (CFG-6):
//
//	key:"name"         the key; ",inline" puts the members of a struct among those of its parent
//	doc:"…"            what it means; required
//	default:"…"        the default, in YAML
//	defaultDoc:"…"     how the default is described where it is computed, or where "none" needs words
//	need:"yes"         must be given; any other text says when it must be, and a cross-check sees to it
//	enum:"a,b"         the only possible texts
//	min, max, zero     bounds of numbers, durations and sizes; zero allows 0 beside them
//	vars:"place"       which variables a pattern may use
//	keys:"form"        what the keys of a map look like
//	reload:"restart"   a change needs a restart; inherited by members; everything else is applied by reload
//	exists:"file|dir"  environment rule: a path that must exist
//	port, scheme       defaults inside a host
//	flags              relative (paths: to the configuration directory), numeric (text that may look like a number),
//	                   nonempty, added (a key that contract 40 does not name)
type keyInfo struct {
	key        string
	doc        string
	def        string
	hasDefault bool
	defaultDoc string
	need       string
	enum       []string
	min, max   string
	zero       bool
	vars       string
	keyForm    string
	restart    bool
	exists     string
	port       string
	scheme     string
	relative   bool
	numeric    bool
	nonEmpty   bool
	added      bool
	index      []int
	typ        reflect.Type
}

// example is how a missing key could be written.
func (k *keyInfo) example() string {
	if len(k.enum) > 0 {
		return k.key + ": " + strings.Join(k.enum, " | ")
	}
	return k.key + " (" + typeName(k.typ, k) + ")"
}

type keyList []*keyInfo

func (l keyList) find(key string) (*keyInfo, bool) {
	for _, k := range l {
		if k.key == key {
			return k, true
		}
	}
	return nil, false
}

// keysOf reads the tags of a struct type.
func keysOf(t reflect.Type) keyList {
	var out keyList
	for i := range t.NumField() {
		sf := t.Field(i)
		tag, ok := sf.Tag.Lookup("key")
		if !ok {
			continue
		}
		if tag == ",inline" {
			for _, sub := range keysOf(sf.Type) {
				c := *sub
				c.index = append([]int{i}, sub.index...)
				out = append(out, &c)
			}
			continue
		}
		k := &keyInfo{
			key: tag, doc: sf.Tag.Get("doc"), defaultDoc: sf.Tag.Get("defaultDoc"), need: sf.Tag.Get("need"),
			min: sf.Tag.Get("min"), max: sf.Tag.Get("max"), zero: sf.Tag.Get("zero") == "yes", vars: sf.Tag.Get("vars"),
			keyForm: sf.Tag.Get("keys"), restart: sf.Tag.Get("reload") == "restart", exists: sf.Tag.Get("exists"),
			port: sf.Tag.Get("port"), scheme: sf.Tag.Get("scheme"), index: []int{i}, typ: sf.Type,
		}
		k.def, k.hasDefault = sf.Tag.Lookup("default")
		if e := sf.Tag.Get("enum"); e != "" {
			k.enum = strings.Split(e, ",")
		}
		for flag := range strings.SplitSeq(sf.Tag.Get("flags"), ",") {
			switch flag {
			case "relative":
				k.relative = true
			case "numeric":
				k.numeric = true
			case "nonempty":
				k.nonEmpty = true
			case "added":
				k.added = true
			case "":
			default:
				panic("config: unknown flag " + flag + " on " + sf.Name)
			}
		}
		out = append(out, k)
	}
	return out
}

// suggest gives the candidate that a mistyped word probably means, or "".
func suggest(word string, candidates []string) string {
	best, bestDistance := "", len(word)/3+1
	for _, c := range candidates {
		if strings.EqualFold(c, word) {
			return c
		}
		if d := distance(strings.ToLower(word), strings.ToLower(c)); d <= bestDistance && d < len(c) {
			if d < bestDistance || best == "" {
				best, bestDistance = c, d
			}
		}
	}
	return best
}

// distance is the number of letters to insert, remove, replace or swap with their neighbour (optimal string alignment).
func distance(a, b string) int {
	if len(a) > 100 || len(b) > 100 {
		return 100
	}
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}
