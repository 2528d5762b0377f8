package demo

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/devcore"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/providerapi"
	uploadclient "ucloud-im/internal/uploads/client"
)

const (
	tourFolder  = "tour"
	tourFiles   = 200
	tourBig     = 32 << 20
	tourTimeout = time.Minute
)

// tour does as one user what a person would do in the console, by the same calls, and says what happened.
type tour struct {
	core  string // URL of the simulated Core
	who   person
	sim   *devcore.Core
	token string
	key   *browserKey // nil: nothing is signed
	http  *http.Client
	say   func(format string, args ...any)
}

// run connects if that is wanted and goes through the files of a drive, chosen by the beginning of its title.
func (t *tour) run(ctx context.Context, connect func(ctx context.Context) error, drive string) error {
	ctx, cancel := context.WithTimeout(ctx, tourTimeout)
	defer cancel()
	t.http = &http.Client{Timeout: 30 * time.Second}
	if connect != nil {
		if err := connect(ctx); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
	}
	root, err := t.drive(ctx, drive)
	if err != nil {
		return err
	}
	folder := root + "/" + tourFolder
	steps := []struct {
		name string
		do   func(ctx context.Context, root, folder string) (string, error)
	}{
		{"clear up", t.clear},
		{"upload", t.upload},
		{"list", t.list},
		{"download", t.download},
		{"zip", t.zip},
		{"copy", t.copy},
		{"search", t.search},
		{"trash", t.trash},
		{"job", t.job}, // as root: an ordinary user's home is left alone
	}
	for _, s := range steps {
		if s.name == "job" && connect == nil {
			continue
		}
		start := time.Now()
		what, err := s.do(ctx, root, folder)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if what != "" {
			t.say("  %-9s %s (%.2f s)", s.name, what, time.Since(start).Seconds())
		}
	}
	return nil
}

// call makes an end user's call at Core.
func (t *tour) call(ctx context.Context, method, target string, body, answer any) error {
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, t.core+target, bytes.NewReader(data))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+t.token)
	signed, err := t.key.intent(nameOf(method, target), t.who.ucloud)
	if err != nil {
		return err
	}
	if signed != "" {
		req.Header.Set(intent.HeaderSignedIntent, signed)
	}
	res, err := t.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if data, err = io.ReadAll(res.Body); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		e := &devcore.CallError{}
		_ = json.Unmarshal(data, e) // a body that is not JSON has no text
		e.StatusCode = res.StatusCode
		return e
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(data, answer)
}

// items makes a bulk request for the given paths.
func items(ids ...string) any {
	var list []map[string]string
	for _, id := range ids {
		list = append(list, map[string]string{"id": id})
	}
	return map[string]any{"items": list}
}

