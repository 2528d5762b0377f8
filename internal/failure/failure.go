// Package failure classifies errors by what they mean to a caller, and is the one place where a class becomes an HTTP
// status. Domain code decides the [Kind] where the meaning is known; handlers only pass errors on.
//
// An error made here carries two texts: a safe sentence for the client, and the private cause for the log. The cause
// never leaves the process (contract 00 section 9.7).
package failure

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
)

// Kind is the meaning of an error. The set is closed; see the constants.
type Kind int

// The kinds, with the status each has on the wire (contract 00 section 4 and contract 02 point 9.22).
const (
	Internal        Kind = iota // 500: a bug or a broken environment; the client learns nothing else
	Invalid                     // 400: the request is wrong
	Unauthenticated             // 401: transport authentication failed, and nothing else: it logs a web user out
	PaymentRequired             // 402: quota or funds
	Forbidden                   // 403: known, and not allowed
	NotFound                    // 404: does not exist, or the caller may not know that it does
	Conflict                    // 409: exists already, or changed meanwhile
	TooLarge                    // 413: body or header over a limit
	Misdirected                 // 421: the host of the request is served elsewhere; a browser then opens another connection (RFC 9110 section 15.5.20)
	TooMany                     // 429: a rate limit
	NoInstance                  // 449: no instance of the user runs; Core calls init and retries
	BadIntent                   // 482: a signed intent is wrong; the web client drops its key pair
	BadGateway                  // 502: the instance died or answered nonsense after it may have read the request
	Unavailable                 // 503: nothing of the request was handed over; Core retries
)

var statuses = map[Kind]int{
	Internal: 500, Invalid: 400, Unauthenticated: 401, PaymentRequired: 402, Forbidden: 403, NotFound: 404,
	Conflict: 409, TooLarge: 413, Misdirected: 421, TooMany: 429, NoInstance: 449, BadIntent: 482, BadGateway: 502, Unavailable: 503,
}

// Status is the HTTP status of the kind.
func (k Kind) Status() int {
	if s, ok := statuses[k]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// KindOfStatus is the reverse of [Kind.Status], used where an error crossed a process boundary. Unknown statuses are
// [Internal].
func KindOfStatus(status int) Kind {
	for k, s := range statuses {
		if s == status {
			return k
		}
	}
	return Internal
}

// Error is an error with a kind, a sentence that may be shown to the client and an optional private cause.
type Error struct {
	Kind  Kind
	Why   string // safe for the client, a sentence for an end user
	Code  string // optional machine readable code
	Cause error  // for the log only
}

// Error is the text for the log: the safe sentence and the cause.
func (e *Error) Error() string {
	if e.Cause != nil {
		return e.Why + ": " + e.Cause.Error()
	}
	return e.Why
}

// Unwrap gives the private cause.
func (e *Error) Unwrap() error { return e.Cause }

// New makes an error whose text is safe to show. The format's operands must be safe too.
func New(kind Kind, format string, args ...any) error {
	return &Error{Kind: kind, Why: fmt.Sprintf(format, args...)}
}

// Wrap gives cause a kind and a safe sentence. A nil cause gives nil.
func Wrap(cause error, kind Kind, format string, args ...any) error {
	if cause == nil {
		return nil
	}
	return &Error{Kind: kind, Why: fmt.Sprintf(format, args...), Cause: cause}
}

// KindOf is the kind of the outermost [Error] in err's chain, [Internal] if there is none.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}

// Is tells whether err is of the kind.
func Is(err error, kind Kind) bool { return err != nil && KindOf(err) == kind }

// Why is the sentence for the client. Errors without a kind give a constant text, so that nothing private gets out.
func Why(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Why
	}
	return "An internal error occurred"
}

// EachItem does the items of a bulk request. All are tried; the error is that of the first that failed, and says how
// many did if there are several items (contract 10 section 1.3).
func EachItem(n int, do func(i int) error) error {
	var first error
	failed := 0
	for i := range n {
		if err := do(i); err != nil {
			failed++
			if first == nil {
				first = err
			}
		}
	}
	if first == nil || n == 1 {
		return first
	}
	return Wrap(first, KindOf(first), "%s (%d of %d items failed)", Why(first), failed, n)
}

// Body is the error document of the contract (contract 00 section 4).
type Body struct {
	StatusCode   int    `json:"statusCode"`
	Why          string `json:"why"`
	ErrorCode    string `json:"errorCode"`
	DetailedCode int    `json:"detailedCode"`
}

// WriteHTTP answers with the status and document of err. Nothing may have been written before.
func WriteHTTP(w http.ResponseWriter, err error) {
	kind := KindOf(err)
	body := Body{StatusCode: kind.Status(), Why: Why(err)}
	if e, ok := errors.AsType[*Error](err); ok {
		body.ErrorCode = e.Code
	}
	h := w.Header()
	h.Del("Content-Length")
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	if (kind == Unavailable || kind == TooMany) && h.Get("Retry-After") == "" { // the caller may know better
		h.Set("Retry-After", "1")
	}
	w.WriteHeader(body.StatusCode)
	// A failing write means that the client is gone; there is nobody left to tell.
	_ = json.NewEncoder(w).Encode(body)
}
