package jobrunner

import (
	"context"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
)

// Server is the server's part: the calls of package ipcapi with the same names.
type Server interface {
	Begin(ctx context.Context, b ipcapi.JobBeginning) (ipcapi.JobGrant, error)
	Submitted(ctx context.Context, s ipcapi.JobSubmission) (ipcapi.JobReceipt, error)
	Refused(ctx context.Context, r ipcapi.JobRefusal) error
	Find(ctx context.Context, id string) (ipcapi.JobRecord, error)
	Ending(ctx context.Context, id string) error
	Changed(ctx context.Context, id string) error
	Extend(ctx context.Context, e ipcapi.JobExtension) error
	Local(ctx context.Context, r ipcapi.JobLocalReport) (ipcapi.JobLocalReply, error)
	Choices(ctx context.Context, project ident.ProjectID) (ipcapi.JobChoiceReply, error)
}

// callTimeout bounds each question to the server.
const callTimeout = 4 * time.Second

// IPC is the server behind the socket.
type IPC struct {
	Connect func() (*ipc.Client, error)
}

func invoke[Req, Resp any](ctx context.Context, s IPC, call ipc.Call[Req, Resp], req Req) (Resp, error) {
	c, err := s.Connect()
	if err != nil {
		var zero Resp
		return zero, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return ipc.Invoke(ctx, c, call, req)
}

// Begin implements [Server].
func (s IPC) Begin(ctx context.Context, b ipcapi.JobBeginning) (ipcapi.JobGrant, error) {
	return invoke(ctx, s, ipcapi.JobBegin, b)
}

// Submitted implements [Server].
func (s IPC) Submitted(ctx context.Context, sub ipcapi.JobSubmission) (ipcapi.JobReceipt, error) {
	return invoke(ctx, s, ipcapi.JobSubmitted, sub)
}

// Refused implements [Server].
func (s IPC) Refused(ctx context.Context, r ipcapi.JobRefusal) error {
	_, err := invoke(ctx, s, ipcapi.JobRefused, r)
	return err
}

// Find implements [Server].
func (s IPC) Find(ctx context.Context, id string) (ipcapi.JobRecord, error) {
	return invoke(ctx, s, ipcapi.JobFind, ipcapi.JobRef{ID: id})
}

// Ending implements [Server].
func (s IPC) Ending(ctx context.Context, id string) error {
	_, err := invoke(ctx, s, ipcapi.JobEnding, ipcapi.JobRef{ID: id})
	return err
}

// Changed implements [Server].
func (s IPC) Changed(ctx context.Context, id string) error {
	_, err := invoke(ctx, s, ipcapi.JobChanged, ipcapi.JobRef{ID: id})
	return err
}

// Extend implements [Server].
func (s IPC) Extend(ctx context.Context, e ipcapi.JobExtension) error {
	_, err := invoke(ctx, s, ipcapi.JobExtend, e)
	return err
}

// Local implements [Server].
func (s IPC) Local(ctx context.Context, r ipcapi.JobLocalReport) (ipcapi.JobLocalReply, error) {
	return invoke(ctx, s, ipcapi.JobLocal, r)
}

// Choices implements [Server].
func (s IPC) Choices(ctx context.Context, project ident.ProjectID) (ipcapi.JobChoiceReply, error) {
	return invoke(ctx, s, ipcapi.JobChoices, ipcapi.JobWorkspace{Project: project})
}