// wait asks again until done, or until ctx ends.
func wait(ctx context.Context, what string, done func() (bool, error)) error {
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

var ticketPattern = regexp.MustCompile(`\b[0-9A-Z]{4}(-[0-9A-Z]{4}){6}\b`)

// connect presses Connect, reads the ticket from the provider's page and approves it as the operator.
func (t *tour) connect(ucloud, socket string) func(context.Context) error {
	return func(ctx context.Context) error {
		var res providerapi.ConnectResponse
		if err := t.call(ctx, http.MethodPost, "/api/providers/integration/connect", map[string]string{"provider": Provider}, &res); err != nil {
			return err
		}
		next, confirmed := res.RedirectTo, []string{}
		if t.key != nil {
			var err error
			confirmed = []string{"--key", t.key.fingerprint}
			if next, err = t.give(ctx, next); err != nil {
				return err
			}
		}
		page, err := t.get(ctx, next)
		if err != nil {
			return err
		}
		ticket := ticketPattern.Find(page)
		if ticket == nil {
			return errors.New("the provider's page shows no ticket")
		}
		out, err := exec.CommandContext(ctx, ucloud, append([]string{"--socket", socket, "connect", string(ticket), t.who.local, "--yes"}, confirmed...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ucloud connect: %w: %s", err, bytes.TrimSpace(out))
		}
		t.say("  %-9s %s is %s now: ucloud connect %s… %s", "connect", t.who.ucloud, t.who.local, ticket[:4], t.who.local)
		if t.key != nil {
			t.say("  %-9s everything from here on is signed with the key %s", "key", t.key.fingerprint)
		}
		return nil
	}
}

// get reads an address that somebody was given, without credentials.
func (t *tour) get(ctx context.Context, address string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	res, err := t.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d", res.StatusCode)
	}
	return data, err
}

// drive waits for a drive and gives its path.
func (t *tour) drive(ctx context.Context, title string) (root string, err error) {
	err = wait(ctx, "the drive "+title, func() (bool, error) {
		var page providerapi.Page[providerapi.Drive]
		if err := t.call(ctx, http.MethodGet, "/api/files/collections/browse?itemsPerPage=50", nil, &page); err != nil {
			return false, err
		}
		for _, d := range page.Items {
			if strings.HasPrefix(d.Specification.Title, title) {
				root = "/" + string(d.ID)
			}
		}
		return root != "", nil
	})
	return root, err
}

// clear moves what an earlier tour has left to the trash.
func (t *tour) clear(ctx context.Context, _, folder string) (string, error) {
	err := t.call(ctx, http.MethodPost, "/api/files/trash", items(folder), nil)
	if e, ok := errors.AsType[*devcore.CallError](err); ok && e.StatusCode == http.StatusNotFound {
		return "", nil
	}
	return "", err
}

// big is the content of the large file: cheap to make, and different everywhere.
func big() []byte {
	data := make([]byte, 0, tourBig)
	for n := uint64(0); len(data) < tourBig; n++ {
		sum := sha256.Sum256([]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)})
		data = append(data, bytes.Repeat(sum[:], 32)...)
	}
	return data[:tourBig]
}

// upload sends a folder over the protocol that the console's page speaks as well.
func (t *tour) upload(ctx context.Context, _, folder string) (string, error) {
	var res struct {
		Responses []struct{ Endpoint, Protocol string }
	}
	err := t.call(ctx, http.MethodPost, "/api/files/upload", map[string]any{"items": []any{map[string]any{
		"id": folder, "type": "FOLDER", "supportedProtocols": []string{"CHUNKED", "WEBSOCKET"}, "conflictPolicy": "RENAME",
	}}}, &res)
	if err != nil {
		return "", err
	}
	conn, err := uploadclient.Dial(ctx, res.Responses[0].Endpoint, uploadclient.Options{})
	if err != nil {
		return "", err
	}
	defer conn.Abort()
	sent, err := conn.Send(ctx, tourContent())
	if err == nil {
		err = conn.Close()
	}
	if err != nil {
		return "", err
	}
	if sent.Completed != tourFiles+1 || sent.Skipped+sent.Unreadable > 0 {
		return "", fmt.Errorf("not everything was stored: %+v", sent)
	}
	return fmt.Sprintf("%d files, %.1f MiB, into %s", sent.Completed, float64(sent.Bytes)/(1<<20), folder), nil
}

func tourContent() iter.Seq2[*uploadclient.File, error] {
	now := time.Now()
	file := func(name string, data []byte) *uploadclient.File {
		return &uploadclient.File{
			Path: name, Size: int64(len(data)), Modified: now,
			Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
		}
	}
	return func(yield func(*uploadclient.File, error) bool) {
		for i := range tourFiles {
			name := fmt.Sprintf("notes/%d/note %d.txt", i%10, i)
			if i%50 == 0 {
				name = fmt.Sprintf("notes/%d/report %d.txt", i%10, i)
			}
			if !yield(file(name, fmt.Appendf(nil, "This is note %d.\n", i)), nil) {
				return
			}
		}
		yield(file("big.bin", big()), nil)
	}
}

