package terminal

import (
	"fmt"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"

	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/slurmkit"
)

// TestSlurm: a shell in the allocation of a real job, on the node of its rank; it ends with the job.
func TestSlurm(t *testing.T) {
	t.Parallel()
	slurmkit.Require(t)
	c := slurmkit.Start(t)
	account := c.Account(t, "root")
	// Of the end of the job Slurm tells the shell with SIGTERM first.
	job := c.Submit(t, "root", "#!/bin/bash\nsleep 600\n", "--account="+account, "--partition=normal", "--nodes=2", "--ntasks=2", "--mem=100", "--chdir=/tmp", "--output=/dev/null", "--time=10")
	t.Cleanup(func() { c.Run(t, "scancel", job) })
	c.WaitState(t, job, "RUNNING")
	nodes := strings.Fields(c.Run(t, "scontrol", "show", "hostnames", strings.TrimSpace(c.Run(t, "squeue", "-h", "-o", "%N", "-j", job))))
	if len(nodes) != 2 {
		t.Fatalf("nodes %q", nodes)
	}
	// Instances limit themselves; here a limit that hurts nobody stands for theirs.
	const cores = 4711 // KiB
	var before unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_CORE, &before))
	must(t, unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: cores << 10, Max: max(before.Max, cores<<10)}))
	t.Cleanup(func() { unix.Setrlimit(unix.RLIMIT_CORE, &before) }) //nolint:errcheck // it was so before
	w := newWorld(t, func(s *Settings) { s.Shell, s.Binaries = "", c.Binaries(t) })
	w.mu.Lock()
	w.job.Engine, w.job.EngineID, w.job.Nodes, w.job.Replicas = ipcapi.EngineSlurm, job, nodes, 2
	w.mu.Unlock()
	for rank, node := range nodes {
		w.mu.Lock()
		rec := w.job
		w.mu.Unlock()
		ses, err := w.svc.OpenJob(t.Context(), &rec, rank)
		must(t, err)
		b := w.open(ses.SessionIdentifier)
		b.input("echo whe're'=$SLURM_JOB_ID/$SLURMD_NODENAME.; stty size; echo $TERM; echo cor'es'=$(ulimit -Sc)/e'nd'.\r")
		b.until("where=" + job + "/" + node + ".")
		b.until("30 90")
		b.until("xterm-256color")
		if strings.Contains(b.until("/end."), fmt.Sprintf("cores=%d/", cores)) {
			t.Error("the shell has the limits of the instance, not those of its node")
		}
		b.send(`{"type":"resize","cols":111,"rows":33}`)
		testkit.Eventually(t, "the size to get there", func() bool {
			b.out.Reset()
			b.input("stty size; echo do'ne'.\r")
			return strings.Contains(b.until("done."), "33 111")
		})
		if rank == 0 {
			b.input("exit\r")
			b.end()
			continue
		}
		c.Run(t, "scancel", job)
		if code := b.end(); code != websocket.StatusNormalClosure {
			t.Errorf("after the end of the job: %v", code)
		}
	}
	if _, err := w.svc.OpenJob(t.Context(), &w.job, 2); err == nil {
		t.Error("a rank that the job has not")
	}
}
