// Package roleuser wires one user's instance together: the life of the process is package instance, the calls of Core
// are package fileserver, the work is package files, uploads and downloads. The program that contains it is started for
// every connected user, so it links neither the database nor the launcher, nor anything that holds the provider's
// secrets.
package roleuser

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"time"

	"ucloud-im/internal/browserlink"
	"ucloud-im/internal/downloads"
	"ucloud-im/internal/drives"
	"ucloud-im/internal/files"
	"ucloud-im/internal/fileserver"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/instance"
	"ucloud-im/internal/intentclient"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/taskapi"
	"ucloud-im/internal/tasks"
	"ucloud-im/internal/terminal"
	"ucloud-im/internal/transfers"
	"ucloud-im/internal/transfers/dial"
	"ucloud-im/internal/uploads"
	"ucloud-im/internal/usage/locks"
	"ucloud-im/internal/usage/scan"
)

const (
	// staleTimeout bounds the question whether the groups of this process are old.
	staleTimeout = 2 * time.Second
	// closeTimeout bounds the end: an operation that hangs in the kernel ends with the process.
	closeTimeout = time.Second
)

// Run is the program: it serves until it is told to end, is idle, or ctx ends. The result is the exit code.
func Run(ctx context.Context) int {
	if mode := os.Getenv(terminal.HolderEnv); mode != "" {
		return holdTerminal(mode)
	}
	var p parts
	err := instance.Run(ctx, instance.Options{
		Handler:   func(a *instance.Agent) (http.Handler, error) { return p.build(a) },
		Configure: func(a *instance.Agent) { p.configure(a) },
		Keys:      func(*instance.Agent) { p.intents.KeysChanged() },
		Ending:    p.giveBack, Quiet: p.interactive.interrupt, Stopping: p.interactive.cut,
	})
	p.close()
	if err != nil {
		fmt.Fprintln(os.Stderr, "ucloud-user:", err)
		return 1
	}
	return 0
}

// holdTerminal is the program as the holder of a shell (package terminal).
func holdTerminal(mode string) int {
	if err := instance.Harden(); err != nil {
		fmt.Println(err) // whoever starts it reads this
		return 1
	}
	return terminal.RunHolder(mode)
}

// host is what the parts need of the process that they are in: an [instance.Agent].
type host interface {
	Start() ipcapi.Start
	Log() *slog.Logger
	Server() (*ipc.Client, error)
	Away() time.Duration
	Busy() (done func())
}

// parts is what an instance consists of. All of it is there once build has succeeded.
type parts struct {
	intents   *intentclient.Client
	tasks     *tasks.Manager
	files     *files.Service
	uploads   *uploads.Service
	downloads *downloads.Service
	transfers *transfers.Service
	compute   compute

	interactive interactive
	endScans    func(ctx context.Context) // ends what measure has begun, and waits for it
}

// measure lets the instance measure directories for the server.
func (p *parts) measure(agent scan.Agent) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		agent.Run(ctx)
	}()
	p.endScans = func(ctx context.Context) {
		cancel()
		select {
		case <-done:
		case <-ctx.Done(): // the kernel holds it
		}
	}
}

// build makes the handler of all requests, and takes up what an earlier instance has left.
func (p *parts) build(a host) (http.Handler, error) {
	start := a.Start()
	set, err := settingsOf(start)
	if err != nil {
		return nil, err
	}
	p.intents = startIntents(a)
	sessions := browserlink.Client{Server: a.Server}
	p.tasks = tasks.New(tasks.Options{Server: a.Server, Log: a.Log(), Busy: a.Busy})
	p.tasks.Register(kindFailedUpload, runFailedUpload)
	writable := locks.New(a.Server).Writable
	p.files = files.New(files.Options{
		Provider: start.Provider, Settings: set.files, Log: a.Log(), Tasks: p.tasks, Writable: writable,
		StaleGroups: func(ctx context.Context) bool { return askReplacement(ctx, a) },
		FindDrive:   func(ctx context.Context, id ident.DriveID) (providerapi.Drive, error) { return findDrive(ctx, a, id) },
		Doubt:       p.intents.Requires,
		DrivePlace: func(ctx context.Context, owner ident.Owner, category string) (files.DrivePlace, error) {
			return drivePlace(ctx, a, owner, category)
		},
	})
	p.transfers = transfers.New(transfers.Options{
		Provider: start.Provider, User: start.User, Sessions: sessions, Tasks: p.tasks, Log: a.Log(), Settings: set.transfers,
		Update: func(ctx context.Context, t ipcapi.TransferProgress) (ipcapi.TransferVerdict, error) {
			server, err := a.Server()
			if err != nil {
				return ipcapi.TransferVerdict{}, err
			}
			return ipc.Invoke(ctx, server, ipcapi.TransferUpdate, t)
		},
	})
	receiving := uploads.Options{
		Provider: start.Provider, User: start.User, Sessions: sessions, Log: a.Log(), Settings: set.uploads, Failed: p.uploadFailed(),
		Writable: writable,
	}
	receiving.Wills = func(ctx context.Context) ([][]byte, error) { return sessions.Wills(ctx, ipcapi.PurposeUpload) }
	p.transfers.Hook(&receiving)
	p.uploads = uploads.New(receiving)
	p.transfers.Attach(p.uploads)
	p.downloads = downloads.New(downloads.Options{
		Provider: start.Provider, User: start.User, Sessions: sessions, Log: a.Log(), Settings: set.downloads,
	})
	p.measure(scan.Agent{Server: a.Server, Log: a.Log()})
	// All kinds of tasks are registered now: what an earlier instance has left can go on.
	if err := p.tasks.Resume(context.Background()); err != nil {
		return nil, err
	}
	p.uploads.TakeWills()
	sessionRoutes := p.startInteractive(a, sessions)
	jobs, err := p.startCompute(a)
	if err != nil {
		return nil, err
	}
	return fileserver.New(fileserver.Options{
		Provider: start.Provider, Start: start, Files: p.files, Log: a.Log(), Intents: p.intents,
		Routes: slices.Concat(p.uploads.Routes(), p.downloads.Routes(), p.transfers.Routes(), []fileserver.Route{taskapi.Route(p.tasks)}, jobs, sessionRoutes),
	}), nil
}

