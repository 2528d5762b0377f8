package config

import (
	"fmt"
	"strings"
)

// listener is one place where some part of the service listens, with the key that says so.
type listener struct {
	key    string
	listen Listen
}

// portRange is a range of ports with its key.
type portRange struct {
	key   string
	ports PortRange
}

// checkListeners finds addresses, sockets and ranges that overlap.
func (l *loader) checkListeners() {
	c := l.config
	listeners, ranges := l.listeners()
	for i, a := range listeners {
		for _, b := range listeners[:i] {
			if a.listen.overlaps(b.listen) {
				l.errorf("X-02", a.key, "give one of them another address", "%s is already taken by %s", a.listen.describe(), b.key)
			}
		}
		if a.listen.Path != "" {
			continue
		}
		for _, r := range ranges {
			if r.ports.Contains(a.listen.TCP.Port()) {
				l.errorf("X-02", a.key, "use a port outside of it", "port %d lies in the range %s of %s", a.listen.TCP.Port(), r.ports, r.key)
			}
		}
	}
	for i, a := range ranges {
		for _, b := range ranges[:i] {
			if a.ports.Overlaps(b.ports) {
				l.errorf("X-02", a.key, "move one of them", "the range %s overlaps the range %s of %s", a.ports, b.ports, b.key)
			}
		}
	}
	if n := int(c.Internal.UserPorts.Last) - int(c.Internal.UserPorts.First) + 1; n < c.UserInstances.MaxInstances {
		l.errorf("X-02", "internal.userPorts", "widen the range or lower userInstances.maxInstances",
			"%d ports are too few for %d instances", n, c.UserInstances.MaxInstances)
	}
	if c.Internal.UserPorts.First < 1024 {
		l.errorf("X-02", "internal.userPorts", "start at 1024 or higher, usually 42000", "ports below 1024 are privileged")
	}
}

func (l *loader) listeners() ([]listener, []portRange) {
	c := l.config
	out := []listener{}
	for i, li := range c.Gateway.Listen {
		out = append(out, listener{fmt.Sprintf("gateway.listen[%d]", i), li})
	}
	add := func(key string, li Listen) {
		if li.IsSet() {
			out = append(out, listener{key, li})
		}
	}
	add("gateway.redirectHttp", c.Gateway.RedirectHTTP)
	add("gateway.metricsListen", c.Gateway.MetricsListen)
	add("metrics.listen", c.Metrics.Listen)
	if c.Health.Listen != c.Metrics.Listen {
		add("health.listen", c.Health.Listen)
	}
	add("ipc.directory", Listen{Path: c.IPCSocket()})
	add("internal.serverListen", c.Internal.ServerListen)
	if c.Profiler.Enabled {
		add("profiler.socket", Listen{Path: string(c.Profiler.Socket)})
	}
	ranges := []portRange{{"internal.userPorts", c.Internal.UserPorts}}
	if s := c.Services.Slurm; s != nil && s.Web.Enabled {
		ranges = append(ranges, portRange{"services.slurm.web.portRange", s.Web.PortRange})
	}
	if d := c.Development.DebugPorts; d != (PortRange{}) {
		ranges = append(ranges, portRange{"development.debugPorts", d})
	}
	return out, ranges
}

