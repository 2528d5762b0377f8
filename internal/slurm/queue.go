package slurm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"ucloud-im/internal/ident"
)

// QueueQuery restricts a listing of squeue. An empty query asks for all jobs that have not ended.
type QueueQuery struct {
	Partitions []string
	Users      []string
	IDs        []JobID  // arrays and heterogeneous jobs give a row for each of their parts
	States     []string // such as "pending"; "all" includes jobs that ended in the last minutes
}

// queueFields are the fields of squeue, by its letters. The texts that users choose are in the middle, and what ends a
// row is the identifier once more, which cannot contain a line break.
var queueFields = []string{"i", "T", "u", "a", "P", "q", "M", "l", "S", "e", "V", "D", "C", "Q", "r", "N", "Z", "j", "k", "i"}

// idsPerCall bounds the length of the arguments.
const idsPerCall = 500

// Queue lists jobs as slurmctld has them, and calls each for every row while squeue runs. Only when Queue returns nil was
// the list whole: until then rows say nothing about what is missing. Tasks of an array that wait stay together in one row.
func (c *Client) Queue(ctx context.Context, q QueueQuery, each func(Job) error) error {
	if q.IDs != nil {
		return eachChunk(q.IDs, func(ids []JobID) error {
			part := q
			part.IDs = ids
			return c.queue(ctx, part, each)
		})
	}
	return c.queue(ctx, q, each)
}

// eachChunk divides identifiers over several commands.
func eachChunk(ids []JobID, do func([]JobID) error) error {
	for len(ids) > 0 {
		n := min(len(ids), idsPerCall)
		if err := do(ids[:n]); err != nil {
			return err
		}
		ids = ids[n:]
	}
	return nil
}

func (c *Client) queue(ctx context.Context, q QueueQuery, each func(Job) error) error {
	args := []string{"--all", "--local"}
	for _, option := range []struct {
		name   string
		values []string
	}{{"--partition=", q.Partitions}, {"--user=", q.Users}, {"--states=", q.States}} {
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
	sep := separator()
	// The format goes through the environment, which other users of the machine cannot read: nobody may learn the
	// separator in time to put it into the name of a job.
	format := "SQUEUE_FORMAT=%" + strings.Join(queueFields, sep+"%")
	err := c.stream(ctx, command{program: "squeue", args: args, env: []string{format}}, func(r io.Reader) error {
		return parseQueue(r, sep, each)
	})
	if q.IDs != nil && errors.Is(err, ErrNoJob) {
		return nil // a single job that slurmctld does not have; among several it is left out silently
	}
	return classify(err, "list its jobs")
}

// joinNames joins names for an option that takes a list. None may be mistaken for something else.
func joinNames(names []string) (string, error) {
	if len(names) == 0 {
		return "", errors.New("an empty list restricts to nothing")
	}
	for _, n := range names {
		if !validName(n) {
			return "", fmt.Errorf("%q cannot be a name in Slurm", cut(n))
		}
	}
	return strings.Join(names, ","), nil
}

// validName tells whether a text can be the name of a partition, user, account or QoS in a command.
func validName(s string) bool {
	if s == "" || len(s) > 255 || s[0] == '-' {
		return false
	}
	for i := range len(s) {
		// Slurm lists names with commas, and reads = and quotes in arguments.
		if c := s[i]; c <= ' ' || c == 0x7f || strings.IndexByte(`,='"\|*%`, c) >= 0 {
			return false
		}
	}
	return true
}

// parseQueue reads an answer of squeue.
func parseQueue(r io.Reader, sep string, each func(Job) error) error {
	rows := newRecords(r, sep, len(queueFields))
	header, err := rows.next()
	if err != nil || string(header[0]) != "JOBID" || string(header[1]) != "STATE" || string(header[len(header)-1]) != "JOBID" {
		return noHeader(err)
	}
	p := &fieldParser{in: interner{}}
	for {
		f, err := rows.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		job, err := queueJob(f, p)
		if err != nil {
			return fmt.Errorf("%w: job %s: %w", ErrIncomplete, cut(string(f[0])), err)
		}
		if err := each(job); err != nil {
			return err
		}
	}
}

func noHeader(err error) error {
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: no header: %w", ErrIncomplete, err)
	}
	return fmt.Errorf("%w: no header", ErrIncomplete)
}

