package jobscript

import (
	"strings"
	"testing"
)

// FuzzDirective: whatever name and value are, there is one line for the option or none, and the provider's options stay.
func FuzzDirective(f *testing.F) {
	for _, s := range [][2]string{{"job-name", "a'b\\c#\""}, {"acc", "x"}, {"time", "\n#SBATCH --account=x"}, {"gpus-per-task", ":0"}, {"exclusive", ""}, {"a\nb", ""}, {"mem", "\\"}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		var d Directives
		for _, p := range protected {
			if err := d.Set(p, "ours"); err != nil {
				t.Fatal(err)
			}
		}
		_, err := d.Override(name, value)
		lines := d.Lines()
		if len(lines) > len(protected)+1 || err != nil && len(lines) != len(protected) {
			t.Errorf("%q %q: %q", name, value, lines)
		}
		text := strings.Join(lines, "\n")
		for _, p := range protected {
			if !strings.Contains(text+"\n", "#SBATCH --"+p+"=ours\n") {
				t.Errorf("%q %q: lost --%s", name, value, p)
			}
		}
		for line := range strings.SplitSeq(text, "\n") {
			if !strings.HasPrefix(line, "#SBATCH --") {
				t.Errorf("%q %q: line %q", name, value, line)
			}
			if _, quoted, ok := strings.Cut(line, "='"); ok && !closed(quoted) {
				t.Errorf("%q %q: the quotes are open in %q", name, value, line)
			}
		}
	})
}

// closed tells whether a quoted value, read as sbatch reads it, ends with the line.
func closed(s string) bool {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '\'':
			return i == len(s)-1
		}
	}
	return false
}

func FuzzTime(f *testing.F) {
	for _, s := range []string{"1", "1:2", "1:2:3", "1-2", "1-2:3:4", "-", "99999999:0:0", "UNLIMITED"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseTime(s)
		if err == nil && (d <= 0 || d > maxTime) {
			t.Errorf("%q is %v", s, d)
		}
	})
}
