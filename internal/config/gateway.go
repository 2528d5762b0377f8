package config

import "net/netip"

// Gateway is the ingress (contract 40 section 4).
type Gateway struct {
	Listen         []Listen       `key:"listen" default:"[\"0.0.0.0:8889\"]" flags:"nonempty" reload:"restart" doc:"Public listeners. 0.0.0.0 and :: are allowed here."`
	TLS            *TLS           `key:"tls" defaultDoc:"none: plain HTTP, TLS ends at a proxy in front" doc:"Terminate TLS here."`
	RedirectHTTP   Listen         `key:"redirectHttp" reload:"restart" defaultDoc:"none" doc:"Plain HTTP listener that only redirects to selfPublic."`
	TrustedProxies []netip.Prefix `key:"trustedProxies" default:"[]" doc:"Networks whose forwarding headers are believed. Needed when TLS ends in front."`
	Limits         GatewayLimits  `key:"limits" doc:"Limits against slow and oversized clients."`
	AccessLog      AccessLog      `key:"accessLog" doc:"One line per request. Tokens in query strings and cookies are removed."`
	Hold           Hold           `key:"hold" doc:"Requests that wait while an instance is woken."`
	StateDirectory Path           `key:"stateDirectory" flags:"added" reload:"restart" defaultDoc:"= stateDirectory" doc:"Where the gateway keeps its last route table: in a directory gateway of its own, mode 0700."`
	Sandbox        string         `key:"sandbox" flags:"added" reload:"restart" enum:"auto,require,off" default:"auto" doc:"Take the gateway's rights to files away with Landlock: it reads its configuration and certificates, writes its own state, and starts nothing but its successor. auto goes on without it where the kernel has none, and says so; require does not start then."`
	MetricsListen  Listen         `key:"metricsListen" flags:"added" reload:"restart" defaultDoc:"none" doc:"Prometheus and health endpoint of the gateway process; metrics.listen is that of the server. Loopback only."`
}

// TLS is a certificate with its key. Both files are read again when they change.
type TLS struct {
	Certificate Path      `key:"certificate" need:"yes" exists:"file" doc:"Certificate chain, PEM. Names must cover selfPublic and, with web access, * and the suffix."`
	Key         SecretRef `key:"key" need:"yes" doc:"Private key, PEM: { file: /path } or just the path."`
	MinVersion  string    `key:"minVersion" enum:"1.2,1.3" default:"\"1.2\"" flags:"numeric" doc:"Lowest TLS version."`
	HSTS        Duration  `key:"hsts" flags:"added" default:"30d" min:"0s" max:"730d" doc:"How long browsers remember to use nothing but TLS for selfPublic, whatever the port (Strict-Transport-Security, RFC 6797); 0 = do not tell them. Not for hosts of web applications, and not with development.enabled."`
}

