package slurm

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/testkit"
)

// fake makes a client whose commands are shell scripts.
func fake(t *testing.T, o Options, scripts map[string]string) *Client {
	t.Helper()
	o.Binaries = t.TempDir()
	for name, text := range scripts {
		if err := os.WriteFile(filepath.Join(o.Binaries, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return New(o)
}

func nothingListed(t *testing.T) func(Job) error {
	return func(j Job) error {
		t.Errorf("a job: %+v", j)
		return nil
	}
}

// header prints what a good answer begins with. The separator is taken from the format, as squeue does.
const queueHeader = `sep=${SQUEUE_FORMAT#%i}; sep=${sep%%\%*}
printf 'JOBID'; for f in STATE USER ACCOUNT PARTITION QOS TIME TIME_LIMIT START_TIME END_TIME SUBMIT_TIME NODES CPUS PRIORITY REASON NODELIST WORK_DIR NAME COMMENT JOBID; do printf '%s%s' "$sep" "$f"; done; echo
`

// TestFailedQueue: a squeue that fails after a good answer has not answered.
func TestFailedQueue(t *testing.T) {
	t.Parallel()
	if err := fake(t, Options{}, map[string]string{"squeue": queueHeader}).Queue(t.Context(), QueueQuery{}, nothingListed(t)); err != nil {
		t.Error(err)
	}
	for name, tc := range map[string]struct {
		script string
		is     error
		kind   failure.Kind
	}{
		"exit":        {queueHeader + "exit 1", nil, failure.Internal},
		"killed":      {queueHeader + "kill -9 $$", nil, failure.Internal},
		"silent":      {"", ErrIncomplete, failure.Internal},
		"unreachable": {"echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1", ErrUnavailable, failure.Unavailable},
		"no job":      {"echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", ErrNoJob, failure.NotFound},
	} {
		err := fake(t, Options{}, map[string]string{"squeue": tc.script}).Queue(t.Context(), QueueQuery{}, nothingListed(t))
		if err == nil || tc.is != nil && !errors.Is(err, tc.is) || failure.KindOf(err) != tc.kind {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := fake(t, Options{}, nil)
	if err := c.Queue(t.Context(), QueueQuery{}, nothingListed(t)); err == nil {
		t.Error("a command that is not there answers")
	}
	// One job that is unknown is an answer.
	c = fake(t, Options{}, map[string]string{"squeue": "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"})
	if err := c.Queue(t.Context(), QueueQuery{IDs: []JobID{{ID: 7}}}, nothingListed(t)); err != nil {
		t.Error(err)
	}
}

// TestTimeLimit: a command that hangs ends with everything that it started, also when it has let go of its output.
func TestTimeLimit(t *testing.T) {
	t.Parallel()
	for name, rest := range map[string]string{"holds the output": "", "lets go": ">/dev/null 2>&1"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var text []byte
			// A busy machine may not even begin with the script in the time that it has: then it gets more.
			for limit := 2 * time.Second; text == nil; limit *= 2 {
				pids := filepath.Join(t.TempDir(), "pids")
				script := "sleep 1000 " + rest + " & echo $! >>" + pids + "\necho $$ >>" + pids + "\nsleep 1000 " + rest
				c := fake(t, Options{Timeout: limit}, map[string]string{"squeue": script})
				begin := time.Now()
				err := c.Queue(t.Context(), QueueQuery{}, nothingListed(t))
				if !errors.Is(err, ErrUnavailable) || failure.KindOf(err) != failure.Unavailable {
					t.Error(err)
				}
				if took := time.Since(begin); took > limit+60*time.Second {
					t.Errorf("took %v", took)
				}
				if text, err = os.ReadFile(pids); err != nil && limit > time.Minute {
					t.Fatal(err)
				}
			}
			for field := range strings.FieldsSeq(string(text)) {
				pid, err := strconv.Atoi(field)
				if err != nil {
					t.Fatal(err)
				}
				testkit.Eventually(t, "end of process "+field, func() bool { return !alive(pid) })
			}
		})
	}
}

// alive tells whether a process runs. One that has ended may wait for its parent.
func alive(pid int) bool {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(status), ") Z ") && syscall.Kill(pid, 0) == nil
}

// TestLeftBehind: a process that outlives its command with the output open does not hold up the answer.
func TestLeftBehind(t *testing.T) {
	t.Parallel()
	c := fake(t, Options{Timeout: time.Minute}, map[string]string{"sbatch": "setsid sleep 50 & echo 17"})
	begin := time.Now()
	id, err := c.Submit(t.Context(), Submission{Script: "x"})
	if time.Since(begin) > 40*time.Second {
		t.Errorf("took %v", time.Since(begin))
	}
	// Whether all of the output was seen is not known, so that the outcome is not either.
	if err == nil && id.ID != 17 || err != nil && !errors.Is(err, ErrUnknownOutcome) {
		t.Error(id, err)
	}
}

func TestOutputLimit(t *testing.T) {
	t.Parallel()
	c := fake(t, Options{MaxOutput: 100_000}, map[string]string{"squeue": queueHeader + "yes", "sbatch": "echo 17; yes | head -c 1000000 >&2; exit 0"})
	if err := c.Queue(t.Context(), QueueQuery{}, nothingListed(t)); err == nil {
		t.Error("an endless answer is one")
	}
	if id, err := c.Submit(t.Context(), Submission{Script: "x"}); err != nil || id.ID != 17 {
		t.Error("a command that complains a lot: ", id, err)
	}
}

// TestEnvironment: commands get nothing of ours, and what users may see holds no separator.
func TestEnvironment(t *testing.T) {
	t.Setenv("SQUEUE_STATES", "all")
	t.Setenv("SBATCH_ACCOUNT", "other")
	t.Setenv("SECRET_OF_THE_SERVER", "x")
	out := filepath.Join(t.TempDir(), "out")
	c := fake(t, Options{}, map[string]string{
		"squeue": `env >` + out + `; echo "$@" >` + out + `.args` + "\n" + queueHeader,
		"sbatch": `env >` + out + `; pwd >` + out + `.args; echo "$@" >>` + out + ".args\necho 17",
	})
	if err := c.Queue(t.Context(), QueueQuery{Partitions: []string{"normal", "gpu"}, IDs: []JobID{{ID: 1}, {ID: 2, Task: "3"}}}, nothingListed(t)); err != nil {
		t.Fatal(err)
	}
	env, args := read(t, out), read(t, out+".args")
	for _, never := range []string{"SQUEUE_STATES", "SBATCH_ACCOUNT", "SECRET"} {
		if strings.Contains(env, never) {
			t.Errorf("the command has %s", never)
		}
	}
	for _, want := range []string{"TZ=UTC\n", "LC_ALL=C\n", "SLURM_TIME_FORMAT=%s\n"} {
		if !strings.Contains(env, want) {
			t.Errorf("the command lacks %s", want)
		}
	}
	if args != "--all --local --partition=normal,gpu --jobs=1,2_3\n" {
		t.Error(args)
	}
	dir := t.TempDir()
	if _, err := c.Submit(t.Context(), Submission{Script: "job.sbatch", Directory: dir, Args: []string{"--comment=ucloud:hippo:512"}, Env: []string{"HOME=/home/karin"}}); err != nil {
		t.Fatal(err)
	}
	if got, want := read(t, out+".args"), dir+"\n--parsable --export=NONE --comment=ucloud:hippo:512 job.sbatch\n"; got != want {
		t.Errorf("%q, not %q", got, want)
	}
	if env := read(t, out); !strings.Contains(env, "HOME=/home/karin\n") || strings.Contains(env, "SBATCH_ACCOUNT") {
		t.Error(env)
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestBadArguments(t *testing.T) {
	t.Parallel()
	c := fake(t, Options{}, map[string]string{"squeue": "touch ran", "sacct": "touch ran", "sacctmgr": "touch ran", "scancel": "touch ran", "sbatch": "touch ran"})
	for i, err := range []error{
		c.Queue(t.Context(), QueueQuery{Partitions: []string{}}, nothingListed(t)), // would be all of them
		c.Queue(t.Context(), QueueQuery{Users: []string{"a,b"}}, nothingListed(t)),
		c.Accounting(t.Context(), AccountingQuery{Partitions: []string{"-x"}}, nothingListed(t)),
		c.AddUsers(t.Context(), "a", "b account=c"),
		c.AddUsers(t.Context(), "a=b", "c"),
		c.RemoveUsers(t.Context(), "", "c"),
		c.ModifyAccount(t.Context(), "a", Change{"MaxJobs", "1 where name=root"}),
		c.ModifyAccount(t.Context(), "a", Change{"Max=Jobs", "1"}),
		c.ModifyAccount(t.Context(), "a b", Change{"MaxJobs", "1"}),
		c.CreateAccount(t.Context(), AccountSpec{Name: "a", Description: "x\ny"}),
		c.CreateAccount(t.Context(), AccountSpec{Name: "a", QoS: []string{"x y"}}),
		c.Cancel(t.Context(), JobID{}),
		c.Cancel(t.Context(), JobID{ID: 3, Task: "1,..."}),
		func() error { _, err := c.Submit(t.Context(), Submission{Script: "--wrap=x"}); return err }(),
		func() error { _, err := c.Accounts(t.Context(), "a|b"); return err }(),
	} {
		if err == nil {
			t.Errorf("%d is accepted", i)
		}
	}
	if err := c.Queue(t.Context(), QueueQuery{IDs: []JobID{}}, nothingListed(t)); err != nil {
		t.Error("no jobs asked for: ", err)
	}
	if left, err := filepath.Glob("ran"); err != nil || left != nil {
		t.Error("a command ran")
	}
}

// TestSubmitOutcomes: refused, accepted, or not known; never one for another.
func TestSubmitOutcomes(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		script  string
		id      uint64
		refused string // part of the message
	}{
		"accepted":       {"echo 730512", 730512, ""},
		"with a cluster": {"echo '730512;alder'", 730512, ""},
		"with a remark":  {"echo 'Welcome to alder'; echo 'note' >&2; echo 730512", 730512, ""},
		"time":           {"echo 'sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)' >&2; exit 1", 0, "time limit is too large"},
		"nodes":          {"echo 'sbatch: error: Batch job submission failed: Node count specification invalid' >&2; exit 1", 0, "Too many nodes"},
		"processors":     {"echo 'sbatch: error: Batch job submission failed: More processors requested than permitted' >&2; exit 1", 0, "Too many nodes"},
		"account":        {"echo 'sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified' >&2; exit 1", 0, "Invalid account"},
		"site":           {"echo 'sbatch: error: contact support, protocol 7' >&2; echo 'sbatch: error: Batch job submission failed: Unspecified error' >&2; exit 1", 0, "contact support"},
		"option":         {"echo \"sbatch: unrecognized option '--bogus'\" >&2; exit 255", 0, "unrecognized option"},
		"mute":           {"exit 1", 0, "without a reason"},
		"time-out":       {"echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1", 0, ""},
		"connection":     {"echo 'sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)' >&2; exit 1", 0, ""},
		"zero bytes":     {"echo 'sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received' >&2; exit 1", 0, ""},
		"killed":         {"kill -9 $$", 0, ""},
		"killed after":   {"echo 730512; kill -9 $$", 0, ""},
		"failed after":   {"echo 730512; exit 1", 0, ""},
		"hangs":          {"sleep 100", 0, ""},
		"no id":          {"echo done", 0, ""},
		"id 0":           {"echo 0", 0, ""},
		"a task":         {"echo 12_3", 0, ""},
		"nothing":        {"", 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			limit := time.Minute
			if name == "hangs" {
				limit = time.Second
			}
			id, err := fake(t, Options{Timeout: limit}, map[string]string{"sbatch": tc.script}).Submit(t.Context(), Submission{Script: "x"})
			refusal, refused := errors.AsType[*RefusedError](err)
			switch {
			case tc.id != 0:
				if err != nil || id != (JobID{ID: tc.id}) {
					t.Error(id, err)
				}
			case tc.refused != "":
				if !refused || !strings.Contains(refusal.Message, tc.refused) || failure.KindOf(err) != failure.Invalid || failure.Why(err) != refusal.Message || errors.Is(err, ErrUnknownOutcome) {
					t.Error(id, err)
				}
			default:
				if refused || !errors.Is(err, ErrUnknownOutcome) || failure.KindOf(err) != failure.Unavailable || id.ID != 0 {
					t.Error(id, err)
				}
			}
		})
	}
	id, err := New(Options{Binaries: t.TempDir()}).Submit(t.Context(), Submission{Script: "x"})
	if err == nil || errors.Is(err, ErrUnknownOutcome) {
		t.Error("sbatch is not installed: ", id, err)
	}
}

func TestPing(t *testing.T) {
	t.Parallel()
	for out, up := range map[string]bool{
		"echo 'Slurmctld(primary) at c0 is UP'":                                                 true,
		"echo 'Slurmctld(primary) at c0 is DOWN'; echo 'Slurmctld(backup) at c1 is UP'; exit 1": true,
		"echo 'Slurmctld(primary) at c0 is DOWN'; exit 1":                                       false,
		"echo 'Slurmctld(primary) at c0 is DOWN'":                                               false,
		"":       false,
		"exit 1": false,
	} {
		err := fake(t, Options{}, map[string]string{"scontrol": out}).Ping(t.Context())
		if (err == nil) != up || err != nil && failure.KindOf(err) != failure.Unavailable {
			t.Errorf("%q: %v", out, err)
		}
	}
}

// TestNothingToChange: sacctmgr fails when everything is as it should be, and also when an account does not exist.
func TestNothingToChange(t *testing.T) {
	t.Parallel()
	c := fake(t, Options{}, map[string]string{"sacctmgr": "echo ' Nothing new added.'; exit 1"})
	if err := errors.Join(c.CreateAccount(t.Context(), AccountSpec{Name: "a"}), c.AddUsers(t.Context(), "a", "u")); err != nil {
		t.Error(err)
	}
	c = fake(t, Options{}, map[string]string{"sacctmgr": "echo \" This account 'a' doesn't exist.\" >&2; echo ' Nothing new added.'; exit 1"})
	if err := c.AddUsers(t.Context(), "a", "u"); !errors.Is(err, ErrNoAccount) {
		t.Error(err)
	}
	c = fake(t, Options{}, map[string]string{"sacctmgr": "echo ' Nothing deleted'; exit 1"})
	if err := c.RemoveUsers(t.Context(), "a", "u"); err != nil {
		t.Error(err)
	}
	c = fake(t, Options{}, map[string]string{"sacctmgr": "echo ' Nothing modified'; exit 1"})
	if err := c.ModifyAccount(t.Context(), "a", Change{"MaxJobs", "1"}); !errors.Is(err, ErrNoAccount) {
		t.Error(err)
	}
	c = fake(t, Options{}, map[string]string{"sacctmgr": "echo 'sacctmgr: error: Sending PersistInit msg: Connection refused' >&2; echo ' Nothing new added.'; exit 1"})
	if err := c.AddUsers(t.Context(), "a", "u"); !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
}

// TestOneChangeAtATime: sacctmgr never runs twice at once.
func TestOneChangeAtATime(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := fake(t, Options{Timeout: time.Minute}, map[string]string{"sacctmgr": "mkdir " + dir + "/busy || touch " + dir + "/twice\nsleep 0.05\nrmdir " + dir + "/busy"})
	done := make(chan error)
	for range 5 {
		go func() { done <- c.WithClusterName("x").AddUsers(t.Context(), "a", "u") }()
	}
	for range 5 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(dir + "/twice"); err == nil {
		t.Error("two changes at once")
	}
}

// sacct takes the epoch for no time at all, and would list the jobs since midnight only.
func TestSinceTheBeginning(t *testing.T) {
	t.Parallel()
	out := filepath.Join(t.TempDir(), "args")
	c := fake(t, Options{}, map[string]string{"sacct": `echo "$@" >` + out})
	for _, q := range []AccountingQuery{{}, {Since: time.Unix(0, 0)}, {Since: time.Unix(-5, 0)}, {Since: time.Unix(0, 0), IDs: []JobID{{ID: 7}}}} {
		if err := c.Accounting(t.Context(), q, nothingListed(t)); err == nil {
			t.Error("an empty answer is one")
		}
		if args := read(t, out); !strings.Contains(args, "--starttime=1970-01-02T00:00:00") {
			t.Errorf("%+v: %s", q, args)
		}
	}
	_ = c.Accounting(t.Context(), AccountingQuery{Since: time.Unix(1_795_680_000, 0)}, nothingListed(t))
	if args := read(t, out); !strings.Contains(args, "--starttime=2026-11-26T08:00:00") {
		t.Error(args)
	}
}
