package transfers

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/browserlink"
	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/fileserver"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/tasks"
)

// The steps of Core (contract 13 section 2.2).
const (
	stepSource      = "InitiateSource"
	stepDestination = "InitiateDestination"
	stepStart       = "Start"
)

// The protocols. built-in is the one that all providers know, that of uploads. The other one is our own: the same with
// hashes, and with large files that go on where they were interrupted.
const (
	protocolBuiltIn = "built-in"
	protocolChecked = "built-in-sha256"
)

// offered are the protocols that this version can send and receive with, the best first.
var offered = []string{protocolChecked, protocolBuiltIn}

const (
	transferBody = 512 << 10 // two drives, and some
	// stepTimeout bounds a step; Core gives up after 5 s.
	stepTimeout = 4500 * time.Millisecond
	icon        = "heroPaperAirplane"
)

// Routes are the calls of the package.
func (s *Service) Routes() []fileserver.Route {
	return []fileserver.Route{
		{
			Method: http.MethodPost, Path: "files/transfer", Class: hoptoken.ClassCore, MaxBody: transferBody, Serve: s.serve,
			// The drives of the steps that they do not belong to have zero values.
			Intent: intent.Rule{Calls: []string{"files.transfer"}, Unsigned: true, Owners: []string{"sourceCollection?", "destinationCollection?"}},
		},
	}
}

// request is the union of the three requests. Core always sends both drives, with zero values where they do not belong
// to the step; they are decoded only where they do.
type request struct {
	Type string `json:"type"`

	SourcePath          string          `json:"sourcePath"`
	SourceCollection    json.RawMessage `json:"sourceCollection"`
	DestinationProvider string          `json:"destinationProvider"`

	DestinationPath       string                   `json:"destinationPath"`
	DestinationCollection json.RawMessage          `json:"destinationCollection"`
	SourceProvider        string                   `json:"sourceProvider"`
	SupportedProtocols    providerapi.List[string] `json:"supportedProtocols"`

	Session            string          `json:"session"`
	SelectedProtocol   string          `json:"selectedProtocol"`
	ProtocolParameters json.RawMessage `json:"protocolParameters"`
}

// The answers. Each has the keys of its own step only.
type (
	sourceAnswer struct {
		Type               string   `json:"type"`
		Session            string   `json:"session"`
		SupportedProtocols []string `json:"supportedProtocols"`
	}
	destinationAnswer struct {
		Type               string     `json:"type"`
		SelectedProtocol   string     `json:"selectedProtocol"`
		ProtocolParameters parameters `json:"protocolParameters"`
	}
	startAnswer struct {
		Type string `json:"type"`
	}
)

// parameters are those of the protocols that we know. The E is the protocol's; reading accepts either case.
type parameters struct {
	Endpoint string `json:"Endpoint"` //nolint:tagliatelle // contract 13 section 2.2
}

func (s *Service) serve(w http.ResponseWriter, c *fileserver.Call) error {
	var req request
	if err := c.Decode(w, &req); err != nil {
		return err
	}
	answer, err := s.step(c.Context(), &req)
	if err != nil {
		return err
	}
	return c.Write(w, answer)
}

// step does one step of Core.
func (s *Service) step(ctx context.Context, req *request) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	switch req.Type {
	case stepSource:
		return s.initiateSource(ctx, req)
	case stepDestination:
		return s.initiateDestination(ctx, req)
	case stepStart:
		return s.start(ctx, req)
	}
	return nil, failure.New(failure.Invalid, "This step of a transfer is not known")
}

func driveOf(raw json.RawMessage) (*providerapi.Drive, error) {
	d := new(providerapi.Drive)
	if len(raw) == 0 || json.Unmarshal(raw, d) != nil {
		return nil, failure.New(failure.Invalid, "The request names no drive")
	}
	return d, nil
}

// sessionRecord is what the server keeps between the first and the last step.
type sessionRecord struct {
	Version  int           `json:"v"`
	Drive    ident.DriveID `json:"drive"`
	Base     string        `json:"pgid"`
	Provider string        `json:"provider"`
	Path     string        `json:"path"`
	Peer     string        `json:"peer"`
}

