// Package shell writes words for bash. It is the one place of the module where text becomes part of a script, so that there is one
// layer of quoting and none is forgotten (contract 24 section 10.1).
//
// A word made by [Quote] is data: bash hands exactly the given bytes to the program. Within single quotes bash knows no
// character with a meaning but the single quote itself, which is written as '"'"' (contract 24 section 5). The one byte that no
// argument can hold is NUL; [Check] refuses it, and callers that take text from outside use [Word].
package shell

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"ucloud-im/internal/failure"
)

// Quote is a bash word with the value s. NUL must have been refused before; bash would drop it silently. A carriage return is
// written as an escape: sbatch refuses a script with a DOS line break anywhere, and browsers send text areas with them.
func Quote(s string) string {
	s = strings.ReplaceAll(s, "'", `'"'"'`)
	return "'" + strings.ReplaceAll(s, "\r", `'$'\r''`) + "'"
}

// Join quotes every word and joins them with single spaces.
func Join(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = Quote(w)
	}
	return strings.Join(quoted, " ")
}

// Check refuses text that cannot be an argument of a program. What names the value in the sentence for the user.
func Check(what, s string) error {
	if strings.IndexByte(s, 0) >= 0 {
		return failure.New(failure.Invalid, "%s contains a NUL byte, which no program can receive", what)
	}
	return nil
}

// CheckLine refuses text that is not a single line of printable characters: line breaks of any kind, other control characters and
// bytes that are not UTF-8. Names and directives are such lines (contract 24 section 10.2).
func CheckLine(what, s string) error {
	if !utf8.ValidString(s) {
		return failure.New(failure.Invalid, "%s is not valid UTF-8", what)
	}
	for _, r := range s {
		// U+2028 and U+2029 are line breaks to some readers.
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return failure.New(failure.Invalid, "%s contains a line break or another control character", what)
		}
	}
	return nil
}

// IsName tells whether s can be the name of an environment variable.
func IsName(s string) bool {
	for i, r := range []byte(s) {
		letter := r == '_' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
		if !letter && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return s != ""
}

// Export is the line that sets an environment variable to data.
func Export(name, value string) (string, error) {
	if !IsName(name) {
		return "", failure.New(failure.Invalid, "%q cannot be the name of an environment variable", name)
	}
	if err := Check("The environment variable "+name, value); err != nil {
		return "", err
	}
	return "export " + name + "=" + Quote(value), nil
}
