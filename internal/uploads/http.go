package uploads

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ucloud-im/internal/browserlink"
	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/fileserver"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/websock"
)

const (
	// createBody bounds POST files/upload in bytes.
	createBody = 8 << 20
	// openTimeout bounds the opening of a drive for a connection.
	openTimeout = 10 * time.Second
)

// Headers of uploads in chunks, and what browsers may be told about them (contract 11 sections 4 and 6).
const (
	headerToken  = "Chunked-Upload-Token"
	headerOffset = "Chunked-Upload-Offset"
	headerTotal  = "Chunked-Upload-Total-Size"

	allowMethods = "POST, OPTIONS"
	allowHeaders = "Content-Type, Chunked-Upload-Token, Chunked-Upload-Offset, Chunked-Upload-Total-Size, UCloud-Username"
)

// Routes are the calls of the package. Creating a session is Core's; using one is for everybody who has its token.
func (s *Service) Routes() []fileserver.Route {
	rule := intent.Rule{Calls: []string{"files.createUpload"}, Owners: []string{"items[].resolvedCollection"}}
	link := intent.Rule{Exempt: "browsers have the token of the upload"}
	return []fileserver.Route{
		{Method: http.MethodPost, Path: "files/upload", Class: hoptoken.ClassCore, MaxBody: createBody, Serve: s.serveCreate, Intent: rule},
		{Method: http.MethodGet, Path: "upload", Class: hoptoken.ClassBrowser, MaxBody: 1, Serve: s.serveSocket, Intent: link},
		{Method: http.MethodPost, Path: "upload", Class: hoptoken.ClassBrowser, MaxBody: maxMessage, Serve: s.serveChunk, Intent: link},
		{Method: http.MethodOptions, Path: "upload", Class: hoptoken.ClassBrowser, MaxBody: 1, Serve: s.servePreflight, Intent: link},
	}
}

func (s *Service) serveCreate(w http.ResponseWriter, c *fileserver.Call) error {
	var req providerapi.BulkRequest[CreateUpload]
	if err := c.Decode(w, &req); err != nil {
		return err
	}
	sessions, err := s.Create(c.Context(), req.Items)
	if err != nil {
		return err
	}
	return c.Write(w, providerapi.BulkResponse[UploadSession]{Responses: sessions})
}

func (s *Service) servePreflight(w http.ResponseWriter, c *fileserver.Call) error {
	return s.state.Load().links.Preflight(w, c.Request, allowMethods, allowHeaders)
}

// place is the opened place of a session.
type place struct {
	root   *drives.Root
	path   drives.Path
	parent *drives.Dir // nil if the path is the drive
	name   string
	prefix int // length of the longer one of its paths, here and at UCloud
}

func (p *place) close() {
	if p.parent != nil {
		p.parent.Close()
	}
	p.root.Close() //nolint:errcheck // a descriptor without content
}

// openPlace opens the drive of a session.
func (s *Service) openPlace(ctx context.Context, st *state, rec *record) (*place, error) {
	ref, p, err := rec.ref(st.set)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	pl, err := browserlink.Do(ctx, s.gate, func() (*place, error) {
		root, err := ref.Open()
		if err != nil {
			return nil, err
		}
		pl := &place{root: root, path: p, prefix: len(ref.Base()) + len(p.UCloud())}
		if p.IsRoot() {
			return pl, nil
		}
		local, err := root.At(p)
		if err == nil {
			pl.parent, pl.name, err = local.OpenParent()
		}
		if err != nil {
			root.Close() //nolint:errcheck // a descriptor without content
			return nil, err
		}
		return pl, nil
	}, (*place).close)
	return pl, browserlink.Refuse(err)
}

// serveSocket is the WebSocket of the protocols V2 and V1. Everything is checked before the upgrade.
func (s *Service) serveSocket(w http.ResponseWriter, c *fileserver.Call) error {
	st := s.state.Load()
	if _, err := st.links.Origin(c.Request); err != nil {
		return err
	}
	token, err := browserlink.Token(c.Request, "")
	if err != nil {
		return err
	}
	if !strings.EqualFold(c.Header.Get("Upgrade"), "websocket") {
		return failure.New(failure.Invalid, "This link is for uploading")
	}
	rec, n, err := s.open(c.Context(), token)
	if err != nil {
		return err
	}
	ses, err := s.enter(token, rec, n)
	if err != nil {
		return err
	}
	defer s.leave(ses)
	pl, err := s.openPlace(c.Context(), st, &rec)
	if err != nil {
		return err
	}
	heard := new(atomic.Int64)
	heard.Store(time.Now().UnixNano())
	ws, err := websock.Accept(w, c.Request, websock.Options{
		ReadLimit: maxMessage,
		Wrap:      func(nc net.Conn) net.Conn { return &clockedConn{nc, heard} },
	})
	if err != nil {
		pl.close()
		c.Log().Debug("upgrade failed", "error", err)
		return nil // it has been answered
	}
	log := c.Log().With("part", "uploads", "drive", rec.Drive)
	if rec.Protocol == protocolV1 {
		s.serveV1(ws, st, ses, pl, heard, log)
		return nil
	}
	conn := &conn{
		s: s, st: st, ses: ses, ws: ws, log: log, root: pl.root, path: pl.path, parent: pl.parent, name: pl.name, prefix: pl.prefix,
		heard: heard, wake: make(chan struct{}, 1), ended: make(chan struct{}),
		files: map[uint32]*file{},
	}
	conn.ids.charge = s.chargeListing
	conn.pending = queue{dir: s.o.SpillDir, charge: s.chargeListing}
	conn.run()
	return nil
}

// clockedConn is a connection with a clock on it: one message may take longer than the patience with a silent client, so
// every byte counts as a sign of life.
type clockedConn struct {
	net.Conn
	heard *atomic.Int64
}

func (c *clockedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.heard.Store(time.Now().UnixNano())
	}
	return n, err
}

// pieces is where the memory for data comes from.
type pieces struct{ pool sync.Pool }

func (s *Service) newPiece() *[pieceBytes]byte {
	if p, ok := s.pieces.pool.Get().(*[pieceBytes]byte); ok {
		return p
	}
	return new([pieceBytes]byte)
}

func (s *Service) oldPiece(p *[pieceBytes]byte) { s.pieces.pool.Put(p) }

// markDone tells the server that a session of a single file has done its work, so that it is the first to go when its
// user has too many.
func (s *Service) markDone(ses *session) {
	ses.mu.Lock()
	n, failed := ses.note, ses.failed.count > 0
	ses.mu.Unlock()
	if n.Done || failed {
		return
	}
	n.Done = true
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.life), noteTimeout)
	defer cancel()
	s.save(ctx, ses, n)
}
