//go:build bench

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// figure is one measured value. Target is nil if design.md names none.
type figure struct {
	Section string  `json:"section"`
	Name    string  `json:"name"`
	Value   float64 `json:"value"`
	Unit    string  `json:"unit"`
	Target  *target `json:"target,omitempty"`
	Met     *bool   `json:"met,omitempty"`
}

// target is a bound from design.md, "Numbers to design for". Every bound there is an upper one but those of rates.
type target struct {
	Bound   float64 `json:"bound"`
	AtLeast bool    `json:"atLeast,omitempty"`
}

func atMost(v float64) *target { return &target{Bound: v} }

func (t target) met(v float64) bool {
	if t.AtLeast {
		return v >= t.Bound
	}
	return v <= t.Bound
}

// skipped is a part that was not measured.
type skipped struct {
	Part string `json:"part"`
	Why  string `json:"why"`
}

// machine says where the figures come from.
type machine struct {
	CPUs     int    `json:"cpus"`
	Model    string `json:"model"`
	Kernel   string `json:"kernel"`
	MemoryMB int    `json:"memoryMiB"`
}

// report collects figures and prints them as they come.
type report struct {
	out     io.Writer
	section string

	Started time.Time          `json:"started"`
	Quick   bool               `json:"quick"`
	Busy    bool               `json:"busy"` // other work ran when the measurements began
	Machine machine            `json:"machine"`
	Load    map[string]float64 `json:"loadAverage"` // of the last minute, when each section began; our own work counts
	Figures []figure           `json:"figures"`
	Skipped []skipped          `json:"skipped"`
}

func newReport(out io.Writer) *report {
	return &report{out: out, Started: time.Now(), Load: map[string]float64{}, Figures: []figure{}, Skipped: []skipped{}}
}

func (r *report) printf(format string, args ...any) { fmt.Fprintf(r.out, format, args...) }

func (r *report) header(quick bool) {
	r.Quick = quick
	var u unix.Utsname
	_ = unix.Uname(&u) // an empty release says as much
	r.Machine = machine{CPUs: runtime.NumCPU(), Model: cpuModel(), Kernel: unix.ByteSliceToString(u.Release[:]), MemoryMB: memInfo("MemTotal") / 1024}
	r.printf("%s: %d CPUs (%s), %d MiB, Linux %s, load average %.2f\n", r.Started.Format("2006-01-02 15:04"),
		r.Machine.CPUs, r.Machine.Model, r.Machine.MemoryMB, r.Machine.Kernel, loadAverage())
	r.printf("Targets are for 2 cores that do nothing else. Where other work runs, trust the ratios.\n")
	if load := loadAverage(); load > quietLoad {
		r.Busy = true
		r.printf("WARNING: a load average of %.2f before anything has begun. Other work runs here: absolute figures are too low, and\nverdicts against the software may be wrong.\n", load)
	}
	if quick {
		r.printf("Quick run: few repetitions, the figures mean little.\n")
	}
}

// quietLoad is the load average below which nothing else that matters runs.
const quietLoad = 0.5

// begin starts a section.
func (r *report) begin(format string, args ...any) {
	r.section = fmt.Sprintf(format, args...)
	load := loadAverage()
	r.Load[r.section] = load
	r.printf("\n%s   [load average %.2f]\n", r.section, load)
}

// progress says what takes a while. It is no result.
func (r *report) progress(format string, args ...any) { r.printf("  ... "+format+"\n", args...) }

// add prints and keeps a figure. t may be nil.
func (r *report) add(name string, value float64, unit string, t *target) {
	f := figure{Section: r.section, Name: name, Value: value, Unit: unit, Target: t}
	verdict := ""
	if t != nil {
		met := t.met(value)
		f.Met = &met
		sign, word := "<=", "met"
		if t.AtLeast {
			sign = ">="
		}
		if !met {
			word = "NOT MET"
		}
		verdict = fmt.Sprintf("target %s %s %s", sign, number(t.Bound), word)
	}
	r.Figures = append(r.Figures, f)
	r.printf("%s\n", strings.TrimRight(fmt.Sprintf("  %-64s %10s %-9s %s", name, number(value), unit, verdict), " "))
}

// number prints three significant digits or all digits before the point.
func number(v float64) string {
	switch {
	case v >= 100 || v == float64(int(v)):
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

func (r *report) skip(part, why string) {
	r.Skipped = append(r.Skipped, skipped{part, why})
	r.printf("\nskipped: %s: %s\n", part, why)
}

// summary prints the verdicts in one line and gives the number of targets that are not met.
func (r *report) summary() (missed int) {
	met := 0
	for _, f := range r.Figures {
		switch {
		case f.Met == nil:
		case *f.Met:
			met++
		default:
			missed++
		}
	}
	r.printf("\n%d targets met, %d not met, %d parts skipped, %s, load average %.2f\n", met, missed, len(r.Skipped),
		time.Since(r.Started).Round(time.Second), loadAverage())
	if r.Busy {
		r.printf("WARNING: other work ran on this machine when the measurements began; see the load average of each section.\n")
	}
	for _, f := range r.Figures {
		if f.Met != nil && !*f.Met {
			r.printf("  not met: %s: %s: %s %s\n", f.Section, f.Name, number(f.Value), f.Unit)
		}
	}
	return missed
}

func (r *report) writeJSON(file string) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(r); err != nil {
		return err
	}
	return os.WriteFile(file, b.Bytes(), 0o644)
}

// quantile of durations, in milliseconds. The slice is not changed.
func quantile(d []time.Duration, q float64) float64 {
	if len(d) == 0 {
		return 0
	}
	d = slices.Sorted(slices.Values(d))
	return ms(d[int(q*float64(len(d)-1)+0.5)])
}

func ms(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// median of numbers. The slice is not changed.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}
