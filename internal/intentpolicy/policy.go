// Package intentpolicy is the server's part in signed intents (contract 01 section 7): what is asked of whom, and what
// require would refuse. Verification is done in the instances (package intentclient).
//
// # Trust
//
// Numbers come from instances, which belong to their users. A user can lie about themselves and about nobody else: whose
// numbers they are is decided by the kernel's uid (TestNumbersAreTheCallers). What they say is bounded in size and taken
// from fixed sets of words, so that nobody fills the memory, the report or the metrics (TestNumbersAreBounded).
package intentpolicy

import (
	"slices"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/ipcapi"
)

// Policy is what the configuration says.
type Policy struct {
	Mode   string
	Users  map[ident.UCloudUser]string // instead of Mode
	Calls  map[string]string           // instead of Mode; with a mode of the user, the stricter of both
	Exempt []string                    // names of calls that need no intent
	MaxAge time.Duration
	Skew   time.Duration
}

// For gives the settings for the instance of a user, which share their lists with the policy.
func (p Policy) For(user ident.UCloudUser) ipcapi.IntentSettings {
	s := ipcapi.IntentSettings{
		Mode: p.Mode, Calls: p.Calls, Exempt: p.Exempt, MaxAgeMs: p.MaxAge.Milliseconds(), SkewMs: p.Skew.Milliseconds(),
	}
	own, named := p.Users[user]
	if !named {
		return s
	}
	s.Mode, s.Calls = own, make(map[string]string, len(p.Calls))
	for call, mode := range p.Calls {
		s.Calls[call] = intent.Stricter(mode, own)
	}
	return s
}

// Wanted tells whether anything that the user signs is looked at, so that keys are of use.
func (p Policy) Wanted(user ident.UCloudUser) bool {
	s := p.For(user)
	return !intent.NewPolicy(s.Mode, s.Calls, s.Exempt).Off()
}

// modes in which something is counted.
var modes = []string{intent.ModeLog, intent.ModeRequire}

// Describe sums the policy up for people.
func (p Policy) Describe() string {
	if p.Mode == "" {
		p.Mode = intent.ModeOff
	}
	more := len(p.Users) + len(p.Calls) + len(p.Exempt)
	if more == 0 {
		return p.Mode
	}
	return p.Mode + ", with exceptions"
}

// refuses tells whether require refuses a request with the verdict.
func refuses(verdict string) bool {
	return !slices.Contains([]string{string(intent.OK), string(intent.Exempt), ipcapi.IntentOptional, ipcapi.IntentUnavailable}, verdict)
}
