package uploads

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/browserlink"
	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
)

// Kinds of upload and the protocols (contract 11 section 1).
const (
	kindFile   = "FILE"
	kindFolder = "FOLDER"

	protocolChunked = "CHUNKED"
	protocolV1      = "WEBSOCKET_V1"
	protocolV2      = "WEBSOCKET_V2"
	protocolLegacy  = "WEBSOCKET" // offered by the web client; it speaks V2
)

// CreateUpload is one item of POST files/upload.
type CreateUpload struct {
	ID                 string                     `json:"id"`
	Type               string                     `json:"type"`
	SupportedProtocols providerapi.List[string]   `json:"supportedProtocols"`
	ConflictPolicy     providerapi.ConflictPolicy `json:"conflictPolicy"`
	ResolvedCollection providerapi.Drive          `json:"resolvedCollection"`
}

// UploadSession is the answer to one item.
type UploadSession struct {
	Endpoint string `json:"endpoint"`
	Protocol string `json:"protocol"`
	Token    string `json:"token"`
}

// createTimeout bounds the creation of sessions; Core gives up after 5 s.
const createTimeout = 4500 * time.Millisecond

// Create makes sessions, one for each item and in their order. Either all are made or none: the error is that of the
// first item that cannot be, and says how many there are if there are several items.
func (s *Service) Create(ctx context.Context, items []CreateUpload) ([]UploadSession, error) {
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	records := make([]record, len(items))
	wants := make([]ipcapi.SessionItem, len(items))
	err := failure.EachItem(len(items), func(i int) (err error) {
		it := &items[i]
		if records[i], err = s.check(ctx, it.ID, it.Type, it.SupportedProtocols, it.ConflictPolicy, &it.ResolvedCollection); err != nil {
			return err
		}
		wants[i], err = records[i].item(&it.ResolvedCollection)
		return err
	})
	if err != nil {
		return nil, err
	}
	tokens, err := s.o.Sessions.Create(ctx, ipcapi.PurposeUpload, wants)
	if err != nil {
		return nil, err
	}
	links := s.state.Load().links
	out := make([]UploadSession, len(items))
	for i := range out {
		protocol := records[i].Protocol
		out[i] = UploadSession{
			Endpoint: links.URL("upload", tokens[i], protocol != protocolChunked), Protocol: protocol, Token: tokens[i],
		}
	}
	return out, nil
}

// CreateTransfer makes a session for another provider, which may put a folder or a single file at the path (contract 13
// section 2.3). ref comes back in [Info]. Colliding files are renamed. With checked, both sides speak the checked protocol.
func (s *Service) CreateTransfer(ctx context.Context, drive *providerapi.Drive, path, ref string, checked bool) (UploadSession, error) {
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	rec, err := s.check(ctx, path, kindTransfer, nil, providerapi.ConflictMergeRename, drive)
	if err != nil {
		return UploadSession{}, err
	}
	rec.Ref, rec.Checked = ref, checked
	item, err := rec.item(drive)
	if err != nil {
		return UploadSession{}, err
	}
	tokens, err := s.o.Sessions.Create(ctx, ipcapi.PurposeTransfer, []ipcapi.SessionItem{item})
	if err != nil {
		return UploadSession{}, err
	}
	return UploadSession{
		Endpoint: s.state.Load().links.URL("upload", tokens[0], true), Protocol: protocolV2, Token: tokens[0],
	}, nil
}

// item is what the server is told about a session.
func (r *record) item(d *providerapi.Drive) (ipcapi.SessionItem, error) {
	data, err := json.Marshal(r)
	if err != nil {
		return ipcapi.SessionItem{}, fmt.Errorf("encode session: %w", err)
	}
	return ipcapi.SessionItem{
		Drive: d.ID, Owner: d.Owner.Workspace(), Category: d.Specification.Product.Category, Object: r.Path, Data: data,
	}, nil
}

