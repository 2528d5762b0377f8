package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// openPostgres sets up the pool and proves that the server can be reached.
func (s *Store) openPostgres(ctx context.Context, o Options) error {
	cfg, err := o.Postgres.config(o)
	if err != nil {
		return err
	}
	s.engine = postgresEngine{}
	db := stdlib.OpenDB(*cfg)
	s.write, s.read = db, db
	db.SetMaxOpenConns(o.MaxConns)
	db.SetMaxIdleConns(o.MaxConns)
	db.SetConnMaxIdleTime(5 * time.Minute)
	if err := db.PingContext(ctx); err != nil {
		return err
	}
	if o.Exclusive {
		s.lease, err = lockPostgres(ctx, db)
	}
	return err
}

// config builds the configuration of the driver field by field. The driver insists on parsing a connection string
// first and reads PG* variables of the environment while it does; so a constant one is parsed, and everything that the
// environment could have set is set again. Nothing from the operator is ever part of a string, so that any character
// may occur in it.
func (p Postgres) config(o Options) (*pgx.ConnConfig, error) {
	cfg, err := pgx.ParseConfig("host=localhost port=5432 user=nobody dbname=none sslmode=disable")
	if err != nil {
		return nil, fmt.Errorf("set up PostgreSQL driver: %w", err)
	}
	switch {
	case p.Host == "":
		return nil, errors.New("no host is configured")
	case p.User == "" || p.Database == "":
		return nil, errors.New("user and database must be configured")
	case p.Port < 0 || p.Port > 65535:
		return nil, fmt.Errorf("port %d is out of range", p.Port)
	case p.Port == 0:
		p.Port = 5432
	}
	tlsConfig, err := p.tls()
	if err != nil {
		return nil, err
	}
	cfg.Host, cfg.Port = p.Host, uint16(p.Port)
	cfg.Database, cfg.User, cfg.Password = p.Database, p.User, p.Password.Reveal()
	cfg.TLSConfig = tlsConfig
	cfg.Fallbacks = nil // no second host, and no plain text after a refused handshake
	cfg.ConnectTimeout = o.ConnectTimeout
	cfg.ValidateConnect, cfg.AfterConnect, cfg.KerberosSpn, cfg.KerberosSrvName = nil, nil, "", ""
	ms := strconv.FormatInt(max(o.StatementTimeout.Milliseconds(), 1), 10)
	cfg.RuntimeParams = map[string]string{
		"application_name":                    "ucloud-im",
		"statement_timeout":                   ms,
		"lock_timeout":                        ms,
		"idle_in_transaction_session_timeout": "60000", // a stopped process must not block everybody else for ever
		"synchronous_commit":                  "on",
		"client_encoding":                     "UTF8",
	}
	return cfg, nil
}

// local tells whether the server is on this machine, where nobody else sees the connection.
func (p Postgres) local() bool {
	if filepath.IsAbs(p.Host) || strings.EqualFold(p.Host, "localhost") {
		return true
	}
	ip := net.ParseIP(p.Host)
	return ip != nil && ip.IsLoopback()
}

// tls is the TLS configuration for the mode (SEC-7); nil means plain text.
func (p Postgres) tls() (*tls.Config, error) {
	mode := p.SSLMode
	if mode == "" {
		mode = "verify-full"
		if p.local() {
			mode = "disable"
		}
	}
	if mode == "disable" {
		return nil, nil
	}
	if filepath.IsAbs(p.Host) {
		return nil, fmt.Errorf("sslMode %s does not apply to a Unix socket", mode)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: p.Host}
	if p.CAFile != "" {
		pem, err := os.ReadFile(p.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read caFile: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("caFile %s holds no certificate", p.CAFile)
		}
	}
	if (p.ClientCert == "") != (p.ClientKey == "") {
		return nil, errors.New("clientCertificate and clientKey must be given together")
	}
	if p.ClientCert != "" {
		pair, err := tls.LoadX509KeyPair(p.ClientCert, p.ClientKey)
		if err != nil {
			return nil, fmt.Errorf("load client certificate: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	switch mode {
	case "verify-full":
	case "verify-ca":
		verifyChainOnly(cfg)
	case "require":
		// As libpq does: a CA that was configured is used. Without one the connection is encrypted and nothing more.
		if cfg.InsecureSkipVerify = true; p.CAFile != "" {
			verifyChainOnly(cfg)
		}
	default:
		return nil, fmt.Errorf("sslMode %q is none of disable, require, verify-ca, verify-full", mode)
	}
	return cfg, nil
}

// verifyChainOnly checks the certificate against the CAs but not the name in it. Go has no switch for that: its own
// verification is turned off and done again without a name.
func verifyChainOnly(cfg *tls.Config) {
	cfg.InsecureSkipVerify = true
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return errors.New("the server sent no certificate")
		}
		inter := x509.NewCertPool()
		for _, c := range cs.PeerCertificates[1:] {
			inter.AddCert(c)
		}
		_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: cfg.RootCAs, Intermediates: inter})
		return err
	}
}

