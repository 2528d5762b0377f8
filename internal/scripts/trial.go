package scripts

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"ucloud-im/internal/ident"
)

// Purpose is what a hook is configured for. With it, the hook can be tried by hand ([Hook.Try]).
type Purpose struct {
	At       string // its key in the configuration
	Form     Form
	Category string // for the sample request; empty: any
	Locator  string // the same
	Entity   string // whose drives a locator is for, as in the configuration; the sample is of a user unless it says a project
	// Drive gives the key of the calls about a drive ([Call.Key]) by owner and path; for the forms about drives.
	Drive func(owner ident.Owner, path string) string
	// Accept tells whether the answer could be used beyond its form: an [ident.UID], a [Location], or the name of an account;
	// nil: every one could.
	Accept func(ctx context.Context, answer any, dryRun bool) error
}

// Trial is a call that was made by hand.
type Trial struct {
	Entry
	// Objection says why a reply of the right form would be refused in real use; empty: it would not.
	Objection string
}

// Inspection is a program as it stands on the disk. Problem says why it would not be executed.
type Inspection struct {
	Owner   ident.UID
	Mode    uint32
	Hash    string
	Problem string
}

// Inspect looks at the program as a call would, and executes nothing.
func (h *Hook) Inspect() Inspection {
	p, err := openProgram(h.r.rules, h.o.Path)
	if err != nil {
		return Inspection{Problem: cleanMessage(err.Error())}
	}
	defer p.close()
	return Inspection{Owner: ident.UID(p.stat.Uid), Mode: p.stat.Mode & 0o7777, Hash: p.hash}
}

// Options are the settings of the hook with its defaults. The environment may hold secrets.
func (h *Hook) Options() HookOptions { return h.o }

// Changes tells whether the hook is there to change something at the site.
func (h *Hook) Changes() bool { return h.t.changes }

// Try calls the program once, as real use does: the same account, environment, limits, turn and record. input is the request
// without envelope; nil is a sample. What is answered has no effect. An error means that there was no call.
func (h *Hook) Try(ctx context.Context, input json.RawMessage, dryRun bool, reason string) (Trial, error) {
	f, ok := forms[h.o.Purpose.Form]
	if !ok {
		return Trial{}, fmt.Errorf("hook %s cannot be tried", h.o.Name)
	}
	request := f.sample(h)
	var sent any = request
	if input != nil {
		var err error
		if input, err = bareRequest(input); err != nil {
			return Trial{}, err
		}
		request = f.empty()
		if err := json.Unmarshal(input, request); err != nil {
			return Trial{}, fmt.Errorf("it does not fit the request of %s: %w", h.o.Name, err)
		}
		sent = input
	}
	owner, key := f.about(h, request)
	if !owner.Valid() {
		owner = ident.Owner{}
	}
	if len(key) > maxTrialKey {
		return Trial{}, errors.New("the name or path that it is about is too long")
	}
	reply := f.reply()
	entry, err := h.call(ctx, Call{Key: key, Owner: owner, Request: sent, Reason: reason, DryRun: dryRun}, reply)
	t := Trial{Entry: entry}
	if e, ok := errors.AsType[*Error](err); !ok && err != nil {
		return t, err
	} else if e == nil && f.answer != nil && h.o.Purpose.Accept != nil {
		if answer, given := f.answer(reply); given {
			if err := h.o.Purpose.Accept(ctx, answer, dryRun); err != nil {
				t.Objection = cleanMessage(err.Error())
			}
		}
	}
	return t, nil
}

// maxTrialKey bounds what the script log keeps of a request from a file beside its text: a path and an owner.
const maxTrialKey = 8 << 10

