package ipcapi

import (
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
)

// Calls about tickets (contract 41 sections 5.2 and 5.11). A ticket is a secret: who has it may see whom it names, and
// may bind it to their own account. Binding it to another account takes an operator.
var (
	TicketDescribe = ipc.Call[TicketRef, TicketInfo]{Name: "ticket.describe", Access: ipc.AccessAnyone}
	TicketComplete = ipc.Call[TicketCompletion, LinkResult]{Name: "ticket.complete", Access: ipc.AccessAnyone}
	TicketApprove  = ipc.Call[TicketApproval, LinkResult]{Name: "ticket.approve", Access: ipc.AccessOperator}
	TicketReject   = ipc.Call[TicketRejection, MutationReport]{Name: "ticket.reject", Access: ipc.AccessOperator}
	TicketList     = ipc.Stream[Empty, TicketPage]{Name: "ticket.list", Access: ipc.AccessViewer}
)

// Calls about mappings. Lists come whole, in pages of bounded size; the command line filters them, so that no
// expression of a caller runs inside the server (contract 04 section 7.16).
var (
	UserList   = ipc.Stream[UserListRequest, UserPage]{Name: "user.list", Access: ipc.AccessViewer}
	UserShow   = ipc.Call[UserRef, UserDetails]{Name: "user.show", Access: ipc.AccessViewer}
	UserAdd    = ipc.Call[UserAddition, LinkResult]{Name: "user.add", Access: ipc.AccessOperator}
	UserExpire = ipc.Call[UserMutation, MutationReport]{Name: "user.expire", Access: ipc.AccessOperator}
	UserRemove = ipc.Call[UserMutation, MutationReport]{Name: "user.remove", Access: ipc.AccessOperator}
	UserChange = ipc.Call[UserAccountChange, UserAccountChanged]{Name: "user.change", Access: ipc.AccessOperator}
)

// Calls of any local user about themselves. The account is the kernel's answer, never a part of the request.
var (
	MeShow       = ipc.Call[Empty, Me]{Name: "me.show", Access: ipc.AccessAnyone}
	MeDisconnect = ipc.Call[MeDisconnection, Empty]{Name: "me.disconnect", Access: ipc.AccessMapped}
)

// CodePolicy is the code of an error that means: the caller may ask, but the policy of the provider says no (an account
// out of range, not in the group). Other Forbidden errors mean that the caller may not ask.
const CodePolicy = "POLICY"

// TicketRef names a ticket by its text, in any spelling that a person may give it.
type TicketRef struct {
	Ticket string `json:"ticket"`
}

// States of a ticket as operators see them. They are the store's, except that a used ticket is called approved.
const (
	TicketOpen       = "open"
	TicketApproved   = "approved"
	TicketRejected   = "rejected"
	TicketExpired    = "expired"
	TicketSuperseded = "superseded"
)

// TicketInfo describes a ticket. The secret itself is not part of it: Short is the beginning of its hash and cannot be
// used to connect.
type TicketInfo struct {
	Short       string           `json:"ticket"`
	User        ident.UCloudUser `json:"ucloudName"`
	State       string           `json:"state"`
	CreatedAt   time.Time        `json:"createdAt"`
	ExpiresAt   time.Time        `json:"expiresAt"`
	ClosedAt    *time.Time       `json:"closedAt"`
	UID         *ident.UID       `json:"uid"`
	By          string           `json:"by,omitempty"`
	Message     string           `json:"message,omitempty"`
	SelfService bool             `json:"selfService"` // the user may complete it without an operator
	// KeyFingerprint is of the signing key that came with an open ticket, if it is described by itself. KeyWithdrawn tells
	// that there was one which cannot become usable any more.
	KeyFingerprint string `json:"keyFingerprint,omitempty"`
	KeyWithdrawn   bool   `json:"keyWithdrawn,omitempty"`
}

// TicketPage is a part of a list of tickets.
type TicketPage struct {
	Items []TicketInfo `json:"items"`
}

