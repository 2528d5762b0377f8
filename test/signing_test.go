//go:build e2e

package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit/intentkit"
)

// clientCalls are the names that today's web client has for calls (contract 01 section 7.3).
var clientCalls = map[string]string{
	"GET /api/files/browse": "files.browse", "GET /api/files/retrieve": "files.retrieve",
	"POST /api/files/move": "files.move", "POST /api/files/copy": "files.copy", "POST /api/files/trash": "files.trash",
	"POST /api/files/emptyTrash": "files.emptyTrash", "POST /api/files/folder": "files.createFolder",
	"POST /api/files/upload": "files.createUpload", "POST /api/files/download": "files.createDownload", "DELETE /api/files": "files.delete",
	"POST /api/files/collections": "files.collections.create", "DELETE /api/files/collections": "files.collections.delete",
	"POST /api/files/collections/rename": "files.collections.rename",
	"POST /api/jobs":                     "jobs.create", "POST /api/jobs/terminate": "jobs.terminate", "POST /api/jobs/extend": "jobs.extend",
	"POST /api/jobs/suspend": "jobs.suspend", "POST /api/jobs/interactiveSession": "jobs.openInteractiveSession",
}

// browserKey is the key of a user's browser.
type browserKey struct {
	*intentkit.Signer
	mu   sync.Mutex
	used map[[2]int64]bool // times of intents
}

// times are the times of an intent. No two are alike: the provider could not tell the second from a replay.
func (k *browserKey) times() (iat, exp int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for iat = time.Now().Unix(); ; iat-- {
		for exp = iat + 30; exp < iat+60; exp++ {
			if !k.used[[2]int64{iat, exp}] {
				k.used[[2]int64{iat, exp}] = true
				return iat, exp
			}
		}
	}
}

func (k *browserKey) claims(who ident.UCloudUser, call string, project ident.ProjectID) intentkit.Claims {
	iat, exp := k.times()
	return intentkit.Claims{
		Call: call, Username: string(who), Project: string(project), At: time.Unix(iat, 0), Life: time.Duration(exp-iat) * time.Second,
	}
}

func (w *world) newKey() *browserKey {
	return &browserKey{Signer: intentkit.NewRSA(w.t, "", 2048), used: map[[2]int64]bool{}}
}

// sign signs a call for a user with the key of their browser; "" if they have none.
func (w *world) sign(p *person, call string) string { return w.signIn(p.name, call, "") }

func (w *world) signIn(who ident.UCloudUser, call string, project ident.ProjectID) string {
	w.tokensMu.Lock()
	k := w.signers[who]
	w.tokensMu.Unlock()
	if k == nil || call == "" {
		return ""
	}
	return k.Form1(k.claims(who, call, project))
}

// signed is what a user's browser sends along with a call.
func (w *world) signed(who ident.UCloudUser, method, path string, body any) string {
	bare, query, _ := strings.Cut(path, "?")
	call := clientCalls[method+" "+bare]
	if call == "" || w.signers[who] == nil {
		return ""
	}
	values, _ := url.ParseQuery(query)
	data, _ := json.Marshal(body) // it was sent already
	var project ident.ProjectID
	for _, d := range w.core.Drives() {
		at := "/" + string(d.ID)
		inside := func(p string) bool { return p == at || strings.HasPrefix(p, at+"/") }
		if d.Owner.Project != nil && (inside(values.Get("path")) || inside(values.Get("id")) || bytes.Contains(data, []byte(`"`+at+`/`))) {
			project = *d.Owner.Project
		}
	}
	return w.signIn(who, call, project)
}

// giveKey presses Connect in a browser that has a key, and gives the address where the provider wants a proof.
func (w *world) giveKey(p *person, k *browserKey) string {
	w.t.Helper()
	next, err := w.uploadKey(w.askToConnect(p), k.PEM(), w.coreURL)
	w.must(err)
	return next
}

// askToConnect presses Connect, and gives the address to which the provider sends the browser.
func (w *world) askToConnect(p *person) string {
	w.t.Helper()
	var res providerapi.ConnectResponse
	w.must(w.call(p.name, http.MethodPost, "/api/providers/integration/connect", map[string]string{"provider": provider}, &res))
	return res.RedirectTo
}

func (w *world) uploadKey(address, publicKey, origin string) (string, error) {
	data, err := json.Marshal(map[string]string{"publicKey": publicKey})
	if err != nil {
		return "", err
	}
	req, err := http.NewRequest(http.MethodPost, address, bytes.NewReader(data))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Origin", origin)
	res, err := (&http.Client{Transport: w.trust}).Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return "", err
	}
	var answer struct{ RedirectTo string }
	if res.StatusCode != http.StatusOK || json.Unmarshal(text, &answer) != nil || answer.RedirectTo == "" {
		return "", fmt.Errorf("the key was not taken: %d %s", res.StatusCode, text)
	}
	return answer.RedirectTo, nil
}

// ticketAt reads the ticket from the provider's page.
func (w *world) ticketAt(address string) string {
	w.t.Helper()
	page := w.get(address)
	ticket := ticketPattern.FindString(page)
	if ticket == "" {
		w.t.Fatalf("the page shows no ticket:\n%s", page)
	}
	return ticket
}

// connectSigned connects users whose browsers have keys, as an operator to whom they have told the fingerprint.
func (w *world) connectSigned(people ...*person) {
	w.t.Helper()
	for _, p := range people {
		w.addDevice(p, w.newKey())
		w.waitDrive(p)
	}
}

// addDevice connects a user's browser, which has the given key from then on.
func (w *world) addDevice(p *person, k *browserKey) {
	w.t.Helper()
	w.approve(w.ticketAt(w.giveKey(p, k)), p, k.Key.Fingerprint())
	w.tokensMu.Lock()
	w.signers[p.name] = k
	w.tokensMu.Unlock()
}

// approve completes a ticket as the operator.
func (w *world) approve(ticket string, p *person, fingerprint string) {
	w.t.Helper()
	if _, err := w.cli("connect", ticket, p.account.Name, "--yes", "--key", fingerprint); err != nil {
		w.t.Fatal(err)
	}
}

// tree is everything that there is below directories: what it is, whose, when it was changed, and its content.
func (w *world) tree(dirs ...string) map[string]string {
	w.t.Helper()
	out := map[string]string{}
	for _, dir := range dirs {
		w.must(filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			st := info.Sys().(*syscall.Stat_t)
			text := fmt.Sprintf("%v %d:%d %d %d links=%d", info.Mode(), st.Uid, st.Gid, info.Size(), info.ModTime().UnixNano(), st.Nlink)
			if info.Mode().IsRegular() {
				data, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				text += fmt.Sprintf(" %x", sha256.Sum256(data))
			}
			out[path] = text
			return nil
		}))
	}
	return out
}

// differences between two trees.
func differences(before, after map[string]string) (out []string) {
	for _, path := range slices.Sorted(maps.Keys(after)) {
		if was, ok := before[path]; !ok {
			out = append(out, "new: "+path)
		} else if was != after[path] {
			out = append(out, "changed: "+path+": "+was+" → "+after[path])
		}
	}
	for _, path := range slices.Sorted(maps.Keys(before)) {
		if _, ok := after[path]; !ok {
			out = append(out, "gone: "+path)
		}
	}
	return out
}
