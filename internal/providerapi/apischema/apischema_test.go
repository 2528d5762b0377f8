package apischema

import "testing"

func TestRefusesWhatDoesNotFit(t *testing.T) {
	t.Parallel()
	p := Provider(t)
	for _, tc := range []struct {
		name string
		err  error
		ok   bool
	}{
		{"good", p.CheckResponse("integration.retrieveManifest", []byte(`{"enabled":true,"expireAfterMs":null}`)), true},
		{"wrong type", p.CheckResponse("integration.retrieveManifest", []byte(`{"enabled":"yes","expireAfterMs":null}`)), false},
		{"missing member", p.CheckResponse("files.browse", []byte(`{"itemsPerPage":50,"next":null}`)), false},
		{"no body wanted", p.CheckRequest("integration.retrieveManifest", []byte(`{"x":1}`)), false},
		{"unknown call", p.CheckRequest("files.nonsense", nil), false},
	} {
		if (tc.err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.name, tc.err)
		}
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	if id, ok := Provider(t).Find("POST", "/ucloud/hpc/files/browse"); !ok || id != "ucloud.PROVIDER_ID.files.browse" {
		t.Errorf("got %q, %v", id, ok)
	}
	if id, ok := Core(t).Find("POST", "/api/files/collections/control/register"); !ok {
		t.Errorf("got %q, %v", id, ok)
	}
}
