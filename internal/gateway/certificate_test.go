package gateway

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"ucloud-im/internal/observability"
)

// writeCertificate makes a self-signed certificate for birch.example.net with a serial number.
func writeCertificate(t testing.TB, dir string, serial int64, notAfter time.Time) CertificateFiles {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "birch"}, DNSNames: []string{"birch.example.net"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	files := CertificateFiles{Certificate: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
	for name, block := range map[string]*pem.Block{
		files.Certificate: {Type: "CERTIFICATE", Bytes: der}, files.Key: {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		// As certificate tools do it: a new file under the old name.
		if err := os.WriteFile(name+".new", pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(name+".new", name); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

func testTLS(t testing.TB) *Certificate {
	t.Helper()
	c, err := LoadCertificate(writeCertificate(t, t.TempDir(), 1, time.Now().Add(90*24*time.Hour)), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// expireCheck makes the next handshake look at the files.
func (c *Certificate) expireCheck() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.checked = time.Time{}
}

func TestCertificateReload(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	dir := t.TempDir()
	later := time.Now().Add(90 * 24 * time.Hour)
	cert, err := LoadCertificate(writeCertificate(t, dir, 1, later), slog.New(slog.NewJSONHandler(f.log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	address := f.serve(ServerOptions{Listeners: []net.Listener{listen(t, "tcp", "127.0.0.1:0")}, TLS: cert.TLSConfig(0)})
	dial := func() (*tls.Conn, int64) {
		t.Helper()
		c, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c, c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	use := func(c *tls.Conn) {
		t.Helper()
		io.WriteString(c, "GET /ucloud/birch/integration/x HTTP/1.1\r\nHost: birch.example.net\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || res.StatusCode != 200 {
			t.Fatalf("connection is not usable: %v, %v", res, err)
		}
		io.Copy(io.Discard, res.Body)
	}
	old, serial := dial()
	use(old)
	if serial != 1 {
		t.Fatalf("serial %d", serial)
	}

	writeCertificate(t, dir, 2, later)
	cert.expireCheck()
	if _, serial := dial(); serial != 2 {
		t.Fatalf("after a change: serial %d", serial)
	}
	use(old) // the connection has survived

	// Broken files keep the old certificate, and say so, once.
	for i, spoil := range []func(){
		func() { os.WriteFile(filepath.Join(dir, "tls.crt"), []byte("half"), 0o600) },
		func() { os.Remove(filepath.Join(dir, "tls.crt")) },
		func() { writeCertificate(t, dir, 3, time.Now().Add(-time.Minute)) },
		func() {
			writeCertificate(t, dir, 4, later)
			os.Chmod(filepath.Join(dir, "tls.key"), 0o644)
		},
		func() { // a key of another certificate
			other := writeCertificate(t, t.TempDir(), 5, later)
			os.Rename(other.Key, filepath.Join(dir, "tls.key"))
		},
	} {
		spoil()
		cert.expireCheck()
		if _, serial := dial(); serial != 2 {
			t.Fatalf("broken files %d: serial %d", i, serial)
		}
		if err := cert.Use(CertificateFiles{Certificate: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}); err == nil {
			t.Fatalf("broken files %d: no error", i)
		}
		use(old)
	}

	writeCertificate(t, dir, 6, later)
	cert.expireCheck()
	if _, serial := dial(); serial != 6 {
		t.Fatalf("after the repair: serial %d", serial)
	}
}

func TestCertificateKeyFromElsewhere(t *testing.T) {
	t.Parallel()
	files := writeCertificate(t, t.TempDir(), 1, time.Now().Add(10*24*time.Hour))
	pemKey, err := os.ReadFile(files.Key)
	if err != nil {
		t.Fatal(err)
	}
	var log logBuffer
	files.Key, files.KeyPEM = "", observability.Secret(pemKey)
	if _, err := LoadCertificate(files, slog.New(slog.NewTextHandler(&log, nil))); err != nil {
		t.Fatal(err)
	}
	if !contains(log.String(), "expires soon") {
		t.Error("no warning although the certificate ends in 10 days")
	}
	if _, err := LoadCertificate(CertificateFiles{Certificate: files.Certificate}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a certificate without a key was accepted")
	}
}

func TestTLSVersionsAndSuites(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	address := f.serve(ServerOptions{Listeners: []net.Listener{listen(t, "tcp", "127.0.0.1:0")}, TLS: testTLS(t).TLSConfig(0)})
	strict := f.serve(ServerOptions{Listeners: []net.Listener{listen(t, "tcp", "127.0.0.1:0")}, TLS: testTLS(t).TLSConfig(tls.VersionTLS13)})
	for _, tc := range []struct {
		name    string
		address string
		config  *tls.Config
		ok      bool
	}{
		{"1.3", address, &tls.Config{MinVersion: tls.VersionTLS13}, true},
		{"1.2", address, &tls.Config{MaxVersion: tls.VersionTLS12}, true},
		{"1.1", address, &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, false},
		{"no forward secrecy", address, &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}}, false},
		{"CBC", address, &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}}, false},
		{"1.2 where 1.3 is demanded", strict, &tls.Config{MaxVersion: tls.VersionTLS12}, false},
		{"1.3 where 1.3 is demanded", strict, &tls.Config{}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.config.InsecureSkipVerify = true
			c, err := tls.Dial("tcp", tc.address, tc.config)
			if (err == nil) != tc.ok {
				t.Errorf("handshake: %v", err)
			}
			if err == nil {
				c.Close()
			}
		})
	}
}
