package jobrunner

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/jobrender"
	"ucloud-im/internal/providerapi"
)

// Modes before the umask, which is 0007 in instances (contract 22 section 4). The password is the user's alone.
const (
	folderMode   = 0o770
	scriptMode   = 0o770
	fileMode     = 0o660
	passwordMode = 0o600
)

// ours are the files that this package writes, which go away again with a job that was not submitted.
var ours = []string{jobrender.ScriptFile, jobrender.TemplateFile, jobrender.ParametersFile, jobrender.PasswordFile}

// place is where the folder of a job is to be.
type place struct {
	ref    drives.Ref
	parent string // name of the folder of all jobs
	id     string
	local  string // path of the job's folder
	// output is the UCloud path, empty outside of drives.
	output string
}

// homeDrive stands for the home directory where there is no drive.
const homeDrive = "home"

// placeOf is the place that the server has decided on.
func (r *Runner) placeOf(g ipcapi.JobGrant, id string) (place, error) {
	d := providerapi.Drive{
		ID: homeDrive, ProviderGeneratedID: r.o.Provider + "-" + homeDrive + "\n" + r.o.Home,
		Specification: providerapi.DriveSpecification{Product: providerapi.ProductReference{Provider: r.o.Provider}},
	}
	if g.Base != nil {
		d = r.o.Drive(*g.Base)
	}
	ref, err := drives.New(r.o.Provider, r.o.Follow()).Drive(&d)
	if err != nil {
		return place{}, fmt.Errorf("the drive for job folders: %w", err)
	}
	if err := drives.CheckName(g.Folder); err != nil {
		return place{}, fmt.Errorf("the name of the folder of jobs: %w", err)
	}
	p := place{ref: ref, parent: g.Folder, id: id, local: path.Join(ref.Base(), g.Folder, id)}
	if g.Base != nil {
		p.output = "/" + string(ref.ID()) + "/" + drives.Escape(g.Folder) + "/" + id
	}
	return p, nil
}

// folder is the folder of a job, open.
type folder struct {
	root   *drives.Root
	parent *drives.Dir
	dir    *drives.Dir
	id     string
	made   bool // by this submission
}

func (f *folder) close() {
	for _, d := range []*drives.Dir{f.dir, f.parent} {
		if d != nil {
			d.Close()
		}
	}
	f.root.Close() //nolint:errcheck // nothing was written
}

// makeFolder makes the folder. One that is there already is an error, unless an earlier attempt of the same job has left it,
// which has submitted nothing.
func makeFolder(p place, again bool) (*folder, error) {
	root, err := p.ref.Open()
	if err != nil {
		return nil, folderError(err)
	}
	f := &folder{root: root, id: p.id}
	if err := f.open(p, again); err != nil {
		f.close()
		return nil, folderError(err)
	}
	return f, nil
}

func (f *folder) open(p place, again bool) error {
	base, err := p.ref.Path("/" + string(p.ref.ID()))
	if err != nil {
		return err
	}
	local, err := f.root.At(base)
	if err != nil {
		return err
	}
	top, err := local.OpenPathDir()
	if err != nil {
		return err
	}
	defer top.Close()
	if err := top.Mkdir(p.parent, folderMode); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	if f.parent, err = top.OpenChild(p.parent); err != nil { // follows no link
		return err
	}
	switch err := f.parent.Mkdir(p.id, folderMode); {
	case err == nil:
		f.made = true
	case !errors.Is(err, unix.EEXIST) || !again:
		return err
	}
	if f.dir, err = f.parent.OpenChild(p.id); err != nil {
		return err
	}
	self, err := f.dir.Self()
	if err != nil {
		return err
	}
	if self.Owner != uint32(os.Geteuid()) { //nolint:gosec // uids are 32 bits
		return errStranger
	}
	return nil
}

var errStranger = errors.New("the folder belongs to somebody else")

// folderError is for the user. Where the folder is, is no secret, but the path on disk is.
func folderError(err error) error {
	why := "The job's folder could not be made"
	switch {
	case errors.Is(err, unix.EEXIST), errors.Is(err, errStranger):
		why = "The job's folder is there already, and does not belong to this job"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.EROFS):
		why = "The job's folder could not be made: you may not write to the drive in which the folders of jobs are"
	case errors.Is(err, unix.EDQUOT), errors.Is(err, unix.ENOSPC):
		why = "The job's folder could not be made: there is no space left"
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR):
		why = "The job's folder could not be made: something else, or a link, has the name of the folder of jobs"
	case errors.Is(err, unix.ENOENT):
		why = "The job's folder could not be made: the drive is not there"
	}
	return failure.Wrap(err, failure.Internal, "%s", why)
}

// write puts a file into the folder. It is complete as soon as it has its name, and replaces what had it.
func (f *folder) write(name string, content []byte, mode uint32) error {
	d, err := f.dir.NewDraft(name, mode)
	if err != nil {
		return folderError(err)
	}
	defer d.Discard()
	if _, err := d.WriteAt(content, 0); err != nil {
		return folderError(err)
	}
	if err := d.Finish(); err != nil {
		return folderError(err)
	}
	if err := d.Replace(name); err != nil {
		return folderError(err)
	}
	return nil
}

// fill writes what belongs into the folder before the job starts (contract 22 section 5).
func (f *folder) fill(s *jobrender.Script, password bool) error {
	if password {
		if err := f.write(jobrender.PasswordFile, []byte(newPassword()), passwordMode); err != nil {
			return err
		}
	}
	for _, file := range []struct {
		name    string
		content []byte
	}{{jobrender.TemplateFile, s.Template}, {jobrender.ParametersFile, s.Parameters}} {
		if file.content == nil {
			continue
		}
		if err := f.write(file.name, file.content, fileMode); err != nil {
			return err
		}
	}
	return f.write(jobrender.ScriptFile, s.Text, scriptMode)
}

// newPassword is one for a remote desktop: the protocol takes eight characters (RFC 6143 section 7.2.2).
func newPassword() string { return rand.Text()[:8] }

// remove takes the folder away, if it holds nothing but what was written here.
func (f *folder) remove() error {
	for _, name := range ours {
		if err := f.dir.Remove(name, false); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	if err := f.parent.Remove(f.id, true); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}
