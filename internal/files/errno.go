package files

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
)

// intent is what a failed system call was for, where the same errno means different things to the user.
type intent uint8

const (
	reading intent = iota // a file one cannot read is not there, as far as Core is concerned
	changing
)

// refusal is what an errno means to a client (contract 10 sections 5 and 6.1). Nothing that a user can cause is a 5xx:
// the web client does not show the text of those.
var refusals = []struct {
	errno   unix.Errno
	reading failure.Kind
	change  failure.Kind
	why     string
}{
	{unix.ENOENT, failure.NotFound, failure.NotFound, "Could not find the file"},
	{unix.ENOTDIR, failure.NotFound, failure.NotFound, "A part of the path is not a folder"},
	{unix.ELOOP, failure.NotFound, failure.NotFound, "A part of the path is a link that cannot be followed"},
	{unix.ESTALE, failure.NotFound, failure.NotFound, "The file has been removed meanwhile"},
	{unix.EACCES, failure.NotFound, failure.Forbidden, "You do not have permission"},
	{unix.EPERM, failure.NotFound, failure.Forbidden, "You do not have permission"},
	{unix.EROFS, failure.Forbidden, failure.Forbidden, "The storage is read-only"},
	{unix.EEXIST, failure.Conflict, failure.Conflict, "A file with this name already exists"},
	{unix.ENOTEMPTY, failure.Conflict, failure.Conflict, "The folder is not empty"},
	{unix.EBUSY, failure.Conflict, failure.Conflict, "The file is in use"},
	{unix.EISDIR, failure.Conflict, failure.Conflict, "This is a folder"},
	{unix.EDQUOT, failure.PaymentRequired, failure.PaymentRequired, "The storage quota is used up"},
	{unix.ENOSPC, failure.Invalid, failure.Invalid, "There is no space left on the storage"},
	{unix.EMLINK, failure.Invalid, failure.Invalid, "The folder holds too many folders"},
	{unix.EFBIG, failure.Invalid, failure.Invalid, "The file is too large for the storage"},
	{unix.ENAMETOOLONG, failure.Invalid, failure.Invalid, "The name or path is too long"},
	{unix.EINVAL, failure.Invalid, failure.Invalid, "The storage does not accept this name"},
	{unix.EILSEQ, failure.Invalid, failure.Invalid, "The storage does not accept this name"},
	{unix.EIO, failure.NotFound, failure.Invalid, "The storage reported an error"},
	{unix.ETIMEDOUT, failure.NotFound, failure.Invalid, "The storage does not answer"},
	{unix.EHOSTDOWN, failure.NotFound, failure.Invalid, "The storage does not answer"},
	{unix.ESHUTDOWN, failure.NotFound, failure.Invalid, "The storage does not answer"},
	{unix.ENOTCONN, failure.NotFound, failure.Invalid, "The storage does not answer"},
}

// refuse gives an error from the file system its meaning for the client. Errors that have one already are left alone.
func (s *Service) refuse(ctx context.Context, err error, what intent) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*failure.Error](err); ok {
		return err
	}
	if root, ok := errors.AsType[*drives.RootError](err); ok {
		return s.refuseRoot(ctx, root)
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return errBusy(err)
	case errors.Is(err, drives.ErrOutside):
		return failure.Wrap(err, failure.Forbidden, "The link leaves the drive")
	case errors.Is(err, drives.ErrNotRegular):
		return failure.Wrap(err, failure.Invalid, "This is not a regular file")
	case errors.Is(err, drives.ErrName):
		return failure.Wrap(err, failure.Invalid, "This name is not allowed")
	}
	for _, r := range refusals {
		if errors.Is(err, r.errno) {
			kind := r.reading
			if what == changing {
				kind = r.change
			}
			return failure.Wrap(err, kind, "%s", r.why)
		}
	}
	return failure.Wrap(err, failure.Internal, "An internal error occurred")
}

// refuseRoot is for a drive whose own directory cannot be entered.
func (s *Service) refuseRoot(ctx context.Context, err *drives.RootError) error {
	s.log.Warn("drive cannot be entered", "error", err)
	if err.Denied() {
		if s.o.StaleGroups != nil && s.o.StaleGroups(ctx) {
			return failure.Wrap(err, failure.NoInstance, "Your access to this drive is being set up. Try again in a few seconds.")
		}
		return failure.Wrap(err, failure.NotFound, "You do not have access to the folder of this drive")
	}
	return failure.Wrap(err, failure.NotFound, "The folder of this drive does not exist or cannot be reached")
}
