package intent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// maxDepth bounds how deeply a document may be nested. What Core sends has less than 20 levels.
	maxDepth = 64
	// maxNodes bounds the values in a document that are kept in memory, at about 80 bytes each. A list of 250 jobs has
	// 40,000 without the documents that Core adds.
	maxNodes = 1 << 18
	// maxInteger is the largest integer that every reader of JSON takes for the same number (RFC 7493 section 2.2).
	maxInteger = 1<<53 - 1
)

// resolvedPrefix begins the names of documents that Core adds to a request.
const resolvedPrefix = "resolved"

// object is a JSON object in the order in which it was written.
type object []field

type field struct {
	name  string
	value any
}

// errTooLarge is about a document with more values than are looked at.
var errTooLarge = errors.New("the document has too many values")

// reader reads a JSON document into nil, bool, string, json.Number, []any and object.
type reader struct {
	dec   *json.Decoder
	nodes int
	keep  map[string]bool // members that begin with resolvedPrefix and are wanted; others are passed over
}

// readTree reads a document; none at all is an empty one. An object that has a name twice is refused, since whoever reads it next may take the other
// value.
func readTree(body []byte, keep map[string]bool) (any, error) {
	if len(bytes.TrimSpace(body)) == 0 {
		return object{}, nil
	}
	if !utf8.Valid(body) {
		return nil, errors.New("the document is not UTF-8")
	}
	r := reader{dec: json.NewDecoder(bytes.NewReader(body)), keep: keep}
	r.dec.UseNumber()
	v, err := r.value(0, false)
	if err != nil {
		return nil, err
	}
	if _, err := r.dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is something behind the document")
	}
	return v, nil
}

var errNotJSON = errors.New("the document is not valid JSON")

func (r *reader) value(depth int, isMap bool) (any, error) {
	r.nodes++
	switch {
	case depth > maxDepth:
		return nil, errors.New("the document is nested too deeply")
	case r.nodes > maxNodes:
		return nil, errTooLarge
	}
	tok, err := r.dec.Token()
	if err != nil {
		return nil, errNotJSON
	}
	delim, ok := tok.(json.Delim)
	switch {
	case !ok:
		return tok, nil
	case delim == '[':
		return r.list(depth)
	case delim == '{':
		return r.object(depth, isMap)
	}
	return nil, errNotJSON
}

func (r *reader) list(depth int) (any, error) {
	list := []any{}
	for r.dec.More() {
		v, err := r.value(depth+1, false)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	if _, err := r.dec.Token(); err != nil {
		return nil, errNotJSON
	}
	return list, nil
}

func (r *reader) object(depth int, isMap bool) (any, error) {
	var o object
	seen := map[string]bool{}
	for r.dec.More() {
		tok, err := r.dec.Token()
		name, ok := tok.(string)
		if err != nil || !ok {
			return nil, errNotJSON
		}
		if seen[name] {
			return nil, fmt.Errorf("the document has %.40q twice", name)
		}
		seen[name] = true
		if !isMap && strings.HasPrefix(name, resolvedPrefix) && !r.wanted(name) {
			if err := r.skip(depth + 1); err != nil {
				return nil, err
			}
			continue
		}
		v, err := r.value(depth+1, !isMap && isMapName(name))
		if err != nil {
			return nil, err
		}
		o = append(o, field{name, v})
	}
	if _, err := r.dec.Token(); err != nil {
		return nil, errNotJSON
	}
	return o, nil
}

// wanted tells whether a member is one that is looked at, in any spelling: whoever reads the document next takes a name in
// other letters for the same one (TestDrivesAreWhereTheProviderPutThem).
func (r *reader) wanted(name string) bool {
	for want := range r.keep {
		if strings.EqualFold(want, name) {
			return true
		}
	}
	return false
}

// skip passes over a value without keeping it.
func (r *reader) skip(depth int) error {
	open := 0
	for {
		tok, err := r.dec.Token()
		if err != nil {
			return errNotJSON
		}
		switch tok {
		case json.Delim('{'), json.Delim('['):
			if open++; depth+open > maxDepth {
				return errors.New("the document is nested too deeply")
			}
		case json.Delim('}'), json.Delim(']'):
			open--
		}
		if open == 0 {
			return nil
		}
	}
}

// member gives the member of an object whose name is the same but for case, as the programs that use the document will
// take it (contract 00 section 3). Two such members are refused. A missing one is nil.
func (o object) member(name string) (any, error) {
	var v any
	found := false
	for _, f := range o {
		if !strings.EqualFold(f.name, name) {
			continue
		}
		if found {
			return nil, twoSpellings(name)
		}
		v, found = f.value, true
	}
	return v, nil
}

// without gives the object without a member, in whatever case its name is.
func (o object) without(name string) object {
	out := make(object, 0, len(o))
	for _, f := range o {
		if !strings.EqualFold(f.name, name) {
			out = append(out, f)
		}
	}
	return out
}

// checkSpelling refuses two names that differ in case only: of those, a program reads one, and which is not said.
func (o object) checkSpelling() error {
	if len(o) < 2 {
		return nil
	}
	seen := make(map[string]bool, len(o))
	for _, f := range o {
		folded := strings.Map(fold, f.name)
		if seen[folded] {
			return twoSpellings(f.name)
		}
		seen[folded] = true
	}
	return nil
}

func twoSpellings(name string) error {
	return fmt.Errorf("the document has %.40q in two spellings", name)
}

// fold gives the same rune for all that count as equal without regard to case.
func fold(r rune) rune {
	least := r
	for next := unicode.SimpleFold(r); next != r; next = unicode.SimpleFold(next) {
		least = min(least, next)
	}
	return least
}
