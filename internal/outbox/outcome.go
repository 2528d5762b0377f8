package outbox

import (
	"errors"
	"fmt"
	"time"
)

// outcomeError carries what an attempt's error means for its entry. Its parts nest: Suspect(RetryAfter(err, d)).
type outcomeError struct {
	err       error
	suspect   bool
	permanent bool
	after     time.Duration // valid if hasAfter
	hasAfter  bool
}

func (e *outcomeError) Error() string { return e.err.Error() }
func (e *outcomeError) Unwrap() error { return e.err }

// Suspect marks the error of an attempt that may have had an effect, where repeating it may do harm (contract 05 C6
// rule 6). The entry gets state [store.OutboxSuspect] and waits for an operator. Wrapped around [RetryAfter] it is
// repeated by itself once, after that time; a second suspect outcome parks it.
func Suspect(err error) error {
	if err == nil {
		return nil
	}
	return &outcomeError{err: err, suspect: true}
}

// RetryAfter marks an error after which the entry is repeated, not before d from now, instead of after the usual
// back-off.
func RetryAfter(err error, d time.Duration) error {
	if err == nil {
		return nil
	}
	return &outcomeError{err: err, after: d, hasAfter: true}
}

// Permanent marks an error that no repetition can cure: the entry is logged and dropped.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &outcomeError{err: err, permanent: true}
}

// merge collects the marks in err's chain.
func merge(err error) (o outcomeError) {
	o.err = err
	for e := err; ; {
		part, ok := errors.AsType[*outcomeError](e)
		if !ok {
			return o
		}
		o.suspect = o.suspect || part.suspect
		o.permanent = o.permanent || part.permanent
		if part.hasAfter && !o.hasAfter {
			o.after, o.hasAfter = part.after, true
		}
		e = part.err
	}
}

// panicError is the panic of a Deliver function.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }
