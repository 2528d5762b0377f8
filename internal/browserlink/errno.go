package browserlink

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
)

// reasons say in words of an end user what an errno means, and which kind of failure it is while something is changed
// (contract 10 section 6.1). Nothing that a user can cause is a 5xx: the web client does not show the text of those.
var reasons = []struct {
	errno unix.Errno
	kind  failure.Kind
	why   string
}{
	{unix.ENOSPC, failure.Invalid, "There is no space left on the storage"},
	{unix.EDQUOT, failure.PaymentRequired, "The storage quota is used up"},
	{unix.EIO, failure.Invalid, "The storage reported an error"},
	{unix.EROFS, failure.Forbidden, "The storage is read-only"},
	{unix.ENOENT, failure.NotFound, "The folder does not exist"},
	{unix.ENOTDIR, failure.NotFound, "A part of the path is not a folder"},
	{unix.ELOOP, failure.NotFound, "A part of the path is a link that cannot be followed"},
	{unix.ESTALE, failure.NotFound, "The folder has been removed meanwhile"},
	{unix.EACCES, failure.Forbidden, "You do not have permission"},
	{unix.EPERM, failure.Forbidden, "You do not have permission"},
	{unix.EEXIST, failure.Conflict, "A file with this name already exists"},
	{unix.EISDIR, failure.Conflict, "There is a folder with this name"},
	{unix.ENOTEMPTY, failure.Conflict, "There is a folder with this name"},
	{unix.EBUSY, failure.Conflict, "The file is in use"},
	{unix.ETXTBSY, failure.Conflict, "The file is in use"},
	{unix.EMLINK, failure.Invalid, "The folder holds too many folders"},
	{unix.EFBIG, failure.Invalid, "The file is too large for the storage"},
	{unix.ENAMETOOLONG, failure.Invalid, "The name or path is too long"},
	{unix.EINVAL, failure.Invalid, "The storage does not accept this name"},
	{unix.EILSEQ, failure.Invalid, "The storage does not accept this name"},
	{unix.EMFILE, failure.Invalid, "Too many files are open"},
	{unix.ENFILE, failure.Invalid, "Too many files are open"},
	{unix.ETIMEDOUT, failure.Invalid, "The storage does not answer"},
	{unix.EHOSTDOWN, failure.Invalid, "The storage does not answer"},
	{unix.ESHUTDOWN, failure.Invalid, "The storage does not answer"},
	{unix.ENOTCONN, failure.Invalid, "The storage does not answer"},
}

// Refuse gives an error from the file system its meaning for the client. Errors that have one already are left alone.
func Refuse(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*failure.Error](err); ok {
		return err
	}
	if root, ok := errors.AsType[*drives.RootError](err); ok {
		if root.Denied() {
			return failure.Wrap(err, failure.NotFound, "You do not have access to the folder of this drive")
		}
		return failure.Wrap(err, failure.NotFound, "The folder of this drive does not exist or cannot be reached")
	}
	switch {
	case errors.Is(err, drives.ErrOutside):
		return failure.Wrap(err, failure.Forbidden, "The link leaves the folder")
	case errors.Is(err, drives.ErrNotRegular):
		return failure.Wrap(err, failure.Invalid, "This is not a regular file")
	case errors.Is(err, drives.ErrName):
		return failure.Wrap(err, failure.Invalid, "This name is not allowed")
	}
	for _, r := range reasons {
		if errors.Is(err, r.errno) {
			return failure.Wrap(err, r.kind, "%s", r.why)
		}
	}
	return failure.Wrap(err, failure.Internal, "An internal error occurred")
}

// StorageBroken tells whether an error means that nothing more can be stored, as opposed to a problem of one file.
func StorageBroken(err error) bool {
	for _, e := range []unix.Errno{unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.EROFS, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ESTALE} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Gate bounds how many operations are in the kernel at a time: a file system that hangs must not take all threads of
// the process. Make one with a capacity.
type Gate chan struct{}

// Do runs op, and waits for its result until ctx ends. discard gets a result that came too late.
func Do[T any](ctx context.Context, g Gate, op func() (T, error), discard func(T)) (T, error) {
	var zero T
	select {
	case g <- struct{}{}:
	case <-ctx.Done():
		return zero, errSlow(ctx)
	}
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() { // ends when the kernel returns from the operation
		defer func() { <-g }()
		v, err := op()
		if ctx.Err() != nil && err == nil && discard != nil {
			discard(v)
			v, err = zero, ctx.Err()
		}
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
		if discard != nil {
			go func() { // the operation may have succeeded in this moment
				if r := <-done; r.err == nil {
					discard(r.v)
				}
			}()
		}
		return zero, errSlow(ctx)
	}
}

func errSlow(ctx context.Context) error {
	return failure.Wrap(ctx.Err(), failure.Invalid, "The storage does not answer in time. Try again later")
}
