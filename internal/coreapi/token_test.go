package coreapi

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// fakeJWT makes an unsigned token with the claims that a token source looks at.
func fakeJWT(subject string, iat, exp int64, serial int) string {
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(`{"alg":"RS256"}`)) + "." +
		enc(fmt.Appendf(nil, `{"sub":%q,"iat":%d,"exp":%d,"jti":"%d"}`, subject, iat, exp, serial)) + ".c2ln"
}

// exchangeServer is a Core of which only the token exchange exists, without a socket so that it works under synctest.
type exchangeServer struct {
	skew  time.Duration // of Core's clock
	delay time.Duration
	calls atomic.Int32

	mu      sync.Mutex
	valid   string // the refresh token that is accepted
	fail    int    // status to answer with instead, 0: none
	answer  string // body to answer with instead, empty: a token
	subject string
}

func (e *exchangeServer) RoundTrip(req *http.Request) (*http.Response, error) {
	n := e.calls.Add(1)
	body, _ := io.ReadAll(req.Body)
	if req.Header.Get("Authorization") != "" {
		return nil, errors.New("the exchange carries an Authorization header")
	}
	if e.delay > 0 {
		select {
		case <-time.After(e.delay):
		case <-req.Context().Done():
			return nil, req.Context().Err()
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	status, text := 200, e.answer
	switch {
	case e.fail == -1:
		return nil, errors.New("connection refused")
	case e.fail != 0:
		status, text = e.fail, `{"why":"no"}`
	case string(body) != `{"items":[{"refreshToken":"`+e.valid+`"}]}`:
		status, text = 401, `{"statusCode": 401, "why": "Unauthorized", "errorCode": "", "detailedCode": 0}`
	case text == "":
		now := time.Now().Add(e.skew)
		text = `{"responses":[{"accessToken":"` + fakeJWT(e.subject, now.Unix(), now.Unix()+600, int(n)) + `","csrfToken":""}]}`
	}
	return &http.Response{
		StatusCode: status, Body: io.NopCloser(strings.NewReader(text)), Header: http.Header{}, Request: req,
	}, nil
}

func (e *exchangeServer) set(f func(*exchangeServer)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f(e)
}

func newExchange(t *testing.T) (*exchangeServer, *TokenSource) {
	t.Helper()
	e := &exchangeServer{valid: "right", subject: "#P_hpc"}
	s, err := NewTokenSource(TokenOptions{
		BaseURL: "http://core.invalid", Provider: "hpc", RefreshToken: "right", HTTP: &http.Client{Transport: e},
	})
	if err != nil {
		t.Fatal(err)
	}
	return e, s
}

func mustToken(t *testing.T, s *TokenSource) string {
	t.Helper()
	tok, err := s.Token(t.Context())
	if err != nil || tok == "" {
		t.Fatalf("Token() = %q, %v", tok, err)
	}
	return tok
}

func TestTokenIsReusedAndRenewedEarly(t *testing.T) {
	t.Parallel()
	// A wrong clock at either side must not matter.
	for _, skew := range []time.Duration{0, -24 * time.Hour, 24 * time.Hour} {
		t.Run(skew.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				e, s := newExchange(t)
				e.skew = skew
				first := mustToken(t, s)
				time.Sleep(7*time.Minute - time.Second)
				if mustToken(t, s) != first || e.calls.Load() != 1 {
					t.Fatalf("token was not reused while three minutes remain; %d exchanges", e.calls.Load())
				}
				time.Sleep(2 * time.Second)
				if mustToken(t, s) == first || e.calls.Load() != 2 {
					t.Fatalf("token was not renewed with less than three minutes left; %d exchanges", e.calls.Load())
				}
			})
		})
	}
}

func TestTokenSingleFlight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e, s := newExchange(t)
		e.delay = time.Second
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { mustToken(t, s) })
		}
		wg.Wait()
		if n := e.calls.Load(); n != 1 {
			t.Fatalf("%d exchanges for 100 callers", n)
		}
		// While one caller renews, the others go on with the token that is still valid, and nothing is locked.
		time.Sleep(8 * time.Minute)
		wg.Go(func() { mustToken(t, s) })
		synctest.Wait()
		start := time.Now()
		mustToken(t, s)
		s.Status()
		if waited := time.Since(start); waited != 0 {
			t.Fatalf("a caller with a valid token waited %s for the exchange of another", waited)
		}
		wg.Wait()
		if n := e.calls.Load(); n != 2 {
			t.Fatalf("%d exchanges, want 2", n)
		}
	})
}

func TestTokenCancelledLeader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e, s := newExchange(t)
		e.delay = 2 * time.Second
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := s.Token(ctx); !errors.Is(err, context.Canceled) || !errors.Is(err, ErrNotSent) {
				t.Errorf("leader: %v", err)
			}
		})
		synctest.Wait()
		wg.Go(func() { mustToken(t, s) })
		synctest.Wait()
		cancel()
		wg.Wait()
		if st := s.Status(); st.State != TokenOK {
			t.Fatalf("state %s", st.State)
		}
	})
}