// checkGateway checks where each listener may be. The default is that nobody outside the machine can connect.
func (l *loader) checkGateway() {
	c := l.config
	for i, li := range c.Gateway.Listen {
		if li.Path != "" && len(c.Gateway.TrustedProxies) == 0 && c.Gateway.TLS == nil {
			continue // a local proxy reaches the socket; addresses of clients then come from nowhere, which is harmless
		}
		if li.Path == "" && !li.IsLoopback() && c.Gateway.TLS == nil && len(c.Gateway.TrustedProxies) == 0 && !c.Development.Enabled {
			l.warnf("X-01", fmt.Sprintf("gateway.listen[%d]", i), "set gateway.tls, or gateway.trustedProxies if TLS ends in front",
				"%s speaks plain http and no proxy in front is named", li.Address())
		}
	}
	if c.Gateway.RedirectHTTP.Path != "" {
		l.errorf("CFG-5", "gateway.redirectHttp", `write "address:80"`, "a redirect needs a TCP port")
	}
	if m := c.Gateway.MetricsListen; m.IsSet() && !m.IsLoopback() {
		l.errorf("CFG-5", "gateway.metricsListen", "use 127.0.0.1, ::1 or a Unix socket", "the metrics of the gateway are for this machine only")
	}
	for _, k := range []listener{{"metrics.listen", c.Metrics.Listen}, {"health.listen", c.Health.Listen}} {
		if k.key == "health.listen" && k.listen == c.Metrics.Listen {
			continue
		}
		if !k.listen.IsLoopback() && c.Metrics.Auth == nil && len(c.Metrics.AllowedCIDRs) == 0 {
			l.errorf("CFG-5", k.key, "use 127.0.0.1, or set metrics.auth or metrics.allowedCidrs", "%s can be reached by others without a login", k.listen.Address())
		}
	}
	if c.Internal.ServerListen.Path == "" {
		l.errorf("CFG-5", "internal.serverListen", "remove the key, or write unix:/path in a directory of the service account alone",
			"this version connects gateway and server through a Unix socket only")
	} else if !c.Internal.ServerListen.IsLoopback() {
		l.errorf("CFG-5", "internal.serverListen", "use a Unix socket", "%s can be reached by others", c.Internal.ServerListen.Address())
	}
	if !c.Internal.GatewayAddress.IsLoopback() {
		l.errorf("CFG-5", "internal.gatewayAddress", "remove the key", "this version runs gateway and server on the same machine only")
	}
	l.checkSocketPaths()
	if s := c.Services.Slurm; s != nil && s.Web.Enabled {
		l.checkWeb(&s.Web)
	}
}

// maxSocketPath is what we let the path of a Unix socket have: sockaddr_un holds 108 bytes, and a temporary name is made
// beside the final one (unix(7)).
const maxSocketPath = 100

// checkSocketPaths finds sockets whose path is too long, those below ipc.directory once and there.
func (l *loader) checkSocketPaths() {
	c := l.config
	most := c.IPCSocket()
	for _, k := range []struct{ key, path string }{
		{"profiler.socket", string(c.Profiler.Socket)}, {"internal.serverListen", c.Internal.ServerListen.Path},
	} {
		switch {
		case !l.given(k.key) && len(k.path) > len(most):
			most = k.path
		case l.given(k.key) && len(k.path) > maxSocketPath:
			l.errorf("CFG-5", k.key, "use a shorter path", "the path of the socket has %d bytes, %d are possible", len(k.path), maxSocketPath)
		}
	}
	if len(most) > maxSocketPath {
		l.errorf("CFG-5", "ipc.directory", "use a shorter directory", "the path of the socket %s has %d bytes, %d are possible", most, len(most), maxSocketPath)
	}
}

func (l *loader) checkWeb(w *Web) {
	const key = "services.slurm.web"
	if w.Suffix == "" {
		l.errorf("CFG-5", key, "add suffix, such as .apps.example.org", "web is enabled and the suffix is missing")
		return
	}
	if w.Prefix == "" {
		l.errorf("CFG-5", key, "add prefix, such as app-", "web is enabled and the prefix is missing")
		return
	}
	if !strings.HasPrefix(w.Suffix, ".") && !strings.HasPrefix(w.Suffix, "-") || checkAddress(w.Prefix+"x"+w.Suffix) != nil || !strings.Contains(strings.Trim(w.Suffix, "."), ".") {
		l.errorf("CFG-5", key+".suffix", "write a suffix such as .apps.example.org", "prefix, a word and suffix do not make a host name")
	}
}
