package downloads

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/files"
	"ucloud-im/internal/fileserver"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
)

const (
	testProvider = "hpc-example"
	testUser     = ident.UCloudUser("AdaLovelace#4821")
	testUID      = ident.UID(61021)
	testOrigin   = "https://ucloud.example.org"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a store of sessions without a server.
type memory struct {
	mu       sync.Mutex
	sessions map[string]ipcapi.Session
	down     error
}

func (m *memory) Create(_ context.Context, purpose string, items []ipcapi.SessionItem) (tokens []string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, it := range items {
		token := fmt.Sprintf("token-%d", len(m.sessions))
		m.sessions[purpose+token] = ipcapi.Session{Object: it.Object, Data: it.Data}
		tokens = append(tokens, token)
	}
	return tokens, m.down
}

func (m *memory) Consume(_ context.Context, purpose, token string) (ipcapi.Session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down != nil {
		return ipcapi.Session{}, m.down
	}
	s, ok := m.sessions[purpose+token]
	if !ok {
		return ipcapi.Session{}, failure.New(failure.NotFound, "no such session")
	}
	return s, nil
}

func (m *memory) Touch(context.Context, ipcapi.SessionNote) error { return nil }
func (m *memory) Close(context.Context, string, string) error     { return nil }
func (m *memory) fail(err error)                                  { m.mu.Lock(); m.down = err; m.mu.Unlock() }

type world struct {
	tb    testing.TB
	dir   string
	svc   *Service
	store *memory
	title string // of the drive
	http  *httptest.Server
	wrap  func(http.ResponseWriter) http.ResponseWriter
}

func newWorld(tb testing.TB, change func(*Settings)) *world {
	tb.Helper()
	w := &world{tb: tb, dir: tb.TempDir(), title: "My drive", store: &memory{sessions: map[string]ipcapi.Session{}}}
	log := slog.New(slog.DiscardHandler)
	w.http = httptest.NewUnstartedServer(nil)
	set := Settings{PublicURL: "http://" + w.http.Listener.Addr().String(), Origins: []string{testOrigin}}
	if change != nil {
		change(&set)
	}
	w.svc = New(Options{Provider: testProvider, User: testUser, Sessions: w.store, Log: log, Settings: set})
	key := hoptoken.NewKey()
	fsvc := files.New(files.Options{Provider: testProvider, Log: log, Timeout: time.Minute})
	h := fileserver.New(fileserver.Options{
		Provider: testProvider, Files: fsvc, Log: log, Routes: w.svc.Routes(),
		Start: ipcapi.Start{Provider: testProvider, User: testUser, UID: testUID, HopKey: key[:]},
	})
	w.http.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		c := hoptoken.Claims{
			UID: testUID, User: testUser, Method: r.Method, Path: r.URL.Path, RequestID: "0123456789abcdef",
			Arrival: time.Now(), Class: hoptoken.ClassBrowser,
		}
		if r.Header.Get("Authorization") != "" {
			c.Class = hoptoken.ClassCore
			r.Header.Set(ident.HeaderUser, testUser.HeaderValue())
		}
		r.Header.Set(hoptoken.Header, hoptoken.Mint(key, c))
		if w.wrap != nil {
			rw = w.wrap(rw)
		}
		h.ServeHTTP(rw, r)
	})
	w.http.Config.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelError)
	w.http.Start()
	tb.Cleanup(func() {
		w.http.Close()
		fsvc.Close(context.Background())
	})
	return w
}

func (w *world) write(name, content string) {
	w.tb.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		w.tb.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
		w.tb.Fatal(err)
	}
}

