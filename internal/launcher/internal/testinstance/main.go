// Command testinstance is an instance with a handler that tells about its own process, for the tests of package
// launcher.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"ucloud-im/internal/instance"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	err := instance.Run(ctx, instance.Options{Handler: handler, Keys: func(*instance.Agent) { keys.Add(1) }})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// About is what /about answers.
type About struct {
	PID     int               `json:"pid"`
	UID     int               `json:"uid"`
	Groups  []int             `json:"groups"`
	Args    []string          `json:"args"`
	Env     []string          `json:"env"`
	Dir     string            `json:"dir"`
	Status  map[string]string `json:"status"` // of /proc/self/status
	Files   map[string]string `json:"files"`  // of /proc/self/fd
	Umask   int               `json:"umask"`
	NoFile  uint64            `json:"noFile"`
	Release string            `json:"release"` // changes with the build
	Intents string            `json:"intents"` // mode of the policy
	Keys    int64             `json:"keys"`    // how often signing keys have changed
}

var release = "one"

var keys atomic.Int64

func handler(a *instance.Agent) (http.Handler, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /about", func(w http.ResponseWriter, _ *http.Request) {
		b := about()
		b.Intents, b.Keys = a.Start().Intents.Mode, keys.Load()
		json.NewEncoder(w).Encode(b) //nolint:errcheck // a test will see
	})
	mux.HandleFunc("/work", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if ms, err := strconv.Atoi(r.FormValue("ms")); err == nil {
			time.Sleep(time.Duration(ms) * time.Millisecond)
		}
		fmt.Fprintf(w, "%d %s", os.Getpid(), body)
	})
	mux.HandleFunc("/exit", func(http.ResponseWriter, *http.Request) { os.Exit(7) })
	mux.HandleFunc("/log", func(_ http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.FormValue("lines"))
		for i := range n {
			a.Log().Info("a line for the log", "number", i, "padding", strings.Repeat("x", 200))
		}
	})
	mux.HandleFunc("/deafen", func(http.ResponseWriter, *http.Request) {
		// What a hostile user can do with the listener: shut it down through any duplicate.
		for _, fd := range sockets() {
			if v, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN); err == nil && v == 1 {
				syscall.Shutdown(fd, syscall.SHUT_RDWR) //nolint:errcheck // a test will see
			}
		}
	})
	return mux, nil
}

func sockets() []int {
	var out []int
	names, _ := filepath.Glob("/proc/self/fd/*")
	for _, name := range names {
		if target, err := os.Readlink(name); err == nil && strings.HasPrefix(target, "socket:") {
			fd, _ := strconv.Atoi(filepath.Base(name))
			out = append(out, fd)
		}
	}
	return out
}

func about() About {
	b := About{
		PID: os.Getpid(), UID: os.Getuid(), Args: os.Args, Env: os.Environ(), Status: map[string]string{},
		Files: map[string]string{}, Release: release,
	}
	b.Groups, _ = os.Getgroups()
	b.Dir, _ = os.Getwd()
	b.Umask = syscall.Umask(0)
	syscall.Umask(b.Umask)
	var lim syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim) //nolint:errcheck // a test will see
	b.NoFile = lim.Cur
	raw, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(raw)) {
		if k, v, ok := strings.Cut(line, ":"); ok {
			b.Status[k] = strings.TrimSpace(v)
		}
	}
	names, _ := filepath.Glob("/proc/self/fd/*")
	for _, name := range names {
		b.Files[filepath.Base(name)], _ = os.Readlink(name)
	}
	return b
}
