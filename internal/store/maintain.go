package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Status is what `ucloud database status` shows.
type Status struct {
	Driver  string
	Path    string   // SQLite only
	Version int      // of the schema in the database
	Latest  int      // that this program knows
	Pending []string // migrations that Migrate would apply, by file name
	Bytes   int64
}

// Status looks at the database without changing it. It works on a schema of any older version.
func (s *Store) Status(ctx context.Context) (Status, error) {
	st := Status{Driver: s.engine.name(), Path: s.path, Latest: latestVersion()}
	var err error
	if st.Version, err = s.checkSchema(ctx); err != nil {
		return st, err
	}
	for _, m := range migrations()[st.Version:] {
		st.Pending = append(st.Pending, m.name)
	}
	if st.Bytes, err = s.engine.size(ctx, s.read); err != nil {
		return st, fmt.Errorf("measure database: %w", err)
	}
	return st, nil
}

// Backup writes a consistent copy of an SQLite database to path while the server works on. The directory must exist;
// an existing file is not overwritten. The copy has mode 0600 and appears under its name only when it is complete and
// on disk. PostgreSQL has its own tools: there it is [errors.ErrUnsupported].
func (s *Store) Backup(ctx context.Context, path string) (err error) {
	if s.engine.name() != DriverSQLite {
		return fmt.Errorf("back up %s database: %w: use pg_dump", s.engine.name(), errors.ErrUnsupported)
	}
	path, err = filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("back up database: %w", err)
	}
	// SQLite takes an empty file as target, so the file can be private from its first moment.
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return fmt.Errorf("back up database: %w", err)
	}
	defer f.Close()
	defer os.Remove(f.Name())
	// A connection of its own: those that read may not write any file, and the one that writes is needed meanwhile.
	db, err := sqliteDB(s.path, []string{"busy_timeout(10000)"})
	if err != nil {
		return fmt.Errorf("back up database: %w", err)
	}
	_, err = db.ExecContext(ctx, `VACUUM INTO ?`, f.Name())
	if err := errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("back up database: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("back up database: %w", err)
	}
	if err := os.Link(f.Name(), path); err != nil { // unlike a rename it never overwrites
		return fmt.Errorf("back up database: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

// Check looks for damage and returns a sentence for each finding. Only the failure to look is an error.
func (s *Store) Check(ctx context.Context) (findings []string, err error) {
	if s.engine.name() == DriverSQLite {
		if findings, err = s.checkSQLite(ctx); err != nil {
			return nil, err
		}
	}
	err = s.View(ctx, func(tx *Tx) error {
		more, err := tx.checkInvariants()
		findings = append(findings, more...)
		return err
	})
	return findings, err
}

// checkSQLite has the engine look at its pages, indexes and references.
func (s *Store) checkSQLite(ctx context.Context) (findings []string, err error) {
	rows, err := s.read.QueryContext(ctx, `SELECT integrity_check FROM pragma_integrity_check
		UNION ALL SELECT 'row without counterpart in ' || "table" FROM pragma_foreign_key_check`)
	if err != nil {
		return nil, fmt.Errorf("check database: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return nil, fmt.Errorf("check database: %w", err)
		}
		if text != "ok" {
			findings = append(findings, text)
		}
	}
	return findings, rows.Err()
}

// checkInvariants looks for states that no sequence of our own transactions leads to.
func (tx *Tx) checkInvariants() (findings []string, err error) {
	for _, c := range []struct{ finding, query string }{
		{"outbox: the oldest entry of a key is not marked as the next", `SELECT count(*) FROM outbox o WHERE head <>
			CASE WHEN EXISTS (SELECT 1 FROM outbox p WHERE p.entry_key = o.entry_key AND p.id < o.id) THEN 0 ELSE 1 END`},
		{"outbox: the counter is behind the entries", `SELECT count(*) FROM outbox
			WHERE id > (SELECT value FROM counters WHERE name = 'outbox')`},
		{"drives: registered without an id", `SELECT count(*) FROM drives WHERE state = 'registered' AND drive_id = ''`},
		{"tickets: closed without a time", `SELECT count(*) FROM tickets WHERE (state = 'open') <> (closed_at IS NULL)`},
	} {
		n, err := one(tx, value[int64], "check database", c.query)
		if err != nil {
			return nil, err
		}
		if n > 0 {
			findings = append(findings, fmt.Sprintf("%s (%d rows)", c.finding, n))
		}
	}
	return findings, nil
}
