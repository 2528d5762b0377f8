package scripts

import (
	"fmt"
	"strings"
	"time"
	"unicode"
)

// Kind classifies how a call failed (contract 42 section A.3).
type Kind string

// The kinds. They stand in the script log and in metrics.
const (
	Failed       Kind = "failed"        // exit status 1 to 63 and those without a meaning
	InvalidReply Kind = "invalid reply" // exit status 0 and something else than the reply of the hook
	Permanent    Kind = "permanent"     // 64, 65, 78: no repetition helps
	Temporary    Kind = "temporary"     // 75
	NotPermitted Kind = "not permitted" // 77: not for this user or project
	Technical    Kind = "technical"     // it could not be started, or a signal ended it
	TimedOut     Kind = "timeout"       // it ran longer than allowed
	Refused      Kind = "refused"       // the program breaks the rules for programs and was not started
	Interrupted  Kind = "interrupted"   // we ended it because the service ends or the caller has given up
)

// resultOK is the result of a successful call in the script log.
const resultOK = "ok"

// Retryable tells whether a repetition may help.
func (k Kind) Retryable() bool { return k != Permanent && k != NotPermitted }

// Broken tells whether an operator should look: the program is not what it should be, or its surroundings are not.
func (k Kind) Broken() bool {
	return k == InvalidReply || k == Permanent || k == Technical || k == TimedOut || k == Refused
}

// Error tells how a call failed. Its text is for logs and operators; only UserMessage is for end users.
type Error struct {
	Hook        string
	Kind        Kind
	Invocation  string        // for `ucloud scripts show`
	Exit        int           // -1: it did not exit by itself
	Signal      string        // that ended it
	Message     string        // the program's own words, or ours; one line
	UserMessage string        // what the program wants the end user to know; may be empty
	RetryAfter  time.Duration // what the program asks for; 0: nothing
	Cause       error
}

// Error implements error.
func (e *Error) Error() string {
	text := "script " + e.Hook + ": " + string(e.Kind)
	switch {
	case e.Signal != "":
		text += " (" + e.Signal + ")"
	case e.Exit > 0:
		text += fmt.Sprintf(" (exit status %d)", e.Exit)
	}
	if e.Message != "" {
		text += ": " + e.Message
	}
	return text
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Cause }

// kindOfExit is the table of contract 42 section A.3.
func kindOfExit(status int) Kind {
	switch status {
	case 64, 65, 78:
		return Permanent
	case 75:
		return Temporary
	case 77:
		return NotPermitted
	case 126, 127:
		return Technical
	}
	return Failed
}

// Retry says when a failed call of a change hook is repeated (contract 42 section A.3).
type Retry struct {
	Initial  time.Duration // 0 means 10 s
	Max      time.Duration // 0 means 1 h
	Deadline time.Duration // when to give up; 0: never
}

// Pause is how long to wait after so many failures in a row, at least one. What the program asks for counts, within
// reason: not below a second and not above an hour.
func (r Retry) Pause(failures int, asked time.Duration) time.Duration {
	if asked > 0 {
		return min(max(asked, time.Second), time.Hour)
	}
	pause, most := r.Initial, r.Max
	if pause <= 0 {
		pause = 10 * time.Second
	}
	if most <= 0 {
		most = time.Hour
	}
	for range failures - 1 {
		if pause >= most/2 {
			return most
		}
		pause *= 2
	}
	return min(pause, most)
}

// maxMessage is the longest message of a program in characters (contract 42 section A.2).
const maxMessage = 500

// cleanMessage makes one line of a text from outside.
func cleanMessage(s string) string {
	s = strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD")))
	if r := []rune(s); len(r) > maxMessage {
		s = string(r[:maxMessage-1]) + "…"
	}
	return s
}
