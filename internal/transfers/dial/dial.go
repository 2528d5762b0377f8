// Package dial decides which addresses a transfer may be sent to, and connects to them.
//
// # Trust
//
// The endpoint of a transfer is a URL that another organisation has chosen, and a process on the centre's own network
// connects to it (contract 13 section 2.4). Without a check it could name the metadata service of a cloud, a database on
// a private network, or this machine. Names are worthless for the decision: who owns a name decides what it resolves to,
// and may decide anew for each question. So the decision is about the address that is about to be connected to, at that
// moment ([Policy.Client]); TestNameThatLeadsInside proves it with a name that resolves to a loopback address.
//
// There is one connection, to that address, with the certificate of that name: redirects are refused, and the proxies
// of the environment are not used, because a proxy would resolve the name again.
package dial

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"syscall"
	"time"

	"ucloud-im/internal/failure"
)

// Policy says what may be connected to. The zero value allows public addresses, any port, and TLS only.
type Policy struct {
	// Networks may be connected to although they are not public.
	Networks []netip.Prefix
	// Ports that may be connected to; empty: all.
	Ports []int
	// Plain allows ws: besides wss:. It is for development: whoever is between can read and change everything.
	Plain bool
	// Roots are the trust anchors; nil: those of the system.
	Roots *x509.CertPool
}

// New makes a policy from its form in settings: networks as CIDR, further trust anchors as PEM.
func New(networks []string, ports []int, plain bool, pem string) (*Policy, error) {
	p := &Policy{Ports: ports, Plain: plain}
	for _, text := range networks {
		n, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("network that transfers may use: %w", err)
		}
		p.Networks = append(p.Networks, n.Masked())
	}
	if pem == "" {
		return p, nil
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("read the trust anchors of the system: %w", err)
	}
	if !roots.AppendCertsFromPEM([]byte(pem)) {
		return nil, errors.New("the trust anchors for transfers hold no certificate")
	}
	p.Roots = roots
	return p, nil
}

// maxEndpoint is the longest endpoint in bytes.
const maxEndpoint = 4096

