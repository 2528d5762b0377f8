package gateway

import (
	"net/http"
	"net/netip"
	"strings"
)

// client is where a request came from, for the log and for IM/Server.
type client struct {
	ip    netip.Addr // invalid if unknown
	https bool
}

// forwardingHeaders are believed from trusted proxies only, and never passed on as they came.
var forwardingHeaders = []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "X-Real-Ip"}

// clientOf tells who the client is. peer is the other end of the connection, invalid for a Unix socket, whose file mode
// says who may connect and which therefore counts as a trusted proxy. Behind trusted proxies it is the last address that
// is not one of them: everything to the left of it was written by the client (gateway.trustedProxies).
func clientOf(r *http.Request, peer netip.Addr, trusted []netip.Prefix) client {
	c := client{ip: peer, https: r.TLS != nil}
	if peer.IsValid() && !containsAddr(trusted, peer) {
		return c
	}
	hops, proto := forwardedHops(r.Header)
	if len(hops) == 0 {
		if ip, err := netip.ParseAddr(r.Header.Get("X-Real-Ip")); err == nil {
			c.ip = ip.Unmap()
		}
	}
	for i := len(hops) - 1; i >= 0; i-- {
		ip, ok := parseNode(hops[i])
		if !ok {
			break // what stands further left cannot be attributed
		}
		c.ip = ip
		if !containsAddr(trusted, ip) {
			break
		}
	}
	switch {
	case equalFold(proto, "https"):
		c.https = true
	case equalFold(proto, "http"):
		c.https = false
	}
	return c
}

// forwardedHops gives the addresses of X-Forwarded-For, else of Forwarded (RFC 7239), and the scheme that the nearest
// proxy saw. In this order, since proxies that write the first, nearly all, pass on what a client has written into the
// second: it could be anybody then.
func forwardedHops(h http.Header) (hops []string, proto string) {
	if values := h["Forwarded"]; len(values) > 0 && len(h["X-Forwarded-For"]) == 0 {
		for _, element := range strings.Split(strings.Join(values, ","), ",") {
			node := ""
			for pair := range strings.SplitSeq(element, ";") {
				name, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
				value = strings.Trim(value, `"`)
				switch strings.ToLower(name) {
				case "for":
					node = value
				case "proto":
					proto = value
				}
			}
			hops = append(hops, node)
		}
		return hops, proto
	}
	if values := h["X-Forwarded-For"]; len(values) > 0 {
		hops = strings.Split(strings.Join(values, ","), ",")
	}
	if values := h["X-Forwarded-Proto"]; len(values) > 0 {
		last := values[len(values)-1]
		proto = strings.TrimSpace(last[strings.LastIndexByte(last, ',')+1:])
	}
	return hops, proto
}

// parseNode reads an address with or without port and brackets.
func parseNode(s string) (netip.Addr, bool) {
	s = strings.TrimSpace(s)
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap(), true
	}
	ip, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	return ip.Unmap(), err == nil
}

// hostAllowed tells whether the Host of a request, without its port, is one of ours, ignoring case (contract 02 point
// 9.16).
func hostAllowed(host string, s *Settings) bool {
	name := hostName(host)
	if name == "" {
		return false
	}
	for _, allowed := range s.Hosts {
		if equalFold(name, allowed) {
			return true
		}
	}
	if !s.LoopbackHosts {
		return false
	}
	ip, err := netip.ParseAddr(name)
	return equalFold(name, "localhost") || err == nil && ip.Unmap().IsLoopback()
}

// hostName removes the port, the brackets of an IPv6 address and a final dot. It gives "" for what is not a host.
func hostName(host string) string {
	if strings.HasPrefix(host, "[") {
		inner, port, ok := strings.Cut(host[1:], "]")
		if ip, err := netip.ParseAddr(inner); !ok || err != nil || !ip.Is6() || !isPort(port) {
			return ""
		}
		return inner
	}
	name := host
	if i := strings.IndexByte(host, ':'); i >= 0 {
		name = host[:i]
		if !isPort(host[i:]) {
			return ""
		}
	}
	for i := range len(name) {
		if !isUnreserved(name[i]) {
			return ""
		}
	}
	return strings.TrimSuffix(name, ".")
}

// isPort tells whether s is empty or ":" and digits.
func isPort(s string) bool {
	if s == "" {
		return true
	}
	if s[0] != ':' || len(s) < 2 || len(s) > 6 {
		return false
	}
	for i := 1; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}
