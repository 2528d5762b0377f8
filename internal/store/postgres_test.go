package store

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/observability"
)

func TestRebind(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`SELECT 1`:                           `SELECT 1`,
		`a = ? AND b = ?`:                    `a = $1 AND b = $2`,
		"x BLOB NOT NULL, y BIGINT":          "x BYTEA NOT NULL, y BIGINT",
		strings.Repeat("?,", 11):             "$1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,",
		`INSERT INTO "BLOB" VALUES (?, 'ü')`: `INSERT INTO "BLOB" VALUES ($1, 'ü')`,
	} {
		if got := (postgresEngine{}).rebind(in); got != want {
			t.Errorf("%q became %q", in, got)
		}
	}
}

// Nothing of the environment gets into the configuration, and nothing of the configuration is lost.
func TestPostgresConfigIsComplete(t *testing.T) {
	for k, v := range map[string]string{
		"PGHOST": "evil.example.org", "PGPORT": "1", "PGUSER": "evil", "PGDATABASE": "evil", "PGPASSWORD": "evil",
		"PGOPTIONS": "-c fsync=off", "PGSSLMODE": "prefer", "PGAPPNAME": "evil", "PGTARGETSESSIONATTRS": "read-only",
		"PGTZ": "Evil",
	} {
		t.Setenv(k, v)
	}
	const password = `p@ss:/w?o#r&d=[%41] '"\`
	cfg, err := Postgres{Host: "db.example.org", Port: 5433, Database: "d b", User: "u@x", Password: password}.config(Options{
		ConnectTimeout: 3 * time.Second, StatementTimeout: 4 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Host != "db.example.org" || cfg.Port != 5433 || cfg.Database != "d b" || cfg.User != "u@x" || cfg.Password != password {
		t.Errorf("%+v", cfg.Config)
	}
	if cfg.ConnectTimeout != 3*time.Second || cfg.RuntimeParams["statement_timeout"] != "4000" || cfg.RuntimeParams["synchronous_commit"] != "on" {
		t.Errorf("%v %v", cfg.ConnectTimeout, cfg.RuntimeParams)
	}
	if len(cfg.Fallbacks) != 0 || cfg.ValidateConnect != nil || cfg.TLSConfig == nil || cfg.TLSConfig.InsecureSkipVerify {
		t.Errorf("fall-backs %v, TLS %+v", cfg.Fallbacks, cfg.TLSConfig)
	}
	if strings.Contains(fmt.Sprint(cfg.RuntimeParams), "evil") || strings.Contains(fmt.Sprint(cfg.RuntimeParams), "fsync") {
		t.Errorf("%v", cfg.RuntimeParams)
	}
	if s := cfg.ConnString(); strings.Contains(s, "p@ss") {
		t.Errorf("connection string %q", s)
	}
}

func TestPostgresPasswordStaysPrivate(t *testing.T) {
	t.Parallel()
	const password observability.Secret = "Geheim-4711"
	p := Postgres{Host: "127.0.0.1", Port: closedPort(t), Database: "d", User: "u", Password: password}
	_, err := Open(t.Context(), Options{Driver: DriverPostgres, Postgres: p})
	if err == nil {
		t.Fatal("opened")
	}
	for _, text := range []string{err.Error(), fmt.Sprintf("%+v", err), fmt.Sprintf("%v %+v %#v", p, p, p)} {
		if strings.Contains(text, "4711") {
			t.Errorf("shows the password: %s", text)
		}
	}
}

// closedPort is a port at which nobody listens.
func closedPort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// authority is a certificate authority for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	a := authority{file: filepath.Join(t.TempDir(), "ca.pem")}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	a.cert, a.key = sign(t, tmpl, authority{cert: tmpl})
	if err := os.WriteFile(a.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

// sign makes a certificate; an authority without key signs itself.
func sign(t *testing.T, tmpl *x509.Certificate, by authority) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if by.key == nil {
		by.key = key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, by.cert, &key.PublicKey, by.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func (a authority) server(t *testing.T, name string) *tls.Config {
	t.Helper()
	cert, key := sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, a)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}}
}

// The client reveals who it is, and later its password, only to a server that the mode accepts: SEC-7. The server here
// speaks as much of the protocol as it takes to see whether the start-up message arrives.
func TestPostgresTLS(t *testing.T) {
	t.Parallel()
	trusted, other := newAuthority(t), newAuthority(t)
	for name, tc := range map[string]struct {
		mode   string
		ca     string
		server *tls.Config // nil: the server does without TLS
		talks  bool
	}{
		"disable":                       {"disable", "", nil, true},
		"local default":                 {"", "", nil, true},
		"require":                       {"require", "", other.server(t, "x"), true},
		"require with a CA":             {"require", trusted.file, other.server(t, "localhost"), false},
		"require with a CA, other name": {"require", trusted.file, trusted.server(t, "x"), true},
		"require, no TLS":               {"require", "", nil, false},
		"verify-ca":                     {"verify-ca", trusted.file, trusted.server(t, "x"), true},
		"verify-ca, unknown CA":         {"verify-ca", trusted.file, other.server(t, "localhost"), false},
		"verify-ca, system's CAs":       {"verify-ca", "", trusted.server(t, "localhost"), false},
		"verify-ca, no TLS":             {"verify-ca", trusted.file, nil, false},
		"verify-full":                   {"verify-full", trusted.file, trusted.server(t, "localhost"), true},
		"verify-full, other name":       {"verify-full", trusted.file, trusted.server(t, "x"), false},
		"verify-full, unknown CA":       {"verify-full", trusted.file, other.server(t, "localhost"), false},
		"verify-full, no TLS":           {"verify-full", trusted.file, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			talked := make(chan bool, 1)
			go func() { talked <- hearsStartup(l, tc.server) }()
			p := Postgres{
				Host: "localhost", Port: l.Addr().(*net.TCPAddr).Port, Database: "d", User: "u", Password: "p",
				SSLMode: tc.mode, CAFile: tc.ca,
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if s, err := Open(ctx, Options{Driver: DriverPostgres, Postgres: p}); err == nil {
				_ = s.Close()
				t.Error("the pretended server was good enough")
			}
			if got := <-talked; got != tc.talks {
				t.Errorf("the client talked: %v, want %v", got, tc.talks)
			}
		})
	}
}

// hearsStartup accepts one connection and tells whether a start-up message arrives on it
// (postgresql.org/docs/current/protocol-message-formats.html).
func hearsStartup(l net.Listener, cfg *tls.Config) bool {
	c, err := l.Accept()
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	head := make([]byte, 8)
	if _, err := io.ReadFull(c, head); err != nil {
		return false
	}
	const sslRequest = "\x00\x00\x00\x08\x04\xd2\x16\x2f"
	if string(head) != sslRequest {
		return head[4] == 0 && head[5] == 3 // protocol version 3
	}
	if cfg == nil {
		_, _ = c.Write([]byte("N"))
	} else {
		_, _ = c.Write([]byte("S"))
		c = tls.Server(c, cfg)
	}
	_, err = io.ReadFull(c, head)
	return err == nil && head[4] == 0 && head[5] == 3
}

func TestPostgresTLSDefaults(t *testing.T) {
	t.Parallel()
	for host, plain := range map[string]bool{
		"localhost": true, "LOCALHOST": true, "127.0.0.1": true, "127.8.9.1": true, "::1": true, "/run/postgresql": true,
		"db.example.org": false, "10.0.0.1": false, "localhost.example.org": false, "128.0.0.1": false, "fe80::1": false,
	} {
		cfg, err := Postgres{Host: host}.tls()
		if err != nil || (cfg == nil) != plain {
			t.Errorf("%s: TLS %v, %v", host, cfg != nil, err)
		}
		if cfg != nil && (cfg.InsecureSkipVerify || cfg.ServerName != host || cfg.MinVersion != tls.VersionTLS12) {
			t.Errorf("%s: %+v", host, cfg)
		}
	}
	for name, p := range map[string]Postgres{
		"unknown mode":      {Host: "h", SSLMode: "prefer"},
		"allow":             {Host: "h", SSLMode: "allow"},
		"TLS over a socket": {Host: "/run", SSLMode: "verify-full"},
		"no such CA file":   {Host: "h", CAFile: "/nowhere"},
		"empty CA file":     {Host: "h", CAFile: os.DevNull},
		"certificate alone": {Host: "h", ClientCert: "/a"},
		"key alone":         {Host: "h", ClientKey: "/a"},
	} {
		if _, err := p.tls(); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
