package devcore

import (
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Issuer is the issuer of all tokens of Core.
const Issuer = "cloud.sdu.dk"

type cachedToken struct {
	text    string
	expires time.Time
}

// sign makes a token as Core does: RS256 with the provider's own key, for both directions (contract 01 section 4).
func (c *Core) sign(subject, role, principal string) (string, time.Time) {
	now := time.Now()
	expires := now.Add(c.opt.TokenLife)
	text, err := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.MapClaims{
		"principalType": principal, "role": role, "iss": Issuer, "sub": subject, "aud": []string{"all:write"},
		"iat": now.Unix(), "exp": expires.Unix(),
	}).SignedString(c.key)
	if err != nil {
		panic("devcore: sign a token: " + err.Error()) // cannot happen with a valid RSA key
	}
	return text, expires
}

// ServiceToken is the token with which Core calls the provider: cached, renewed when less than three minutes remain.
func (c *Core) ServiceToken() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Until(c.coreToken.expires) < 3*time.Minute {
		c.coreToken.text, c.coreToken.expires = c.sign("_UCloud", "SERVICE", "service")
	}
	return c.coreToken.text
}

// ProviderToken is the provider's own access token, as auth/providers/refresh gives it.
func (c *Core) ProviderToken() string {
	text, _ := c.sign("#P_"+c.opt.Provider, "PROVIDER", "provider")
	return text
}

// isProvider checks a bearer of the provider.
func (c *Core) isProvider(text string) bool {
	claims := jwt.MapClaims{}
	_, err := jwt.ParseWithClaims(text, claims, func(*jwt.Token) (any, error) { return &c.key.PublicKey, nil },
		jwt.WithValidMethods([]string{"RS256"}), jwt.WithIssuer(Issuer), jwt.WithExpirationRequired())
	return err == nil && claims["sub"] == "#P_"+c.opt.Provider && claims["role"] == "PROVIDER"
}
