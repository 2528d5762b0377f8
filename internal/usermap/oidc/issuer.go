package oidc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/observability"
	"ucloud-im/internal/scripts"
)

const (
	// answerTime bounds each exchange with the identity provider, from dialling to the last byte (contract 03 section 3.2).
	answerTime = 10 * time.Second
	// maxAnswer bounds each answer. Discovery documents and key sets have some KiB.
	maxAnswer = 512 << 10
	// discoveryLife is how long a discovery document counts before it is read again.
	discoveryLife = time.Hour
	// askAgain is the least time between two attempts that browsers cause.
	askAgain = 2 * time.Second
)

// Settings say where people log in and what becomes of it. All but Scopes are required.
type Settings struct {
	Issuer       string
	ClientID     string
	ClientSecret observability.Secret
	Scopes       []string // openid is always asked for
	RedirectURI  string

	// HTTP is for the identity provider. It verifies TLS, and must not follow redirects.
	HTTP *http.Client
	// Map turns who has logged in into the number of a local account.
	Map Mapper
}

// Mapper is the program that finds the local account of a person (contract 42 section B.2). [*scripts.Hook] is one.
type Mapper interface {
	Call(ctx context.Context, c scripts.Call, reply any) error
}

// same tells whether what is known about the issuer still counts with other settings.
func (s Settings) same(o Settings) bool {
	return s.Issuer == o.Issuer && s.ClientID == o.ClientID && s.ClientSecret == o.ClientSecret && slices.Equal(s.Scopes, o.Scopes) &&
		s.RedirectURI == o.RedirectURI && s.HTTP == o.HTTP
}

func (s Settings) check() error {
	switch {
	case s.Issuer == "" || s.ClientID == "" || s.ClientSecret == "" || s.HTTP == nil || s.Map == nil:
		return errors.New("oidc: Issuer, ClientID, ClientSecret, HTTP and Map are required")
	case !absolute(s.RedirectURI):
		return fmt.Errorf("oidc: RedirectURI %q must be absolute", s.RedirectURI)
	}
	return nil
}

func absolute(raw string) bool {
	u, err := url.Parse(raw)
	return err == nil && u.Host != "" && (u.Scheme == "https" || u.Scheme == "http")
}

// issuer is the identity provider with one set of settings.
type issuer struct {
	Settings
	http *http.Client // bounded
	now  func() time.Time

	// turn is held by whoever asks for the discovery document.
	turn  chan struct{}
	asked time.Time // guarded by turn: the last attempt
	last  error     // guarded by turn: its outcome

	known atomic.Pointer[discovered]
}

// discovered is what the discovery document says. It is immutable but for the keys.
type discovered struct {
	provider *gooidc.Provider
	oauth    oauth2.Config
	algs     []string
	keys     *keySet
	sendsIss bool // the parameter of RFC 9207 comes with every answer
	at       time.Time
}

func newIssuer(s Settings, now func() time.Time) *issuer {
	bounded := *s.HTTP
	base := bounded.Transport
	if base == nil {
		base = http.DefaultTransport
	}
	bounded.Transport = bound{base}
	bounded.Timeout = answerTime
	bounded.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &issuer{Settings: s, http: &bounded, now: now, turn: make(chan struct{}, 1)}
}

// bound is a transport whose answers have at most maxAnswer bytes.
type bound struct{ next http.RoundTripper }

// RoundTrip implements [http.RoundTripper].
func (b bound) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := b.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	res.Body = &boundBody{ReadCloser: res.Body, left: maxAnswer}
	return res, nil
}

type boundBody struct {
	io.ReadCloser
	left int64
}

var errTooLong = errors.New("the answer of the identity provider is too long")

// Read implements [io.Reader]. What is too long is an error and no shorter answer.
func (b *boundBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooLong
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	return n, err
}

// ready gives what is known about the issuer, and asks it if that is nothing. A browser may wait for that, but browsers
// together cause few questions.
func (i *issuer) ready(ctx context.Context) (*discovered, error) {
	if d := i.known.Load(); d != nil {
		return d, nil
	}
	return i.ask(ctx, askAgain)
}

// ask reads the discovery document, unless somebody has just done that.
func (i *issuer) ask(ctx context.Context, pause time.Duration) (*discovered, error) {
	select {
	case i.turn <- struct{}{}:
		defer func() { <-i.turn }()
	case <-ctx.Done():
		return nil, unavailable(ctx.Err())
	}
	if since := i.now().Sub(i.asked); !i.asked.IsZero() && since >= 0 && since < pause {
		if d := i.known.Load(); d != nil {
			return d, nil
		}
		return nil, unavailable(i.last)
	}
	d, err := i.discover(ctx)
	i.asked, i.last = i.now(), err
	if err != nil {
		return nil, unavailable(err)
	}
	i.known.Store(d)
	return d, nil
}

