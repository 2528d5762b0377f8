package slurm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// AccountingQuery restricts a listing of sacct to jobs that were in some state, waiting included, in a window of time. With
// identifiers and no window, jobs of all times are found (contract 22 section 6.3).
type AccountingQuery struct {
	Since, Until time.Time // zero: the beginning, and now
	IDs          []JobID
	Partitions   []string
	Users        []string
	Accounts     []string
	States       []string
	Duplicates   bool // also the earlier runs of jobs that were requeued
}

// accountingFields are the fields of sacct. As in queueFields, what ends the row cannot contain a line break.
var accountingFields = []string{
	"JobID", "State", "Cluster", "User", "Account", "Partition", "QOS", "Elapsed", "Timelimit", "Submit", "Start", "End", "NNodes", "NCPUS",
	"ExitCode", "Priority", "AllocTRES", "ReqTRES", "NodeList", "WorkDir", "JobName", "Comment", "JobIDRaw",
}

// Accounting lists jobs as slurmdbd has them, and calls each for every row while sacct runs. Only when it returns nil was
// the list whole. slurmdbd follows slurmctld with a delay: for a second or so a job that has just ended may lack its exit
// code, its name, some of its nodes or its comment, which is written at the end only.
func (c *Client) Accounting(ctx context.Context, q AccountingQuery, each func(Job) error) error {
	if q.IDs != nil {
		return eachChunk(q.IDs, func(ids []JobID) error {
			part := q
			part.IDs = ids
			return c.accounting(ctx, part, each)
		})
	}
	return c.accounting(ctx, q, each)
}

// accountingTime is how sacct reads a time; the clock of commands is set to UTC.
const accountingTime = "2006-01-02T15:04:05"

// beginning is before all jobs. sacct takes the epoch itself for no time at all, and then begins with this day.
var beginning = time.Date(1970, 1, 2, 0, 0, 0, 0, time.UTC)

func (c *Client) accounting(ctx context.Context, q AccountingQuery, each func(Job) error) error {
	sep := separator()
	args := []string{"--allusers", "--allocations", "--parsable2", "--delimiter=" + sep, "--format=" + strings.Join(accountingFields, ",")}
	for _, option := range []struct {
		name   string
		values []string
	}{{"--partition=", q.Partitions}, {"--user=", q.Users}, {"--accounts=", q.Accounts}, {"--state=", q.States}} {
		if option.values == nil {
			continue
		}
		list, err := joinNames(option.values)
		if err != nil {
			return err
		}
		args = append(args, option.name+list)
	}
	if q.IDs != nil {
		args = append(args, "--jobs="+arguments(q.IDs))
	}
	switch {
	case !q.Since.IsZero() && q.Since.After(beginning):
		args = append(args, "--starttime="+q.Since.UTC().Format(accountingTime))
	case q.IDs == nil || !q.Since.IsZero():
		args = append(args, "--starttime="+beginning.Format(accountingTime)) // without it the day begins at midnight
	}
	if !q.Until.IsZero() {
		args = append(args, "--endtime="+q.Until.UTC().Format(accountingTime))
	} else if len(q.States) > 0 {
		args = append(args, "--endtime=now") // sacct wants one together with states
	}
	if q.Duplicates {
		args = append(args, "--duplicates")
	}
	err := c.stream(ctx, command{program: "sacct", args: args}, func(r io.Reader) error { return parseAccounting(r, sep, each) })
	return classify(err, "list finished jobs")
}

// parseAccounting reads an answer of sacct.
func parseAccounting(r io.Reader, sep string, each func(Job) error) error {
	rows := newRecords(r, sep, len(accountingFields))
	header, err := rows.next()
	if err != nil {
		return noHeader(err)
	}
	for i, name := range accountingFields {
		if !strings.EqualFold(string(header[i]), name) {
			return noHeader(nil)
		}
	}
	p := &fieldParser{in: interner{}}
	tres := map[string]TRES{} // many jobs have the same
	for {
		f, err := rows.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		job, err := accountingJob(f, p, tres)
		if err != nil {
			return fmt.Errorf("%w: job %s: %w", ErrIncomplete, cut(string(f[0])), err)
		}
		if err := each(job); err != nil {
			return err
		}
	}
}

func accountingJob(f [][]byte, p *fieldParser, known map[string]TRES) (Job, error) {
	var j Job
	in := p.in
	if n, ok := plainNumber(f[len(f)-1]); !ok || n == 0 {
		return j, errors.New("the row does not end with an id")
	}
	j.ID = p.id(f[0])
	j.State, j.By, j.HasBy = p.state(f[1])
	j.Cluster, j.User, j.Account, j.Partition, j.QoS = in.get(f[2]), in.get(f[3]), in.get(f[4]), in.get(f[5]), in.get(f[6])
	j.Elapsed, _ = p.duration(f[7])
	j.Limit, j.Unlimited = p.duration(f[8])
	j.Submit, j.Start, j.End = p.time(f[9]), p.time(f[10]), p.time(f[11])
	j.NodeCount, j.CPUs = p.count(f[12]), p.count(f[13])
	code, signal, _ := bytes.Cut(f[14], []byte(":"))
	j.ExitCode, j.Signal = int(p.number(code)), int(p.number(signal)) //nolint:gosec // codes of the kernel
	j.Priority = p.number(f[15])
	j.TRES, j.Requested = p.tres(f[16], known), p.tres(f[17], known)
	j.Nodes = p.nodes(f[18])
	dir, name := len(f[19]), len(f[20])
	texts := p.join(f[19:22])
	j.WorkDir, j.Name, j.Comment = texts[:dir], texts[dir:dir+name], texts[dir+name:]
	finish(&j)
	return j, p.err
}

func (p *fieldParser) tres(b []byte, known map[string]TRES) TRES {
	if len(b) == 0 {
		return nil
	}
	if t, ok := known[string(b)]; ok {
		return t
	}
	t, err := ParseTRES(string(b))
	p.fail(err)
	if len(known) >= maxInterned {
		clear(known)
	}
	known[string(b)] = t
	return t
}
