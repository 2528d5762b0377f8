package slurm_test

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"ucloud-im/internal/slurm"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/slurmfake"
)

func TestMain(m *testing.M) {
	slurmfake.RunIfFake()
	os.Exit(m.Run())
}

const many = 100_000

// TestManyJobs: all rows of a large cluster arrive, with what they say.
func TestManyJobs(t *testing.T) {
	t.Parallel()
	c := slurm.New(slurm.Options{Binaries: slurmfake.Install(t, many), Timeout: testkit.Patience * 5})
	for name, list := range map[string]func(each func(slurm.Job) error) error{
		"squeue": func(each func(slurm.Job) error) error { return c.Queue(t.Context(), slurm.QueueQuery{}, each) },
		"sacct": func(each func(slurm.Job) error) error {
			return c.Accounting(t.Context(), slurm.AccountingQuery{}, each)
		},
	} {
		seen, running := map[slurm.JobID]bool{}, 0
		err := list(func(j slurm.Job) error {
			seen[j.ID] = true
			if j.State == "RUNNING" {
				running++
			}
			if want := strconv.FormatUint(j.ID.ID-200_000, 10); j.Name != want || j.Comment != "ucloud:hippo:"+want || j.CPUs != 128 {
				t.Fatalf("%+v", j)
			}
			return nil
		})
		if err != nil || len(seen) != many || running != many/10 {
			t.Errorf("%s: %d jobs, %d running, %v", name, len(seen), running, err)
		}
	}
}

// BenchmarkRound is one look at a cluster with 100,000 jobs (contract 22 section 12.2; the design allows 0.3 s and
// 64 MiB). peak-MiB is the most memory that the process has had, rows that a monitor keeps included.
func BenchmarkRound(b *testing.B) {
	c := slurm.New(slurm.Options{Binaries: slurmfake.Install(b, many)})
	b.ReportAllocs()
	resetPeak(b)
	for b.Loop() {
		states := make(map[slurm.JobID]string)
		err := c.Queue(b.Context(), slurm.QueueQuery{}, func(j slurm.Job) error {
			states[j.ID] = j.State
			return nil
		})
		if err != nil || len(states) != many {
			b.Fatal(len(states), err)
		}
	}
	b.ReportMetric(peak(b), "peak-MiB")
}

// BenchmarkRoundAccounting is the other half of a look: the same jobs as sacct has them.
func BenchmarkRoundAccounting(b *testing.B) {
	c := slurm.New(slurm.Options{Binaries: slurmfake.Install(b, many)})
	b.ReportAllocs()
	resetPeak(b)
	for b.Loop() {
		states := make(map[slurm.JobID]string)
		err := c.Accounting(b.Context(), slurm.AccountingQuery{}, func(j slurm.Job) error {
			states[j.ID] = j.State
			return nil
		})
		if err != nil || len(states) != many {
			b.Fatal(len(states), err)
		}
	}
	b.ReportMetric(peak(b), "peak-MiB")
}

// resetPeak makes the kernel forget how much memory the process has had before.
func resetPeak(b *testing.B) {
	b.Helper()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		b.Log("the peak is that of the whole process: ", err)
	}
}

func peak(b *testing.B) float64 {
	b.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.SplitSeq(string(status), "\n") {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(v)[0], 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib / 1024
		}
	}
	b.Fatal("the kernel does not tell")
	return 0
}
