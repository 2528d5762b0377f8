package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipcapi"
)

const (
	// maxScriptInput bounds a request that is read from a file: all of it must fit into a call.
	maxScriptInput = 512 << 10
	// scriptPatience is for what a call of a script may take beyond its time limit: its turn, and its end.
	scriptPatience = time.Minute
)

func scriptSelection() selection[ipcapi.ScriptHook] {
	return selection[ipcapi.ScriptHook]{
		what: "script", names: func(h ipcapi.ScriptHook) []string { return []string{h.Key, h.Hook} },
		line: func(h ipcapi.ScriptHook) string {
			line := fmt.Sprintf("%s: %s", h.Key, h.Path)
			if h.Changes {
				line += " (changes something at the site)"
			}
			return line
		},
	}
}

// scriptInput reads a request. An empty name is none.
func scriptInput(name string) (json.RawMessage, error) {
	if name == "" {
		return nil, nil //nolint:nilnil // not given
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, usagef("--input: %v", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxScriptInput+1))
	switch {
	case err != nil:
		return nil, usagef("--input: %v", err)
	case len(raw) > maxScriptInput:
		return nil, usagef("--input: %s has more than %d KiB", name, maxScriptInput>>10)
	case !json.Valid(raw):
		return nil, usagef("--input: %s is not JSON", name)
	}
	return raw, nil
}

func (a *app) scriptHooks(ctx context.Context) ([]ipcapi.ScriptHook, error) {
	l, err := call(ctx, a, ipcapi.ScriptHooks, ipcapi.Empty{})
	return l.Items, err
}

// tryScript has a script called, unless there is a reason against it.
func (a *app) tryScript(ctx context.Context, cmd *cobra.Command, h ipcapi.ScriptHook, req ipcapi.ScriptTrialRequest) (ipcapi.ScriptTrial, error) {
	if a.dryRun || h.Problem != "" {
		t := ipcapi.ScriptTrial{ScriptHook: h, Status: ipcapi.ScriptNotRun}
		if h.Problem != "" {
			t.Status = ipcapi.ScriptFailed
		}
		return t, nil
	}
	if !cmd.Flags().Changed("timeout") {
		a.timeout = max(a.timeout, time.Duration(h.TimeoutMs)*time.Millisecond+scriptPatience)
	}
	req.Key = h.Key
	return call(ctx, a, ipcapi.ScriptTry, req)
}

func (a *app) scriptsTestCommand() *cobra.Command {
	var input string
	var force bool
	var reason *string
	c := a.verb("test [HOOK]", "call scripts with a sample request and judge the replies, without any effect on UCloud", 0, 1,
		func(ctx context.Context, cmd *cobra.Command, args []string) error {
			raw, err := scriptInput(input)
			if err == nil && input != "" && len(args) == 0 {
				err = usagef("--input needs the name of a hook")
			}
			if err != nil {
				return err
			}
			hooks, err := a.scriptHooks(ctx)
			if err != nil {
				return err
			}
			sel := scriptSelection()
			if len(args) > 0 {
				if hooks, err = sel.choose(hooks, args); err != nil {
					return err
				}
			}
			changing := keep(hooks, func(h ipcapi.ScriptHook) bool { return h.Changes })
			switch {
			case len(changing) == 0 || a.dryRun:
			case force:
				a.note("Scripts that change something at the site. They are told by dryRun to change nothing; one that does not know this does its work:")
				sel.show(a, changing)
				if err := a.confirm(ctx, "Call them?"); err != nil {
					return err
				}
			case len(args) > 0:
				return exitf(ExitUsage, "CONFIRMATION", "%s is there to change something at the site. If the script changes nothing when its request says dryRun, add --force", changing[0].Hook)
			}
			trials := []ipcapi.ScriptTrial{}
			for _, h := range hooks {
				if h.Changes && !force && !a.dryRun {
					trials = append(trials, ipcapi.ScriptTrial{ScriptHook: h, Status: ipcapi.ScriptSkipped})
					continue
				}
				t, err := a.tryScript(ctx, cmd, h, ipcapi.ScriptTrialRequest{Input: raw, DryRun: true, Reason: *reason})
				if err != nil && (len(hooks) == 1 || ctx.Err() != nil) {
					return err
				}
				if err != nil { // the others are called all the same (contract 41 CLI-11)
					t = ipcapi.ScriptTrial{ScriptHook: h, Status: ipcapi.ScriptFailed}
					t.Problem = failure.Why(err)
				}
				trials = append(trials, t)
			}
			return a.scriptTrials(trials)
		})
	c.Flags().StringVar(&input, "input", "", "file with the request (JSON) instead of a sample")
	c.Flags().BoolVar(&force, "force", false, "also scripts that change something at the site; they must heed dryRun in their request")
	reason = reasonFlag(c)
	return c
}

