package cli

import (
	"cmp"
	"context"

	"github.com/spf13/cobra"

	"ucloud-im/internal/ipcapi"
)

// driveOwner is the owner as one text.
func driveOwner(d ipcapi.DriveInfo) string {
	if d.Project != "" {
		if d.Member != "" {
			return "project " + string(d.Project) + ", " + string(d.Member)
		}
		return "project " + string(d.Project)
	}
	return string(d.User)
}

// used is what a drive holds, for sorting; drives that were never measured come first.
func used(d ipcapi.DriveInfo) int64 {
	if d.UsedBytes == nil {
		return -1
	}
	return *d.UsedBytes
}

var drivesTable = table[ipcapi.DriveInfo]{
	noun: "drives",
	key:  func(d ipcapi.DriveInfo) string { return string(d.ID) },
	columns: []column[ipcapi.DriveInfo]{
		{name: "id", get: func(d ipcapi.DriveInfo) string { return string(d.ID) }},
		{name: "title", get: func(d ipcapi.DriveInfo) string { return d.Title }},
		{name: "owner", get: driveOwner},
		{name: "product", get: func(d ipcapi.DriveInfo) string { return d.Category + "/" + d.Product }},
		{name: "locator", get: func(d ipcapi.DriveInfo) string { return d.Locator }},
		{name: "path", get: func(d ipcapi.DriveInfo) string { return d.Path }},
		{
			name: "used", get: func(d ipcapi.DriveInfo) string {
				if d.UsedBytes == nil {
					return ""
				}
				return bytesText(*d.UsedBytes)
			},
			less: func(a, b ipcapi.DriveInfo) int { return cmp.Compare(used(a), used(b)) },
		},
		{name: "state", get: func(d ipcapi.DriveInfo) string { return d.State }},
		{name: "measured", wide: true, get: func(d ipcapi.DriveInfo) string { return localTime(d.MeasuredAt) }},
		{name: "method", wide: true, get: func(d ipcapi.DriveInfo) string { return d.Method }},
		{name: "usage-error", wide: true, get: func(d ipcapi.DriveInfo) string { return d.UsageError }},
		{name: "updated", wide: true, get: func(d ipcapi.DriveInfo) string { return localTime(&d.UpdatedAt) }},
		{name: "read-only", wide: true, get: func(d ipcapi.DriveInfo) string {
			if d.ReadOnly {
				return "yes"
			}
			return "no"
		}},
		{name: "last-error", wide: true, get: func(d ipcapi.DriveInfo) string { return d.LastError }},
	},
}

func (a *app) drivesCommand() *cobra.Command {
	var flags *listFlags
	var filters *filterFlags[ipcapi.DriveInfo]
	c := a.verb("list", "list drives", 0, 0, func(ctx context.Context, _ *cobra.Command, _ []string) error {
		match, err := filters.compile()
		if err != nil {
			return err
		}
		if err := drivesTable.check(flags); err != nil {
			return err
		}
		rows, err := list(ctx, a, ipcapi.DriveList, ipcapi.Empty{}, func(p ipcapi.DrivePage) []ipcapi.DriveInfo { return p.Items })
		if err != nil {
			return err
		}
		return drivesTable.print(a, flags, keep(rows, match))
	})
	flags = addListFlags(c)
	type drive = ipcapi.DriveInfo
	filters = addFilters(c,
		filter[drive]{"ucloud-id", "UCloud's id of the drive", func(d drive) string { return string(d.ID) }},
		filter[drive]{"ucloud-name", "UCloud user who owns it", func(d drive) string { return string(d.User) }},
		filter[drive]{"ucloud-project-id", "project that owns it", func(d drive) string { return string(d.Project) }},
		filter[drive]{"product", "product name", func(d drive) string { return d.Product }},
		filter[drive]{"locator", "locator that asked for it", func(d drive) string { return d.Locator }},
		filter[drive]{"local-path", "local path", func(d drive) string { return d.Path }},
		filter[drive]{"state", "desired, prepared, registering, registered, suspect or failed", func(d drive) string { return d.State }},
	)
	return noun("drives", "drives of users and projects", c)
}