func (t *tour) list(ctx context.Context, _, folder string) (string, error) {
	var page providerapi.Page[providerapi.File]
	if err := t.call(ctx, http.MethodGet, "/api/files/browse?itemsPerPage=250&includeSizes=true&includeUnixInfo=true&path="+url.QueryEscape(folder), nil, &page); err != nil {
		return "", err
	}
	var names []string
	for _, f := range page.Items {
		names = append(names, fmt.Sprintf("%s (owner %d, mode %04o)", path.Base(f.ID), f.Status.UnixOwner, f.Status.UnixMode))
	}
	return strings.Join(names, ", "), nil
}

// fetch asks for a download and follows it as the web client does: the user's name is added to the link.
func (t *tour) fetch(ctx context.Context, id string) ([]byte, error) {
	var res providerapi.BulkResponse[struct {
		Endpoint string `json:"endpoint"`
	}]
	if err := t.call(ctx, http.MethodPost, "/api/files/download", items(id), &res); err != nil {
		return nil, err
	}
	return t.get(ctx, res.Responses[0].Endpoint+"&"+ident.QueryUserHint+"="+ident.UCloudUser(t.who.ucloud).HeaderValue())
}

func (t *tour) download(ctx context.Context, _, folder string) (string, error) {
	data, err := t.fetch(ctx, folder+"/big.bin")
	if err != nil {
		return "", err
	}
	if !bytes.Equal(data, big()) {
		return "", errors.New("big.bin has come back different")
	}
	return fmt.Sprintf("big.bin, %d MiB, and it is the same", len(data)>>20), nil
}

func (t *tour) zip(ctx context.Context, _, folder string) (string, error) {
	data, err := t.fetch(ctx, folder)
	if err != nil {
		return "", err
	}
	archive, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return "", err
	}
	files := 0
	for _, f := range archive.File {
		if !f.FileInfo().IsDir() {
			files++
		}
	}
	if files != tourFiles+1 {
		return "", fmt.Errorf("%d files in the archive", files)
	}
	return fmt.Sprintf("the folder as an archive of %d files", files), nil
}

// ended waits for the newest task to end, and gives what it says.
func (t *tour) ended(ctx context.Context, after int64) (string, error) {
	var last providerapi.Task
	err := wait(ctx, "the task", func() (bool, error) {
		var page providerapi.Page[providerapi.Task]
		if err := t.call(ctx, http.MethodGet, "/api/tasks/browse?itemsPerPage=250", nil, &page); err != nil {
			return false, err
		}
		for _, task := range page.Items {
			if task.TaskID > after {
				last = task
				return devcore.Ended(task), nil
			}
		}
		return false, nil
	})
	if err != nil {
		return "", err
	}
	text := func(s *string) string {
		if s == nil {
			return ""
		}
		return *s
	}
	if last.Status.State != providerapi.TaskSuccess {
		return "", fmt.Errorf("the task %q ended as %s: %s", text(last.Status.Title), last.Status.State, text(last.Status.Progress))
	}
	return fmt.Sprintf("%q: %s", text(last.Status.Title), text(last.Status.Progress)), nil
}

// newest is the id of the newest task.
func (t *tour) newest(ctx context.Context) (id int64, err error) {
	var page providerapi.Page[providerapi.Task]
	err = t.call(ctx, http.MethodGet, "/api/tasks/browse?itemsPerPage=250", nil, &page)
	for _, task := range page.Items {
		id = max(id, task.TaskID)
	}
	return id, err
}

func (t *tour) copy(ctx context.Context, root, folder string) (string, error) {
	last, err := t.newest(ctx)
	if err != nil {
		return "", err
	}
	err = t.call(ctx, http.MethodPost, "/api/files/copy", map[string]any{"items": []any{map[string]any{
		"oldId": folder, "newId": root + "/copy of the " + tourFolder, "conflictPolicy": providerapi.ConflictRename,
	}}}, nil)
	if err != nil {
		return "", err
	}
	what, err := t.ended(ctx, last)
	return "a task, " + what, err
}

