// Package ident holds the small value types that the rest of the module passes around: who a UCloud user is, which
// Unix account is meant, which workspace owns a thing. Giving each its own type keeps a UCloud user name from being
// used where a login name is expected.
//
// The package imports only the standard library and never does I/O.
package ident

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxUserLength is the longest UCloud user name in bytes that we accept. Core has no documented limit; the value
// keeps header and database sizes bounded.
const MaxUserLength = 512

// UCloudUser is a user name at UCloud/Core, such as "Alice#1234". Any valid UTF-8 text may occur, so it is compared
// byte by byte: no case folding and no normalisation (contract 01 section 5). Never use it in a path, a command line
// or an LDAP filter without escaping.
type UCloudUser string

// SystemUser is the owner Core gives to resources that a provider registers for a project.
const SystemUser UCloudUser = "_ucloud"

// ErrBadUser tells that a text cannot be a UCloud user name.
var ErrBadUser = errors.New("not a UCloud user name")

// ParseUCloudUser checks that s can be a UCloud user name: not empty, valid UTF-8, at most [MaxUserLength] bytes and
// free of control characters.
func ParseUCloudUser(s string) (UCloudUser, error) {
	switch {
	case s == "":
		return "", fmt.Errorf("%w: it is empty", ErrBadUser)
	case len(s) > MaxUserLength:
		return "", fmt.Errorf("%w: it is longer than %d bytes", ErrBadUser, MaxUserLength)
	case !utf8.ValidString(s):
		return "", fmt.Errorf("%w: it is not valid UTF-8", ErrBadUser)
	case strings.ContainsFunc(s, unicode.IsControl):
		return "", fmt.Errorf("%w: it contains a control character", ErrBadUser)
	}
	return UCloudUser(s), nil
}

// ProjectID identifies a project at Core; a UUID in practice.
type ProjectID string

// DriveID is Core's id of a drive (file collection): a decimal number as text.
type DriveID string

// Owner names a workspace: exactly one of the two fields is set. A personal workspace has a User, a project a
// Project.
type Owner struct {
	User    UCloudUser
	Project ProjectID
}

// IsProject tells whether the workspace is a project.
func (o Owner) IsProject() bool { return o.Project != "" }

// Valid tells whether exactly one field is set.
func (o Owner) Valid() bool { return (o.User == "") != (o.Project == "") }

// Reference is the text that identifies the workspace in provider generated ids: the project id or the user name
// (contract 10 section 2).
func (o Owner) Reference() string {
	if o.IsProject() {
		return string(o.Project)
	}
	return string(o.User)
}

// UID is a numeric Unix user id. The whole unsigned 32 bit range is legal for the type; whether an id may be used is
// decided by the account policy.
type UID uint32

// GID is a numeric Unix group id.
type GID uint32

// ParseUID reads a decimal user id.
func ParseUID(s string) (UID, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is not a numeric user id", s)
	}
	return UID(n), nil
}

// String is the decimal form.
func (u UID) String() string { return strconv.FormatUint(uint64(u), 10) }

// String is the decimal form.
func (g GID) String() string { return strconv.FormatUint(uint64(g), 10) }
