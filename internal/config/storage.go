package config

// FileSystem is one storage product (contract 40 section 7).
type FileSystem struct {
	Management    *Management       `key:"management" need:"if managed; forbidden when unmanaged" doc:"How directories and quotas are made."`
	Payment       StoragePayment    `key:"payment" need:"yes" doc:"Unit and price."`
	DriveLocators Map[DriveLocator] `key:"driveLocators" need:"yes" keys:"name" flags:"nonempty" doc:"Which drives an allocation yields. The order is significant: the first locator that serves an owner gives the primary drive, unless one says primary."`
	UserDrives    *UserDrives       `key:"userDrives" defaultDoc:"none: all drives are made by the provider" doc:"Lets users make drives of their own, as folders in a drive of their workspace."`
}

// UserDrives says where the drives are that users make.
type UserDrives struct {
	Locators  []string `key:"locators" need:"yes" flags:"nonempty" doc:"Drive locators of this file system in whose drives others may be made; the first of them that a workspace has counts."`
	Directory string   `key:"directory" default:"Drives" flags:"nonempty" doc:"Name of the folder in that drive that holds the users' drives."`
}

// The management types.
const (
	ManagementNone     = "None"
	ManagementPosix    = "Posix"
	ManagementXFSQuota = "XfsQuota"
	ManagementLustre   = "Lustre"
	ManagementCephFS   = "CephFs"
	ManagementGPFS     = "Gpfs"
	ManagementScripted = "Scripted"
)

// Management says how directories are made and quotas enforced.
type Management struct {
	Type     string              `key:"type" need:"yes" enum:"None,Posix,XfsQuota,Lustre,CephFs,Gpfs,Scripted" doc:"Posix uses directories that the site makes, and measures them; it does not enforce. Scripted leaves all that to scripts. The others are not available in this version."`
	Usage    UsageCollection     `key:"usage" doc:"Measuring of usage, per drive."`
	Scripted *ScriptedManagement `key:"scripted" need:"for type Scripted" doc:"Extension scripts."`
	GPFS     *GPFS               `key:"gpfs" need:"for type Gpfs" doc:"GPFS (Spectrum Scale) server; the login is in secrets.yml."`
}

// UsageCollection says how often usage is measured.
type UsageCollection struct {
	Interval Duration `key:"interval" default:"15m" min:"10s" doc:"Pause between two measurements of a drive."`
	Parallel int      `key:"parallel" default:"4" min:"1" max:"1000" doc:"Measurements at once."`
	Timeout  Duration `key:"timeout" default:"10m" max:"1d" doc:"Time limit of one."`
}

// ScriptedManagement are the extension scripts of type Scripted.
type ScriptedManagement struct {
	OnQuotaUpdated   Exec `key:"onQuotaUpdated" need:"yes" doc:"Makes the directory and sets the quota."`
	OnUsageReporting Exec `key:"onUsageReporting" need:"yes" doc:"Measures a drive."`
	OnDriveRemoved   Exec `key:"onDriveRemoved" defaultDoc:"none" doc:"A drive has no allocation any more."`
}

// GPFS is the non-secret part of a GPFS server.
type GPFS struct {
	Host       *Host            `key:"host" need:"for type Gpfs" doc:"Management API."`
	CAFile     Path             `key:"caFile" exists:"file" defaultDoc:"the system's trust store" doc:"Trust anchors, PEM."`
	VerifyTLS  bool             `key:"verifyTls" default:"true" doc:"false gives a warning at every start."`
	UseStatFS  bool             `key:"useStatFs" default:"false" doc:"Measure with statfs instead of the fileset."`
	JobTimeout Duration         `key:"jobTimeout" default:"60s" max:"1h" doc:"Time limit of one job of the API."`
	Mapping    Map[GPFSMapping] `key:"mapping" keys:"name" need:"for type Gpfs" doc:"Exactly one entry for each drive locator (X-06)."`
}

