package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
)

// resultEntry is one item of the JSON of a mutation (contract 41 section 4).
type resultEntry struct {
	Key    map[string]string `json:"key"`
	Status string            `json:"status"`
	Item   any               `json:"item,omitempty"` // what came of it, where there is more to say
	Error  *resultError      `json:"error,omitempty"`
}

type resultError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

type resultEnvelope struct {
	Schema  string        `json:"schema"`
	DryRun  bool          `json:"dryRun,omitempty"`
	Results []resultEntry `json:"results"`
}

// done is the word for what happened to an item.
func (a *app) done(past string) string {
	if a.dryRun {
		return "would be " + past
	}
	return past
}

// mutated prints the report of a bulk change and gives the exit code of contract 41 CLI-11: everything failed 1, some
// failed 6.
func (a *app) mutated(noun, verb, keyName, past string, rep ipcapi.MutationReport) error {
	env := resultEnvelope{Schema: schemaName(noun, verb), DryRun: a.dryRun, Results: []resultEntry{}}
	failed := 0
	for _, r := range rep.Results {
		entry := resultEntry{Key: map[string]string{keyName: r.Key}, Status: r.Status}
		if r.Error != nil {
			failed++
			entry.Error = &resultError{Code: codeOfStatus(r.Error.Status), Message: r.Error.Message}
		}
		env.Results = append(env.Results, entry)
	}
	switch a.output {
	case "json", "jsonl", "yaml":
		if err := a.encode(env); err != nil {
			return err
		}
	default:
		for _, r := range rep.Results {
			var err error
			switch {
			case r.Error != nil:
				_, err = fmt.Fprintf(a.stderr, "error: %s: %s\n", clean(r.Key), clean(r.Error.Message))
			case r.Status == ipcapi.ResultSkipped:
				_, err = fmt.Fprintf(a.stdout, "%s\tskipped: nothing to do\n", clean(r.Key))
			default:
				_, err = fmt.Fprintf(a.stdout, "%s\t%s\n", clean(r.Key), a.done(past))
			}
			if err != nil {
				return err
			}
		}
	}
	switch failed {
	case 0:
		return nil
	case 1:
		if len(rep.Results) == 1 { // as if it had been a call of its own
			return silent(codeOfExit(rep.Results[0].Error.Status))
		}
	case len(rep.Results):
		return silent(ExitFailed)
	}
	return silent(ExitPartial)
}

func codeOfStatus(status int) string {
	switch status {
	case 404:
		return "NOT_FOUND"
	case 409:
		return "CONFLICT"
	case 403:
		return "POLICY"
	case 400:
		return "INVALID"
	case 503, 429:
		return "UNAVAILABLE"
	}
	return unknownErrorCode
}

func codeOfExit(status int) int {
	switch status {
	case 404:
		return ExitNoMatch
	case 409:
		return ExitConflict
	case 403:
		return ExitPolicy
	case 503, 429:
		return ExitTemporary
	}
	return ExitFailed
}

// linked prints what came of an attempt to connect.
func (a *app) linked(noun, verb string, res ipcapi.LinkResult) error {
	switch a.output {
	case "json", "jsonl", "yaml":
		return a.encode(resultEnvelope{Schema: schemaName(noun, verb), DryRun: a.dryRun, Results: []resultEntry{{
			Key: map[string]string{"ucloudName": string(res.User)}, Status: ipcapi.ResultOK, Item: res,
		}}})
	case "name":
		_, err := fmt.Fprintln(a.stdout, clean(string(res.User)))
		return err
	}
	text := fmt.Sprintf("Connected: UCloud user %s is local user %s (uid %d).", res.User, res.LocalName, res.UID)
	switch {
	case a.dryRun:
		text = fmt.Sprintf("Would connect UCloud user %s with local user %s (uid %d).", res.User, res.LocalName, res.UID)
	case res.State != "active":
		text = fmt.Sprintf("Stored: UCloud user %s is local user %s (uid %d). UCloud has not confirmed yet; this goes on by itself.",
			res.User, res.LocalName, res.UID)
	}
	if _, err := fmt.Fprintln(a.stdout, clean(text)); err != nil {
		return err
	}
	switch {
	case res.KeyFingerprint != "":
		text = fmt.Sprintf("The signing key %s counts from now on.", res.KeyFingerprint)
	case res.KeyUnused != "":
		text = fmt.Sprintf("The signing key %s was not confirmed and stays unused.", res.KeyUnused)
	default:
		return nil
	}
	_, err := fmt.Fprintln(a.stdout, clean(text))
	return err
}

