package ipcapi

import (
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
)

// Calls by which the gateway learns where the web interfaces and desktops of jobs are, and who may see them (contract 21
// sections 5, 6 and 8). Only the service account may make them.
var (
	// GatewayWeb sends all interfaces, then changes, for as long as the gateway listens.
	GatewayWeb = ipc.Stream[GatewayHello, WebUpdate]{Name: "gateway.web", Access: ipc.AccessService}
	// GatewayWebExchange uses a one-time token up and gives what the browser gets for it.
	GatewayWebExchange = ipc.Call[WebExchange, WebExchanged]{Name: "gateway.webexchange", Access: ipc.AccessService}
)

// Kinds of interfaces.
const (
	WebKindWeb = "WEB" // a web application, on a host name of its own
	WebKindVNC = "VNC" // a desktop, on the provider's host name
)

// WebRoute is one interface of one rank of a job, and the sessions that may use it.
type WebRoute struct {
	ID     string `json:"id"`
	Kind   string `json:"kind"`
	Host   string `json:"host,omitempty"`   // host name of a web application
	Cookie string `json:"cookie,omitempty"` // name of its cookie

	// Address and Port are where it is; no Address while the job does not run. UID is the account of the job: a listener
	// on the gateway's own machine must belong to it.
	Address string    `json:"address,omitempty"`
	Port    int       `json:"port,omitempty"`
	UID     ident.UID `json:"uid"`
	TLS     bool      `json:"tls,omitempty"`

	Grants []WebGrant `json:"grants,omitempty"`
	// Version grows with each change of this route, so that what comes over two ways is put into order.
	Version uint64 `json:"version"`
}

// WebGrant is a session of a browser.
type WebGrant struct {
	Hash      []byte    `json:"hash"` // SHA-256 of the cookie's value
	ExpiresAt time.Time `json:"expiresAt"`
}

// WebUpdate changes the gateway's table. Full replaces it by Put; otherwise Put adds or replaces by ID.
type WebUpdate struct {
	Full   bool         `json:"full,omitempty"`
	More   bool         `json:"more,omitempty"` // the next update belongs to this one
	Put    []WebRoute   `json:"put,omitempty"`
	Remove []WebRemoval `json:"remove,omitempty"`
}

// WebRemoval names a route that does not exist any more. Version is as in [WebRoute].
type WebRemoval struct {
	ID      string `json:"id"`
	Version uint64 `json:"version"`
}

// WebExchange uses up the one-time token with this SHA-256. Host is the host name of the request for a web application,
// and empty for a desktop.
type WebExchange struct {
	Kind string `json:"kind"`
	Host string `json:"host,omitempty"`
	Hash []byte `json:"hash"`
}

// WebExchanged is the result. Value is the session's secret: the value of the cookie. It is not stored anywhere.
type WebExchanged struct {
	Value     string    `json:"value"`
	ExpiresAt time.Time `json:"expiresAt"`
	Route     WebRoute  `json:"route"`
}
