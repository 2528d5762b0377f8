package jobrunner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/jobrender"
	"ucloud-im/internal/providerapi"
)

// OpenInterface is the [Opener] of web applications and desktops (contract 21 sections 5 and 6). Where the interface is
// decides the server; this process says which port the application has written down, and reads the password of the
// desktop, which only the user can.
func (s IPC) OpenInterface(ctx context.Context, c SessionCall) (providerapi.OpenSession, error) {
	o := ipcapi.WebOpening{Job: c.Record.ID, Rank: c.Rank, Kind: ipcapi.WebKindWeb}
	if c.Type == providerapi.SessionVNC {
		o.Kind = ipcapi.WebKindVNC
	}
	out := providerapi.OpenSession{Type: strings.ToLower(o.Kind), JobID: c.Record.ID, Rank: c.Rank}
	if c.Target != nil {
		o.Target = *c.Target
	}
	if o.Target == "" {
		var err error
		if o.Port, o.TLS, err = allocatedPort(c.Record.Folder); err != nil {
			return out, err
		}
	}
	if o.Kind == ipcapi.WebKindVNC {
		if !c.Record.Own {
			return out, failure.New(failure.Forbidden, "The desktop can be opened by the user who has started the job")
		}
		var err error
		if out.Password, err = desktopPassword(c.Record.Folder); err != nil {
			return out, err
		}
	}
	link, err := invoke(ctx, s, ipcapi.WebOpen, o)
	if err != nil {
		return out, err
	}
	if o.Kind == ipcapi.WebKindVNC {
		out.URL = link.URL
	} else {
		out.RedirectClientTo = link.URL
	}
	return out, nil
}

// maxSmallFile bounds the files that are read here.
const maxSmallFile = 256

// allocatedPort reads where the application says that it listens: a port, and "https" after it if it has TLS. Without the
// file, which a job writes when it starts, the server knows the port by itself.
func allocatedPort(folder string) (port int, tls bool, err error) {
	text, err := readSmall(folder, jobrender.PortFile, false)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) || folder == "" {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	fields := strings.Fields(text)
	if len(fields) == 0 {
		return 0, false, nil // it is being written
	}
	port, err = strconv.Atoi(fields[0])
	if err != nil || port < 1 || port > 65535 || len(fields) > 2 {
		return 0, false, failure.New(failure.Invalid, "The file %s in the folder of the job does not hold a port", jobrender.PortFile)
	}
	return port, len(fields) == 2 && strings.EqualFold(fields[1], "https"), nil
}

// desktopPassword reads the password that was made for this job.
func desktopPassword(folder string) (string, error) {
	text, err := readSmall(folder, jobrender.PasswordFile, true)
	if err != nil {
		return "", failure.Wrap(err, failure.Conflict, "The password of the desktop cannot be read. Start the job again")
	}
	return strings.TrimRight(text, "\r\n"), nil
}

// readSmall reads a small regular file in a folder that others may write to. private: nobody else may read it or have
// made it.
func readSmall(folder, name string, private bool) (string, error) {
	if !filepath.IsAbs(folder) {
		return "", os.ErrNotExist
	}
	f, err := os.OpenFile(filepath.Join(folder, name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || private && (st.Mode&0o077 != 0 || int(st.Uid) != os.Geteuid()) {
		return "", fmt.Errorf("%s is not a file of this job", name)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSmallFile+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxSmallFile {
		return "", fmt.Errorf("%s is too long", name)
	}
	return string(b), nil
}
