package intent

import "slices"

// Policy says how strict to be with which call of one user. The zero value is off.
type Policy struct {
	mode   string
	calls  map[string]string
	exempt []string
}

// NewPolicy makes a policy from the mode of calls that are not named, the modes of single calls by their user-facing
// name, and the names that need no intent. An unknown mode counts as [ModeRequire]: a newer server may know more, and
// none of it is less strict than what this program knows.
func NewPolicy(mode string, calls map[string]string, exempt []string) Policy {
	return Policy{mode: mode, calls: calls, exempt: exempt}
}

// Off tells whether nothing is ever looked at.
func (p Policy) Off() bool { return p.strictest() == rank(ModeOff) }

// Requires tells whether there are calls that must be signed.
func (p Policy) Requires() bool { return p.strictest() == rank(ModeRequire) }

func (p Policy) strictest() int {
	most := rank(p.mode)
	for _, mode := range p.calls {
		most = max(most, rank(mode))
	}
	return most
}

// Names tells whether one of the names of a rule has a mode of its own.
func (p Policy) Names(r Rule) bool {
	return slices.ContainsFunc(r.Calls, func(call string) bool { _, ok := p.calls[call]; return ok })
}

// Mode gives the mode for a rule. A rule that accepts several names gets the strictest mode of those that the policy
// names; a name without an intent wins over all.
func (p Policy) Mode(r Rule) string {
	if r.Exempt != "" {
		return ModeOff
	}
	mode, named := ModeOff, false
	for _, call := range r.Calls {
		if slices.Contains(p.exempt, call) {
			return ModeOff
		}
		if m, ok := p.calls[call]; ok && (!named || rank(m) > rank(mode)) {
			mode, named = m, true
		}
	}
	if !named {
		mode = p.mode
	}
	return [...]string{ModeOff, ModeLog, ModeRequire}[rank(mode)]
}

// Stricter gives the stricter of two modes.
func Stricter(a, b string) string {
	if rank(a) >= rank(b) {
		return a
	}
	return b
}

func rank(mode string) int {
	switch mode {
	case ModeOff, "":
		return 0
	case ModeLog:
		return 1
	}
	return 2
}
