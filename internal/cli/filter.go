package cli

import (
	"regexp"
	"strings"

	"github.com/spf13/cobra"
)

// A filter selects rows by one of their values (contract 41 CLI-6): exact text, a glob with * and ?, or a regular
// expression between slashes. Filters run here and not in the server, with Go's linear-time expressions.
type filter[T any] struct {
	flag string
	help string
	get  func(T) string
}

// filterFlags are the values that were given.
type filterFlags[T any] struct {
	filters []filter[T]
	values  []string
	match   string
}

func addFilters[T any](cmd *cobra.Command, filters ...filter[T]) *filterFlags[T] {
	f := &filterFlags[T]{filters: filters, values: make([]string, len(filters))}
	for i, fl := range filters {
		cmd.Flags().StringVar(&f.values[i], fl.flag, "", fl.help)
	}
	cmd.Flags().StringVar(&f.match, "match", "auto", "how filters are read: auto (exact, *, /regex/) or regex")
	return f
}

// given tells whether any filter was used.
func (f *filterFlags[T]) given() bool {
	for _, v := range f.values {
		if v != "" {
			return true
		}
	}
	return false
}

// compile checks all expressions. It is called before anything is sent.
func (f *filterFlags[T]) compile() (func(T) bool, error) {
	if f.match != "auto" && f.match != "regex" {
		return nil, usagef("--match is auto or regex, not %q", f.match)
	}
	type test struct {
		get func(T) string
		ok  func(string) bool
	}
	var tests []test
	for i, v := range f.values {
		if v == "" {
			continue
		}
		ok, err := matcher(v, f.match == "regex")
		if err != nil {
			return nil, usagef("--%s: %v", f.filters[i].flag, err)
		}
		tests = append(tests, test{f.filters[i].get, ok})
	}
	return func(row T) bool {
		for _, t := range tests {
			if !t.ok(t.get(row)) {
				return false
			}
		}
		return true
	}, nil
}

// matcher makes the test of one expression.
func matcher(expr string, regex bool) (func(string) bool, error) {
	if !regex && len(expr) >= 2 && expr[0] == '/' && expr[len(expr)-1] == '/' {
		expr, regex = expr[1:len(expr)-1], true
	}
	switch {
	case regex:
		re, err := regexp.Compile(expr)
		if err != nil {
			return nil, err
		}
		return re.MatchString, nil
	case strings.ContainsAny(expr, "*?"):
		// Not path.Match: a UCloud name may hold slashes and brackets.
		quoted := regexp.QuoteMeta(expr)
		quoted = strings.ReplaceAll(strings.ReplaceAll(quoted, `\*`, `.*`), `\?`, `.`)
		return regexp.MustCompile(`(?s)\A` + quoted + `\z`).MatchString, nil
	}
	return func(s string) bool { return s == expr }, nil
}
