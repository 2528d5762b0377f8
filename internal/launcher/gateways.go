package launcher

import (
	"encoding/hex"
	"slices"
	"strings"

	"ucloud-im/internal/ipcapi"
)

// Gateways tells what the gateways know: who is connected, and the routes, with their keys if asked for. Keys are for
// root only; the caller sees to that.
func (l *Launcher) Gateways(keys bool) (ipcapi.GatewayState, error) {
	h := l.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	var state ipcapi.GatewayState
	for f := range h.gateways {
		state.Gateways = append(state.Gateways, ipcapi.GatewayInfo{
			PID: f.pid, Build: f.hello.Build, Listen: f.hello.Listen, Sandbox: f.hello.Sandbox, ConnectedAt: f.since, Sent: f.sent, Applied: f.acked,
		})
	}
	for _, r := range h.table {
		info := ipcapi.RouteInfo{User: r.User, UID: r.UID, Port: r.Port, Route: r.Route, Generation: r.Generation}
		if keys {
			info.Key = hex.EncodeToString(r.Key)
		}
		state.Routes = append(state.Routes, info)
	}
	slices.SortFunc(state.Gateways, func(a, b ipcapi.GatewayInfo) int { return a.ConnectedAt.Compare(b.ConnectedAt) })
	slices.SortFunc(state.Routes, func(a, b ipcapi.RouteInfo) int { return strings.Compare(string(a.User), string(b.User)) })
	return state, nil
}