// GPFSMapping says where the fileset of a locator is.
type GPFSMapping struct {
	FileSystem     string  `key:"fileSystem" need:"yes" flags:"nonempty" doc:"GPFS file system."`
	ParentFileSet  string  `key:"parentFileSet" need:"yes" flags:"nonempty" doc:"Parent fileset."`
	FileSetPattern Pattern `key:"fileSetPattern" need:"yes" vars:"locator" doc:"Name of the fileset."`
}

// The payment types and intervals.
const (
	PaymentResource = "Resource"
	PaymentMoney    = "Money"
	Minutely        = "Minutely"
	Hourly          = "Hourly"
	Daily           = "Daily"
)

// StoragePayment is unit and price of a storage product.
type StoragePayment struct {
	Type     string `key:"type" need:"yes" enum:"Resource,Money" doc:"Resource counts units, Money counts an amount."`
	Unit     string `key:"unit" enum:"GB,TB,PB,EB,GiB,TiB,PiB,EiB" need:"for Resource" doc:"Unit of quota and usage. It cannot change once the category is registered."`
	Interval string `key:"interval" enum:"Minutely,Hourly,Daily" defaultDoc:"none: a quota, counted once" doc:"Accounting period."`
	Price    Money  `key:"price" need:"for Money; forbidden for Resource" doc:"Price of one unit in one period."`
	Currency string `key:"currency" need:"for Money; forbidden for Resource" doc:"Three letters, such as DKK."`
}

// UnitBytes is the number of bytes of one unit, 0 for Money without a unit.
func (p StoragePayment) UnitBytes() int64 {
	for _, u := range sizeUnits {
		if u.name == p.Unit {
			return int64(u.bytes)
		}
	}
	return 0
}

// The owner kinds of drive locators.
const (
	EntityUser        = "User"
	EntityProject     = "Project"
	EntityMemberFiles = "MemberFiles"
)

// DriveLocator says which directory an owner's drive is.
type DriveLocator struct {
	// Entity is one of the Entity constants, or empty for an unmanaged provider: then the locator serves every owner for
	// whom all variables of its pattern are known.
	Entity        string    `key:"entity" enum:"User,Project,MemberFiles" need:"if managed" doc:"Kind of owner. Without it (unmanaged) the locator serves every owner for whom all variables are known."`
	Pattern       Pattern   `key:"pattern" vars:"locator" need:"exactly one of pattern and script" doc:"Path of the drive."`
	Script        Exec      `key:"script" need:"exactly one of pattern and script" doc:"Script that answers the path."`
	AllowedRoots  []Path    `key:"allowedRoots" flags:"nonempty" defaultDoc:"the fixed directory at the start of the pattern" doc:"The path must lie below one of them. Mandatory with a script."`
	Title         Pattern   `key:"title" vars:"locator" defaultDoc:"the name of the locator" doc:"Title of the drive, at most 100 characters."`
	FreeQuota     *int      `key:"freeQuota" min:"0" need:"for entity User; forbidden otherwise" doc:"Quota that every user has, in units of the product."`
	FreeQuotaOnce bool      `key:"freeQuotaOnce" default:"true" doc:"Give the free quota once, not for each allocation."`
	Ownership     Ownership `key:"ownership" doc:"Owner, group and mode of a new directory."`
	Primary       bool      `key:"primary" default:"false" doc:"The owner's primary drive, used for job folders. At most one per kind of owner over all products."`
	ReadOnly      bool      `key:"readOnly" default:"false" doc:"Nobody may write through UCloud."`
	Hidden        bool      `key:"hidden" default:"false" doc:"Not shown in lists."`
}

// Ownership is what a new directory gets. Defaults depend on the entity.
type Ownership struct {
	Owner Pattern `key:"owner" vars:"locator" defaultDoc:"User: #{localUsername}; Project: root" doc:"Owner."`
	Group Pattern `key:"group" vars:"locator" defaultDoc:"User: #{localPrimaryGroup}; Project: #{localGroupName}" doc:"Group."`
	Mode  Mode    `key:"mode" defaultDoc:"User: 0700; Project: 2770" doc:"Permission bits."`
}
