package terminal

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/browserlink"
	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
)

// openPatience bounds the opening of a folder.
const openPatience = 4 * time.Second

// driveOf is the drive of a UCloud path.
func driveOf(path string) (ident.DriveID, error) {
	rest := strings.TrimLeft(path, "/")
	if rest == path || len(path) > maxPath {
		return "", failure.New(failure.Invalid, "This is not the path of a folder")
	}
	id, _, _ := strings.Cut(rest, "/")
	return ident.DriveID(id), nil
}

// openFolder opens the folder of a ticket, and gives its local path.
func (s *Service) openFolder(ctx context.Context, set *config, t *ticket) (*os.File, string, error) {
	ref, err := set.drives.Drive(&providerapi.Drive{
		ID: t.Drive, ProviderGeneratedID: t.DrivePG,
		Specification: providerapi.DriveSpecification{Product: providerapi.ProductReference{Provider: t.Provider}},
	})
	if err != nil {
		return nil, "", err
	}
	p, err := ref.Path(t.Path)
	if err != nil {
		return nil, "", err
	}
	type place struct {
		dir  *os.File
		path string
	}
	ctx, cancel := context.WithTimeout(ctx, openPatience)
	defer cancel()
	got, err := browserlink.Do(ctx, s.gate, func() (place, error) {
		dir, path, err := openDir(ref, p)
		if err == nil {
			// Whoever may not enter it would get a shell that starts elsewhere, and wonder.
			if err = unix.Faccessat(int(dir.Fd()), ".", unix.X_OK, 0); err != nil {
				dir.Close() //nolint:errcheck // nothing was written
			}
		}
		return place{dir, path}, err
	}, func(p place) { p.dir.Close() }) //nolint:errcheck // nothing was written
	return got.dir, got.path, browserlink.Refuse(err)
}

func openDir(ref drives.Ref, p drives.Path) (*os.File, string, error) {
	root, err := ref.Open()
	if err != nil {
		return nil, "", err
	}
	defer root.Close() //nolint:errcheck // a descriptor without content
	local, err := root.At(p)
	if err != nil {
		return nil, "", err
	}
	return local.OpenWorkDir()
}

// checkJob decides whether there can be a terminal in the job.
func checkJob(rec *ipcapi.JobRecord, rank int) error {
	nodes := max(1, rec.Replicas)
	if len(rec.Nodes) > 0 {
		nodes = len(rec.Nodes)
	}
	switch {
	case !rec.Own:
		return failure.New(failure.Forbidden, "Only the user whose job it is can open a terminal in it")
	case rank < 0 || rank >= nodes:
		return failure.New(failure.Invalid, "The job has no node of this number")
	case rec.State.Final():
		return failure.New(failure.Invalid, "The job has ended")
	case rec.State != providerapi.JobRunning:
		return failure.New(failure.Invalid, "The job does not run yet")
	case rec.Engine == ipcapi.EngineSlurm && (rank >= len(rec.Nodes) || !plainNode(rec.Nodes[rank])):
		return failure.New(failure.Invalid, "It is not known yet where the job runs, try again in a moment")
	case rec.Engine == ipcapi.EngineSlurm && !plainID(rec.EngineID):
		return failure.Wrap(fmt.Errorf("engine id %q", rec.EngineID), failure.Invalid, "The job has no terminal")
	}
	return nil
}

// plainNode tells whether a text can be the name of a node; it becomes an argument.
func plainNode(s string) bool {
	return s != "" && len(s) <= 255 && s[0] != '-' && s[0] != '.' && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '.' && r != '_'
	})
}

// plainID tells whether a text can be the id of a job in Slurm, also of an element of an array or of a heterogeneous job.
func plainID(s string) bool {
	return s != "" && len(s) <= 64 && s[0] >= '0' && s[0] <= '9' && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < '0' || r > '9') && r != '_' && r != '+'
	})
}

