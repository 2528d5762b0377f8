// Package intent verifies signed intents: what a user's browser signs so that a provider can tell, without trusting
// UCloud/Core, that the user really asked (contract 01 section 7, design D7). docs/protocol-intents.md specifies both
// forms that are accepted.
package intent

import (
	"errors"
	"fmt"
	"slices"
)

// HeaderSignedIntent carries the intent of an HTTP request; sockets have it in the field signedIntent of a frame.
const HeaderSignedIntent = "UCloud-Signed-Intent"

// The modes of the policy, in the order of their strictness.
const (
	ModeOff     = "off"     // nothing is looked at
	ModeLog     = "log"     // verified, counted and reported; everything passes
	ModeRequire = "require" // what does not verify is refused
)

// Rule says which intent a call of Core needs. The zero value is not valid: a route that says nothing does not start.
type Rule struct {
	// Calls are the user-facing names that an intent for this call may have (contract 01 section 7.3). A name that ends
	// in ".*" stands for all below it.
	Calls []string
	// Unsigned tells that today's web client has no name for the call and so signs nothing: a missing intent is not the
	// fault of a key then, and must not be answered with the status that makes the client throw its key away.
	Unsigned bool
	// Frame tells that the intent comes in the first frame of a socket; the handler has it checked with the frame.
	Frame bool
	// Optional tells that a missing intent passes unless the policy names the call itself: today's clients may send none
	// here (contract 01 section 7.3). One that is there has to verify.
	Optional bool
	// Exempt is why no intent is asked for; Calls is empty then.
	Exempt string
	// Owners are the places in the body where a document with the owner of the resource stands, such as
	// "resolvedCollection" or "items[].resolvedCollection". The project of an intent must be the project of each. A place
	// that may hold no resource ends in "?".
	Owners []string
	// Drives are the places in the body where a drive is named by its id or by a path in it, and no document says whose it
	// is: "items[].id". The project of an intent must be that of each that the provider knows.
	Drives []string
}

// Check tells what is wrong with the rule.
func (r Rule) Check() error {
	switch {
	case r.Exempt != "" && len(r.Calls) > 0:
		return errors.New("a rule has names of calls or a reason for none, not both")
	case r.Exempt == "" && len(r.Calls) == 0:
		return errors.New("no rule about signed intents is declared")
	case slices.Contains(r.Calls, ""):
		return errors.New("a name of a call is empty")
	}
	return nil
}

// String is for messages.
func (r Rule) String() string {
	if r.Exempt != "" {
		return "exempt: " + r.Exempt
	}
	return fmt.Sprint(r.Calls)
}
