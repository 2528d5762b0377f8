package gateway

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"ucloud-im/internal/observability"
)

const (
	// certificateCheck is the shortest time between two looks at the files.
	certificateCheck = 2 * time.Second
	// certificateWarning is how long before the end of a certificate a warning is logged (contract 40 section 4).
	certificateWarning = 21 * 24 * time.Hour
)

// CertificateFiles say where a certificate chain and its private key are, in PEM form.
type CertificateFiles struct {
	Certificate string
	Key         string // the file; or, if the key is not in a file:
	KeyPEM      observability.Secret
}

// Certificate is a certificate whose files are read again when they change. Until the new files are complete and match,
// the old certificate stays in use. Connections that exist are not affected.
type Certificate struct {
	log     *slog.Logger
	current atomic.Pointer[tls.Certificate]

	mu      sync.Mutex // one reload at a time
	files   CertificateFiles
	stamp   [2]stamp // of the files as they were tried last
	checked time.Time
}

// stamp tells whether a file is another one than before.
type stamp struct {
	inode    uint64
	size     int64
	modified time.Time
}

// LoadCertificate reads the files.
func LoadCertificate(files CertificateFiles, log *slog.Logger) (*Certificate, error) {
	c := &Certificate{log: log.With("part", "tls")}
	if err := c.Use(files); err != nil {
		return nil, err
	}
	return c, nil
}

// Use reads the certificate from other files, or from the same ones again. On an error the certificate in use stays, and
// so do its files.
func (c *Certificate) Use(files CertificateFiles) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.files
	c.files = files
	err := c.reloadLocked(c.stampsLocked())
	if err != nil && old.Certificate != "" {
		c.files = old
	}
	return err
}

func (c *Certificate) reloadLocked(now [2]stamp) error {
	c.stamp, c.checked = now, time.Now()
	certPEM, err := os.ReadFile(c.files.Certificate)
	if err != nil {
		return fmt.Errorf("read the TLS certificate: %w", err)
	}
	keyPEM := []byte(c.files.KeyPEM.Reveal())
	if c.files.Key != "" {
		if keyPEM, err = readKey(c.files.Key); err != nil {
			return fmt.Errorf("read the TLS key: %w", err)
		}
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("use the TLS certificate: %w", err)
	}
	left := time.Until(pair.Leaf.NotAfter)
	switch {
	case left <= 0:
		return fmt.Errorf("TLS certificate %s expired on %s", c.files.Certificate, pair.Leaf.NotAfter.Format(time.DateOnly))
	case left < certificateWarning:
		c.log.Warn("TLS certificate expires soon", "file", c.files.Certificate, "expires", pair.Leaf.NotAfter)
	}
	c.current.Store(&pair)
	c.log.Info("TLS certificate loaded", "file", c.files.Certificate, "names", pair.Leaf.DNSNames, "expires", pair.Leaf.NotAfter)
	return nil
}

func readKey(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("%s is open to everybody (mode %04o)", path, st.Mode().Perm())
	}
	return io.ReadAll(io.LimitReader(f, 1<<20))
}

// NotAfter is when the certificate in use ends.
func (c *Certificate) NotAfter() time.Time { return c.current.Load().Leaf.NotAfter }

// get is called for each handshake.
func (c *Certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c.mu.TryLock() { // else somebody is looking already
		if time.Since(c.checked) >= certificateCheck {
			c.checked = time.Now()
			if now := c.stampsLocked(); now != c.stamp {
				if err := c.reloadLocked(now); err != nil {
					c.log.Error("TLS certificate not reloaded, the old one stays in use", "error", err)
				}
			}
		}
		c.mu.Unlock()
	}
	if pair := c.current.Load(); pair != nil {
		return pair, nil
	}
	return nil, errors.New("no certificate")
}

func (c *Certificate) stampsLocked() (out [2]stamp) {
	for i, name := range [...]string{c.files.Certificate, c.files.Key} {
		st, err := os.Stat(name) // following links: certificate tools switch symbolic links
		if err != nil {
			continue
		}
		out[i] = stamp{size: st.Size(), modified: st.ModTime()}
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			out[i].inode = sys.Ino
		}
	}
	return out
}

// TLSConfig is the configuration of a listener: at least minVersion (0 means TLS 1.2), and with TLS 1.2 only suites with
// forward secrecy and authenticated encryption. TLS 1.3 has no others.
func (c *Certificate) TLSConfig(minVersion uint16) *tls.Config {
	if minVersion == 0 {
		minVersion = tls.VersionTLS12
	}
	return &tls.Config{
		MinVersion:     minVersion,
		GetCertificate: c.get,
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
	}
}
