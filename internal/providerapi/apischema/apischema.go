// Package apischema checks JSON documents against the OpenAPI 3.1 descriptions of both directions between UCloud/Core
// and a provider. It exists for tests: every body that we send or accept goes through it.
//
// The descriptions use JSON Schema 2020-12 without restrictions, so each schema is compiled as it stands.
package apischema

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

//go:embed openapi/provider.json openapi/core.json
var documents embed.FS

// Document is one of the two descriptions.
type Document struct {
	name       string
	compiler   *jsonschema.Compiler
	operations map[string]operation

	mu       sync.Mutex
	compiled map[string]*jsonschema.Schema // by JSON pointer, guarded by mu
}

// operation holds JSON pointers to the schemas of a call; empty where the call has no such body.
type operation struct {
	method, path      string
	request, response string
}

var (
	provider = sync.OnceValues(func() (*Document, error) { return load("provider.json") })
	core     = sync.OnceValues(func() (*Document, error) { return load("core.json") })
)

// Provider describes the calls that Core makes on a provider. Their operation ids begin with
// "ucloud.PROVIDER_ID.", which may be left out.
func Provider(t testing.TB) *Document { return must(t, provider) }

// Core describes the calls that a provider makes on Core.
func Core(t testing.TB) *Document { return must(t, core) }

func must(t testing.TB, get func() (*Document, error)) *Document {
	t.Helper()
	d, err := get()
	if err != nil {
		t.Fatalf("load OpenAPI description: %v", err)
	}
	return d
}

// Operations lists method, path and id of all calls, as "POST /path id".
func (d *Document) Operations() []string {
	var out []string
	for id, op := range d.operations {
		out = append(out, strings.ToUpper(op.method)+" "+op.path+" "+id)
	}
	return out
}

// Find gives the operation id for a method and a concrete path. {parameters} of the description match one segment.
func (d *Document) Find(method, path string) (string, bool) {
	for id, op := range d.operations {
		if strings.EqualFold(op.method, method) && matchPath(op.path, path) {
			return id, true
		}
	}
	return "", false
}

func matchPath(pattern, path string) bool {
	a, b := strings.Split(pattern, "/"), strings.Split(path, "/")
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] && !strings.HasPrefix(a[i], "{") {
			return false
		}
	}
	return true
}

// Request fails the test unless body is a valid request of the call. A call without a request body wants none.
func (d *Document) Request(t testing.TB, operationID string, body []byte) {
	t.Helper()
	d.report(t, "request of", operationID, body, d.CheckRequest(operationID, body))
}

// Response fails the test unless body is a valid 200 response of the call.
func (d *Document) Response(t testing.TB, operationID string, body []byte) {
	t.Helper()
	d.report(t, "response of", operationID, body, d.CheckResponse(operationID, body))
}

// Error fails the test unless body is a valid error document.
func (d *Document) Error(t testing.TB, body []byte) {
	t.Helper()
	d.report(t, "error document", "", body, d.check("/components/schemas/Error", body))
}

// CheckRequest is [Document.Request] as an error.
func (d *Document) CheckRequest(operationID string, body []byte) error {
	op, err := d.find(operationID)
	if err != nil {
		return err
	}
	if op.request == "" {
		if trimmed := bytes.TrimSpace(body); len(trimmed) > 0 && !bytes.Equal(trimmed, []byte("{}")) {
			return fmt.Errorf("the call has no request body")
		}
		return nil
	}
	return d.check(op.request, body)
}

// CheckResponse is [Document.Response] as an error.
func (d *Document) CheckResponse(operationID string, body []byte) error {
	op, err := d.find(operationID)
	if err != nil {
		return err
	}
	if op.response == "" {
		return nil
	}
	return d.check(op.response, body)
}

func (d *Document) report(t testing.TB, what, id string, body []byte, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("%s %s does not match %s: %v\n%s", what, id, d.name, err, body)
	}
}

func (d *Document) find(id string) (operation, error) {
	for _, try := range []string{id, "ucloud.PROVIDER_ID." + id} {
		if op, ok := d.operations[try]; ok {
			return op, nil
		}
	}
	return operation{}, fmt.Errorf("%s has no operation %q", d.name, id)
}

func (d *Document) check(pointer string, body []byte) error {
	d.mu.Lock()
	schema, ok := d.compiled[pointer]
	if !ok {
		var err error
		if schema, err = d.compiler.Compile(d.name + "#" + pointer); err != nil {
			d.mu.Unlock()
			return fmt.Errorf("compile schema: %w", err)
		}
		d.compiled[pointer] = schema
	}
	d.mu.Unlock()
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("not JSON: %w", err)
	}
	return schema.Validate(value)
}

func load(name string) (*Document, error) {
	data, err := documents.ReadFile("openapi/" + name)
	if err != nil {
		return nil, err
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	d := &Document{
		name: name, compiler: jsonschema.NewCompiler(),
		operations: map[string]operation{}, compiled: map[string]*jsonschema.Schema{},
	}
	if err := d.compiler.AddResource(name, value); err != nil {
		return nil, err
	}
	return d, d.index(data)
}

// index finds the pointers to the request and response schemas of each call.
func (d *Document) index(data []byte) error {
	type media struct {
		Content map[string]struct {
			Schema json.RawMessage `json:"schema"`
		} `json:"content"`
	}
	var doc struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return err
	}
	for path, methods := range doc.Paths {
		for method, raw := range methods {
			var op struct {
				OperationID string           `json:"operationId"`
				RequestBody *media           `json:"requestBody"`
				Responses   map[string]media `json:"responses"`
			}
			if json.Unmarshal(raw, &op) != nil || op.OperationID == "" {
				continue
			}
			base := "/paths/" + escape(path) + "/" + method
			o := operation{method: method, path: path}
			if op.RequestBody != nil && len(op.RequestBody.Content["application/json"].Schema) > 0 {
				o.request = base + "/requestBody/content/application~1json/schema"
			}
			if len(op.Responses["200"].Content["application/json"].Schema) > 0 {
				o.response = base + "/responses/200/content/application~1json/schema"
			}
			d.operations[op.OperationID] = o
		}
	}
	return nil
}

// escape makes a JSON pointer token usable in a URI fragment (RFC 6901 sections 3 and 6).
func escape(s string) string {
	return strings.NewReplacer("~", "~0", "/", "~1", "{", "%7B", "}", "%7D").Replace(s)
}
