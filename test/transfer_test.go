//go:build e2e

package e2e

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/devcore"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
)

// sums reads a tree: paths to hashes and times. Hidden files of processes that were killed are counted, not read.
func (w *world) sums(dir string) (files map[string]string, hidden int) {
	w.t.Helper()
	files = map[string]string{}
	w.must(filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if strings.Contains(path, ".ucloud-upload-") {
			hidden++
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		files[strings.TrimPrefix(path, dir)] = fmt.Sprintf("%x %d", sha256.Sum256(data), info.ModTime().UnixMilli())
		return nil
	}))
	return files, hidden
}

// transfer asks Core for a transfer, and gives its two tasks once they are there: that of the source, and that of the
// destination.
func (w *world) transfer(p *person, from, to string) (source, destination int64) {
	w.t.Helper()
	before := len(w.core.Tasks(p.name))
	w.must(w.call(p.name, http.MethodPost, "/api/files/transfer", map[string]any{
		"items": []any{map[string]any{"sourcePath": p.home() + from, "destinationPath": p.home() + to}},
	}, nil))
	testkit.Eventually(w.t, "the tasks to be at Core", func() bool { return len(w.core.Tasks(p.name)) >= before+2 })
	for _, t := range w.core.Tasks(p.name)[before:] {
		if strings.HasPrefix(*t.Status.Title, "Receiving") {
			destination = t.TaskID
		} else {
			source = t.TaskID
		}
	}
	return source, destination
}

func (w *world) task(p *person, id int64) providerapi.Task {
	w.t.Helper()
	for _, t := range w.core.Tasks(p.name) {
		if t.TaskID == id {
			return t
		}
	}
	w.t.Fatalf("there is no task %d", id)
	return providerapi.Task{}
}

// TestTransfer sends files through the whole chain, from the provider to itself: Core's steps, the task of the source, the
// gateway, the session of the destination.
func TestTransfer(t *testing.T) {
	w := newWorld(t, settings{extra: "transfers: { allowedNetworks: [127.0.0.0/8], ports: [] }\n"})
	ada := w.addPerson("Ada#1815")
	w.running(ada)
	for i := range 600 {
		dir := filepath.Join(ada.account.Home, "data", fmt.Sprint(i%7), fmt.Sprint(i%3))
		w.must(os.MkdirAll(dir, 0o755))
		size := i * 13 % 5000
		if i%100 == 0 {
			size = 3 << 20
		}
		data := make([]byte, size)
		r := rand.NewChaCha8([32]byte{byte(i), byte(i >> 8)})
		r.Read(data)
		w.must(os.WriteFile(filepath.Join(dir, fmt.Sprintf("file %d", i)), data, 0o644))
	}
	w.owned(ada, ada.account.Home)
	want, _ := w.sums(filepath.Join(ada.account.Home, "data"))
	ended := func(t *testing.T, id int64, state providerapi.TaskState) providerapi.Task {
		t.Helper()
		testkit.Eventually(t, fmt.Sprintf("the task %d to end", id), func() bool { return devcore.Ended(w.task(ada, id)) })
		got := w.task(ada, id)
		if got.Status.State != state {
			t.Errorf("%s ended as %s: %s", *got.Status.Title, got.Status.State, *got.Status.Progress)
		}
		return got
	}

	t.Run("plain", func(t *testing.T) {
		source, destination := w.transfer(ada, "/data", "/copy")
		if got := ended(t, source, providerapi.TaskSuccess); !strings.HasPrefix(*got.Status.Progress, "600 files transferred") {
			t.Errorf("%s", *got.Status.Progress)
		}
		ended(t, destination, providerapi.TaskSuccess)
		got, hidden := w.sums(filepath.Join(ada.account.Home, "copy"))
		if d := cmp.Diff(want, got); d != "" || hidden > 0 {
			t.Errorf("%d hidden files, %s", hidden, d)
		}
	})

	t.Run("killed", func(t *testing.T) {
		source, destination := w.transfer(ada, "/data", "/again")
		k := w.kill(ada, 400*time.Millisecond, "instance", "server", "gateway")
		time.Sleep(4 * time.Second)
		k.halt()
		t.Logf("kills: %v", k.kills)
		ended(t, source, providerapi.TaskSuccess)
		ended(t, destination, providerapi.TaskSuccess)
		got, hidden := w.sums(filepath.Join(ada.account.Home, "again"))
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		t.Logf("%d hidden files of killed processes", hidden)
	})

	t.Run("cancelled at the destination", func(t *testing.T) {
		source, destination := w.transfer(ada, "/data", "/third")
		w.control(ada, destination, providerapi.TaskCancelled)
		ended(t, destination, providerapi.TaskCancelled)
		testkit.Eventually(t, "the source to notice", func() bool {
			s := w.task(ada, source).Status
			return devcore.Ended(w.task(ada, source)) || s.Progress != nil && strings.Contains(*s.Progress, "does not know the transfer")
		})
		w.control(ada, source, providerapi.TaskCancelled)
		testkit.Eventually(t, "the source to end", func() bool { return devcore.Ended(w.task(ada, source)) })
	})

	t.Run("refused", func(t *testing.T) {
		got := w.raw(ada.name, "/files/transfer", map[string]any{"type": "Start", "session": "x"}, nil)
		if got.status != http.StatusNotFound {
			t.Errorf("%d %s", got.status, got.body)
		}
	})
}

