package slurm

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// Meaning is what a state of Slurm means at UCloud, with a sentence for the person who waits for the job.
type Meaning struct {
	State    providerapi.JobState
	Sentence string
}

// States says what states mean (contract 22 section 6.2). It is not changed after it was made.
type States struct {
	table map[string]Meaning
}

// builtin is the table of the contract with its corrections: a program that fails, or has no memory, has failed, and jobs
// that are held wait.
var builtin = map[string]Meaning{
	"PENDING":       {providerapi.JobInQueue, "The job waits in the queue"},
	"CONFIGURING":   {providerapi.JobInQueue, "The nodes of the job are being prepared"},
	"RESV_DEL_HOLD": {providerapi.JobInQueue, "The job is held, because its reservation was removed. The support of the provider can release it"},
	"REQUEUE_FED":   {providerapi.JobInQueue, "The job moves to another cluster and waits in the queue"},
	"SUSPENDED":     {providerapi.JobInQueue, "The job is suspended and goes on later"},
	"REQUEUED":      {providerapi.JobInQueue, "The job was put back into the queue and starts again from the beginning"},
	"RESIZING":      {providerapi.JobInQueue, "The job is about to change its size"},
	"REQUEUE_HOLD":  {providerapi.JobInQueue, "The job was put back into the queue and is held there. The support of the provider can release it"},
	"SPECIAL_EXIT":  {providerapi.JobInQueue, "The job was put back into the queue because of its exit code, and is held there. The support of the provider can release it"},
	"RUNNING":       {providerapi.JobRunning, "The job is running"},
	"COMPLETING":    {providerapi.JobRunning, "The job is about to end"},
	"SIGNALING":     {providerapi.JobRunning, "The job receives a signal"},
	"STAGE_OUT":     {providerapi.JobRunning, "The job is about to end and copies its results"},
	"STOPPED":       {providerapi.JobRunning, "The job is stopped and keeps its nodes"},
	"COMPLETED":     {providerapi.JobSuccess, "The job has completed"},
	"CANCELLED":     {providerapi.JobSuccess, "The job was cancelled"},
	"FAILED":        {providerapi.JobFailure, "The job has failed"},
	"OUT_OF_MEMORY": {providerapi.JobFailure, "The job needed more memory than it had and was ended. Choose a machine type with more memory"},
	"BOOT_FAIL":     {providerapi.JobFailure, "The job has failed, because a node could not be started. This is no fault of the job: submit it again"},
	"NODE_FAIL":     {providerapi.JobFailure, "The job has failed, because a node failed. This is no fault of the job: submit it again"},
	"LAUNCH_FAILED": {providerapi.JobFailure, "The job could not be started on its nodes. This is no fault of the job: submit it again"},
	"REVOKED":       {providerapi.JobFailure, "The job was withdrawn, because another cluster has taken it"},
	"PREEMPTED":     {providerapi.JobFailure, "The job was ended to make room for one with a higher priority"},
	"DEADLINE":      {providerapi.JobExpired, "The job was ended at its deadline"},
	"TIMEOUT":       {providerapi.JobExpired, "The job has used all of its time and was ended"},
}

// meanings are the words of the configuration (services.slurm.states).
var meanings = map[string]providerapi.JobState{
	"success": providerapi.JobSuccess, "failure": providerapi.JobFailure, "expired": providerapi.JobExpired,
	"inQueue": providerapi.JobInQueue, "running": providerapi.JobRunning,
}

// NewStates makes the table with changes of the site: from states of Slurm to success, failure, expired, inQueue or
// running. States that the table does not have can be added.
func NewStates(changes map[string]string) (*States, error) {
	s := &States{table: maps.Clone(builtin)}
	for _, name := range slices.Sorted(maps.Keys(changes)) {
		state, ok := meanings[changes[name]]
		word := strings.ToUpper(name)
		if !ok || word == "" || strings.Trim(word, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") != "" {
			return nil, fmt.Errorf("the state %q cannot mean %q", name, changes[name])
		}
		m, known := s.table[word]
		if !known {
			m.Sentence = "The state of the job in Slurm is " + word
		}
		m.State = state
		s.table[word] = m
	}
	return s, nil
}

// Actors are the people who may have cancelled a job, so that its user can be told who did.
type Actors struct {
	Owner   ident.UID // whose job it is
	Service ident.UID // the service account of this module
}