func queueJob(f [][]byte, p *fieldParser) (Job, error) {
	if !bytes.Equal(f[0], f[len(f)-1]) {
		return Job{}, errors.New("the row has two ids")
	}
	var j Job
	in := p.in
	j.ID = p.id(f[0])
	j.State, j.By, j.HasBy = p.state(f[1])
	j.User, j.Account, j.Partition, j.QoS = in.get(f[2]), p.text(f[3]), in.get(f[4]), p.text(f[5])
	j.Elapsed, _ = p.duration(f[6])
	j.Limit, j.Unlimited = p.duration(f[7])
	start, end := p.time(f[8]), p.time(f[9])
	j.Submit = p.time(f[10])
	j.NodeCount, j.CPUs = p.count(f[11]), p.count(f[12])
	j.Priority = p.number(f[13])
	j.Reason, j.Nodes = in.get(f[14]), p.nodes(f[15])
	// One copy for the three texts, which hardly ever occur twice.
	dir, name := len(f[16]), len(f[17])
	texts := p.join(f[16:19])
	j.WorkDir, j.Name, j.Comment = texts[:dir], texts[dir:dir+name], texts[dir+name:]
	if j.Comment == "(null)" {
		j.Comment = ""
	}
	// Start and end of a job that waits are plans, and the end of one that runs is its limit.
	switch j.State {
	case "PENDING":
		j.EstimatedStart = start
	case "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT":
		j.Start = start
	default:
		j.Start, j.End = start, end
	}
	finish(&j)
	return j, p.err
}

func finish(j *Job) {
	if j.ID.Task != "" {
		j.ArrayJob = j.ID.ID
	}
	j.Requeued = j.State == "REQUEUED"
}

// fieldParser parses the fields of all rows of an answer and keeps the first error.
type fieldParser struct {
	in  interner
	buf []byte
	err error
}

// join is one copy of several fields.
func (p *fieldParser) join(fields [][]byte) string {
	p.buf = p.buf[:0]
	for _, f := range fields {
		p.buf = append(p.buf, f...)
	}
	return string(p.buf)
}

func (p *fieldParser) fail(err error) {
	if p.err == nil && err != nil {
		p.err = err
	}
}

func (p *fieldParser) id(b []byte) JobID {
	if n, ok := plainNumber(b); ok && n != 0 && b[0] != '0' {
		return JobID{ID: n}
	}
	id, err := ParseJobID(string(b))
	p.fail(err)
	return id
}

// plainNumber is for the common case, without a copy.
func plainNumber(b []byte) (uint64, bool) {
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	var n uint64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return n, true
}

func (p *fieldParser) number(b []byte) uint64 {
	n, ok := plainNumber(b)
	if !ok && len(b) > 0 {
		p.fail(fmt.Errorf("%q is no number", cut(string(b))))
	}
	return n
}

// state parses "CANCELLED by 1000", and "CANCELLED+", which is how a narrow column ends.
func (p *fieldParser) state(b []byte) (state string, by ident.UID, hasBy bool) {
	word, rest, more := bytes.Cut(b, []byte(" "))
	word = bytes.TrimSuffix(word, []byte("+"))
	if len(word) == 0 || len(word) > 40 || bytes.Trim(word, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") != nil {
		p.fail(fmt.Errorf("%q is no state", cut(string(b))))
		return "", 0, false
	}
	state = p.in.get(word)
	if !more {
		return state, 0, false
	}
	who, ok := bytes.CutPrefix(rest, []byte("by "))
	n, number := plainNumber(who)
	if !ok || !number || n > 1<<32-2 {
		// Somebody whom Slurm cannot name; the state is clear all the same.
		return state, 0, false
	}
	return state, ident.UID(n), true
}

func (p *fieldParser) text(b []byte) string {
	if string(b) == "(null)" {
		return ""
	}
	return p.in.get(b)
}

func (p *fieldParser) nodes(b []byte) string {
	switch string(b) {
	case "None assigned", "(null)", "None", "n/a", "N/A":
		return ""
	}
	return p.in.get(b)
}

func (p *fieldParser) duration(b []byte) (time.Duration, bool) {
	d, unlimited, err := parseDuration(p.in.get(b))
	p.fail(err)
	return d, unlimited
}

func (p *fieldParser) time(b []byte) time.Time {
	if n, ok := plainNumber(b); ok && n != 0 {
		return time.Unix(int64(n), 0).UTC() //nolint:gosec // at most 18 digits
	}
	t, err := parseTime(string(b))
	p.fail(err)
	return t
}

func (p *fieldParser) count(b []byte) int {
	if n, ok := plainNumber(b); ok && n <= maxCount {
		return int(n) //nolint:gosec // bounded above
	}
	// "1-4" are the nodes of a job that takes what it gets.
	s, _, _ := strings.Cut(string(b), "-")
	n, err := parseCount(s)
	p.fail(err)
	return n
}
