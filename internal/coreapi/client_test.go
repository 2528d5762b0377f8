package coreapi

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ucloud-im/internal/providerapi"
)

// staticToken is a token source with one token that cannot be renewed.
type staticToken string

func (s staticToken) Token(context.Context) (string, error) { return string(s), nil }

func (s staticToken) Renew(context.Context, string) (string, error) {
	return "", errors.New("no other token")
}

// renewableToken counts renewals.
type renewableToken struct{ n atomic.Int32 }

func (r *renewableToken) Token(context.Context) (string, error) {
	return "t" + strconv.Itoa(int(r.n.Load())), nil
}

func (r *renewableToken) Renew(ctx context.Context, _ string) (string, error) {
	r.n.Add(1)
	return r.Token(ctx)
}

func testHTTP(t *testing.T) *http.Client {
	t.Helper()
	hc, err := NewHTTPClient(HTTPOptions{DialTimeout: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(hc.CloseIdleConnections)
	return hc
}

func testClient(t *testing.T, base string, tokens Tokens) *Client {
	t.Helper()
	c, err := New(Options{BaseURL: base, Provider: "recprov", HTTP: testHTTP(t), Tokens: tokens})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// server answers every request with h and counts them.
func server(t *testing.T, h http.HandlerFunc) (base string, count *atomic.Int32) {
	t.Helper()
	count = new(atomic.Int32)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		count.Add(1)
		_, _ = io.Copy(io.Discard, r.Body) // otherwise net/http does not notice that the client went away
		h(w, r)
	}))
	t.Cleanup(srv.Close)
	return srv.URL, count
}

func testDrive() providerapi.RegisterDrive {
	return providerapi.RegisterDrive{
		Spec:                providerapi.DriveSpecification{Product: providerapi.ProductReference{Provider: "recprov"}},
		ProviderGeneratedID: "x",
	}
}

func TestNothingIsSentWithoutToken(t *testing.T) {
	t.Parallel()
	base, count := server(t, func(http.ResponseWriter, *http.Request) {})
	for name, tokens := range map[string]Tokens{"empty": staticToken(""), "error": noToken{}} {
		c := testClient(t, base, tokens)
		for call, err := range map[string]error{
			"clear":   c.ClearConnection(t.Context(), "a"),
			"approve": c.ApproveConnection(t.Context(), "a"),
			"browse":  func() error { _, err := c.BrowseProducts(t.Context()); return err }(),
		} {
			if !errors.Is(err, ErrNotSent) || Unanswered(err) {
				t.Errorf("%s, %s: %v", name, call, err)
			}
		}
	}
	if n := count.Load(); n != 0 {
		t.Fatalf("%d requests were sent", n)
	}
}

type noToken struct{}

func (noToken) Token(context.Context) (string, error) { return "", errors.New("none") }

func (noToken) Renew(context.Context, string) (string, error) { return "", errors.New("none") }

func TestRefusedTokenIsRenewedForRepeatableCallsOnly(t *testing.T) {
	t.Parallel()
	refuseFirst := func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "Bearer t0" {
			w.WriteHeader(403)
			return
		}
		_, _ = io.WriteString(w, `{}`)
	}
	t.Run("repeatable", func(t *testing.T) {
		t.Parallel()
		base, count := server(t, refuseFirst)
		tokens := &renewableToken{}
		if err := testClient(t, base, tokens).ClearConnection(t.Context(), "a"); err != nil || count.Load() != 2 {
			t.Fatalf("%v, %d requests", err, count.Load())
		}
	})
	t.Run("not repeatable", func(t *testing.T) {
		t.Parallel()
		base, count := server(t, refuseFirst)
		tokens := &renewableToken{}
		c := testClient(t, base, tokens)
		if err := c.ApproveConnection(t.Context(), "a"); Status(err) != 403 || count.Load() != 1 {
			t.Fatalf("%v, %d requests", err, count.Load())
		}
		if tokens.n.Load() != 1 {
			t.Fatal("the token was not renewed for the next call")
		}
	})
	t.Run("refused again", func(t *testing.T) {
		t.Parallel()
		base, count := server(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) })
		if err := testClient(t, base, &renewableToken{}).ClearConnection(t.Context(), "a"); Status(err) != 403 || count.Load() != 2 {
			t.Fatalf("%v, %d requests", err, count.Load())
		}
	})
}

