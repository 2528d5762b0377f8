package ipcapi

import (
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
)

// Calls about signed intents (contract 01 section 7).
//
// An instance reads the keys of its own user and tells what it has seen; both are about the caller's user, whom the
// kernel's uid decides. A user who tells lies about their own intents spoils a statistic about themselves.
var (
	IntentKeys   = ipc.Call[Empty, IntentKeySet]{Name: "intent.keys", Access: ipc.AccessMapped}
	IntentSeen   = ipc.Call[IntentCounts, Empty]{Name: "intent.seen", Access: ipc.AccessMapped}
	IntentReport = ipc.Call[Empty, IntentSummary]{Name: "intent.report", Access: ipc.AccessViewer}
)

// Calls about the signing keys of users. The first two are about the caller's own user; the others are for operators.
var (
	MeKeys      = ipc.Call[Empty, SigningKeyPage]{Name: "me.keys", Access: ipc.AccessMapped}
	MeRevokeKey = ipc.Call[SigningKeyRevocation, MutationReport]{Name: "me.revokekeys", Access: ipc.AccessMapped}
	KeyList     = ipc.Stream[Empty, SigningKeyPage]{Name: "key.list", Access: ipc.AccessViewer}
	KeyRevoke   = ipc.Call[SigningKeyRevocation, MutationReport]{Name: "key.revoke", Access: ipc.AccessOperator}
)

// ItemKeys tells an instance that the signing keys of its user have changed: those that it has read are not to be used
// any more.
const ItemKeys = "keys"

// IntentSettings are the policy about signed intents for one user. The zero value is off.
type IntentSettings struct {
	Mode     string            `json:"mode,omitempty"`   // for calls that Calls does not name: off, log or require
	Calls    map[string]string `json:"calls,omitempty"`  // modes of single calls, by their user-facing name
	Exempt   []string          `json:"exempt,omitempty"` // names of calls that need no intent
	MaxAgeMs int64             `json:"maxAgeMs,omitempty"`
	SkewMs   int64             `json:"skewMs,omitempty"`
}

// IntentKeySet are the keys that count now: active, not expired, not revoked.
type IntentKeySet struct {
	Keys []IntentKey `json:"keys"`
}

// IntentKey is a public key with which intents of a user verify.
type IntentKey struct {
	ID        string     `json:"id"`
	PublicKey []byte     `json:"publicKey"` // SubjectPublicKeyInfo, DER
	ExpiresAt *time.Time `json:"expiresAt,omitempty"`
}

// Verdicts beside the reasons of package intent.
const (
	IntentUnavailable = "unavailable" // the keys could not be read
	IntentOptional    = "optional"    // there was no intent, and none was required
)

// IntentCounts are what an instance has seen since it last told: numbers by call and verdict. A verdict is "ok", or why
// require refuses or would refuse the call (the reasons of package intent), or one of the above.
type IntentCounts struct {
	Counts []IntentCount `json:"counts"`
}

// IntentCount is the number of calls with one verdict.
type IntentCount struct {
	Call    string           `json:"call"`
	Verdict string           `json:"verdict"`
	Mode    string           `json:"mode"`           // the policy that applied
	Form    string           `json:"form,omitempty"` // "1", "2", or "" when there was no intent to be read
	Count   int64            `json:"count"`
	User    ident.UCloudUser `json:"ucloudName,omitempty"` // in reports only: the server knows who calls
	LastAt  *time.Time       `json:"lastAt,omitempty"`     // in reports only
	Refused bool             `json:"refused,omitempty"`    // in reports only: require refuses such a call, or would
}

// IntentSummary is what an operator wants to know before switching to require.
type IntentSummary struct {
	Mode   string        `json:"mode"`
	Since  time.Time     `json:"since"`
	Counts []IntentCount `json:"counts"`
	// Keyless are users with an active mapping and without an active key: require keeps them out entirely.
	Keyless []ident.UCloudUser `json:"keyless"`
}

// States of a signing key.
const (
	SigningKeyPending = "pending" // uploaded; the login that has to follow has not succeeded
	SigningKeyActive  = "active"
	SigningKeyExpired = "expired"
	SigningKeyRevoked = "revoked"
)

// SigningKey describes a key. It is not a secret.
type SigningKey struct {
	ID          string           `json:"id"`
	User        ident.UCloudUser `json:"ucloudName"`
	Fingerprint string           `json:"fingerprint"` // as in docs/protocol-intents.md
	Algorithm   string           `json:"algorithm"`   // RS256 or EdDSA
	State       string           `json:"state"`
	CreatedAt   time.Time        `json:"createdAt"`
	ActivatedAt *time.Time       `json:"activatedAt"`
	ExpiresAt   *time.Time       `json:"expiresAt"`
	EndedAt     *time.Time       `json:"endedAt"`
	By          string           `json:"by,omitempty"` // who revoked it, and why
}

// SigningKeyPage is a part of a list of keys.
type SigningKeyPage struct {
	Items []SigningKey `json:"items"`
}

// SigningKeyRevocation revokes keys by id. From a user only their own are accepted.
type SigningKeyRevocation struct {
	IDs    []string `json:"ids"`
	Reason string   `json:"reason,omitempty"`
	DryRun bool     `json:"dryRun,omitempty"`
}
