package store

import (
	"database/sql"
	"errors"
	"fmt"
	"time"

	"ucloud-im/internal/ident"
)

// DriveUsage is what a drive holds, as measured last, and how the measuring goes.
type DriveUsage struct {
	ProviderGeneratedID string
	Bytes, Files        int64     // of the last success; never negative
	Method              string    // how that was measured
	MeasuredAt          time.Time // zero: never
	TriedAt             time.Time
	Misses              int // failures since the last success
	LastError           string
}

const driveUsageColumns = `pgid, bytes, files, method, measured_at, tried_at, misses, last_error`

func scanDriveUsage(s scanner) (u DriveUsage, err error) {
	var measured, tried int64
	err = s.Scan(&u.ProviderGeneratedID, &u.Bytes, &u.Files, &u.Method, &measured, &tried, &u.Misses, &u.LastError)
	u.MeasuredAt, u.TriedAt = fromMS(measured), fromMS(tried)
	return u, err
}

// PutDriveUsage stores what was measured.
func (tx *Tx) PutDriveUsage(u DriveUsage) error {
	if u.Bytes < 0 || u.Files < 0 {
		return fmt.Errorf("store usage of a drive: %d bytes in %d files", u.Bytes, u.Files)
	}
	_, err := tx.exec("store usage of a drive",
		`INSERT INTO drive_usage (`+driveUsageColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
		 ON CONFLICT (pgid) DO UPDATE SET bytes = excluded.bytes, files = excluded.files, method = excluded.method,
		 measured_at = excluded.measured_at, tried_at = excluded.tried_at, misses = excluded.misses, last_error = excluded.last_error`,
		u.ProviderGeneratedID, u.Bytes, u.Files, u.Method, toMS(u.MeasuredAt), toMS(u.TriedAt), u.Misses, prose(u.LastError))
	return err
}

// DriveUsage is the usage of one drive.
func (tx *Tx) DriveUsage(pgid string) (DriveUsage, error) {
	return one(tx, scanDriveUsage, "look up usage of a drive", `SELECT `+driveUsageColumns+` FROM drive_usage WHERE pgid = ?`, pgid)
}

// DriveUsages are the usages of all drives, in no particular order.
func (tx *Tx) DriveUsages() ([]DriveUsage, error) {
	return list(tx, scanDriveUsage, "list usage of drives", `SELECT `+driveUsageColumns+` FROM drive_usage`)
}

// PurgeStorage removes usage, quota and scans of drives that are not there any more.
func (tx *Tx) PurgeStorage() error {
	for _, table := range []string{"drive_usage", "drive_quotas", "usage_scans"} {
		if _, err := tx.exec("remove traces of drives that are gone",
			`DELETE FROM `+table+` WHERE NOT EXISTS (SELECT 1 FROM drives WHERE drives.pgid = `+table+`.pgid)`); err != nil {
			return err
		}
	}
	return nil
}

// UsageReport is what Core was told last for one scope of an owner (contract 30 section 3).
type UsageReport struct {
	Owner      ident.Owner
	Scope      string
	Category   string
	Units      int64     // in the category's unit
	ReportedAt time.Time // when Core confirmed it; zero: it has not, and may have recorded it all the same
	Locked     bool      // Core's hint in its answer
	Refusals   int       // since the last success
	NextAt     time.Time // after a refusal: not before
	LastError  string
}

const usageReportColumns = `owner_user, owner_project, scope, category, units, reported_at, locked, refusals, next_at, last_error`

func scanUsageReport(s scanner) (r UsageReport, err error) {
	var reported, locked, next int64
	err = s.Scan(&r.Owner.User, &r.Owner.Project, &r.Scope, &r.Category, &r.Units, &reported, &locked, &r.Refusals, &next, &r.LastError)
	r.ReportedAt, r.Locked, r.NextAt = fromMS(reported), locked != 0, fromMS(next)
	return r, err
}

// PutUsageReport stores what Core was told, or that it refused.
func (tx *Tx) PutUsageReport(r UsageReport) error {
	if !r.Owner.Valid() {
		return fmt.Errorf("store usage report: %w", errOwner)
	}
	if r.Scope == "" || r.Units < 0 {
		return errors.New("store usage report: it has no scope, or is negative")
	}
	_, err := tx.exec("store usage report",
		`INSERT INTO usage_reports (`+usageReportColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		 ON CONFLICT (owner_user, owner_project, scope) DO UPDATE SET category = excluded.category, units = excluded.units,
		 reported_at = excluded.reported_at, locked = excluded.locked, refusals = excluded.refusals, next_at = excluded.next_at,
		 last_error = excluded.last_error`,
		string(r.Owner.User), string(r.Owner.Project), r.Scope, r.Category, r.Units, toMS(r.ReportedAt), toBit(r.Locked), r.Refusals,
		toMS(r.NextAt), prose(r.LastError))
	return err
}

// UsageReport is the report of one scope of an owner.
func (tx *Tx) UsageReport(owner ident.Owner, scope string) (UsageReport, error) {
	return one(tx, scanUsageReport, "look up usage report",
		`SELECT `+usageReportColumns+` FROM usage_reports WHERE owner_user = ? AND owner_project = ? AND scope = ?`,
		string(owner.User), string(owner.Project), scope)
}

// UsageReports are the reports of all scopes, in no particular order.
func (tx *Tx) UsageReports() ([]UsageReport, error) {
	return list(tx, scanUsageReport, "list usage reports", `SELECT `+usageReportColumns+` FROM usage_reports`)
}

// DeleteUsageReport forgets a scope that has been reported as zero.
func (tx *Tx) DeleteUsageReport(owner ident.Owner, scope string) error {
	_, err := tx.exec("forget usage report",
		`DELETE FROM usage_reports WHERE owner_user = ? AND owner_project = ? AND scope = ?`,
		string(owner.User), string(owner.Project), scope)
	return err
}

// DriveQuota is what hooks of the site were last told about a drive's quota. Applied and Wanted are digests of requests.
type DriveQuota struct {
	ProviderGeneratedID string
	Applied             string // the request that succeeded last; empty: none
	Wanted              string // the request that is being tried
	Bytes               int64  // in the request that succeeded last
	Locked              bool
	Removed             bool      // the site was told that the drive has no allocation any more
	AppliedAt           time.Time // zero: never
	Attempts            int       // failures of Wanted
	Since               time.Time // when Wanted became what it is
	NextAt              time.Time // not before; zero: an operator must look
	LastError           string
}

const driveQuotaColumns = `pgid, applied, wanted, bytes, locked, removed, applied_at, attempts, since, next_at, last_error`

func scanDriveQuota(s scanner) (q DriveQuota, err error) {
	var locked, removed, applied, since int64
	var next sql.NullInt64
	err = s.Scan(&q.ProviderGeneratedID, &q.Applied, &q.Wanted, &q.Bytes, &locked, &removed, &applied, &q.Attempts, &since, &next, &q.LastError)
	q.Locked, q.Removed, q.AppliedAt, q.Since = locked != 0, removed != 0, fromMS(applied), fromMS(since)
	if next.Valid {
		q.NextAt = fromMS(next.Int64)
	}
	return q, err
}

// PutDriveQuota stores how the quota of a drive stands.
func (tx *Tx) PutDriveQuota(q DriveQuota) error {
	_, err := tx.exec("store quota of a drive",
		`INSERT INTO drive_quotas (`+driveQuotaColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		 ON CONFLICT (pgid) DO UPDATE SET applied = excluded.applied, wanted = excluded.wanted, bytes = excluded.bytes,
		 locked = excluded.locked, removed = excluded.removed, applied_at = excluded.applied_at, attempts = excluded.attempts,
		 since = excluded.since, next_at = excluded.next_at, last_error = excluded.last_error`,
		q.ProviderGeneratedID, q.Applied, q.Wanted, q.Bytes, toBit(q.Locked), toBit(q.Removed), toMS(q.AppliedAt), q.Attempts,
		toMS(q.Since), nextAt(q.NextAt), prose(q.LastError))
	return err
}

// DriveQuota is the quota of one drive.
func (tx *Tx) DriveQuota(pgid string) (DriveQuota, error) {
	return one(tx, scanDriveQuota, "look up quota of a drive", `SELECT `+driveQuotaColumns+` FROM drive_quotas WHERE pgid = ?`, pgid)
}

// DriveQuotas are the quotas of all drives, in no particular order.
func (tx *Tx) DriveQuotas() ([]DriveQuota, error) {
	return list(tx, scanDriveQuota, "list quotas of drives", `SELECT `+driveQuotaColumns+` FROM drive_quotas`)
}

// UsageScan is a scan of a drive that an instance does, and where it goes on.
type UsageScan struct {
	ProviderGeneratedID string
	State               []byte    // empty: from the beginning
	UID                 ident.UID // who has it
	LeaseUntil          time.Time // others may take it afterwards
	UpdatedAt           time.Time
}

const usageScanColumns = `pgid, scan_state, uid, lease_until, updated_at`

func scanUsageScan(s scanner) (u UsageScan, err error) {
	var lease, updated int64
	err = s.Scan(&u.ProviderGeneratedID, (*blob)(&u.State), &u.UID, &lease, &updated)
	u.LeaseUntil, u.UpdatedAt = fromMS(lease), fromMS(updated)
	return u, err
}

// PutUsageScan stores a scan.
func (tx *Tx) PutUsageScan(u UsageScan) error {
	_, err := tx.exec("store scan of a drive",
		`INSERT INTO usage_scans (`+usageScanColumns+`) VALUES (?, ?, ?, ?, ?)
		 ON CONFLICT (pgid) DO UPDATE SET scan_state = excluded.scan_state, uid = excluded.uid,
		 lease_until = excluded.lease_until, updated_at = excluded.updated_at`,
		u.ProviderGeneratedID, bytesOf(u.State), int64(u.UID), toMS(u.LeaseUntil), toMS(u.UpdatedAt))
	return err
}

// UsageScan is the scan of a drive that is under way.
func (tx *Tx) UsageScan(pgid string) (UsageScan, error) {
	return one(tx, scanUsageScan, "look up scan of a drive", `SELECT `+usageScanColumns+` FROM usage_scans WHERE pgid = ?`, pgid)
}

// DeleteUsageScan ends a scan; no error if there is none.
func (tx *Tx) DeleteUsageScan(pgid string) error {
	_, err := tx.exec("end scan of a drive", `DELETE FROM usage_scans WHERE pgid = ?`, pgid)
	return err
}
