package intent

import (
	"context"
	"sync"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/signkey"
)

// The bounds on reading keys anew because a signature does not verify: whoever sends bad signatures must not make the
// server read keys at their pace.
const (
	freshBurst    = 4
	freshInterval = 10 * time.Second
)

// verify finds the key that has made the signature. Keys that were read before are tried first; if none fits they are
// read once more, since the user may have just connected another device.
func (v *Verifier) verify(ctx context.Context, t *token, digest [32]byte, now time.Time) (keyID string, why Reason, err error) {
	keys, err := v.keys(ctx, false)
	if err != nil {
		return "", "", err
	}
	if id := v.remembered(keys, digest, now); id != "" {
		return id, OK, nil
	}
	if id := find(keys, t, now); id != "" {
		return id, OK, nil
	}
	switch looked := v.fresh.take(now); {
	case looked:
		if keys, err = v.keys(ctx, true); err != nil {
			return "", "", err
		}
		v.fresh.succeeded(now)
		if id := find(keys, t, now); id != "" {
			return id, OK, nil
		}
	case !v.fresh.known(now):
		// It may be by a key that we have not heard of, which must not be thrown away for our trouble.
		return "", "", errKeys
	}
	if len(usable(keys, now)) == 0 {
		return "", NoKey, nil
	}
	return "", Signature, nil
}

var errKeys = failure.New(failure.Unavailable, "Signatures cannot be checked at the moment. Try again")

func (v *Verifier) keys(ctx context.Context, fresh bool) ([]Key, error) {
	keys, err := v.opts.Keys(ctx, fresh)
	return keys, failure.Wrap(err, failure.Unavailable, "Signatures cannot be checked at the moment. Try again")
}

// remembered gives the key that has verified the same intent before, if it still counts. Core repeats requests, and
// each time the arithmetic would be done again.
func (v *Verifier) remembered(keys []Key, digest [32]byte, now time.Time) string {
	id := v.seen.verifiedBy(digest)
	for _, k := range usable(keys, now) {
		if k.ID == id {
			return id
		}
	}
	return ""
}

// find gives the id of the key that verifies the token.
func find(keys []Key, t *token, now time.Time) string {
	for _, k := range usable(keys, now) {
		if t.verify(k.Public) {
			return k.ID
		}
	}
	return ""
}

// usable are the keys that may verify now. A weak key is left out even if whoever stored it let it pass.
func usable(keys []Key, now time.Time) []Key {
	out := make([]Key, 0, len(keys))
	for _, k := range keys {
		expired := !k.Expires.IsZero() && !now.Before(k.Expires)
		if k.ID != "" && !expired && signkey.Check(k.Public) == nil {
			out = append(out, k)
		}
	}
	return out
}

// limiter grants a number of permits at once, and then one per interval.
type limiter struct {
	mu   sync.Mutex
	used []time.Time // of at most freshBurst permits
	last time.Time   // the last permit whose use succeeded
}

// succeeded tells that keys were read with a permit of that time.
func (l *limiter) succeeded(at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = at
}

// known tells whether keys were read within the time in which permits count. What has changed since is told.
func (l *limiter) known(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return recent(l.last, now)
}

func recent(at, now time.Time) bool {
	age := now.Sub(at)
	return age >= 0 && age < freshBurst*freshInterval
}

func (l *limiter) take(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	kept := l.used[:0]
	for _, at := range l.used {
		// A clock that was set back must not lock the user out.
		if recent(at, now) {
			kept = append(kept, at)
		}
	}
	l.used = kept
	if len(l.used) >= freshBurst {
		return false
	}
	l.used = append(l.used, now)
	return true
}
