package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A migration is a file NNNN_name.sql. Once released it is never edited: the database remembers its checksum. Each runs
// in a transaction of its own together with the note that it ran, so a killed process leaves a whole version behind.
//
//go:embed migrations/*.sql
var migrationFiles embed.FS

type migration struct {
	version  int
	name     string // file name
	sql      string
	checksum string // SHA-256, hexadecimal
}

// migrations are the embedded files in order. They are part of the program, so a mistake in them is a bug.
var migrations = sync.OnceValue(func() []migration {
	all, err := parseMigrations(migrationFiles)
	if err != nil {
		panic(err)
	}
	return all
})

func parseMigrations(fsys fs.FS) ([]migration, error) {
	files, err := fs.Glob(fsys, "migrations/*.sql") // sorted
	if err != nil {
		return nil, err
	}
	var all []migration
	for _, file := range files {
		text, err := fs.ReadFile(fsys, file)
		if err != nil {
			return nil, err
		}
		name := strings.TrimPrefix(file, "migrations/")
		number, _, _ := strings.Cut(name, "_")
		v, err := strconv.Atoi(number)
		if err != nil || v != len(all)+1 {
			return nil, fmt.Errorf("migration %s does not continue the numbers after %d", name, len(all))
		}
		sum := sha256.Sum256(text)
		all = append(all, migration{version: v, name: name, sql: string(text), checksum: hex.EncodeToString(sum[:])})
	}
	return all, nil
}

func latestVersion() int { return len(migrations()) }

// Migrate brings the schema up to date, as Open does. It is for a store that was opened with [Options.NoMigrate].
func (s *Store) Migrate(ctx context.Context) error {
	for {
		applied, err := s.migrateStep(ctx, migrations())
		if err != nil {
			return err
		}
		if applied == nil {
			break
		}
		s.log.InfoContext(ctx, "database migrated", "version", applied.version, "migration", applied.name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = true
	return nil
}

// migrateStep applies the next of the migrations all, if there is one, and returns it. Several processes may do this
// at once: under the lock each sees what the others have done.
func (s *Store) migrateStep(ctx context.Context, all []migration) (applied *migration, err error) {
	err = s.repeat(ctx, func() (*Tx, error) {
		applied = nil
		return s.attempt(ctx, s.write, nil, func(tx *Tx) error {
			if err := s.engine.lockSchema(ctx, tx.tx); err != nil {
				return fmt.Errorf("lock schema: %w", err)
			}
			v, err := s.schemaVersion(ctx, tx.tx, all)
			if err != nil || v == len(all) {
				return err
			}
			m := all[v]
			if v == 0 {
				if _, err := tx.tx.ExecContext(ctx, `CREATE TABLE schema_version (
					version BIGINT NOT NULL PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL, applied_at BIGINT NOT NULL)`); err != nil {
					return fmt.Errorf("create schema_version: %w", err)
				}
			}
			if _, err := tx.tx.ExecContext(ctx, s.engine.rebind(m.sql)); err != nil {
				return fmt.Errorf("migration %s: %w", m.name, err)
			}
			if _, err := tx.tx.ExecContext(ctx, s.engine.rebind(`INSERT INTO schema_version (version, name, checksum, applied_at)
				VALUES (?, ?, ?, ?)`), m.version, m.name, m.checksum, toMS(time.Now())); err != nil {
				return fmt.Errorf("note migration %s: %w", m.name, err)
			}
			applied = &m
			return nil
		})
	})
	return applied, err
}

// schemaVersion reads which migrations were applied and checks that they are a beginning of all. An empty database has
// version 0.
func (s *Store) schemaVersion(ctx context.Context, tx *sql.Tx, all []migration) (int, error) {
	exists, err := s.engine.tableExists(ctx, tx, "schema_version")
	if err != nil {
		return 0, fmt.Errorf("read schema version: %w", err)
	}
	if !exists {
		return 0, nil
	}
	rows, err := tx.QueryContext(ctx, `SELECT version, name, checksum FROM schema_version ORDER BY version`)
	if err != nil {
		return 0, fmt.Errorf("read schema version: %w", err)
	}
	defer rows.Close()
	version := 0
	for rows.Next() {
		var m migration
		if err := rows.Scan(&m.version, &m.name, &m.checksum); err != nil {
			return 0, fmt.Errorf("read schema version: %w", err)
		}
		if m.version > len(all) {
			return 0, fmt.Errorf("%w: it has %s, this program ends at version %d", ErrNewerSchema, m.name, len(all))
		}
		if version++; m.version != version || m.checksum != all[version-1].checksum {
			return 0, fmt.Errorf("%w: %s differs", ErrChangedMigration, m.name)
		}
	}
	return version, rows.Err()
}

// checkSchema returns the version of the schema without changing anything.
func (s *Store) checkSchema(ctx context.Context) (version int, err error) {
	err = s.repeat(ctx, func() (*Tx, error) {
		return s.attempt(ctx, s.read, s.engine.readOptions(), func(tx *Tx) error {
			version, err = s.schemaVersion(ctx, tx.tx, migrations())
			return err
		})
	})
	return version, err
}

// SchemaVersion is the number of the last applied migration, 0 for an empty database.
func (s *Store) SchemaVersion(ctx context.Context) (int, error) { return s.checkSchema(ctx) }
