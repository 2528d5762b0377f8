package localengine

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"ucloud-im/internal/providerapi"
)

// Names in the directory of a job.
const (
	fileJob       = "job.json"
	fileScript    = "script"
	fileClaim     = "claim"
	fileProcess   = "process"
	fileExpired   = "expired"
	fileCancelled = "cancelled"
	fileSuspended = "suspended"
	fileExit      = "exit"
)

// maxRecord bounds what is read of a file. They are the user's own, but nobody gains by a gigabyte of them.
const maxRecord = 1 << 20

// read gives the content of one of the files.
func (j *job) read(name string) ([]byte, error) {
	path := filepath.Join(j.dir, name)
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxRecord {
		return nil, fmt.Errorf("%s is not what was written", name)
	}
	return os.ReadFile(path)
}

// has tells whether a mark is set, and since when.
func (j *job) has(name string) (time.Time, bool) {
	info, err := os.Lstat(filepath.Join(j.dir, name))
	if err != nil {
		return time.Time{}, false
	}
	return info.ModTime(), true
}

// mark sets a mark. It may be set already.
func (j *job) mark(name string) error {
	f, err := os.OpenFile(filepath.Join(j.dir, name), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// write makes the record of a job: a directory that is complete as soon as it has its name.
func (j *job) write() error {
	raw, err := json.Marshal(j.spec)
	if err != nil {
		return err
	}
	parent, name := filepath.Split(j.dir)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return err
	}
	draft, err := os.MkdirTemp(parent, draftPrefix+name+"-")
	if err != nil {
		return err
	}
	err = os.WriteFile(filepath.Join(draft, fileJob), raw, 0o600)
	if err == nil {
		err = os.WriteFile(filepath.Join(draft, fileScript), j.spec.Script, 0o700) //nolint:gosec // it is a program
	}
	if err == nil {
		err = os.Rename(draft, j.dir)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(draft))
	}
	return nil
}

// draftPrefix starts the names of directories that are not complete.
const draftPrefix = "."

// load reads the record of a job.
func load(dir string) (*job, error) {
	j := &job{dir: dir}
	raw, err := j.read(fileJob)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, &j.spec); err != nil {
		return nil, err
	}
	if j.spec.ID != filepath.Base(dir) {
		return nil, fmt.Errorf("the record is that of job %q", j.spec.ID)
	}
	return j, nil
}

// outcome says how a job has ended whose process is gone.
func (j *job) outcome(now time.Time) (state providerapi.JobState, message string, ended time.Time) {
	code, at, known := j.exitCode()
	if !known {
		at = now
	}
	if _, expired := j.has(fileExpired); expired {
		return providerapi.JobExpired, "The time limit of the job is over", at
	}
	if _, cancelled := j.has(fileCancelled); cancelled {
		return providerapi.JobSuccess, "The job was cancelled", at
	}
	switch {
	case known && code == 0:
		return providerapi.JobSuccess, "The job has finished, exit code 0", at
	case known && code > 128:
		return providerapi.JobFailure, fmt.Sprintf("The job was ended by signal %d", code-128), at
	case known:
		return providerapi.JobFailure, fmt.Sprintf("The job has failed, exit code %d", code), at
	case j.process.boot != bootID():
		return providerapi.JobFailure, "The machine was restarted while the job ran", at
	}
	return providerapi.JobFailure, "The job was killed", at
}

func (j *job) exitCode() (code int, at time.Time, ok bool) {
	raw, err := j.read(fileExit)
	if err != nil {
		return 0, time.Time{}, false
	}
	code, err = strconv.Atoi(strings.TrimSpace(string(raw)))
	at, _ = j.has(fileExit)
	return code, at, err == nil
}

// drop removes the record. It loses its name first: a supervisor that comes late, or in the middle, then finds nothing to
// claim and no place to say who it is, and ends.
func (j *job) drop() error {
	parent, name := filepath.Split(j.dir)
	gone := filepath.Join(parent, draftPrefix+name)
	if err := os.Rename(j.dir, gone); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	return os.RemoveAll(gone)
}
