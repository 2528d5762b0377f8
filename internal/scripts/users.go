package scripts

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ucloud-im/internal/ident"
)

// HookTicketCreated is told of new tickets, and may decide about them (contract 42 section B.3a).
const HookTicketCreated = "onTicketCreated"

// ConnectRequest is the request of [HookUserConnected] where the script makes or finds the account (contract 42 section B.1).
type ConnectRequest struct {
	UCloudUsername    ident.UCloudUser `json:"ucloudUsername"`
	FirstName         string           `json:"firstName"`
	LastName          string           `json:"lastName"`
	SuggestedUsername string           `json:"suggestedUsername"` // without digits for uniqueness; the script adds them
	ExistingUID       *ident.UID       `json:"existingUid"`       // of the account that the user had before
	LaunchGroup       string           `json:"launchGroup"`       // the account must be in it
}

// DisconnectedRequest is the request of [HookUserDisconnected] (contract 42 section B.3).
type DisconnectedRequest struct {
	UCloudUsername ident.UCloudUser    `json:"ucloudUsername"`
	UID            ident.UID           `json:"uid"`
	LocalUsername  string              `json:"localUsername"`
	Reason         string              `json:"reason"` // user, expired, operator or core
	Projects       []DisconnectProject `json:"projects"`
}

// DisconnectProject is a project of the user that has a group here.
type DisconnectProject struct {
	UCloudProjectID ident.ProjectID `json:"ucloudProjectId"`
	GID             ident.GID       `json:"gid"`
}

// TicketRequest is the request of [HookTicketCreated]. The ticket is its short form, which connects nobody.
type TicketRequest struct {
	Ticket         string           `json:"ticket"`
	UCloudUsername ident.UCloudUser `json:"ucloudUsername"`
	ExpiresAt      time.Time        `json:"expiresAt"`
}

// Decisions of a [TicketReply].
const (
	DecideApprove = "approve"
	DecideReject  = "reject"
)

// TicketReply is its reply. An empty decision leaves the ticket to the operators and the user. What the user is told of a
// rejection is the userMessage that every reply may have.
type TicketReply struct {
	Decision    string `json:"decision"`
	UID         *int64 `json:"uid"`
	UserMessage string `json:"-"`
}

func (r *TicketReply) remark(userMessage string) { r.UserMessage = userMessage }

// Check implements [Checker]. Whether the account may be used is for the policy to say.
func (r *TicketReply) Check() error {
	switch r.Decision {
	case "", DecideReject:
		return nil
	case DecideApprove:
		uid := UIDReply{UID: r.UID}
		return uid.Check()
	}
	return fmt.Errorf("the decision %q is neither approve nor reject", r.Decision)
}

// quickRetry is how long the one repetition for a waiting person waits, unless the script asks for more.
const (
	quickRetry     = time.Second
	longQuickRetry = 15 * time.Second
)

// CallForPerson is [Hook.Call] for a person who waits: a program that asks to be called again with exit status 75 is, once
// (contract 42 section A.3).
func (h *Hook) CallForPerson(ctx context.Context, c Call, reply any) error {
	err := h.Call(ctx, c, reply)
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Kind != Temporary {
		return err
	}
	wait := time.NewTimer(min(max(e.RetryAfter, quickRetry), longQuickRetry))
	defer wait.Stop()
	select {
	case <-ctx.Done():
		return err
	case <-wait.C:
	}
	c.Attempt = max(c.Attempt, 1) + 1
	return h.Call(ctx, c, reply)
}
