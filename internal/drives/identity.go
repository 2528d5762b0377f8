package drives

import (
	"path"
	"strings"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// Limits of Linux (limits.h): the longest name, and the longest path that one system call takes.
const (
	MaxName = 255
	MaxPath = 4096
)

// ParseID reads the local base path out of a drive's providerGeneratedId.
//
// The form that we register is "<provider>-<owner reference>\n<absolute path>": everything after the first newline is
// the path. Drives of earlier installations may have the legacy form "<provider>-<absolute path>", which is read but
// never written (contract 10 section 2). The result is absolute and clean.
func ParseID(provider, id string) (base string, err error) {
	_, base, found := strings.Cut(id, "\n")
	if !found || base == "" {
		rest, ok := strings.CutPrefix(strings.TrimSuffix(id, "\n"), provider+"-")
		if !ok {
			return "", failure.New(failure.NotFound, "This drive has no folder at this provider")
		}
		base = rest
	}
	if !strings.HasPrefix(base, "/") || strings.IndexByte(base, 0) >= 0 || len(base) >= MaxPath {
		return "", failure.New(failure.NotFound, "This drive has no folder at this provider")
	}
	return path.Clean(base), nil
}

// Ref is a drive of a request that has passed the checks on its text. Nothing on disk has been touched.
type Ref struct {
	set  *Set
	id   ident.DriveID
	base string
	edit bool
}

// Drive checks the drive of a request: it must be of this provider and name a local directory.
func (s *Set) Drive(d *providerapi.Drive) (Ref, error) {
	if d.ID == "" || strings.ContainsAny(string(d.ID), "/\x00") || d.ID == "." || d.ID == ".." {
		return Ref{}, failure.New(failure.Invalid, "The request names no drive")
	}
	if got := d.Specification.Product.Provider; got != s.provider {
		return Ref{}, failure.New(failure.Invalid, "This drive belongs to another provider")
	}
	base, err := ParseID(s.provider, d.ProviderGeneratedID)
	if err != nil {
		return Ref{}, err
	}
	return Ref{set: s, id: d.ID, base: base, edit: d.May(providerapi.PermissionEdit)}, nil
}

// ID is Core's id of the drive.
func (r Ref) ID() ident.DriveID { return r.id }

// Base is the local path of the drive. It is for logs and for finding out which drives share a file system; open files
// through [Ref.Open].
func (r Ref) Base() string { return r.base }

// RequireEdit refuses with 403 if the calling user may only read the drive. Core checks this as well, but read-only
// access is not visible on disk, and the permissions that Core sends are all there is (contract 10 section 4).
func (r Ref) RequireEdit() error {
	if !r.edit {
		return failure.New(failure.Forbidden, "You may not change anything in this drive")
	}
	return nil
}

// Path is a place in a drive, checked on its text: no component is empty, "." or "..", none is longer than [MaxName].
type Path struct {
	drive ident.DriveID
	rel   string // components joined with '/', as bytes on disk; "" is the drive itself
}

// Path checks a UCloud path of a request against the drive of that request and decodes it.
//
// The rules are those with which Core found the drive (contract 10 section 2), and a path that Core would have
// attributed to another drive is refused: split at '/' only, drop empty and "." components, resolve ".." on the text,
// and never climb above the drive. A backslash is an ordinary character. Lengths count bytes on disk.
func (r Ref) Path(ucloud string) (Path, error) {
	if ucloud == "" {
		return Path{}, failure.New(failure.Invalid, "The path is missing")
	}
	if strings.IndexByte(ucloud, 0) >= 0 {
		return Path{}, failure.New(failure.Invalid, "The path contains a character that is not allowed")
	}
	local, ok := Unescape(ucloud)
	if !ok {
		return Path{}, failure.New(failure.Invalid, "The path is not a valid text")
	}
	if len(local) > MaxPath {
		return Path{}, failure.New(failure.Invalid, "The path is longer than %d bytes", MaxPath)
	}

	var parts []string
	for part := range strings.SplitSeq(local, "/") {
		switch {
		case part == "" || part == ".":
		case part == "..":
			if len(parts) <= 1 {
				return Path{}, failure.New(failure.Invalid, "The path leaves the drive")
			}
			parts = parts[:len(parts)-1]
		case len(part) > MaxName:
			return Path{}, failure.New(failure.Invalid, "A name is longer than %d bytes", MaxName)
		default:
			parts = append(parts, part)
		}
		// The first component decides about the drive; it is checked before anything can be appended to it.
		if len(parts) == 1 && parts[0] != string(r.id) {
			return Path{}, failure.New(failure.Invalid, "The path does not belong to the drive of the request")
		}
	}
	if len(parts) == 0 {
		return Path{}, failure.New(failure.Invalid, "The path names no drive")
	}
	return Path{drive: r.id, rel: strings.Join(parts[1:], "/")}, nil
}

// IsRoot tells whether the path is the drive itself.
func (p Path) IsRoot() bool { return p.rel == "" }

// Name is the last component as bytes on disk, "" for the drive itself.
func (p Path) Name() string { return p.rel[strings.LastIndexByte(p.rel, '/')+1:] }

// Parent is the directory that the path is in. The drive itself is its own parent.
func (p Path) Parent() Path {
	p.rel = p.rel[:max(0, strings.LastIndexByte(p.rel, '/'))]
	return p
}

// Join is the place of an entry of the directory p. The name comes from the disk or from [Path.Name].
func (p Path) Join(name string) Path {
	if p.rel == "" {
		p.rel = name
	} else {
		p.rel += "/" + name
	}
	return p
}

// Depth is the number of components below the drive.
func (p Path) Depth() int {
	if p.rel == "" {
		return 0
	}
	return strings.Count(p.rel, "/") + 1
}

// UCloud is the path as it stands in JSON: "/<drive>/…" without a trailing slash.
func (p Path) UCloud() string {
	if p.rel == "" {
		return "/" + string(p.drive)
	}
	return "/" + string(p.drive) + "/" + Escape(p.rel)
}
