package drives

import (
	"path"
	"strings"

	"ucloud-im/internal/ident"
)

// Table finds the drive that a local path lies in. It is immutable and safe for concurrent use.
type Table struct {
	byBase map[string]ident.DriveID
}

// Place is one drive and its local base path.
type Place struct {
	ID   ident.DriveID
	Base string // absolute
}

// NewTable makes a table. Of two drives with the same base path the first one counts.
func NewTable(places []Place) *Table {
	t := &Table{byBase: make(map[string]ident.DriveID, len(places))}
	for _, p := range places {
		base := path.Clean(p.Base)
		if _, taken := t.byBase[base]; !taken && strings.HasPrefix(base, "/") {
			t.byBase[base] = p.ID
		}
	}
	return t
}

// UCloud converts an absolute local path. Of nested drives the innermost counts, and a base path only matches whole
// components: /projects/p1 is no prefix of /projects/p10 (contract 10, containment).
func (t *Table) UCloud(local string) (ucloud string, ok bool) {
	if !strings.HasPrefix(local, "/") || strings.IndexByte(local, 0) >= 0 {
		return "", false
	}
	local = path.Clean(local)
	for base := local; ; base = path.Dir(base) {
		if id, found := t.byBase[base]; found {
			rel := strings.TrimPrefix(strings.TrimPrefix(local, base), "/")
			return Path{drive: id, rel: rel}.UCloud(), true
		}
		if base == "/" {
			return "", false
		}
	}
}
