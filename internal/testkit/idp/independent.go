package idp

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"
)

// Independent is an OpenID provider that was written by others and is certified: the example server of zitadel/oidc. It
// has one client and one user.
type Independent struct {
	Issuer                 string
	ClientID, ClientSecret string
	Name, Password         string // of its user
	Subject                string

	srv *httptest.Server
}

// NewIndependent starts one, for a client with this secret.
func NewIndependent(t testing.TB, secret, redirectURI string) *Independent {
	t.Helper()
	p := &Independent{ClientID: "ucloud", ClientSecret: secret, Name: "test-user@127.0.0.1", Password: "verysecure", Subject: "id1"}
	p.srv = httptest.NewUnstartedServer(nil)
	p.Issuer = "https://" + p.srv.Listener.Addr().String()
	users := storage.NewUserStore(p.Issuer)
	clients := map[string]*storage.Client{p.ClientID: storage.WebClient(p.ClientID, p.ClientSecret, redirectURI)}
	p.srv.Config.Handler = exampleop.SetupServer(p.Issuer, storage.NewStorageWithClients(users, clients), nil, false)
	p.srv.StartTLS()
	t.Cleanup(p.srv.Close)
	return p
}

// Authority is the certificate that vouches for the provider, PEM.
func (p *Independent) Authority() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.srv.Certificate().Raw})
}

// SPKI is the public key of the provider's certificate.
func (p *Independent) SPKI() []byte { return p.srv.Certificate().RawSubjectPublicKeyInfo }

// Client is an HTTP client that trusts the provider.
func (p *Independent) Client() *http.Client { return p.srv.Client() }