// GatewayLimits bound what one client can use.
type GatewayLimits struct {
	MaxHeaderBytes      Size     `key:"maxHeaderBytes" default:"64KiB" min:"4KiB" max:"1MiB" doc:"Size of request line and headers."`
	HeaderTimeout       Duration `key:"headerTimeout" default:"10s" max:"10m" doc:"Time for the headers to arrive."`
	IdleTimeout         Duration `key:"idleTimeout" default:"5m" max:"1d" doc:"Idle time of a connection. WebSocket streams are exempt while alive."`
	MaxConnectionsPerIP int      `key:"maxConnectionsPerIp" default:"0" min:"0" doc:"Connections of one address; 0 = no limit. An IPv6 address counts as its /64, here and below."`

	RequestsPerSecondPerIP    int  `key:"requestsPerSecondPerIp" flags:"added" default:"200" min:"0" max:"1000000" doc:"Requests of one address; 0 = no limit. More are answered with 429. Behind trustedProxies it is the client's address. Requests with UCloud/Core's verified token, and connections that had one, are exempt from all limits by address."`
	RequestsPerSecondPerUser  int  `key:"requestsPerSecondPerUser" flags:"added" default:"100" min:"0" max:"1000000" doc:"Requests of browsers to one user's instance, or to one interface of a job; 0 = no limit. Addresses at which the user was answered before have an allowance of their own."`
	ConnectionsPerSecondPerIP int  `key:"connectionsPerSecondPerIp" flags:"added" default:"100" min:"0" max:"1000000" doc:"New connections of one address; 0 = no limit. More are closed. Not for trustedProxies, and not for addresses from which UCloud/Core has called in the last 15 minutes."`
	Burst                     int  `key:"burst" flags:"added" default:"10" min:"1" max:"600" doc:"How many seconds' worth of the rates above may come at once."`
	FailuresPerMinutePerIP    int  `key:"failuresPerMinutePerIp" flags:"added" default:"300" min:"0" max:"1000000" doc:"Refused requests (401, 403, 404: wrong tokens, links that do not exist) of one address; 0 = no limit. After that the address gets 429 until the minute is over; users who were answered there before are not affected."`
	MaxBrowserBody            Size `key:"maxBrowserBody" flags:"added" default:"32MiB" min:"17MiB" max:"1GiB" doc:"Body of one request of a browser to an instance. The web client sends uploads in pieces of 16 MB. Uploads over WebSockets are not affected."`
	ResetsPerConnection       int  `key:"resetsPerConnection" flags:"added" default:"200" min:"10" max:"1000000" doc:"Requests that the client of one HTTP/2 connection may take back before it is closed; ten more in each second."`
}

// AccessLog says how requests are logged.
type AccessLog struct {
	Enabled bool   `key:"enabled" default:"true" doc:"Write the log."`
	Format  string `key:"format" enum:"json,text" default:"json" doc:"json or text."`
}

// Hold bounds the requests that wait while an instance is woken (contract 02 point 9.22).
type Hold struct {
	Enabled bool     `key:"enabled" default:"true" doc:"Wait instead of answering 449 at once."`
	Timeout Duration `key:"timeout" default:"4s" max:"4500ms" doc:"Time from the arrival of a request; UCloud/Core gives up at 5 s."`
	Max     int      `key:"max" default:"1000" min:"1" max:"1000000" doc:"Waiting requests of the whole gateway; more get 449."`
}

// Internal is how gateway, server and instances reach each other.
type Internal struct {
	ServerListen   Listen     `key:"serverListen" reload:"restart" defaultDoc:"unix:/run/ucloud/private/server.sock (private/server.sock below ipc.directory)" doc:"Server API behind the gateway. A Unix socket in a directory that only the service account may enter; TCP is refused by this version."`
	UserPorts      PortRange  `key:"userPorts" reload:"restart" default:"42000-49999" doc:"Loopback ports of user instances; the server binds the first free one. No other configured port may lie in it."`
	GatewayAddress netip.Addr `key:"gatewayAddress" reload:"restart" default:"127.0.0.1" doc:"Address at which the gateway reaches the server when it is on another host. Only loopback in this version."`
}

// Metrics is the Prometheus endpoint of the server.
type Metrics struct {
	Listen       Listen         `key:"listen" reload:"restart" default:"127.0.0.1:7867" doc:"Prometheus endpoint. Other than loopback needs auth or allowedCidrs."`
	Auth         *MetricsAuth   `key:"auth" defaultDoc:"none" doc:"Login for the endpoint."`
	AllowedCIDRs []netip.Prefix `key:"allowedCidrs" default:"[]" doc:"Networks that may read it."`
}

// MetricsAuth is a bearer token for the metrics endpoint.
type MetricsAuth struct {
	Token SecretRef `key:"token" need:"yes" flags:"added" doc:"Bearer token."`
}

// Health is where /healthz and /readyz are.
type Health struct {
	Listen Listen `key:"listen" reload:"restart" defaultDoc:"= metrics.listen" doc:"/healthz and /readyz."`
}

// Profiler is the pprof endpoint.
type Profiler struct {
	Enabled bool `key:"enabled" reload:"restart" default:"false" doc:"Offer profiles."`
	Socket  Path `key:"socket" reload:"restart" defaultDoc:"/run/ucloud/private/pprof.sock (private/pprof.sock below ipc.directory)" doc:"Unix socket, mode 0600."`
}
