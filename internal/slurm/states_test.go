package slurm

import (
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/providerapi"
)

// TestStates is the table of the contract (22 section 6.2) with its corrections.
func TestStates(t *testing.T) {
	t.Parallel()
	s, err := NewStates(nil)
	if err != nil {
		t.Fatal(err)
	}
	want := map[providerapi.JobState]string{
		providerapi.JobInQueue: "PENDING CONFIGURING RESV_DEL_HOLD REQUEUE_FED SUSPENDED REQUEUED RESIZING REQUEUE_HOLD SPECIAL_EXIT",
		providerapi.JobRunning: "RUNNING COMPLETING SIGNALING STAGE_OUT STOPPED",
		providerapi.JobSuccess: "COMPLETED CANCELLED",
		providerapi.JobFailure: "FAILED OUT_OF_MEMORY BOOT_FAIL NODE_FAIL REVOKED PREEMPTED LAUNCH_FAILED",
		providerapi.JobExpired: "DEADLINE TIMEOUT",
	}
	count := 0
	for state, words := range want {
		for word := range strings.FieldsSeq(words) {
			count++
			m, ok := s.Of(Job{State: word}, Actors{})
			if !ok || m.State != state || m.Sentence == "" || strings.HasSuffix(m.Sentence, ".") {
				t.Errorf("%s: %+v, %v", word, m, ok)
			}
		}
	}
	if count != len(builtin) {
		t.Errorf("%d of %d states are tested", count, len(builtin))
	}
	for _, word := range []string{"", "UNHEARD_OF", "running"} {
		if m, ok := s.Of(Job{State: word}, Actors{}); ok {
			t.Errorf("%q: %+v", word, m)
		}
	}
}

func TestSentences(t *testing.T) {
	t.Parallel()
	s, err := NewStates(nil)
	if err != nil {
		t.Fatal(err)
	}
	who := Actors{Owner: 1000, Service: 990}
	for want, j := range map[string]Job{
		"cancelled by its user":                  {State: "CANCELLED", By: 1000, HasBy: true},
		"cancelled by UCloud":                    {State: "CANCELLED", By: 990, HasBy: true},
		"cancelled by an operator":               {State: "CANCELLED", By: 0, HasBy: true},
		"The job was cancelled":                  {State: "CANCELLED"},
		"exit code 3":                            {State: "FAILED", ExitCode: 3},
		"signal 9":                               {State: "FAILED", Signal: 9},
		"all of its time (1h0m0s)":               {State: "TIMEOUT", Limit: time.Hour},
		"queue: others come first":               {State: "PENDING", Reason: "Priority"},
		"queue: its part of the cluster is down": {State: "PENDING", Reason: "PartitionDown"},
		"has used up its time on the cluster":    {State: "PENDING", Reason: "AssocGrpBillingMinutes"},
		"as many jobs as it may":                 {State: "PENDING", Reason: "AssocMaxJobsLimit"},
		"more time than a job may have":          {State: "PENDING", Reason: "QOSMaxWallDurationPerJobLimit"},
		"out of service":                         {State: "PENDING", Reason: "ReqNodeNotAvail, UnavailableNodes:n1"},
		"Slurm says SomethingNew":                {State: "PENDING", Reason: "SomethingNew"},
	} {
		if m, _ := s.Of(j, who); !strings.Contains(m.Sentence, want) {
			t.Errorf("%q is not in %q", want, m.Sentence)
		}
	}
	for _, j := range []Job{{State: "PENDING", Reason: "None"}, {State: "PENDING"}, {State: "PENDING", Reason: "see <b>\nthere"}} {
		if m, _ := s.Of(j, who); m.Sentence != "The job waits in the queue" {
			t.Errorf("%+v: %q", j, m.Sentence)
		}
	}
}

func TestStatesOfTheSite(t *testing.T) {
	t.Parallel()
	s, err := NewStates(map[string]string{"FAILED": "success", "preempted": "inQueue", "SITE_STATE": "running"})
	if err != nil {
		t.Fatal(err)
	}
	for word, want := range map[string]providerapi.JobState{
		"FAILED": providerapi.JobSuccess, "PREEMPTED": providerapi.JobInQueue, "SITE_STATE": providerapi.JobRunning, "COMPLETED": providerapi.JobSuccess,
	} {
		if m, ok := s.Of(Job{State: word}, Actors{}); !ok || m.State != want || m.Sentence == "" {
			t.Errorf("%s: %+v, %v", word, m, ok)
		}
	}
	if fresh, _ := NewStates(nil); fresh.table["FAILED"].State != providerapi.JobFailure {
		t.Error("the built-in table has changed")
	}
	for name, bad := range map[string]map[string]string{"meaning": {"FAILED": "lost"}, "state": {"FAILED by": "success"}, "empty": {"": "success"}} {
		if _, err := NewStates(bad); err == nil {
			t.Errorf("a bad %s is accepted", name)
		}
	}
}