// TicketCompletion binds a ticket to the caller's own account. User is the UCloud user whom the person at the keyboard
// has been shown and has confirmed; the server refuses if the ticket names another one (contract 03 section 7.1).
type TicketCompletion struct {
	Ticket string           `json:"ticket"`
	User   ident.UCloudUser `json:"ucloudName"`
	WaitMs int64            `json:"waitMs"` // how long to wait until the connection is active
	DryRun bool             `json:"dryRun,omitempty"`
	// KeyFingerprint is of the signing key that came with the ticket, as the person has compared it. Only with it the key
	// becomes usable; without it the connection is made without a key, and another key than the ticket's is refused.
	KeyFingerprint string `json:"keyFingerprint,omitempty"`
}

// TicketApproval binds a ticket to an account that an operator names: by login name, or by uid if Local is a number.
type TicketApproval struct {
	Ticket    string           `json:"ticket"`
	User      ident.UCloudUser `json:"ucloudName"` // as confirmed, see TicketCompletion
	Local     string           `json:"local"`
	ExpiresAt *time.Time       `json:"expiresAt,omitempty"`
	WaitMs    int64            `json:"waitMs"`
	Reason    string           `json:"reason,omitempty"`
	DryRun    bool             `json:"dryRun,omitempty"`
	// KeyFingerprint is what the user has told the operator, see TicketCompletion.
	KeyFingerprint string `json:"keyFingerprint,omitempty"`
}

// TicketRejection closes tickets without a connection. Tickets holds texts or unambiguous short forms; the user sees
// Message.
type TicketRejection struct {
	Tickets []string `json:"tickets"`
	Message string   `json:"message,omitempty"`
	DryRun  bool     `json:"dryRun,omitempty"`
}

// LinkResult tells what became of an attempt to connect. State is "active", or "pending" if approval at UCloud is
// queued; with a dry run it is what the state was before.
type LinkResult struct {
	User      ident.UCloudUser `json:"ucloudName"`
	UID       ident.UID        `json:"uid"`
	LocalName string           `json:"localName"`
	State     string           `json:"state"`
	// KeyFingerprint is of the signing key that has become usable with the connection. KeyUnused is of one that came with
	// the ticket and has not, because nobody confirmed it.
	KeyFingerprint string `json:"keyFingerprint,omitempty"`
	KeyUnused      string `json:"keyUnused,omitempty"`
}

// UserListRequest asks for all mappings. Check has the account of each looked at, which costs a name service query
// per account.
type UserListRequest struct {
	Check bool `json:"check"`
}

// States of a mapping beyond the store's.
const StateBroken = "broken" // the local account is missing, out of range or not allowed

// UserInfo is one mapping.
type UserInfo struct {
	User        ident.UCloudUser `json:"ucloudName"`
	LocalName   string           `json:"localName"`
	UID         ident.UID        `json:"uid"`
	State       string           `json:"state"`
	Method      string           `json:"method"`
	ConnectedAt *time.Time       `json:"connectedAt"`
	ExpiresAt   *time.Time       `json:"expiresAt"`
	LastSeenAt  *time.Time       `json:"lastSeenAt"`
	Problem     string           `json:"problem,omitempty"` // with Check: why the account may not be used
	Instance    UserInstance     `json:"instance"`
}

// UserInstance is the short form of an instance in a list of users.
type UserInstance struct {
	Running     bool  `json:"running"`
	Port        int   `json:"port,omitempty"`
	IdleSeconds int64 `json:"idleSeconds,omitempty"`
}

// UserPage is a part of a list of mappings.
type UserPage struct {
	Items []UserInfo `json:"items"`
}

// UserRef names a UCloud user.
type UserRef struct {
	User ident.UCloudUser `json:"ucloudName"`
}

// UserDetails is everything known about a user. Launchable is empty if the user's instance may be started, otherwise
// it says which condition is missing (contract 05 section E).
type UserDetails struct {
	UserInfo
	By          string        `json:"by"`
	CreatedAt   time.Time     `json:"createdAt"`
	Launchable  string        `json:"launchable"`
	Home        string        `json:"home,omitempty"`
	Shell       string        `json:"shell,omitempty"`
	Group       string        `json:"group,omitempty"`
	Drives      []DriveInfo   `json:"drives"`
	Process     *InstanceInfo `json:"process"`
	QueuedSteps int           `json:"queuedSteps"` // deliveries to UCloud about this connection that are not done yet
	LastError   string        `json:"lastError,omitempty"`
}

