package browserlink

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
)

func TestURL(t *testing.T) {
	t.Parallel()
	l := &Links{Provider: "hpc", User: "josé~#77", PublicURL: "https://im.example.org"}
	got := l.URL("upload", "a+b/c", true)
	// The gateway takes the hint in either alphabet; percent-encoding keeps it in one piece.
	if got != "wss://im.example.org/ucloud/hpc/upload?token=a%2Bb%2Fc&usernameHint=am9zw6l-Izc3" {
		t.Error(got)
	}
	l.PublicURL, l.User = "http://im.example.org:8889", "Karin#2718"
	if got := l.URL("upload", "t", true); got != "ws://im.example.org:8889/ucloud/hpc/upload?token=t&usernameHint=S2FyaW4jMjcxOA%3D%3D" {
		t.Error(got)
	}
	if got := l.URL("download", "t", false); !strings.HasPrefix(got, "http://im.example.org:8889/ucloud/hpc/download?token=t&") {
		t.Error(got)
	}
	if u, err := ident.DecodeUserHint("am9zw6l-Izc3"); err != nil || u != "josé~#77" {
		t.Error(u, err)
	}
}

func TestToken(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		query  string
		header []string
		want   string
	}{
		{"token=a", nil, "a"},
		{"token=a", []string{"a"}, "a"},
		{"", []string{"a"}, "a"},
		{"token=a&token=a", nil, "a"},
		{"", nil, ""},
		{"token=", nil, ""},
		{"token=a&token=b", nil, ""},
		{"token=a", []string{"b"}, ""},
		{"", []string{"a", "b"}, ""},
		{"token=a&token=", nil, ""},
		{"TOKEN=a", nil, ""},
		{"token=" + strings.Repeat("a", 257), nil, ""},
	} {
		r := httptest.NewRequest("GET", "/x?"+tc.query, nil)
		for _, h := range tc.header {
			r.Header.Add("Chunked-Upload-Token", h)
		}
		got, err := Token(r, "Chunked-Upload-Token")
		if got != tc.want || (tc.want == "") != failure.Is(err, failure.NotFound) {
			t.Errorf("%q %q: %q, %v", tc.query, tc.header, got, err)
		}
		if err != nil && tc.query != "" && strings.Contains(err.Error(), "aaaa") {
			t.Errorf("the error holds the token: %v", err)
		}
	}
}

//attack:actor internet
//attack:does Lets a page of another site use a link with the user's browser.
//attack:control Links are used by pages of UCloud alone, as the browser tells.
//attack:remove internal/browserlink/browserlink.go: return "", failure.New(failure.Forbidden, "This page may not use the link") => return "", nil
func TestOrigin(t *testing.T) {
	t.Parallel()
	l := &Links{PublicURL: "https://im.example.org", Origins: []string{"https://ucloud.example.org/", "http://localhost:3000", "https://[2001:db8::1]:8443", ""}}
	for origin, ok := range map[string]bool{
		"https://im.example.org": true, "https://ucloud.example.org": true, "https://ucloud.example.org:443": true, "HTTPS://UCloud.Example.org": true,
		"http://localhost:3000": true, "https://[2001:DB8::1]:8443": true,
		"http://im.example.org": false, "https://im.example.org:8443": false, "https://x.im.example.org": false, "https://im.example.org.x": false,
		"null": false, "": false, "file://": false, "https://": false, "https://im.example.org/path": false, "https://u@im.example.org": false,
		"https://im.example.org?x": false, "//im.example.org": false, "chrome-extension://im.example.org": false, "https://im.example.org https://x": false,
	} {
		r := httptest.NewRequest("GET", "/x", nil)
		r.Header.Set("Origin", origin)
		got, err := l.Origin(r)
		if ok != (err == nil) || ok && got != origin || !ok && !failure.Is(err, failure.Forbidden) {
			t.Errorf("%q: %q, %v", origin, got, err)
		}
	}
	r := httptest.NewRequest("GET", "/x", nil)
	if got, err := l.Origin(r); got != "" || err != nil {
		t.Errorf("absent: %q, %v", got, err)
	}
	r.Header["Origin"] = []string{"https://im.example.org", "https://evil.example"}
	if _, err := l.Origin(r); err == nil {
		t.Error("two origins")
	}
	h := http.Header{}
	AllowOrigin(h, "", "ETag")
	if len(h) != 1 || h.Get("Vary") != "Origin" {
		t.Errorf("%v", h)
	}
}

func TestRefuse(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		err  error
		kind failure.Kind
	}{
		{unix.ENOSPC, failure.Invalid},
		{fmt.Errorf("write: %w", unix.EDQUOT), failure.PaymentRequired},
		{unix.EACCES, failure.Forbidden},
		{unix.ENOENT, failure.NotFound},
		{drives.ErrOutside, failure.Forbidden},
		{drives.ErrNotRegular, failure.Invalid},
		{fmt.Errorf("%w: %w", drives.ErrName, unix.ENAMETOOLONG), failure.Invalid},
		{&drives.RootError{Err: unix.EACCES}, failure.NotFound},
		{&drives.RootError{Err: unix.ENOENT}, failure.NotFound},
		{failure.New(failure.TooMany, "x"), failure.TooMany},
		{errors.New("a bug"), failure.Internal},
	} {
		if got := Refuse(tc.err); failure.KindOf(got) != tc.kind || !errors.Is(got, tc.err) {
			t.Errorf("%v: %v", tc.err, got)
		}
	}
	if Refuse(nil) != nil {
		t.Error("nil")
	}
	if StorageBroken(unix.EACCES) || !StorageBroken(fmt.Errorf("x: %w", unix.EIO)) || StorageBroken(nil) {
		t.Error("storage broken")
	}
}

// TestDo: a call that hangs holds one place and nobody else.
func TestDo(t *testing.T) {
	t.Parallel()
	gate := make(Gate, 1)
	hang, gone := make(chan struct{}), make(chan int, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := Do(ctx, gate, func() (int, error) { <-hang; return 7, nil }, func(v int) { gone <- v })
	if !failure.Is(err, failure.Invalid) {
		t.Errorf("%v", err)
	}
	if _, err := Do(ctx, gate, func() (int, error) { return 1, nil }, nil); err == nil {
		t.Error("the gate is not closed")
	}
	close(hang)
	if v := <-gone; v != 7 { // the late result is not lost
		t.Error(v)
	}
	if v, err := Do(t.Context(), gate, func() (int, error) { return 1, nil }, nil); v != 1 || err != nil {
		t.Error(v, err)
	}
}

// TestServerIsAway: every call says so in a way that the client may come again.
func TestServerIsAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := Client{Server: func() (*ipc.Client, error) { return nil, failure.New(failure.Unavailable, "away") }}
		begun := time.Now()
		_, err1 := c.Create(t.Context(), ipcapi.PurposeUpload, make([]ipcapi.SessionItem, 1))
		_, err2 := c.Consume(t.Context(), ipcapi.PurposeUpload, "t")
		for i, err := range []error{err1, err2, c.Touch(t.Context(), ipcapi.SessionNote{}), c.Close(t.Context(), "", "")} {
			if !failure.Is(err, failure.Unavailable) {
				t.Errorf("call %d: %v", i, err)
			}
		}
		if took := time.Since(begun); took > 4*callTimeout {
			t.Errorf("four calls took %v", took)
		}
	})
}