func (w *world) create(paths ...string) (int, []string, string) {
	w.tb.Helper()
	var req providerapi.BulkRequest[CreateDownload]
	for _, p := range paths {
		req.Items = append(req.Items, CreateDownload{ID: "/5123" + p, ResolvedCollection: providerapi.Drive{
			ID: "5123", ProviderGeneratedID: testProvider + "-x\n" + w.dir,
			Owner: providerapi.ResourceOwner{CreatedBy: testUser},
			Specification: providerapi.DriveSpecification{
				Title: w.title, Product: providerapi.ProductReference{ID: "storage", Category: "storage", Provider: testProvider},
			},
		}})
	}
	raw, _ := json.Marshal(req)
	r, err := http.NewRequest(http.MethodPost, w.http.URL+"/ucloud/"+testProvider+"/files/download", bytes.NewReader(raw))
	if err != nil {
		w.tb.Fatal(err)
	}
	r.Header.Set("Authorization", "x")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		w.tb.Fatal(err)
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	var out providerapi.BulkResponse[DownloadSession]
	if res.StatusCode == 200 {
		if err := json.Unmarshal(body, &out); err != nil {
			w.tb.Fatal(err)
		}
	}
	var urls []string
	for _, s := range out.Responses {
		urls = append(urls, s.Endpoint)
	}
	return res.StatusCode, urls, string(body)
}

func (w *world) link(path string) string {
	w.tb.Helper()
	status, urls, body := w.create(path)
	if status != 200 || len(urls) != 1 {
		w.tb.Fatalf("create %s: %d %s", path, status, body)
	}
	return urls[0]
}

func (w *world) get(method, url string, header ...string) (*http.Response, string, error) {
	w.tb.Helper()
	r, err := http.NewRequest(method, url, nil)
	if err != nil {
		w.tb.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res, string(body), err
}

func (w *world) ok(method, url string, header ...string) (*http.Response, string) {
	w.tb.Helper()
	res, body, err := w.get(method, url, header...)
	if err != nil {
		w.tb.Fatal(err)
	}
	return res, body
}

func TestPlaces(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	outside := t.TempDir()
	os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600)
	w.write("d/file", "content")
	os.Symlink("file", filepath.Join(w.dir, "d/inside"))
	os.Symlink(filepath.Join(outside, "secret"), filepath.Join(w.dir, "d/outside"))
	os.Symlink("nothing", filepath.Join(w.dir, "d/dangling"))
	unix.Mkfifo(filepath.Join(w.dir, "d/fifo"), 0o600)
	for path, want := range map[string]int{
		"/d/file": 200, "/d/inside": 200, "/d": 200, "": 200, "/d/nothing": 404, "/nothing/x": 404, "/d/dangling": 404,
		"/d/outside": 403, "/d/fifo": 400, "/d/file/x": 404, "/../6/x": 400, "/d/\x00": 400,
	} {
		status, urls, body := w.create(path)
		if status != want {
			t.Errorf("%q: %d %s, want %d", path, status, body, want)
		}
		if status != 200 {
			continue
		}
		if !strings.HasPrefix(urls[0], w.http.URL+"/ucloud/"+testProvider+"/download?token=") || !strings.HasSuffix(urls[0], "&usernameHint=QWRhTG92ZWxhY2UjNDgyMQ%3D%3D") {
			t.Errorf("link %s", urls[0])
		}
	}
	status, urls, _ := w.create("/d/file", "/d/inside", "/d")
	if status != 200 || len(urls) != 3 || urls[0] == urls[1] {
		t.Errorf("three links: %d %v", status, urls)
	}
	if status, _, body := w.create("/d/file", "/nothing", "/gone"); status != 404 || !strings.Contains(body, "2 of 3") {
		t.Errorf("with failures: %d %s", status, body)
	}
	// What a link stands for is looked up again for each request.
	link := w.link("/d/file")
	os.Remove(filepath.Join(w.dir, "d/file"))
	os.Symlink(filepath.Join(outside, "secret"), filepath.Join(w.dir, "d/file"))
	if res, body := w.ok("GET", link); res.StatusCode != 403 || strings.Contains(body, "secret") {
		t.Errorf("exchanged for a link: %d %s", res.StatusCode, body)
	}
	off := newWorld(t, func(s *Settings) { s.NoDirectories = true })
	if status, _, _ := off.create(""); status != 404 {
		t.Errorf("folders are switched off: %d", status)
	}
}

func TestTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.write("file", "content")
	link := w.link("/file")
	for range 3 {
		if res, body := w.ok("GET", link); res.StatusCode != 200 || body != "content" {
			t.Fatalf("%d %s", res.StatusCode, body)
		}
	}
	// The web client appends its own hint, and nothing in the instance minds.
	if res, _ := w.ok("GET", link+"&usernameHint=QWRhTG92ZWxhY2UjNDgyMQ=="); res.StatusCode != 200 {
		t.Errorf("hint twice: %d", res.StatusCode)
	}
	base := strings.Split(link, "?")[0]
	for _, query := range []string{"", "?token=", "?token=other", "?token=token-0&token=other", "?token=" + strings.Repeat("x", 1000)} {
		if res, _ := w.ok("GET", base+query); res.StatusCode != 404 {
			t.Errorf("%q: %d", query, res.StatusCode)
		}
	}
	w.store.fail(failure.New(failure.Unavailable, "away"))
	if res, _ := w.ok("GET", link); res.StatusCode != 503 {
		t.Errorf("without the server: %d", res.StatusCode)
	}
	w.store.fail(nil)
	// Core's class does not open it, and a browser's does not make one.
	if res, _ := w.ok("GET", link, "Authorization", "x"); res.StatusCode != 403 {
		t.Errorf("as Core: %d", res.StatusCode)
	}
}

//attack:actor compromised instance
//attack:does Offers a file whose content a browser would run as a page of the provider.
//attack:control Downloads are attachments, with a type that is not guessed, and run nothing.
//attack:remove internal/downloads/file.go: h.Set("X-Content-Type-Options", "nosniff") =>
//attack:actor compromised instance
//attack:does Offers a page with a script for download.
//attack:control Downloads run in a sandbox.
//attack:remove internal/downloads/file.go: h.Set("Content-Security-Policy", "sandbox") =>
func TestHeaders(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	for name, want := range map[string]string{
		"a.csv": "text/plain; charset=utf-8", "b.PNG": "image/png", "c.html": "application/octet-stream",
		"d.svg": "application/octet-stream", "e": "application/octet-stream", "f.pdf": "application/pdf", "g.xml": "application/octet-stream",
	} {
		w.write(name, "<script>alert(1)</script>")
		link := w.link("/" + name)
		for _, method := range []string{"GET", "HEAD"} {
			res, body := w.ok(method, link)
			got := map[string]string{}
			for _, h := range []string{"Content-Type", "X-Content-Type-Options", "Content-Security-Policy", "Cache-Control", "Referrer-Policy", "Accept-Ranges", "Content-Length", "Content-Disposition"} {
				got[h] = strings.Join(res.Header.Values(h), "|")
			}
			if diff := cmp.Diff(map[string]string{
				"Content-Type": want, "X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox",
				"Cache-Control": "private, no-store", "Referrer-Policy": "no-referrer", "Accept-Ranges": "bytes", "Content-Length": "25",
				"Content-Disposition": `attachment; filename="` + name + `"; filename*=UTF-8''` + name,
			}, got); diff != "" || (method == "HEAD") != (body == "") {
				t.Errorf("%s %s: %s %q", method, name, diff, body)
			}
		}
	}
}

// TestNames: whatever a file is called, there is one header, and it names the file.
func TestNames(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]struct{ plain, full string }{
		"run 1.csv":                {"run 1.csv", "run 1.csv"},
		"a\r\nSet-Cookie: x=1.txt": {"aSet-Cookie: x=1.txt", "aSet-Cookie: x=1.txt"},
		`q"uo\te;%41.txt`:          {"q_uo_te__41.txt", `q"uo\te;%41.txt`},
		"æøå 中文.txt":               {"___ __.txt", "æøå 中文.txt"},
		"\u202egnp.exe":            {"gnp.exe", "gnp.exe"},
		"\x7f\x01":                 {"download", "download"},
		"..":                       {"download", "download"},
		"bad\xff":                  {"bad_", "bad\U0010feff"},
	} {
		h := disposition(name)
		if strings.ContainsAny(h, "\r\n") {
			t.Errorf("%q: %q", name, h)
		}
		if got := `attachment; filename="` + want.plain + `"`; !strings.HasPrefix(h, got+"; filename*=UTF-8''") {
			t.Errorf("%q: %s, want %s", name, h, got)
		}
		_, params, err := mime.ParseMediaType(h[:10] + h[strings.Index(h, "; filename*="):])
		if err != nil || params["filename"] != want.full {
			t.Errorf("%q: full name %q, %v", name, params["filename"], err)
		}
	}
}

