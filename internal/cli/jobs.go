package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
)

// jobCall is a call that changes jobs.
type jobCall = ipc.Call[ipcapi.JobMutation, ipcapi.MutationReport]

// jobState is the state at UCloud, or how far the submission is as long as there is none.
func jobState(j ipcapi.JobInfo) string {
	if j.Submission != "submitted" {
		return j.Submission
	}
	return string(j.State)
}

func jobUser(j ipcapi.JobInfo) string {
	if j.LocalName != "" {
		return j.LocalName
	}
	return uidText(j.UID)
}

// jobEnded tells that nothing runs or waits.
func jobEnded(j ipcapi.JobInfo) bool {
	return j.Submission != "begun" && (j.Submission != "submitted" || j.State.Final())
}

func jobApplication(j ipcapi.JobInfo) string {
	if j.Application.Name == "unknown" {
		return "" // submitted outside UCloud
	}
	return strings.TrimSuffix(j.Application.Name+" "+j.Application.Version, " ")
}

func jobsTable(now time.Time) table[ipcapi.JobInfo] {
	type job = ipcapi.JobInfo
	return table[job]{
		noun: "jobs",
		key:  func(j job) string { return j.ID },
		columns: []column[job]{
			{name: "id", get: func(j job) string { return j.ID }, less: func(a, b job) int {
				return cmp.Or(cmp.Compare(len(a.ID), len(b.ID)), cmp.Compare(a.ID, b.ID)) // they are numbers
			}},
			{name: "slurm-id", get: func(j job) string { return j.EngineID }},
			{name: "user", get: jobUser},
			{name: "project", get: func(j job) string { return string(j.Owner.Project) }},
			{name: "state", get: jobState},
			{name: "slurm-state", get: func(j job) string { return j.EngineState }},
			{name: "application", get: jobApplication},
			{name: "partition", get: func(j job) string { return j.Partition }},
			{name: "age", get: func(j job) string { return span(int64(now.Sub(j.CreatedAt).Seconds())) }, less: func(a, b job) int {
				return b.CreatedAt.Compare(a.CreatedAt)
			}},
			{name: "nodes", wide: true, get: func(j job) string { return strings.Join(j.Nodes, ",") }},
			{name: "account", wide: true, get: func(j job) string { return j.Account }},
			{name: "category", wide: true, get: func(j job) string { return j.Category }},
			{name: "product", wide: true, get: func(j job) string { return j.Product }},
			{name: "ucloud-name", wide: true, get: func(j job) string { return string(j.CreatedBy) }},
			{name: "waiting-updates", wide: true, get: func(j job) string { return strconv.Itoa(j.Pending) }},
			{name: "title", wide: true, get: func(j job) string { return j.Name }},
			{name: "last-message", wide: true, get: func(j job) string { return j.LastMessage }},
		},
	}
}

func jobFilters(cmd *cobra.Command) *filterFlags[ipcapi.JobInfo] {
	type job = ipcapi.JobInfo
	return addFilters(cmd,
		filter[job]{"state", "IN_QUEUE, RUNNING, SUSPENDED, SUCCESS, FAILURE, EXPIRED, or begun, refused, lost", jobState},
		filter[job]{"ucloud-id", "UCloud's id of the job", func(j job) string { return j.ID }},
		filter[job]{"slurm-id", "Slurm's id of the job", func(j job) string { return j.EngineID }},
		filter[job]{"ucloud-project-id", "project", func(j job) string { return string(j.Owner.Project) }},
		filter[job]{"ucloud-name", "UCloud user", func(j job) string { return string(j.CreatedBy) }},
		filter[job]{"application", "name of the application", func(j job) string { return j.Application.Name }},
		filter[job]{"local-user", "login name, or uid if it has none", jobUser},
		filter[job]{"local-uid", "uid", func(j job) string { return uidText(j.UID) }},
		filter[job]{"partition", "Slurm partition", func(j job) string { return j.Partition }},
		filter[job]{"category", "product category", func(j job) string { return j.Category }},
		filter[job]{"account", "Slurm account", func(j job) string { return j.Account }},
		filter[job]{"nodes", "names of its nodes, with commas", func(j job) string { return strings.Join(j.Nodes, ",") }},
	)
}

