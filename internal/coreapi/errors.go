package coreapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"unicode"
)

var (
	// ErrNotSent tells that Core has not seen the request: there was no access token, or no connection. The call may
	// be repeated without thought.
	ErrNotSent = errors.New("not sent to Core")

	// ErrNoAnswer tells that the request went out and that no usable answer came back: a timeout, a connection that
	// was cut, a success that cannot be read. Core may or may not have done the work.
	ErrNoAnswer = errors.New("no usable answer from Core")

	// ErrRevoked tells that Core refused the refresh token. An operator has to act; nothing works until then.
	ErrRevoked = errors.New("refresh token refused by Core")
)

// maxWhy bounds the text of an error that we keep and log, in bytes.
const maxWhy = 400

// StatusError is an answer of Core outside of 2xx. The HTTP status is authoritative (contract 00 section 4).
type StatusError struct {
	Call      string // dotted call name, such as files.collections.control.register
	Status    int    // HTTP status
	Why       string // Core's text, cut and free of control characters; may be empty
	ErrorCode string // Core's machine code, usually empty
}

// Error implements error.
func (e *StatusError) Error() string {
	why := e.Why
	if why == "" {
		why = http.StatusText(e.Status)
	}
	return fmt.Sprintf("%s: Core answered %d: %s", e.Call, e.Status, why)
}

// Status is the HTTP status of the [StatusError] in err's chain, 0 if there is none.
func Status(err error) int {
	if e, ok := errors.AsType[*StatusError](err); ok {
		return e.Status
	}
	return 0
}

// Unanswered tells whether the outcome of a call is unknown. Beside [ErrNoAnswer] these are the answers which a proxy
// in front of Core gives when Core died while it worked: 502 and 504.
func Unanswered(err error) bool {
	s := Status(err)
	return errors.Is(err, ErrNoAnswer) || s == http.StatusBadGateway || s == http.StatusGatewayTimeout
}

// statusError reads the error document; a body that is none leaves only the status.
func statusError(call string, status int, body []byte) *StatusError {
	e := &StatusError{Call: call, Status: status}
	var doc struct {
		Why       string `json:"why"`
		ErrorCode string `json:"errorCode"`
	}
	if json.Unmarshal(body, &doc) == nil {
		e.Why, e.ErrorCode = cleanText(doc.Why), cleanText(doc.ErrorCode)
	}
	return e
}

// cleanText makes a text from outside fit for one log line.
func cleanText(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) > maxWhy {
		s = strings.ToValidUTF8(s[:maxWhy], "") + "…"
	}
	return s
}
