package integration

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ucloud-im/internal/providerapi"
)

// onePixel is a PNG.
var onePixel, _ = base64.StdEncoding.DecodeString("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==")

func file(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBranding(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	svg := []byte(`<?xml version="1.0"?><!-- x --><svg xmlns="http://www.w3.org/2000/svg"/>`)
	config := BrandingConfig{
		Title: "Example", Logo: file(t, "logo.png", onePixel),
		Sections: []BrandingSection{{Description: "# Nodes", Image: file(t, "nodes.svg", svg)}},
		Products: []BrandingProduct{{Category: "storage", Section: BrandingSection{Image: file(t, "copy.png", onePixel)}}},
	}
	var err error
	if w.branding, err = NewBranding(provider, "https://im.example.org", config); err != nil {
		t.Fatal(err)
	}
	rec := w.call("GET", base+"/provider/branding/retrieveInfo", "")
	checkBody(t, "GET", base+"/provider/branding/retrieveInfo", rec)
	var info providerapi.Branding
	if err := json.Unmarshal(rec.Body.Bytes(), &info); err != nil {
		t.Fatal(err)
	}
	if info.Logo == nil || info.Sections[0].Image == nil || *info.ProductDescriptions[0].Section.Image != *info.Logo {
		t.Fatalf("images %+v", info)
	}
	for u, want := range map[string]struct {
		contentType string
		data        []byte
	}{
		*info.Logo:              {"image/png", onePixel},
		*info.Sections[0].Image: {"image/svg+xml", svg},
	} {
		path, ok := strings.CutPrefix(u, "https://im.example.org/")
		if !ok {
			t.Fatalf("%q is not an absolute URL of ours", u)
		}
		rec := w.call("GET", "/"+path, "", "Authorization", "") // a browser has no token
		if rec.Code != 200 || rec.Header().Get("Content-Type") != want.contentType || !bytes.Equal(rec.Body.Bytes(), want.data) {
			t.Errorf("%s: %d %v", u, rec.Code, rec.Header())
		}
		if rec.Header().Get("X-Content-Type-Options") != "nosniff" || !strings.Contains(rec.Header().Get("Content-Security-Policy"), "sandbox") {
			t.Errorf("%s: headers %v", u, rec.Header())
		}
	}
	again, err := NewBranding(provider, "https://im.example.org", config)
	if err != nil || *again.info.Logo != *info.Logo {
		t.Errorf("the names are not stable: %v", err)
	}
}

func TestBrandingRefusesWhatIsNoImage(t *testing.T) {
	t.Parallel()
	for name, data := range map[string][]byte{
		"html.png":  []byte("<html><script>alert(1)</script></html>"),
		"empty.png": nil,
		"huge.png":  append(bytes.Clone(onePixel), make([]byte, maxBrandingFile)...),
		"text.svg":  []byte("svg"),
	} {
		if _, err := NewBranding(provider, "https://x", BrandingConfig{Logo: file(t, name, data)}); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if _, err := NewBranding(provider, "https://x", BrandingConfig{Sections: []BrandingSection{{Image: "/does/not/exist"}}}); err == nil {
		t.Error("a missing file was accepted")
	}
}

func TestUnknownImages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for range 2 {
		for _, q := range []string{"", "?name=", "?name=logo.png", "?name=../../../../etc/passwd", "?name=%2Fetc%2Fpasswd"} {
			rec := w.call("GET", base+"/provider/branding/image"+q, "", "Authorization", "")
			if rec.Code != 404 {
				t.Errorf("%q: %d", q, rec.Code)
			}
		}
		w.branding, _ = NewBranding(provider, "https://x", BrandingConfig{Logo: file(t, "logo.png", onePixel)})
	}
}
