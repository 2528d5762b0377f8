package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestFind: targets of several packages are found, and no others.
func TestFind(t *testing.T) {
	t.Parallel()
	all, err := find("../..")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, f := range all {
		seen[filepath.Base(f.dir)+"."+f.name] = true
	}
	for _, want := range []string{"jobtemplate.FuzzRender", "ipc.FuzzFrameReader", "hoptoken.FuzzVerify"} {
		if !seen[want] {
			t.Errorf("%s is missing", want)
		}
	}
	if len(all) < 50 {
		t.Errorf("only %d targets", len(all))
	}
}

// TestFindings: a target that fails for some input, and one that takes memory out of proportion, are findings.
func TestFindings(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	source := `package p

import (
	"bytes"
	"testing"
)

var kept []byte

func FuzzGood(f *testing.F) { f.Fuzz(func(t *testing.T, in []byte) {}) }

func FuzzFails(f *testing.F) {
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 1 {
			t.Fatal("two bytes")
		}
	})
}

func FuzzGreedy(f *testing.F) {
	f.Add([]byte("x"))
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 1 {
			kept = bytes.Repeat([]byte("x"), 100<<20)
		}
	})
}
`
	for name, text := range map[string]string{"go.mod": "module p.example\n\ngo 1.26\n", "p_test.go": source} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("go", "test", "-c", "-fuzz", ".", "-o", "p.test", ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	binary := filepath.Join(dir, "p.test")
	for name, want := range map[string]string{"FuzzGood": "", "FuzzFails": "two bytes", "FuzzGreedy": "memory"} {
		r, err := fuzz(context.Background(), target{".", name}, binary, filepath.Join(dir, "cache"), 3*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if want == "" && r.wrong != "" || !strings.Contains(r.wrong, want) {
			t.Errorf("%s: %s", name, r)
		}
		if name == "FuzzGood" && (r.cpu < 3*time.Second || r.execs == "0") {
			t.Errorf("%s did not have its time: %s", name, r)
		}
	}
	if found, _ := filepath.Glob("testdata/fuzz/FuzzFails/*"); len(found) != 1 {
		t.Errorf("the failing input is not kept: %v", found)
	}
}
