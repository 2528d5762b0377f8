package files

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
)

// file copies anything but a folder. The error is the end of the task; a failure is counted. final is the name that the
// copy has got.
func (c *copier) file(
	ctx context.Context, from *drives.Dir, name string, to *drives.Dir, newName, where string, flush bool, buf *drives.CopyBuffer,
) (final string, err error) {
	src, err := from.OpenFile(name)
	switch {
	case err == nil:
		final, err = c.regular(ctx, src, to, newName, flush, buf)
		src.Close() //nolint:errcheck // it was only read
	case errors.Is(err, unix.ENOENT):
		if where != "" {
			return "", nil // gone since the folder was read
		}
	case errors.Is(err, drives.ErrNotRegular):
		final, err = c.link(from, name, to, newName)
	}
	if e, ok := errors.AsType[*stopError](err); ok {
		return "", e.cause
	}
	if err != nil {
		if where != "" {
			where += "/"
		}
		c.fail(where+drives.Escape(name), err)
		return "", nil
	}
	c.add(1, 0)
	return final, nil
}

// stopError is the end of the task, as opposed to the failure of a file.
type stopError struct{ cause error }

func (e *stopError) Error() string { return e.cause.Error() }

func (c *copier) regular(
	ctx context.Context, src *os.File, to *drives.Dir, newName string, flush bool, buf *drives.CopyBuffer,
) (final string, err error) {
	node, err := drives.NodeOf(src)
	if err != nil {
		return "", err
	}
	if c.resumed {
		there, ok, err := c.complete(ctx, src, node, to, newName)
		if err != nil {
			return "", err
		}
		if ok {
			c.add(0, node.Size)
			return there, nil
		}
	}
	draft, err := c.temps.New(to, newName, 0o600)
	if err != nil {
		return "", err
	}
	defer draft.Discard()
	err = draft.CopyFrom(src, node, buf, func(n int64) error {
		c.add(0, n)
		if n < node.Size && (flush || c.policy == providerapi.ConflictReplace) {
			draft.StartWriting(0, 0) // all that there is, so that little is left for the end, which cannot be interrupted
		}
		if n < node.Size { // a file in several steps
			if err := c.job.Checkpoint(ctx); err != nil {
				return &stopError{err}
			}
		}
		return nil
	})
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return "", failure.Wrap(err, failure.Conflict, "The file has changed while it was copied")
	}
	if err == nil {
		err = draft.KeepAttributes(src)
	}
	if err == nil {
		err = draft.Keep(node)
	}
	if err == nil && (flush || c.policy == providerapi.ConflictReplace) {
		// What is replaced must not be gone before its successor is on the disk.
		err = draft.Sync()
	}
	if err == nil {
		err = draft.Finish()
	}
	if err != nil {
		return "", err
	}
	if c.policy == providerapi.ConflictReplace {
		return newName, draft.Replace(newName)
	}
	return c.free(newName, draft.Publish)
}

// free calls take with the name, and with its alternatives as long as they are taken.
func (c *copier) free(name string, take func(string) error) (final string, err error) {
	for n := 0; n <= drives.MaxNumbered; n++ {
		final = drives.Numbered(name, n)
		err := take(final)
		if !errors.Is(err, unix.EEXIST) || c.policy == providerapi.ConflictReject {
			return final, err
		}
	}
	return "", errNoFreeName
}

// complete tells whether an earlier attempt has copied the file, by size and time; when the source is to be removed, also
// by its content. Under another name it may stand only if names are chosen.
func (c *copier) complete(
	ctx context.Context, src *os.File, node drives.Node, to *drives.Dir, name string,
) (final string, ok bool, err error) {
	for n := 0; n <= drives.MaxNumbered; n++ {
		final = drives.Numbered(name, n)
		there, err := to.Node(final)
		if err != nil {
			return "", false, nil //nolint:nilerr // then it is to be copied
		}
		if sameCopy(node, there) {
			same := true
			if c.moving {
				same, err = c.sameContent(ctx, src, to, final, node.Size)
			}
			if same || err != nil {
				return final, same, err
			}
		}
		if c.policy == providerapi.ConflictReplace || c.policy == providerapi.ConflictReject {
			return "", false, nil
		}
	}
	return "", false, nil
}