func FuzzDisposition(f *testing.F) {
	f.Add("a.txt")
	f.Add("a\r\nb\"\\")
	f.Fuzz(func(t *testing.T, name string) {
		h := disposition(name)
		for _, b := range []byte(h) {
			if b < ' ' || b > '~' {
				t.Fatalf("%q gives %q", name, h)
			}
		}
		if _, _, err := mime.ParseMediaType(h); err != nil && !strings.Contains(err.Error(), "duplicate") {
			t.Fatalf("%q gives %q: %v", name, h, err)
		}
	})
}

func TestRanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	content := strings.Repeat("0123456789", 1000)
	w.write("file", content)
	link := w.link("/file")
	first, _ := w.ok("GET", link)
	tag, modified := first.Header.Get("ETag"), first.Header.Get("Last-Modified")
	if len(tag) < 10 || tag[0] != '"' || modified == "" {
		t.Fatalf("ETag %s, Last-Modified %s", tag, modified)
	}
	for _, tc := range []struct {
		name   string
		header []string
		status int
		body   string
		ranges string
	}{
		{"first bytes", []string{"Range", "bytes=0-9"}, 206, content[:10], "bytes 0-9/10000"},
		{"middle", []string{"Range", "bytes=5-14"}, 206, content[5:15], "bytes 5-14/10000"},
		{"from", []string{"Range", "bytes=9990-"}, 206, content[9990:], "bytes 9990-9999/10000"},
		{"last", []string{"Range", "bytes=-3"}, 206, "789", "bytes 9997-9999/10000"},
		{"beyond", []string{"Range", "bytes=10000-"}, 416, "", "bytes */10000"},
		{"too long", []string{"Range", "bytes=9999-20000"}, 206, "9", "bytes 9999-9999/10000"},
		{"nonsense", []string{"Range", "bytes=x"}, 416, "", ""},
		{"same tag", []string{"Range", "bytes=0-0", "If-Range", tag}, 206, "0", "bytes 0-0/10000"},
		{"other tag", []string{"Range", "bytes=0-0", "If-Range", `"x"`}, 200, content, ""},
		{"same time", []string{"Range", "bytes=0-0", "If-Range", modified}, 206, "0", "bytes 0-0/10000"},
		{"not modified", []string{"If-None-Match", tag}, 304, "", ""},
		{"modified", []string{"If-None-Match", `"x"`}, 200, content, ""},
	} {
		res, body := w.ok("GET", link, tc.header...)
		if res.StatusCode != tc.status || res.Header.Get("Content-Range") != tc.ranges || tc.status/100 == 2 && body != tc.body {
			t.Errorf("%s: %d, %q, %d bytes", tc.name, res.StatusCode, res.Header.Get("Content-Range"), len(body))
		}
	}
	res, body := w.ok("GET", link, "Range", "bytes=0-1,10-12")
	_, params, err := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if err != nil || res.StatusCode != 206 {
		t.Fatalf("several: %d %v", res.StatusCode, err)
	}
	parts := multipart.NewReader(strings.NewReader(body), params["boundary"])
	for _, want := range []string{"01", "012"} {
		p, err := parts.NextPart()
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := io.ReadAll(p); string(got) != want {
			t.Errorf("part %q, want %q", got, want)
		}
	}
	// The tag changes with the content, also within a second and with the same length.
	w.write("file", strings.Repeat("9876543210", 1000))
	if res, _ := w.ok("HEAD", link); res.Header.Get("ETag") == tag {
		t.Error("the tag stayed")
	}
	off := newWorld(t, func(s *Settings) { s.NoRanges = true })
	off.write("file", content)
	if res, body := off.ok("GET", off.link("/file"), "Range", "bytes=0-9"); res.StatusCode != 200 || body != content || res.Header.Get("Accept-Ranges") != "none" {
		t.Errorf("ranges are switched off: %d %v", res.StatusCode, res.Header)
	}
}