func (a *app) scriptsRunCommand() *cobra.Command {
	var input string
	var reason *string
	c := a.verb("run HOOK", "call a script for real with a request from a file; its reply has no effect on UCloud", 1, 1,
		func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if input == "" {
				return usagef("--input FILE is missing")
			}
			raw, err := scriptInput(input)
			if err != nil {
				return err
			}
			hooks, err := a.scriptHooks(ctx)
			if err != nil {
				return err
			}
			sel := scriptSelection()
			h, err := sel.single(hooks, args)
			if err != nil {
				return err
			}
			a.note("This script will be called for real:")
			sel.show(a, []ipcapi.ScriptHook{h})
			if err := a.confirm(ctx, "Continue?"); err != nil {
				return err
			}
			t, err := a.tryScript(ctx, cmd, h, ipcapi.ScriptTrialRequest{Input: raw, Reason: *reason})
			if err != nil {
				return err
			}
			if err := item(a, "scripts", "run", h.Key, t, func() error { return a.scriptTrial(t) }); err != nil {
				return err
			}
			return trialExit([]ipcapi.ScriptTrial{t})
		})
	c.Flags().StringVar(&input, "input", "", "file with the request (JSON), such as that of \"scripts show ID --request\"")
	reason = reasonFlag(c)
	return c
}

// scriptTrials prints what came of several scripts.
func (a *app) scriptTrials(trials []ipcapi.ScriptTrial) error {
	switch a.output {
	case "json", "yaml":
		if err := a.encode(envelope[ipcapi.ScriptTrial]{
			Schema: schemaName("scripts", "test"), GeneratedAt: a.hooks.Now().UTC().Truncate(time.Second), Total: len(trials), Items: trials,
		}); err != nil {
			return err
		}
		return trialExit(trials)
	}
	if len(trials) == 0 {
		a.note("no script is configured")
	}
	for i, t := range trials {
		if err := item(a, "scripts", "test", t.Key, t, func() error {
			if i > 0 {
				if _, err := fmt.Fprintln(a.stdout); err != nil {
					return err
				}
			}
			return a.scriptTrial(t)
		}); err != nil {
			return err
		}
	}
	return trialExit(trials)
}

// trialExit is 0 if no script failed, 1 if all did, and 6 if some did.
func trialExit(trials []ipcapi.ScriptTrial) error {
	switch failed := len(keep(trials, func(t ipcapi.ScriptTrial) bool { return t.Status == ipcapi.ScriptFailed })); failed {
	case 0:
		return nil
	case len(trials):
		return silent(ExitFailed)
	}
	return silent(ExitPartial)
}

// scriptTrial prints what would be executed and, if it was, what came of it.
func (a *app) scriptTrial(t ipcapi.ScriptTrial) error {
	file, changes, status := "", "no", t.Status
	if t.FileOwner != nil {
		file = fmt.Sprintf("owner %d, mode %s, nobody else can change it", *t.FileOwner, t.FileMode)
	}
	if t.Changes {
		changes = "something at the site"
	}
	if t.Status == ipcapi.ScriptSkipped {
		status += ": add --force if it heeds dryRun"
	}
	lines := [][2]string{
		{"hook", t.Hook},
		{"configured", t.Key},
		{"path", t.Path},
		{"arguments", strings.Join(t.Args, " ")},
		{"file", file},
		{"sha256", t.FileHash},
		{"uid", uidText(t.UID)},
		{"limit", milliseconds(t.TimeoutMs)},
		{"protocol", strconv.Itoa(t.Protocol)},
		{"environment", strings.Join(t.Environment, " ")},
		{"changes", changes},
		{"status", status},
		{"problem", t.Problem},
		{"objection", t.Objection},
	}
	c := t.Call
	if c == nil {
		return a.pairs(lines)
	}
	info := ipcapi.ScriptInfo{Exit: c.Exit, Signal: c.Signal, Request: c.Request, Stdout: c.Stdout, Stderr: c.Stderr}
	if err := a.pairs(append(lines, [][2]string{
		{"invocation", c.Invocation},
		{"duration", milliseconds(c.DurationMs)},
		{"exit", exitText(info)},
		{"result", c.Result},
		{"message", c.Message},
		{"stdout", fmt.Sprintf("%d bytes", c.StdoutBytes)},
		{"stderr", fmt.Sprintf("%d bytes", c.StderrBytes)},
	}...)); err != nil {
		return err
	}
	return a.scriptTexts(ipcapi.ScriptRecord{ScriptInfo: info}, true, true, true, true)
}