// Of says what the state of a job means. The second result is false for states that nobody has told what they mean: they
// change nothing.
func (s *States) Of(j Job, who Actors) (Meaning, bool) {
	m, ok := s.table[j.State]
	if !ok {
		return Meaning{}, false
	}
	switch j.State {
	case "PENDING":
		m.Sentence = waiting(j)
	case "CANCELLED":
		m.Sentence = cancelled(j, who)
	case "FAILED":
		m.Sentence = failed(j)
	case "TIMEOUT":
		if j.Limit > 0 {
			m.Sentence = fmt.Sprintf("The job has used all of its time (%s) and was ended. Ask for more time, or let it save its work on the way", j.Limit)
		}
	}
	return m, true
}

func cancelled(j Job, who Actors) string {
	switch {
	case !j.HasBy:
		return "The job was cancelled"
	case j.By == who.Owner:
		return "The job was cancelled by its user"
	case who.Service != 0 && j.By == who.Service:
		return "The job was cancelled by UCloud"
	}
	return "The job was cancelled by an operator of the cluster"
}

func failed(j Job) string {
	switch {
	case j.Signal != 0:
		return fmt.Sprintf("The job has failed: its script was ended by signal %d. Its output may say why", j.Signal)
	case j.ExitCode != 0:
		return fmt.Sprintf("The job has failed: its script ended with exit code %d. Its output may say why", j.ExitCode)
	}
	return "The job has failed"
}

// reasons are what users read about the commonest reasons why a job waits.
var reasons = map[string]string{
	"Priority":                 "others come first",
	"Resources":                "it is next, as soon as nodes are free",
	"BeginTime":                "its begin time has not come yet",
	"Dependency":               "another job has to end first",
	"DependencyNeverSatisfied": "the job that it depends on has failed, so that it never starts",
	"JobHeldUser":              "it is held by its user",
	"JobHeldAdmin":             "it is held by an operator of the cluster",
	"PartitionDown":            "its part of the cluster is down",
	"PartitionInactive":        "its part of the cluster is out of service",
	"PartitionNodeLimit":       "it asks for more nodes than a job may have, so that it never starts",
	"PartitionTimeLimit":       "it asks for more time than a job may have, so that it never starts",
	"ReqNodeNotAvail":          "nodes that it needs are out of service",
	"Reservation":              "its reservation has not begun yet",
	"JobArrayTaskLimit":        "enough tasks of the array run already",
	"Licenses":                 "licences are in use",
	"BadConstraints":           "no node is as it asks for, so that it never starts",
	"Cleaning":                 "its last run is being cleaned up",
	"NodeDown":                 "a node that it needs is down",
}

// limitWords are parts of the reasons about limits of accounts and QoS, of which there are dozens.
var limitWords = []struct{ part, text string }{
	{"GrpTRESMins", "the project has used up its time on the cluster"},
	{"GrpCPUMins", "the project has used up its time on the cluster"},
	{"GrpBillingMins", "the project has used up its time on the cluster"},
	{"BillingMinutes", "the project has used up its time on the cluster"},
	{"Minutes", "the project has used up its time on the cluster"},
	{"MaxJobs", "the project runs as many jobs as it may"},
	{"SubmitJobs", "the project has as many jobs as it may"},
	{"GrpJobs", "the project runs as many jobs as it may"},
	{"WallDuration", "it asks for more time than a job may have"},
	{"Max", "it asks for more than a job may have"},
	{"Grp", "the project uses as much as it may at the same time"},
}

func waiting(j Job) string {
	text := "The job waits in the queue"
	if why := Reason(j.Reason); why != "" {
		text += ": " + why
	}
	return text
}

// Reason explains to a user why a job waits, from the word that Slurm has for it. It is empty if there is nothing to say.
func Reason(word string) string {
	word = strings.Trim(word, "()")
	name, _, _ := strings.Cut(word, ",") // "ReqNodeNotAvail, UnavailableNodes:..."
	switch {
	case name == "" || name == "None":
		return ""
	case reasons[name] != "":
		return reasons[name]
	case strings.HasPrefix(name, "Assoc") || strings.HasPrefix(name, "QOS") || strings.HasPrefix(name, "MaxJobs"):
		for _, l := range limitWords {
			if strings.Contains(name, l.part) {
				return l.text
			}
		}
	}
	if len(name) > 60 || strings.Trim(strings.ToLower(name), "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
		return ""
	}
	return "Slurm says " + name
}
