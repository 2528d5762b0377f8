package oidc

import (
	"context"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// algorithms are those with which an ID token may be signed. All are asymmetric: with a symmetric one, whoever knows the
// client secret could make tokens, and "none" is none.
var algorithms = []string{string(jose.RS256), string(jose.ES256), string(jose.PS256), string(jose.EdDSA)}

// acceptedAlgorithms are those of an announcement that are accepted; RS256, if nothing is announced, is what everybody has
// to support (OpenID Connect Discovery 1.0 section 3).
func acceptedAlgorithms(announced []string) []string {
	if len(announced) == 0 {
		return []string{string(jose.RS256)}
	}
	return slices.DeleteFunc(slices.Clone(algorithms), func(a string) bool { return !slices.Contains(announced, a) })
}

const (
	// keysLife is how long keys count before they are read again, so that one that was withdrawn stops counting.
	keysLife = time.Hour
	// keysPause is the least time between two readings: the name of a key is whatever the token says.
	keysPause = 10 * time.Second
	maxKeys   = 100
	minRSA    = 2048 // bits
)

// keySet are the keys of the issuer. It implements the interface of package oidc of go-oidc.
type keySet struct {
	url  string
	http *http.Client
	algs []jose.SignatureAlgorithm
	now  func() time.Time

	// turn is held by whoever reads or uses what follows.
	turn chan struct{}
	keys []jose.JSONWebKey
	read time.Time // when keys was read
	try  time.Time // the last attempt
}

func newKeySet(url string, client *http.Client, algs []string, now func() time.Time) *keySet {
	k := &keySet{url: url, http: client, now: now, turn: make(chan struct{}, 1)}
	for _, a := range algs {
		k.algs = append(k.algs, jose.SignatureAlgorithm(a))
	}
	return k
}

// VerifySignature gives the payload of a token that one of the issuer's keys has signed.
func (k *keySet) VerifySignature(ctx context.Context, raw string) ([]byte, error) {
	jws, err := jose.ParseSignedCompact(raw, k.algs)
	if err != nil {
		return nil, fmt.Errorf("read the token: %w", err)
	}
	if len(jws.Signatures) != 1 {
		return nil, errors.New("the token has not exactly one signature")
	}
	header := jws.Signatures[0].Header
	keys, err := k.candidates(ctx, header)
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		if payload, err := jws.Verify(&key); err == nil {
			return payload, nil
		}
	}
	return nil, fmt.Errorf("no key of the issuer (%d fit) has signed the token", len(keys))
}

// candidates are the keys that may have made a signature. If there is none, the issuer may have changed its keys.
func (k *keySet) candidates(ctx context.Context, header jose.Header) ([]jose.JSONWebKey, error) {
	select {
	case k.turn <- struct{}{}:
		defer func() { <-k.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	fitting := func() []jose.JSONWebKey {
		return slices.DeleteFunc(slices.Clone(k.keys), func(key jose.JSONWebKey) bool {
			return header.KeyID != "" && key.KeyID != header.KeyID || key.Algorithm != "" && key.Algorithm != header.Algorithm
		})
	}
	old := k.read.IsZero() || k.now().Sub(k.read) >= keysLife
	if found := fitting(); len(found) > 0 && !old {
		return found, nil
	}
	if since := k.now().Sub(k.try); !k.try.IsZero() && since >= 0 && since < keysPause {
		return nil, errors.New("the key of the token is not known, and the keys were read a moment ago")
	}
	k.try = k.now()
	keys, err := k.fetch(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the keys of the issuer: %w", err)
	}
	k.keys, k.read = keys, k.now()
	return fitting(), nil
}

// fetch reads the keys that can be used for verification. Others are skipped: an issuer may have keys for other purposes,
// and of kinds that are not known here.
func (k *keySet) fetch(ctx context.Context) ([]jose.JSONWebKey, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.url, http.NoBody)
	if err != nil {
		return nil, err
	}
	res, err := k.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d", res.StatusCode)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	return parseKeys(body)
}

// parseKeys reads a JWK set (RFC 7517).
func parseKeys(body []byte) ([]jose.JSONWebKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(body, &set); err != nil {
		return nil, fmt.Errorf("the keys are no JSON: %w", err)
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("%d keys", len(set.Keys))
	}
	var keys []jose.JSONWebKey
	for _, raw := range set.Keys {
		var key jose.JSONWebKey
		if json.Unmarshal(raw, &key) == nil && usable(key) {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("there is no key that can be used")
	}
	return keys, nil
}

// usable tells whether a key is a public one for signatures, and a strong one.
func usable(key jose.JSONWebKey) bool {
	if !key.Valid() || !key.IsPublic() || key.Use != "" && key.Use != "sig" {
		return false
	}
	r, ok := key.Key.(*rsa.PublicKey)
	return !ok || r.N.BitLen() >= minRSA
}