func (a *app) jobsCommand() *cobra.Command {
	return noun("jobs", "jobs of users", a.jobsListCommand(), a.jobsShowCommand(), a.jobsExplainCommand(), a.jobsCancelCommand(),
		a.jobsResyncCommand(), a.jobsRegisterCommand())
}

func (a *app) jobs(ctx context.Context, all bool) ([]ipcapi.JobInfo, error) {
	return list(ctx, a, ipcapi.JobList, ipcapi.JobListRequest{All: all}, func(p ipcapi.JobPage) []ipcapi.JobInfo { return p.Jobs })
}

func (a *app) jobsListCommand() *cobra.Command {
	var flags *listFlags
	var filters *filterFlags[ipcapi.JobInfo]
	var all, external bool
	c := a.verb("list", "list jobs that have not ended", 0, 0, func(ctx context.Context, cmd *cobra.Command, _ []string) error {
		match, err := filters.compile()
		if err != nil {
			return err
		}
		t := jobsTable(a.hooks.Now())
		if err := t.check(flags); err != nil {
			return err
		}
		// Who asks for a state, or for a job, means also those that have ended.
		ended := all || cmd.Flags().Changed("state") || cmd.Flags().Changed("ucloud-id") || cmd.Flags().Changed("slurm-id")
		rows, err := a.jobs(ctx, ended)
		if err != nil {
			return err
		}
		return t.print(a, flags, keep(rows, func(j ipcapi.JobInfo) bool {
			return match(j) && (ended || !jobEnded(j)) && (!external || j.Application.Name == "unknown")
		}))
	})
	flags, filters = addListFlags(c), jobFilters(c)
	c.Flags().BoolVar(&all, "all", false, "also jobs that have ended")
	c.Flags().BoolVar(&external, "external", false, "only jobs that were submitted outside UCloud")
	return c
}

func (a *app) jobsShowCommand() *cobra.Command {
	return a.verb("show ID", "everything about one job, by UCloud's or Slurm's id", 1, 1, func(ctx context.Context, _ *cobra.Command, args []string) error {
		rows, err := list(ctx, a, ipcapi.JobList, ipcapi.JobListRequest{ID: args[0]}, func(p ipcapi.JobPage) []ipcapi.JobInfo { return p.Jobs })
		if err != nil {
			return err
		}
		switch len(rows) {
		case 0:
			return exitf(ExitNoMatch, "NOT_FOUND", "there is no job %s", clean(args[0]))
		case 1:
		default:
			// Two accounts claim it, and UCloud has not said yet whose it is; or Slurm has used a number again.
			return exitf(ExitUsage, "USAGE", "%s names %d jobs; see jobs list --all", clean(args[0]), len(rows))
		}
		return item(a, "jobs", "show", rows[0].ID, rows[0], func() error { return a.printJob(rows[0]) })
	})
}

