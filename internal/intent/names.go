package intent

import "slices"

// Names are the user-facing names of all calls that an instance asks an intent for, sorted: those that a policy can name.
// TestNamesAreThoseOfTheRoutes of package roleuser compares them with what the routes declare.
func Names() []string { return slices.Clone(names) }

var names = []string{
	"files.browse",
	"files.collections.create",
	"files.collections.delete",
	"files.collections.onUpdatedLabels",
	"files.collections.rename",
	"files.collections.updateAcl",
	"files.collections.updateLabels",
	"files.collections.verify",
	"files.copy",
	"files.createDownload",
	"files.createFolder",
	"files.createUpload",
	"files.delete",
	"files.emptyTrash",
	"files.move",
	"files.retrieve",
	"files.search",
	"files.streamingSearch",
	"files.transfer",
	"files.trash",
	"jobs.attachResource",
	"jobs.create",
	"jobs.detachResource",
	"jobs.extend",
	"jobs.follow",
	"jobs.onUpdatedLabels",
	"jobs.openInteractiveSession",
	"jobs.openTerminalInFolder",
	"jobs.requestDynamicParameters",
	"jobs.suspend",
	"jobs.terminate",
	"jobs.unsuspend",
	"jobs.updateAcl",
	"jobs.updateLabels",
	"shares.create",
	"shares.delete",
	"ssh_keys.*",
	"tasks.pauseOrCancel",
}

// Reasons are all that a verdict can have.
func Reasons() []Reason {
	return []Reason{
		OK, Exempt, Missing, Unsignable, Malformed, NoKey, Signature, WrongCall, WrongUser, Project, Workspaces, Provider, Payload, WrongDrive,
		Expired, Future, Life, Replayed, Busy,
	}
}