// selection is how the rows of a mutation or of "show" are chosen.
type selection[T any] struct {
	what    string           // for messages, such as "user"
	names   func(T) []string // every word by which a positional argument may name the row
	filters *filterFlags[T]  // nil: none
	line    func(T) string   // how a row is shown before it is changed
	all     *bool            // the flag --all, if there is one
}

// choose picks rows. Every argument must name exactly one; filters and --all may pick several.
func (s selection[T]) choose(rows []T, args []string) ([]T, error) {
	switch {
	case len(args) > 0 && (s.filters != nil && s.filters.given() || s.all != nil && *s.all):
		return nil, usagef("give either names or filters")
	case len(args) > 0:
		var out []T
		for _, arg := range args {
			one, err := s.one(rows, arg)
			if err != nil {
				return nil, err
			}
			out = append(out, one)
		}
		return out, nil
	case s.filters != nil && s.filters.given():
		match, err := s.filters.compile()
		if err != nil {
			return nil, err
		}
		var out []T
		for _, r := range rows {
			if match(r) {
				out = append(out, r)
			}
		}
		if len(out) == 0 {
			return nil, exitf(ExitNoMatch, "NOT_FOUND", "no %s matches", s.what)
		}
		return out, nil
	case s.all != nil && *s.all:
		if len(rows) == 0 {
			return nil, exitf(ExitNoMatch, "NOT_FOUND", "there is no %s", s.what)
		}
		return rows, nil
	}
	return nil, usagef("name a %s, or select with a filter", s.what)
}

// one finds the row that a word names.
func (s selection[T]) one(rows []T, word string) (T, error) {
	var found []T
	for _, r := range rows {
		for _, n := range s.names(r) {
			if n == word {
				found = append(found, r)
				break
			}
		}
	}
	var zero T
	switch len(found) {
	case 0:
		return zero, exitf(ExitNoMatch, "NOT_FOUND", "there is no %s %q", s.what, clean(word))
	case 1:
		return found[0], nil
	}
	return zero, ambiguous(s, found, word)
}

// single chooses, and demands that it is exactly one row.
func (s selection[T]) single(rows []T, args []string) (T, error) {
	var zero T
	chosen, err := s.choose(rows, args)
	switch {
	case err != nil:
		return zero, err
	case len(chosen) == 1:
		return chosen[0], nil
	}
	return zero, ambiguous(s, chosen, "")
}

// ambiguous lists the first ten candidates (contract 41 CLI-5).
func ambiguous[T any](s selection[T], found []T, word string) error {
	text := fmt.Sprintf("%d %ss match", len(found), s.what)
	if word != "" {
		text += fmt.Sprintf(" %q", clean(word))
	}
	for i, r := range found {
		if i == 10 {
			text += "; …"
			break
		}
		text += "; " + s.line(r)
	}
	return exitf(ExitAmbiguous, "AMBIGUOUS", "%s", text)
}

// show tells on stderr what is about to be changed.
func (s selection[T]) show(a *app, rows []T) {
	for _, r := range rows {
		a.note("  %s", s.line(r))
	}
}

// reasonFlag adds the flag that all mutations have.
func reasonFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("reason", "", "why, for the audit log")
}

// plural makes "1 user" and "3 users".
func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func uidText(u ident.UID) string { return u.String() }
