// Package observability sets up what an operator looks at: structured logs with a fixed set of attribute keys,
// request ids, and the redaction of secrets.
//
// Attribute keys are fixed so that logs of the three roles can be searched together: part, request, user, uid, job,
// drive, error.
package observability

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"io"
	"log/slog"
)

// Redacted stands where a secret would have been.
const Redacted = "[redacted]"

// Secret is a text that never shows itself: not in logs, not with %v, not in JSON. [Secret.Reveal] gives the value.
type Secret string

// Reveal gives the value. Call it only where the secret is used.
func (s Secret) Reveal() string { return string(s) }

// String implements [fmt.Stringer].
func (Secret) String() string { return Redacted }

// GoString implements [fmt.GoStringer].
func (Secret) GoString() string { return Redacted }

// LogValue implements [slog.LogValuer].
func (Secret) LogValue() slog.Value { return slog.StringValue(Redacted) }

// MarshalText implements [encoding.TextMarshaler], which JSON and YAML encoders use.
func (Secret) MarshalText() ([]byte, error) { return []byte(Redacted), nil }

// LogOptions say how a process writes its log.
type LogOptions struct {
	JSON  bool         // JSON lines instead of text
	Level slog.Leveler // nil means Info
}

// NewLogger makes the logger of a process, writing to w.
func NewLogger(w io.Writer, o LogOptions) *slog.Logger {
	ho := &slog.HandlerOptions{Level: o.Level}
	if o.JSON {
		return slog.New(slog.NewJSONHandler(w, ho))
	}
	return slog.New(slog.NewTextHandler(w, ho))
}

type requestKey struct{}

// HeaderRequestID carries the request id between gateway, server and instance. It is an internal header: values from
// outside are dropped.
const HeaderRequestID = "X-Request-Id"

// NewRequestID makes a random id of 16 hex digits.
func NewRequestID() string {
	var b [8]byte
	rand.Read(b[:]) //nolint:errcheck // never fails, crypto/rand documents it
	return hex.EncodeToString(b[:])
}

// WithRequestID stores the id in a context.
func WithRequestID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestKey{}, id)
}

// RequestID is the id in the context, empty if there is none.
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestKey{}).(string)
	return id
}

// ParseLevel reads a level of the configuration: error, warn, info or debug. Anything else is info.
func ParseLevel(s string) slog.Level {
	var l slog.Level
	if l.UnmarshalText([]byte(s)) != nil {
		return slog.LevelInfo
	}
	return l
}
