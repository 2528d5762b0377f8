package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"ucloud-im/internal/observability"
)

// The engines that [Options.Driver] may name.
const (
	DriverSQLite   = "sqlite"
	DriverPostgres = "postgres"
)

// Errors that callers branch on. They come wrapped; use [errors.Is].
var (
	// ErrNotFound tells that there is no such row.
	ErrNotFound = errors.New("not in the database")
	// ErrConflict tells that a row exists already, or is no longer in the state that the change needs.
	ErrConflict = errors.New("conflicts with what is in the database")
	// ErrNewerSchema tells that a newer version of the program has migrated this database. Nothing was changed.
	ErrNewerSchema = errors.New("the database has a newer schema than this program knows")
	// ErrChangedMigration tells that a migration was applied in another wording than this program has. Nothing was
	// changed.
	ErrChangedMigration = errors.New("the database was migrated by a program with other migrations")
	// ErrInUse tells that another process has opened the database with [Options.Exclusive].
	ErrInUse = errors.New("the database is in use by another server process")
	// ErrNotMigrated tells that the schema is older than the program and [Options.NoMigrate] forbids to change it.
	ErrNotMigrated = errors.New("the database schema is older than this program")
)

// Defaults of [Options] (contract 40 section 5).
const (
	DefaultMaxConns         = 16
	DefaultConnectTimeout   = 10 * time.Second
	DefaultStatementTimeout = 30 * time.Second
)

// Options say which database to open.
type Options struct {
	Driver string // DriverSQLite (also when empty) or DriverPostgres

	// Path of the SQLite file, absolute. Its directory must exist, belong to the process's account or root, and be
	// closed to everybody else (0700). The file is created with mode 0600.
	Path string

	Postgres Postgres // where the PostgreSQL server is and how to log in

	MaxConns         int           // connections in all, at least 2; 0 means DefaultMaxConns
	ConnectTimeout   time.Duration // for a new connection; 0 means DefaultConnectTimeout
	StatementTimeout time.Duration // for one statement, and for an Update to get its turn; 0 means DefaultStatementTimeout

	// Exclusive is what IM/Server sets: of all processes that open the database so, one succeeds, the others get
	// ErrInUse. Two servers would deliver the outbox twice. Other openers, such as `ucloud database`, are not hindered.
	Exclusive bool

	// NoMigrate opens the database as it is: a missing SQLite file is an error, and an older schema is no error until
	// a transaction is begun. For commands that only look.
	NoMigrate bool

	Log *slog.Logger // nil: no log
}

// Store is an open database. All methods may be called concurrently.
type Store struct {
	engine  engine
	write   *sql.DB // SQLite: exactly one connection, BEGIN IMMEDIATE; PostgreSQL: the same pool as read
	read    *sql.DB
	log     *slog.Logger
	timeout time.Duration // Options.StatementTimeout
	path    string        // SQLite only
	lease   lease         // held while Options.Exclusive

	turn chan struct{} // holds one element while an Update runs

	mu        sync.Mutex // guards the fields below
	onEnqueue []func()
	current   bool // the schema is the one that this program knows
}

// lease is what keeps a second exclusive opener out.
type lease interface{ release() error }

// Open opens the database, brings its schema up to date and returns it ready for use. It fails with [ErrNewerSchema],
// [ErrChangedMigration] or [ErrInUse] without having changed anything.
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.Driver == "" {
		o.Driver = DriverSQLite
	}
	if o.MaxConns == 0 {
		o.MaxConns = DefaultMaxConns
	}
	o.MaxConns = max(o.MaxConns, 2)
	if o.ConnectTimeout <= 0 {
		o.ConnectTimeout = DefaultConnectTimeout
	}
	if o.StatementTimeout <= 0 {
		o.StatementTimeout = DefaultStatementTimeout
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		log:     o.Log.With("part", "store"),
		timeout: o.StatementTimeout,
		turn:    make(chan struct{}, 1),
	}
	var err error
	switch o.Driver {
	case DriverSQLite:
		err = s.openSQLite(ctx, o)
	case DriverPostgres:
		err = s.openPostgres(ctx, o)
	default:
		return nil, fmt.Errorf("open database: unknown driver %q", o.Driver)
	}
	if err == nil {
		err = s.prepare(ctx, o)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s database: %w", o.Driver, err), s.Close())
	}
	return s, nil
}

// prepare checks the schema and migrates it, unless forbidden.
func (s *Store) prepare(ctx context.Context, o Options) error {
	if o.NoMigrate {
		v, err := s.checkSchema(ctx)
		s.current = err == nil && v == latestVersion()
		return err
	}
	return s.Migrate(ctx)
}

// Close ends all connections. Transactions that still run fail. It may be called more than once.
func (s *Store) Close() error {
	var errs []error
	if s.read != nil && s.read != s.write {
		errs = append(errs, s.read.Close())
	}
	if s.write != nil { // last, so that SQLite folds its log into the file
		errs = append(errs, s.write.Close())
	}
	if s.lease != nil {
		errs = append(errs, s.lease.release())
		s.lease = nil
	}
	return errors.Join(errs...)
}

// Ping tells whether the database answers.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.read.PingContext(ctx); err != nil {
		return fmt.Errorf("ping database: %w", err)
	}
	return nil
}