// UserAddition makes a mapping without a ticket. UCloud must have named the user before (contract 03 section 7.4).
type UserAddition struct {
	User      ident.UCloudUser `json:"ucloudName"`
	Local     string           `json:"local"` // login name, or uid if it is a number
	ExpiresAt *time.Time       `json:"expiresAt,omitempty"`
	NoApprove bool             `json:"noApprove,omitempty"` // UCloud knows about the connection already
	WaitMs    int64            `json:"waitMs"`
	Reason    string           `json:"reason,omitempty"`
	DryRun    bool             `json:"dryRun,omitempty"`
}

// UserTarget names a mapping by key, as it was shown to the operator: a mapping that has another uid meanwhile is left
// alone (contract 41 CLI-10).
type UserTarget struct {
	User ident.UCloudUser `json:"ucloudName"`
	UID  ident.UID        `json:"uid"`
}

// UserMutation changes the named mappings.
type UserMutation struct {
	Targets []UserTarget `json:"targets"`
	Purge   bool         `json:"purge,omitempty"` // remove only: forget the uid as well
	Reason  string       `json:"reason,omitempty"`
	DryRun  bool         `json:"dryRun,omitempty"`
}

// Results of one item of a mutation.
const (
	ResultOK      = "ok"
	ResultSkipped = "skipped"
	ResultFailed  = "failed"
)

// MutationResult is what happened to one item. Key is the item's key as text.
type MutationResult struct {
	Key    string         `json:"key"`
	Status string         `json:"status"`
	Error  *MutationError `json:"error,omitempty"`
}

// MutationError tells why an item failed; Status is the HTTP status of the error's kind.
type MutationError struct {
	Status  int    `json:"status"`
	Message string `json:"message"`
}

// MutationReport has one result per item, in order.
type MutationReport struct {
	Results []MutationResult `json:"results"`
}

// Me is what a local user may know about themselves. Connected is false for an account without an active mapping;
// State then tells whether there is one under way.
type Me struct {
	UID         ident.UID        `json:"uid"`
	LocalName   string           `json:"localName,omitempty"`
	Connected   bool             `json:"connected"`
	State       string           `json:"state"` // "none" if there is no mapping
	User        ident.UCloudUser `json:"ucloudName,omitempty"`
	ConnectedAt *time.Time       `json:"connectedAt"`
	ExpiresAt   *time.Time       `json:"expiresAt"`
	Launchable  string           `json:"launchable"`
	Drives      []DriveInfo      `json:"drives"`
	Instance    *InstanceInfo    `json:"instance"`
	Provider    string           `json:"provider"`
	Page        string           `json:"page,omitempty"` // where UCloud is, for a browser
}

// MeDisconnection ends the caller's own connection.
type MeDisconnection struct {
	Reason string `json:"reason,omitempty"`
}

// UserAccountChange gives a user another local account. UID is that of the account that the operator was shown; Local is the
// new one, by login name or, if it is a number, by uid.
type UserAccountChange struct {
	User   ident.UCloudUser `json:"ucloudName"`
	UID    ident.UID        `json:"uid"`
	Local  string           `json:"local"`
	Reason string           `json:"reason,omitempty"`
	DryRun bool             `json:"dryRun,omitempty"`
}

// UserAccountChanged is the account that the user had, and the one that the user has.
type UserAccountChanged struct {
	User         ident.UCloudUser `json:"ucloudName"`
	OldUID       ident.UID        `json:"oldUid"`
	OldLocalName string           `json:"oldLocalName"`
	UID          ident.UID        `json:"uid"`
	LocalName    string           `json:"localName"`
	State        string           `json:"state"`
	// Ending tells that the instance of the old account had not ended when the answer was sent.
	Ending bool `json:"ending,omitempty"`
}
