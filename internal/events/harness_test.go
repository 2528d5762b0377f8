package events

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/events/eventwire"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

// What Core sends, for tests.

func userMsg(ref uint32, name string) []byte {
	return appendString(binary.BigEndian.AppendUint32([]byte{opUser}, ref), name)
}

func categoryMsg(ref uint32, name string) []byte {
	doc, _ := json.Marshal(providerapi.ProductCategory{Name: name, Provider: "hpc", ProductType: "STORAGE"})
	return appendString(binary.BigEndian.AppendUint32([]byte{opCategory}, ref), string(doc))
}

func projectMsg(ref uint32, id ident.ProjectID, at time.Time, consumes bool, members ...string) []byte {
	p := providerapi.Project{ID: id, ModifiedAt: providerapi.MillisOf(at)}
	p.Specification.CanConsumeResources = consumes
	for _, m := range members {
		p.Status.Members = append(p.Status.Members, providerapi.ProjectMember{Username: ident.UCloudUser(m), Role: "USER"})
	}
	doc, _ := json.Marshal(p)
	b := binary.BigEndian.AppendUint32([]byte{opProject}, ref)
	b = binary.BigEndian.AppendUint64(b, uint64(at.UnixMilli()))
	return appendString(b, string(doc))
}

func walletMsg(workspace, category uint32, quota uint64, flags uint32, at time.Time) []byte {
	b := binary.BigEndian.AppendUint32([]byte{opWallet}, workspace)
	b = binary.BigEndian.AppendUint32(b, category)
	b = binary.BigEndian.AppendUint64(b, quota)
	b = binary.BigEndian.AppendUint64(b, 0)
	b = binary.BigEndian.AppendUint32(b, flags)
	b = binary.BigEndian.AppendUint64(b, uint64(at.UnixMilli()))
	return binary.BigEndian.AppendUint64(b, 0)
}

func join(parts ...[]byte) []byte { return slices.Concat(parts...) }

// fakeTokens counts renewals; the token is "t" and the number of renewals.
type fakeTokens struct {
	renewed atomic.Int32
	none    atomic.Bool
}

func (f *fakeTokens) Token(context.Context) (string, error) {
	if f.none.Load() {
		return "", coreapi.ErrNotSent
	}
	return fmt.Sprint("t", f.renewed.Load()), nil
}

func (f *fakeTokens) Renew(ctx context.Context, _ string) (string, error) {
	f.renewed.Add(1)
	return f.Token(ctx)
}

// fakeConn is a session without a socket, for tests with a fake clock.
type fakeConn struct {
	in     chan []byte // from Core
	out    chan []byte // to Core
	closed chan struct{}
	once   sync.Once
	mute   atomic.Bool // pings are not answered
}

func newFakeConn() *fakeConn {
	return &fakeConn{in: make(chan []byte, 1000), out: make(chan []byte, 1000), closed: make(chan struct{})}
}

func (c *fakeConn) Read(ctx context.Context) (websocket.MessageType, []byte, error) {
	select {
	case m := <-c.in: // what was sent before a close arrives
		return websocket.MessageBinary, m, nil
	default:
	}
	select {
	case m := <-c.in:
		return websocket.MessageBinary, m, nil
	case <-c.closed:
		return 0, nil, errors.New("connection closed")
	case <-ctx.Done():
		return 0, nil, ctx.Err()
	}
}

func (c *fakeConn) Write(_ context.Context, _ websocket.MessageType, p []byte) error {
	select {
	case <-c.closed:
		return errors.New("connection closed")
	case c.out <- slices.Clone(p):
		return nil
	}
}

func (c *fakeConn) Ping(ctx context.Context) error {
	if c.mute.Load() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.closed:
			return errors.New("connection closed")
		}
	}
	select {
	case <-c.closed:
		return errors.New("connection closed")
	default:
		return nil
	}
}

func (c *fakeConn) CloseNow() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

// harness runs a stream against fake connections that the test hands out.
type harness struct {
	*Stream
	t       *testing.T
	tokens  *fakeTokens
	conns   chan *fakeConn // to be used by the next dial
	dials   atomic.Int32
	changes chan Change
}

func start(t *testing.T, db *store.Store, change func(*Options)) *harness {
	t.Helper()
	h := &harness{t: t, tokens: &fakeTokens{}, conns: make(chan *fakeConn, 100), changes: make(chan Change, 1000)}
	o := Options{
		BaseURL: "http://core.invalid", Provider: "hpc", HTTP: http.DefaultClient, Tokens: h.tokens, Store: db,
		Changed: func(_ context.Context, c Change) { h.changes <- c },
	}
	if change != nil {
		change(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	h.Stream = s
	s.dial = func(ctx context.Context) (conn, error) {
		h.dials.Add(1)
		select {
		case c := <-h.conns:
			return c, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return h
}

// session hands out a connection and returns it with the position that was asked for.
func (h *harness) session() (c *fakeConn, from int64) {
	h.t.Helper()
	c = newFakeConn()
	h.conns <- c
	return c, h.authFrame(c)
}

func (h *harness) authFrame(c *fakeConn) int64 {
	h.t.Helper()
	m := <-c.out
	if m[0] != opAuth || binary.BigEndian.Uint64(m[9:]) != eventwire.FlagIncludeRetired || !strings.HasPrefix(string(m[21:]), "t") {
		h.t.Fatalf("first frame %x", m)
	}
	return int64(binary.BigEndian.Uint64(m[1:]))
}

func view(t *testing.T, db *store.Store, f func(tx *store.Tx) error) {
	t.Helper()
	if err := db.View(t.Context(), f); err != nil {
		t.Fatal(err)
	}
}

func position(t *testing.T, db *store.Store) (p time.Time) {
	t.Helper()
	view(t, db, func(tx *store.Tx) (err error) {
		p, err = tx.ReplayFrom()
		return err
	})
	return p
}

var (
	user1    = ident.Owner{User: "ada#1"}
	project1 = ident.Owner{Project: "p-1"}
)
