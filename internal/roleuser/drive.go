package roleuser

import (
	"context"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/files"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
)

// findTimeout bounds the look-up of a drive; the server may have to ask Core.
const findTimeout = 4 * time.Second

// findDrive asks the server for a drive that no request came with yet.
func findDrive(ctx context.Context, a host, id ident.DriveID) (providerapi.Drive, error) {
	server, err := a.Server()
	if err != nil {
		return providerapi.Drive{}, failure.Wrap(err, failure.NotFound, "The provider cannot look up this drive at the moment. Open one of its folders and try again.")
	}
	ctx, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	found, err := ipc.Invoke(ctx, server, ipcapi.DriveFind, ipcapi.DriveRef{ID: id})
	if err != nil {
		return providerapi.Drive{}, err
	}
	return driveOf(a.Start().Provider, found), nil
}

// drivePlace asks the server where users may make drives.
func drivePlace(ctx context.Context, a host, owner ident.Owner, category string) (files.DrivePlace, error) {
	start := a.Start()
	if !owner.IsProject() && owner.User != start.User {
		return files.DrivePlace{Why: "Only its owner can do this with a personal drive."}, nil
	}
	server, err := a.Server()
	if err != nil {
		return files.DrivePlace{}, failure.Wrap(err, failure.NotFound, "The provider cannot do this at the moment. Try again later.")
	}
	ctx, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	reply, err := ipc.Invoke(ctx, server, ipcapi.DrivePlace, ipcapi.DrivePlaceQuery{Project: owner.Project, Category: category})
	if err != nil || reply.Why != "" {
		return files.DrivePlace{Why: reply.Why}, err
	}
	return files.DrivePlace{Parent: driveOf(start.Provider, reply.Parent), Folder: reply.Directory}, nil
}

// driveOf is a found drive in the form in which Core sends it, without permissions.
func driveOf(provider string, f ipcapi.FoundDrive) providerapi.Drive {
	owner := providerapi.ResourceOwner{CreatedBy: f.Owner.User}
	if f.Owner.IsProject() {
		owner = providerapi.ResourceOwner{CreatedBy: ident.SystemUser, Project: &f.Owner.Project}
	}
	return providerapi.Drive{
		ID: f.ID, Owner: owner, ProviderGeneratedID: f.ProviderGeneratedID,
		Specification: providerapi.DriveSpecification{
			Title: f.Title, Product: providerapi.ProductReference{ID: f.Product, Category: f.Category, Provider: provider},
		},
	}
}
