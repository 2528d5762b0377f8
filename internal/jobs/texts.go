package jobs

import (
	"strings"
	"time"

	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

const (
	// firstHint is how long a job waits before its user is told why; nextHint is the time between two such messages.
	firstHint, nextHint = time.Minute, 15 * time.Minute
	// hintMoves is by how much the expected start must have moved to be told again.
	hintMoves = time.Hour
	// maxNodesNamed is how many nodes are named in a message.
	maxNodesNamed = 16
)

// hint is what was told last about why a job waits.
type hint struct {
	reason  string
	planned time.Time
	at      time.Time
}

// hint gives a message about why a job waits, if there is something new to tell, and what it told then.
func (m *monitor) hint(now time.Time, j *store.Job, o *Observation) (string, hint) {
	if o.State != providerapi.JobInQueue || j.State != providerapi.JobInQueue || o.Reason == "" || now.Sub(j.SubmittedAt) < firstHint {
		return "", hint{}
	}
	last, told := m.hints[j.Key]
	text := "Waiting: " + o.Reason
	if !told && strings.HasPrefix(j.Message, text) { // told before a restart
		last = hint{reason: o.Reason, planned: o.Planned, at: now}
		m.hints[j.Key] = last
		return "", hint{}
	}
	moved := o.Planned.Sub(last.planned).Abs() >= hintMoves && !o.Planned.IsZero()
	if told && (now.Sub(last.at) < nextHint || last.reason == o.Reason && !moved) {
		return "", hint{}
	}
	if o.Planned.After(now) {
		text += ". Slurm expects to start it around " + o.Planned.UTC().Format("15:04 UTC on 2 January")
	}
	return text, hint{reason: o.Reason, planned: o.Planned, at: now}
}

// message is what the user is told about a new state.
func message(j *store.Job, o *Observation) string {
	switch {
	case o.State == providerapi.JobRunning && len(o.Nodes) > 0 && len(o.Nodes) <= maxNodesNamed:
		return "Started on " + strings.Join(o.Nodes, ", ")
	case o.Word == "CANCELLED" && j.Ending:
		return "The job was cancelled"
	case o.Message != "":
		return o.Message
	}
	return "Slurm says: " + o.Word
}

// gone is how a job has ended that Slurm has forgotten (contract 20 section 5).
func gone(j *store.Job, now time.Time) (providerapi.JobState, string) {
	limit := time.Duration(j.LimitMs) * time.Millisecond
	switch {
	case j.StartedAt.IsZero():
		return providerapi.JobFailure, "Slurm does not know this job any more. It was never seen running."
	case limit > 0 && now.After(j.StartedAt.Add(limit)):
		return providerapi.JobExpired, "Slurm does not know this job any more. Its time is over."
	}
	return providerapi.JobSuccess, "Slurm does not know this job any more. How it ended is not known; see its files."
}