func TestTokenFailuresBackOffAndKeepTheValidToken(t *testing.T) {
	t.Parallel()
	for _, fail := range []int{-1, 500, 403, 302} {
		t.Run(fmt.Sprint(fail), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				e, s := newExchange(t)
				first := mustToken(t, s)
				e.set(func(e *exchangeServer) { e.fail = fail })
				// Ask ten times a second for an hour.
				for range 9*60*10 + 500 { // until shortly before the token's end
					if mustToken(t, s) != first {
						t.Fatal("another token")
					}
					time.Sleep(100 * time.Millisecond)
				}
				time.Sleep(time.Minute)
				for range 50 * 60 * 2 {
					tok, err := s.Token(t.Context())
					if tok != "" || !errors.Is(err, ErrNotSent) {
						t.Fatalf("expired token: got %q, %v", tok, err)
					}
					time.Sleep(500 * time.Millisecond)
				}
				if n := e.calls.Load(); n < 40 || n > 140 { // at most one per 30 to 60 s plus the first few
					t.Fatalf("%d exchanges in an hour", n)
				}
				if st := s.Status(); st.State != TokenUnavailable || st.LastError == "" {
					t.Fatalf("status %+v", st)
				}
				e.set(func(e *exchangeServer) { e.fail = 0 })
				time.Sleep(time.Minute + time.Second)
				mustToken(t, s)
				if st := s.Status(); st.State != TokenOK || st.LastError != "" {
					t.Fatalf("status after recovery %+v", st)
				}
			})
		})
	}
}

func TestTokenRevoked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e, s := newExchange(t)
		e.valid = "other"
		for range 600 { // ten minutes
			if tok, err := s.Token(t.Context()); tok != "" || !errors.Is(err, ErrRevoked) || !errors.Is(err, ErrNotSent) {
				t.Fatalf("got %q, %v", tok, err)
			}
			time.Sleep(time.Second)
		}
		if n := e.calls.Load(); n != 10 {
			t.Fatalf("%d exchanges in ten minutes, want one each minute", n)
		}
		if st := s.Status(); st.State != TokenRevoked {
			t.Fatalf("state %s", st.State)
		}
		s.SetRefreshToken("other") // a reload needs no waiting
		mustToken(t, s)
		if st := s.Status(); st.State != TokenOK {
			t.Fatalf("state %s", st.State)
		}
	})
}

func TestTokenReloadDuringExchange(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e, s := newExchange(t)
		e.valid, e.delay = "new", time.Second
		done := make(chan struct{})
		go func() {
			defer close(done)
			mustToken(t, s) // begins with the old one, which fails, and must end with the new one
		}()
		synctest.Wait()
		s.SetRefreshToken("new")
		<-done
		if st := s.Status(); st.State != TokenOK {
			t.Fatalf("the failure of the old refresh token was reported on the new one: %+v", st)
		}
	})
}

func TestTokenAnswersThatAreNone(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", maxToken+1)
	for name, answer := range map[string]string{
		"empty object":     `{}`, // recordings 02 section 4
		"null":             `null`,
		"empty token":      `{"responses":[{"accessToken":""}]}`,
		"two tokens":       `{"responses":[{"accessToken":"a.b.c"},{"accessToken":"d.e.f"}]}`,
		"line break":       `{"responses":[{"accessToken":"a\r\nX: y"}]}`,
		"blank":            `{"responses":[{"accessToken":" "}]}`,
		"too long":         `{"responses":[{"accessToken":"` + long + `"}]}`,
		"no json":          `<html>`,
		"another provider": `{"responses":[{"accessToken":"` + fakeJWT("#P_other", 1, 601, 1) + `"}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, s := newExchange(t)
			e.answer = answer
			if tok, err := s.Token(t.Context()); err == nil || tok != "" {
				t.Fatalf("got token %q", tok)
			}
		})
	}
}

func TestTokenRenew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e, s := newExchange(t)
		first := mustToken(t, s)
		// Also a token of the same moment may be refused: Core can have been given another key since.
		second, err := s.Renew(t.Context(), first)
		if err != nil || second == first {
			t.Fatalf("got %q, %v", second, err)
		}
		time.Sleep(forcedPause - time.Second)
		if _, err := s.Renew(t.Context(), second); err == nil || e.calls.Load() != 2 {
			t.Fatal("refusals that have nothing to do with the token flood Core")
		}
		// A second caller that was refused with the same token gets the new one without an exchange.
		if third, err := s.Renew(t.Context(), first); err != nil || third != second || e.calls.Load() != 2 {
			t.Fatalf("got %q, %v, %d exchanges", third, err, e.calls.Load())
		}
		time.Sleep(time.Minute)
		e.set(func(e *exchangeServer) { e.fail = 500 })
		if _, err := s.Renew(t.Context(), second); err == nil {
			t.Fatal("renewal without an exchange")
		}
		if mustToken(t, s) != second {
			t.Fatal("the refused token is gone although nothing better is there")
		}
	})
}

func TestTokenRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e, s := newExchange(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := s.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if n := e.calls.Load(); n < 8 || n > 10 { // every seven minutes
			t.Fatalf("%d exchanges in an hour", n)
		}
	})
}

func TestTokenOptions(t *testing.T) {
	t.Parallel()
	ok := TokenOptions{BaseURL: "https://core.invalid", RefreshToken: "x", HTTP: http.DefaultClient}
	for name, change := range map[string]func(*TokenOptions){
		"no refresh token": func(o *TokenOptions) { o.RefreshToken = "" },
		"no client":        func(o *TokenOptions) { o.HTTP = nil },
		"ftp":              func(o *TokenOptions) { o.BaseURL = "ftp://core.invalid" },
		"path":             func(o *TokenOptions) { o.BaseURL = "https://core.invalid/x" },
		"user":             func(o *TokenOptions) { o.BaseURL = "https://u:p@core.invalid" },
		"relative":         func(o *TokenOptions) { o.BaseURL = "core.invalid" },
	} {
		o := ok
		change(&o)
		if _, err := NewTokenSource(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzReadClaims(f *testing.F) {
	f.Add(fakeJWT("#P_hpc", 1, 601, 1))
	f.Add("a.b.c")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		if d := lifeOf(s); d <= 0 || d > 24*time.Hour {
			t.Fatalf("life %s", d)
		}
	})
}
