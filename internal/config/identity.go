package config

// Services are what the provider offers (contract 40 sections 6 to 8).
type Services struct {
	Type        string          `key:"type" need:"yes" enum:"Slurm" reload:"restart" doc:"Kind of provider."`
	Unmanaged   bool            `key:"unmanaged" reload:"restart" default:"false" doc:"The operator maps users by hand; no project groups, no quota management."`
	Identity    Identity        `key:"identityManagement" doc:"How UCloud users become local accounts."`
	FileSystems Map[FileSystem] `key:"fileSystems" need:"yes" keys:"category" flags:"nonempty" doc:"Storage products by category name; unique among storage and compute. The name share is reserved."`
	SSH         SSH             `key:"ssh" doc:"Login nodes."`
	Slurm       *Slurm          `key:"slurm" defaultDoc:"none: a provider with storage only" doc:"Jobs through Slurm."`
}

// The identity types.
const (
	IdentityFreeIPA  = "FreeIPA"
	IdentityLDAP     = "LDAP"
	IdentityOIDC     = "OIDC"
	IdentityScripted = "Scripted"
	IdentityStatic   = "Static"
	IdentityManual   = "Manual"
)

// Identity is the way from a UCloud user to a local account.
type Identity struct {
	// Type is one of the Identity constants. It is Manual for an unmanaged provider that names none.
	Type          string            `key:"type" enum:"FreeIPA,LDAP,OIDC,Scripted,Static,Manual" reload:"restart" need:"if managed" defaultDoc:"Manual when unmanaged" doc:"Manual, OIDC and Static are the only values for an unmanaged provider."`
	Manual        Manual            `key:"manual" doc:"For type Manual."`
	ProjectGroups string            `key:"projectGroups" enum:"fromBackend,scripted,off" defaultDoc:"by type: fromBackend for FreeIPA and LDAP, scripted for Scripted, otherwise off" doc:"Where the groups of projects come from."`
	FreeIPA       *FreeIPA          `key:"freeipa" need:"for type FreeIPA" doc:"FreeIPA server."`
	Naming        Naming            `key:"naming" doc:"Names of new accounts and groups."`
	OIDC          *OIDC             `key:"oidc" need:"for type OIDC" doc:"Identity provider."`
	LDAP          *LDAP             `key:"ldap" need:"for type LDAP" doc:"Directory, for sites without FreeIPA."`
	Scripted      *ScriptedIdentity `key:"scripted" need:"for type Scripted, or projectGroups scripted" doc:"Extension scripts."`
	Static        *StaticIdentity   `key:"static" need:"for type Static" doc:"A file that says who has which account."`
	OnDisconnect  string            `key:"onDisconnect" enum:"keep,removeFromGroups,script" default:"removeFromGroups" doc:"What happens locally when a user disconnects or leaves a project."`
	GroupCache    GroupCache        `key:"groupCache" doc:"Cache of the name service."`
}

// Manual is the mapping by ticket or by the operator.
type Manual struct {
	Tickets         Tickets `key:"tickets" doc:"Connecting makes a ticket that is approved for a local account."`
	SelfService     bool    `key:"selfService" default:"true" doc:"Users complete their own ticket: after a login on the frontend, ucloud connect TICKET. The uid comes from the kernel."`
	OnTicketCreated Exec    `key:"onTicketCreated" defaultDoc:"none" doc:"Called for each new ticket; may decide."`
}

// Tickets are the rules for pending connections (contract 03 section 3.3).
type Tickets struct {
	Enabled        bool     `key:"enabled" default:"true" doc:"Offer tickets."`
	Lifetime       Duration `key:"lifetime" default:"14d" max:"365d" min:"1m" doc:"Life of a ticket; operators answer by mail."`
	MaxOpenPerUser int      `key:"maxOpenPerUser" default:"1" min:"1" max:"100" doc:"More supersede the oldest."`
	Instructions   Path     `key:"instructions" exists:"file" defaultDoc:"a built-in page" doc:"Markdown for the page with the ticket; variables ucloudUsername, ticket, contact."`
	Contact        string   `key:"contact" need:"when tickets are enabled" doc:"Mail address or URL shown with the ticket (X-21)."`
}

// FreeIPA is the non-secret part of a FreeIPA server; the login is in secrets.yml.
type FreeIPA struct {
	URL        URL      `key:"url" need:"for type FreeIPA" doc:"Base URL."`
	CAFile     Path     `key:"caFile" exists:"file" defaultDoc:"the system's trust store" doc:"Trust anchors, PEM."`
	VerifyTLS  bool     `key:"verifyTls" default:"true" doc:"false gives a warning at every start."`
	Timeout    Duration `key:"timeout" default:"15s" max:"10m" doc:"Time limit of one call."`
	UsersGroup Name     `key:"usersGroup" defaultDoc:"= userInstances.group" doc:"Group of all users; must be userInstances.group."`
}

// Naming says how new accounts and groups are called.
type Naming struct {
	Users         string `key:"users" default:"firstInitialLastName" doc:"firstInitialLastName, ucloud, or a pattern with firstName, lastName, firstInitial, ucloudUsername. ASCII, at most 28 characters, two digits from 01 on collision."`
	Projects      string `key:"projects" enum:"title,date,uuid" default:"title" doc:"Where group names come from."`
	ProjectDigits int    `key:"projectDigits" default:"2" min:"1" max:"8" doc:"Digits of the serial number."`
	ProjectPrefix string `key:"projectPrefix" default:"p" doc:"Prefix of group names."`
}

