package jobrunner

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/jobrender"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/slurm"
)

// childEnv makes this program a child of the tests: an instance that runs as a real account and does the one call that
// stands on its standard input.
const childEnv = "JOBRUNNER_CHILD"

// childCall is that call.
type childCall struct {
	Socket   string // of the server
	Home     string
	Drive    string // directory of drive 5123
	Job      *providerapi.Job
	Kill     string // step at which the child kills itself
	Binaries string // of Slurm
	End      string // a job to terminate instead
	Suspend  string // a job to suspend instead
}

// childResult is what came of it.
type childResult struct {
	ID   string
	Why  string
	Kind failure.Kind
}

func runChild() {
	if err := child(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func child() error {
	var call childCall
	if err := json.NewDecoder(os.Stdin).Decode(&call); err != nil {
		return err
	}
	unix.Umask(0o007)
	// As instances do: their limits are not those of jobs.
	if err := unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: 1 << 30, Max: 1 << 30}); err != nil {
		return err
	}
	ctx := context.Background()
	client, err := ipc.Dial(ctx, call.Socket, ipc.DialOptions{ServerUID: func(u ident.UID) bool { return u == 0 }})
	if err != nil {
		return err
	}
	defer client.Close() //nolint:errcheck // the child ends
	server := IPC{Connect: func() (*ipc.Client, error) { return client, nil }}
	driveOf := func(f ipcapi.FoundDrive) providerapi.Drive {
		return providerapi.Drive{
			ID: f.ID, ProviderGeneratedID: f.ProviderGeneratedID,
			Specification: providerapi.DriveSpecification{Product: providerapi.ProductReference{Provider: provider}},
		}
	}
	r := New(Options{
		Provider: provider, User: user, Home: call.Home, Server: server, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Engine: &Slurm{Client: slurm.New(slurm.Options{Binaries: call.Binaries, Timeout: 2 * time.Minute})},
		Site: func() (jobrender.Site, error) {
			return jobrender.Site{Provider: provider, JobEngine: jobrender.EngineSlurm}, nil
		},
		Follow: func() drives.Follow { return drives.FollowDrive },
		Drive:  driveOf,
		FindDrive: func(_ context.Context, id ident.DriveID) (providerapi.Drive, error) {
			return driveOf(ipcapi.FoundDrive{ID: id, ProviderGeneratedID: provider + "-x\n" + call.Drive}), nil
		},
		answerWithin: 2 * time.Minute,
		step: func(name string) {
			if name == call.Kill {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		},
	})
	var res childResult
	switch {
	case call.End != "":
		err = r.Terminate(ctx, []providerapi.FindByID{{ID: call.End}})
	case call.Suspend != "":
		err = r.Suspend(ctx, []providerapi.JobItem{{Job: providerapi.Job{ID: call.Suspend}}})
	default:
		res.ID, err = r.Create(ctx, time.Now(), call.Job)
	}
	if err != nil {
		res.Why, res.Kind = failure.Why(err), failure.KindOf(err)
		fmt.Fprintln(os.Stderr, err)
	}
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	r.Close(wait)
	return json.NewEncoder(os.Stdout).Encode(res)
}
