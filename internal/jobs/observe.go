package jobs

import (
	"slices"
	"strconv"
	"time"

	"ucloud-im/internal/providerapi"
)

// seen is all that Slurm has said about one job in one round.
type seen struct {
	parts    []Observation // tasks of an array, components of a heterogeneous job; one for any other
	inQueue  bool          // squeue has it
	accounts bool          // sacct has it
}

// together joins what squeue and sacct say, by job. Of a part that both know, squeue tells the state while it is not final,
// since accounting lags behind; the end is told by accounting, which knows more about it.
func together(queue, history []Observation) map[string]*seen {
	all := make(map[string]*seen, len(queue)+len(history))
	of := func(o *Observation) *seen {
		v := all[o.ID]
		if v == nil {
			v = &seen{}
			all[o.ID] = v
		}
		return v
	}
	type part struct {
		id, task string
		het      int
	}
	where := make(map[part]int, len(queue))
	for i := range queue {
		o := &queue[i]
		v := of(o)
		v.inQueue = true
		where[part{o.ID, o.Task, o.Het}] = len(v.parts)
		v.parts = append(v.parts, *o)
	}
	for i := range history {
		o := &history[i]
		v := of(o)
		v.accounts = true
		at, both := where[part{o.ID, o.Task, o.Het}]
		switch {
		case !both:
			where[part{o.ID, o.Task, o.Het}] = len(v.parts)
			v.parts = append(v.parts, *o)
		case v.parts[at].State.Final() && o.State.Final():
			nodes := v.parts[at].Nodes
			v.parts[at] = *o
			if len(o.Nodes) == 0 {
				v.parts[at].Nodes = nodes
			}
		default:
			if v.parts[at].Comment == "" {
				v.parts[at].Comment = o.Comment
			}
		}
	}
	return all
}

// whole is a job as one: the aggregate of an array's tasks, and the leader of a heterogeneous job with the nodes of all.
// false: Slurm has said nothing that can be understood.
func (v *seen) whole() (Observation, bool) {
	parts := v.parts
	if v.inQueue {
		// Accounting keeps a row for tasks that wait together, also when some of them have a row of their own since.
		parts = slices.DeleteFunc(slices.Clone(parts), func(o Observation) bool { return severalTasks(o.Task) && !v.queued(o.Task) })
	}
	if len(parts) == 0 {
		return Observation{}, false
	}
	if len(parts) == 1 {
		return parts[0], parts[0].State != ""
	}
	slices.SortStableFunc(parts, func(a, b Observation) int {
		if a.Het != b.Het {
			return a.Het - b.Het
		}
		return taskNumber(a.Task) - taskNumber(b.Task)
	})
	if parts[len(parts)-1].Het > 0 { // the leader speaks for all
		leader := parts[0]
		if leader.Het != 0 {
			return Observation{}, false
		}
		for _, p := range parts[1:] {
			leader.Nodes = append(slices.Clone(leader.Nodes), p.Nodes...)
			leader.NodeCount += p.NodeCount
		}
		return leader, leader.State != ""
	}
	return array(parts)
}

func (v *seen) queued(task string) bool {
	return slices.ContainsFunc(v.parts, func(o Observation) bool { return o.Task == task && !o.State.Final() })
}

// array is the aggregate of tasks: it runs while one runs, it waits while one waits and none runs, and it has ended when all
// have, as the worst of them.
func array(parts []Observation) (Observation, bool) {
	count := map[providerapi.JobState]int{}
	byState := map[providerapi.JobState]Observation{}
	var started, ended time.Time
	var nodes []string
	for _, p := range parts {
		if p.State == "" {
			return Observation{}, false
		}
		count[p.State]++
		if _, ok := byState[p.State]; !ok {
			byState[p.State] = p
		}
		if !p.Started.IsZero() && (started.IsZero() || p.Started.Before(started)) {
			started = p.Started
		}
		if p.Ended.After(ended) {
			ended = p.Ended
		}
		if p.State == providerapi.JobRunning {
			nodes = append(nodes, p.Nodes...)
		}
	}
	for _, state := range []providerapi.JobState{
		providerapi.JobRunning, providerapi.JobInQueue, providerapi.JobSuspended, providerapi.JobFailure, providerapi.JobExpired, providerapi.JobSuccess,
	} {
		if count[state] == 0 {
			continue
		}
		o := byState[state]
		o.Task, o.Started, o.Nodes = "", started, nodes
		if state.Final() {
			o.Ended = ended
			if n := len(parts); state != providerapi.JobSuccess {
				o.Message = strconv.Itoa(count[state]) + " of " + strconv.Itoa(n) + " tasks: " + o.Message
			}
		}
		return o, true
	}
	return Observation{}, false
}

// severalTasks tells whether a name of tasks stands for several, such as 8-99.
func severalTasks(task string) bool {
	_, err := strconv.Atoi(task)
	return task != "" && err != nil
}

func taskNumber(task string) int {
	n, err := strconv.Atoi(task)
	if err != nil {
		return int(^uint(0) >> 1) // waits behind the others
	}
	return n
}