// configure takes over settings that have changed.
func (p *parts) configure(a host) {
	p.intents.SetSettings(a.Start().Intents)
	set, err := settingsOf(a.Start())
	if err != nil {
		a.Log().Error("the new settings are not usable, keeping the old ones", "error", err)
		return
	}
	p.files.SetSettings(set.files)
	p.uploads.SetSettings(set.uploads)
	p.downloads.SetSettings(set.downloads)
	p.transfers.SetSettings(set.transfers)
	p.interactive.configure(a.Start())
}

// giveBack hands unfinished tasks to the server, for the next instance. Requests that need a new one are refused from now
// on, in a way that has Core repeat them.
func (p *parts) giveBack(ctx context.Context) {
	p.interactive.leave()
	p.compute.giveBack()
	_ = p.tasks.Close(ctx)
	tally, cancel := context.WithTimeout(ctx, tallyTimeout)
	defer cancel()
	p.intents.Close(tally)
}

// close ends what still runs. It is called after the last request.
func (p *parts) close() {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	p.interactive.leave() // if it did not come to giveBack
	p.compute.close(ctx)
	if p.endScans != nil {
		p.endScans(ctx) // what was measured so far is handed in
	}
	if p.uploads != nil {
		_ = p.uploads.Close(ctx) // what is not complete is sent again
		p.transfers.Close()
	}
	if p.files != nil {
		_ = p.tasks.Close(ctx) // if it did not come to giveBack
		_ = p.files.Close(ctx)
	}
}

// settings are the settings of all parts.
type settings struct {
	files     files.Settings
	uploads   uploads.Settings
	downloads downloads.Settings
	transfers transfers.Settings
}

func settingsOf(start ipcapi.Start) (settings, error) {
	f, l := start.Files, start.Links
	follow, err := drives.ParseFollow(f.FollowSymlinks)
	if err != nil {
		return settings{}, err
	}
	t := start.Transfers
	policy, err := dial.New(t.Networks, t.Ports, t.Plain, t.Roots)
	if err != nil {
		return settings{}, err
	}
	return settings{
		transfers: transfers.Settings{
			Follow: follow, Outgoing: t.Outgoing, Incoming: t.Incoming, Peers: t.Peers, MaxBytes: t.MaxBytes, Connections: t.Connections,
			Dial: policy,
		},
		files: files.Settings{
			Follow: follow, MaxBrowseEntries: f.MaxBrowseEntries, JobFolder: f.JobFolder, Unmanaged: f.Unmanaged,
			TrashRetention:   time.Duration(f.TrashRetentionMs) * time.Millisecond,
			SearchMaxResults: f.SearchMaxResults, SearchTimeout: time.Duration(f.SearchTimeoutMs) * time.Millisecond, SearchExclude: f.SearchExclude,
		},
		uploads: uploads.Settings{
			Follow: follow, PublicURL: l.PublicURL, Origins: l.Origins, Streams: l.UploadStreams, Bytes: l.UploadBytes, NoSync: l.UploadNoSync,
		},
		downloads: downloads.Settings{
			Follow: follow, PublicURL: l.PublicURL, Origins: l.Origins, NoDirectories: l.NoDirectories, NoRanges: l.NoRanges,
		},
	}, nil
}

// askReplacement asks the server to compare the groups of this process with those the account has now.
func askReplacement(ctx context.Context, a host) bool {
	server, err := a.Server()
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, staleTimeout)
	defer cancel()
	reply, err := ipc.Invoke(ctx, server, ipcapi.InstanceRecheck, ipcapi.Empty{})
	return err == nil && reply.Replaced
}
