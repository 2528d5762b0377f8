package cli

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ucloud-im/internal/ipcapi"
)

func exitText(s ipcapi.ScriptInfo) string {
	switch {
	case s.Signal != "":
		return s.Signal
	case s.Exit == nil:
		return "-"
	}
	return strconv.Itoa(*s.Exit)
}

// scriptOwner is whom a call was about, as one text.
func scriptOwner(s ipcapi.ScriptInfo) string {
	if s.Project != "" {
		return "project " + string(s.Project)
	}
	return string(s.User)
}

func milliseconds(n int64) string { return (time.Duration(n) * time.Millisecond).String() }

var scriptsTable = table[ipcapi.ScriptInfo]{
	noun: "scripts",
	key:  func(s ipcapi.ScriptInfo) string { return strconv.FormatInt(s.ID, 10) },
	columns: []column[ipcapi.ScriptInfo]{
		{
			name: "id", get: func(s ipcapi.ScriptInfo) string { return strconv.FormatInt(s.ID, 10) },
			less: func(a, b ipcapi.ScriptInfo) int { return cmp.Compare(a.ID, b.ID) },
		},
		{
			name: "time", get: func(s ipcapi.ScriptInfo) string { return s.StartedAt.Local().Format("2006-01-02 15:04:05") },
			less: func(a, b ipcapi.ScriptInfo) int { return a.StartedAt.Compare(b.StartedAt) },
		},
		{name: "hook", get: func(s ipcapi.ScriptInfo) string { return s.Hook }},
		{name: "path", get: func(s ipcapi.ScriptInfo) string { return s.Path }},
		{name: "about", get: scriptOwner},
		{
			name: "duration", get: func(s ipcapi.ScriptInfo) string { return milliseconds(s.DurationMs) },
			less: func(a, b ipcapi.ScriptInfo) int { return cmp.Compare(a.DurationMs, b.DurationMs) },
		},
		{name: "exit", get: exitText},
		{name: "result", get: func(s ipcapi.ScriptInfo) string { return s.Result }},
		{name: "message", get: func(s ipcapi.ScriptInfo) string { return s.Message }},
		{name: "uid", wide: true, get: func(s ipcapi.ScriptInfo) string { return uidText(s.UID) }},
		{name: "attempt", wide: true, get: func(s ipcapi.ScriptInfo) string { return strconv.Itoa(s.Attempt) }},
		{name: "key", wide: true, get: func(s ipcapi.ScriptInfo) string { return s.Key }},
	},
}

func (a *app) scriptsCommand() *cobra.Command {
	return noun("scripts", "calls of the site's extension scripts", a.scriptsListCommand(), a.scriptsShowCommand(), a.scriptsTestCommand(), a.scriptsRunCommand())
}

func (a *app) scriptsListCommand() *cobra.Command {
	var flags *listFlags
	var filters *filterFlags[ipcapi.ScriptInfo]
	var failures bool
	var since, until, query string
	c := a.verb("list", "list calls of scripts, newest first", 0, 0, func(ctx context.Context, _ *cobra.Command, _ []string) error {
		match, err := filters.compile()
		if err != nil {
			return err
		}
		if err := scriptsTable.check(flags); err != nil {
			return err
		}
		req := ipcapi.ScriptListRequest{Failures: failures, Texts: query != ""}
		if req.Since, err = a.moment("--since", since); err != nil {
			return err
		}
		if req.Until, err = a.moment("--until", until); err != nil {
			return err
		}
		search := regexp.MustCompile("(?i)" + regexp.QuoteMeta(query))
		rows, err := list(ctx, a, ipcapi.ScriptList, req, func(p ipcapi.ScriptPage) []ipcapi.ScriptInfo { return p.Items })
		if err != nil {
			return err
		}
		rows = keep(rows, func(s ipcapi.ScriptInfo) bool {
			return match(s) && search.MatchString(strings.Join([]string{s.Key, s.Message, s.Request, s.Stdout, s.Stderr}, "\n"))
		})
		for i := range rows { // searched, and not part of a list
			rows[i].Request, rows[i].Stdout, rows[i].Stderr = "", "", ""
		}
		return scriptsTable.print(a, flags, rows)
	})
	flags = addListFlags(c)
	type call = ipcapi.ScriptInfo
	filters = addFilters(c,
		filter[call]{"hook", "name of the hook, such as onQuotaUpdated", func(s call) string { return s.Hook }},
		filter[call]{"script", "path of the script", func(s call) string { return s.Path }},
		filter[call]{"user", "UCloud user or project the call was about", func(s call) string { return string(s.User) + string(s.Project) }},
		filter[call]{"exit-code", "exit status, or the signal that ended the script", exitText},
		filter[call]{"result", "ok, failed, invalid reply, permanent, temporary, not permitted, technical, timeout, refused or interrupted", func(s call) string { return s.Result }},
	)
	f := c.Flags()
	f.BoolVar(&failures, "failures", false, "only calls that did not succeed")
	f.StringVar(&query, "query", "", "only calls with this text in request, output, key or message")
	f.StringVar(&since, "since", "", "only calls since then: a time, or a span before now such as 2h or 3d")
	f.StringVar(&until, "until", "", "only calls before then")
	f.StringVar(&since, "after-relative", "", "same as --since")
	f.StringVar(&until, "before-relative", "", "same as --until")
	return c
}