func unavailable(cause error) error {
	if cause == nil {
		cause = errors.New("the identity provider has not answered")
	}
	return failure.Wrap(cause, failure.Unavailable, "The identity provider cannot be reached at the moment")
}

// discover reads and checks the discovery document (OpenID Connect Discovery 1.0 sections 3 and 4.3).
func (i *issuer) discover(ctx context.Context) (*discovered, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	p, err := gooidc.NewProvider(gooidc.ClientContext(ctx, i.http), i.Issuer)
	if err != nil {
		return nil, fmt.Errorf("read the discovery document of %s: %w", i.Issuer, i.hide(err))
	}
	var doc struct {
		AuthURL     string   `json:"authorization_endpoint"`
		TokenURL    string   `json:"token_endpoint"`
		UserInfoURL string   `json:"userinfo_endpoint"`
		JWKSURL     string   `json:"jwks_uri"`
		Algs        []string `json:"id_token_signing_alg_values_supported"`
		TokenAuth   []string `json:"token_endpoint_auth_methods_supported"`
		PKCE        []string `json:"code_challenge_methods_supported"`
		SendsIss    bool     `json:"authorization_response_iss_parameter_supported"`
	}
	if err := p.Claims(&doc); err != nil {
		return nil, fmt.Errorf("read the discovery document of %s: %w", i.Issuer, err)
	}
	secure := strings.HasPrefix(i.Issuer, "https://")
	for name, u := range map[string]string{"authorization_endpoint": doc.AuthURL, "token_endpoint": doc.TokenURL, "jwks_uri": doc.JWKSURL, "userinfo_endpoint": doc.UserInfoURL} {
		if u == "" && name == "userinfo_endpoint" {
			continue
		}
		if !absolute(u) || secure && !strings.HasPrefix(u, "https://") {
			return nil, fmt.Errorf("the discovery document of %s names %q as %s", i.Issuer, clip(u), name)
		}
	}
	// An issuer that announces methods without S256 would ignore the challenge, and with it the protection (RFC 9700
	// section 2.1.1). Some announce nothing and do it all the same.
	if doc.PKCE != nil && !slices.Contains(doc.PKCE, "S256") {
		return nil, fmt.Errorf("%s does not do PKCE with S256", i.Issuer)
	}
	algs := acceptedAlgorithms(doc.Algs)
	if len(algs) == 0 {
		return nil, fmt.Errorf("%s signs with none of %s", i.Issuer, strings.Join(algorithms, ", "))
	}
	// Not found out by trying: that would send secret and code twice.
	style := oauth2.AuthStyleInHeader
	if len(doc.TokenAuth) > 0 && !slices.Contains(doc.TokenAuth, "client_secret_basic") {
		if !slices.Contains(doc.TokenAuth, "client_secret_post") {
			return nil, fmt.Errorf("%s takes no client secret at its token endpoint", i.Issuer)
		}
		style = oauth2.AuthStyleInParams
	}
	scopes := []string{gooidc.ScopeOpenID}
	for _, s := range i.Scopes {
		if !slices.Contains(scopes, s) {
			scopes = append(scopes, s)
		}
	}
	return &discovered{
		provider: p, algs: algs, sendsIss: doc.SendsIss, at: i.now(),
		keys: newKeySet(doc.JWKSURL, i.http, algs, i.now),
		oauth: oauth2.Config{
			ClientID: i.ClientID, ClientSecret: i.ClientSecret.Reveal(), RedirectURL: i.RedirectURI, Scopes: scopes,
			Endpoint: oauth2.Endpoint{AuthURL: doc.AuthURL, TokenURL: doc.TokenURL, AuthStyle: style},
		},
	}, nil
}

// hide removes the client secret from what an answer of the identity provider has put into an error, and shortens it.
func (i *issuer) hide(err error) error {
	if err == nil {
		return nil
	}
	secret := i.ClientSecret.Reveal()
	text := strings.ReplaceAll(err.Error(), secret, observability.Redacted)
	if escaped := url.QueryEscape(secret); escaped != secret {
		text = strings.ReplaceAll(text, escaped, observability.Redacted)
	}
	return errors.New(clip(text))
}

// clip shortens a text from outside for the log.
func clip(s string) string {
	if len(s) > 512 {
		s = s[:512] + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
