package gateway

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ucloud-im/internal/auth"
	"ucloud-im/internal/ident"
)

// Control is what the gateway asks IM/Server. Implementations must be safe for concurrent use.
type Control interface {
	// Wake asks for the user's instance and returns when it is ready, was refused or ctx has ended. A refusal is a nil
	// route with a sentence for the end user in why. An error means that the question could not be asked.
	Wake(ctx context.Context, user ident.UCloudUser) (route *Route, why string, err error)
	// TokenOpen tells whether the one-time token with this SHA-256 is open for exactly this user.
	TokenOpen(ctx context.Context, user ident.UCloudUser, hash [32]byte) (bool, error)
	// WebExchange uses the one-time token with this SHA-256 up, which must be for an interface of this kind and, for a
	// web application, of this host. A nil session means that the token is not valid; an error that the question could
	// not be asked.
	WebExchange(ctx context.Context, kind WebKind, host string, hash [32]byte) (*WebSession, error)
}

// Options are the fixed parts of a [Gateway].
type Options struct {
	// VerifyCore checks the Authorization header of a request that has one, as [auth.Verifier.VerifyCore] does.
	VerifyCore func(http.Header) (auth.Principal, error)
	Control    Control
	Routes     *Table
	// Web are the interfaces of jobs; nil means that there are none.
	Web *WebTable
	// CheckWebListener tells whether the socket that listens at an address of this machine belongs to the account of a
	// job. It is asked for each new connection to an interface that is on this machine. Nil allows every listener; only
	// tests may do that. See [CheckListener].
	CheckWebListener func(at netip.AddrPort, uid ident.UID) error
	// DialServer opens a connection to IM/Server, usually to its Unix socket.
	DialServer func(ctx context.Context) (net.Conn, error)
	// CheckListener tells whether the socket that listens on 127.0.0.1:port belongs to the service account. It is asked
	// once for each new connection to an instance, after connecting and before anything is sent: a local user who took
	// the port of a dead instance receives nothing. Nil allows every listener; only tests may do that.
	CheckListener func(port int) error
	Log           *slog.Logger
	// AccessLog receives one record for each request while [Settings.AccessLog] is set. Nil means Log.
	AccessLog *slog.Logger
	// Registry receives the metrics; nil means that nobody looks at them.
	Registry prometheus.Registerer
}

// Settings are the parts that can be changed at run time with [Gateway.Reconfigure].
type Settings struct {
	Provider string // provider.id
	// Hosts are the names and addresses, without port, under which clients know this gateway (provider.hosts.selfPublic
	// and provider.hosts.self). Requests for other hosts are refused.
	Hosts []string
	// LoopbackHosts also allows localhost and loopback addresses as host (development.enabled).
	LoopbackHosts bool
	// TrustedProxies are the peers whose forwarding headers are believed (gateway.trustedProxies).
	TrustedProxies []netip.Prefix
	AccessLog      bool // gateway.accessLog.enabled
	// HSTS is how long browsers remember that these hosts have TLS (gateway.tls.hsts, RFC 6797). 0: they are not told.
	HSTS   time.Duration
	Web    Web
	Hold   Hold
	Limits Limits
}

// Hold bounds the requests that wait for an instance or for IM/Server (gateway.hold). Questions about one-time tokens have
// a quarter of Max for themselves.
type Hold struct {
	Disabled bool
	Timeout  time.Duration // from the arrival of the request; 0 means 4 s
	Max      int           // in the whole gateway; 0 means 1000
}

