package ipcapi

// PurposeSource is a session of a transfer to another provider, made by its first step and used by its last (contract 13
// section 2). Its token goes to Core instead of into a URL, so the gateway wakes nobody for it.
const PurposeSource = "transfersource"

// TransferSettings are the settings of transfers in the start-up document.
type TransferSettings struct {
	Outgoing bool     `json:"outgoing"` // may be sent to other providers
	Incoming bool     `json:"incoming"` // may be received from other providers
	Peers    []string `json:"peers"`    // provider ids, or *

	MaxBytes    int64    `json:"maxBytes,omitempty"`    // of one transfer; 0: no bound
	Connections int      `json:"connections,omitempty"` // of one transfer
	Networks    []string `json:"networks,omitempty"`    // that may be connected to although they are not public, as CIDR
	Ports       []int    `json:"ports,omitempty"`       // that may be connected to; empty: all
	Plain       bool     `json:"plain,omitempty"`       // connections without TLS are allowed, for development
	Roots       string   `json:"roots,omitempty"`       // further trust anchors, PEM
}
