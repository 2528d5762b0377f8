package store

import (
	"errors"
	"fmt"
	"time"

	"ucloud-im/internal/ident"
)

// DriveState is how far a drive is (contract 05 section C).
type DriveState string

// The states.
const (
	DriveDesired     DriveState = "desired"     // a locator asks for it
	DrivePrepared    DriveState = "prepared"    // its directory is there
	DriveRegistering DriveState = "registering" // the registration is in the outbox
	DriveRegistered  DriveState = "registered"  // Core has given it an id
	DriveSuspect     DriveState = "suspect"     // the outcome of the registration is not known
	DriveFailed      DriveState = "failed"
)

// Drive is a drive that a locator asks for, or that Core knows.
type Drive struct {
	ProviderGeneratedID string        // chosen by us, unique over all resources of the provider
	ID                  ident.DriveID // Core's, empty until registered
	Owner               ident.Owner
	Member              ident.UCloudUser // the member of the project whose drive this is alone; empty: everybody's
	Category            string
	Product             string
	Locator             string
	Title               string
	Path                string // base path
	ReadOnly            bool
	State               DriveState
	LastError           string
	UpdatedAt           time.Time
}

const driveColumns = `pgid, drive_id, owner_user, owner_project, category, product, locator, title, path, read_only, state, last_error, updated_at, member`

func scanDrive(s scanner) (d Drive, err error) {
	var readOnly, updated int64
	err = s.Scan(&d.ProviderGeneratedID, &d.ID, &d.Owner.User, &d.Owner.Project, &d.Category, &d.Product, &d.Locator,
		&d.Title, &d.Path, &readOnly, &d.State, &d.LastError, &updated, &d.Member)
	d.ReadOnly, d.UpdatedAt = readOnly != 0, fromMS(updated)
	return d, err
}

// PutDrive stores a drive under its ProviderGeneratedID. An ID that another drive has is [ErrConflict] and ends the
// transaction.
func (tx *Tx) PutDrive(d Drive) error {
	if d.ProviderGeneratedID == "" {
		return errors.New("store drive: it has no providerGeneratedId")
	}
	if !d.Owner.Valid() {
		return fmt.Errorf("store drive: %w", errOwner)
	}
	_, err := tx.exec("store drive",
		`INSERT INTO drives (`+driveColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		 ON CONFLICT (pgid) DO UPDATE SET drive_id = excluded.drive_id, owner_user = excluded.owner_user,
		 owner_project = excluded.owner_project, category = excluded.category, product = excluded.product,
		 locator = excluded.locator, title = excluded.title, path = excluded.path, read_only = excluded.read_only,
		 state = excluded.state, last_error = excluded.last_error, updated_at = excluded.updated_at,
		 member = excluded.member`,
		d.ProviderGeneratedID, string(d.ID), string(d.Owner.User), string(d.Owner.Project), d.Category, d.Product, d.Locator,
		d.Title, d.Path, toBit(d.ReadOnly), string(d.State), prose(d.LastError), toMS(d.UpdatedAt), string(d.Member))
	return err
}

// Drive is the drive with the ProviderGeneratedID.
func (tx *Tx) Drive(pgid string) (Drive, error) {
	return one(tx, scanDrive, "look up drive", `SELECT `+driveColumns+` FROM drives WHERE pgid = ?`, pgid)
}

// DriveByID is the drive with Core's id.
func (tx *Tx) DriveByID(id ident.DriveID) (Drive, error) {
	return one(tx, scanDrive, "look up drive by id",
		`SELECT `+driveColumns+` FROM drives WHERE drive_id = ? AND drive_id <> ''`, string(id))
}

// Drives are all drives, in no particular order.
func (tx *Tx) Drives() ([]Drive, error) {
	return list(tx, scanDrive, "list drives", `SELECT `+driveColumns+` FROM drives`)
}

// DrivesOf are the drives of an owner, in no particular order.
func (tx *Tx) DrivesOf(owner ident.Owner) ([]Drive, error) {
	return list(tx, scanDrive, "list drives of an owner",
		`SELECT `+driveColumns+` FROM drives WHERE owner_user = ? AND owner_project = ?`, string(owner.User), string(owner.Project))
}

// DeleteDrive forgets a drive that was never registered, or that Core no longer has. No such drive is [ErrNotFound].
func (tx *Tx) DeleteDrive(pgid string) error {
	return tx.execOne(ErrNotFound, "forget drive", `DELETE FROM drives WHERE pgid = ?`, pgid)
}
