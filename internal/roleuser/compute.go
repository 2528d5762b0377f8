package roleuser

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/fileserver"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/jobrender"
	"ucloud-im/internal/jobrunner"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/slurm"
)

// compute is the part of an instance that runs jobs. It is there only where the provider has machines.
type compute struct {
	runner *jobrunner.Runner
	local  *jobrunner.Local // nil under Slurm
}

// compute makes the routes of jobs, and takes up jobs that run in this machine.
func (p *parts) startCompute(a host) ([]fileserver.Route, error) {
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
	hook, err := submitHook(a)
	if err != nil {
		return nil, err
	}
	script, err := templateScripts(a)
	if err != nil {
		return nil, err
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
		Hook:      hook,
		Script:    script,
		Openers:   openers, OpenFolder: p.interactive.openFolder,
	})
	return p.compute.runner.Routes(), nil
}

// engine is Slurm, or this machine.
func (p *parts) engine(a host, server jobrunner.Server) (jobrunner.Engine, error) {
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

// submitHook is the site's program before submissions; nil if there is none. Its request lies in a directory of the user.
func submitHook(a host) (func(context.Context, jobrunner.HookCall) ([]string, error), error) {
	start := a.Start()
	j := start.Jobs
	if j.OnSubmit == "" {
		return nil, nil //nolint:nilnil // there is none
	}
	r, prepare, err := programs(a, "requests", 0)
	if err != nil {
		return nil, err
	}
	h, err := r.Hook(scripts.HookOptions{
		Name: scripts.HookJobSubmit, Path: j.OnSubmit, Args: j.OnSubmitArgs, Timeout: time.Duration(j.OnSubmitTimeoutMs) * time.Millisecond,
		Protocol: j.OnSubmitProtocol, Environment: j.OnSubmitEnvironment,
	})
	if err != nil {
		return nil, err
	}
	call := jobrunner.SubmitHook(h, j.OnSubmitIgnore, func() []string {
		site, _ := siteOf(a.Start()) // it could be decoded a moment ago
		return site.Locked
	})
	return func(ctx context.Context, c jobrunner.HookCall) ([]string, error) {
		if err := prepare(); err != nil {
			return nil, err
		}
		return call(ctx, c)
	}, nil
}

// templateScripts starts the programs that templates may call.
func templateScripts(a host) (func(context.Context, string, []byte) ([]byte, error), error) {
	r, prepare, err := programs(a, "template-requests", jobrunner.MaxTemplateOutput)
	if err != nil {
		return nil, err
	}
	call := jobrunner.TemplateScripts(r)
	return func(ctx context.Context, program string, request []byte) ([]byte, error) {
		if err := prepare(); err != nil {
			return nil, err
		}
		return call(ctx, program, request)
	}, nil
}

// programs runs the site's programs as the user. Their requests lie in a directory of the user's, which prepare makes: it has to be
// called before a program is. maxOutput bounds what a program answers; 0 is the usual bound.
func programs(a host, dir string, maxOutput int) (r *scripts.Runner, prepare func() error, err error) {
	start := a.Start()
	spool := filepath.Join(filepath.Dir(stateDir(start)), dir)
	r, err = scripts.New(scripts.Options{
		Provider: start.Provider, Spool: spool, Home: start.Home, MaxOutput: maxOutput, Record: scriptLog{a.Log()}, Log: a.Log(),
	})
	var (
		mu     sync.Mutex // guards opened
		opened bool       // for the life of the process
	)
	return r, func() error {
		mu.Lock()
		defer mu.Unlock()
		if opened {
			return nil
		}
		err := os.MkdirAll(spool, 0o700)
		if err == nil {
			err = r.Open()
		}
		if err != nil {
			return failure.Wrap(err, failure.Internal, "The job could not be submitted: there is no place for its description in your home directory")
		}
		opened = true
		return nil
	}, err
}

// scriptLog writes calls of the site's programs to the instance's log.
type scriptLog struct{ log *slog.Logger }

// RecordScript implements [scripts.Recorder].
func (l scriptLog) RecordScript(_ context.Context, e scripts.Entry) {
	l.log.Info("script", "hook", e.Hook, "path", e.Path, "hash", e.FileHash, "key", e.Key, "result", e.Result, "took", e.Duration,
		"invocation", e.Invocation, "message", e.Message)
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
