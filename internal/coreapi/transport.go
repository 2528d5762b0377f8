package coreapi

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"
)

// HTTPOptions configure the connections to Core.
type HTTPOptions struct {
	// CAFile is a PEM file with trust anchors in addition to those of the system (provider.core.caFile). Empty means
	// the system's alone.
	CAFile string
	// DialTimeout bounds TCP connect and, separately, the TLS handshake. 0 means 5 s.
	DialTimeout time.Duration
}

// NewHTTPClient makes the HTTP client for Core. It uses no proxy from the environment, follows no redirect, and sends
// TCP keep-alives. It has no overall timeout: [Client] and [TokenSource] set one per call.
func NewHTTPClient(o HTTPOptions) (*http.Client, error) {
	tlsConf, err := TLSConfig(o.CAFile)
	if err != nil {
		return nil, err
	}
	if o.DialTimeout <= 0 {
		o.DialTimeout = 5 * time.Second
	}
	dialer := &net.Dialer{Timeout: o.DialTimeout, KeepAlive: 15 * time.Second}
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                  nil, // see the package comment
			DialContext:            dialer.DialContext,
			TLSClientConfig:        tlsConf,
			TLSHandshakeTimeout:    o.DialTimeout,
			ForceAttemptHTTP2:      true,
			MaxIdleConns:           16,
			MaxIdleConnsPerHost:    8,
			MaxConnsPerHost:        32, // a stalled Core must not collect our connections
			IdleConnTimeout:        60 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// TLSConfig is the TLS configuration towards Core: TLS 1.2 or newer, the system's trust anchors and those of caFile.
func TLSConfig(caFile string) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile == "" {
		return conf, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("read trust anchors for Core: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // no system store, as in minimal containers
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read trust anchors for Core: %s holds no PEM certificate", caFile)
	}
	conf.RootCAs = pool
	return conf, nil
}

// ParseBaseURL checks the address of Core: http or https, a host, no path but "/", nothing else.
func ParseBaseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, fmt.Errorf("address of Core: %w", err)
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("address of Core %q: the scheme must be http or https", s)
	case u.Host == "":
		return nil, fmt.Errorf("address of Core %q: no host", s)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("address of Core: user, query and fragment are not allowed")
	case u.Path != "" && u.Path != "/":
		return nil, fmt.Errorf("address of Core %q: a path is not allowed", s)
	}
	u.Path = ""
	return u, nil
}
