// Package downloads sends files to browsers: a session is made by Core on behalf of a user, its link is then used by
// whoever has it (contract 11 section 5). A folder is sent as a zip that is made while it is sent.
//
// # Trust
//
// Core is trusted to name the drive when the session is made. The link is a bearer secret. Names and contents of files
// are chosen by users, and are shown by the browser of somebody else: nothing in a name may become a header, and nothing
// in a file may run with the rights of a page of ours.
//
// # What is guaranteed, and which test proves it
//
//   - Each request asks the server about the token, under the account of this process (TestTokens). The file is opened
//     beneath the drive each time; a link that leaves it, a device or a FIFO is not opened (TestPlaces).
//   - A name cannot make a header (TestNames), and a file is either one of few harmless types or opaque, never sniffed,
//     sandboxed, and not cached (TestHeaders).
//   - The announced length is what is sent. If a file becomes shorter, or anything of a folder cannot be read, the
//     connection breaks off, so that the browser says so (TestShrinks, TestZipBreaksOff).
//   - Pages of Core's public origin and our own may read the answer, others may not (TestOrigins).
package downloads

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/browserlink"
	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/fileserver"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
)

// Options configure a [Service]. All but Settings is required.
type Options struct {
	Provider string
	User     ident.UCloudUser
	Sessions browserlink.Store
	Log      *slog.Logger
	Settings Settings
}

// Settings may change while the service runs ([Service.SetSettings]).
type Settings struct {
	Follow        drives.Follow
	PublicURL     string   // scheme://host[:port] under which browsers reach us; required
	Origins       []string // further origins of pages that may download
	NoDirectories bool     // folders cannot be downloaded
	NoRanges      bool     // no partial downloads
}

// Service sends the files of one user. It is safe for concurrent use, and holds nothing between requests.
type Service struct {
	o     Options
	log   *slog.Logger
	state atomic.Pointer[state]
	gate  browserlink.Gate
}

type state struct {
	Settings
	set   *drives.Set
	links *browserlink.Links
}

// New makes a Service. It panics if something required is missing, which is a bug.
func New(o Options) *Service {
	if o.Provider == "" || o.User == "" || o.Sessions == nil || o.Log == nil {
		panic("downloads: the options are not complete")
	}
	s := &Service{o: o, log: o.Log.With("part", "downloads"), gate: make(browserlink.Gate, 16)}
	s.SetSettings(o.Settings)
	return s
}

// SetSettings replaces the settings.
func (s *Service) SetSettings(set Settings) {
	s.state.Store(&state{
		Settings: set, set: drives.New(s.o.Provider, set.Follow),
		links: &browserlink.Links{Store: s.o.Sessions, Provider: s.o.Provider, User: s.o.User, PublicURL: set.PublicURL, Origins: set.Origins},
	})
}

const (
	createBody = 8 << 20
	// createTimeout bounds the creation of sessions; Core gives up after 5 s.
	createTimeout = 4500 * time.Millisecond
	// openTimeout bounds the opening of a file for a browser.
	openTimeout = 20 * time.Second

	allowMethods  = "GET, HEAD, OPTIONS"
	allowHeaders  = "Range, If-Range, If-None-Match"
	exposeHeaders = "Content-Length, Content-Range, Accept-Ranges, ETag"
)

// Routes are the calls of the package. Creating a session is Core's; using one is for everybody who has its token.
func (s *Service) Routes() []fileserver.Route {
	rule := intent.Rule{Calls: []string{"files.createDownload"}, Owners: []string{"items[].resolvedCollection"}}
	link := intent.Rule{Exempt: "browsers have the token of the download"}
	return []fileserver.Route{
		{Method: http.MethodPost, Path: "files/download", Class: hoptoken.ClassCore, MaxBody: createBody, Serve: s.serveCreate, Intent: rule},
		{Method: http.MethodGet, Path: "download", Class: hoptoken.ClassBrowser, MaxBody: 1, Serve: s.serve, Intent: link},
		{Method: http.MethodHead, Path: "download", Class: hoptoken.ClassBrowser, MaxBody: 1, Serve: s.serve, Intent: link},
		{Method: http.MethodOptions, Path: "download", Class: hoptoken.ClassBrowser, MaxBody: 1, Serve: s.servePreflight, Intent: link},
	}
}

// CreateDownload is one item of POST files/download.
type CreateDownload struct {
	ID                 string            `json:"id"`
	ResolvedCollection providerapi.Drive `json:"resolvedCollection"`
}

// DownloadSession is the answer to one item.
type DownloadSession struct {
	Endpoint string `json:"endpoint"`
}

// record is what the server keeps about a session for us.
type record struct {
	Version  int           `json:"v"`
	Drive    ident.DriveID `json:"drive"`
	DrivePG  string        `json:"pgid"`
	Provider string        `json:"provider"`
	Path     string        `json:"path"`
	Title    string        `json:"title,omitempty"` // of the drive, as a name for a download of all of it
}

func (s *Service) serveCreate(w http.ResponseWriter, c *fileserver.Call) error {
	var req providerapi.BulkRequest[CreateDownload]
	if err := c.Decode(w, &req); err != nil {
		return err
	}
	sessions, err := s.Create(c.Context(), req.Items)
	if err != nil {
		return err
	}
	return c.Write(w, providerapi.BulkResponse[DownloadSession]{Responses: sessions})
}

