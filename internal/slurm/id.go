package slurm

import (
	"fmt"
	"strconv"
	"strings"
)

// JobID is an identifier of a job as squeue and sacct print it: 730512, a task of an array 730602_7, tasks of an array
// that wait 730602_[8-99%4], a component of a heterogeneous job 730700+0 (contract 22 section 6.1).
type JobID struct {
	ID    uint64 // never 0 in an identifier that was parsed
	Task  string // "", "7", or "8-99%4" for tasks that are still together
	Het   uint32 // component of a heterogeneous job
	IsHet bool
}

// maxTask bounds the list of tasks that are still together. Slurm cuts it off itself, with dots at the end.
const maxTask = 4096

// ParseJobID parses an identifier. 0 is none.
func ParseJobID(s string) (JobID, error) {
	end := 0
	for end < len(s) && s[end] >= '0' && s[end] <= '9' {
		end++
	}
	n, err := strconv.ParseUint(s[:end], 10, 63)
	if err != nil || n == 0 || s[0] == '0' {
		return JobID{}, fmt.Errorf("%q is no id of a job", cut(s))
	}
	id := JobID{ID: n}
	switch rest := s[end:]; {
	case rest == "":
		return id, nil
	case rest[0] == '+':
		het, err := strconv.ParseUint(rest[1:], 10, 32)
		if err != nil || strconv.FormatUint(het, 10) != rest[1:] {
			break
		}
		id.Het, id.IsHet = uint32(het), true
		return id, nil
	case rest[0] == '_':
		task := rest[1:]
		if len(task) > 2 && task[0] == '[' && task[len(task)-1] == ']' && len(task) <= maxTask && strings.Trim(task[1:len(task)-1], "0123456789-,:%.") == "" {
			id.Task = task[1 : len(task)-1]
			// A single task can stand in brackets too, and is the same as without.
			return id, nil
		}
		if task != "" && len(task) <= 10 && strings.Trim(task, "0123456789") == "" {
			id.Task = task
			return id, nil
		}
	}
	return JobID{}, fmt.Errorf("%q is no id of a job", cut(s))
}

func cut(s string) string {
	if len(s) > 64 {
		return s[:64] + "..."
	}
	return s
}

// IsRange tells whether the identifier is that of several tasks that are still together.
func (id JobID) IsRange() bool { return strings.Trim(id.Task, "0123456789") != "" }

// String is the form of Slurm.
func (id JobID) String() string {
	s := strconv.FormatUint(id.ID, 10)
	switch {
	case id.IsHet:
		return s + "+" + strconv.FormatUint(uint64(id.Het), 10)
	case id.IsRange():
		return s + "_[" + id.Task + "]"
	case id.Task != "":
		return s + "_" + id.Task
	}
	return s
}

// Leader is the job as a whole: the array, or the heterogeneous job, that the identifier belongs to.
func (id JobID) Leader() JobID { return JobID{ID: id.ID} }

// argument is the identifier for a command. Ranges are named by their array.
func (id JobID) argument() string {
	if id.IsRange() {
		return id.Leader().String()
	}
	return id.String()
}

// arguments joins identifiers for an option, each once.
func arguments(ids []JobID) string {
	seen := make(map[string]bool, len(ids))
	var list []string
	for _, id := range ids {
		if a := id.argument(); id.ID != 0 && !seen[a] {
			seen[a] = true
			list = append(list, a)
		}
	}
	return strings.Join(list, ",")
}
