package store

import (
	"database/sql"
	"time"

	"ucloud-im/internal/ident"
)

// AssignmentState is how far the look for the account of a user is.
type AssignmentState string

// The states. Every state but the first is final until the user connects again.
const (
	AssignmentLooking AssignmentState = "looking"
	AssignmentFound   AssignmentState = "found"
	AssignmentFailed  AssignmentState = "failed"
)

// Assignment is a look for the account that the provider assigns to a user. It connects nothing.
type Assignment struct {
	User      ident.UCloudUser
	State     AssignmentState
	UID       ident.UID // of a found one, as is LocalName
	LocalName string
	Message   string // for the user, of a failed one
	CreatedAt time.Time
	UpdatedAt time.Time
}

const assignmentColumns = `user_name, state, uid, local_name, message, created_at, updated_at`

func scanAssignment(s scanner) (a Assignment, err error) {
	var uid sql.NullInt64
	var created, updated int64
	err = s.Scan(&a.User, &a.State, &uid, &a.LocalName, &a.Message, &created, &updated)
	a.UID = ident.UID(uid.Int64) //nolint:gosec // as it was stored
	a.CreatedAt, a.UpdatedAt = fromMS(created), fromMS(updated)
	return a, err
}

// PutAssignment stores the look for a user's account, in place of an earlier one.
func (tx *Tx) PutAssignment(a Assignment) error {
	uid := sql.NullInt64{Int64: int64(a.UID), Valid: a.UID != 0}
	_, err := tx.exec("store assignment",
		`INSERT INTO assignments (`+assignmentColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?)
		 ON CONFLICT (user_name) DO UPDATE SET state = excluded.state, uid = excluded.uid, local_name = excluded.local_name,
		 message = excluded.message, created_at = excluded.created_at, updated_at = excluded.updated_at`,
		string(a.User), string(a.State), uid, a.LocalName, prose(a.Message), toMS(a.CreatedAt), toMS(a.UpdatedAt))
	return err
}

// Assignment is the last look for the account of a user.
func (tx *Tx) Assignment(user ident.UCloudUser) (Assignment, error) {
	return one(tx, scanAssignment, "look up assignment", `SELECT `+assignmentColumns+` FROM assignments WHERE user_name = ?`, string(user))
}

// AssignmentsLooking are the looks that are not over, oldest first.
func (tx *Tx) AssignmentsLooking() ([]Assignment, error) {
	return list(tx, scanAssignment, "list assignments",
		`SELECT `+assignmentColumns+` FROM assignments WHERE state = 'looking' ORDER BY created_at, user_name`)
}

// PurgeAssignments forgets the looks that were over before the given time.
func (tx *Tx) PurgeAssignments(before time.Time) error {
	_, err := tx.exec("purge assignments", `DELETE FROM assignments WHERE state <> 'looking' AND updated_at < ?`, toMS(before))
	return err
}