func TestOrigins(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.write("file", "content")
	link := w.link("/file")
	for _, tc := range []struct {
		origin string
		status int
		allow  string
	}{
		{"", 200, ""},
		{testOrigin, 200, testOrigin},
		{w.http.URL, 200, w.http.URL},
		{"https://UCLOUD.example.org:443", 200, "https://UCLOUD.example.org:443"},
		{"http://ucloud.example.org", 403, ""},
		{"https://ucloud.example.org.evil.example", 403, ""},
		{"https://evil.example/https://ucloud.example.org", 403, ""},
		{"https://ucloud.example.org:8443", 403, ""},
		{"null", 403, ""},
		{"https://ucloud.example.org@evil.example", 403, ""},
	} {
		for _, method := range []string{"GET", "OPTIONS"} {
			var header []string
			if tc.origin != "" {
				header = []string{"Origin", tc.origin}
			}
			res, _ := w.ok(method, link, header...)
			want := tc.status
			if method == "OPTIONS" && want == 200 {
				want = 204
			}
			if res.StatusCode != want || res.Header.Get("Access-Control-Allow-Origin") != tc.allow || res.Header.Get("Access-Control-Allow-Credentials") != "" {
				t.Errorf("%s from %q: %d, %q", method, tc.origin, res.StatusCode, res.Header.Get("Access-Control-Allow-Origin"))
			}
			if method == "GET" && tc.allow != "" && res.Header.Get("Access-Control-Expose-Headers") != "Content-Length, Content-Range, Accept-Ranges, ETag" {
				t.Errorf("exposed: %q", res.Header.Get("Access-Control-Expose-Headers"))
			}
		}
	}
}

// recorder sees how the content reaches the connection.
type recorder struct {
	http.ResponseWriter
	sawFile *bool
}

func (r recorder) ReadFrom(src io.Reader) (int64, error) {
	if l, ok := src.(*io.LimitedReader); ok {
		_, *r.sawFile = l.R.(*os.File)
	}
	return io.Copy(r.ResponseWriter, src)
}

// TestKernelSends: the connection is given the file itself, without which it would go through this process.
func TestKernelSends(t *testing.T) {
	t.Parallel()
	saw := false
	w := newWorld(t, nil)
	w.wrap = func(rw http.ResponseWriter) http.ResponseWriter { return recorder{rw, &saw} }
	w.write("file", "content")
	if _, body := w.ok("GET", w.link("/file")); body != "content" || !saw {
		t.Errorf("%q, file seen: %v", body, saw)
	}
}

// shrinking cuts the file when the first bytes have been sent.
type shrinking struct {
	http.ResponseWriter
	path string
	once *sync.Once
}

func (s shrinking) Write(p []byte) (int, error) {
	s.once.Do(func() { os.Truncate(s.path, 10) })
	return s.ResponseWriter.Write(p)
}

func TestShrinks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.write("file", strings.Repeat("x", 10<<20))
	link := w.link("/file")
	w.wrap = func(rw http.ResponseWriter) http.ResponseWriter {
		return shrinking{rw, filepath.Join(w.dir, "file"), new(sync.Once)}
	}
	res, body, err := w.get("GET", link)
	if err == nil || res == nil || res.ContentLength != 10<<20 || strings.Trim(body, "x") != "" {
		t.Errorf("got %d bytes, %v", len(body), err)
	}
}

