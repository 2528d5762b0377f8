package scripts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"ucloud-im/internal/ident"
)

// Names of the hooks for Slurm accounts (contract 42 sections B.10 to B.14). [HookQuotaUpdated] and [HookUsage] exist for
// accounts as well, with the time limits below.
const (
	HookAccountMapper    = "accountMapper"
	HookProjectUpdated   = "onProjectUpdated"
	HookUserDisconnected = "onUserDisconnected"
)

// HookJobSubmit is called before each submission, in the user's instance (contract 42 section B.15).
const HookJobSubmit = "onJobSubmit"

// HookTemplateScript is a program that a template calls, in the user's instance (contract 42 section B.16).
const HookTemplateScript = "script"

// Time limits of hooks that share their name with one for storage (contract 42 part B).
const (
	AccountQuotaTimeout = 120 * time.Second
	AccountUsageTimeout = 300 * time.Second
)

// accountReply is the reply of [HookAccountMapper]. The reference documents one name and takes the other.
type accountReply struct {
	AccountName json.RawMessage `json:"accountName"`
	Account     json.RawMessage `json:"account"`
}

// Check implements [Checker].
func (r *accountReply) Check() error {
	if len(r.AccountName) == 0 && len(r.Account) == 0 {
		return errors.New("the reply has no accountName")
	}
	_, err := r.name()
	return err
}

// name is empty for null and for an empty text: there is no account.
func (r *accountReply) name() (string, error) {
	raw := r.AccountName
	if len(raw) == 0 {
		raw = r.Account
	}
	var name *string
	if err := json.Unmarshal(raw, &name); err != nil {
		return "", fmt.Errorf("accountName of the reply: %w", err)
	}
	if name == nil {
		return "", nil
	}
	return *name, nil
}

// SlurmAccount describes an account in a category to the hooks for accounts.
type SlurmAccount struct {
	AccountName  string  `json:"accountName"`
	Partition    string  `json:"partition"`
	QoS          *string `json:"qos"`
	CategoryName string  `json:"categoryName"`
}

// AccountQuotaUpdate is what Core says about the allocation, in minutes whatever the interval of the product is.
type AccountQuotaUpdate struct {
	CombinedQuotaInResourceMinutes int64  `json:"combinedQuotaInResourceMinutes"`
	Locked                         bool   `json:"locked"`
	Unit                           string `json:"unit"` // Cpu, Gpu or Memory; the currency of products that count money
	RetiredUsageInResourceMinutes  int64  `json:"retiredUsageInResourceMinutes"`
}

// AccountQuotaRequest is the request of [HookQuotaUpdated] for an account (contract 42 section B.11).
type AccountQuotaRequest struct {
	Account     SlurmAccount       `json:"account"`
	QuotaUpdate AccountQuotaUpdate `json:"quotaUpdate"`
	Owner       Workspace          `json:"owner"`
}

// Member is a member of a project (contract 42 section B.4). Role is absent for one who has left.
type Member struct {
	UID            ident.UID        `json:"uid"`
	UCloudUsername ident.UCloudUser `json:"ucloudUsername"`
	Reference      ident.UCloudUser `json:"UCloudUsername,omitempty"` // as the reference spells it; protocol 1 only
	LocalUsername  string           `json:"localUsername"`
	Role           string           `json:"role,omitempty"`
}

// AccountMembersRequest is the request of [HookProjectUpdated] for an account (contract 42 section B.12).
type AccountMembersRequest struct {
	Account SlurmAccount `json:"account"`
	All     []Member     `json:"allMembers"`
	Added   []Member     `json:"membersAddedToProject"`
	Removed []Member     `json:"membersRemovedFromProject"`
	// The same as the reference spells it; protocol 1 only.
	ReferenceAccount *SlurmAccount `json:"Account,omitempty"`
	ReferenceAll     []Member      `json:"AllMembers,omitzero"`
	ReferenceAdded   []Member      `json:"MembersAddedToProject,omitzero"`
	ReferenceRemoved []Member      `json:"MembersRemovedFromProject,omitzero"`
}

// Spelled adds the spelling of the reference if the hook speaks protocol 1 (contract 42 section A.2).
func (r AccountMembersRequest) Spelled(h *Hook) AccountMembersRequest {
	if h.o.Protocol != 1 {
		return r
	}
	spell := func(list []Member) []Member {
		out := make([]Member, len(list))
		for i, m := range list {
			m.Reference = m.UCloudUsername
			out[i] = m
		}
		return out
	}
	r.All, r.Added, r.Removed = spell(r.All), spell(r.Added), spell(r.Removed)
	r.ReferenceAccount, r.ReferenceAll, r.ReferenceAdded, r.ReferenceRemoved = &r.Account, r.All, r.Added, r.Removed
	return r
}

// AccountDisconnectedRequest is the request of [HookUserDisconnected] for an account (contract 42 section B.14).
type AccountDisconnectedRequest struct {
	Account        SlurmAccount     `json:"account"`
	UID            ident.UID        `json:"uid"`
	LocalUsername  string           `json:"localUsername"`
	UCloudUsername ident.UCloudUser `json:"ucloudUsername"`
	Reason         string           `json:"reason"`
}

// AccountUsageRequest is the request of [HookUsage] for accounts (contract 42 section B.13).
type AccountUsageRequest struct {
	Accounts []string `json:"accounts"`
}

// AccountUsageReply is its reply: totals since the beginning.
type AccountUsageReply struct {
	Usage []AccountUsage `json:"usage"`
}

// AccountUsage is what an account has used. Category is needed for an account with several.
type AccountUsage struct {
	Account  string `json:"account"`
	Category string `json:"categoryName"`
	Minutes  *int64 `json:"usageInResourceMinutes"`
}

// Check implements [Checker].
func (r *AccountUsageReply) Check() error {
	if r.Usage == nil {
		return errors.New("the reply has no usage")
	}
	for _, u := range r.Usage {
		if u.Account == "" || u.Minutes == nil || *u.Minutes < 0 {
			return fmt.Errorf("the usage of account %q has no account, no usageInResourceMinutes, or is negative", u.Account)
		}
	}
	return nil
}

// MapAccount asks the hook, which must be a [HookAccountMapper], for the account of an owner. The script gets the
// variables as they are. An empty name means that there is none; whoever uses the name checks it.
func MapAccount(ctx context.Context, h *Hook, owner ident.Owner, vars map[string]string) (string, error) {
	var reply accountReply
	call := Call{Key: "owner/" + owner.Reference() + "/" + vars[varCategory], Owner: owner, Request: vars, Reason: "evaluation"}
	err := h.Call(ctx, call, &reply)
	if e, ok := errors.AsType[*Error](err); ok && e.Kind == Temporary { // somebody waits (contract 42 section A.3)
		call.Attempt = 2
		err = h.Call(ctx, call, &reply)
	}
	if err != nil {
		return "", err
	}
	return reply.name()
}
