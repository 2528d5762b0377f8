package failure

import (
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestWriteHTTPHidesTheCause(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name       string
		err        error
		wantStatus int
		wantWhy    string
	}{
		{"kind", New(NotFound, "Could not find %q", "a"), 404, `Could not find \"a\"`},
		{"wrapped kind", fmt.Errorf("browse: %w", Wrap(errors.New("secret path"), Forbidden, "Not allowed")), 403, "Not allowed"},
		{"no kind", errors.New("SELECT secret"), 500, "An internal error occurred"},
		{"no instance", New(NoInstance, "Try again"), 449, "Try again"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			rec := httptest.NewRecorder()
			WriteHTTP(rec, tc.err)
			body := rec.Body.String()
			if rec.Code != tc.wantStatus || !strings.Contains(body, tc.wantWhy) {
				t.Fatalf("got %d %s", rec.Code, body)
			}
			if strings.Contains(body, "secret") {
				t.Fatalf("the cause got out: %s", body)
			}
		})
	}
}

func TestStatusRoundTrip(t *testing.T) {
	t.Parallel()
	for k := range statuses {
		if got := KindOfStatus(k.Status()); got != k {
			t.Errorf("KindOfStatus(%d) = %d, want %d", k.Status(), got, k)
		}
	}
}

func TestEachItem(t *testing.T) {
	t.Parallel()
	bad := New(Conflict, "Taken")
	fail := func(which ...int) func(int) error {
		return func(i int) error {
			for _, w := range which {
				if w == i {
					return bad
				}
			}
			return nil
		}
	}
	if err := EachItem(3, fail()); err != nil {
		t.Error(err)
	}
	if err := EachItem(1, fail(0)); Why(err) != "Taken" {
		t.Error(err)
	}
	if err := EachItem(3, fail(1, 2)); Why(err) != "Taken (2 of 3 items failed)" || !Is(err, Conflict) {
		t.Error(err)
	}
}