// bareRequest takes the envelope off a request, so that one from the script log can be used again.
func bareRequest(input json.RawMessage) (json.RawMessage, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(input, &fields); err != nil || fields == nil {
		return nil, errors.New("it is not a JSON object")
	}
	if inner := fields["input"]; inner != nil && fields["meta"] != nil {
		if inner = bytes.TrimSpace(inner); len(inner) == 0 || inner[0] != '{' {
			return nil, errors.New("its input is not a JSON object")
		}
		return inner, nil
	}
	delete(fields, "_meta")
	return json.Marshal(fields)
}

// Form is what a hook is asked and answers. Hooks of one name may have several.
type Form string

// The forms (contract 42 part B).
const (
	FormLocator             Form = "locator"
	FormDriveQuota          Form = "quota of a drive"
	FormDriveRemoved        Form = "removal of a drive"
	FormDriveUsage          Form = "usage of a drive"
	FormDriveUsages         Form = "usage of drives"
	FormAccount             Form = "account"
	FormAccountQuota        Form = "quota of an account"
	FormAccountMembers      Form = "members of an account"
	FormAccountDisconnected Form = "member without connection"
	FormAccountUsage        Form = "usage of accounts"
	FormConnect             Form = "connection"
	FormLogin               Form = "login"
	FormDisconnected        Form = "end of a connection"
	FormTicket              Form = "ticket"
)

// form describes a [Form].
type form struct {
	sample func(h *Hook) any // a pointer to a request
	empty  func() any
	reply  func() any // a pointer; nil: nobody reads the reply
	// about gives whom a request is about, and the key that real use takes.
	about  func(h *Hook, request any) (ident.Owner, string)
	answer func(reply any) (answer any, given bool) // what [Purpose.Accept] is asked about; nil: nothing
}

// formOf makes a form of typed functions.
func formOf[Q any](sample func(h *Hook) Q, about func(h *Hook, q *Q) (ident.Owner, string), reply func() any, answer func(any) (any, bool)) form {
	return form{
		sample: func(h *Hook) any { q := sample(h); return &q },
		empty:  func() any { return new(Q) },
		about:  func(h *Hook, q any) (ident.Owner, string) { return about(h, q.(*Q)) },
		reply:  reply, answer: answer,
	}
}

// People and things of the samples exist nowhere.
const (
	sampleUser    = ident.UCloudUser("OskarLind#2291")
	sampleProject = ident.ProjectID("5b1c0a7e-0d0f-4f5e-9b51-2f0d1f7e77aa")
	sampleUID     = ident.UID(20119)
	sampleGID     = ident.GID(30417)
	samplePath    = "/ucloud-sample/reef_models"
)

func noReply() any { return nil }

func uidAnswer(uid *int64) (any, bool) {
	if uid == nil {
		return nil, false
	}
	return ident.UID(*uid), true //nolint:gosec // checked by the reply
}

func (w Workspace) owner() ident.Owner {
	return ident.Owner{User: w.UCloudUsername, Project: w.UCloudProjectID}
}

func (h *Hook) driveKey(w Workspace, path string) (ident.Owner, string) {
	if h.o.Purpose.Drive == nil {
		return w.owner(), ""
	}
	return w.owner(), "drive/" + h.o.Purpose.Drive(w.owner(), path)
}

func accountKey(a SlurmAccount, w Workspace) (ident.Owner, string) {
	return w.owner(), "account/" + a.AccountName
}

func userKey(u ident.UCloudUser) (ident.Owner, string) {
	return ident.Owner{User: u}, "user/" + string(u)
}

func sampleWorkspace() Workspace {
	gid := sampleGID
	return Workspace{Type: "project", UCloudProjectID: sampleProject, UCloudProjectTitle: "Reef models", GID: &gid, LocalGroupName: "reef_models"}
}

func (h *Hook) sampleDrive() DriveDescription {
	return DriveDescription{
		Title: "Reef models", LocatorName: h.o.Purpose.Locator, CategoryName: h.o.Purpose.Category, FilePath: samplePath,
		RecommendedOwnerName: "root", RecommendedGroupName: "reef_models", RecommendedPermissions: "2770",
	}
}