func TestOutcomes(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		answer     http.HandlerFunc
		status     int
		noAnswer   bool
		unanswered bool
	}{
		"cut before the answer": {
			answer:   func(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) },
			noAnswer: true, unanswered: true,
		},
		"cut in the answer": {
			answer: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", "100")
				_, _ = io.WriteString(w, `{"respo`)
			},
			noAnswer: true, unanswered: true,
		},
		"not json":     {answer: text(`<html>`), noAnswer: true, unanswered: true},
		"empty":        {answer: text(``), noAnswer: true, unanswered: true},
		"no responses": {answer: text(`{}`), noAnswer: true, unanswered: true},
		"null":         {answer: text(`null`), noAnswer: true, unanswered: true},
		"empty id":     {answer: text(`{"responses":[{"id":""}]}`), noAnswer: true, unanswered: true},
		"conflict":     {answer: status(409), status: 409},
		"bad request":  {answer: status(400), status: 400},
		"bug":          {answer: status(500), status: 500},
		"proxy 502":    {answer: status(502), status: 502, unanswered: true},
		"proxy 504":    {answer: status(504), status: 504, unanswered: true},
		"redirect": {answer: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}, status: 307},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base, count := server(t, tc.answer)
			_, err := testClient(t, base, staticToken("t")).RegisterDrive(t.Context(), testDrive())
			if err == nil || errors.Is(err, ErrNotSent) {
				t.Fatalf("error %v", err)
			}
			if Status(err) != tc.status || errors.Is(err, ErrNoAnswer) != tc.noAnswer || Unanswered(err) != tc.unanswered {
				t.Fatalf("error %v: status %d, no answer %v, unanswered %v", err, Status(err), errors.Is(err, ErrNoAnswer), Unanswered(err))
			}
			if n := count.Load(); n != 1 {
				t.Fatalf("the request was sent %d times", n)
			}
		})
	}
	t.Run("timeout", func(t *testing.T) {
		t.Parallel()
		base, _ := server(t, func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
		})
		c := testClient(t, base, staticToken("t"))
		c.timeout = 200 * time.Millisecond
		if _, err := c.RegisterDrive(t.Context(), testDrive()); !errors.Is(err, ErrNoAnswer) || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
	})
	t.Run("nobody listens", func(t *testing.T) {
		t.Parallel()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		c := testClient(t, "http://"+l.Addr().String(), staticToken("t"))
		if _, err := c.RegisterDrive(t.Context(), testDrive()); !errors.Is(err, ErrNotSent) || Unanswered(err) {
			t.Fatal(err)
		}
	})
	t.Run("unknown certificate", func(t *testing.T) {
		t.Parallel()
		srv := httptest.NewUnstartedServer(http.HandlerFunc(text(`{}`)))
		srv.Config.ErrorLog = log.New(io.Discard, "", 0)
		srv.StartTLS()
		t.Cleanup(srv.Close)
		c := testClient(t, srv.URL, staticToken("t"))
		if err := c.ClearConnection(t.Context(), "a"); !errors.Is(err, ErrNotSent) {
			t.Fatal(err)
		}
		// The same with the certificate as a trust anchor.
		ca := filepath.Join(t.TempDir(), "ca.pem")
		block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
		if err := os.WriteFile(ca, block, 0o600); err != nil {
			t.Fatal(err)
		}
		hc, err := NewHTTPClient(HTTPOptions{CAFile: ca})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(hc.CloseIdleConnections)
		c.http = hc
		if err := c.ClearConnection(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if min := hc.Transport.(*http.Transport).TLSClientConfig.MinVersion; min < tls.VersionTLS12 {
			t.Fatalf("TLS version %x is allowed", min)
		}
	})
}

func text(s string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, s) }
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

func TestErrorTextsAreCleaned(t *testing.T) {
	t.Parallel()
	base, _ := server(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(400)
		_, _ = io.WriteString(w, `{"why":"line\nbreak `+strings.Repeat("ü", 2_000)+`","errorCode":"E1"}`)
	})
	err := testClient(t, base, staticToken("t")).ClearConnection(t.Context(), "a")
	var se *StatusError
	if !errors.As(err, &se) || se.ErrorCode != "E1" || se.Call != "providers.integration.control.clearConnection" {
		t.Fatalf("error %#v", err)
	}
	if len(se.Why) > maxWhy+10 || strings.Contains(se.Why, "\n") {
		t.Fatalf("why has %d bytes: %q", len(se.Why), se.Why)
	}
}

