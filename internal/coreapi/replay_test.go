package coreapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/providerapi/apischema"
)

// exchangeRecord is one recorded exchange between a provider and a Core.
type exchangeRecord struct {
	method, target string
	request        string // JSON, empty for GET
	status         int
	response       string
}

var (
	headLine   = regexp.MustCompile("(?m)^\\*\\*provider → Core\\*\\* `([A-Z]+) ([^`]+)`")
	statusLine = regexp.MustCompile("(?m)^Answer `(\\d+)`")
	fence      = regexp.MustCompile("(?s)```[a-z]*\n(.*?)\n```")
)

// recording reads one section of a recording file.
func recording(t *testing.T, file string, section int) exchangeRecord {
	t.Helper()
	raw, err := os.ReadFile("../providerapi/testdata/recordings/" + file)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(raw), fmt.Sprintf("\n## %d. ", section))
	if !ok {
		t.Fatalf("%s has no section %d", file, section)
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	head, status := headLine.FindStringSubmatch(rest), statusLine.FindStringSubmatch(rest)
	blocks := fence.FindAllStringSubmatch(rest, -1)
	if head == nil || status == nil || len(blocks) < 2 {
		t.Fatalf("%s section %d is no exchange", file, section)
	}
	r := exchangeRecord{method: head[1], target: head[2], response: blocks[1][1]}
	if _, body, ok := strings.Cut(blocks[0][1], "\n\n"); ok {
		r.request = body
	}
	r.status, _ = strconv.Atoi(status[1])
	// Long objects are shown once per file; afterwards a remark stands in their place.
	r.response = strings.ReplaceAll(r.response, `"<same as the first time in this file>"`, "null")
	r.response = strings.ReplaceAll(r.response, `<jwt>`, "e30.e30.c2ln")
	return r
}

// replay answers exactly as recorded, and fails the test if something else is asked.
func replay(t *testing.T, records ...exchangeRecord) *Client {
	t.Helper()
	i := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if i >= len(records) {
			t.Errorf("more requests than recorded: %s %s", r.Method, r.URL)
			w.WriteHeader(500)
			return
		}
		rec := records[i]
		i++
		want, _ := url.Parse(rec.target)
		if r.Method != rec.method || r.URL.Path != want.Path {
			t.Errorf("request %s %s, recorded %s %s", r.Method, r.URL.Path, rec.method, want.Path)
		}
		if got := r.Header.Get("Authorization"); (got == "Bearer access.token.sig") == (want.Path == "/auth/providers/refresh") {
			t.Errorf("Authorization %q on %s", got, want.Path)
		}
		for key, values := range want.Query() {
			// How much goes on a page, and what is included, is the caller's choice.
			if strings.HasPrefix(key, "filter") && !reflect.DeepEqual(r.URL.Query()[key], values) {
				t.Errorf("query parameter %s = %q, recorded %q", key, r.URL.Query()[key], values)
			}
		}
		body, _ := io.ReadAll(r.Body)
		if rec.request != "" {
			if got, want := normal(t, body), normal(t, []byte(rec.request)); !reflect.DeepEqual(got, want) {
				t.Errorf("request body\n%v\nrecorded\n%v", got, want)
			}
		}
		op, ok := apischema.Core(t).Find(r.Method, r.URL.Path)
		if !ok {
			t.Errorf("%s %s is no call of Core", r.Method, r.URL.Path)
		}
		apischema.Core(t).Request(t, op, body)
		w.WriteHeader(rec.status)
		_, _ = io.WriteString(w, rec.response)
	}))
	t.Cleanup(func() {
		srv.Close()
		if i != len(records) {
			t.Errorf("%d of %d recorded exchanges happened", i, len(records))
		}
	})
	return testClient(t, srv.URL, staticToken("access.token.sig"))
}

// normal decodes JSON and drops members that a hand-made request may have or leave out at will.
func normal(t *testing.T, raw []byte) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatalf("not JSON: %v\n%s", err, raw)
	}
	var walk func(any) any
	walk = func(v any) any {
		switch v := v.(type) {
		case map[string]any:
			for k, e := range v {
				switch {
				case k == "type" && e == "bulk", k == "balance", k == "maxUsableBalance", k == "pricePerUnit", k == "fraction",
					e == nil, e == false, reflect.DeepEqual(e, map[string]any{}):
					delete(v, k)
				default:
					v[k] = walk(e)
				}
			}
			return v
		case []any:
			for i := range v {
				v[i] = walk(v[i])
			}
			return v
		}
		return v
	}
	return walk(v)
}

