package cli

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ucloud-im/internal/ipcapi"
)

var intentsTable = table[ipcapi.IntentCount]{
	noun: "intents",
	key:  func(c ipcapi.IntentCount) string { return c.Call + " " + string(c.User) },
	columns: []column[ipcapi.IntentCount]{
		{name: "call", get: func(c ipcapi.IntentCount) string { return c.Call }},
		{name: "ucloud-name", get: func(c ipcapi.IntentCount) string { return cmp.Or(string(c.User), "(others)") }},
		{name: "verdict", get: func(c ipcapi.IntentCount) string { return c.Verdict }},
		{
			name: "count", get: func(c ipcapi.IntentCount) string { return strconv.FormatInt(c.Count, 10) },
			less: func(a, b ipcapi.IntentCount) int { return cmp.Compare(a.Count, b.Count) },
		},
		{name: "last", get: func(c ipcapi.IntentCount) string { return localTime(c.LastAt) }},
		{name: "mode", wide: true, get: func(c ipcapi.IntentCount) string { return c.Mode }},
		{name: "form", wide: true, get: func(c ipcapi.IntentCount) string { return c.Form }},
	},
}

// intentsReport is what "ucloud intents report" says: the summary of the server with the rows that were asked for, and
// totals of all calls that the filters let through.
type intentsReport struct {
	ipcapi.IntentSummary
	Total       int64 `json:"total"`
	Refused     int64 `json:"refused"`     // require refuses them, or would
	Unavailable int64 `json:"unavailable"` // could not be checked
}

func (a *app) intentsReportCommand() *cobra.Command {
	var flags *listFlags
	var filters *filterFlags[ipcapi.IntentCount]
	var all bool
	c := a.verb("report", "what the policy require refuses, or would refuse", 0, 0, func(ctx context.Context, _ *cobra.Command, _ []string) error {
		match, err := filters.compile()
		if err != nil {
			return err
		}
		if err := intentsTable.check(flags); err != nil {
			return err
		}
		rep, err := call(ctx, a, ipcapi.IntentReport, ipcapi.Empty{})
		if err != nil {
			return err
		}
		return a.printIntents(reportOf(rep, match, all), flags)
	})
	flags = addListFlags(c)
	filters = addFilters(c,
		filter[ipcapi.IntentCount]{"call", "name of the call at UCloud", func(c ipcapi.IntentCount) string { return c.Call }},
		filter[ipcapi.IntentCount]{"ucloud-name", "UCloud user name", func(c ipcapi.IntentCount) string { return string(c.User) }},
		filter[ipcapi.IntentCount]{"verdict", "ok, missing, signature, ...", func(c ipcapi.IntentCount) string { return c.Verdict }},
	)
	c.Flags().BoolVar(&all, "all", false, "also what passes")
	return c
}

// reportOf counts, and leaves out the rows that nobody asked for.
func reportOf(in ipcapi.IntentSummary, match func(ipcapi.IntentCount) bool, all bool) intentsReport {
	rep := intentsReport{IntentSummary: in}
	rep.Counts = []ipcapi.IntentCount{}
	for _, c := range keep(in.Counts, match) {
		rep.Total += c.Count
		if c.Refused {
			rep.Refused += c.Count
		}
		if c.Verdict == ipcapi.IntentUnavailable {
			rep.Unavailable += c.Count
		}
		if all || c.Refused || c.Verdict == ipcapi.IntentUnavailable {
			rep.Counts = append(rep.Counts, c)
		}
	}
	return rep
}

func (a *app) printIntents(rep intentsReport, flags *listFlags) error {
	if a.output == "csv" {
		return intentsTable.print(a, flags, rep.Counts)
	}
	return item(a, "intents", "report", rep.Mode, rep, func() error {
		for _, line := range rep.sentences(a.hooks.Now()) {
			if _, err := fmt.Fprintln(a.stdout, clean(line)); err != nil {
				return err
			}
		}
		if len(rep.Counts) == 0 {
			return nil
		}
		return intentsTable.print(a, flags, rep.Counts)
	})
}

// sentences sum the report up.
func (r intentsReport) sentences(now time.Time) []string {
	out := []string{"Policy: " + r.Mode + "."}
	last := fmt.Sprintf("the last %s (since %s)", span(int64(now.Sub(r.Since)/time.Second)), localTime(&r.Since))
	switch {
	case r.Total == 0 && r.Mode == "off":
		out = append(out, "Nothing is looked at while the policy is off; set it to log to learn what require would refuse.")
	case r.Total == 0:
		out = append(out, fmt.Sprintf("No call was looked at in %s.", last))
	default:
		out = append(out, fmt.Sprintf("require refuses %d of %d calls of %s.", r.Refused, r.Total, last))
	}
	if r.Unavailable > 0 {
		out = append(out, fmt.Sprintf("%d could not be checked because the keys could not be read.", r.Unavailable))
	}
	switch n := len(r.Keyless); {
	case n > 0:
		const most = 10
		var names []string
		for _, u := range r.Keyless[:min(n, most)] {
			names = append(names, string(u))
		}
		more := ""
		if n > most {
			more = fmt.Sprintf(" and %d more", n-most)
		}
		out = append(out, fmt.Sprintf("%s without a signing key, whom require keeps out: %s%s.", plural(n, "connected user"), strings.Join(names, ", "), more))
	case r.Mode != "off":
		out = append(out, "Every connected user has a signing key.")
	}
	return out
}
