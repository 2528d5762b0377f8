package roleuser

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/fileserver"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/instance"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/jobrender"
	"ucloud-im/internal/jobrunner"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/slurm"
)

// compute is the part of an instance that runs jobs. It is there only where the provider has machines.
type compute struct {
	runner *jobrunner.Runner
	local  *jobrunner.Local // nil under Slurm
}

// compute makes the routes of jobs, and takes up jobs that run in this machine.
func (p *parts) startCompute(a *instance.Agent) ([]fileserver.Route, error) {
	start := a.Start()
	if !start.Jobs.Enabled {
		return nil, nil
	}
	server := jobrunner.IPC{Connect: a.Server}
	engine, err := p.engine(a, server)
	if err != nil {
		return nil, err
	}
	openers := map[providerapi.SessionType]jobrunner.Opener{providerapi.SessionShell: p.interactive.openShell}
	if start.Jobs.Web {
		openers[providerapi.SessionWeb] = server.OpenInterface
	}
	if start.Jobs.VNC {
		openers[providerapi.SessionVNC] = server.OpenInterface
	}
	p.compute.runner = jobrunner.New(jobrunner.Options{
		Provider: start.Provider, User: start.User, Home: start.Home, Server: server, Engine: engine, Log: a.Log(), Busy: a.Busy,
		Site: func() (jobrender.Site, error) { return siteOf(a.Start()) },
		Follow: func() drives.Follow {
			follow, err := drives.ParseFollow(a.Start().Files.FollowSymlinks)
			if err != nil {
				return drives.FollowDrive // the stricter one
			}
			return follow
		},
		FindDrive: func(ctx context.Context, id ident.DriveID) (providerapi.Drive, error) { return findDrive(ctx, a, id) },
		Drive:     func(f ipcapi.FoundDrive) providerapi.Drive { return driveOf(start.Provider, f) },
		Openers:   openers, OpenFolder: p.interactive.openFolder,
	})
	return p.compute.runner.Routes(), nil
}

// engine is Slurm, or this machine.
func (p *parts) engine(a *instance.Agent, server jobrunner.Server) (jobrunner.Engine, error) {
	jobs := a.Start().Jobs
	if jobs.Engine != ipcapi.EngineLocal {
		return &jobrunner.Slurm{Client: slurm.New(slurm.Options{
			Binaries: jobs.Binaries, Timeout: time.Duration(jobs.TimeoutMs) * time.Millisecond, Log: a.Log(),
		})}, nil
	}
	p.compute.local = jobrunner.NewLocal(jobrunner.LocalOptions{Dir: stateDir(a.Start()), Server: server, Busy: a.Busy, Log: a.Log()})
	return p.compute.local, p.compute.local.Start()
}

// stateDir is where the jobs of this machine are recorded (XDG base directories: state that outlives restarts).
func stateDir(start ipcapi.Start) string {
	base := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(base) {
		base = filepath.Join(start.Home, ".local", "state")
	}
	return filepath.Join(base, "ucloud", start.Provider, "jobs")
}

// siteOf decodes the site's part of job scripts. It is not kept: it may be large, and is needed rarely.
func siteOf(start ipcapi.Start) (jobrender.Site, error) {
	var site jobrender.Site
	if err := json.Unmarshal(start.Jobs.Render, &site); err != nil {
		return site, failure.Wrap(err, failure.Internal, "The provider's settings for jobs cannot be read")
	}
	return site, nil
}

// giveBack lets the instance end although jobs run in this machine.
func (c *compute) giveBack() {
	if c.local != nil {
		c.local.GiveBack()
	}
}

// close waits for submissions under way.
func (c *compute) close(ctx context.Context) {
	if c.runner != nil {
		c.runner.Close(ctx)
	}
	if c.local != nil {
		c.local.Close()
	}
}