// Keys of the advisory locks: "ucim" and a number.
const (
	lockKeySchema = 0x7563696d<<8 | 1
	lockKeyServer = 0x7563696d<<8 | 2
)

// connLease is an advisory lock that lives as long as its connection.
type connLease struct{ c *sql.Conn }

// lockPostgres takes the lock on a connection that is kept for it. When that connection breaks, the lock is gone
// without notice; the serializable transactions still keep the data consistent.
func lockPostgres(ctx context.Context, db *sql.DB) (lease, error) {
	c, err := db.Conn(ctx)
	if err != nil {
		return nil, fmt.Errorf("lock database: %w", err)
	}
	var ok bool
	err = c.QueryRowContext(ctx, `SELECT pg_try_advisory_lock($1)`, int64(lockKeyServer)).Scan(&ok)
	if err == nil && !ok {
		err = ErrInUse
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock database: %w", err), c.Close())
	}
	return connLease{c}, nil
}

func (l connLease) release() error {
	// The connection is thrown away: given back to the pool it would still hold the lock.
	_ = l.c.Raw(func(any) error { return driver.ErrBadConn })
	if err := l.c.Close(); err != nil && !errors.Is(err, sql.ErrConnDone) && !errors.Is(err, driver.ErrBadConn) {
		return err
	}
	return nil
}

// postgresEngine is the dialect of PostgreSQL.
type postgresEngine struct{}

var _ engine = postgresEngine{}

func (postgresEngine) name() string { return DriverPostgres }

// rebind numbers the placeholders and names the binary type. No query of this package holds either in a literal.
func (postgresEngine) rebind(q string) string {
	q = strings.ReplaceAll(q, " BLOB ", " BYTEA ")
	if !strings.Contains(q, "?") {
		return q
	}
	var b strings.Builder
	b.Grow(len(q) + 16)
	n := 0
	for i := range len(q) {
		if q[i] != '?' {
			b.WriteByte(q[i])
			continue
		}
		n++
		b.WriteByte('$')
		b.WriteString(strconv.Itoa(n))
	}
	return b.String()
}

func (postgresEngine) writeOptions() *sql.TxOptions {
	return &sql.TxOptions{Isolation: sql.LevelSerializable}
}

// readOptions: repeatable read is a snapshot, and takes no part in serialization conflicts.
func (postgresEngine) readOptions() *sql.TxOptions {
	return &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}
}

// retryable: the server says that it rolled back, or that it is going down and did not commit
// (postgresql.org/docs/current/errcodes-appendix.html).
func (postgresEngine) retryable(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return false
	}
	switch e.Code {
	case "40001", "40P01", // serialization failure, deadlock
		"55P03",          // lock not available
		"57P01", "57P03": // shut down by the administrator; starting up
		return true
	}
	return false
}

func (postgresEngine) conflict(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && e.Code == "23505"
}

// lockSchema also lifts the statement time-out: a migration may take its time.
func (postgresEngine) lockSchema(ctx context.Context, tx *sql.Tx) error {
	if _, err := tx.ExecContext(ctx, `SET LOCAL statement_timeout = 0`); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(lockKeySchema))
	return err
}

func (postgresEngine) tableExists(ctx context.Context, tx *sql.Tx, table string) (ok bool, err error) {
	err = tx.QueryRowContext(ctx, `SELECT to_regclass($1) IS NOT NULL`, table).Scan(&ok)
	return ok, err
}

func (postgresEngine) size(ctx context.Context, db *sql.DB) (n int64, err error) {
	err = db.QueryRowContext(ctx, `SELECT pg_database_size(current_database())`).Scan(&n)
	return n, err
}