// search looks for the reports over Core's WebSocket.
func (t *tour) search(ctx context.Context, _, folder string) (string, error) {
	conn, _, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(t.core, "http")+"/api/files", nil)
	if err != nil {
		return "", err
	}
	defer conn.CloseNow()
	conn.SetReadLimit(16 << 20)
	signed, err := t.key.intent("files.streamingSearch", t.who.ucloud)
	if err != nil {
		return "", err
	}
	request, err := json.Marshal(map[string]any{
		"call": "files.streamingSearch", "streamId": "0", "bearer": t.token, "project": nil, "signedIntent": signed,
		"payload": map[string]any{"query": "report", "currentFolder": folder, "flags": map[string]bool{"includeSizes": true}},
	})
	if err != nil {
		return "", err
	}
	if err := conn.Write(ctx, websocket.MessageText, request); err != nil {
		return "", err
	}
	found := 0
	for {
		_, data, err := conn.Read(ctx)
		if err != nil {
			return "", fmt.Errorf("the stream ended after %d results: %w", found, err)
		}
		var m struct {
			Type    string `json:"type"`
			Payload struct {
				Type  string             `json:"type"`
				Why   string             `json:"why"`
				Batch []providerapi.File `json:"batch"`
			} `json:"payload"`
		}
		if err := json.Unmarshal(data, &m); err != nil {
			return "", err
		}
		switch {
		case m.Type == "response":
			return "", errors.New(m.Payload.Why)
		case m.Payload.Type == "end_of_results":
			if want := tourFiles / 50; found != want {
				return "", fmt.Errorf("%d results, not %d", found, want)
			}
			return fmt.Sprintf("“report” below the folder: %d results", found), nil
		}
		found += len(m.Payload.Batch)
	}
}

// trash throws the copy away and empties the trash.
func (t *tour) trash(ctx context.Context, root, _ string) (string, error) {
	last, err := t.newest(ctx)
	if err != nil {
		return "", err
	}
	var page providerapi.Page[providerapi.File]
	if err := t.call(ctx, http.MethodGet, "/api/files/browse?itemsPerPage=250&path="+url.QueryEscape(root), nil, &page); err != nil {
		return "", err
	}
	var copies []string
	for _, f := range page.Items {
		if strings.HasPrefix(path.Base(f.ID), "copy of the "+tourFolder) {
			copies = append(copies, f.ID)
		}
	}
	if err := t.call(ctx, http.MethodPost, "/api/files/trash", items(copies...), nil); err != nil {
		return "", err
	}
	if err := t.call(ctx, http.MethodPost, "/api/files/emptyTrash", items(root+"/Trash"), nil); err != nil {
		return "", err
	}
	what, err := t.ended(ctx, last)
	return "the copy, and a task, " + what, err
}

// guide makes the tour. As root it is an account of its own that is connected for it; otherwise it waits until the one
// user there is has connected, and stays in the demo's own project directory.
func (l *layout) guide(ctx context.Context, o Options, core *devcore.Core, say func(string, ...any)) error {
	t := &tour{core: fmt.Sprintf("http://127.0.0.1:%d", o.CorePort), who: l.tourist, sim: core, say: say, token: core.Login(ident.UCloudUser(l.tourist.ucloud))}
	var connect func(context.Context) error
	if o.signing() {
		var err error
		if t.key, err = newBrowserKey(); err != nil {
			return err
		}
	}
	title := "Home"
	if l.root {
		connect = t.connect(filepath.Join(l.programs, "ucloud"), l.socket())
	} else {
		title = "Work"
		if err := wait(ctx, "the connection", func() (bool, error) { return core.Connected(ident.UCloudUser(l.tourist.ucloud)), nil }); err != nil {
			return nil // the demo ends
		}
	}
	say("")
	say("tour, as %s (%s):", t.who.ucloud, t.who.local)
	if err := t.run(ctx, connect, title); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("the tour ended early: %w", err)
	}
	say("  done; %q stays for you to look at", tourFolder)
	return nil
}
