package roleserver

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/slurm"
)

// While Slurm does not answer, the address that was known does, and Slurm is not asked for it each time.
func TestAddressWithoutSlurm(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	calls := filepath.Join(dir, "calls")
	script := "#!/bin/sh\necho x >>" + calls + "\nexit 1\n"
	if err := os.WriteFile(filepath.Join(dir, "scontrol"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	n := &nodeAddresses{client: slurm.New(slurm.Options{Binaries: dir}), known: map[string]nodeAddress{"c1": {address: "10.0.0.1", until: time.Now().Add(-time.Second)}}}
	for range 3 {
		if a, err := n.address(t.Context(), "c1"); a != "10.0.0.1" || err != nil {
			t.Fatal(a, err)
		}
	}
	if _, err := n.address(t.Context(), "c2"); err == nil {
		t.Error("an address that nobody has told")
	}
	if raw, _ := os.ReadFile(calls); strings.Count(string(raw), "x") > 2 {
		t.Errorf("asked: %q", raw)
	}
}