// OnEnqueue has f called after each committed Update that put something into the outbox. f must not block: it runs in
// the goroutine of whoever called Update.
func (s *Store) OnEnqueue(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onEnqueue = append(slices.Clone(s.onEnqueue), f)
}

// Update runs fn in a transaction that may write, and commits when fn returns nil. An error of fn comes back unchanged,
// with nothing written.
//
// fn may run more than once: it is repeated, with growing random pauses, when the engine reports that the database is
// busy or that another process changed what fn has read. So fn must have no effect but through tx, and must assign
// rather than append to variables outside. fn must neither call Update again, which would wait for itself, nor wait for
// the network: other writers queue behind it. An Update that does not get its turn within Options.StatementTimeout
// fails.
//
// An error of the commit itself (a broken connection to PostgreSQL) leaves open whether the change is there; it is not
// repeated.
func (s *Store) Update(ctx context.Context, fn func(*Tx) error) error {
	tx, err := s.update(ctx, fn)
	if err != nil {
		return err
	}
	for _, f := range tx.after {
		f()
	}
	if tx.enqueued {
		s.mu.Lock()
		hooks := s.onEnqueue
		s.mu.Unlock()
		for _, f := range hooks {
			f()
		}
	}
	return nil
}

// update returns the committed transaction.
func (s *Store) update(ctx context.Context, fn func(*Tx) error) (tx *Tx, err error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	wait := time.NewTimer(s.timeout)
	defer wait.Stop()
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the database: %w", context.Cause(ctx))
	case <-wait.C:
		return nil, fmt.Errorf("wait for the database: another change did not end within %v", s.timeout)
	}
	err = s.repeat(ctx, func() (*Tx, error) {
		tx, err = s.attempt(ctx, s.write, s.engine.writeOptions(), fn)
		return tx, err
	})
	return tx, err
}

// View runs fn in a transaction that sees one consistent state and cannot write. fn may run more than once, see
// [Store.Update].
func (s *Store) View(ctx context.Context, fn func(*Tx) error) error {
	if err := s.ready(); err != nil {
		return err
	}
	return s.repeat(ctx, func() (*Tx, error) {
		return s.attempt(ctx, s.read, s.engine.readOptions(), fn)
	})
}

// ready refuses to work on a schema that the queries do not fit.
func (s *Store) ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.current {
		return ErrNotMigrated
	}
	return nil
}

// attempt runs fn once. The returned Tx tells what happened in it; it is finished.
func (s *Store) attempt(ctx context.Context, db *sql.DB, o *sql.TxOptions, fn func(*Tx) error) (*Tx, error) {
	sqlTx, err := db.BeginTx(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("begin transaction: %w", err)
	}
	tx := &Tx{ctx: ctx, tx: sqlTx, engine: s.engine, timeout: s.timeout}
	defer func() { _ = sqlTx.Rollback() }() // also when fn panics; after a commit it does nothing
	if err := fn(tx); err != nil {
		return tx, err
	}
	if tx.failed != nil { // fn looked away
		return tx, tx.failed
	}
	if err := sqlTx.Commit(); err != nil {
		tx.failed = fmt.Errorf("commit: %w", err)
		return tx, tx.failed
	}
	return tx, nil
}

// repeat runs try until it ends in something else than "busy, try again", until ctx is done or the statement time-out
// has passed.
func (s *Store) repeat(ctx context.Context, try func() (*Tx, error)) error {
	const first, longest = 2 * time.Millisecond, 250 * time.Millisecond
	start := time.Now()
	for pause := first; ; pause = min(2*pause, longest) {
		tx, err := try()
		cause := err
		if tx != nil && tx.failed != nil { // fn may have replaced the error by one of its own
			cause = tx.failed
		}
		if err == nil || !s.engine.retryable(cause) || time.Since(start) > s.timeout {
			return err
		}
		s.log.DebugContext(ctx, "transaction is repeated", "error", cause)
		t := time.NewTimer(rand.N(pause)) // full jitter, so that two processes get apart
		select {
		case <-ctx.Done():
			t.Stop()
			return errors.Join(context.Cause(ctx), err)
		case <-t.C:
		}
	}
}

// engine is what differs between SQLite and PostgreSQL.
type engine interface {
	name() string
	// rebind turns a query and a migration into the engine's dialect.
	rebind(query string) string
	writeOptions() *sql.TxOptions
	readOptions() *sql.TxOptions
	// retryable tells that the transaction had no effect and may succeed when repeated.
	retryable(err error) bool
	// conflict tells that err is the violation of a unique index.
	conflict(err error) bool
	// lockSchema keeps other migrators out for the rest of the transaction.
	lockSchema(ctx context.Context, tx *sql.Tx) error
	// tableExists asks the catalogue.
	tableExists(ctx context.Context, tx *sql.Tx, table string) (bool, error)
	// size of the database in bytes.
	size(ctx context.Context, db *sql.DB) (int64, error)
}

// Postgres says where a PostgreSQL server is and how to log in (contract 40 sections 5 and 9).
type Postgres struct {
	Host     string // name, address, or absolute directory of a Unix socket
	Port     int    // 0 means 5432
	Database string
	User     string
	Password observability.Secret

	// SSLMode is disable, require, verify-ca or verify-full. Empty means verify-full, and disable for loopback and Unix
	// sockets (SEC-7). Plain text is never a fall-back.
	SSLMode    string
	CAFile     string // PEM; empty means the system's
	ClientCert string // PEM, with ClientKey
	ClientKey  string
}
