package scripts

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"ucloud-im/internal/observability"
)

// Names of the hooks for storage (contract 42 part B).
const (
	HookDriveLocator = "driveLocator"
	HookQuotaUpdated = "onQuotaUpdated"
	HookUsage        = "onUsageReporting"
	HookDriveRemoved = "onDriveRemoved"
)

// HookUserConnected finds or makes the account of a user (contract 42 sections B.1 and B.2).
const HookUserConnected = "onUserConnected"

// HookOptions are one configured program (contract 42 SCR-1). Zero values mean the defaults of the hook.
type HookOptions struct {
	Name        string
	Path        string
	Args        []string // before the path of the request file
	Timeout     time.Duration
	Protocol    int // 1 or 2; 0 means 1
	Concurrency int // calls at once
	Environment map[string]string
	Secrets     []Secret
	Retry       Retry
	Purpose     Purpose // only for those who try the hook by hand
}

// Secret is passed on a descriptor of its own (contract 42 SEC-S5).
type Secret struct {
	Name  string // as in passSecrets
	Value observability.Secret
}

// traits are what a hook is like, whatever the configuration says.
type traits struct {
	changes     bool // it changes something; one that does not may run beside one that does
	needsReply  bool
	timeout     time.Duration // 0: the general one
	concurrency int
	hurried     bool // Core waits for the answer, and not for long
}

// known are the traits by name (contract 42 part B).
var known = map[string]traits{
	HookDriveLocator: {needsReply: true, timeout: 15 * time.Second, concurrency: 4},
	HookQuotaUpdated: {changes: true, timeout: 300 * time.Second, concurrency: 1},
	HookUsage:        {needsReply: true, concurrency: 4},
	HookDriveRemoved: {changes: true, timeout: 300 * time.Second, concurrency: 1},

	HookAccountMapper:    {needsReply: true, timeout: 15 * time.Second, concurrency: 4},
	HookProjectUpdated:   {changes: true, timeout: 120 * time.Second, concurrency: 1},
	HookUserDisconnected: {changes: true, timeout: 60 * time.Second, concurrency: 1},

	HookUserConnected: {changes: true, needsReply: true, timeout: 60 * time.Second, concurrency: 1},
	HookTicketCreated: {changes: true, timeout: 30 * time.Second, concurrency: 1},

	HookJobSubmit: {timeout: 10 * time.Second, concurrency: 4},
	// Core gives up on a job after 5 s, in which it has to be submitted too: the 10 s of the contract are too long.
	HookTemplateScript: {needsReply: true, timeout: 2 * time.Second, concurrency: 4, hurried: true},
}

// maxTimeout is the longest time limit (contract 42 SCR-6).
const maxTimeout = time.Hour

// Hook is a configured program that can be called.
type Hook struct {
	r     *Runner
	o     HookOptions
	t     traits
	slots *semaphore.Weighted
}

var environmentName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`) })

// Hook makes a hook of this runner. Nothing is executed and no file looked at.
func (r *Runner) Hook(o HookOptions) (*Hook, error) {
	t, ok := known[o.Name]
	if !ok {
		return nil, fmt.Errorf("hook %q is not known", o.Name)
	}
	switch {
	case o.Path == "" || strings.ContainsRune(strings.Join(append(o.Args, o.Path), ""), 0):
		return nil, fmt.Errorf("hook %s: path and arguments must not be empty or hold NUL", o.Name)
	case o.Protocol < 0 || o.Protocol > 2:
		return nil, fmt.Errorf("hook %s: protocol %d", o.Name, o.Protocol)
	case o.Timeout < 0 || o.Timeout > maxTimeout:
		return nil, fmt.Errorf("hook %s: timeout %v", o.Name, o.Timeout)
	}
	for name, value := range o.Environment {
		if !environmentName().MatchString(name) || strings.ContainsRune(value, 0) {
			return nil, fmt.Errorf("hook %s: variable %q", o.Name, name)
		}
		if strings.HasPrefix(name, "UCLOUD_") {
			return nil, fmt.Errorf("hook %s: variables that begin with UCLOUD_ are ours, %s is not", o.Name, name)
		}
	}
	names := map[string]bool{}
	for _, s := range o.Secrets {
		variable := secretVariable(s.Name)
		if s.Name == "" || s.Value == "" || names[variable] {
			return nil, errors.Join(fmt.Errorf("hook %s: the secret %q has no value or is there twice", o.Name, s.Name))
		}
		names[variable] = true
	}
	if o.Protocol == 0 {
		o.Protocol = 1
	}
	for _, d := range []time.Duration{t.timeout, r.defaults.Load().Timeout, 60 * time.Second} {
		if o.Timeout == 0 {
			o.Timeout = d
		}
	}
	for _, n := range []int{r.defaults.Load().Concurrency, t.concurrency} {
		if o.Concurrency <= 0 {
			o.Concurrency = n
		}
	}
	return &Hook{r: r, o: o, t: t, slots: semaphore.NewWeighted(int64(o.Concurrency))}, nil
}

// Name is the name of the hook.
func (h *Hook) Name() string { return h.o.Name }

// Retry is how failed calls are repeated.
func (h *Hook) Retry() Retry { return h.o.Retry }

// Path is the configured program.
func (h *Hook) Path() string { return h.o.Path }

// secretVariable is the variable with the descriptor's number: capitals, digits and underscores only.
func secretVariable(name string) string {
	return "UCLOUD_SECRET_" + strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, name) + "_FD"
}