// ExpandUsers expands a pattern for the names of users. An error means that a variable has no value, or that there is no
// pattern.
func (n Naming) ExpandUsers(values map[string]string) (string, error) {
	p, err := parsePattern(n.Users, patternVariables("userNaming"))
	if err != nil {
		return "", err
	}
	return p.ExpandText(values)
}

// OIDC is an identity provider; its client secret is in secrets.yml.
type OIDC struct {
	Issuer             URL      `key:"issuer" need:"yes" doc:"Issuer URL; discovery is used. The redirect URI is <selfPublic>/ucloud-oidc."`
	ClientID           string   `key:"clientId" need:"yes" flags:"nonempty" doc:"Client id."`
	Scopes             []string `key:"scopes" default:"[openid]" doc:"Scopes; openid is always asked for."`
	ConnectionLifetime Duration `key:"connectionLifetime" default:"7d" doc:"After it the user has to log in again."`
	OnUserConnected    Exec     `key:"onUserConnected" need:"yes" doc:"Script that turns the claims into a uid."`
	CAFile             Path     `key:"caFile" exists:"file" defaultDoc:"the system's trust store" doc:"Trust anchors for the issuer, PEM."`
}

// LDAP is a directory; the password is in secrets.yml.
type LDAP struct {
	URL        URL            `key:"url" need:"yes" doc:"ldaps://… or ldap://…"`
	CAFile     Path           `key:"caFile" exists:"file" defaultDoc:"the system's trust store" doc:"Trust anchors, PEM."`
	VerifyTLS  bool           `key:"verifyTls" default:"true" doc:"false gives a warning at every start."`
	Timeout    Duration       `key:"timeout" default:"15s" max:"10m" doc:"Time limit of one call."`
	BindDN     string         `key:"bindDn" need:"yes" flags:"nonempty" doc:"Name used for the login."`
	BaseDNs    LDAPBaseDNs    `key:"baseDns" need:"yes" doc:"Where entries are."`
	Attributes LDAPAttributes `key:"attributes" doc:"Names of attributes."`
	GIDRange   IDRange        `key:"gidRange" defaultDoc:"none: no groups are made" doc:"Range for the groups of projects."`
}

// LDAPBaseDNs are the subtrees of a directory.
type LDAPBaseDNs struct {
	Users  string `key:"users" need:"yes" flags:"nonempty" doc:"Subtree of accounts."`
	Groups string `key:"groups" need:"yes" flags:"nonempty" doc:"Subtree of groups."`
}

// LDAPAttributes are attribute names of a directory (defaults: RFC 2307).
type LDAPAttributes struct {
	Username       string `key:"username" default:"uid" doc:"Name of an account."`
	UID            string `key:"uid" default:"uidNumber" doc:"Numeric uid."`
	UCloudUsername string `key:"ucloudUsername" default:"employeeNumber" doc:"UCloud username of an account."`
	Group          string `key:"group" default:"cn" doc:"Name of a group."`
	GID            string `key:"gid" default:"gidNumber" doc:"Numeric gid."`
	Member         string `key:"member" default:"memberUid" doc:"Members of a group."`
}

// ScriptedIdentity are the extension scripts of type Scripted and of scripted project groups.
type ScriptedIdentity struct {
	OnUserConnected    Exec `key:"onUserConnected" need:"for type Scripted" doc:"Makes or finds the account of a user; answers the uid."`
	OnUserDisconnected Exec `key:"onUserDisconnected" defaultDoc:"none" doc:"A user disconnected or was removed."`
	OnProjectUpdated   Exec `key:"onProjectUpdated" need:"for project groups" doc:"Makes the group of a project and sets its members; answers the gid."`
	OnProjectArchived  Exec `key:"onProjectArchived" defaultDoc:"none" doc:"A project was archived, unarchived or deleted."`
}

// StaticIdentity is a file of the operator that says which account each user has.
type StaticIdentity struct {
	File Path `key:"file" need:"yes" exists:"file" doc:"Lines of the form UCloudUser: localname, see the operator guide. Owner root or the service account, not writable by others; read again when it changes."`
}

// ProvesUser tells whether a connection of this type takes something that only the user can do at the provider: a login, or
// an operator who has made sure. Where it does not, UCloud alone could complete a connection, and so nobody can have a
// signing key.
func (i Identity) ProvesUser() bool {
	return i.Type == IdentityManual || i.Type == IdentityOIDC
}

// DefaultRefreshCommand is the default of [GroupCache], which is not told from what was left out.
func DefaultRefreshCommand() []string { return []string{"sudo", "/sbin/sss_cache", "-E"} }

// GroupCache says how the cache of the name service is emptied after a group changed.
type GroupCache struct {
	RefreshCommand []string `key:"refreshCommand" default:"[sudo, /sbin/sss_cache, -E]" doc:"Command and arguments; an empty list = none. It is not run in this version: another value than the default or none is refused."`
	TTL            Duration `key:"ttl" default:"30s" zero:"yes" doc:"How long looked-up groups are remembered."`
}
