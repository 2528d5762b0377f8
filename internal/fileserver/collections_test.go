package fileserver

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/files"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/providerapi/apischema"
)

// withDrives makes an instance whose user may make drives below base.
func withDrives(t *testing.T, base string) *instance {
	t.Helper()
	project := ident.ProjectID("5b0f7c1e-3a52-4d0e-9a5b-0c9f3f6f2a11")
	parent := providerapi.Drive{
		ID: "5100", Owner: providerapi.ResourceOwner{CreatedBy: ident.SystemUser, Project: &project},
		ProviderGeneratedID: testProvider + "-" + string(project) + "\n" + base,
		Specification:       providerapi.DriveSpecification{Product: providerapi.ProductReference{ID: "storage", Category: "storage", Provider: testProvider}},
	}
	return newInstance(t, func(o *Options) {
		svc := files.New(files.Options{
			Provider: testProvider, Log: o.Log, Timeout: time.Minute, Tasks: noTasks{},
			DrivePlace: func(context.Context, ident.Owner, string) (files.DrivePlace, error) {
				return files.DrivePlace{Parent: parent, Folder: "Drives"}, nil
			},
			FindDrive: func(_ context.Context, id ident.DriveID) (providerapi.Drive, error) {
				d := parent
				d.ID, d.ProviderGeneratedID = id, parent.ProviderGeneratedID+"/Drives/climate_model-"+string(id)
				return d, nil
			},
		})
		t.Cleanup(func() {
			if err := svc.Close(context.Background()); err != nil {
				t.Error(err)
			}
		})
		o.Files = svc
	})
}

