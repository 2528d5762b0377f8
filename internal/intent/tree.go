package intent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// maxDepth bounds how deeply a document may be nested. What Core sends has less than 20 levels.
const maxDepth = 64

// readTree reads a JSON document: nil, bool, string, json.Number, []any and map[string]any. An object that has a name
// twice is refused, since whoever reads it next may take the other value.
func readTree(body []byte) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	v, err := readValue(dec, 0)
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is something behind the document")
	}
	return v, nil
}

func readValue(dec *json.Decoder, depth int) (any, error) {
	if depth > maxDepth {
		return nil, errors.New("the document is nested too deeply")
	}
	tok, err := dec.Token()
	if err != nil {
		return nil, errors.New("the document is not valid JSON")
	}
	delim, ok := tok.(json.Delim)
	switch {
	case !ok:
		return tok, nil
	case delim == '[':
		list := []any{}
		for dec.More() {
			v, err := readValue(dec, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := dec.Token()
		return list, err
	case delim == '{':
		object := map[string]any{}
		for dec.More() {
			tok, err := dec.Token()
			name, ok := tok.(string)
			if err != nil || !ok {
				return nil, errors.New("the document is not valid JSON")
			}
			if _, twice := object[name]; twice {
				return nil, fmt.Errorf("the document has %.40q twice", name)
			}
			if object[name], err = readValue(dec, depth+1); err != nil {
				return nil, err
			}
		}
		_, err := dec.Token()
		return object, err
	}
	return nil, errors.New("the document is not valid JSON")
}

// member gives the member of an object whose name is the same but for case, as the programs that use the document will
// take it (contract 00 section 3). Two such members are refused. A missing one is nil.
func member(object map[string]any, name string) (any, error) {
	v, exact := object[name]
	found := exact
	for other, ov := range object {
		if other == name || !strings.EqualFold(other, name) {
			continue
		}
		if found {
			return nil, fmt.Errorf("the document has %.40q in two spellings", name)
		}
		v, found = ov, true
	}
	return v, nil
}
