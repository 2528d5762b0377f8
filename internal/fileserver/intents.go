package fileserver

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"

	"ucloud-im/internal/httpx"
	"ucloud-im/internal/intent"
)

// Intents decides about signed intents (contract 01 section 7.4); package intentclient is the implementation.
type Intents interface {
	// Mode is the policy for calls under the rule: [intent.ModeOff], [intent.ModeLog] or [intent.ModeRequire].
	Mode(r intent.Rule) string
	// Check verifies what came with a request and counts what it finds. An error means that the request must not be
	// served. log is that of the request.
	Check(ctx context.Context, log *slog.Logger, r intent.Request) error
}

// checkIntent has the intent of a request checked. An intent is bound to the body, so the whole body is read for it, within
// the bound of the route; the handler reads it again from memory. With the policy off, or without an intent, nothing is read.
func (g *guard) checkIntent(w http.ResponseWriter, c *Call) error {
	rule := c.route.Intent
	if g.intents == nil || rule.Exempt != "" || rule.Frame || g.intents.Mode(rule) == intent.ModeOff {
		return nil
	}
	r := intent.Request{Rule: rule, Intent: intent.Header(c.Header), Target: c.route.Method + " " + c.route.Path}
	if r.Intent != "" {
		var err error
		if r.Body, err = httpx.ReadBody(w, c.Request, c.route.MaxBody); err != nil {
			return err
		}
		c.Body = io.NopCloser(bytes.NewReader(r.Body))
	}
	return g.intents.Check(c.Context(), c.log, r)
}

// CheckFrame has the intent of the first frame of a socket checked (signedIntent in contract 00 section 7). Handlers of
// routes whose rule has Frame call it before they do anything that the frame asks for; call and payload are those of the
// frame. An error means that the socket is to be closed.
func (c *Call) CheckFrame(ctx context.Context, call, signed string, payload []byte) error {
	rule := c.route.Intent
	if c.intents == nil || c.intents.Mode(rule) == intent.ModeOff {
		return nil
	}
	return c.intents.Check(ctx, c.log, intent.Request{Rule: rule, Intent: signed, Body: payload, FrameCall: call})
}

// Routes are the calls that a handler of [New] answers.
func Routes(h http.Handler) []Route {
	var out []Route
	for _, r := range h.(*guard).routes {
		out = append(out, *r)
	}
	return out
}
