package scripted

import (
	"regexp"
	"strings"
	"testing"

	"ucloud-im/internal/ident"
)

func TestNames(t *testing.T) {
	t.Parallel()
	for user, want := range map[ident.UCloudUser][3]string{
		"NinaHolm#2207":            {"Nina", "Holm", "nholm"},
		"OskarLind#2291":           {"Oskar", "Lind", "olind"},
		"AnnaMariaBerg#1":          {"Anna", "Berg", "aberg"},
		"Kaja#1189":                {"Kaja", "", "kaja"},
		"Alice#1234":               {"Alice", "", "alice"},
		"ZoëÜnal#1":                {"Zoë", "Ünal", "zunal"},
		"Zoe\u0308U\u0308nal#1":    {"Zoë", "Ünal", "zunal"},
		"AnneMarie-LouiseO'Neil#3": {"Anne", "O'Neil", "aoneil"},
		"Jean-Luc#1":               {"Jean-Luc", "", "jeanluc"},
		"Ph.D.Smith#1":             {"Ph", "Smith", "psmith"},
		"mary ann smith#1":         {"mary", "smith", "msmith"},
		"MARYSMITH#1":              {"MARYSMITH", "", "marysmith"},
		"ØrstedÆrø#1":              {"Ørsted", "Ærø", "oaero"},
		"ЮрийГагарин#1":            {"Юрий", "Гагарин", "ygagarin"},
		"王伟#1":                     {"王伟", "", "user"},
		"王Lee#1":                   {"王", "Lee", "lee"},
		"3Com#1":                   {"3", "Com", "u3com"},
		"MSmith#1":                 {"M", "Smith", "msmith"},
		"42#7":                     {"42", "", "u42"},
		"#7":                       {"", "", "user"},
		"_x#7":                     {"_x", "", "u_x"},
	} {
		n := SplitNames(user)
		if got := [3]string{n.First, n.Last, FirstInitialLastName(n)}; got != want {
			t.Errorf("%q: %q, want %q", user, got, want)
		}
	}
	long := FirstInitialLastName(SplitNames(ident.UCloudUser("Al" + strings.Repeat("x", 40) + "Bo" + strings.Repeat("y", 100) + "#1")))
	if len(long) != maxSuggested || !strings.HasPrefix(long, "aboy") {
		t.Errorf("%q has %d characters", long, len(long))
	}
}

var accountName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,27}$`)

// Whatever the name, the suggestion can be given to useradd.
//
//attack:actor compromised core
//attack:does Names a user so that the suggested name of the account is an option or a piece of shell for a careless script.
//attack:control The suggestion consists of small ASCII letters, digits and underscores, and begins with a letter.
//attack:remove internal/usermap/scripted/names.go: b.WriteString(transliterated[r]) => b.WriteRune(r)
func FuzzSuggestion(f *testing.F) {
	for _, s := range []string{"NinaHolm#2207", "", "#", "-rf --help#1", "Ünal#1", "王伟#1", "İstanbul#1", "ﬃ Ⅷ#1", "\xff\xfe#", "A\u0301\u0301B#", "0#", "__#", "ǅ#1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n := SplitNames(ident.UCloudUser(s))
		for _, got := range []string{FirstInitialLastName(n), Clean(n.UCloud), Clean(s)} {
			if !accountName.MatchString(got) {
				t.Errorf("%q gives %q", s, got)
			}
		}
		if len(n.First)+len(n.Last) > 4*len(s)+8 {
			t.Errorf("%q gives longer names %q", s, n)
		}
	})
}
