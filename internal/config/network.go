package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// Host is the address of a web service: scheme http or https, DNS name or IP address, port. It is written as a map
// {address, port, scheme} or as a URL without path.
type Host struct {
	Address string
	Port    int
	Scheme  string
}

// URL is the base URL, without a trailing slash and without the scheme's usual port.
func (h Host) URL() string {
	if h.Address == "" {
		return ""
	}
	address := h.Address
	if strings.Contains(address, ":") {
		address = "[" + address + "]"
	}
	if h.Port != schemePort(h.Scheme) {
		address += ":" + strconv.Itoa(h.Port)
	}
	return h.Scheme + "://" + address
}

// String is [Host.URL].
func (h Host) String() string { return h.URL() }

// WebSocketURL is the base URL with ws or wss.
func (h Host) WebSocketURL() string { return "ws" + strings.TrimPrefix(h.URL(), "http") }

// HostPort is address:port for dialling; IPv6 addresses are in brackets.
func (h Host) HostPort() string { return net.JoinHostPort(h.Address, strconv.Itoa(h.Port)) }

// TLS tells whether the scheme is https.
func (h Host) TLS() bool { return h.Scheme == "https" }

// IsLoopback tells whether the address names this machine's loopback interface.
func (h Host) IsLoopback() bool { return isLoopbackName(h.Address) }

func isLoopbackName(address string) bool {
	if strings.EqualFold(address, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(address)
	return err == nil && a.IsLoopback()
}

func schemePort(scheme string) int {
	if scheme == "http" {
		return 80
	}
	return 443
}

var dnsForm = regexp.MustCompile(`^(?i:[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?)(\.(?i:[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?))*\.?$`)

// checkAddress accepts a DNS name or a literal address.
func checkAddress(text string) error {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		return nil
	}
	if len(text) > 253 || !dnsForm.MatchString(text) {
		return bad("write a DNS name or an IP address, without scheme and port", "%s is not a host name or IP address", quote(text))
	}
	return nil
}

func parseHostURL(text string) (Host, error) {
	const remedy = "write https://name, https://name:port, or a map {address, port, scheme}"
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return Host{}, bad(remedy, "%s is not the URL of a host", quote(text))
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return Host{}, bad(remedy, "the scheme %s is neither http nor https", quote(u.Scheme))
	case u.User != nil:
		return Host{}, bad(remedy, "the URL contains a user name")
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return Host{}, bad(remedy, "the URL has a path, query or fragment; only scheme, host and port are used")
	}
	h := Host{Address: u.Hostname(), Scheme: u.Scheme, Port: schemePort(u.Scheme)}
	if err := checkAddress(h.Address); err != nil {
		return Host{}, err
	}
	if p := u.Port(); p != "" {
		n, err := strconv.Atoi(p)
		if err != nil || n < 1 || n > 65535 {
			return Host{}, bad("use a port from 1 to 65535", "%s is not a port", quote(p))
		}
		h.Port = n
	}
	return h, nil
}

// Endpoint is the address of a service that is not on the web: a database or a login node. For a database the address
// may also be the directory of a Unix socket.
type Endpoint struct {
	Address string
	Port    int
}

// HostPort is address:port for dialling.
func (e Endpoint) HostPort() string { return net.JoinHostPort(e.Address, strconv.Itoa(e.Port)) }

// String is address:port, or the socket directory.
func (e Endpoint) String() string {
	switch {
	case e.Address == "":
		return ""
	case e.IsSocket():
		return e.Address
	}
	return e.HostPort()
}

// IsSocket tells whether the address is the directory of a Unix socket.
func (e Endpoint) IsSocket() bool { return strings.HasPrefix(e.Address, "/") }

// IsLocal tells whether the connection does not leave this machine.
func (e Endpoint) IsLocal() bool { return e.IsSocket() || isLoopbackName(e.Address) }

// URL is an absolute http or https URL.
type URL string

// String is the URL.
func (u URL) String() string { return string(u) }

func parseURL(text string) (URL, error) {
	const remedy = "write a full URL such as https://login.example.org/path"
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http" && u.Scheme != "ldaps" && u.Scheme != "ldap"):
		return "", bad(remedy, "%s is not a URL", quote(text))
	case u.User != nil:
		return "", bad("put the login into secrets.yml", "the URL contains a user name or password")
	}
	return URL(text), nil
}

// Listen is where a service accepts connections: "address:port" with a literal IP address, or "unix:/path".
type Listen struct {
	TCP  netip.AddrPort // valid for TCP
	Path string         // absolute path of a Unix socket, or empty
}

// Network is "unix", "tcp4" or "tcp6"; with [Listen.Address] it is what [net.Listen] wants.
func (l Listen) Network() string {
	switch {
	case l.Path != "":
		return "unix"
	case l.TCP.Addr().Is4():
		return "tcp4"
	}
	return "tcp6"
}

// Address is the socket path, or address:port.
func (l Listen) Address() string {
	if l.Path != "" {
		return l.Path
	}
	return l.TCP.String()
}

// String is the form of the configuration file, empty for the zero value.
func (l Listen) String() string {
	switch {
	case l.Path != "":
		return "unix:" + l.Path
	case !l.TCP.IsValid():
		return ""
	}
	return l.TCP.String()
}

// IsSet tells whether there is an address at all.
func (l Listen) IsSet() bool { return l.Path != "" || l.TCP.IsValid() }

// IsLoopback tells whether nobody outside this machine can connect.
func (l Listen) IsLoopback() bool { return l.Path != "" || l.TCP.Addr().IsLoopback() }

// IsWildcard tells whether all interfaces are meant.
func (l Listen) IsWildcard() bool { return l.Path == "" && l.TCP.Addr().IsUnspecified() }

func parseListen(text string) (Listen, error) {
	const remedy = `write "address:port" with a literal IP address, or "unix:/path"`
	if p, ok := strings.CutPrefix(text, "unix:"); ok {
		sock, err := parsePath(p, "")
		if err != nil {
			return Listen{}, err
		}
		return Listen{Path: string(sock)}, nil
	}
	ap, err := netip.ParseAddrPort(text)
	if err != nil || ap.Addr().Zone() != "" {
		return Listen{}, bad(remedy, "%s is not an address to listen on", quote(text))
	}
	if ap.Port() == 0 {
		return Listen{}, bad("use a port from 1 to 65535", "port 0 in %s", quote(text))
	}
	return Listen{TCP: netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())}, nil
}

// overlaps tells whether both cannot be bound at the same time. Addresses of different families never overlap: bound as
// [Listen.Network] says, [::] takes no IPv4 connections.
func (l Listen) overlaps(o Listen) bool {
	if l.Path != "" || o.Path != "" {
		return l.Path == o.Path
	}
	if !l.TCP.IsValid() || !o.TCP.IsValid() || l.TCP.Port() != o.TCP.Port() {
		return false
	}
	a, b := l.TCP.Addr(), o.TCP.Addr()
	return a == b || a.Is4() == b.Is4() && (l.IsWildcard() || o.IsWildcard())
}

func (l Listen) describe() string { return fmt.Sprintf("%s %s", l.Network(), l.Address()) }
