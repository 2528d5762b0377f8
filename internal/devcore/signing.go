package devcore

import (
	"context"
	"net/http"
	"slices"
)

// headerIntent carries what the user's browser has signed (contract 01 section 7).
const headerIntent = "UCloud-Signed-Intent"

// Today's Core neither reads nor forwards signed intents; the Core before it did both, and told browsers which providers
// want them. [Options.Signing] makes the simulator one of the older kind: what the user has signed goes along with each
// call that is made of the user's, as it came, with each repetition after 449 and 503, and in the first message of sockets.

type intentsKey struct{}

// WithIntents remembers what the user has signed for the calls of the provider that this call needs.
func (c *Core) WithIntents(ctx context.Context, intents ...string) context.Context {
	intents = slices.DeleteFunc(slices.Clone(intents), func(s string) bool { return s == "" })
	if !c.opt.Signing || len(intents) == 0 {
		return ctx
	}
	return context.WithValue(ctx, intentsKey{}, intents)
}

func intentsOf(ctx context.Context) []string {
	intents, _ := ctx.Value(intentsKey{}).([]string)
	return intents
}

// signed is what is forwarded in the first message of a socket.
func signed(ctx context.Context) string {
	for _, intent := range intentsOf(ctx) {
		return intent
	}
	return ""
}

// addIntents forwards what the user has signed.
func addIntents(h http.Header, intents []string) {
	for _, intent := range intents {
		h.Add(headerIntent, intent)
	}
}
