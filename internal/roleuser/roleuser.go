// Package roleuser wires one user's instance together: the life of the process is package instance, the calls of Core
// are package fileserver, the work is package files. The program that contains it is started for every connected user,
// so it links neither the database nor the launcher, nor anything that holds the provider's secrets.
package roleuser

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"time"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/files"
	"ucloud-im/internal/fileserver"
	"ucloud-im/internal/instance"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/taskapi"
	"ucloud-im/internal/tasks"
)

// staleTimeout bounds the question whether the groups of this process are old.
const staleTimeout = 2 * time.Second

// Run is the program: it serves until it is told to end, is idle, or ctx ends. The result is the exit code.
func Run(ctx context.Context) int {
	var service *files.Service
	var work *tasks.Manager
	err := instance.Run(ctx, instance.Options{
		Handler: func(a *instance.Agent) (http.Handler, error) {
			start := a.Start()
			settings, err := fileSettings(start.Files)
			if err != nil {
				return nil, err
			}
			work = tasks.New(tasks.Options{Server: a.Server, Log: a.Log(), Busy: a.Busy})
			service = files.New(files.Options{
				Provider: start.Provider, Settings: settings, Log: a.Log(), Tasks: work,
				StaleGroups: func(ctx context.Context) bool { return askReplacement(ctx, a) },
			})
			// All kinds of tasks are registered now: what an earlier instance has left can go on.
			if err := work.Resume(ctx); err != nil {
				return nil, err
			}
			return fileserver.New(fileserver.Options{
				Provider: start.Provider, Start: start, Files: service, Log: a.Log(), Routes: []fileserver.Route{taskapi.Route(work)},
			}), nil
		},
		Configure: func(a *instance.Agent) {
			settings, err := fileSettings(a.Start().Files)
			if err != nil {
				a.Log().Error("the new settings are not usable, keeping the old ones", "error", err)
				return
			}
			service.SetSettings(settings)
		},
	})
	if service != nil {
		closing, cancel := context.WithTimeout(context.Background(), time.Second)
		_ = work.Close(closing)    // what is not given back now is taken up a little later
		_ = service.Close(closing) // an operation that hangs in the kernel ends with the process
		cancel()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "ucloud-user:", err)
		return 1
	}
	return 0
}

func fileSettings(s ipcapi.FilesSettings) (files.Settings, error) {
	follow, err := drives.ParseFollow(s.FollowSymlinks)
	if err != nil {
		return files.Settings{}, err
	}
	return files.Settings{
		Follow: follow, MaxBrowseEntries: s.MaxBrowseEntries, JobFolder: s.JobFolder, Unmanaged: s.Unmanaged,
	}, nil
}

// askReplacement asks the server to compare the groups of this process with those the account has now.
func askReplacement(ctx context.Context, a *instance.Agent) bool {
	server, err := a.Server()
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, staleTimeout)
	defer cancel()
	reply, err := ipc.Invoke(ctx, server, ipcapi.InstanceRecheck, ipcapi.Empty{})
	return err == nil && reply.Replaced
}
