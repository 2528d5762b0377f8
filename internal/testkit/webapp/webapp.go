// Package webapp is a small web application for tests: what a job serves on its port (contract 21 section 5). It tells
// what it has received, so that a test sees what a gateway in front of it has let through.
package webapp

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"
)

// Seen is what /seen answers: the request as it came.
type Seen struct {
	Name   string      `json:"name"` // of the application
	Method string      `json:"method"`
	Target string      `json:"target"` // as it stood in the request line
	Host   string      `json:"host"`
	Proto  string      `json:"proto"` // http or https
	Header http.Header `json:"header"`
	Body   string      `json:"body"`
}

// Handler serves:
//
//	/          a page with the name
//	/seen      the request as JSON, below it any path
//	/cookies   sets cookies: one of its own, one for all hosts of the domain in the parameter "domain", and one with the
//	           name in the parameter "name"
//	/echo      a WebSocket that sends back what it gets
//	/stream    numbers, one line each 20 ms, until the client leaves
func Handler(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // no ServeMux, which cleans paths
		switch path := r.URL.Path; {
		case path == "/seen" || strings.HasPrefix(path, "/seen/"):
			seen(w, r, name)
		case path == "/cookies":
			cookies(w, r)
		case path == "/echo":
			echo(w, r)
		case path == "/stream":
			stream(w, r)
		default:
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			fmt.Fprintf(w, "<!DOCTYPE html><title>%[1]s</title><h1>This is %[1]s</h1>\n", name)
		}
	})
}

func seen(w http.ResponseWriter, r *http.Request, name string) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return
	}
	proto := "http"
	if r.TLS != nil {
		proto = "https"
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(Seen{ //nolint:errcheck // the client has gone
		Name: name, Method: r.Method, Target: r.RequestURI, Host: r.Host, Proto: proto, Header: r.Header, Body: string(body),
	})
}

func cookies(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	w.Header().Add("Set-Cookie", "own=1; Path=/")
	w.Header().Add("Set-Cookie", "wide=1; Path=/; Domain="+q.Get("domain")+"; HttpOnly")
	w.Header().Add("Set-Cookie", q.Get("name")+"=1; Path=/")
	w.Header().Set("Clear-Site-Data", `"cookies"`)
	w.Header().Set("Strict-Transport-Security", "max-age=1; includeSubDomains")
}

func echo(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true, Subprotocols: []string{"echo"}})
	if err != nil {
		return
	}
	defer c.CloseNow() //nolint:errcheck // the end
	for {
		kind, b, err := c.Read(r.Context())
		if err != nil {
			return
		}
		if err := c.Write(r.Context(), kind, b); err != nil {
			return
		}
	}
}

func stream(w http.ResponseWriter, r *http.Request) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	w.Header().Set("Content-Type", "text/plain")
	for i := 0; ; i++ {
		if _, err := fmt.Fprintln(w, i); err != nil {
			return
		}
		http.NewResponseController(w).Flush() //nolint:errcheck // the next write tells
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}
