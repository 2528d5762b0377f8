package jobs

import (
	"encoding/json"
	"testing"
)

// FuzzWithoutSecrets: what is stored of a job is a document again, and no parameter of it is a secret.
//
//attack:actor compromised core
//attack:does Sends the description of a job in which the names of members are written with other capitals, so that secrets in it are stored.
//attack:control Members of documents are removed however their names are written.
//attack:remove internal/jobs/begin.go: if strings.EqualFold(name, key) { => if name == key {
func FuzzWithoutSecrets(f *testing.F) {
	f.Add([]byte(`{"id":"1","specification":{"parameters":{"a":{"type":"api_server","token":"x"},"b":{"type":"text","value":"y"}},"resources":[{"type":"api_server"},{"type":"file"}]},"status":{"resolvedApplication":{}}}`))
	f.Add([]byte(`{"specification":{"parameters":null,"resources":{}}}`))
	f.Add([]byte(`{"specification":{"parameters":{"a":[],"b":{"type":["api_server"]},"c":{"TYPE":"api_server"}}}}`))
	f.Add([]byte(`{"specification":{"parameters":{"a":{"type":"text","type":"api_server"}}}}`))
	f.Add([]byte(`{"Specification":{"parameters":{"a":{"type":"api_server","token":"x"}}}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		text, err := withoutSecrets(raw)
		if err != nil {
			return
		}
		var doc struct {
			Specification struct {
				Parameters map[string]map[string]any `json:"parameters"`
				Resources  []map[string]any          `json:"resources"`
			} `json:"specification"`
		}
		if err := json.Unmarshal([]byte(text), &doc); err != nil {
			t.Fatalf("%q becomes %q: %v", raw, text, err)
		}
		for name, p := range doc.Specification.Parameters {
			if p["type"] == "api_server" {
				t.Errorf("the parameter %q is left in %q", name, text)
			}
		}
		for _, p := range doc.Specification.Resources {
			if p["type"] == "api_server" {
				t.Errorf("a resource is left in %q", text)
			}
		}
	})
}