// orderFor says what runs for a ticket, and where; the descriptor is nil for the home directory.
func (s *Service) orderFor(ctx context.Context, set *config, t *ticket, z size) (order, *os.File, error) {
	o := order{
		Key: t.key(), Cols: z.cols, Rows: z.rows, Env: s.environment(),
		DetachMs: set.Detach.Milliseconds(), IdleMs: set.Idle.Milliseconds(), MaxMs: set.Total.Milliseconds(),
	}
	if t.Job == "" {
		dir, path, err := s.openFolder(ctx, set, t)
		if err != nil {
			return o, nil, err
		}
		o.Env = append(o.Env, "PWD="+path)
		s.loginShell(set, &o)
		return o, dir, nil
	}
	rec, err := s.o.Job(ctx, t.Job)
	if err != nil {
		return o, nil, err
	}
	if err := checkJob(&rec, t.Rank); err != nil {
		return o, nil, err
	}
	o.Env = append(o.Env, "UCLOUD_JOB_ID="+rec.ID)
	switch rec.Engine {
	case ipcapi.EngineLocal:
		fd, err := unix.Open(rec.Folder, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return o, nil, failure.Wrap(fmt.Errorf("open the job's folder: %w", err), failure.NotFound, "The folder of the job is not there")
		}
		o.Env = append(o.Env, "PWD="+rec.Folder)
		s.loginShell(set, &o)
		return o, os.NewFile(uintptr(fd), rec.Folder), nil
	case ipcapi.EngineSlurm:
		o.Relay = true
		if o.Path, o.Args, err = s.remoteShell(set, &rec, t.Rank); err != nil {
			return o, nil, err
		}
		dir, err := os.Open(s.o.Account.Home)
		if err != nil {
			dir = nil // srun says where it starts
		}
		return o, dir, nil
	}
	return o, nil, failure.New(failure.Invalid, "The job has no terminal")
}

// environment is that of a shell. The program's own has nothing that is not the user's (package instance).
func (s *Service) environment() []string {
	env := make([]string, 0, 16)
	for _, kv := range s.o.Env() {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case HolderEnv, "TERM", "PWD", "OLDPWD", "SHLVL":
		default:
			env = append(env, kv)
		}
	}
	return append(env, "TERM=xterm-256color")
}

// loginShell sets the program to the user's shell, as a login shell on this machine.
func (s *Service) loginShell(set *config, o *order) {
	o.Path = set.Shell
	if o.Path == "" {
		o.Path = s.o.Account.Shell
	}
	if o.Path == "" {
		o.Path = "/bin/sh" // passwd(5)
	}
	o.Args = []string{"-" + filepath.Base(o.Path)}
}

// remoteShell is the program that brings a shell on a compute node here (contract 21 section 4.3).
func (s *Service) remoteShell(set *config, rec *ipcapi.JobRecord, rank int) (path string, args []string, err error) {
	node := rec.Nodes[rank]
	name := "srun"
	if set.SSH {
		name = "ssh"
	}
	look := name
	if !set.SSH && set.Binaries != "" {
		look = filepath.Join(set.Binaries, name)
	}
	if path, err = exec.LookPath(look); err != nil {
		return "", nil, failure.Wrap(fmt.Errorf("find %s: %w", name, err), failure.Invalid, "The provider cannot open terminals on its nodes: %s is not installed", name)
	}
	if set.SSH {
		return path, []string{"ssh", "-tt", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "--", node}, nil
	}
	shell := set.Shell
	if shell == "" {
		shell = "/bin/bash" // which is there; the login node's shell need not be
	}
	// srun would hand the limits of this process on, among them that of the instance's memory; a shell in a job is to have
	// those of its node, like the job itself.
	return path, []string{
		"srun", "--overlap", "--pty", "--propagate=NONE", "--nodes=1", "--ntasks=1", "--jobid=" + rec.EngineID, "--nodelist=" + node, "--chdir=" + s.o.Account.Home,
		shell, "--login",
	}, nil
}
