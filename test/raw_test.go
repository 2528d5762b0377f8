//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os/exec"
	"testing"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi/apischema"
)

// answer is what the gateway says.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// raw sends a request as Core would, or worse. The path is below /ucloud/{provider}; change may alter the request.
// Successful and failed answers alike are checked against the description.
func (w *world) raw(who ident.UCloudUser, path string, body any, change func(*http.Request)) answer {
	w.t.Helper()
	return w.send(http.MethodPost, who, path, body, change)
}

func (w *world) send(method string, who ident.UCloudUser, path string, body any, change func(*http.Request)) answer {
	w.t.Helper()
	data, ok := body.([]byte)
	if !ok && body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			w.t.Fatal(err)
		}
	}
	full := "/ucloud/" + provider + path
	req, err := http.NewRequest(method, w.gateURL+full, bytes.NewReader(data))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.core.ServiceToken())
	if who != "" {
		req.Header.Set(ident.HeaderUser, who.HeaderValue())
	}
	if change != nil {
		change(req)
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return answer{}
	}
	defer res.Body.Close()
	got := answer{status: res.StatusCode, header: res.Header}
	if got.body, err = io.ReadAll(res.Body); err != nil {
		w.t.Errorf("%s: read the answer: %v", path, err)
	}
	w.checkAnswer(method, full, got)
	return got
}

func (w *world) checkAnswer(method, path string, got answer) {
	w.t.Helper()
	if got.status >= 400 {
		if got.header.Get("Content-Type") == "application/json; charset=utf-8" {
			apischema.Provider(w.t).Error(w.t, got.body)
		}
		return
	}
	if id, ok := apischema.Provider(w.t).Find(method, path); ok && got.status == http.StatusOK {
		apischema.Provider(w.t).Response(w.t, id, got.body)
	}
}

func exitCode(err error) int {
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return e.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

// TestPolledCalls: everything that Core polls is answered, also for nobody.
func TestPolledCalls(t *testing.T) {
	w := newWorld(t, settings{})
	for _, path := range []string{
		"/integration/retrieveManifest", "/files/collections/retrieveProducts", "/jobs/retrieveProducts",
		"/ingresses/retrieveProducts", "/networkips/retrieveProducts", "/licenses/retrieveProducts",
		"/private-networks/retrieveProducts", "/provider/branding/retrieveInfo",
	} {
		if got := w.send(http.MethodGet, "", path, nil, nil); got.status != http.StatusOK {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
		if got := w.send(http.MethodGet, "", path, nil, func(r *http.Request) { r.Header.Del("Authorization") }); got.status != http.StatusUnauthorized {
			t.Errorf("%s without a token: %d %s", path, got.status, got.body)
		}
	}
	if got := w.send(http.MethodGet, "", "/integration/nonsense", nil, nil); got.status != http.StatusNotFound {
		t.Errorf("unknown path: %d", got.status)
	}
}