func (s *Service) servePreflight(w http.ResponseWriter, c *fileserver.Call) error {
	return s.state.Load().links.Preflight(w, c.Request, allowMethods, allowHeaders)
}

// Create makes sessions, one for each item and in their order. Either all are made or none.
func (s *Service) Create(ctx context.Context, items []CreateDownload) ([]DownloadSession, error) {
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	st := s.state.Load()
	wants := make([]ipcapi.SessionItem, len(items))
	err := failure.EachItem(len(items), func(i int) (err error) {
		wants[i], err = s.check(ctx, st, &items[i])
		return err
	})
	if err != nil {
		return nil, err
	}
	tokens, err := s.o.Sessions.Create(ctx, ipcapi.PurposeDownload, wants)
	if err != nil {
		return nil, err
	}
	out := make([]DownloadSession, len(items))
	for i := range out {
		out[i].Endpoint = st.links.URL("download", tokens[i], false)
	}
	return out, nil
}

// check opens the file, to see whether it can be downloaded (contract 11 section 5.1).
func (s *Service) check(ctx context.Context, st *state, item *CreateDownload) (ipcapi.SessionItem, error) {
	d := &item.ResolvedCollection
	ref, err := st.set.Drive(d)
	if err != nil {
		return ipcapi.SessionItem{}, err
	}
	p, err := ref.Path(item.ID)
	if err != nil {
		return ipcapi.SessionItem{}, err
	}
	opened, err := s.open(ctx, st, ref, p)
	if err != nil {
		return ipcapi.SessionItem{}, err
	}
	opened.close()
	rec := record{
		Version: 1, Drive: d.ID, DrivePG: d.ProviderGeneratedID, Provider: d.Specification.Product.Provider, Path: p.UCloud(),
		Title: truncate(d.Specification.Title, 200),
	}
	data, err := json.Marshal(rec)
	if err != nil {
		return ipcapi.SessionItem{}, fmt.Errorf("encode session: %w", err)
	}
	return ipcapi.SessionItem{
		Drive: d.ID, Owner: d.Owner.Workspace(), Category: d.Specification.Product.Category, Object: rec.Path, Data: data,
	}, nil
}

func truncate(s string, n int) string {
	for i := range s {
		if i > n {
			return s[:i]
		}
	}
	return s
}

// errMissing is the answer for everything that cannot be downloaded (contract 11 section 5.1).
func errMissing(err error, why string) error { return failure.Wrap(err, failure.NotFound, "%s", why) }

// refuse says what an error means to who wants to download.
func refuse(err error) error {
	if _, ok := errors.AsType[*failure.Error](err); ok || err == nil {
		return err
	}
	switch {
	case errors.Is(err, drives.ErrOutside):
		return failure.Wrap(err, failure.Forbidden, "The link leaves the drive")
	case errors.Is(err, drives.ErrNotRegular):
		return failure.Wrap(err, failure.Invalid, "This is not a regular file")
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ESTALE):
		return errMissing(err, "Could not find the file")
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return errMissing(err, "You do not have permission to read the file")
	}
	return browserlink.Refuse(err)
}

// serve is a download.
func (s *Service) serve(w http.ResponseWriter, c *fileserver.Call) error {
	st := s.state.Load()
	// A page of another origin may link here, which is a visit and has no Origin header, or fetch, which has one. Without
	// the header in the answer its browser keeps the content from it.
	origin, err := st.links.Origin(c.Request)
	if err != nil {
		return err
	}
	browserlink.AllowOrigin(w.Header(), origin, exposeHeaders)
	safeHeaders(w.Header())
	token, err := browserlink.Token(c.Request, "")
	if err != nil {
		return err
	}
	ses, err := s.o.Sessions.Consume(c.Context(), ipcapi.PurposeDownload, token)
	if err != nil {
		return err
	}
	var rec record
	if err := json.Unmarshal(ses.Data, &rec); err != nil || rec.Version != 1 {
		return fmt.Errorf("decode session (version %d): %w", rec.Version, errors.Join(err, errors.New("unknown form")))
	}
	ref, err := st.set.Drive(&providerapi.Drive{
		ID: rec.Drive, ProviderGeneratedID: rec.DrivePG,
		Specification: providerapi.DriveSpecification{Product: providerapi.ProductReference{Provider: rec.Provider}},
	})
	if err != nil {
		return err
	}
	p, err := ref.Path(rec.Path)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.Context(), openTimeout)
	defer cancel()
	o, err := s.open(ctx, st, ref, p)
	if err != nil {
		return err
	}
	defer o.close()
	if o.file != nil {
		return s.sendFile(w, c, st, o, drives.Escape(p.Name()))
	}
	name := drives.Escape(p.Name())
	if p.IsRoot() {
		// The title is a text of a user, who may have meant it as a path.
		if name = strings.ReplaceAll(rec.Title, "/", "_"); name == "" {
			name = "drive " + string(rec.Drive)
		}
	}
	return s.sendZip(w, c, o, name)
}
