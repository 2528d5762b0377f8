package ipcapi

import (
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
)

// Calls of an instance about the links that it gives to browsers and to other providers: uploads, downloads and
// transfers (contract 11 sections 1 and 5.1). The server keeps them, as hashes, so that they survive a restart of the
// instance. Whose they are is never part of a request: the account is the kernel's answer, the user is the one that is
// mapped to it at the moment of the call. A link that was made by another account does not exist for the caller.
var (
	SessionCreate  = ipc.Call[SessionCreation, SessionTokens]{Name: "session.create", Access: ipc.AccessMapped}
	SessionPeek    = ipc.Call[SessionRef, Session]{Name: "session.peek", Access: ipc.AccessMapped}
	SessionConsume = ipc.Call[SessionRef, Session]{Name: "session.consume", Access: ipc.AccessMapped}
	SessionTouch   = ipc.Call[SessionNote, Empty]{Name: "session.touch", Access: ipc.AccessMapped}
	SessionWills   = ipc.Call[SessionWillsOf, Wills]{Name: "session.wills", Access: ipc.AccessMapped}
	SessionClose   = ipc.Call[SessionRef, Empty]{Name: "session.close", Access: ipc.AccessMapped}
)

// Purposes of a session. The gateway may wake an instance for an open one of any of them.
const (
	PurposeUpload   = "upload"
	PurposeDownload = "download"
	PurposeTransfer = "transfer" // an upload by another provider; lives longer
	PurposeShell    = "shell"    // a terminal; lives for a minute and works once
)

// SessionPurposes are all purposes, for [GatewayToken].
func SessionPurposes() []string {
	return []string{PurposeUpload, PurposeDownload, PurposeTransfer, PurposeShell}
}

// Bounds of the calls here.
const (
	MaxSessionItems = 16       // of one creation
	MaxSessionData  = 24 << 10 // bytes; a path of 4096 bytes takes up to 16 KiB in its escaped form
	MaxSessionNote  = 4 << 10
	MaxSessionWill  = 16 << 10
	MaxWills        = 32
)

// SessionCreation asks for sessions. Either all of them are stored or none.
type SessionCreation struct {
	Purpose string        `json:"purpose"`
	Items   []SessionItem `json:"items"` // at most MaxSessionItems
}

// SessionItem describes one session. Drive, Owner and Category let the server check that the drive is known and that
// its owner may still store something; they give no rights.
type SessionItem struct {
	Drive    ident.DriveID `json:"drive"`
	Owner    ident.Owner   `json:"owner"`
	Category string        `json:"category"`
	Object   string        `json:"object"` // the UCloud path
	Data     []byte        `json:"data"`   // the instance's own record, opaque to the server
}

// SessionTokens are the texts of the new sessions, in the order of the items. They cannot be had again.
type SessionTokens struct {
	Tokens []string `json:"tokens"`
}

// SessionRef names a session by its token.
type SessionRef struct {
	Purpose string `json:"purpose"`
	Token   string `json:"token"`
}

// Session is a session that may be used now.
type Session struct {
	Object string    `json:"object"`
	Data   []byte    `json:"data"`
	Note   []byte    `json:"note,omitempty"` // what SessionTouch stored last
	EndsAt time.Time `json:"endsAt"`         // if it is not used again
}

// SessionNote tells that a session is in use. With Note it also stores what the instance wants to know about the session
// after a restart. Done tells that the session has done what it was made for: it stays usable, and is the first to go
// when its user has too many.
type SessionNote struct {
	Purpose string `json:"purpose"`
	Token   string `json:"token"`
	Note    []byte `json:"note,omitempty"`
	Done    bool   `json:"done,omitempty"`
	// Will is what the next instance is to do if this one is not heard of again: it gets it from [SessionWills]. NoWill
	// takes it back.
	Will   []byte `json:"will,omitempty"`
	NoWill bool   `json:"noWill,omitempty"`
}

// SessionWillsOf asks for the wills that an earlier instance of the caller has left in sessions for the purpose. Each is
// given once.
type SessionWillsOf struct {
	Purpose string `json:"purpose"`
}

// Wills are the answer, at most MaxWills of them; the rest stay for the next time.
type Wills struct {
	Wills [][]byte `json:"wills,omitempty"`
}

// LinkSettings are the settings of uploads and downloads in the start-up document. Zero values mean the defaults of
// contract 11 section 7.
type LinkSettings struct {
	PublicURL string   `json:"publicUrl"` // scheme://host[:port] under which browsers reach the provider
	Origins   []string `json:"origins"`   // further origins that may use links: Core's public one

	UploadStreams int   `json:"uploadStreams,omitempty"` // files written at a time, whole instance
	UploadBytes   int64 `json:"uploadBytes,omitempty"`   // data in memory, whole instance
	UploadNoSync  bool  `json:"uploadNoSync,omitempty"`  // do not flush files to the disk before they are reported

	NoDirectories bool `json:"noDirectories,omitempty"` // folders cannot be downloaded
	NoRanges      bool `json:"noRanges,omitempty"`      // no partial downloads
}