// sessionNote tells with what the transfer was started.
type sessionNote struct {
	Started []byte `json:"started"` // hash of protocol and parameters
}

// initiateSource is the first step: may this be sent?
func (s *Service) initiateSource(ctx context.Context, req *request) (any, error) {
	set := s.settings.Load()
	if err := set.mayTransfer(set.Outgoing, outgoing, req.DestinationProvider); err != nil {
		return nil, err
	}
	d, err := driveOf(req.SourceCollection)
	if err != nil {
		return nil, err
	}
	ref, err := set.set.Drive(d)
	if err != nil {
		return nil, err
	}
	if !d.May(providerapi.PermissionRead) {
		return nil, failure.New(failure.Forbidden, "You may not read this drive")
	}
	path, err := ref.Path(req.SourcePath)
	if err != nil {
		return nil, err
	}
	_, err = browserlink.Do(ctx, s.gate, func() (struct{}, error) {
		src, err := openSource(ref, path)
		if err == nil {
			src.close()
		}
		return struct{}{}, err
	}, nil)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, failure.Wrap(err, failure.NotFound, "What is to be transferred does not exist")
	case errors.Is(err, drives.ErrNotRegular):
		return nil, failure.Wrap(err, failure.Invalid, "Only files and folders can be transferred")
	case err != nil:
		return nil, browserlink.Refuse(err)
	}
	data, err := json.Marshal(sessionRecord{
		Version: 1, Drive: d.ID, Base: d.ProviderGeneratedID, Provider: d.Specification.Product.Provider, Path: path.UCloud(),
		Peer: req.DestinationProvider,
	})
	if err != nil {
		return nil, fmt.Errorf("encode session: %w", err)
	}
	tokens, err := s.o.Sessions.Create(ctx, ipcapi.PurposeSource, []ipcapi.SessionItem{{
		Drive: d.ID, Owner: d.Owner.Workspace(), Category: d.Specification.Product.Category, Object: path.UCloud(), Data: data,
	}})
	if err != nil {
		return nil, err
	}
	return sourceAnswer{Type: stepSource, Session: tokens[0], SupportedProtocols: offered}, nil
}

// initiateDestination is the second step: may it be put here, and how?
func (s *Service) initiateDestination(ctx context.Context, req *request) (any, error) {
	set := s.settings.Load()
	if err := set.mayTransfer(set.Incoming, arriving, req.SourceProvider); err != nil {
		return nil, err
	}
	i := slices.IndexFunc(offered, func(p string) bool { return slices.Contains(req.SupportedProtocols, p) })
	if i < 0 {
		return nil, failure.New(failure.Invalid, "The two providers have no protocol of transfers in common")
	}
	d, err := driveOf(req.DestinationCollection)
	if err != nil {
		return nil, err
	}
	ref, err := set.set.Drive(d)
	if err != nil {
		return nil, err
	}
	if err := ref.RequireEdit(); err != nil {
		return nil, err
	}
	path, err := ref.Path(req.DestinationPath)
	if err != nil {
		return nil, err
	}
	var key [16]byte
	rand.Read(key[:]) //nolint:errcheck // never fails
	session, err := s.receiver.CreateTransfer(ctx, d, req.DestinationPath, refOf(key[:], req.SourceProvider), offered[i] == protocolChecked)
	if failure.Is(err, failure.NotFound) {
		err = failure.Wrap(err, failure.NotFound, "The folder that is to take the transfer does not exist")
	}
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(session.Token))
	err = s.submit(ctx, tasks.Spec{
		Kind: ipcapi.TaskReceive, Title: fmt.Sprintf("Receiving %s from %s", nameOf(path), shorten(req.SourceProvider, 60)), CanCancel: true, Key: key[:],
	}, ipcapi.ReceiveParams{Session: sum[:]})
	if err != nil {
		return nil, errors.Join(err, s.o.Sessions.Close(context.WithoutCancel(ctx), ipcapi.PurposeTransfer, session.Token))
	}
	return destinationAnswer{Type: stepDestination, SelectedProtocol: offered[i], ProtocolParameters: parameters{session.Endpoint}}, nil
}

