package config

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Severity tells whether a problem stops the service (CFG-4).
type Severity uint8

// The severities. Only errors stop a start or a reload.
const (
	Warning Severity = iota + 1
	Error
)

// String is the word of the report.
func (s Severity) String() string {
	if s == Error {
		return "error"
	}
	return "warn"
}

// MarshalText implements [encoding.TextMarshaler].
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Problem is one thing that is wrong or doubtful (CFG-3). No field ever holds a secret.
type Problem struct {
	Severity Severity `json:"severity"`
	Rule     string   `json:"rule"` // id of contract 40, such as X-06 or CFG-2
	File     string   `json:"file"` // base name of the file
	Line     int      `json:"line"` // from 1; 0 if the problem has no place in the file
	Column   int      `json:"column"`
	KeyPath  string   `json:"keyPath"` // such as services.fileSystems.home.payment.unit; empty for the whole file
	Message  string   `json:"message"`
	Remedy   string   `json:"remedy"`
	Excerpt  string   `json:"excerpt,omitempty"` // the source line and, below it, a caret
}

// String is one line without the excerpt.
func (p Problem) String() string {
	return fmt.Sprintf("%s %s %s %s: %s", p.Severity, p.Rule, p.place(), p.KeyPath, p.Message)
}

func (p Problem) place() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
}

// Problems are all problems of one run, in a fixed order: by file, line, column, then rule and text.
type Problems []Problem

func (ps *Problems) add(p Problem) { *ps = append(*ps, p) }

// HasErrors tells whether the configuration is refused.
func (ps Problems) HasErrors() bool {
	return slices.ContainsFunc(ps, func(p Problem) bool { return p.Severity == Error })
}

// Err is nil without errors, otherwise an error that names the first one and the count. Roles return it; the command
// line prints the whole list with [Problems.WriteText] and exits with 78. errors.AsType[Problems] gives the list back.
func (ps Problems) Err() error {
	if !ps.HasErrors() {
		return nil
	}
	return ps
}

// Error implements error: the first error, and how many more there are.
func (ps Problems) Error() string {
	errs, _ := ps.count()
	for _, p := range ps {
		if p.Severity != Error {
			continue
		}
		if errs == 1 {
			return "configuration not accepted: " + p.String()
		}
		return fmt.Sprintf("configuration not accepted: %s (and %d more)", p, errs-1)
	}
	return "configuration accepted"
}

func (ps Problems) count() (errs, warnings int) {
	for _, p := range ps {
		if p.Severity == Error {
			errs++
		} else {
			warnings++
		}
	}
	return errs, warnings
}

// order of files in a report; certificates and others come after the three that are read first.
var fileOrder = map[string]int{"config": 1, "server": 2, "secrets": 3}

// sorted gives the problems in their fixed order without exact repetitions, so that the order of checks in the code
// cannot be seen in a report.
func (ps Problems) sorted() Problems {
	rank := func(file string) int {
		base, _, _ := strings.Cut(file, ".")
		if n, ok := fileOrder[base]; ok {
			return n
		}
		return 9
	}
	out := slices.Clone(ps)
	slices.SortStableFunc(out, func(a, b Problem) int {
		return cmp.Or(
			cmp.Compare(rank(a.File), rank(b.File)), cmp.Compare(a.File, b.File),
			cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column),
			cmp.Compare(b.Severity, a.Severity), cmp.Compare(a.Rule, b.Rule),
			cmp.Compare(a.KeyPath, b.KeyPath), cmp.Compare(a.Message, b.Message),
		)
	})
	return slices.Compact(out)
}

// WriteText prints the report of contract 40 section 15 with an excerpt of the source below each problem, and a last line
// that says whether the configuration is accepted. It prints nothing for an empty list.
func (ps Problems) WriteText(w io.Writer, color bool) error {
	if len(ps) == 0 {
		return nil
	}
	paint := func(code, text string) string {
		if !color {
			return text
		}
		return "\x1b[" + code + "m" + text + "\x1b[0m"
	}
	var b strings.Builder
	for _, p := range ps {
		word := fmt.Sprintf("%-5s", p.Severity)
		if p.Severity == Error {
			word = paint("31;1", word)
		} else {
			word = paint("33;1", word)
		}
		line := fmt.Sprintf("%s  %-5s %s  %s", word, p.Rule, paint("1", p.place()), p.KeyPath)
		fmt.Fprintf(&b, "%s\n       %s\n", strings.TrimRight(line, " "), p.Message)
		if p.Remedy != "" {
			fmt.Fprintf(&b, "       %s\n", p.Remedy)
		}
		for l := range strings.Lines(p.Excerpt) {
			fmt.Fprintf(&b, "         %s\n", paint("2", strings.TrimRight(l, "\n")))
		}
	}
	errs, warnings := ps.count()
	fmt.Fprintf(&b, "%s, %s – configuration %s\n", plural(errs, "error"), plural(warnings, "warning"),
		map[bool]string{true: "accepted", false: "not accepted"}[errs == 0])
	_, err := io.WriteString(w, b.String())
	return err
}

// WriteJSON prints the report as one JSON object: errors, warnings, accepted and the problems.
func (ps Problems) WriteJSON(w io.Writer) error {
	errs, warnings := ps.count()
	list := ps
	if list == nil {
		list = Problems{}
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(struct {
		Accepted bool      `json:"accepted"`
		Errors   int       `json:"errors"`
		Warnings int       `json:"warnings"`
		Problems []Problem `json:"problems"`
	}{errs == 0, errs, warnings, list})
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

var _ error = Problems(nil)

// AsProblems finds the list of problems in an error's chain.
func AsProblems(err error) (Problems, bool) { return errors.AsType[Problems](err) }