// Check looks at what can be told from the text of an endpoint. The errors are [failure.Invalid] or [failure.Forbidden]
// and never show the endpoint, which holds a token.
func (p *Policy) Check(endpoint string) error {
	if endpoint == "" || len(endpoint) > maxEndpoint {
		return failure.New(failure.Invalid, "The other provider gave no address to send to")
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Opaque != "" || u.Hostname() == "" || u.Fragment != "" {
		return failure.New(failure.Invalid, "The other provider gave an address that cannot be read")
	}
	switch {
	case u.User != nil:
		return failure.New(failure.Forbidden, "The address of the other provider contains a password, which is not allowed")
	case u.Scheme == "ws" && !p.Plain:
		return failure.New(failure.Forbidden, "The other provider does not use an encrypted connection")
	case u.Scheme != "wss" && u.Scheme != "ws":
		return failure.New(failure.Forbidden, "The other provider gave an address of another kind than is allowed")
	}
	port, err := portOf(u)
	if err != nil {
		return failure.New(failure.Invalid, "The other provider gave an address that cannot be read")
	}
	if len(p.Ports) > 0 && !slices.Contains(p.Ports, port) {
		return failure.New(failure.Forbidden, "Connections to port %d of the other provider are not allowed here", port)
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil {
		return p.address(ip)
	}
	return nil
}

func portOf(u *url.URL) (int, error) {
	if text := u.Port(); text != "" {
		n, err := strconv.ParseUint(text, 10, 16)
		if err == nil && n == 0 {
			err = errors.New("port 0")
		}
		return int(n), err //nolint:gosec // 16 bits
	}
	if u.Scheme == "ws" {
		return 80, nil
	}
	return 443, nil
}

// refused is the answer to an address that may not be connected to. The address is for the log.
type refused struct{ ip netip.Addr }

func (r refused) Error() string { return "address " + r.ip.String() + " is not allowed" }

func (p *Policy) address(ip netip.Addr) error {
	if p.Allows(ip) {
		return nil
	}
	return failure.Wrap(refused{ip}, failure.Forbidden,
		"The address of the other provider is in a network that transfers may not use here")
}

// Allows tells whether the address may be connected to.
func (p *Policy) Allows(ip netip.Addr) bool {
	if !ip.IsValid() || ip.Zone() != "" { // a zone belongs to a link-local address
		return false
	}
	ip = ip.Unmap()
	for _, n := range p.Networks {
		if n.Contains(ip) {
			return true
		}
	}
	if ip.Is4() {
		return public4(ip)
	}
	if inner, ok := embedded(ip); ok {
		return p.Allows(inner)
	}
	return public6(ip)
}

// embedded gives the IPv4 address that packets to an IPv6 address end up at.
func embedded(ip netip.Addr) (netip.Addr, bool) {
	b := ip.As16()
	switch {
	case nat64.Contains(ip): // RFC 6052
		return netip.AddrFrom4([4]byte(b[12:])), true
	case sixToFour.Contains(ip): // RFC 3056
		return netip.AddrFrom4([4]byte(b[2:])), true
	}
	return netip.Addr{}, false
}

var (
	nat64     = netip.MustParsePrefix("64:ff9b::/96")
	sixToFour = netip.MustParsePrefix("2002::/16")
	global    = netip.MustParsePrefix("2000::/3") // the only part of IPv6 that is given out for the public internet

	// closed4 are the networks of the IANA special-purpose registry that are not globally reachable, multicast, and the
	// addresses at which clouds have services of their own for the machine.
	closed4 = prefixes(
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
		"192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
		"198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
		"168.63.129.16/32",
	)
	// closed6 are the parts of global that are not: protocol assignments with Teredo, documentation.
	closed6 = prefixes("2001::/23", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20")
)

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, p := range list {
		out[i] = netip.MustParsePrefix(p)
	}
	return out
}

func inside(list []netip.Prefix, ip netip.Addr) bool {
	return slices.ContainsFunc(list, func(n netip.Prefix) bool { return n.Contains(ip) })
}

func public4(ip netip.Addr) bool { return !inside(closed4, ip) }

func public6(ip netip.Addr) bool { return global.Contains(ip) && !inside(closed6, ip) }

// control is called by the dialer with the address that it is about to connect to.
func (p *Policy) control(_ context.Context, network, address string, _ syscall.RawConn) error {
	if network != "tcp4" && network != "tcp6" {
		return failure.New(failure.Forbidden, "Transfers use TCP")
	}
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return failure.Wrap(err, failure.Forbidden, "The address of the other provider cannot be read")
	}
	if len(p.Ports) > 0 && !slices.Contains(p.Ports, int(a.Port())) {
		return failure.New(failure.Forbidden, "Connections to port %d of the other provider are not allowed here", a.Port())
	}
	return p.address(a.Addr())
}

const (
	connectTimeout = 15 * time.Second
	headerBytes    = 64 << 10 // of the answer to the handshake
)

// errRedirect is the answer to a redirect.
var errRedirect = failure.New(failure.BadGateway, "The other provider wants to send the transfer somewhere else, which is not allowed")

// Client makes a client for the handshakes of transfers. Use it for one transfer, and close its idle connections.
func (p *Policy) Client() *http.Client {
	d := &net.Dialer{Timeout: connectTimeout, KeepAlive: 30 * time.Second, ControlContext: p.control}
	return &http.Client{
		Transport: &http.Transport{
			Proxy:       nil,
			DialContext: d.DialContext,
			TLSClientConfig: &tls.Config{
				MinVersion: tls.VersionTLS12, RootCAs: p.Roots, NextProtos: []string{"http/1.1"},
			},
			TLSNextProto:           map[string]func(string, *tls.Conn) http.RoundTripper{}, // a WebSocket needs HTTP/1.1
			TLSHandshakeTimeout:    connectTimeout,
			ResponseHeaderTimeout:  30 * time.Second,
			MaxResponseHeaderBytes: headerBytes,
			DisableKeepAlives:      true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return errRedirect },
	}
}
