package rolegateway

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"

	"ucloud-im/internal/config"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/gateway"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
)

// followWeb applies what the server says about interfaces of jobs until the connection or ctx ends. It gives false for a
// server that has none: then the connection is for the rest.
func (c *controller) followWeb(ctx context.Context, client *ipc.Client) bool {
	updates, err := ipc.Open(ctx, client, ipcapi.GatewayWeb, c.hello)
	if err != nil {
		c.log.Warn("interfaces of jobs cannot be followed", "error", err)
		return true
	}
	defer updates.Close()
	var whole ipcapi.WebUpdate
	for {
		u, _, err := updates.Next(ctx)
		if err == nil {
			whole.Full = whole.Full || u.Full
			whole.Put, whole.Remove = append(whole.Put, u.Put...), append(whole.Remove, u.Remove...)
			if u.More {
				continue
			}
			var out gateway.WebUpdate
			if out, err = convertWeb(whole); err == nil {
				c.web.Apply(out)
				whole = ipcapi.WebUpdate{}
				continue
			}
		}
		if failure.Is(err, failure.NotFound) {
			c.web.Apply(gateway.WebUpdate{Full: true})
			return false
		}
		if ctx.Err() == nil {
			c.log.Warn("interfaces of jobs are not followed any more", "error", err)
		}
		return true
	}
}

func convertWeb(u ipcapi.WebUpdate) (gateway.WebUpdate, error) {
	out := gateway.WebUpdate{Full: u.Full}
	for _, r := range u.Put {
		route, err := convertWebRoute(r)
		if err != nil {
			return out, err
		}
		out.Put = append(out.Put, route)
	}
	for _, r := range u.Remove {
		if out.Remove == nil {
			out.Remove = map[string]uint64{}
		}
		out.Remove[r.ID] = r.Version
	}
	return out, nil
}

func convertWebRoute(r ipcapi.WebRoute) (gateway.WebRoute, error) {
	out := gateway.WebRoute{
		ID: r.ID, Kind: gateway.WebKind(r.Kind), Host: r.Host, Cookie: r.Cookie, Address: r.Address, Port: r.Port, UID: r.UID, TLS: r.TLS, Version: r.Version,
	}
	if r.ID == "" || r.Port < 0 || r.Port > 65535 || (r.Kind == ipcapi.WebKindWeb) != (r.Host != "" && r.Cookie != "") {
		return out, fmt.Errorf("server sent a bad interface %q", r.ID)
	}
	for _, g := range r.Grants {
		if len(g.Hash) != sha256.Size {
			return out, fmt.Errorf("server sent a bad session of the interface %q", r.ID)
		}
		out.Grants = append(out.Grants, gateway.WebGrant{Hash: [sha256.Size]byte(g.Hash), ExpiresAt: g.ExpiresAt})
	}
	return out, nil
}

// WebExchange implements [gateway.Control].
func (c *controller) WebExchange(ctx context.Context, kind gateway.WebKind, host string, hash [sha256.Size]byte) (*gateway.WebSession, error) {
	client := c.client.Load()
	if client == nil {
		return nil, errAway
	}
	reply, err := ipc.Invoke(ctx, client, ipcapi.GatewayWebExchange, ipcapi.WebExchange{Kind: string(kind), Host: host, Hash: hash[:]})
	if err != nil {
		if refusal(err) {
			return nil, nil
		}
		return nil, err
	}
	route, err := convertWebRoute(reply.Route)
	if err != nil || reply.Value == "" {
		return nil, errors.Join(errors.New("the answer to an exchange is not usable"), err)
	}
	return &gateway.WebSession{Value: reply.Value, ExpiresAt: reply.ExpiresAt, Route: route}, nil
}

// webRouteFile is where the last table of interfaces is kept.
func (p *process) webRouteFile() string {
	return filepath.Join(stateDirectory(p.config), "gateway-interfaces.json")
}

// webSettings are the host names of web applications.
func webSettings(c *config.Config) gateway.Web {
	slurm := c.Services.Slurm
	if slurm == nil || !slurm.Web.Enabled {
		return gateway.Web{}
	}
	return gateway.Web{
		Prefix: slurm.Web.Prefix, Suffix: slurm.Web.Suffix, Secure: c.Provider.Hosts.SelfPublic.Scheme == "https",
		UCloud: c.Provider.Hosts.UCloudPublic.URL(),
	}
}
