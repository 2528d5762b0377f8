package jobrunner

import (
	"context"
	"strings"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
)

// maxSessions is how many interfaces one request may ask for: a job has one for each node and one for each target.
const maxSessions = 1000

// Open opens sessions of jobs, one for each item in order (contract 20 section 2.5).
func (r *Runner) Open(ctx context.Context, items []providerapi.InteractiveSessionRequest) ([]providerapi.OpenSession, error) {
	if len(items) > maxSessions {
		return nil, failure.New(failure.Invalid, "More than %d sessions at once", maxSessions)
	}
	records := map[string]ipcapi.JobRecord{} // the items are nearly always of one job
	return r.openEach(len(items), func(i int) (providerapi.OpenSession, error) {
		return r.open(ctx, &items[i], records)
	}, func(i int) providerapi.OpenSession {
		return nowhere(items[i].SessionType, items[i].Job.ID, items[i].Rank)
	})
}

// nowhere is a session that leads nowhere, with the members that its kind must have: a terminal with it is refused, a link
// is an empty page.
func nowhere(kind providerapi.SessionType, job string, rank int) providerapi.OpenSession {
	const blank = "about:blank"
	s := providerapi.OpenSession{Type: strings.ToLower(string(kind)), JobID: job, Rank: rank}
	switch kind {
	case providerapi.SessionWeb:
		s.RedirectClientTo = blank
	case providerapi.SessionVNC:
		s.URL, s.Password = blank, "-"
	default:
		s.Type, s.SessionIdentifier = "shell", "-"
	}
	return s
}

// openEach tries all items. As long as one succeeds, those that fail are answered with a session that leads nowhere: an
// error would hide the others (contract 21 section 8 point 10).
func (r *Runner) openEach(n int, open func(i int) (providerapi.OpenSession, error), nowhere func(i int) providerapi.OpenSession) ([]providerapi.OpenSession, error) {
	sessions := make([]providerapi.OpenSession, n)
	var first error
	failed := 0
	for i := range n {
		s, err := open(i)
		if err != nil {
			failed++
			if first == nil {
				first = err
			}
			s = nowhere(i)
			r.log.Info("a session cannot be opened", "job", s.JobID, "rank", s.Rank, "type", s.Type, "error", err)
		}
		sessions[i] = s
	}
	if n > 0 && failed == n {
		return nil, first
	}
	return sessions, nil
}

func (r *Runner) open(ctx context.Context, it *providerapi.InteractiveSessionRequest, records map[string]ipcapi.JobRecord) (providerapi.OpenSession, error) {
	var none providerapi.OpenSession
	switch it.SessionType {
	case providerapi.SessionShell, providerapi.SessionWeb, providerapi.SessionVNC:
	default:
		return none, failure.New(failure.Invalid, "There is no such kind of session")
	}
	opener := r.o.Openers[it.SessionType]
	if opener == nil {
		return none, failure.New(failure.Invalid, "This provider offers no sessions of this kind")
	}
	rec, ok := records[it.Job.ID]
	if !ok {
		var err error
		if rec, err = r.find(ctx, it.Job.ID); err != nil {
			return none, err
		}
		records[it.Job.ID] = rec
	}
	// Whoever may edit the job, which Core has checked, may use its web interface; the server looks at the membership (contract 21
	// section 5.2). A shell runs as this user, whom Slurm lets into own jobs alone. Of desktops [IPC.OpenInterface] decides.
	if it.SessionType == providerapi.SessionShell && !rec.Own {
		return none, failure.New(failure.Forbidden, "Only the person who has submitted the job can open a terminal in it")
	}
	nodes := max(1, rec.Replicas)
	if len(rec.Nodes) > 0 {
		nodes = len(rec.Nodes)
	}
	if it.Rank < 0 || it.Rank >= nodes {
		return none, failure.New(failure.Invalid, "The job has no node of this number")
	}
	switch {
	case rec.State.Final():
		return none, errEnded
	case rec.State != providerapi.JobRunning:
		return none, failure.New(failure.Invalid, "The job does not run yet")
	}
	return opener(ctx, SessionCall{Record: rec, Rank: it.Rank, Type: it.SessionType, Target: it.Target, Job: &it.Job})
}

// OpenFolders opens terminals in folders (contract 20 section 2.6).
func (r *Runner) OpenFolders(ctx context.Context, items []providerapi.OpenTerminalRequest) ([]providerapi.OpenSession, error) {
	if len(items) > maxSessions {
		return nil, failure.New(failure.Invalid, "More than %d sessions at once", maxSessions)
	}
	finder := r.newPathFinder()
	return r.openEach(len(items), func(i int) (providerapi.OpenSession, error) {
		return r.openFolder(ctx, finder, items[i].Folder)
	}, func(i int) providerapi.OpenSession { return nowhere(providerapi.SessionShell, items[i].Folder, 0) })
}

func (r *Runner) openFolder(ctx context.Context, finder *pathFinder, folder string) (providerapi.OpenSession, error) {
	if r.o.OpenFolder == nil {
		return providerapi.OpenSession{}, failure.New(failure.Invalid, "This provider offers no terminals")
	}
	local, err := finder.directory(ctx, folder)
	if err != nil {
		return providerapi.OpenSession{}, err
	}
	return r.o.OpenFolder(ctx, SessionCall{Type: providerapi.SessionShell, Folder: folder, LocalFolder: local})
}
