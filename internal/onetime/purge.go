package onetime

import (
	"context"
	"time"

	"ucloud-im/internal/store"
)

// purgeStep is the least time between two purges, so that tokens that end one after the other go together.
const purgeStep = time.Minute

// Purge removes the tokens that have ended and says how many they were.
func (t *Tokens) Purge(ctx context.Context) (n int, err error) {
	err = t.store.Update(ctx, func(tx *store.Tx) error {
		n, err = tx.PurgeTokens(t.o.Now())
		return err
	})
	return n, err
}

// NextExpiry is when the next token ends. false: there is none.
func (t *Tokens) NextExpiry(ctx context.Context) (at time.Time, ok bool, err error) {
	err = t.store.View(ctx, func(tx *store.Tx) error {
		at, ok, err = tx.TokensNextEnd()
		return err
	})
	return at, ok, err
}

// Run purges when there is something to purge, until ctx is done; it returns nil then. Without tokens it sleeps until
// one is issued.
func (t *Tokens) Run(ctx context.Context) error {
	for {
		at, ok, err := t.NextExpiry(ctx)
		var wake <-chan time.Time
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			t.log.ErrorContext(ctx, "tokens cannot be purged", "error", err)
			wake = time.After(purgeStep)
		case ok:
			wake = time.After(max(at.Sub(t.o.Now()), purgeStep))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.kick: // the new token may end earlier than those before
			continue
		case <-wake:
		}
		if n, err := t.Purge(ctx); err != nil && ctx.Err() == nil {
			t.log.ErrorContext(ctx, "tokens cannot be purged", "error", err)
		} else if n > 0 {
			t.log.DebugContext(ctx, "tokens purged", "tokens", n)
		}
	}
}
