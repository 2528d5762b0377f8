package roleuser

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"ucloud-im/internal/browserlink"
	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/fileserver"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/joblogs"
	"ucloud-im/internal/jobrunner"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/sshkeys"
	"ucloud-im/internal/terminal"
)

// interactive is the part of an instance that shows what jobs do, and gives shells.
type interactive struct {
	terminals *terminal.Service
	logs      *joblogs.Service
}

// jobLookUp asks the server about jobs.
type jobLookUp struct{ server func() (*ipc.Client, error) }

func (j jobLookUp) find(ctx context.Context, id string) (ipcapi.JobRecord, error) {
	server, err := j.server()
	if err != nil {
		return ipcapi.JobRecord{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	return ipc.Invoke(ctx, server, ipcapi.JobFind, ipcapi.JobRef{ID: id})
}

// Watch implements [joblogs.Jobs].
func (j jobLookUp) Watch(ctx context.Context, id string, see func(ipcapi.JobRecord) bool) error {
	server, err := j.server()
	if err != nil {
		return err
	}
	records, err := ipc.Open(ctx, server, ipcapi.JobWatch, ipcapi.JobRef{ID: id})
	if err != nil {
		return err
	}
	defer records.Close()
	for {
		rec, files, err := records.Next(ctx)
		for _, f := range files {
			f.Close() //nolint:errcheck // the call has none
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if !see(rec) {
			return nil
		}
	}
}

// startInteractive makes the parts and their routes.
func (p *parts) startInteractive(a host, sessions browserlink.Store) []fileserver.Route {
	start := a.Start()
	jobs := jobLookUp{a.Server}
	p.interactive.terminals = terminal.New(terminal.Options{
		Provider: start.Provider, User: start.User, Sessions: sessions, Log: a.Log(), Settings: terminalSettings(start),
		Account: terminal.Account{UID: start.UID, Name: start.LocalName, Home: start.Home, Shell: start.Shell},
		Job:     jobs.find,
		Drive:   func(ctx context.Context, id ident.DriveID) (providerapi.Drive, error) { return findDrive(ctx, a, id) },
	})
	keys := sshkeys.New(sshkeys.Options{
		Provider: start.Provider, User: start.User, Home: start.Home, Log: a.Log(),
		Settings: func() sshkeys.Settings { return keySettings(a.Start()) },
	})
	routes := append(p.interactive.terminals.Routes(), keys.Routes()...)
	if !start.Jobs.Enabled {
		return append(routes, fileserver.Route{ // otherwise it is one of the calls about jobs
			Method: http.MethodPost, Path: "jobs/openTerminalInFolder", Class: hoptoken.ClassCore, MaxBody: 2 << 20, Serve: p.interactive.serveFolders,
			Intent: jobrunner.OpenTerminalIntent,
		})
	}
	p.interactive.logs = joblogs.New(joblogs.Options{Provider: start.Provider, Jobs: jobs, Log: a.Log(), Replay: start.Jobs.LogReplay})
	return append(routes, p.interactive.logs.Routes()...)
}

func terminalSettings(start ipcapi.Start) terminal.Settings {
	j := start.Jobs
	follow, err := drives.ParseFollow(start.Files.FollowSymlinks)
	if err != nil {
		follow = drives.FollowDrive // the stricter one
	}
	ms := func(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
	return terminal.Settings{
		Enabled: j.Shell, PublicURL: start.Links.PublicURL, Origins: start.Links.Origins, Follow: follow, Shell: j.ShellProgram, Max: j.ShellMax,
		Detach: ms(j.ShellDetachMs), Idle: ms(j.ShellIdleMs), Total: ms(j.ShellMaxMs), SSH: j.ShellHosts == "ssh", Binaries: j.Binaries,
	}
}

// keySettings expands the pattern of the file (package config: ##{ stands for a literal #{).
func keySettings(start ipcapi.Start) sshkeys.Settings {
	file := strings.NewReplacer("##{", "#{", "#{home}", start.Home, "#{localUsername}", start.LocalName, "#{uid}", start.UID.String())
	return sshkeys.Settings{Install: start.Jobs.SSHInstallKeys, File: file.Replace(start.Jobs.SSHKeysFile), Policy: start.Jobs.SSHKeyTypes}
}

// serveFolders opens terminals in folders where there are no jobs (contract 20 section 2.6).
func (i *interactive) serveFolders(w http.ResponseWriter, c *fileserver.Call) error {
	var req providerapi.BulkRequest[providerapi.OpenTerminalRequest]
	if err := c.Decode(w, &req); err != nil {
		return err
	}
	out := providerapi.BulkResponse[providerapi.OpenSession]{}
	err := failure.EachItem(len(req.Items), func(n int) error {
		ses, err := i.terminals.OpenFolder(c.Context(), req.Items[n].Folder)
		out.Responses = append(out.Responses, ses)
		return err
	})
	if err != nil {
		return err
	}
	return c.Write(w, out)
}

// openShell is the opener of terminals in jobs.
func (i *interactive) openShell(ctx context.Context, c jobrunner.SessionCall) (providerapi.OpenSession, error) {
	return i.terminals.OpenJob(ctx, &c.Record, c.Rank)
}

func (i *interactive) openFolder(ctx context.Context, c jobrunner.SessionCall) (providerapi.OpenSession, error) {
	return i.terminals.OpenFolder(ctx, c.Folder)
}

func (i *interactive) configure(start ipcapi.Start) {
	i.terminals.SetSettings(terminalSettings(start))
	if i.logs != nil {
		i.logs.SetReplay(start.Jobs.LogReplay)
	}
}

// leave closes the sockets, so that their clients go to the next instance. Shells stay.
func (i *interactive) leave() {
	if i.terminals != nil {
		i.terminals.Close()
	}
	if i.logs != nil {
		i.logs.Close()
	}
}

// interrupt closes the sockets that there are, for the sake of an upgrade. Their clients open them again.
func (i *interactive) interrupt() {
	if i.terminals != nil {
		i.terminals.Interrupt()
	}
	if i.logs != nil {
		i.logs.Interrupt()
	}
}

// cut ends the shells as well: the user may not have an instance any more, or it is ended on purpose.
func (i *interactive) cut(ctx context.Context) {
	if i.terminals != nil {
		i.terminals.EndAll(ctx)
	}
}
