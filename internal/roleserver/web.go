package roleserver

import (
	"context"
	"net/url"
	"sync"
	"time"

	"ucloud-im/internal/config"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/jobs"
	"ucloud-im/internal/products"
	"ucloud-im/internal/slurm"
	"ucloud-im/internal/websession"
)

// web is what interfaces of jobs need.
type web struct {
	interfaces *websession.Service // nil without jobs
}

// buildWeb makes the server's side of interfaces of jobs. It comes after the jobs.
func (s *server) buildWeb(context.Context) error {
	if s.jobs == nil {
		return nil
	}
	o := websession.Options{
		Provider: s.config.Load().Provider.ID.String(), Store: s.store, Tokens: s.tokens, Jobs: s.jobs, Log: s.log,
		Settings: func() websession.Settings { return webSettings(s.config.Load()) },
		Account: func(user ident.UCloudUser) (ident.UID, bool) {
			account, ok := s.users.Account(user)
			return account.UID, ok
		},
	}
	if s.slurm != nil {
		o.Address = (&nodeAddresses{client: s.slurm}).address
	}
	var err error
	if s.interfaces, err = websession.New(o); err != nil {
		return err
	}
	s.jobs.OnChange(func(c jobs.Change) { s.interfaces.JobChanged(c.ID) })
	return nil
}

// jobFeatures are what Core may ask of jobs, besides logs and terminals.
func jobFeatures(cfg *config.Config, f *products.Features) {
	c := cfg.Services.Slurm
	if c == nil {
		return
	}
	set := webSettings(cfg)
	f.Jobs, f.Web, f.VNC, f.TimeExtension = true, set.Web, set.VNC, c.TimeExtension && !cfg.Development.FakeSlurm
}

// webSettings are the settings of interfaces.
func webSettings(cfg *config.Config) websession.Settings {
	public := cfg.Provider.Hosts.SelfPublic
	out := websession.Settings{
		Scheme: public.Scheme, PublicURL: public.URL(),
		OwnHosts: []string{public.Address, cfg.Provider.Hosts.Self.Address, cfg.Provider.Hosts.UCloud.Address, cfg.Provider.Hosts.UCloudPublic.Address},
	}
	if u, err := url.Parse(out.PublicURL); err == nil && u.Port() != "" {
		out.Port = ":" + u.Port()
	}
	c := cfg.Services.Slurm
	if c == nil || !c.Web.Enabled {
		return out
	}
	out.Web, out.VNC = true, c.VNC.Enabled
	out.Prefix, out.Suffix = c.Web.Prefix, c.Web.Suffix
	out.PortMin, out.PortMax = int(c.Web.PortRange.First), int(c.Web.PortRange.Last)
	return out
}

// interfacesLost ends what a user has open who is not connected any more.
func (s *server) interfacesLost(ctx context.Context, user ident.UCloudUser) {
	if s.interfaces == nil {
		return
	}
	if err := s.interfaces.UserLost(ctx, user); err != nil {
		s.log.Error("interfaces of jobs stay open for a disconnected user until the next look", "user", user, "error", err)
	}
}

// interfacesChecked looks whether users may still see the jobs whose interfaces they have open. Nothing waits for it.
func (s *server) interfacesChecked(users []ident.UCloudUser) {
	if s.interfaces == nil || len(users) == 0 {
		return
	}
	s.background.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		if err := s.interfaces.UsersChanged(ctx, users...); err != nil {
			s.log.Error("interfaces of jobs were not looked at after a change of members, the next look does it", "error", err)
		}
	})
}

// How long the address of a node is remembered, how long Slurm may take to tell it, and how long an old one does when Slurm
// does not: interfaces are looked at one after the other.
const (
	addressLife    = 10 * time.Minute
	addressTimeout = 5 * time.Second
	addressAgain   = time.Minute
)

// nodeAddresses remembers where nodes are reached.
type nodeAddresses struct {
	client *slurm.Client

	mu    sync.Mutex
	known map[string]nodeAddress
}

type nodeAddress struct {
	address string
	until   time.Time
}

func (n *nodeAddresses) address(ctx context.Context, node string) (string, error) {
	now := time.Now()
	n.mu.Lock()
	a, ok := n.known[node]
	n.mu.Unlock()
	if ok && now.Before(a.until) {
		return a.address, nil
	}
	ctx, cancel := context.WithTimeout(ctx, addressTimeout)
	defer cancel()
	address, err := n.client.NodeAddress(ctx, node)
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil {
		if !ok {
			return "", err
		}
		n.known[node] = nodeAddress{address: a.address, until: now.Add(addressAgain)} // slurmctld is away for a moment
		return a.address, nil
	}
	if n.known == nil || len(n.known) > 100_000 {
		n.known = map[string]nodeAddress{}
	}
	n.known[node] = nodeAddress{address: address, until: now.Add(addressLife)}
	return address, nil
}
