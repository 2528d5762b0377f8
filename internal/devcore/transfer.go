package devcore

import (
	"encoding/json"
	"net/http"
	"path"
	"slices"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// The three calls that Core makes for a transfer (contract 13 section 2). The simulator knows one provider, so it is on
// both sides, which Core allows in development mode only ([Options.SameProviderTransfers]).

type transferItem struct {
	SourcePath      string `json:"sourcePath"`
	DestinationPath string `json:"destinationPath"`
}

// transferStep is the union of the requests as Core encodes it: the drives are always there, the rest only in its step.
type transferStep struct {
	Type                  string                   `json:"type"`
	SourcePath            string                   `json:"sourcePath,omitempty"`
	SourceCollection      providerapi.Drive        `json:"sourceCollection"`
	DestinationProvider   string                   `json:"destinationProvider,omitempty"`
	DestinationPath       string                   `json:"destinationPath,omitempty"`
	DestinationCollection providerapi.Drive        `json:"destinationCollection"`
	SourceProvider        string                   `json:"sourceProvider,omitempty"`
	SupportedProtocols    providerapi.List[string] `json:"supportedProtocols,omitempty"`
	Session               string                   `json:"session,omitempty"`
	SelectedProtocol      string                   `json:"selectedProtocol,omitempty"`
	ProtocolParameters    json.RawMessage          `json:"protocolParameters,omitempty"`
}

// transferAnswer is the union of the answers.
type transferAnswer struct {
	Type               string                   `json:"type"`
	Session            string                   `json:"session"`
	SupportedProtocols providerapi.List[string] `json:"supportedProtocols"`
	SelectedProtocol   string                   `json:"selectedProtocol"`
	ProtocolParameters json.RawMessage          `json:"protocolParameters"`
}

func (c *Core) serveTransfer(w http.ResponseWriter, r *http.Request, who ident.UCloudUser) {
	req, ok := decode[providerapi.BulkRequest[transferItem]](w, r)
	if !ok {
		return
	}
	for _, it := range req.Items {
		if err := c.transfer(r, who, it); err != nil {
			fail(w, err)
			return
		}
	}
	respond(w, http.StatusOK, providerapi.BulkResponse[providerapi.Empty]{Responses: make([]providerapi.Empty, len(req.Items))})
}

func (c *Core) transfer(r *http.Request, who ident.UCloudUser, it transferItem) error {
	from, err := c.driveOf(it.SourcePath, who, providerapi.PermissionRead)
	if err != nil {
		return err
	}
	to, err := c.writable(it.DestinationPath, who)
	if err != nil {
		return err
	}
	if !c.opt.SameProviderTransfers {
		return &CallError{StatusCode: http.StatusForbidden, Why: "Cannot transfer between these paths (same provider)"}
	}
	// The drives come without what is optional.
	for _, d := range []*providerapi.Drive{from, to} {
		d.Status.ResolvedProduct, d.Status.ResolvedSupport = nil, nil
		d.Permissions.Others = nil
	}
	none := providerapi.Drive{CreatedAt: providerapi.UnsetMillis}
	step := func(req transferStep) (res transferAnswer, err error) {
		err = c.Call(r.Context(), who, http.MethodPost, c.filesPath("/transfer"), req, &res)
		if err == nil && res.Type != req.Type {
			err = &CallError{StatusCode: http.StatusBadGateway, Why: "Bad response from the provider"}
		}
		return res, err
	}
	one, err := step(transferStep{
		Type: "InitiateSource", SourcePath: it.SourcePath, SourceCollection: *from, DestinationProvider: c.opt.Provider, DestinationCollection: none,
	})
	if err != nil {
		return err
	}
	if one.Session == "" || len(one.SupportedProtocols) == 0 {
		return &CallError{StatusCode: http.StatusForbidden, Why: "The source does not allow the transfer"}
	}
	two, err := step(transferStep{
		Type: "InitiateDestination", DestinationPath: path.Clean("/" + it.DestinationPath), DestinationCollection: *to,
		SourceProvider: c.opt.Provider, SupportedProtocols: one.SupportedProtocols, SourceCollection: none,
	})
	if err != nil {
		return err
	}
	if !slices.Contains(one.SupportedProtocols, two.SelectedProtocol) {
		return &CallError{StatusCode: http.StatusBadGateway, Why: "The destination has chosen a protocol that the source does not know"}
	}
	_, err = step(transferStep{
		Type: "Start", Session: one.Session, SelectedProtocol: two.SelectedProtocol, ProtocolParameters: two.ProtocolParameters,
		SourceCollection: none, DestinationCollection: none,
	})
	return err
}