// start is the last step: go. It may be repeated.
func (s *Service) start(ctx context.Context, req *request) (any, error) {
	unknown := failure.New(failure.NotFound, "This transfer is not known, or it has expired")
	if req.Session == "" || len(req.Session) > 256 {
		return nil, unknown
	}
	ses, err := s.o.Sessions.Consume(ctx, ipcapi.PurposeSource, req.Session)
	if failure.Is(err, failure.NotFound) {
		return nil, unknown
	}
	if err != nil {
		return nil, err
	}
	var rec sessionRecord
	if err := json.Unmarshal(ses.Data, &rec); err != nil || rec.Version != 1 {
		return nil, fmt.Errorf("decode session (version %d): %w", rec.Version, errors.Join(err, errors.New("unknown form")))
	}
	set := s.settings.Load()
	if err := set.mayTransfer(set.Outgoing, outgoing, rec.Peer); err != nil {
		return nil, err
	}
	if !slices.Contains(offered, req.SelectedProtocol) {
		return nil, failure.New(failure.Invalid, "The other provider has chosen a protocol that is not known here")
	}
	var p parameters
	if err := json.Unmarshal(req.ProtocolParameters, &p); err != nil {
		return nil, failure.Wrap(err, failure.Invalid, "The other provider gave no address to send to")
	}
	if err := set.Dial.Check(p.Endpoint); err != nil {
		return nil, err
	}
	if err := s.startOnce(ctx, req, &p, ses.Note); err != nil {
		return nil, err
	}
	// The key comes from the session: another Start finds the same task.
	key := sha256.Sum256([]byte("task of transfer " + req.Session))
	name := rec.Path[max(0, lastSlash(rec.Path)+1):]
	err = s.submit(ctx, tasks.Spec{
		Kind: kindSend, Title: fmt.Sprintf("Transferring %s to another provider", shorten(name, 80)), CanPause: true, CanCancel: true, Key: key[:16],
	}, sendParams{
		Drive: rec.Drive, Base: rec.Base, Path: rec.Path, Peer: rec.Peer, Protocol: req.SelectedProtocol, Endpoint: p.Endpoint,
	})
	if err != nil {
		return nil, err
	}
	return startAnswer{Type: stepStart}, nil
}

// startOnce notes with what the session is started. Another start with something else is refused: it could not have an
// effect, and must not seem to.
func (s *Service) startOnce(ctx context.Context, req *request, p *parameters, noted []byte) error {
	sum := sha256.Sum256([]byte(req.SelectedProtocol + "\n" + p.Endpoint))
	var note sessionNote
	if len(noted) > 0 {
		if err := json.Unmarshal(noted, &note); err != nil {
			return fmt.Errorf("decode note of session: %w", err)
		}
		if string(note.Started) != string(sum[:]) {
			return failure.New(failure.Conflict, "This transfer has been started already")
		}
		return nil
	}
	raw, err := json.Marshal(sessionNote{Started: sum[:]})
	if err != nil {
		return fmt.Errorf("encode note of session: %w", err)
	}
	return s.o.Sessions.Touch(ctx, ipcapi.SessionNote{Purpose: ipcapi.PurposeSource, Token: req.Session, Note: raw, Done: true})
}

func (s *Service) submit(ctx context.Context, spec tasks.Spec, params any) (err error) {
	spec.Icon = icon
	if spec.Params, err = json.Marshal(params); err != nil {
		return fmt.Errorf("encode task: %w", err)
	}
	_, err = s.o.Tasks.Submit(ctx, spec)
	return err
}

func lastSlash(path string) int {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return i
		}
	}
	return -1
}

// nameOf is what a transfer is called in a title. A whole drive has no name.
func nameOf(p drives.Path) string {
	if p.IsRoot() {
		return "files"
	}
	return shorten(drives.Escape(p.Name()), 80)
}

// refOf is how an upload session names its transfer: the key of the task, and the provider that sends.
func refOf(key []byte, peer string) string { return hex.EncodeToString(key) + " " + peer }

func parseRef(ref string) (key []byte, peer string, ok bool) {
	if len(ref) < 33 {
		return nil, "", false
	}
	key, err := hex.DecodeString(ref[:32])
	return key, ref[33:], err == nil
}