func TestPaging(t *testing.T) {
	t.Parallel()
	pages := map[string]string{
		"":   `{"items":[{"name":"a"},{"name":"b"}],"itemsPerPage":2,"next":"n1"}`,
		"n1": `{"items":[{"name":"c"}],"itemsPerPage":2,"next":"n2"}`, // short and not the last
		"n2": `{"items":null,"itemsPerPage":2,"next":null}`,           // the last one may be empty
	}
	base, count := server(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, pages[r.URL.Query().Get("next")])
	})
	got, err := testClient(t, base, staticToken("t")).BrowseProducts(t.Context())
	if err != nil || len(got) != 3 || count.Load() != 3 {
		t.Fatalf("%d products, %d requests, %v", len(got), count.Load(), err)
	}
	loop, count := server(t, text(`{"items":[],"next":"again"}`))
	if _, err := testClient(t, loop, staticToken("t")).BrowseProducts(t.Context()); err == nil || count.Load() > 3 {
		t.Fatalf("a listing without end: %v, %d requests", err, count.Load())
	}
}

func TestProviderIDWithComma(t *testing.T) {
	t.Parallel()
	base, _ := server(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("filterProviderIds") {
			t.Error("the filter splits at commas and cannot be used")
		}
		_, _ = io.WriteString(w, `{"items":[{"id":"1","providerGeneratedId":"p-x\n/a"},{"id":"2","providerGeneratedId":"p-x\n/a,b"}]}`)
	})
	d, ok, err := testClient(t, base, staticToken("t")).FindDrive(t.Context(), "p-x\n/a,b")
	if err != nil || !ok || d.ID != "2" {
		t.Fatalf("%+v, %v, %v", d, ok, err)
	}
}

func TestCheckExistenceWantsAllAnswers(t *testing.T) {
	t.Parallel()
	base, _ := server(t, text(`{"responses":[true]}`))
	_, err := testClient(t, base, staticToken("t")).CheckExistence(t.Context(), []Resource{{TypeDrive, "1"}, {TypeDrive, "2"}})
	if !errors.Is(err, ErrNoAnswer) {
		t.Fatal(err)
	}
}

func TestRegisterRefusesLabels(t *testing.T) {
	t.Parallel()
	base, count := server(t, text(`{"responses":[{"id":"1"}]}`))
	d := testDrive()
	d.Spec.Labels = map[string]string{}
	if _, err := testClient(t, base, staticToken("t")).RegisterDrive(t.Context(), d); !errors.Is(err, ErrNotSent) || count.Load() != 0 {
		t.Fatalf("%v, %d requests", err, count.Load())
	}
}

func TestLargeAnswer(t *testing.T) {
	t.Parallel()
	base, _ := server(t, func(w http.ResponseWriter, _ *http.Request) {
		chunk := make([]byte, 1<<20)
		for range 40 {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	if _, err := testClient(t, base, staticToken("t")).BrowseProducts(t.Context()); !errors.Is(err, ErrNoAnswer) {
		t.Fatal(err)
	}
}

// TestEnvironmentIsIgnored changes the environment of the process and is not parallel.
func TestEnvironmentIsIgnored(t *testing.T) {
	proxy, proxied := server(t, text(`{}`))
	t.Setenv("HTTP_PROXY", proxy)
	t.Setenv("ALL_PROXY", proxy)
	// net/http never uses a proxy for loopback addresses, so the name must look foreign.
	c := testClient(t, "http://core.invalid", staticToken("t"))
	if err := c.ClearConnection(t.Context(), "a"); !errors.Is(err, ErrNotSent) {
		t.Fatal(err)
	}
	if proxied.Load() != 0 {
		t.Fatal("the token went to a proxy named by the environment")
	}
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	b := Backoff{Initial: time.Second, Max: 10 * time.Second}
	for failures, most := range map[int]time.Duration{
		0: time.Second, 1: time.Second, 2: 2 * time.Second, 4: 8 * time.Second, 5: 10 * time.Second, 1000: 10 * time.Second,
	} {
		for range 100 {
			if d := b.Delay(failures); d < most/2 || d > most {
				t.Fatalf("Delay(%d) = %s, want %s to %s", failures, d, most/2, most)
			}
		}
	}
}

func ExampleUnanswered() {
	fmt.Println(Unanswered(&StatusError{Status: 409}), Unanswered(&StatusError{Status: 502}))
	// Output: false true
}
