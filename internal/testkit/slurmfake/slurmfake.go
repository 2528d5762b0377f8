// Package slurmfake stands in for squeue and sacct of a very large cluster: as many jobs as wanted, printed as fast as a
// pipe takes them. It is for measuring what reads them; what Slurm really does is tested with the package slurmkit.
//
// The programs are the test binary itself under another name, so that nothing has to be built: TestMain calls
// [RunIfFake] first.
package slurmfake

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const (
	countFile = "jobs"
	callsFile = "calls-" // and the program's name: a byte for each time that it ran
)

// Install makes a directory with the programs for a cluster of n jobs, for the option of that name.
func Install(t testing.TB, n int) (binaries string) {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"squeue", "sacct"} {
		if err := os.Symlink(self, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, countFile), []byte(strconv.Itoa(n)), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Calls tells how often a program in the directory of [Install] has run.
func Calls(t testing.TB, binaries, program string) int {
	t.Helper()
	st, err := os.Stat(filepath.Join(binaries, callsFile+program))
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	return int(st.Size())
}

// RunIfFake does the work of squeue or sacct and ends the process, if it was started under that name.
func RunIfFake() {
	name := filepath.Base(os.Args[0])
	run, ok := map[string]func() error{"squeue": squeue, "sacct": sacct}[name]
	if !ok {
		return
	}
	err := called(name)
	if err == nil {
		err = run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// called notes that a program has run.
func called(name string) error {
	f, err := os.OpenFile(filepath.Join(filepath.Dir(os.Args[0]), callsFile+name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(".")
	return errors.Join(err, f.Close())
}

func count() (int, error) {
	text, err := os.ReadFile(filepath.Join(filepath.Dir(os.Args[0]), countFile))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(text))
}

// squeueTitles are the headers of the letters of its format.
var squeueTitles = map[string]string{
	"i": "JOBID", "T": "STATE", "u": "USER", "a": "ACCOUNT", "P": "PARTITION", "q": "QOS", "M": "TIME", "l": "TIME_LIMIT", "S": "START_TIME",
	"e": "END_TIME", "V": "SUBMIT_TIME", "D": "NODES", "C": "CPUS", "Q": "PRIORITY", "r": "REASON", "N": "NODELIST", "Z": "WORK_DIR", "j": "NAME", "k": "COMMENT",
}

func squeue() error {
	format := os.Getenv("SQUEUE_FORMAT")
	sep, letters, err := splitFormat(format)
	if err != nil {
		return err
	}
	names := make([]string, len(letters))
	for i, l := range letters {
		names[i] = squeueTitles[l]
	}
	return list(names, names, sep)
}

// splitFormat finds what stands between the letters of a format.
func splitFormat(format string) (sep string, letters []string, err error) {
	parts := strings.Split(format, "%")
	for i, p := range parts[1:] {
		if p == "" {
			return "", nil, errors.New("a format that is not understood")
		}
		letters = append(letters, p[:1])
		switch {
		case i == 0:
			sep = p[1:]
		case i < len(parts)-2 && p[1:] != sep:
			return "", nil, errors.New("a format with different separators")
		}
	}
	return sep, letters, nil
}

// sacctFields are the fields of sacct, by what they are in squeue.
var sacctFields = map[string]string{
	"jobid": "JOBID", "jobidraw": "JOBID", "state": "STATE", "user": "USER", "account": "ACCOUNT", "partition": "PARTITION", "qos": "QOS",
	"elapsed": "TIME", "timelimit": "TIME_LIMIT", "start": "START_TIME", "end": "END_TIME", "submit": "SUBMIT_TIME", "nnodes": "NODES", "ncpus": "CPUS",
	"priority": "PRIORITY", "nodelist": "NODELIST", "workdir": "WORK_DIR", "jobname": "NAME", "comment": "COMMENT",
	"cluster": "CLUSTER", "exitcode": "EXIT", "alloctres": "TRES", "reqtres": "TRES",
}

func sacct() error {
	var sep string
	var titles, names []string
	for _, arg := range os.Args[1:] {
		if v, ok := strings.CutPrefix(arg, "--delimiter="); ok {
			sep = v
		}
		if v, ok := strings.CutPrefix(arg, "--format="); ok {
			titles = strings.Split(v, ",")
		}
	}
	for _, t := range titles {
		names = append(names, sacctFields[strings.ToLower(t)])
	}
	return list(titles, names, sep)
}

// list prints the jobs: one in ten runs, the others wait, of 1,000 users with 50 accounts.
func list(titles, names []string, sep string) error {
	n, err := count()
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(os.Stdout, 256<<10)
	if _, err := w.WriteString(strings.Join(titles, sep) + "\n"); err != nil {
		return err
	}
	row := make([]byte, 0, 4096)
	for i := range n {
		row = row[:0]
		for f, name := range names {
			if f > 0 {
				row = append(row, sep...)
			}
			row = field(row, name, i)
		}
		row = append(row, '\n')
		if _, err := w.Write(row); err != nil {
			return err
		}
	}
	return w.Flush()
}

func field(row []byte, name string, i int) []byte {
	running := i%10 == 0
	number := func(prefix string, n int) []byte { return strconv.AppendInt(append(row, prefix...), int64(n), 10) }
	pick := func(yes, no string) []byte {
		if running {
			return append(row, yes...)
		}
		return append(row, no...)
	}
	switch name {
	case "JOBID":
		return number("", 700_000+i)
	case "STATE":
		return pick("RUNNING", "PENDING")
	case "USER":
		return number("user", i%1000)
	case "ACCOUNT":
		return number("hpc_proj_", i%50)
	case "PARTITION", "QOS":
		return append(row, "normal"...)
	case "CLUSTER":
		return append(row, "alder"...)
	case "TIME":
		return pick("1-02:03:04", "00:00:00")
	case "TIME_LIMIT":
		return append(row, "2-00:00:00"...)
	case "START_TIME", "END_TIME":
		if running {
			return number("", 1_795_000_000+i)
		}
		return append(row, "N/A"...)
	case "SUBMIT_TIME":
		return number("", 1_794_000_000+i)
	case "NODES":
		return append(row, '2')
	case "CPUS":
		return append(row, "128"...)
	case "PRIORITY":
		return number("", 1000+i%5000)
	case "REASON":
		return pick("None", "Priority")
	case "NODELIST":
		if running {
			row = number("c[", i%900)
			return append(strconv.AppendInt(append(row, '-'), int64(i%900+1), 10), ']')
		}
		return append(row, "None assigned"...)
	case "WORK_DIR":
		return number("/scratch/projects/hpc_proj/ucloud-jobs/", 500_000+i)
	case "NAME":
		return number("", 500_000+i)
	case "COMMENT":
		return number("ucloud:hippo:", 500_000+i)
	case "EXIT":
		return append(row, "0:0"...)
	case "TRES":
		return append(row, "billing=128,cpu=128,mem=500G,node=2"...)
	}
	return row
}
