package localengine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"ucloud-im/internal/providerapi"
)

// Recover takes up the jobs that an earlier instance has left. It is called once, before anything is submitted. Jobs that
// were recorded and did not start are dropped: they never will.
func (e *Engine) Recover() error {
	entries, err := os.ReadDir(e.o.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for jobs: %w", err)
	}
	for _, entry := range entries {
		dir := filepath.Join(e.o.Dir, entry.Name())
		if strings.HasPrefix(entry.Name(), draftPrefix) {
			os.RemoveAll(dir) //nolint:errcheck // an incomplete record; the next instance tries again
			continue
		}
		j, err := load(dir)
		if err != nil {
			e.o.Log.Warn("the record of a job is not readable", "path", dir, "error", err)
			continue
		}
		e.take(j)
	}
	return nil
}

// take takes up one job.
func (e *Engine) take(j *job) {
	if !j.known() {
		if os.Mkdir(filepath.Join(j.dir, fileClaim), 0o700) == nil || !j.soon() {
			e.o.Log.Warn("a job was recorded and did not start", "job", j.spec.Job)
			if err := j.drop(); err != nil {
				e.o.Log.Warn("its record cannot be removed", "job", j.spec.Job, "error", err)
			}
			return
		}
	}
	j.state = providerapi.JobRunning
	if _, ok := j.has(fileSuspended); ok {
		j.state, j.message = providerapi.JobSuspended, "The job is suspended"
	}
	if _, ok := j.has(fileCancelled); ok {
		j.cancelled = true
		if err := e.terminateLocked(j); err != nil { // nobody else knows the job yet
			e.o.Log.Warn("a job cannot be ended", "job", j.spec.Job, "error", err)
		}
	}
	e.watch(j)
}

// claimTimeout is how long a supervisor may take from its claim to saying who it is. Whoever waits here is an instance that
// starts, so it is short; a supervisor that is slower than this finds its directory gone and ends.
const claimTimeout = 2 * time.Second

// soon waits for a supervisor that has claimed the job and is about to say who it is.
func (j *job) soon() bool {
	for deadline := time.Now().Add(claimTimeout); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if j.known() {
			return true
		}
	}
	return false
}
