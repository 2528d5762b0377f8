package httpx

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"ucloud-im/internal/failure"
)

type document struct {
	Name  string `json:"name"`
	Items []int  `json:"items"`
}

func TestDecodeJSON(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, body string
		want       string
		kind       failure.Kind // 0 = success
	}{
		{name: "plain", body: `{"name":"a"}`, want: "a"},
		{name: "empty body", body: ""},
		{name: "blank body", body: " \n"},
		{name: "null", body: "null"},
		{name: "capital name", body: `{"Name":"a"}`, want: "a"},
		{name: "unknown member", body: `{"name":"a","x":{"y":[1]}}`, want: "a"},
		{name: "null list", body: `{"name":"a","items":null}`, want: "a"},
		{name: "wrong type", body: `{"name":1}`, kind: failure.Invalid},
		{name: "cut off", body: `{"name":`, kind: failure.Invalid},
		{name: "second document", body: `{"name":"a"}{"name":"b"}`, kind: failure.Invalid},
		{name: "garbage behind", body: `{"name":"a"}]`, kind: failure.Invalid},
		{name: "list", body: `[]`, kind: failure.Invalid},
		{name: "too large", body: `{"name":"` + strings.Repeat("x", 200) + `"}`, kind: failure.TooLarge},
		{name: "too large by blanks", body: `{"name":"a"}` + strings.Repeat(" ", 200), kind: failure.TooLarge},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(tc.body))
			var d document
			err := DecodeJSON(httptest.NewRecorder(), r, 100, &d)
			if tc.kind == 0 {
				if err != nil || d.Name != tc.want {
					t.Fatalf("got %+v, %v", d, err)
				}
				return
			}
			if !failure.Is(err, tc.kind) {
				t.Fatalf("got %v (kind %v), want kind %v", err, failure.KindOf(err), tc.kind)
			}
			if strings.Contains(failure.Why(err), "xxx") {
				t.Fatalf("the answer quotes the body: %s", failure.Why(err))
			}
		})
	}
}

func TestWriteJSON(t *testing.T) {
	t.Parallel()
	big := document{Name: strings.Repeat("abcdefgh", 1000)}
	small := document{Name: "a"}
	for _, tc := range []struct {
		name, accept string
		v            document
		gzipped      bool
	}{
		{"small", "gzip", small, false},
		{"big", "gzip", big, true},
		{"big, not accepted", "", big, false},
		{"big, refused", "gzip;q=0, *", big, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			r.Header.Set("Accept-Encoding", tc.accept)
			rec := httptest.NewRecorder()
			WriteJSON(rec, r, http.StatusOK, tc.v)
			body := rec.Body.Bytes()
			if got := rec.Header().Get("Content-Encoding") == "gzip"; got != tc.gzipped {
				t.Fatalf("gzipped = %v", got)
			}
			if tc.gzipped {
				zr, err := gzip.NewReader(bytes.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				if body, err = io.ReadAll(zr); err != nil {
					t.Fatal(err)
				}
			}
			var back document
			if err := json.Unmarshal(body, &back); err != nil || back.Name != tc.v.Name {
				t.Fatalf("came back as %.40s, %v", body, err)
			}
			if wantVary := len(tc.v.Name) > gzipMinBytes; (rec.Header().Get("Vary") != "") != wantVary {
				t.Fatalf("Vary: %q", rec.Header().Get("Vary"))
			}
		})
	}
}

func TestWriteJSONThatCannotBeEncoded(t *testing.T) {
	t.Parallel()
	rec := httptest.NewRecorder()
	WriteJSON(rec, httptest.NewRequest(http.MethodGet, "/", nil), http.StatusOK, math.NaN())
	if rec.Code != http.StatusInternalServerError {
		t.Fatalf("got %d %s", rec.Code, rec.Body)
	}
}

func TestAcceptsGzip(t *testing.T) {
	t.Parallel()
	for accept, want := range map[string]bool{
		"":                     false,
		"gzip":                 true,
		"GZIP":                 true,
		"deflate, gzip;q=0.1":  true,
		"gzip;q=0":             false,
		"gzip; q=0.000":        false,
		"gzip;q=0, *;q=1":      false,
		"*;q=0.5":              true,
		"*;q=0":                false,
		"br":                   false,
		"gzip;q=abc":           false,
		"gzip;q=NaN":           false,
		"identity;q=1, x-gzip": true,
		"gzipped":              false,
	} {
		if got := AcceptsGzip(http.Header{"Accept-Encoding": {accept}}); got != want {
			t.Errorf("AcceptsGzip(%q) = %v", accept, got)
		}
	}
}

func FuzzDecodeJSON(f *testing.F) {
	f.Add([]byte(`{"name":"a","items":[1]}`))
	f.Add([]byte(`{"Browse":null}`))
	f.Add([]byte(``))
	f.Fuzz(func(t *testing.T, body []byte) {
		r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
		var d document
		err := DecodeJSON(httptest.NewRecorder(), r, 1<<10, &d)
		if err != nil && !failure.Is(err, failure.Invalid) && !failure.Is(err, failure.TooLarge) {
			t.Fatalf("%q: %v has no kind", body, err)
		}
		if err == nil && len(body) > 1<<10 {
			t.Fatalf("%d bytes were accepted", len(body))
		}
	})
}
