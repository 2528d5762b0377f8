package shell

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// hostile are values that would do something if they were not data. What they do is harmless: a file named pwned appears.
var hostile = []string{
	"", " ", "a b", "'", "''", `"`, `\`, `\\`, `'"'"'`, "'; touch pwned #", "$(touch pwned)", "`touch pwned`", "${IFS}touch${IFS}pwned", "$HOME",
	"a\nb", "\n#SBATCH --account=x\n", "\ntouch pwned\n", "a\rb", "\t", "*", "?", "~", "!!", "-n", "--", "a=b", "{a,b}", "<(touch pwned)", "&& touch pwned",
	"| touch pwned", "> pwned", "\x01\x7f\x1b[0m", "\xff\xfe", "æøå 日本 🚀", "\u2028", strings.Repeat("x'", 50_000), "$'\\x41'", "EOF", "\\\n",
}

// through gives words to a real bash and returns what a program receives as its arguments.
func through(t interface {
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}, dir string, words string,
) []string {
	cmd := exec.Command("bash", "--noprofile", "--norc")
	cmd.Dir = dir
	cmd.Stdin = strings.NewReader("printf '%s\\0' " + words + "\n")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("bash: %v", err)
	}
	if _, err := os.Stat(dir + "/pwned"); err == nil {
		t.Fatal("a value was executed")
	}
	list := strings.Split(string(out), "\x00")
	return list[:len(list)-1]
}

func TestQuote(t *testing.T) {
	t.Parallel()
	if got := Quote("a\r\nb"); strings.Contains(got, "\r") {
		t.Errorf("got %q, which sbatch refuses", got)
	}
	if got := Quote("it's"); got != `'it'"'"'s'` {
		t.Errorf("got %s", got)
	}
	got := through(t, t.TempDir(), Join(hostile))
	for i, want := range hostile {
		if got[i] != want {
			t.Errorf("%d: got %q, want %q", i, got[i], want)
		}
	}
}

//attack:actor compromised core
//attack:does Sends a value that bash would execute.
//attack:control Every value goes through one function that quotes it.
//attack:remove internal/shell/shell.go: s = strings.ReplaceAll(s, "'", `'"'"'`) => s = strings.ReplaceAll(s, "'", "'")
func TestQuoteProperty(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.OneOf(rapid.String(), rapid.StringOfN(rapid.RuneFrom([]rune("'\"\\$`;\n\r#!{}() ~*&|<>\t")), 0, 40, -1), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }))
		words := rapid.SliceOfN(word, 1, 30).Draw(t, "words")
		for i := range words {
			words[i] = strings.ReplaceAll(words[i], "\x00", "")
		}
		got := through(t, dir, Join(words))
		if len(got) != len(words) {
			t.Fatalf("%d words became %d", len(words), len(got))
		}
		for i := range words {
			if got[i] != words[i] {
				t.Fatalf("got %q, want %q", got[i], words[i])
			}
		}
	})
}

func TestExport(t *testing.T) {
	t.Parallel()
	line, err := Export("A_1", "x\n$(touch pwned)'")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command("bash", "-c", line+"\nprintf %s \"$A_1\"")
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil || !bytes.Equal(out, []byte("x\n$(touch pwned)'")) {
		t.Fatalf("got %q, %v", out, err)
	}
	for _, name := range []string{"", "1A", "A-B", "A B", "A=B", "Ä", "A\n", "a;touch pwned"} {
		if _, err := Export(name, "x"); err == nil {
			t.Errorf("name %q was accepted", name)
		}
	}
	if _, err := Export("A", "a\x00b"); err == nil {
		t.Error("NUL was accepted")
	}
}

func TestCheckLine(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"", "a b", "æøå", "'\"\\"} {
		if err := CheckLine("It", good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"a\nb", "\r", "\x00", "\x1b", "\u0085", "\u2028", "\xff", "\t"} {
		if err := CheckLine("It", bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
