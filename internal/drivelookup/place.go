package drivelookup

import (
	"context"
	"slices"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/store"
)

// UserDrives says where users may make drives in a category.
type UserDrives struct {
	Locators  []string // whose drives may hold others; the first one that a workspace has counts
	Directory string   // name of the folder in that drive
}

// Place tells where drives are that users make in a workspace.
func (s *Service) Place(ctx context.Context, user ident.UCloudUser, owner ident.Owner, category string) (ipcapi.DrivePlaceReply, error) {
	ok, err := s.belongs(ctx, user, owner)
	if err != nil {
		return ipcapi.DrivePlaceReply{}, err
	}
	if !ok {
		return ipcapi.DrivePlaceReply{}, failure.New(failure.NotFound, "You do not belong to this workspace")
	}
	where, ok := UserDrives{}, false
	if s.o.UserDrives != nil {
		where, ok = s.o.UserDrives(category)
	}
	if !ok {
		return ipcapi.DrivePlaceReply{Why: "Drives of this kind are made by the provider alone. They cannot be made, renamed or deleted by users."}, nil
	}
	var best *store.Drive
	err = s.o.Store.View(ctx, func(tx *store.Tx) error {
		best = nil
		rows, err := tx.DrivesOf(owner)
		for i := range rows {
			d := &rows[i]
			rank := slices.Index(where.Locators, d.Locator)
			if d.Category != category || d.State != store.DriveRegistered || d.ReadOnly || rank < 0 {
				continue
			}
			if best == nil || rank < slices.Index(where.Locators, best.Locator) {
				best = d
			}
		}
		return err
	})
	if err != nil {
		return ipcapi.DrivePlaceReply{}, err
	}
	if best == nil {
		return ipcapi.DrivePlaceReply{Why: "This workspace has no drive yet in which others can be made. The provider makes it when there is an allocation."}, nil
	}
	return ipcapi.DrivePlaceReply{Parent: foundDrive(best), Directory: where.Directory}, nil
}

func foundDrive(d *store.Drive) ipcapi.FoundDrive {
	return ipcapi.FoundDrive{
		ID: d.ID, Owner: d.Owner, ProviderGeneratedID: d.ProviderGeneratedID, Title: d.Title, Product: d.Product, Category: d.Category,
	}
}
