package slurmkit

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"ucloud-im/internal/testkit"
)

// ranOut tells slurmctld that a job is over, with the code that slurmstepd gives where the kernel has killed a process
// of the job for its memory (SIG_OOM of slurm.h).
const ranOut = `#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	void *l = argc == 3 ? dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL) : NULL;
	if (!l) {
		fprintf(stderr, "%s\n", dlerror());
		return 1;
	}
	void (*init)(const char *) = (void (*)(const char *))dlsym(l, "slurm_init");
	int (*complete)(uint32_t, uint32_t) = (int (*)(uint32_t, uint32_t))dlsym(l, "slurm_complete_job");
	if (!init || !complete) {
		fprintf(stderr, "%s\n", dlerror());
		return 1;
	}
	init(NULL);
	return complete((uint32_t)strtoul(argv[2], NULL, 10), 253) != 0;
}
`

// OutOfMemory ends a running job as one that had too little memory. The nodes of this cluster cannot find that out:
// without cgroups a job whose processes are killed has failed by a signal. So slurmctld is told what nodes with cgroups
// tell it, through Slurm's own library; from there on everything is real.
func (c *Cluster) OutOfMemory(t testing.TB, id string) {
	t.Helper()
	libraries, err := filepath.Glob("/usr/lib/*/slurm-wlm/libslurmfull.so")
	if err != nil || len(libraries) == 0 {
		t.Fatalf("the library of Slurm is not there, %v", err)
	}
	compiler, err := testkit.Program("gcc")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	source, program := filepath.Join(dir, "ranout.c"), filepath.Join(dir, "ranout")
	if err := os.WriteFile(source, []byte(ranOut), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), compiler, "-o", program, source, "-ldl").CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v: %s", err, out)
	}
	c.Run(t, program, libraries[0], id)
	c.WaitState(t, id, "OUT_OF_MEMORY")
}