// sameCopy tells whether one file is a copy of the other, as far as can be seen without reading.
func sameCopy(node, there drives.Node) bool {
	return there.Kind == node.Kind && !there.Same(node) && there.Size == node.Size && there.Modified == node.Modified
}

// sameContent compares two files. The error is the end of the task.
func (c *copier) sameContent(ctx context.Context, src *os.File, to *drives.Dir, name string, size int64) (bool, error) {
	dst, err := to.OpenFile(name)
	if err != nil {
		return false, nil //nolint:nilerr // then it is to be copied
	}
	defer dst.Close() //nolint:errcheck // it was only read
	a, b := make([]byte, 256<<10), make([]byte, 256<<10)
	for off := int64(0); off < size; {
		if err := c.job.Checkpoint(ctx); err != nil {
			return false, &stopError{err}
		}
		n := min(size-off, int64(len(a)))
		if _, err := src.ReadAt(a[:n], off); err != nil {
			return false, nil //nolint:nilerr // copying it will tell
		}
		if _, err := dst.ReadAt(b[:n], off); err != nil || !bytes.Equal(a[:n], b[:n]) {
			return false, nil //nolint:nilerr // as above
		}
		off += n
	}
	return true, nil
}

// link copies a symbolic link as it is. Everything else that is no regular file is refused.
func (c *copier) link(from *drives.Dir, name string, to *drives.Dir, newName string) (final string, err error) {
	node, err := from.Node(name)
	if err != nil {
		return "", err
	}
	if node.Kind != drives.NodeLink {
		return "", drives.ErrNotRegular
	}
	text, err := from.ReadLink(name)
	if err != nil {
		return "", err
	}
	make := func(free string) error {
		err := to.Symlink(text, free)
		if err == nil {
			_ = to.KeepLinkTime(free, node) // some file systems cannot
		}
		return err
	}
	if c.resumed || c.policy == providerapi.ConflictReplace {
		if final, ok := c.sameLink(to, newName, text); ok {
			return final, nil
		}
	}
	if c.policy != providerapi.ConflictReplace {
		return c.free(newName, make)
	}
	hidden := c.temps.Hidden(newName)
	if err := make(hidden); err != nil {
		return "", err
	}
	if err := drives.Rename(to, hidden, to, newName); err != nil {
		_ = to.Remove(hidden, false) // the first error counts
		return "", err
	}
	return newName, nil
}

// sameLink tells whether there is such a link already, under another name only if names are chosen.
func (c *copier) sameLink(to *drives.Dir, name, text string) (final string, ok bool) {
	for n := 0; n <= drives.MaxNumbered; n++ {
		final = drives.Numbered(name, n)
		if _, err := to.Node(final); err != nil {
			return "", false
		}
		if there, err := to.ReadLink(final); err == nil && there == text {
			return final, true
		}
		if c.policy == providerapi.ConflictReplace || c.policy == providerapi.ConflictReject {
			return "", false
		}
	}
	return "", false
}

// single copies or moves something that is no folder.
func (c *copier) single(
	ctx context.Context, source *drives.Dir, name string, node drives.Node, target *drives.Dir, newName string,
) (final string, err error) {
	if c.resumed {
		c.tidy(target)
	}
	c.find(amount{files: 1, bytes: node.Size}, true)
	var buf drives.CopyBuffer
	final, err = c.file(ctx, source, name, target, newName, "", true, &buf)
	if err == nil && c.failedSoFar() == 0 {
		if err := target.Sync(); err != nil {
			c.fail(drives.Escape(name), err)
		}
	}
	return final, err
}
