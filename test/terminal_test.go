//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
)

// screen is a terminal in a browser.
type screen struct {
	t   *testing.T
	ws  *websocket.Conn
	n   int
	out strings.Builder
}

// terminal opens a terminal in a folder, as Core does for a person.
func (d *desk) terminal(rel string) string {
	d.t.Helper()
	var got providerapi.BulkResponse[providerapi.OpenSession]
	d.call("POST", "/jobs/openTerminalInFolder", items[providerapi.OpenTerminalRequest]{[]providerapi.OpenTerminalRequest{{Folder: d.id(rel)}}}, 200, &got)
	if len(got.Responses) != 1 || got.Responses[0].Type != "shell" || got.Responses[0].DomainOverride != "ws"+strings.TrimPrefix(d.w.gateURL, "http") {
		d.t.Fatalf("sessions %+v", got)
	}
	return got.Responses[0].SessionIdentifier
}

// see connects with an identifier, through the gateway, with a hint at a person.
func (w *world) see(id string, p *person) (*screen, error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), testkit.Patience)
	defer cancel()
	query := url.Values{"session": {id}, "usernameHint": {p.name.HintValue()}}
	ws, _, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(w.gateURL, "http")+"/ucloud/"+provider+"/websocket?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	w.t.Cleanup(func() { ws.CloseNow() })
	ws.SetReadLimit(1 << 20)
	s := &screen{t: w.t, ws: ws}
	s.send(map[string]any{"type": "initialize", "sessionIdentifier": id, "cols": 80, "rows": 24})
	if _, data, err := ws.Read(ctx); err != nil || string(data) != `{"type":"message","payload":{"type":"initialize"},"streamId":"0"}` {
		return nil, fmt.Errorf("answer %q, %w", data, err)
	}
	return s, nil
}

func (s *screen) send(payload any) {
	s.t.Helper()
	raw, err := json.Marshal(map[string]any{"call": "jobs.compute." + provider + ".shell.open", "streamId": fmt.Sprint(s.n), "payload": payload})
	if err == nil {
		err = s.ws.Write(s.t.Context(), websocket.MessageText, raw)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.n++
}

func (s *screen) input(text string) {
	s.t.Helper()
	s.send(map[string]any{"type": "input", "data": text})
}

// until reads until the text has come, and gives what stands behind it up to a dot.
func (s *screen) until(text string) string {
	s.t.Helper()
	for {
		if _, rest, ok := strings.Cut(s.out.String(), text); ok {
			if word, _, ok := strings.Cut(rest, "."); ok {
				return word
			}
		}
		if err := s.next(); err != nil {
			s.t.Fatalf("waiting for %q: %v, output %.2000q", text, err, s.out.String())
		}
	}
}

func (s *screen) next() error {
	ctx, cancel := context.WithTimeout(s.t.Context(), testkit.Patience)
	defer cancel()
	_, data, err := s.ws.Read(ctx)
	if err != nil {
		return err
	}
	var m providerapi.Reply[providerapi.ShellResponse]
	if err := json.Unmarshal(data, &m); err != nil {
		s.t.Fatalf("%s: %v", data, err)
	}
	if m.Payload.Type == "data" {
		s.out.WriteString(m.Payload.Data)
	}
	return nil
}

func alive(t *testing.T, pid string) bool {
	t.Helper()
	_, err := os.Stat(filepath.Join("/proc", pid))
	return err == nil
}

// TestTerminal: a terminal in a folder, through all parts, over an upgrade and over the end of the instance; and keys.
func TestTerminal(t *testing.T) {
	w := newWorld(t, settings{extra: "  ssh: { enabled: true, installKeys: true, host: login.example.org }\n"})
	ada, eve := w.addPerson("Ada#1815"), w.addPerson("Eve#1984")
	w.running(ada, eve)
	d := w.desk(ada)
	w.must(os.Mkdir(d.local("project"), 0o755))
	w.owned(ada, d.local("project"))

	id := d.terminal("project")
	if _, err := w.see(id, eve); err == nil {
		t.Error("Eve has got Ada's terminal")
	}
	s, err := w.see(id, ada)
	w.must(err)
	s.input("kept=treasure; echo sh'ell'=$$.; echo wh'o'=$(id -un) in $PWD.\r")
	shell := s.until("shell=")
	if got := s.until("who="); got != ada.account.Name+" in "+d.local("project") {
		t.Errorf("it is %q", got)
	}
	if _, err := w.see(id, ada); err == nil {
		t.Error("an identifier works twice")
	}

	// A new version: the socket ends, and the shell is there for the next one.
	before := w.instances()[ada.name].PID
	w.newUserProgram()
	starts := w.server.startCount()
	w.server.signal(syscall.SIGTERM) // the server looks at the program when it starts
	w.waitServer(starts)
	for err == nil {
		err = s.next()
	}
	testkit.Eventually(t, "an instance with the new code", func() bool {
		now := w.instances()[ada.name].PID
		return now != before && now != 0
	})
	testkit.Eventually(t, "the same shell in the new instance", func() bool {
		if s, err = w.see(d.terminal("project"), ada); err != nil {
			return false
		}
		s.input("echo ag'ain'=$$/$kept.\r")
		return s.until("again=") == shell+"/treasure"
	})

	// An operator ends the instance: that is the end of the shell, too. An identifier from before wakes the next instance.
	id = d.terminal("project")
	w.stopInstance(ada)
	testkit.Eventually(t, "the shell to end", func() bool { return !alive(t, shell) })
	s, err = w.see(id, ada)
	w.must(err)
	s.input("echo ne'w'=$$/$kept.\r")
	if got := s.until("new="); got == shell+"/treasure" || !strings.HasSuffix(got, "/") {
		t.Errorf("shell %q", got)
	}
	s.input("exit\r")
	for err == nil {
		err = s.next()
	}
	if websocket.CloseStatus(err) != websocket.StatusNormalClosure {
		t.Errorf("after the end of the shell: %v", err)
	}

	key := "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "ExampleExampleExampleExampleExampleExampleE" + " ada@laptop"
	keys := func(texts ...string) any {
		all := []providerapi.SSHKey{}
		for _, k := range texts {
			all = append(all, providerapi.SSHKey{ID: "1", Owner: ada.name, CreatedAt: providerapi.Millis(time.Now().UnixMilli()), Specification: providerapi.SSHKeySpecification{Title: "laptop", Key: k}})
		}
		return map[string]any{"username": ada.name, "allKeys": all}
	}
	file := filepath.Join(ada.account.Home, ".ssh", "authorized_keys")
	d.call("POST", "/ssh/keyUploaded", keys(key, `command="touch pwned" `+key), 200, nil)
	if got, err := os.ReadFile(file); err != nil || strings.Count(string(got), "ssh-ed25519 ") != 1 || strings.Contains(string(got), "pwned") {
		t.Errorf("%s, %v", got, err)
	}
	d.call("POST", "/ssh/keyUploaded", keys(), 200, nil)
	if got, err := os.ReadFile(file); err != nil || strings.Contains(string(got), "ssh-") {
		t.Errorf("%s, %v", got, err)
	}
}
