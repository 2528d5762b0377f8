package localuser

import (
	"context"

	"ucloud-im/internal/ident"
)

// GroupByID gives the group with this gid, failure.NotFound if there is none.
func (d *Directory) GroupByID(ctx context.Context, gid ident.GID) (Group, error) {
	g, err := lookup(ctx, d, "G:"+gid.String(), func(ctx context.Context) (Group, error) {
		out, err := d.getent(ctx, "group", gid.String())
		if err != nil {
			return Group{}, err
		}
		g, err := parseGroup(out)
		// getent tries a number as a name first.
		if err == nil && g.GID != gid {
			err = errNoRecord
		}
		return g, err
	})
	return g, explain(err, "There is no local group with the id %s", gid)
}
