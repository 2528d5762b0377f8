package intentclient

import (
	"context"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/signkey"
)

// staleFor is how long keys count while the server is away: a key may have been revoked meanwhile.
const staleFor = 5 * time.Minute

// drop forgets the keys.
func (k *keyring) drop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys, k.known = nil, false
	k.generation++
}

// get gives the keys, for [intent.Options]. A fresh look while the server is away is an error: what the known keys do not
// verify may be by a key that is newer.
func (k *keyring) get(ctx context.Context, fresh bool) ([]intent.Key, error) {
	keys, known, read := k.have()
	if known && !fresh {
		if k.server.Away() > staleFor {
			return nil, failure.New(failure.Unavailable, "Signatures cannot be checked at the moment. Try again")
		}
		return keys, nil
	}
	k.reading.Lock()
	defer k.reading.Unlock()
	if keys, known, now := k.have(); known && now != read {
		return keys, nil // somebody has read them while we waited
	}
	// A reading during which the keys have changed may have seen the old ones.
	for range 3 {
		if keys, err := k.fetch(ctx); err != nil || keys != nil {
			return keys, err
		}
	}
	return nil, failure.New(failure.Unavailable, "Your signing keys are being changed. Try again")
}

func (k *keyring) have() (keys []intent.Key, known bool, read uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keys, k.known, k.read
}

// fetch reads the keys; nil without an error: they have changed meanwhile.
func (k *keyring) fetch(ctx context.Context) ([]intent.Key, error) {
	k.mu.Lock()
	generation := k.generation
	k.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	set, err := k.server.Keys(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	keys, prints := parse(set)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.generation != generation {
		return nil, nil
	}
	k.keys, k.prints, k.known = keys, prints, true
	k.read++
	return keys, nil
}

// parse makes keys of what the server sends. One that cannot be used is left out: it would verify nothing.
func parse(set ipcapi.IntentKeySet) ([]intent.Key, map[string]string) {
	keys, prints := make([]intent.Key, 0, len(set.Keys)), map[string]string{}
	for _, in := range set.Keys {
		parsed, err := signkey.FromDER(in.PublicKey)
		if err != nil || in.ID == "" {
			continue
		}
		key := intent.Key{ID: in.ID, Public: parsed.Public()}
		if in.ExpiresAt != nil {
			key.Expires = *in.ExpiresAt
		}
		keys = append(keys, key)
		prints[in.ID] = parsed.Fingerprint()
	}
	return keys, prints
}

// fingerprint gives that of a key, "" if it is not known.
func (k *keyring) fingerprint(id string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.prints[id]
}