func (a *app) printJob(j ipcapi.JobInfo) error {
	owner := string(j.CreatedBy)
	if j.Owner.Project != "" {
		owner += ", project " + string(j.Owner.Project)
	}
	limit := ""
	if j.LimitMs > 0 {
		limit = (time.Duration(j.LimitMs) * time.Millisecond).String()
	}
	if err := a.pairs([][2]string{
		{"Job", strings.TrimSpace(j.ID + " " + j.Name)},
		{"State", jobState(j)},
		{"Last message", j.LastMessage},
		{"Slurm", strings.TrimSpace(j.EngineID + " " + j.EngineState)},
		{"Slurm spoke of it", localTime(&j.SeenAt)},
		{"User", fmt.Sprintf("%s (uid %s)", jobUser(j), j.UID)},
		{"Owner", owner},
		{"Application", jobApplication(j)},
		{"Machine", fmt.Sprintf("%s (%s), %s", j.Product, j.Category, plural(j.Replicas, "node"))},
		{"Account", j.Account},
		{"Partition, QoS", strings.TrimSuffix(j.Partition+", "+j.QoS, ", ")},
		{"Nodes", strings.Join(j.Nodes, ", ")},
		{"Folder", j.Folder},
		{"Time limit", limit},
		{"Created", localTime(&j.CreatedAt)},
		{"Started", localTime(&j.StartedAt)},
		{"Waiting updates", strconv.Itoa(j.Pending)},
	}); err != nil {
		return err
	}
	var doc bytes.Buffer
	if !a.verbose || len(j.Document) == 0 || json.Indent(&doc, j.Document, "", "  ") != nil {
		return nil
	}
	_, err := fmt.Fprintf(a.stdout, "\n%s\n", doc.String()) // JSON has no control characters but line breaks
	return err
}

func (a *app) jobsCancelCommand() *cobra.Command {
	var filters *filterFlags[ipcapi.JobInfo]
	var all bool
	var reason *string
	c := a.verb("cancel [ID]...", "cancel jobs", 0, -1, func(ctx context.Context, _ *cobra.Command, args []string) error {
		if len(args) == 0 && !filters.given() && !all {
			return usagef("name a job, select with a filter, or say --all")
		}
		return a.changeJobs(ctx, "cancel", "cancelled", ipcapi.JobCancel, filters, false, &all, args, *reason)
	})
	filters = jobFilters(c)
	c.Flags().BoolVar(&all, "all", false, "all jobs of all users")
	reason = reasonFlag(c)
	return c
}

func (a *app) jobsResyncCommand() *cobra.Command {
	var filters *filterFlags[ipcapi.JobInfo]
	var all bool
	var reason *string
	c := a.verb("resync [ID]...", "compare jobs with Slurm and UCloud again", 0, -1, func(ctx context.Context, _ *cobra.Command, args []string) error {
		every := all || len(args) == 0 && !filters.given()
		// What has ended can be compared again, where it is asked for.
		return a.changeJobs(ctx, "resync", "queued", ipcapi.JobResync, filters, all || len(args) > 0 || filters.given(), &every, args, *reason)
	})
	filters = jobFilters(c)
	c.Flags().BoolVar(&all, "all", false, "all jobs, also those that have ended")
	reason = reasonFlag(c)
	return c
}

func (a *app) changeJobs(ctx context.Context, verb, past string, c jobCall, filters *filterFlags[ipcapi.JobInfo], ended bool, all *bool, args []string, reason string) error {
	rows, err := a.jobs(ctx, ended)
	if err != nil {
		return err
	}
	rows = keep(rows, func(j ipcapi.JobInfo) bool { return j.Submission == "submitted" && (ended || !j.State.Final()) })
	sel := selection[ipcapi.JobInfo]{
		what: "job", filters: filters, all: all,
		names: func(j ipcapi.JobInfo) []string { return []string{j.ID, j.EngineID} },
		line: func(j ipcapi.JobInfo) string {
			return fmt.Sprintf("%s of %s (%s): %s, %s", j.ID, jobUser(j), j.CreatedBy, jobApplication(j), jobState(j))
		},
	}
	chosen, err := sel.choose(rows, args)
	if err != nil {
		return err
	}
	req := ipcapi.JobMutation{Reason: reason, DryRun: a.dryRun}
	for _, j := range chosen {
		req.IDs = append(req.IDs, j.ID)
	}
	if verb == "cancel" {
		a.note("%s will be cancelled:", plural(len(chosen), "job"))
		sel.show(a, chosen)
		if err := a.confirm(ctx, "Continue?"); err != nil {
			return err
		}
	}
	rep, err := call(ctx, a, c, req)
	if err != nil {
		return err
	}
	return a.mutated("jobs", verb, "id", past, rep)
}
