package software

import (
	"testing"
)

func TestResolveTable(t *testing.T) {
	t.Parallel()
	four := []string{Loose, LooseForward, LooseBackward, Strict}
	for _, tc := range []struct {
		requested string
		available []string
		policies  []string
		want      string // "" for none
	}{
		// The table of contract 24 section 7.
		{"1.2", []string{"1.1", "1.2.3", "1.2.4", "1.2.93", "1.3"}, four, "1.2.93"},
		{"1.2", []string{"1.1", "1.3", "1.3.5"}, []string{Loose, LooseForward, ""}, "1.3.5"},
		{"1.2", []string{"1.1", "1.3", "1.3.5"}, []string{LooseBackward}, "1.1"},
		{"1.2", []string{"1.1", "1.3", "1.3.5"}, []string{Strict}, ""},
		{"1.2", []string{"1.1"}, []string{Loose, LooseBackward}, "1.1"},
		{"1.2", []string{"1.1"}, []string{LooseForward, Strict}, ""},
		{"1.2", []string{"1.2-cray"}, four, "1.2-cray"},
		// A suffix is cut at the hyphen.
		{"1.12", []string{"1.1", "1.12-cray"}, four, "1.12-cray"},
		{"v1.2", []string{"1.2.0"}, four, "1.2.0"},
		{"version 1.2", []string{"v1.2.1"}, four, "v1.2.1"},
		{"2021.5", []string{"2023.1-cuda", "2021.5"}, four, "2021.5"},
		{"1.10", []string{"1.9", "1.10.0"}, four, "1.10.0"},
		{"1", []string{"1.9", "1.10"}, four, "1.10"},
		{"1.2", nil, four, ""},
		// Another text is the version to use.
		{"1.2", []string{"1.2", "1.3", "1.4"}, []string{"1.3"}, "1.3"},
		{"1.2", []string{"1.2", "1.3.1"}, []string{"1.3"}, ""},
	} {
		app := []Application{{Name: "other", Configurations: []Configuration{{Versions: []string{tc.requested}}}}, {Name: "x"}}
		for _, v := range tc.available {
			app[1].Configurations = append(app[1].Configurations, Configuration{Versions: []string{v}, Load: v})
		}
		for _, policy := range tc.policies {
			c, got, ok := Resolve(app, "x", tc.requested, policy)
			if got != tc.want || ok != (tc.want != "") || ok && c.Load != got {
				t.Errorf("%s of %v by %q: got %q, want %q", tc.requested, tc.available, policy, got, tc.want)
			}
		}
	}
}

func TestCompare(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		a, b string
		want int
	}{
		{"1.2", "1.2", 0},
		{"1.2", "1.10", -1},
		{"1.2", "1.2.0", -1},
		{"2", "1.9", 1},
		{"1.02", "1.2", 0},
		{"1.a", "1.b", -1},
		{"1.9", "1.a", -1},
		{"12-cray", "12", 0},
		{"12-cray", "1", 1},
		{"99999999999999999999", "99999999999999999998", 1},
		{"", "1", 1},
		{"Version2", "v2", 0},
	} {
		if got := Compare(tc.a, tc.b); got != tc.want {
			t.Errorf("Compare(%q, %q) = %d, want %d", tc.a, tc.b, got, tc.want)
		}
		if got := Compare(tc.b, tc.a); got != -tc.want {
			t.Errorf("Compare(%q, %q) = %d, want %d", tc.b, tc.a, got, -tc.want)
		}
	}
}

func FuzzVersion(f *testing.F) {
	for _, s := range []string{"1.2.3", "v1", "2021.5-cuda", "", "..", "-", "1.-", "version 3", "99999999999999999999999.1"} {
		f.Add(s, "1.2", Loose)
	}
	f.Fuzz(func(t *testing.T, a, b, policy string) {
		if Compare(a, a) != 0 || !Matches(a, a) {
			t.Errorf("%q is not itself", a)
		}
		if x, y := Compare(a, b), Compare(b, a); x != -y {
			t.Errorf("%q and %q compare as %d and %d", a, b, x, y)
		}
		_, got, ok := Resolve([]Application{{Name: "x", Configurations: []Configuration{{Versions: []string{a, b}}}}}, "x", a, policy)
		if ok != (got == a || got == b) && got != "" {
			t.Errorf("resolved to %q", got)
		}
	})
}
