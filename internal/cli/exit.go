package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ucloud-im/internal/config"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
)

// Exit codes (contract 41 section 3).
const (
	ExitOK           = 0
	ExitFailed       = 1
	ExitUsage        = 2
	ExitNoMatch      = 3
	ExitAmbiguous    = 4
	ExitConflict     = 5
	ExitPartial      = 6
	ExitPolicy       = 7
	ExitWarnings     = 10
	ExitErrors       = 11
	ExitUnreachable  = 69
	ExitTemporary    = 75
	ExitPermission   = 77
	ExitConfig       = 78
	ExitTimeout      = 124
	ExitInterrupted  = 130 // Ctrl-C, as shells say it
	unknownErrorCode = "FAILED"
)

// exitError is an error that knows its exit code. An empty text prints nothing: the command has said it already.
type exitError struct {
	code int
	name string // for JSON mode
	text string
	hint string
}

func (e *exitError) Error() string { return e.text }

func exitf(code int, name, format string, args ...any) *exitError {
	return &exitError{code: code, name: name, text: fmt.Sprintf(format, args...)}
}

// usagef is wrong usage: exit 2, with the usage on stderr.
func usagef(format string, args ...any) *exitError { return exitf(ExitUsage, "USAGE", format, args...) }

func withHint(e *exitError, format string, args ...any) *exitError {
	e.hint = fmt.Sprintf(format, args...)
	return e
}

// silent ends with a code when everything has been printed.
func silent(code int) error { return &exitError{code: code} }

// classify turns any error into one with a code.
func classify(ctx context.Context, err error) *exitError {
	if e, ok := errors.AsType[*exitError](err); ok {
		return e
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return withHint(exitf(ExitTimeout, "TIMEOUT", "the server did not answer in time"), "--timeout gives it longer")
	case errors.Is(err, context.Canceled) || ctx.Err() != nil:
		return exitf(ExitInterrupted, "INTERRUPTED", "interrupted; what was under way may have happened")
	case errors.Is(err, ipc.ErrDisconnected):
		return exitf(ExitTemporary, "UNAVAILABLE", "the server has ended the connection; what was under way may have happened")
	case errors.Is(err, syscall.EPIPE), errors.Is(err, io.ErrClosedPipe):
		return &exitError{code: ExitFailed} // nobody reads any more
	}
	if _, ok := errors.AsType[config.Problems](err); ok || errors.Is(err, config.ErrRoot) {
		return exitf(ExitConfig, "CONFIGURATION", "%v", err)
	}
	fe, ok := errors.AsType[*failure.Error](err)
	if !ok {
		return exitf(ExitFailed, unknownErrorCode, "%v", err)
	}
	e := exitf(ExitFailed, unknownErrorCode, "%s", fe.Why)
	switch fe.Kind {
	case failure.NotFound:
		e.code, e.name = ExitNoMatch, "NOT_FOUND"
	case failure.Conflict:
		e.code, e.name = ExitConflict, "CONFLICT"
	case failure.Invalid:
		e.name = "INVALID"
	case failure.Unavailable, failure.TooMany:
		e.code, e.name = ExitTemporary, "UNAVAILABLE"
	case failure.Forbidden:
		e.code, e.name = ExitPermission, "PERMISSION"
		if fe.Code == ipcapi.CodePolicy {
			e.code, e.name = ExitPolicy, "POLICY"
		}
	}
	return e
}

// report prints an error where and how it belongs, and gives the exit code.
func (a *app) report(ctx context.Context, cmd *cobra.Command, err error) int {
	e := classify(ctx, err)
	if e.text == "" {
		return e.code
	}
	if ps, ok := errors.AsType[config.Problems](err); ok && !a.isJSON() {
		_ = ps.WriteText(a.stderr, a.coloured(a.stderr)) // nowhere else to complain
		return e.code
	}
	if a.isJSON() {
		type body struct {
			Code    string         `json:"code"`
			Message string         `json:"message"`
			Hint    string         `json:"hint,omitempty"`
			Details map[string]any `json:"details,omitempty"`
		}
		b := body{Code: e.name, Message: e.text, Hint: e.hint}
		if ps, ok := errors.AsType[config.Problems](err); ok {
			b.Details = map[string]any{"problems": problemsOf(ps)}
		}
		_ = json.NewEncoder(a.stderr).Encode(map[string]body{"error": b})
		return e.code
	}
	fmt.Fprintf(a.stderr, "error: %s\n", clean(e.text))
	if e.hint != "" {
		fmt.Fprintf(a.stderr, "hint:  %s\n", clean(e.hint))
	}
	if e.code == ExitUsage && cmd != nil && e.name == "USAGE" {
		fmt.Fprintf(a.stderr, "\n%s", cmd.UsageString())
	}
	return e.code
}

// isJSON tells whether errors are printed as JSON. The flag counts also when the command line was wrong elsewhere.
func (a *app) isJSON() bool { return a.json || a.output == "json" || a.output == "jsonl" }

// nearestFlag is a flag whose name is one typing error away.
func nearestFlag(cmd *cobra.Command, name string) string {
	name, _, _ = strings.Cut(name, "=")
	best := ""
	seen := func(f *pflag.Flag) {
		if !f.Hidden && oneEdit(f.Name, name) {
			best = f.Name
		}
	}
	cmd.Flags().VisitAll(seen)
	cmd.InheritedFlags().VisitAll(seen)
	return best
}

// oneEdit tells whether a and b differ by at most one insertion, deletion, replacement, or two letters in the wrong
// order, or one begins with the other.
func oneEdit(a, b string) bool {
	if len(a) > len(b) {
		a, b = b, a
	}
	if len(a) >= 3 && strings.HasPrefix(b, a) {
		return true
	}
	i := 0
	for i < len(a) && a[i] == b[i] {
		i++
	}
	switch len(b) - len(a) {
	case 0:
		return i == len(a) || a[i+1:] == b[i+1:] ||
			i+1 < len(a) && a[i] == b[i+1] && a[i+1] == b[i] && a[i+2:] == b[i+2:]
	case 1:
		return a[i:] == b[i+1:]
	}
	return false
}