func TestReplayRefresh(t *testing.T) {
	t.Parallel()
	for section, want := range map[int]string{1: "ok", 2: "revoked", 4: "none"} {
		rec := recording(t, "02-token-refresh.md", section)
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			apischema.Core(t).Request(t, "auth.providers.refresh", body)
			if section == 1 && !bytes.Equal(bytes.ReplaceAll(body, []byte("secret"), []byte("<provider-refresh-token>")),
				[]byte(`{"items":[{"refreshToken":"<provider-refresh-token>"}]}`)) {
				t.Errorf("body %s", body)
			}
			if r.URL.Path != rec.target || r.Method != rec.method || r.Header.Get("Authorization") != "" {
				t.Errorf("%s %s", r.Method, r.URL)
			}
			w.WriteHeader(rec.status)
			_, _ = io.WriteString(w, rec.response)
		}))
		hc := testHTTP(t)
		s, err := NewTokenSource(TokenOptions{BaseURL: srv.URL, RefreshToken: "secret", HTTP: hc})
		if err != nil {
			t.Fatal(err)
		}
		tok, err := s.Token(t.Context())
		switch want {
		case "ok":
			if err != nil || tok != "e30.e30.c2ln" {
				t.Errorf("section %d: %q, %v", section, tok, err)
			}
		case "revoked":
			if !errors.Is(err, ErrRevoked) || Status(err) != 401 {
				t.Errorf("section %d: %v", section, err)
			}
		case "none":
			if err == nil || errors.Is(err, ErrRevoked) {
				t.Errorf("section %d: %v", section, err)
			}
		}
		hc.CloseIdleConnections()
		srv.Close()
	}
}

func TestReplayProducts(t *testing.T) {
	t.Parallel()
	browse := recording(t, "03-products.md", 4)
	products, err := replay(t, browse).BrowseProducts(t.Context())
	if err != nil || len(products) != 4 {
		t.Fatalf("%d products, %v", len(products), err)
	}
	if p := products[3]; p.Reference() != (providerapi.ProductReference{ID: "rec-storage", Category: "rec-storage", Provider: "recprov"}) {
		t.Fatalf("reference %+v", p.Reference())
	}
	// The recorded call declares four products of three categories at once; ours is one category per call.
	create := recording(t, "03-products.md", 1)
	var all struct{ Items []json.RawMessage }
	if err := json.Unmarshal([]byte(create.request), &all); err != nil {
		t.Fatal(err)
	}
	create.request = fmt.Sprintf(`{"items":[%s]}`, all.Items[0])
	if err := replay(t, create).DeclareProducts(t.Context(), products[3:]); err != nil {
		t.Fatal(err)
	}
	create.request = fmt.Sprintf(`{"items":[%s,%s]}`, all.Items[2], all.Items[3])
	if err := replay(t, create).DeclareProducts(t.Context(), products[:2]); err != nil {
		t.Fatal(err)
	}
	// What the recording shows as refused is not even sent.
	products[3].Category.Provider = "other"
	if err := replay(t).DeclareProducts(t.Context(), products[3:]); !errors.Is(err, ErrNotSent) {
		t.Fatalf("a product of another provider: %v", err)
	}
	if err := replay(t).DeclareProducts(t.Context(), products[1:3]); !errors.Is(err, ErrNotSent) {
		t.Fatalf("two categories in one call: %v", err)
	}
}

func TestReplayDrives(t *testing.T) {
	t.Parallel()
	const file = "06-drives.md"
	user, system := ident.UCloudUser("recuser"), ident.SystemUser
	project := ident.ProjectID("<user-project>")
	product := providerapi.ProductReference{ID: "rec-storage", Category: "rec-storage", Provider: "recprov"}
	home := providerapi.RegisterDrive{
		Spec: providerapi.DriveSpecification{Title: "Home", Product: product}, ProviderGeneratedID: "h-1001", CreatedBy: &user,
	}
	work := providerapi.RegisterDrive{
		Spec: providerapi.DriveSpecification{Title: "Project work", Product: product}, ProviderGeneratedID: "p-2001",
		CreatedBy: &system, Project: &project, ProjectAllRead: true, ProjectAllWrite: true,
	}
	if id, err := replay(t, recording(t, file, 1)).RegisterDrive(t.Context(), home); err != nil || id != "4" {
		t.Fatalf("register: %q, %v", id, err)
	}
	if _, err := replay(t, recording(t, file, 2)).RegisterDrive(t.Context(), home); Status(err) != 409 || Unanswered(err) {
		t.Fatalf("register again: %v", err)
	}
	if id, err := replay(t, recording(t, file, 3)).RegisterDrive(t.Context(), work); err != nil || id != "6" {
		t.Fatalf("register for a project: %q, %v", id, err)
	}
	work.Spec.Product.Provider = "other"
	if _, err := replay(t).RegisterDrive(t.Context(), work); !errors.Is(err, ErrNotSent) {
		t.Fatalf("register at another provider: %v", err)
	}
	d, ok, err := replay(t, recording(t, file, 6)).FindDrive(t.Context(), "h-1001")
	if err != nil || !ok || d.ID != "4" || d.Owner.CreatedBy != "recuser" {
		t.Fatalf("find: %+v, %v, %v", d, ok, err)
	}
	d, ok, err = replay(t, recording(t, file, 5)).FindDriveByBrowsing(t.Context(), "p-2001")
	if err != nil || !ok || d.ID != "6" || d.Owner.Workspace() != (ident.Owner{Project: project}) {
		t.Fatalf("find by browsing: %+v, %v, %v", d, ok, err)
	}
	if _, ok, err := replay(t, recording(t, file, 5)).FindDrive(t.Context(), "a,b"); err != nil || ok {
		t.Fatalf("an id with a comma: %v, %v", ok, err)
	}
	if d, err := replay(t, recording(t, file, 8)).RetrieveDrive(t.Context(), "4"); err != nil || d.ProviderGeneratedID != "h-1001" {
		t.Fatalf("retrieve: %+v, %v", d, err)
	}
	if _, err := replay(t, recording(t, file, 9)).RetrieveDrive(t.Context(), "999999"); Status(err) != 403 {
		t.Fatalf("retrieve unknown: %v", err)
	}
}

