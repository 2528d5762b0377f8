package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// openSQLite opens the file with one connection that writes and several that read.
func (s *Store) openSQLite(ctx context.Context, o Options) error {
	if !filepath.IsAbs(o.Path) {
		return fmt.Errorf("path %q is not absolute", o.Path)
	}
	path := filepath.Clean(o.Path)
	if err := checkPrivate(path, os.Geteuid()); err != nil {
		return err
	}
	if o.NoMigrate {
		if _, err := os.Lstat(path); err != nil {
			return err
		}
	} else if err := createPrivate(path); err != nil {
		return err
	}
	if o.Exclusive {
		l, err := lockFile(path + ".lock")
		if err != nil {
			return err
		}
		s.lease = l
	}
	s.engine, s.path = sqliteEngine{}, path

	// The busy time-out is short because Store.repeat waits better: with jitter, and it ends with the context.
	common := []string{
		"busy_timeout(200)", "foreign_keys(1)", "trusted_schema(0)", "temp_store(2)", // 2: temporary tables in memory
	}
	writer, err := sqliteDB(path, append(common, "journal_mode(WAL)", "synchronous(FULL)", "journal_size_limit(67108864)"))
	if err != nil {
		return err
	}
	s.write = writer
	writer.SetMaxOpenConns(1)
	writer.SetMaxIdleConns(1)
	reader, err := sqliteDB(path, append(common, "query_only(1)"))
	if err != nil {
		return err
	}
	s.read = reader
	reader.SetMaxOpenConns(o.MaxConns - 1)
	reader.SetMaxIdleConns(o.MaxConns - 1)

	// The writer goes first: it switches the file to WAL, which readers cannot.
	return s.repeat(ctx, func() (*Tx, error) { return nil, writer.PingContext(ctx) })
}

// sqliteDB makes a pool whose connections run the pragmas when they are opened. mode=rw: only createPrivate creates.
func sqliteDB(path string, pragmas []string) (*sql.DB, error) {
	q := url.Values{"mode": {"rw"}, "_txlock": {"immediate"}, "_pragma": pragmas}
	c, err := sqlite.NewConnector("file:" + (&url.URL{Path: path}).EscapedPath() + "?" + q.Encode())
	if err != nil {
		return nil, fmt.Errorf("set up SQLite: %w", err)
	}
	return sql.OpenDB(c), nil
}

// checkPrivate refuses a database that somebody else than uid and root could have placed, could read or could replace.
// The directory decides: when it is closed to others, what is found in it cannot change under us, so checking first
// and opening later is sound here. The files are looked at without opening them, because closing a descriptor of an
// SQLite file would drop the locks that another connection of this process holds (sqlite.org/howtocorrupt.html 2.2).
func checkPrivate(path string, uid int) error {
	dir := filepath.Dir(path)
	st, err := lstat(dir)
	if err != nil {
		return fmt.Errorf("directory of the database: %w", err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s is not a directory (a symbolic link is not followed)", dir)
	case int(st.Uid) != uid && st.Uid != 0:
		return fmt.Errorf("directory %s belongs to uid %d, not to this account", dir, st.Uid)
	case st.Mode&0o077 != 0:
		return fmt.Errorf("directory %s has mode %04o; others must have no access (chmod 0700)", dir, st.Mode&0o7777)
	}
	for _, suffix := range []string{"", "-wal", "-shm", "-journal", ".lock"} {
		file := path + suffix
		st, err := lstat(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		switch {
		case err != nil:
			return err
		case st.Mode&unix.S_IFMT != unix.S_IFREG:
			return fmt.Errorf("%s is not a regular file", file)
		case int(st.Uid) != uid:
			return fmt.Errorf("%s belongs to uid %d, not to this account", file, st.Uid)
		case st.Mode&0o077 != 0:
			return fmt.Errorf("%s has mode %04o; others must have no access (chmod 0600)", file, st.Mode&0o7777)
		case st.Nlink > 1:
			return fmt.Errorf("%s has %d names (hard links)", file, st.Nlink)
		}
	}
	return nil
}

func lstat(path string) (*unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	return &st, nil
}

// createPrivate makes an empty file with mode 0600 if there is none, and makes its name durable.
func createPrivate(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("create database: %w", err)
	}
	return errors.Join(f.Close(), syncDir(filepath.Dir(path)))
}

// syncDir makes changes of names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// fileLease is a lock that the kernel drops when the process ends, however it ends.
type fileLease struct{ f *os.File }

// lockFile takes the lock beside the database. It is a file of its own because SQLite's locks on the database file
// would not survive our closing a descriptor of it.
func lockFile(path string) (lease, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock database: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrInUse
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return fileLease{f}, nil
}

func (l fileLease) release() error { return l.f.Close() }

// sqliteEngine is the dialect of SQLite.
type sqliteEngine struct{}

var _ engine = sqliteEngine{}

func (sqliteEngine) name() string                 { return DriverSQLite }
func (sqliteEngine) rebind(q string) string       { return q }
func (sqliteEngine) writeOptions() *sql.TxOptions { return nil }                            // BEGIN IMMEDIATE
func (sqliteEngine) readOptions() *sql.TxOptions  { return &sql.TxOptions{ReadOnly: true} } // BEGIN

// retryable: busy, in all its extended forms. The transaction did not happen.
func (sqliteEngine) retryable(err error) bool {
	e, ok := errors.AsType[*sqlite.Error](err)
	return ok && e.Code()&0xff == sqlite3.SQLITE_BUSY
}

func (sqliteEngine) conflict(err error) bool {
	e, ok := errors.AsType[*sqlite.Error](err)
	return ok && (e.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || e.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
}

// lockSchema has nothing to do: a write transaction is the lock.
func (sqliteEngine) lockSchema(context.Context, *sql.Tx) error { return nil }

func (sqliteEngine) tableExists(ctx context.Context, tx *sql.Tx, table string) (ok bool, err error) {
	err = tx.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?)`, table).Scan(&ok)
	return ok, err
}

func (sqliteEngine) size(ctx context.Context, db *sql.DB) (n int64, err error) {
	err = db.QueryRowContext(ctx, `SELECT page_count * page_size FROM pragma_page_count, pragma_page_size`).Scan(&n)
	return n, err
}
