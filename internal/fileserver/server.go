// Package fileserver answers Core's file calls over HTTP in a user's instance: it checks who calls, decodes, asks
// package files, and encodes.
//
// # Trust
//
// Any local user can connect to the port of an instance and send anything. A request is served only with a hop token
// that the gateway made for this route, this user and this request (package hoptoken); only then are its headers and body
// read. Each route names the class of caller that it accepts, and a route that names none makes [New] panic: an open
// route cannot come into being by forgetting something. TestEveryRouteIsGuarded proves it for all routes.
//
// Core itself is trusted as far as the policy about signed intents says. Each route names the intent that it needs, or why
// it needs none; with the policy off that costs nothing, and bodies are streamed (TestOffDoesNotRead).
//
// The body is what Core sends. It is bounded in size, and every path in it is checked by package drives.
package fileserver

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/files"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/httpx"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
)

// Options are what the handlers need. All of it is required, except Now, Routes and, in tests, Intents.
type Options struct {
	Provider string         // this provider's id, as it stands in paths
	Start    ipcapi.Start   // whom the instance serves, and the key of its route
	Files    *files.Service // does the work
	Log      *slog.Logger
	Now      func() time.Time // nil: time.Now
	Intents  Intents          // nil: nobody needs to sign anything
	Routes   []Route          // further calls, behind the same checks
}

// Limits of request bodies in bytes. A drive with everything that Core knows about its product takes 3 KiB, and a bulk
// request repeats it for each item.
const (
	oneBody  = 256 << 10
	bulkBody = 8 << 20
)

// New makes the handler of an instance for /ucloud/{provider}/files… (contract 10 section 13). Everything else is
// 404. It panics if the start-up document has no key, or a route is not fully declared: both are bugs.
func New(o Options) http.Handler {
	s := &server{provider: o.Provider, files: o.Files}
	const (
		one, each          = "resolvedCollection", "items[].resolvedCollection"
		oldDrive, newDrive = "items[].resolvedOldCollection", "items[].resolvedNewCollection"
	)
	core := func(method, path string, limit int64, serve func(http.ResponseWriter, *Call) error, call string, owners ...string) Route {
		return Route{
			Method: method, Path: path, Class: hoptoken.ClassCore, MaxBody: limit, Serve: serve,
			Intent: intent.Rule{Calls: []string{call}, Owners: owners},
		}
	}
	remove := core(http.MethodDelete, "files", bulkBody, bulk(o.Files.Delete), "files.delete", "items[]?")
	remove.Intent.Drives = []string{"items[].specification.collection"} // Core may leave the owner out
	routes := append([]Route{
		remove,
		core(http.MethodPost, "files/browse", oneBody, s.browse, "files.browse", one),
		core(http.MethodPost, "files/retrieve", oneBody, s.retrieve, "files.retrieve", one),
		core(http.MethodPost, "files/folder", bulkBody, bulk(o.Files.CreateFolders), "files.createFolder", each),
		core(http.MethodPost, "files/move", bulkBody, bulk(o.Files.Move), "files.move", oldDrive, newDrive),
		core(http.MethodPost, "files/copy", bulkBody, bulk(o.Files.Copy), "files.copy", oldDrive, newDrive),
		core(http.MethodPost, "files/trash", bulkBody, bulk(o.Files.Trash), "files.trash", each),
		core(http.MethodPost, "files/emptyTrash", bulkBody, bulk(o.Files.EmptyTrash), "files.emptyTrash", each),
		{
			Method: http.MethodGet, Path: "files", Class: hoptoken.ClassCore, MaxBody: 1, Serve: s.search,
			Intent: intent.Rule{Calls: []string{"files.streamingSearch", "files.search"}, Frame: true, Owners: []string{""}, Drives: []string{"currentFolder"}},
		},
	}, s.collectionRoutes()...)
	routes = append(routes, notOffered()...)
	return newGuard(o, append(routes, o.Routes...))
}

type server struct {
	provider string
	files    *files.Service
}

func (s *server) browse(w http.ResponseWriter, c *Call) error {
	var req providerapi.FilesBrowse
	if err := c.Decode(w, &req); err != nil {
		return err
	}
	page, err := s.files.Browse(c.Context(), &req)
	if err != nil {
		return err
	}
	c.writeBody(w, appendPage(make([]byte, 0, 512+400*len(page.Items)), &page))
	return nil
}

func (s *server) retrieve(w http.ResponseWriter, c *Call) error {
	var req providerapi.FilesRetrieve
	if err := c.Decode(w, &req); err != nil {
		return err
	}
	file, err := s.files.Retrieve(c.Context(), &req)
	if err != nil {
		return err
	}
	c.writeBody(w, appendFile(nil, &file))
	return nil
}

// bulk makes the handler of a call that does something with each of many items and answers with one empty object for
// each (contract 10 section 1.3).
func bulk[Item any](do func(context.Context, []Item) error) func(http.ResponseWriter, *Call) error {
	return func(w http.ResponseWriter, c *Call) error {
		var req providerapi.BulkRequest[Item]
		if err := c.Decode(w, &req); err != nil {
			return err
		}
		// A client that hangs up does not stop a bulk request half-way.
		if err := do(context.WithoutCancel(c.Context()), req.Items); err != nil {
			return err
		}
		return c.Write(w, providerapi.BulkResponse[providerapi.Empty]{Responses: make([]providerapi.Empty, len(req.Items))})
	}
}

// Decode reads the JSON body of the request, at most [Route.MaxBody] bytes.
func (c *Call) Decode(w http.ResponseWriter, v any) error {
	return httpx.DecodeJSON(w, c.Request, c.route.MaxBody, v)
}

// Write answers with a JSON document.
func (c *Call) Write(w http.ResponseWriter, v any) error {
	httpx.WriteJSON(w, c.Request, http.StatusOK, v)
	return nil
}

// writeBody answers with a JSON document that has been encoded already.
func (c *Call) writeBody(w http.ResponseWriter, body []byte) {
	h := w.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	httpx.WriteBody(w, c.Request, http.StatusOK, body)
}

var errNoRoute = failure.New(failure.NotFound, "This provider does not know the call")