// TestGoldenExamples checks every call against the examples of the contract, both ways.
func TestGoldenExamples(t *testing.T) {
	t.Parallel()
	const user, project = ident.UCloudUser("AdaLovelace#4821"), ident.ProjectID("5b0f7c1e-3a52-4d0e-9a5b-0c9f3f6f2a11")
	product := providerapi.ProductReference{ID: "storage", Category: "storage", Provider: "hpc-example"}
	u, p := user, project
	for file, do := range map[string]func(*Client) error{
		"files.collections.control.register--user": func(c *Client) error {
			id, err := c.RegisterDrive(t.Context(), providerapi.RegisterDrive{
				Spec:                providerapi.DriveSpecification{Title: "Home", Product: product},
				ProviderGeneratedID: "hpc-example-AdaLovelace#4821\n/home/alovelace", CreatedBy: &u,
			})
			return errors.Join(err, want("5101", string(id)))
		},
		"files.collections.control.register--project": func(c *Client) error {
			id, err := c.RegisterDrive(t.Context(), providerapi.RegisterDrive{
				Spec:                providerapi.DriveSpecification{Title: "climate_model", Product: product},
				ProviderGeneratedID: "hpc-example-" + string(p) + "\n/data/projects/climate_model", Project: &p,
				ProjectAllRead: true, ProjectAllWrite: true,
			})
			return errors.Join(err, want("5123", string(id)))
		},
		"files.collections.control.retrieve": func(c *Client) error {
			d, err := c.RetrieveDrive(t.Context(), "5123")
			return errors.Join(err, want("storage", d.Specification.Product.ID))
		},
		"files.collections.control.browse": func(c *Client) error {
			d, ok, err := c.FindDrive(t.Context(), "hpc-example-"+string(p)+"\n/data/projects/climate_model")
			return errors.Join(err, want("5123", string(d.ID)), want(true, ok))
		},
		"providers.integration.control.approveConnection": func(c *Client) error { return c.ApproveConnection(t.Context(), u) },
		"providers.integration.control.clearConnection":   func(c *Client) error { return c.ClearConnection(t.Context(), u) },
		"providers.resources.checkExistence": func(c *Client) error {
			got, err := c.CheckExistence(t.Context(), []Resource{{Type: "job", ID: "90817"}, {Type: "job", ID: "1"}})
			return errors.Join(err, want("[true false]", fmt.Sprint(got)))
		},
		"projects.v2.retrieveMetadata": func(c *Client) error {
			m, err := c.RetrieveProjectMetadata(t.Context(), p)
			return errors.Join(err, want(ProjectMetadata{ID: p, Title: "Climate Model", PIUsername: u}, m))
		},
		"products.v2.browse": func(c *Client) error {
			all, err := c.BrowseProducts(t.Context())
			return errors.Join(err, want(2, len(all)))
		},
	} {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			raw, err := os.ReadFile("../providerapi/testdata/examples/core/" + file + ".json")
			if err != nil {
				t.Fatal(err)
			}
			var ex struct {
				OperationID, Method, Path string
				Request, Response         json.RawMessage
				Status                    int
			}
			if err := json.Unmarshal(raw, &ex); err != nil {
				t.Fatal(err)
			}
			apischema.Core(t).Response(t, ex.OperationID, ex.Response)
			rec := exchangeRecord{
				method: ex.Method, target: ex.Path, request: string(ex.Request), status: ex.Status, response: string(ex.Response),
			}
			if err := do(replayFor(t, rec, "hpc-example")); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func want[T comparable](want, got T) error {
	if want != got {
		return fmt.Errorf("got %v, want %v", got, want)
	}
	return nil
}

func replayFor(t *testing.T, rec exchangeRecord, provider string) *Client {
	c := replay(t, rec)
	c.provider = provider
	return c
}