func (h *Hook) sampleUsage() UsageRequest {
	return UsageRequest{LocatorName: h.o.Purpose.Locator, CategoryName: h.o.Purpose.Category, FilePath: samplePath, Owner: sampleWorkspace()}
}

func (h *Hook) sampleAccount() SlurmAccount {
	return SlurmAccount{AccountName: "p_reef_models", Partition: "sample", CategoryName: h.o.Purpose.Category}
}

// forms by name.
var forms = map[Form]form{
	FormLocator: formOf(func(h *Hook) map[string]string {
		p := h.o.Purpose
		vars := map[string]string{varLocator: p.Locator, varCategory: p.Category, "providerId": h.r.o.Provider}
		if p.Entity == "Project" || p.Entity == "MemberFiles" {
			maps.Copy(vars, map[string]string{
				varProject: string(sampleProject), "ucloudProjectTitle": "Reef models", "localGroupName": "reef_models", "gid": sampleGID.String(),
			})
		}
		if p.Entity != "Project" {
			maps.Copy(vars, map[string]string{
				varUser: string(sampleUser), "localUsername": "olind", "localPrimaryGroup": "olind", "uid": sampleUID.String(),
			})
		}
		return vars
	}, func(_ *Hook, q *map[string]string) (ident.Owner, string) {
		return ownerOf(*q), "owner/" + ownerOf(*q).Reference() + "/" + locationName(*q)
	}, func() any { return new(locatorReply) }, func(r any) (any, bool) {
		l := r.(*locatorReply).location()
		return l, l.Path != ""
	}),
	FormDriveQuota: formOf(func(h *Hook) QuotaRequest {
		return QuotaRequest{Drive: h.sampleDrive(), QuotaUpdate: QuotaUpdate{CombinedQuotaInBytes: 1 << 40}, Owner: sampleWorkspace(), FirstTime: true}
	}, func(h *Hook, q *QuotaRequest) (ident.Owner, string) { return h.driveKey(q.Owner, q.Drive.FilePath) }, noReply, nil),
	FormDriveRemoved: formOf(func(h *Hook) RemovedRequest {
		return RemovedRequest{Drive: h.sampleDrive(), Owner: sampleWorkspace(), Reason: "sample"}
	}, func(h *Hook, q *RemovedRequest) (ident.Owner, string) { return h.driveKey(q.Owner, q.Drive.FilePath) }, noReply, nil),
	FormDriveUsage: formOf((*Hook).sampleUsage,
		func(h *Hook, q *UsageRequest) (ident.Owner, string) { return h.driveKey(q.Owner, q.FilePath) },
		func() any { return new(UsageReply) }, nil),
	FormDriveUsages: formOf(func(h *Hook) UsageBatchRequest { return UsageBatchRequest{Drives: []UsageRequest{h.sampleUsage()}} },
		func(h *Hook, _ *UsageBatchRequest) (ident.Owner, string) {
			return ident.Owner{}, "category/" + h.o.Purpose.Category
		},
		func() any { return new(UsageBatchReply) }, nil),

	FormAccount: formOf(func(h *Hook) map[string]string {
		return map[string]string{
			varCategory: h.o.Purpose.Category, "productCategory": h.o.Purpose.Category, "providerId": h.r.o.Provider, "partition": "sample", "qos": "",
			"entityType": "User", varUser: string(sampleUser), "localUsername": "olind", "uid": sampleUID.String(),
		}
	}, func(_ *Hook, q *map[string]string) (ident.Owner, string) {
		return ownerOf(*q), "owner/" + ownerOf(*q).Reference() + "/" + (*q)[varCategory]
	}, func() any { return new(accountReply) }, func(r any) (any, bool) {
		name, err := r.(*accountReply).name()
		return name, err == nil && name != ""
	}),
	FormAccountQuota: formOf(func(h *Hook) AccountQuotaRequest {
		return AccountQuotaRequest{
			Account: h.sampleAccount(), QuotaUpdate: AccountQuotaUpdate{CombinedQuotaInResourceMinutes: 60_000, Unit: "Cpu"}, Owner: sampleWorkspace(),
		}
	}, func(_ *Hook, q *AccountQuotaRequest) (ident.Owner, string) { return accountKey(q.Account, q.Owner) }, noReply, nil),
	FormAccountMembers: formOf(func(h *Hook) AccountMembersRequest {
		m := []Member{{UID: sampleUID, UCloudUsername: sampleUser, LocalUsername: "olind", Role: "PI"}}
		return AccountMembersRequest{Account: h.sampleAccount(), All: m, Added: m, Removed: []Member{}}.Spelled(h)
	}, func(_ *Hook, q *AccountMembersRequest) (ident.Owner, string) {
		return accountKey(q.Account, Workspace{})
	}, noReply, nil),
	FormAccountDisconnected: formOf(func(h *Hook) AccountDisconnectedRequest {
		return AccountDisconnectedRequest{Account: h.sampleAccount(), UID: sampleUID, LocalUsername: "olind", UCloudUsername: sampleUser, Reason: "operator"}
	}, func(_ *Hook, q *AccountDisconnectedRequest) (ident.Owner, string) {
		return accountKey(q.Account, Workspace{UCloudUsername: q.UCloudUsername})
	}, noReply, nil),
	FormAccountUsage: formOf(func(h *Hook) AccountUsageRequest {
		return AccountUsageRequest{Accounts: []string{h.sampleAccount().AccountName}}
	},
		func(*Hook, *AccountUsageRequest) (ident.Owner, string) { return ident.Owner{}, "" },
		func() any { return new(AccountUsageReply) }, nil),

	FormConnect: formOf(func(*Hook) ConnectRequest {
		return ConnectRequest{UCloudUsername: sampleUser, FirstName: "Oskar", LastName: "Lind", SuggestedUsername: "olind", LaunchGroup: "ucloud_users"}
	}, func(_ *Hook, q *ConnectRequest) (ident.Owner, string) { return userKey(q.UCloudUsername) },
		func() any { return new(UIDReply) }, func(r any) (any, bool) { return uidAnswer(r.(*UIDReply).UID) }),
	FormLogin: formOf(func(*Hook) LoginRequest {
		return LoginRequest{
			Claims: json.RawMessage(`{"sub":"sample","email":"oskar.lind@example.org"}`), EmailVerified: true, Email: "oskar.lind@example.org",
			Subject: "sample", UCloudUsername: sampleUser, Issuer: "https://login.example.org",
		}
	}, func(_ *Hook, q *LoginRequest) (ident.Owner, string) { return userKey(q.UCloudUsername) },
		func() any { return new(UIDReply) }, func(r any) (any, bool) { return uidAnswer(r.(*UIDReply).UID) }),
	FormDisconnected: formOf(func(*Hook) DisconnectedRequest {
		return DisconnectedRequest{
			UCloudUsername: sampleUser, UID: sampleUID, LocalUsername: "olind", Reason: "operator",
			Projects: []DisconnectProject{{UCloudProjectID: sampleProject, GID: sampleGID}},
		}
	}, func(_ *Hook, q *DisconnectedRequest) (ident.Owner, string) { return userKey(q.UCloudUsername) }, noReply, nil),
	FormTicket: formOf(func(*Hook) TicketRequest {
		return TicketRequest{Ticket: "SAMPLE", UCloudUsername: sampleUser, ExpiresAt: time.Now().Add(time.Hour).UTC().Truncate(time.Second)}
	}, func(_ *Hook, q *TicketRequest) (ident.Owner, string) { return userKey(q.UCloudUsername) },
		func() any { return new(TicketReply) }, func(r any) (any, bool) {
			if r := r.(*TicketReply); r.Decision == DecideApprove {
				return uidAnswer(r.UID)
			}
			return nil, false
		}),
}
