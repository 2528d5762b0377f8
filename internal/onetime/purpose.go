package onetime

import (
	"fmt"
	"time"

	"ucloud-im/internal/ipcapi"
)

// Purposes of tokens, beside those of sessions, which instances name ([ipcapi.PurposeUpload] and its neighbours).
const (
	PurposeWeb       = "web"
	PurposeVNC       = "vnc"
	PurposeLogin     = "login"
	PurposeKeyUpload = "key-upload"
)

// Purpose is one of the things that a token can be for. Nothing else can be issued.
type Purpose struct {
	Name  string
	For   string // for people, in docs/security.md
	Usual Limits // where a [Spec] has none
	// Most is the longest total life that may be asked for; the operator may have lengthened the usual one.
	Most time.Duration
}

// The limits of contract 01 section 8.8, and of what came later. Tokens for web applications and VNC are used once; what
// follows has the life of the job and is not theirs.
var (
	TerminalLimits = Limits{Total: time.Minute, Uses: 1}
	WebLimits      = Limits{Total: 2 * time.Minute, Uses: 1}
	DownloadLimits = Limits{Total: 48 * time.Hour, FirstUse: time.Hour, Uses: Unlimited}
	UploadLimits   = Limits{Total: 7 * 24 * time.Hour, Idle: 24 * time.Hour, Uses: Unlimited}
	// TransferLimits: a transfer may pause for long (contract 13 section 2.4). One that has not begun after a week will not.
	TransferLimits = Limits{Total: year, FirstUse: 7 * 24 * time.Hour, Idle: 30 * 24 * time.Hour, Uses: Unlimited}
	// SourceLimits lie between the first and the last step of a transfer to another provider. Core makes them in one go; a
	// repetition of the last step finds the same task.
	SourceLimits    = Limits{Total: 24 * time.Hour, Uses: Unlimited}
	LoginLimits     = Limits{Total: 15 * time.Minute, Uses: 1}
	KeyUploadLimits = Limits{Total: 15 * time.Minute, Uses: 8}
)

const year = 365 * 24 * time.Hour

// Purposes are all there are.
func Purposes() []Purpose {
	return []Purpose{
		{ipcapi.PurposeUpload, "an upload by a browser", UploadLimits, year},
		{ipcapi.PurposeDownload, "a download by a browser", DownloadLimits, year},
		{ipcapi.PurposeTransfer, "an upload by another provider", TransferLimits, year},
		{ipcapi.PurposeSource, "a transfer to another provider, between its steps", SourceLimits, SourceLimits.Total},
		{ipcapi.PurposeShell, "a shell in the browser", TerminalLimits, TerminalLimits.Total},
		{PurposeWeb, "the web interface of a job", WebLimits, WebLimits.Total},
		{PurposeVNC, "the desktop of a job", WebLimits, WebLimits.Total},
		{PurposeLogin, "a login at the identity provider", LoginLimits, LoginLimits.Total},
		{PurposeKeyUpload, "the upload of a public key", KeyUploadLimits, KeyUploadLimits.Total},
	}
}

// complete gives the limits of a token that is to be issued, or refuses what is for nothing known, or for too long.
func (s *Spec) complete() (Limits, error) {
	for _, p := range Purposes() {
		if p.Name != s.Purpose {
			continue
		}
		l := s.Limits
		if l == (Limits{}) {
			l = p.Usual
		}
		switch {
		case l.Total <= 0:
			return l, fmt.Errorf("issue token: a token must end")
		case l.Total > p.Most:
			return l, fmt.Errorf("issue token: %s is too long a life for %s", l.Total, p.Name)
		case l.Uses < 1 && l.Uses != Unlimited:
			return l, fmt.Errorf("issue token: %d uses", l.Uses)
		case p.Usual.Uses != Unlimited && (l.Uses == Unlimited || l.Uses > p.Usual.Uses):
			return l, fmt.Errorf("issue token: a token for %s has %d uses at most", p.Name, p.Usual.Uses)
		}
		return l, nil
	}
	return Limits{}, fmt.Errorf("issue token: nothing is known of the purpose %q", s.Purpose)
}
