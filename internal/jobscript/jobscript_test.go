package jobscript

import (
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/failure"
)

//attack:actor compromised core
//attack:does Sends an application that sets the account or the comment of a job in Slurm.
//attack:control What an application may set for Slurm is limited by a list.
//attack:remove internal/jobscript/directive.go: if covered(name, protected) || covered(name, d.locked) { => if covered(name, nil) {
func TestOverride(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, value string
		want        string // "set", "ignored" or "error"
	}{
		{"time", "01:00:00", "set"},
		{"ntasks-per-node", "4", "set"},
		{"array", "0-9", "set"},
		{"exclusive", "", "set"},
		{"mail-user", "a@b.example", "set"},
		{"account", "x", "ignored"},
		{"acc", "x", "ignored"},
		{"a", "x", "ignored"},
		{"partition", "x", "ignored"},
		{"part", "x", "ignored"},
		{"p", "x", "ignored"},
		{"comment", "x", "ignored"},
		{"com", "x", "ignored"},
		{"parsable", "", "ignored"},
		{"export", "ALL", "ignored"},
		{"mem", "100G", "ignored"}, // locked by the test
		{"constrai", "x", "ignored"},
		{"wrap", "touch pwned", "error"},
		{"wra", "touch pwned", "error"},
		{"wait", "", "error"},
		{"test-only", "", "error"},
		{"clusters", "other", "error"},
		{"A", "x", "error"},
		{"-A", "x", "error"},
		{"--account", "x", "error"},
		{"Account", "x", "error"},
		{"account=x", "x", "error"},
		{"job name", "x", "error"},
		{"job-name\n#SBATCH --account", "x", "error"},
		{"", "x", "error"},
		{strings.Repeat("x", 65), "x", "error"},
		{"job-name", "x\n#SBATCH --account=y", "error"},
		{"job-name", "x\r#SBATCH --account=y", "error"},
		{"job-name", "x\x00y", "error"},
		{"job-name", "\u2028", "error"},
		{"job-name", strings.Repeat("x", 2049), "error"},
		{"quiet", "", "ignored"}, // sbatch would not say which job it is
		{"gpus-per-task", "0", "ignored"},
		{"gpus-per-task", "-1", "ignored"},
		{"gpus-per-task", "a100:0", "ignored"},
		{"gpus-per-task", "a100:2", "set"},
	} {
		var d Directives
		d.Lock("mem", "constraint")
		ignored, err := d.Override(tc.name, tc.value)
		_, set := d.Get(tc.name)
		got := map[bool]string{true: "set"}[set]
		if ignored {
			got = "ignored"
		}
		if err != nil {
			got = "error"
			if !failure.Is(err, failure.Invalid) {
				t.Errorf("%q: %v", tc.name, err)
			}
		}
		if got != tc.want || (len(d.Lines()) > 0) != set {
			t.Errorf("--%s=%q: got %q, want %q", tc.name, tc.value, got, tc.want)
		}
	}
}

func TestInstead(t *testing.T) {
	t.Parallel()
	var d Directives
	for _, name := range []string{"mem", "gpus-per-task", "ntasks-per-node"} {
		if err := d.Set(name, "1"); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"mem-per-cpu", "gpus-per-node"} {
		if _, err := d.Override(name, "2"); err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Join(d.Lines(), "\n"); got != "#SBATCH --gpus-per-node=2\n#SBATCH --mem-per-cpu=2" {
		t.Errorf("got\n%s", got)
	}
}

func TestTextGolden(t *testing.T) {
	t.Parallel()
	s := Script{
		Exports:     map[string]string{"B": "it's", "A": "x\n#SBATCH --account=y"},
		Environment: map[string]string{"C": `"$A"`},
		Code:        []string{"echo 1 > x"},
		Body:        "hostname",
	}
	for _, o := range [][2]string{{"job-name", `a'b\c`}, {"chdir", "/a b"}, {"time", "01:00:00"}} {
		if err := s.Directives.Set(o[0], o[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Directives.Flag("parsable"); err != nil {
		t.Fatal(err)
	}
	got, err := s.Text()
	if err != nil {
		t.Fatal(err)
	}
	want := `#!/usr/bin/env -S bash --login
#SBATCH --chdir='/a b'
#SBATCH --job-name='a\'b\\c'
#SBATCH --parsable
#SBATCH --time=01:00:00

:  # sbatch reads no further
unset SLURM_EXPORT_ENV

export A='x
#SBATCH --account=y'
export B='it'"'"'s'
echo 1 > x

export C="$A"

hostname
`
	if string(got) != want {
		t.Errorf("got\n%s", got)
	}
	for _, bad := range []Script{
		{Exports: map[string]string{"A B": ""}},
		{Exports: map[string]string{"A": "\x00"}},
		{Environment: map[string]string{"A;B": "''"}},
		{Body: "a\x00b"},
		{Body: strings.Repeat("x", MaxSize)},
	} {
		if _, err := bad.Text(); !failure.Is(err, failure.Invalid) {
			t.Errorf("%v: %v", bad.Exports, err)
		}
	}
}

func TestTime(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"30": 30 * time.Minute, "30:10": 30*time.Minute + 10*time.Second, "01:30:10": 90*time.Minute + 10*time.Second, "100:00:00": 100 * time.Hour,
		"2-3": 51 * time.Hour, "2-3:30": 51*time.Hour + 30*time.Minute, "1-00:00:01": 24*time.Hour + time.Second,
		"": 0, "x": 0, "-1": 0, "1:2:3:4": 0, "0": 0, "UNLIMITED": 0, "99999999999999999999": 0, "1-2-3": 0, "+5": 0, "400-0": 0, "1:": 0,
	} {
		got, err := ParseTime(text)
		if got != want || (err != nil) != (want == 0) {
			t.Errorf("%q: got %v, %v, want %v", text, got, err, want)
		}
		if want > 0 {
			again, err := ParseTime(FormatTime(got))
			if err != nil || again != got {
				t.Errorf("%q: %v became %v, %v", text, got, again, err)
			}
		}
	}
	if got := FormatTime(1500 * time.Millisecond); got != "00:00:02" {
		t.Error(got)
	}
}