// Limits against slow and greedy clients. Zero fields mean the documented default. Requests with a verified Core token
// are exempt from all limits per address and per connection (contract 00 point 9.17).
type Limits struct {
	MaxHeaderBytes      int           // gateway.limits.maxHeaderBytes, 64 KiB; read when the gateway starts
	HeaderTimeout       time.Duration // gateway.limits.headerTimeout, 10 s; read when the gateway starts
	IdleTimeout         time.Duration // gateway.limits.idleTimeout, 5 min; of client connections; read at the start
	MaxConnectionsPerIP int           // gateway.limits.maxConnectionsPerIp, 0 = no limit

	// Rates of one address (an IPv6 address counts as its /64) or user. 0 means no limit; these have no defaults here but
	// in the configuration, gateway.limits.
	RequestsPerSecondPerIP    float64
	RequestsPerSecondPerUser  float64
	ConnectionsPerSecondPerIP float64
	FailuresPerMinutePerIP    float64
	// Burst is how many seconds' worth of a rate may come at once; 10. Failures have a minute's worth.
	Burst float64
	// Resets is the number of requests that the client of an HTTP/2 connection may take back before it is closed, unless
	// Core uses it; ten more in each second. 200.
	Resets int

	// StallTimeout is how long a client may neither send a kibibyte of its body nor take any of the answer; 30 s.
	StallTimeout time.Duration
	// MaxServerBody is the largest body for IM/Server in bytes; 1 MiB. Such bodies are buffered, so that the request can
	// be repeated. Bodies for instances are streamed and not limited here.
	MaxServerBody int64
	// MaxBrowserBody is the largest body of a request without a Core token to an instance in bytes; 32 MiB, twice what the
	// web client sends in one piece of an upload (contract 11 section 4).
	MaxBrowserBody int64
	// MaxStreams is the number of concurrent requests on one HTTP/2 connection on which no Core token was seen; 100.
	// Others may have MaxCoreStreams, 2000, since Core sends the calls of all users over one connection.
	MaxStreams, MaxCoreStreams int
	// MaxBrowserRequests is the number of concurrent requests without a Core token for one user, upgrades included; 64.
	MaxBrowserRequests int
	// MaxUpgrades is the number of upgraded connections for one user; 128.
	MaxUpgrades int
	// MaxWebRequests is the number of concurrent requests to one interface of a job, upgrades included; 256.
	MaxWebRequests int
	// AnswerTimeout is how long an instance or IM/Server may take until the head of its answer; 2 min.
	AnswerTimeout time.Duration
	// TokenChecksPerSecond bounds the questions about one-time tokens that strangers can cause; 200, bursts of twice as many.
	// One address has a tenth of it.
	TokenChecksPerSecond float64
}

// withDefaults replaces zero fields by their defaults.
func (s Settings) withDefaults() Settings {
	setDefault(&s.Hold.Timeout, 4*time.Second)
	setDefault(&s.Hold.Max, 1000)
	l := &s.Limits
	setDefault(&l.MaxHeaderBytes, 64<<10)
	setDefault(&l.HeaderTimeout, 10*time.Second)
	setDefault(&l.IdleTimeout, 5*time.Minute)
	setDefault(&l.StallTimeout, 30*time.Second)
	setDefault(&l.MaxServerBody, 1<<20)
	setDefault(&l.MaxBrowserBody, 32<<20)
	setDefault(&l.Burst, 10)
	setDefault(&l.Resets, 200)
	setDefault(&l.MaxStreams, 100)
	setDefault(&l.MaxCoreStreams, 2000)
	setDefault(&l.MaxBrowserRequests, 64)
	setDefault(&l.MaxUpgrades, 128)
	setDefault(&l.MaxWebRequests, 256)
	setDefault(&l.AnswerTimeout, 2*time.Minute)
	setDefault(&l.TokenChecksPerSecond, 200)
	return s
}

func (l *Limits) requestRate() rateOf {
	return rateOf{l.RequestsPerSecondPerIP, l.RequestsPerSecondPerIP * l.Burst}
}

func (l *Limits) userRate() rateOf {
	return rateOf{l.RequestsPerSecondPerUser, l.RequestsPerSecondPerUser * l.Burst}
}

func (l *Limits) connectionRate() rateOf {
	return rateOf{l.ConnectionsPerSecondPerIP, l.ConnectionsPerSecondPerIP * l.Burst}
}

func (l *Limits) failureRate() rateOf {
	return rateOf{l.FailuresPerMinutePerIP / 60, l.FailuresPerMinutePerIP}
}

// checkRate is the rate of one of so many that share the questions about one-time tokens.
func (l *Limits) checkRate(shares float64) rateOf {
	return rateOf{l.TokenChecksPerSecond / shares, 2 * l.TokenChecksPerSecond / shares}
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}
