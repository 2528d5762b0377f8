package providerapi

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/providerapi/apischema"
)

// example is the layout of the golden files (testdata/examples/README.md).
type example struct {
	OperationID string          `json:"operationId"`
	Request     json.RawMessage `json:"request"`
	Response    json.RawMessage `json:"response"`
	Status      int             `json:"status"`
}

func readExample(t *testing.T, name string) example {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata/examples", name))
	if err != nil {
		t.Fatal(err)
	}
	var e example
	if err := json.Unmarshal(data, &e); err != nil {
		t.Fatal(err)
	}
	return e
}

// TestExamplesMatchSchemas guards the test data itself: a schema that accepts nothing or everything would make all
// later checks worthless.
func TestExamplesMatchSchemas(t *testing.T) {
	t.Parallel()
	for _, side := range []struct {
		dir string
		doc *apischema.Document
	}{{"provider", apischema.Provider(t)}, {"core", apischema.Core(t)}} {
		files, err := filepath.Glob(filepath.Join("testdata/examples", side.dir, "*.json"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no examples: %v", err)
		}
		for _, file := range files {
			e := readExample(t, strings.TrimPrefix(file, "testdata/examples/"))
			if len(e.Request) > 0 {
				side.doc.Request(t, e.OperationID, e.Request)
			}
			switch {
			case len(e.Response) == 0:
			case e.Status == 200:
				side.doc.Response(t, e.OperationID, e.Response)
			default:
				side.doc.Error(t, e.Response)
			}
		}
	}
}

// roundTrip decodes into T, encodes, validates the result, and demands that nothing is lost from want.
func roundTrip[T any](in json.RawMessage, validate func([]byte) error) func(t *testing.T) {
	return func(t *testing.T) {
		t.Parallel()
		var v T
		if err := json.Unmarshal(in, &v); err != nil {
			t.Fatal(err)
		}
		out, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate(out); err != nil {
			t.Errorf("encoded form: %v\n%s", err, out)
		}
		if diff := cmp.Diff(generic(t, in), generic(t, out)); diff != "" {
			t.Errorf("lost or changed (-golden +ours):\n%s", diff)
		}
	}
}

// generic decodes without types and drops members that are null or an empty list or map: on this wire they mean the
// same as absence.
func generic(t *testing.T, data []byte) any {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return prune(v)
}

func prune(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if p := prune(e); p == nil {
				delete(v, k)
			} else {
				v[k] = p
			}
		}
		if len(v) == 0 {
			return nil
		}
		return v
	case []any:
		for i := range v {
			v[i] = prune(v[i])
		}
		if len(v) == 0 {
			return nil
		}
		return v
	default:
		return v
	}
}

func TestGoldenRoundTrip(t *testing.T) {
	t.Parallel()
	p, c := apischema.Provider(t), apischema.Core(t)
	response := func(d *apischema.Document, id string) func([]byte) error {
		return func(b []byte) error { return d.CheckResponse(id, b) }
	}
	request := func(d *apischema.Document, id string) func([]byte) error {
		return func(b []byte) error { return d.CheckRequest(id, b) }
	}
	ex := func(name string) example { return readExample(t, name) }

	t.Run("browse response", roundTrip[Page[File]](ex("provider/files.browse.json").Response, response(p, "files.browse")))
	t.Run("retrieve response", roundTrip[File](ex("provider/files.retrieve.json").Response, response(p, "files.retrieve")))
	t.Run("manifest", roundTrip[Manifest](ex("provider/integration.retrieveManifest.json").Response, response(p, "integration.retrieveManifest")))
	t.Run("connect response", roundTrip[ConnectResponse](ex("provider/integration.connect.json").Response, response(p, "integration.connect")))
	t.Run("connect request", roundTrip[FindByUser](ex("provider/integration.connect.json").Request, request(p, "integration.connect")))
	t.Run("storage support", roundTrip[BulkResponse[FSSupport]](ex("provider/files.collections.retrieveProducts.json").Response, response(p, "files.collections.retrieveProducts")))
	t.Run("job support", roundTrip[BulkResponse[JobSupport]](ex("provider/jobs.retrieveProducts.json").Response, response(p, "jobs.retrieveProducts")))
	t.Run("branding", roundTrip[Branding](ex("provider/provider.branding.retrieveInfo.json").Response, response(p, "provider.branding.retrieveInfo")))
	t.Run("register user drive", roundTrip[BulkRequest[RegisterDrive]](ex("core/files.collections.control.register--user.json").Request, request(c, "files.collections.control.register")))
	t.Run("register project drive", roundTrip[BulkRequest[RegisterDrive]](ex("core/files.collections.control.register--project.json").Request, request(c, "files.collections.control.register")))
	t.Run("drives of Core", roundTrip[Page[Drive]](ex("core/files.collections.control.browse.json").Response, response(c, "files.collections.control.browse")))
	t.Run("drive of Core", roundTrip[Drive](ex("core/files.collections.control.retrieve.json").Response, response(c, "files.collections.control.retrieve")))
	t.Run("products", roundTrip[BulkRequest[Product]](ex("core/products.v2.create--storage.json").Request, request(c, "products.v2.create")))
	t.Run("compute products", roundTrip[BulkRequest[Product]](ex("core/products.v2.create--compute.json").Request, request(c, "products.v2.create")))
	t.Run("products of Core", roundTrip[Page[Product]](ex("core/products.v2.browse.json").Response, response(c, "products.v2.browse")))
	t.Run("token refresh", roundTrip[BulkRequest[RefreshToken]](ex("core/auth.providers.refresh.json").Request, request(c, "auth.providers.refresh")))
	t.Run("access token", roundTrip[BulkResponse[AccessToken]](ex("core/auth.providers.refresh.json").Response, response(c, "auth.providers.refresh")))
	t.Run("approve", roundTrip[FindByUser](ex("core/providers.integration.control.approveConnection.json").Request, request(c, "providers.integration.control.approveConnection")))
}

// TestDecodeTolerance: what Core really sends differs from what one would write by hand (contract 00 section 3).
func TestDecodeTolerance(t *testing.T) {
	t.Parallel()
	for _, body := range []string{
		`{"resolvedCollection":{"id":"4"},"Browse":{"flags":{"path":"/4"},"itemsPerPage":7}}`,
		`{"resolvedCollection":{"id":"4"},"browse":{"flags":{"path":"/4","new":1},"itemsPerPage":7},"more":null}`,
	} {
		var r FilesBrowse
		if err := json.Unmarshal([]byte(body), &r); err != nil {
			t.Fatal(err)
		}
		if r.Browse.ItemsPerPage != 7 || r.Browse.Flags.Path == nil || *r.Browse.Flags.Path != "/4" {
			t.Errorf("%s decoded to %+v", body, r)
		}
	}
	out, err := json.Marshal(Page[File]{})
	if err != nil || !strings.Contains(string(out), `"items":[]`) {
		t.Errorf("an empty page is %s, %v", out, err)
	}
}
