package ipcapi

import (
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
)

// Calls made by the gateway. Only the service account may make them: they hand out route keys.
var (
	GatewayRoutes = ipc.Stream[GatewayHello, RouteUpdate]{Name: "gateway.routes", Access: ipc.AccessService}
	GatewayAck    = ipc.Call[RouteAck, Empty]{Name: "gateway.ack", Access: ipc.AccessService}
	GatewayWake   = ipc.Call[Wake, WakeReply]{Name: "gateway.wake", Access: ipc.AccessService}
	GatewayToken  = ipc.Call[TokenQuery, TokenReply]{Name: "gateway.token", Access: ipc.AccessService}
)

// GatewayHello opens the route stream. Several gateway processes may have it open at a time (during an upgrade).
type GatewayHello struct {
	Protocol int      `json:"protocol"`
	Build    string   `json:"build"`
	PID      int      `json:"pid"`
	Listen   []string `json:"listen"`
	Sandbox  string   `json:"sandbox"` // in words
}

// Route is how the gateway reaches one user's instance: always 127.0.0.1:Port.
type Route struct {
	User ident.UCloudUser `json:"user"`
	UID  ident.UID        `json:"uid"`
	Port int              `json:"port"`
	Key  []byte           `json:"key"` // hop token key, 32 bytes
	// Route identifies the route, Generation the process behind it. When only Generation changes the listener is the
	// same socket: the gateway must send nothing new over connections it opened for an older generation.
	Route      uint64 `json:"route"`
	Generation uint64 `json:"generation"`
}

// RouteUpdate changes the gateway's table. Full replaces the table by Put; otherwise Put adds or replaces by user and
// Remove deletes. The gateway applies the update, closes pooled connections that it made stale, and then answers with
// [GatewayAck]; after that not one byte is sent over them.
type RouteUpdate struct {
	Seq    uint64             `json:"seq"`
	Full   bool               `json:"full,omitempty"`
	Put    []Route            `json:"put,omitempty"`
	Remove []ident.UCloudUser `json:"remove,omitempty"`
}

// RouteAck confirms that an update has been applied.
type RouteAck struct {
	Seq uint64 `json:"seq"`
}

// Wake asks for a user's instance. The answer comes when the instance is ready, was refused, or the caller's context
// ends; a second wake of the same user joins the launch under way.
type Wake struct {
	User ident.UCloudUser `json:"user"`
}

// WakeReply has a route, or the reason why there is none as a sentence for the end user.
type WakeReply struct {
	Route *Route `json:"route,omitempty"`
	Why   string `json:"why,omitempty"`
}

// TokenQuery asks whether a one-time token is open for exactly this user, so that an upgrade or download that carries
// only a hint may wake the instance (contract 02 section 2). Hash is the SHA-256 of the token; the token itself does
// not travel.
type TokenQuery struct {
	User ident.UCloudUser `json:"user"`
	Hash []byte           `json:"hash"`
}

// TokenReply tells whether the token is open.
type TokenReply struct {
	Open bool `json:"open"`
}