// TestCollectionExamples replays the golden examples about drives: requests as Core sends them, answers as the schema
// says. A drive is made, renamed, gets labels, and is deleted.
func TestCollectionExamples(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	in := withDrives(t, base)
	id := testProvider + "-5b0f7c1e-3a52-4d0e-9a5b-0c9f3f6f2a11\n" + base + "/Drives/climate_model-5123"
	for _, name := range []string{"create", "create", "rename", "updateAcl", "onUpdatedLabels", "delete", "delete"} {
		text, err := os.ReadFile(filepath.Join("..", "providerapi", "testdata", "examples", "provider", "files.collections."+name+".json"))
		must(t, err)
		var ex example
		must(t, json.Unmarshal(text, &ex))
		apischema.Provider(t).Request(t, strings.TrimPrefix(ex.OperationID, "ucloud.PROVIDER_ID."), ex.Request)
		body := strings.ReplaceAll(string(ex.Request), `\n/data/projects/climate_model`, `\n`+base+"/Drives/climate_model-5123")
		rec := in.call(ex.Method, ex.Path, body, nil)
		if rec.Code != ex.Status {
			t.Fatalf("%s: %d %s", name, rec.Code, rec.Body)
		}
		apischema.Provider(t).Response(t, strings.TrimPrefix(ex.OperationID, "ucloud.PROVIDER_ID."), rec.Body.Bytes())
		want := strings.Join(strings.Fields(string(ex.Response)), "")
		if name == "create" {
			raw, err := json.Marshal(providerapi.BulkResponse[providerapi.FindByID]{Responses: []providerapi.FindByID{{ID: id}}})
			must(t, err)
			want = string(raw)
		}
		if got := strings.TrimSpace(rec.Body.String()); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if _, err := os.Stat(filepath.Join(base, "Trash", "climate_model-5123")); err != nil {
		t.Error(err)
	}
}

// TestDrivesOfTheProvider: where nothing is configured, drives are refused with a text that says why.
func TestDrivesOfTheProvider(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	must(t, os.WriteFile(filepath.Join(base, "kept"), nil, 0o600))
	in := newInstance(t, nil)
	drive := testDrive(base)
	drive.Owner.CreatedBy = testUser
	bulkOf := func(d providerapi.Drive) any {
		return providerapi.BulkRequest[providerapi.Drive]{Items: []providerapi.Drive{d}}
	}
	for _, tc := range []struct {
		method, path string
		body         any
		want         int
		why          string
	}{
		{http.MethodPost, "files/collections", bulkOf(drive), 400, "made by the provider"},
		{http.MethodDelete, "files/collections", bulkOf(drive), 400, "made by the provider"},
		{http.MethodPost, "files/collections/rename", `{"items":[{"id":"5123","newTitle":"x"}]}`, 404, "not known"},
		{http.MethodPost, "shares", `{"items":[{"id":"9001"}]}`, 400, "shares not supported"},
		{http.MethodDelete, "shares", `{"items":[{"id":"9001"}]}`, 400, "shares not supported"},
		{http.MethodPost, "files/collections/updateAcl", `{"items":[{"resource":null,"added":null,"deleted":null}]}`, 200, ""},
		{http.MethodPost, "files/collections/onUpdatedLabels", bulkOf(drive), 200, ""},
		{http.MethodPost, "files/collections/verify", `{}`, 200, ""},
		{http.MethodPost, "files/collections", `{"items":[{"id":5}]}`, 400, "wrong type"},
		{http.MethodPost, "files/collections", `[]`, 400, "not a valid"},
		{http.MethodGet, "files/collections", "", 404, ""},
		{http.MethodPost, "files/collections/other", "{}", 404, ""},
	} {
		rec := in.call(tc.method, "/ucloud/"+testProvider+"/"+tc.path, tc.body, nil)
		if rec.Code != tc.want || !strings.Contains(rec.Body.String(), tc.why) {
			t.Errorf("%s %s: %d %s", tc.method, tc.path, rec.Code, rec.Body)
		}
		if rec.Code >= 400 {
			apischema.Provider(t).Error(t, rec.Body.Bytes())
		}
	}
	// The labels have made the drive known: deleting by id works now.
	body := providerapi.BulkRequest[providerapi.DeleteFile]{Items: []providerapi.DeleteFile{{
		ID: "/5123/kept", Permissions: drive.Permissions, Specification: providerapi.FileSpecification{Collection: "5123"},
	}}}
	if rec := in.call(http.MethodDelete, "/ucloud/"+testProvider+"/files", body, nil); rec.Code != 200 {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

// TestNotOffered: what a provider of this kind does not have is refused in words, never as unknown; nobody's labels and
// tokens can be changed here.
func TestNotOffered(t *testing.T) {
	t.Parallel()
	in := newInstance(t, nil)
	doc := apischema.Provider(t)
	for _, r := range notOffered() {
		path := "/ucloud/" + testProvider + "/" + r.Path
		id, known := doc.Find(r.Method, path)
		rec := in.call(r.Method, path, `{"items":[{"id":"700"}]}`, nil)
		if r.Method == http.MethodGet {
			doc.Response(t, id, rec.Body.Bytes())
			if rec.Code != 200 || rec.Body.String() != `{"availablePermissions":[]}` {
				t.Errorf("%s: %d %s", r.Path, rec.Code, rec.Body)
			}
			continue
		}
		if rec.Code != 400 || !strings.Contains(rec.Body.String(), "This provider does not offer ") {
			t.Errorf("%s %s: %d %s", r.Method, r.Path, rec.Code, rec.Body)
		}
		doc.Error(t, rec.Body.Bytes())
		if !known && r.Path != "private-networks/verify" {
			t.Errorf("%s %s is no call of UCloud's", r.Method, r.Path)
		}
	}
	// Every call of Core about these resources has an answer; what products there are is told by the server.
	answered := map[string]bool{}
	for _, r := range notOffered() {
		answered[r.Method+" /ucloud/{provider}/"+r.Path] = true
	}
	for _, operation := range doc.Operations() {
		call, _, _ := strings.Cut(operation, " ucloud.")
		_, path, _ := strings.Cut(call, "/ucloud/{provider}/")
		area, op, _ := strings.Cut(path, "/")
		switch area {
		case "ingresses", "networkips", "licenses", "private-networks", "tokens":
			if op != "retrieveProducts" && !answered[call] {
				t.Errorf("%s has no answer", call)
			}
		}
	}
	for _, path := range []string{"iapps/syncthing/retrieve", "jobs/inference/listModels"} {
		if rec := in.call(http.MethodPost, "/ucloud/"+testProvider+"/"+path, "{}", nil); rec.Code != 404 {
			t.Errorf("%s: %d %s", path, rec.Code, rec.Body)
		}
	}
}