// moment reads a time in the past; a span counts backwards from now. Empty is none.
func (a *app) moment(flag, s string) (*time.Time, error) {
	if s == "" {
		return nil, nil //nolint:nilnil // not given
	}
	now := a.hooks.Now()
	t, err := parseMoment(s, now)
	if err != nil {
		return nil, usagef("%s: %v", flag, err)
	}
	if _, err := time.ParseDuration(s); err == nil || strings.HasSuffix(s, "d") { // a span, which parseMoment counts forwards
		t = now.Add(now.Sub(t))
	}
	t = t.UTC()
	return &t, nil
}

func (a *app) scriptsShowCommand() *cobra.Command {
	var request, stdout, stderr bool
	c := a.verb("show ID", "show a call of a script with its request and output", 1, 1, func(ctx context.Context, _ *cobra.Command, args []string) error {
		id, err := strconv.ParseInt(args[0], 10, 64)
		if err != nil || id <= 0 {
			return usagef("%q is not the number of a call", clean(args[0]))
		}
		r, err := call(ctx, a, ipcapi.ScriptShow, ipcapi.ScriptRef{ID: id})
		if err != nil {
			return err
		}
		return item(a, "scripts", "show", args[0], r, func() error {
			if request || stdout || stderr {
				return a.scriptTexts(r, request, stdout, stderr, false)
			}
			if err := a.pairs([][2]string{
				{"id", strconv.FormatInt(r.ID, 10)},
				{"invocation", r.Invocation},
				{"hook", r.Hook},
				{"path", r.Path},
				{"sha256", r.FileHash},
				{"about", scriptOwner(r.ScriptInfo)},
				{"key", r.Key},
				{"uid", uidText(r.UID)},
				{"time", localTime(&r.StartedAt)},
				{"duration", milliseconds(r.DurationMs)},
				{"attempt", strconv.Itoa(r.Attempt)},
				{"exit", exitText(r.ScriptInfo)},
				{"result", r.Result},
				{"message", r.Message},
				{"stdout", fmt.Sprintf("%d bytes", r.StdoutBytes)},
				{"stderr", fmt.Sprintf("%d bytes", r.StderrBytes)},
			}); err != nil {
				return err
			}
			return a.scriptTexts(r, true, true, true, true)
		})
	})
	f := c.Flags()
	f.BoolVar(&request, "request", false, "print only the request")
	f.BoolVar(&stdout, "stdout", false, "print only the standard output")
	f.BoolVar(&stderr, "stderr", false, "print only the standard error")
	return c
}

// scriptTexts prints what a script was given and has written. Line breaks stay, everything else that could play with the
// terminal goes.
func (a *app) scriptTexts(r ipcapi.ScriptRecord, request, stdout, stderr, titles bool) error {
	for _, part := range []struct {
		wanted      bool
		title, text string
	}{{request, "request", r.Request}, {stdout, "stdout", r.Stdout}, {stderr, "stderr", r.Stderr}} {
		if !part.wanted || (titles && part.text == "") {
			continue
		}
		lines := strings.Split(strings.TrimSuffix(part.text, "\n"), "\n")
		for i := range lines {
			lines[i] = clean(lines[i])
		}
		text := strings.Join(lines, "\n") + "\n"
		if titles {
			text = "\n--- " + part.title + "\n" + text
		}
		if _, err := fmt.Fprint(a.stdout, text); err != nil {
			return err
		}
	}
	return nil
}
