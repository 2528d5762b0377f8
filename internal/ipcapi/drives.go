package ipcapi

import (
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
)

// DriveFind gives an instance a drive of which it knows nothing but the id: some calls of Core name a drive in no other
// way (contract 10 section 7.3, contract 13 section 3.1). Only drives of the caller's own workspaces are found; to
// everybody else a drive does not exist. Nothing but an id goes to the server, which has its answer from its own database
// or from Core, so that an instance cannot change what the server believes.
var DriveFind = ipc.Call[DriveRef, FoundDrive]{Name: "drive.find", Access: ipc.AccessMapped}

// DrivePlace asks where drives are that users make themselves in a workspace. Only workspaces of the caller are answered
// for.
var DrivePlace = ipc.Call[DrivePlaceQuery, DrivePlaceReply]{Name: "drive.place", Access: ipc.AccessMapped}

// DrivePlaceQuery names a workspace, a project or without one the caller's own, and a product category.
type DrivePlaceQuery struct {
	Project  ident.ProjectID `json:"project,omitempty"`
	Category string          `json:"category"`
}

// DrivePlaceReply is where the drives are: in the folder Directory of the drive Parent. With Why there is no such place,
// for a reason that the user may read.
type DrivePlaceReply struct {
	Why       string     `json:"why,omitempty"`
	Parent    FoundDrive `json:"parent"`
	Directory string     `json:"directory,omitempty"`
}

// DriveRef names a drive by Core's id.
type DriveRef struct {
	ID ident.DriveID `json:"id"`
}

// FoundDrive is what an instance must know of a drive to find its folder. It says nothing about permissions: those come
// with each request of Core.
type FoundDrive struct {
	ID                  ident.DriveID `json:"id"`
	Owner               ident.Owner   `json:"owner"`
	ProviderGeneratedID string        `json:"providerGeneratedId"`
	Title               string        `json:"title"`
	Product             string        `json:"product"`
	Category            string        `json:"category"`
}