func TestZip(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	want := map[string]string{"top/": "", "top/sub/": "", "top/sub/empty/": ""}
	for name, content := range map[string]string{
		"a.txt": "alpha", "sub/b": "", "sub/æ中\n\".txt": "text", "big": strings.Repeat("z", 1<<20), `back\slash`: "b", "bad\xff": "x",
	} {
		w.write("top/"+name, content)
		want["top/"+strings.NewReplacer(`\`, "＼", "\xff", "\U0010feff").Replace(name)] = content
	}
	os.MkdirAll(filepath.Join(w.dir, "top/sub/empty"), 0o777)
	os.Symlink("/etc/passwd", filepath.Join(w.dir, "top/link"))
	os.Symlink("sub", filepath.Join(w.dir, "top/dirlink"))
	unix.Mkfifo(filepath.Join(w.dir, "top/fifo"), 0o600)
	for i := range 700 { // several pages
		name := fmt.Sprintf("many/%03d", i)
		w.write("top/"+name, name)
		want["top/"+name] = name
	}
	want["top/many/"] = ""
	when := time.Unix(1_600_000_000, 0)
	os.Chtimes(filepath.Join(w.dir, "top/a.txt"), when, when)
	os.Chmod(filepath.Join(w.dir, "top/a.txt"), 0o750)

	res, body := w.ok("GET", w.link("/top"))
	if res.Header.Get("Content-Type") != "application/zip" || !strings.Contains(res.Header.Get("Content-Disposition"), `filename="top.zip"`) || res.Header.Get("Content-Security-Policy") != "sandbox" {
		t.Errorf("headers %v", res.Header)
	}
	z, err := zip.NewReader(strings.NewReader(body), int64(len(body)))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := got[f.Name]; twice {
			t.Errorf("%s is there twice", f.Name)
		}
		got[f.Name] = string(content)
		if f.Name == "top/a.txt" && (!f.Modified.Equal(when) || f.Mode() != 0o750) {
			t.Errorf("attributes %v %v", f.Modified, f.Mode())
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if z.Comment != "Left out: 2 symbolic links, 1 special files" {
		t.Errorf("comment %q", z.Comment)
	}
	if res, body := w.ok("HEAD", w.link("/top")); res.StatusCode != 200 || body != "" || res.Header.Get("Accept-Ranges") != "none" {
		t.Errorf("HEAD: %d %v", res.StatusCode, res.Header)
	}
	if res, _ := w.ok("HEAD", w.link("")); !strings.Contains(res.Header.Get("Content-Disposition"), `filename="My drive.zip"`) {
		t.Errorf("drive: %v", res.Header)
	}
	w.title = "../../My/drive" // a path out of where it is unpacked
	_, out := w.ok("GET", w.link(""))
	whole, err := zip.NewReader(strings.NewReader(out), int64(len(out)))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range whole.File {
		if !strings.HasPrefix(f.Name, ".._.._My_drive/") {
			t.Fatalf("%q in the archive", f.Name)
		}
	}
	program, err := exec.LookPath("unzip")
	if err != nil {
		t.Log("unzip is not installed; archive/zip has read it")
		return
	}
	path := filepath.Join(t.TempDir(), "x.zip")
	os.WriteFile(path, []byte(body), 0o600)
	if out, err := exec.Command(program, "-tqq", path).CombinedOutput(); err != nil {
		t.Errorf("unzip -t: %v\n%s", err, out)
	}
}

// TestZipBreaksOff: an archive that lacks something does not look complete.
func TestZipBreaksOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.write("top/a", strings.Repeat("a", 1<<20))
	w.write("top/sub/b", strings.Repeat("b", 4<<20))
	link := w.link("/top")
	w.wrap = func(rw http.ResponseWriter) http.ResponseWriter {
		return shrinking{rw, filepath.Join(w.dir, "top/sub/b"), new(sync.Once)}
	}
	_, body, err := w.get("GET", link)
	if err == nil {
		t.Error("the connection ended in a regular way")
	}
	if _, err := zip.NewReader(strings.NewReader(body), int64(len(body))); !errors.Is(err, zip.ErrFormat) {
		t.Errorf("%d bytes look like an archive: %v", len(body), err)
	}
}