// control makes the end user's call about a task.
func (w *world) control(p *person, id int64, state providerapi.TaskState) {
	w.t.Helper()
	testkit.Eventually(w.t, "the task to be known", func() bool {
		return w.raw(p.name, "/tasks/pauseOrCancel", map[string]any{"id": id, "requestedState": state}, nil).status == http.StatusOK
	})
}

// certificate gives the gateway a certificate for 127.0.0.1, and Core the trust in it.
func (w *world) certificate(port int) {
	w.t.Helper()
	s := httptest.NewTLSServer(nil) // has one
	defer s.Close()
	key, err := x509.MarshalPKCS8PrivateKey(s.TLS.Certificates[0].PrivateKey)
	w.must(err)
	for name, block := range map[string]*pem.Block{
		"tls.pem": {Type: "CERTIFICATE", Bytes: s.Certificate().Raw}, "tls.key": {Type: "PRIVATE KEY", Bytes: key},
	} {
		path := filepath.Join(w.base, "config", name)
		w.must(os.WriteFile(path, pem.EncodeToMemory(block), 0o600))
		w.must(os.Chown(path, int(w.site.Service.UID), int(w.site.Service.GID)))
	}
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	w.gateURL = fmt.Sprintf("https://127.0.0.1:%d", port)
	w.trust = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
}

// TestTransferTLS: over wss, with a certificate of an authority that the configuration names, and, where it does not, or
// names no network, not at all.
func TestTransferTLS(t *testing.T) {
	for name, tc := range map[string]struct {
		networks, authority bool
		want                string
	}{
		"trusted": {true, true, "1 file transferred"}, "unknown authority": {true, false, "The connection to the provider"},
		"network not allowed": {false, true, "network that transfers may not use"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, settings{tls: true, extra: "transfers: { allowedNetworks: [10.0.0.0/8], ports: [] }\n"})
			ada := w.addPerson("Ada#1815")
			w.running(ada)
			w.must(os.Mkdir(filepath.Join(ada.account.Home, "data"), 0o755))
			w.must(os.WriteFile(filepath.Join(ada.account.Home, "data", "x"), []byte("x"), 0o644))
			w.owned(ada, ada.account.Home)
			// While everything runs: it takes effect at once.
			keys := "ports: []"
			if tc.networks {
				keys += ", allowedNetworks: [127.0.0.0/8]"
			}
			if tc.authority {
				keys += ", caFile: " + filepath.Join(w.base, "config", "tls.pem")
			}
			file := filepath.Join(w.base, "config", "config.yml")
			old, err := os.ReadFile(file)
			w.must(err)
			text := strings.Replace(string(old), "transfers: { allowedNetworks: [10.0.0.0/8], ports: [] }", "transfers: { "+keys+" }", 1)
			w.must(os.WriteFile(file, []byte(text), 0o600))
			if _, err := w.cli("config", "reload"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(500 * time.Millisecond) // instances hear of it a moment later
			if !tc.networks {
				err := w.call(ada.name, http.MethodPost, "/api/files/transfer", map[string]any{
					"items": []any{map[string]any{"sourcePath": ada.home() + "/data", "destinationPath": ada.home() + "/copy"}},
				}, nil)
				if err == nil || !strings.Contains(err.Error(), "403") || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("%v", err)
				}
				return
			}
			source, _ := w.transfer(ada, "/data", "/copy")
			testkit.Eventually(t, tc.want, func() bool {
				p := w.task(ada, source).Status.Progress
				return p != nil && strings.Contains(*p, tc.want)
			})
			_, err = os.Stat(filepath.Join(ada.account.Home, "copy", "x"))
			if (err == nil) != tc.authority {
				t.Errorf("the file: %v", err)
			}
		})
	}
}
