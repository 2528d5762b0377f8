package config

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"strings"
	"time"
)

// certificateNotice is how long before its end a certificate is reported.
const certificateNotice = 21 * 24 * time.Hour

// checkCertificate checks certificate and key of the gateway: they belong together, cover the names in use and are valid
// now.
func (l *loader) checkCertificate() {
	t := l.config.Gateway.TLS
	if t == nil {
		return
	}
	chain, err := readFollowing(string(t.Certificate), 1<<20)
	if err != nil {
		l.errorf("X-01", "gateway.tls.certificate", "put the certificate chain there", "%s", shortError(err))
		return
	}
	if !l.uses("gateway.tls.key") {
		l.checkNames(nil, chain)
		return
	}
	if t.Key.Value() == "" {
		return // reported when the secret was read
	}
	pair, err := tls.X509KeyPair(chain, []byte(t.Key.Value().Reveal()))
	if err != nil {
		// The library's texts name what is wrong with the form and quote nothing.
		l.errorf("X-01", "gateway.tls", "use the key that the certificate was made for, both as PEM", "certificate and key cannot be used together: %v", err)
		return
	}
	l.checkNames(pair.Leaf, nil)
}

// checkNames checks names and life of the leaf. Without a key the leaf comes from the chain alone.
func (l *loader) checkNames(leaf *x509.Certificate, chain []byte) {
	if leaf == nil {
		var err error
		if leaf, err = firstCertificate(chain); err != nil {
			l.errorf("X-01", "gateway.tls.certificate", "use a PEM certificate", "%s: %v", l.config.Gateway.TLS.Certificate, err)
			return
		}
	}
	now := time.Now()
	switch {
	case now.After(leaf.NotAfter):
		l.errorf("X-01", "gateway.tls.certificate", "install a new one", "the certificate ended on %s", leaf.NotAfter.UTC().Format(time.DateOnly))
	case now.Before(leaf.NotBefore):
		l.errorf("X-01", "gateway.tls.certificate", "check the clock", "the certificate begins on %s", leaf.NotBefore.UTC().Format(time.DateOnly))
	case leaf.NotAfter.Sub(now) < certificateNotice:
		l.warnf("X-01", "gateway.tls.certificate", "install a new one", "the certificate ends on %s", leaf.NotAfter.UTC().Format(time.DateOnly))
	}
	names := []string{l.config.Provider.Hosts.SelfPublic.Address}
	if s := l.config.Services.Slurm; s != nil && s.Web.Enabled && s.Web.Suffix != "" {
		// Any host name of an application stands for all of them.
		names = append(names, s.Web.Prefix+"x"+s.Web.Suffix)
	}
	for _, name := range names {
		if err := leaf.VerifyHostname(strings.TrimSuffix(name, ".")); err != nil {
			l.errorf("X-01", "gateway.tls.certificate", "use a certificate that has the name", "the certificate does not cover %s", name)
		}
	}
}

func firstCertificate(chain []byte) (*x509.Certificate, error) {
	for block, rest := pem.Decode(chain); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			return x509.ParseCertificate(block.Bytes)
		}
	}
	return nil, errors.New("no certificate in the file")
}
