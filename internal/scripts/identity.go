package scripts

import (
	"encoding/json"
	"errors"

	"ucloud-im/internal/ident"
)

// LoginRequest is the request of [HookUserConnected] after a login at an identity provider (contract 42 section B.2).
type LoginRequest struct {
	Claims         json.RawMessage  `json:"claims"` // of the ID token, as they were signed
	EmailVerified  bool             `json:"emailVerified"`
	Email          string           `json:"email"` // only if the identity provider has verified it
	Subject        string           `json:"subject"`
	Profile        string           `json:"profile"`
	UCloudUsername ident.UCloudUser `json:"ucloudUsername"`
	Issuer         string           `json:"issuer"`
	ExistingUID    *ident.UID       `json:"existingUid"`
}

// UIDReply is the reply of [HookUserConnected].
type UIDReply struct {
	UID *int64 `json:"uid"`
}

// Check implements [Checker]. Whether the account may be used is for the policy to say.
func (r *UIDReply) Check() error {
	switch {
	case r.UID == nil:
		return errors.New("the reply has no uid")
	case *r.UID <= 0 || *r.UID >= 1<<32-1:
		return errors.New("the uid of the reply is not the number of an ordinary account")
	}
	return nil
}
