//go:build bench

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"ucloud-im/internal/ident"
)

// loadAverage is the one of the last minute.
func loadAverage() float64 {
	var v float64
	data, _ := os.ReadFile("/proc/loadavg")
	_, _ = fmt.Sscan(string(data), &v)
	return v
}

// memInfo reads a value of /proc/meminfo in KiB.
func memInfo(key string) int { return kibibytes("/proc/meminfo", key) }

// kibibytes reads a "Key:  123 kB" line; 0 if there is none.
func kibibytes(file, key string) int {
	data, _ := os.ReadFile(file)
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, key+":"); ok {
			n, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			return n
		}
	}
	return 0
}

func cpuModel() string {
	data, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

// memory is what a process occupies, in KiB: its private pages, those plus its share of common ones, and of the latter
// what kind they are.
type memory struct {
	private, pss int
	// program is the share of the program's file; data are its variables; heap is what Go gives to the program, stacks
	// of goroutines included; what remains is the runtime's own.
	program, data, heap int
}

func (m *memory) plus(o memory) {
	m.private, m.pss = m.private+o.private, m.pss+o.pss
	m.program, m.data, m.heap = m.program+o.program, m.data+o.data, m.heap+o.heap
}

// Go puts its heap at a random address in between. Nothing else is mapped there.
const goHeap, goHeapEnd = 1 << 32, 1 << 46

// memoryOf reads smaps. The kinds are those of a Go program.
func memoryOf(pid int) (m memory, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return m, err
	}
	other := 0
	kind, end := &other, uint64(0)
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if from, to, ok := strings.Cut(f[0], "-"); ok { // a mapping begins: addresses, rights, offset, device, inode, path
			start, _ := strconv.ParseUint(from, 16, 64)
			switch named := len(f) > 5; {
			case named && f[5][0] == '/' && !strings.Contains(f[1], "w"):
				kind = &m.program
			case named && f[5][0] == '/', !named && kind == &m.data && start == end: // what is zero at first follows without a file
				kind = &m.data
			case !named && goHeap <= start && start < goHeapEnd:
				kind = &m.heap
			default:
				kind = &other
			}
			end, _ = strconv.ParseUint(to, 16, 64)
			continue
		}
		if len(f) < 3 {
			continue
		}
		n, _ := strconv.Atoi(f[1])
		switch f[0] {
		case "Pss:":
			m.pss += n
			*kind += n
		case "Private_Clean:", "Private_Dirty:", "Private_Hugetlb:":
			m.private += n
		}
	}
	return m, nil
}

// cpuTime is the time a process has run, with the children it has waited for, and how often its threads went to sleep.
// The nanoseconds of schedstat are needed because an idle instance runs for less than a tick of stat(5) in a minute.
// Children are programs such as getent; there the kernel gives ticks of the sum.
func cpuTime(pid int) (ran time.Duration, sleeps int, err error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(tasks) == 0 {
		return 0, 0, fmt.Errorf("process %d has ended", pid)
	}
	for _, task := range tasks {
		data, err := os.ReadFile(task + "/schedstat")
		if errors.Is(err, fs.ErrNotExist) {
			if _, err := os.Stat(task); err == nil {
				return 0, 0, errors.New("this kernel has no schedstat")
			}
			continue // the thread has ended
		}
		if err != nil {
			return 0, 0, err
		}
		var ns int64
		if _, err := fmt.Sscan(string(data), &ns); err != nil {
			return 0, 0, fmt.Errorf("read %s/schedstat: %w", task, err)
		}
		ran += time.Duration(ns)
		status, _ := os.ReadFile(task + "/status")
		if _, rest, ok := strings.Cut(string(status), "\nvoluntary_ctxt_switches:"); ok {
			var n int
			_, _ = fmt.Sscan(rest, &n)
			sleeps += n
		}
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	// The name in parentheses may hold anything. After it come the others; these are cutime and cstime.
	f := strings.Fields(string(stat[strings.LastIndex(string(stat), ")")+1:]))
	if len(f) < 15 {
		return 0, 0, fmt.Errorf("process %d has a strange stat", pid)
	}
	for _, field := range f[13:15] {
		ticks, _ := strconv.Atoi(field)
		ran += time.Duration(ticks) * (time.Second / 100) // USER_HZ is 100 for all of Linux' platforms that matter
	}
	return ran, sleeps, nil
}

// usage is cpuTime of several processes.
type usage struct {
	ran    time.Duration
	sleeps int
}

func usageOf(pids ...int) (u usage, err error) {
	for _, pid := range pids {
		ran, sleeps, err := cpuTime(pid)
		if err != nil {
			return u, err
		}
		u.ran += ran
		u.sleeps += sleeps
	}
	return u, nil
}

func (u usage) minus(o usage) usage { return usage{u.ran - o.ran, u.sleeps - o.sleeps} }

// processesOf gives the processes of the accounts in one pass over /proc, zombies left out. The owner of the directory
// does not tell whose process it is: instances are not dumpable, and then it is root.
func processesOf(uids map[ident.UID]bool) map[ident.UID][]int {
	out := make(map[ident.UID][]int)
	files, _ := filepath.Glob("/proc/[0-9]*/status")
	for _, file := range files {
		status, err := os.ReadFile(file)
		if err != nil || strings.Contains(string(status), "\nState:\tZ") {
			continue
		}
		_, rest, _ := strings.Cut(string(status), "\nUid:")
		var n uint32
		if _, err := fmt.Sscan(rest, &n); err != nil || !uids[ident.UID(n)] {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		out[ident.UID(n)] = append(out[ident.UID(n)], pid)
	}
	return out
}

// killAll ends all processes of the accounts.
func killAll(uids map[ident.UID]bool) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		running := processesOf(uids)
		if len(running) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes of %d accounts do not end", len(running))
		}
		for _, pids := range running {
			for _, pid := range pids {
				_ = syscall.Kill(pid, syscall.SIGKILL) // may be gone
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
}