// check decides whether a session may be made (contract 11 section 1).
func (s *Service) check(ctx context.Context, path, kind string, protocols []string, policy providerapi.ConflictPolicy, d *providerapi.Drive) (record, error) {
	ref, err := s.state.Load().set.Drive(d)
	if err != nil {
		return record{}, err
	}
	if err := ref.RequireEdit(); err != nil {
		return record{}, err
	}
	p, err := ref.Path(path)
	if err != nil {
		return record{}, err
	}
	switch kind {
	case "":
		kind = kindFile // older clients
	case kindFile, kindFolder, kindTransfer:
	default:
		return record{}, failure.New(failure.Invalid, "The type of the upload is unknown")
	}
	switch policy {
	case "":
		policy = providerapi.ConflictReject // the one that changes nothing that exists
	case providerapi.ConflictRename, providerapi.ConflictReject, providerapi.ConflictReplace, providerapi.ConflictMergeRename:
	default:
		return record{}, failure.New(failure.Invalid, "The conflict policy is unknown")
	}
	protocol, err := chooseProtocol(kind, protocols)
	if err != nil {
		return record{}, err
	}
	if s.o.Writable != nil {
		if err := s.o.Writable(ctx, d.Owner.Workspace(), d.Specification.Product.Category); err != nil {
			return record{}, err
		}
	}
	rec := record{
		Version: 1, Drive: d.ID, DrivePG: d.ProviderGeneratedID, Provider: d.Specification.Product.Provider, Path: p.UCloud(),
		Kind: kind, Policy: policy, Protocol: protocol,
	}
	_, err = browserlink.Do(ctx, s.gate, func() (struct{}, error) { return struct{}{}, mayStore(ref, p, &rec) }, nil)
	return rec, browserlink.Refuse(err)
}

// chooseProtocol takes V2 wherever the client may know it, else for files the first that both know.
func chooseProtocol(kind string, offered []string) (string, error) {
	if len(offered) == 0 {
		return protocolV2, nil
	}
	for _, p := range offered {
		if p == protocolV2 || p == protocolLegacy {
			return protocolV2, nil
		}
	}
	for _, p := range offered {
		if kind == kindFile && (p == protocolV1 || p == protocolChunked) {
			return p, nil
		}
	}
	return "", failure.New(failure.Invalid, "None of the upload protocols is supported")
}

// mayStore looks whether the place can be written to. What it finds may change at any time, so it decides about nothing
// but the answer now.
func mayStore(ref drives.Ref, p drives.Path, rec *record) error {
	if rec.Kind == kindFile && p.IsRoot() {
		return failure.New(failure.Invalid, "A file cannot take the place of a drive")
	}
	root, err := ref.Open()
	if err != nil {
		return err
	}
	defer root.Close()
	local, err := root.At(p)
	if err != nil {
		return err
	}
	if rec.Kind != kindFile {
		dir, err := local.OpenPathDir()
		if err == nil {
			defer dir.Close()
			return dir.Changeable()
		}
		if errors.Is(err, unix.ENOTDIR) && rec.Kind == kindTransfer {
			return nil // a file is there, and another file may come beside it
		}
		if errors.Is(err, unix.ENOTDIR) {
			return failure.Wrap(err, failure.Conflict, "There is a file with the name of the folder")
		}
		if !errors.Is(err, unix.ENOENT) || p.IsRoot() {
			return err
		}
	}
	dir, name, err := local.OpenParent()
	if err != nil {
		return err
	}
	defer dir.Close()
	if drives.IsDraft(name) {
		return failure.New(failure.Invalid, "This name is not allowed")
	}
	if rec.Kind == kindFile {
		old, err := dir.Target(name)
		switch {
		case errors.Is(err, unix.ENOENT):
		case err != nil:
			return err
		case old.Directory && !rec.renames():
			return failure.New(failure.Conflict, "There is a folder with this name")
		case rec.rejects():
			return failure.New(failure.Conflict, "A file with this name already exists")
		}
	}
	return dir.Changeable()
}

// open finds the session of a token, and counts a use of it.
func (s *Service) open(ctx context.Context, token string) (record, note, error) {
	ses, err := s.o.Sessions.Consume(ctx, ipcapi.PurposeUpload, token)
	if failure.Is(err, failure.NotFound) {
		ses, err = s.o.Sessions.Consume(ctx, ipcapi.PurposeTransfer, token)
	}
	if err != nil {
		return record{}, note{}, err
	}
	var rec record
	if err := json.Unmarshal(ses.Data, &rec); err != nil || rec.Version != 1 || rec.Drive == "" {
		return record{}, note{}, fmt.Errorf("decode session (version %d): %w", rec.Version, errors.Join(err, errors.New("unknown form")))
	}
	var n note
	if len(ses.Note) > 0 {
		if err := json.Unmarshal(ses.Note, &n); err != nil {
			return record{}, note{}, fmt.Errorf("decode note of session: %w", err)
		}
	}
	return rec, n, nil
}
