package jobrunner

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/jobscript"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/scripts"
)

// hookRequest is what the site's program is told about a job that is about to be submitted (contract 42 part B.15).
type hookRequest struct {
	JobID            string                           `json:"jobId"`
	Owner            providerapi.ResourceOwner        `json:"owner"`
	Machine          hookMachine                      `json:"machine"`
	Nodes            int                              `json:"nodes"`
	TimeLimitSeconds int64                            `json:"timeLimitSeconds"`
	Application      providerapi.ApplicationReference `json:"application"`
	Account          string                           `json:"account"`
	Partition        string                           `json:"partition"`
	QoS              string                           `json:"qos"`
	Directives       map[string]string                `json:"directives"`
	ScriptPath       string                           `json:"scriptPath"`
}

type hookMachine struct {
	Name        string `json:"name"`
	Category    string `json:"category"`
	CPU         int    `json:"cpu"`
	MemoryInGBs int    `json:"memoryInGigs"`
	GPU         int    `json:"gpu"`
}

type hookReply struct {
	Directives map[string]string `json:"directives"`
}

// SubmitHook calls the site's program onJobSubmit as the user. What it changes comes after the directives of the script and
// wins, but for those that are the provider's or locked by the site. With ignore a failure of the program stops no job;
// its refusal (exit status 77) does. locked are the names that the site has locked.
func SubmitHook(h *scripts.Hook, ignore bool, locked func() []string) func(ctx context.Context, c HookCall) ([]string, error) {
	return func(ctx context.Context, c HookCall) ([]string, error) {
		m := c.Grant.Machine
		var reply hookReply
		err := h.Call(ctx, scripts.Call{
			Key: c.Job.ID, Owner: c.Job.Owner.Workspace(), Reason: "submit", Request: hookRequest{
				JobID: c.Job.ID, Owner: c.Job.Owner, Nodes: c.Nodes, TimeLimitSeconds: int64(c.Script.TimeLimit / time.Second),
				Machine:     hookMachine{Name: m.Name, Category: m.Category, CPU: m.CPU, MemoryInGBs: m.MemoryGB, GPU: m.GPU},
				Application: c.Job.Specification.Application, Account: c.Grant.Account, Partition: c.Grant.Partition, QoS: c.Grant.QoS,
				Directives: directivesOf(c.Script.Text), ScriptPath: c.Path,
			},
		}, &reply)
		if err != nil {
			failed, ok := errors.AsType[*scripts.Error](err)
			switch {
			case ok && failed.Exit == exitRefused:
				why := failed.UserMessage
				if why == "" {
					why = "The provider does not permit this job"
				}
				return nil, failure.Wrap(err, failure.Forbidden, "%s", why)
			case ignore && ctx.Err() == nil:
				return nil, nil
			}
			return nil, failure.Wrap(err, failure.Internal, "A check of the provider has failed, so the job was not submitted. Try again later.")
		}
		args, err := arguments(reply.Directives, locked())
		if err != nil && ignore {
			return nil, nil
		}
		return args, err
	}
}

// exitRefused is the exit status by which the program says no (contract 42 section A.3).
const exitRefused = 77

// arguments are the program's directives as arguments of sbatch.
func arguments(directives map[string]string, locked []string) ([]string, error) {
	var d jobscript.Directives
	d.Lock(locked...)
	var args []string
	for _, name := range slices.Sorted(maps.Keys(directives)) {
		ignored, err := d.Override(name, directives[name])
		if err != nil {
			return nil, failure.Wrap(err, failure.Internal, "A check of the provider has answered something that cannot be used")
		}
		value, ok := d.Get(name)
		switch {
		case !ok || ignored:
		case value == "": // sbatch refuses even an empty value where there is none
			args = append(args, "--"+name)
		default:
			args = append(args, "--"+name+"="+value)
		}
	}
	return args, nil
}

// directivesOf reads the directives at the head of a script of ours.
func directivesOf(text []byte) map[string]string {
	found := map[string]string{}
	for line := range strings.Lines(string(text)) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "#SBATCH --")
		if !ok {
			if !strings.HasPrefix(line, "#") && strings.TrimSpace(line) != "" {
				break
			}
			continue
		}
		name, value, _ := strings.Cut(rest, " ")
		if i := strings.IndexByte(name, '='); i > 0 {
			name, value = rest[:i], rest[i+1:]
		}
		found[name] = strings.Trim(value, "'")
	}
	return found
}
