package intent

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

const (
	// MaxToken is the longest intent that is looked at. One of form 2 with an RSA key of 8192 bits and the longest
	// names has 3 kB.
	MaxToken = 8 << 10
	// maxSeconds is what a double holds exactly, the largest time that a browser can mean.
	maxSeconds = 1 << 53
	// minNonce is the length of the nonce of form 2 in characters: 128 bits in base64.
	minNonce = 22
	maxNonce = 128
)

// The types and algorithms of intents.
const (
	typForm1 = "JWT"
	typForm2 = "ucloud-intent+jwt"
	algRS256 = "RS256"
	algEdDSA = "EdDSA"
)

// claims are what an intent says.
type claims struct {
	Iat, Exp time.Time
	Call     string
	Username string
	Project  *string
	// Of form 2 only:
	Aud, Jti, Bdy string
}

// workspace is the project, "" for the user's own workspace.
func (c claims) workspace() string {
	if c.Project == nil {
		return ""
	}
	return *c.Project
}

// token is an intent whose form is right. Nothing of it is proven.
type token struct {
	form      string
	alg       string
	claims    claims
	signed    string // what the signature is over: header and payload as they are written
	signature []byte
}

// digest identifies the intent. It covers the signature: browsers of one user that ask for the like within a second sign
// the same claims with their keys. A key makes one signature of the same text (PKCS #1 v1.5 and Ed25519), so nobody
// without the key makes one intent into two.
func (t *token) digest() [32]byte { return sha256.Sum256(append([]byte(t.signed+"."), t.signature...)) }

// parse reads a compact JWS of one of the two forms.
//
// It is strict where libraries are lax, since every freedom is a way to have the same bytes mean two things: exactly
// the header members and claims of the form and each once, exact names, base64url without padding and without unused
// bits, whole seconds. A header cannot name a key, nor an algorithm that the form does not have (TestRefusedForms).
func parse(text string) (*token, error) {
	if len(text) > MaxToken {
		return nil, fmt.Errorf("it has %d bytes", len(text))
	}
	header, rest, ok1 := strings.Cut(text, ".")
	payload, sig, ok2 := strings.Cut(rest, ".")
	if !ok1 || !ok2 || strings.Contains(sig, ".") {
		return nil, errors.New("it does not have three parts")
	}
	t := &token{signed: text[:len(header)+1+len(payload)]}
	if err := t.readHeader(header); err != nil {
		return nil, err
	}
	if err := t.readClaims(payload); err != nil {
		return nil, err
	}
	var err error
	if t.signature, err = decode64(sig); err != nil || len(t.signature) == 0 {
		return nil, errors.New("its signature is not base64url")
	}
	return t, nil
}

func (t *token) readHeader(text string) error {
	var typ string
	err := readObject(text, "header", func(name string, value json.RawMessage) (err error) {
		switch name {
		case "typ":
			typ, err = readString(value)
		case "alg":
			t.alg, err = readString(value)
		default:
			err = errors.New("is not known") // kid, jwk, jku, x5c, crit: nothing in a token chooses how it is verified
		}
		return err
	})
	if err != nil {
		return err
	}
	switch {
	case typ == typForm1 && t.alg == algRS256:
		t.form = Form1
	case typ == typForm2 && (t.alg == algRS256 || t.alg == algEdDSA):
		t.form = Form2
	default:
		return fmt.Errorf("type %.20q with algorithm %.20q is no form of an intent", typ, t.alg)
	}
	return nil
}

func (t *token) readClaims(text string) error {
	var seen []string
	c := &t.claims
	err := readObject(text, "payload", func(name string, value json.RawMessage) (err error) {
		seen = append(seen, name)
		switch name {
		case "iat":
			c.Iat, err = readTime(value)
		case "exp":
			c.Exp, err = readTime(value)
		case "call":
			c.Call, err = readString(value)
		case "username":
			c.Username, err = readString(value)
		case "project":
			if string(value) != "null" {
				var project string
				project, err = readString(value)
				c.Project = &project
			}
		default:
			if t.form == Form2 {
				return t.readClaim2(name, value)
			}
			err = errors.New("is not known")
		}
		return err
	})
	if err != nil {
		return err
	}
	required := []string{"iat", "exp", "call", "username"}
	if t.form == Form2 {
		required = append(required, "project", "aud", "jti", "bdy")
	}
	for _, name := range required {
		if !contains(seen, name) {
			return fmt.Errorf("payload has no %s", name)
		}
	}
	if !c.Exp.After(c.Iat) {
		return errors.New("it expires before it is made")
	}
	return nil
}

// readClaim2 reads what form 2 has in addition.
func (t *token) readClaim2(name string, value json.RawMessage) (err error) {
	c := &t.claims
	switch name {
	case "aud":
		c.Aud, err = readString(value)
	case "jti":
		c.Jti, err = readString(value)
		if err == nil && (len(c.Jti) < minNonce || len(c.Jti) > maxNonce) {
			err = fmt.Errorf("has %d characters", len(c.Jti))
		}
	case "bdy":
		c.Bdy, err = readString(value)
		if err == nil && len(c.Bdy) != base64.RawURLEncoding.EncodedLen(sha256.Size) {
			err = errors.New("is not a SHA-256")
		}
	default:
		err = errors.New("is not known")
	}
	return err
}

// verify tells whether the public key has made the signature. The algorithm is that of the key, and the header has to
// say the same: a header never selects how a key is used.
func (t *token) verify(public crypto.PublicKey) bool {
	switch key := public.(type) {
	case *rsa.PublicKey:
		if t.alg != algRS256 {
			return false
		}
		sum := sha256.Sum256([]byte(t.signed))
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], t.signature) == nil
	case ed25519.PublicKey:
		if t.alg != algEdDSA || len(key) != ed25519.PublicKeySize {
			return false
		}
		return ed25519.Verify(key, []byte(t.signed), t.signature)
	}
	return false
}

// readObject reads a base64url part that is one JSON object of single members.
func readObject(text, what string, member func(name string, value json.RawMessage) error) error {
	raw, err := decode64(text)
	if err != nil {
		return fmt.Errorf("%s is not base64url", what)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return fmt.Errorf("%s is not a JSON object", what)
	}
	var names []string
	for dec.More() {
		tok, err := dec.Token()
		name, ok := tok.(string)
		if err != nil || !ok {
			return fmt.Errorf("%s is not valid JSON", what)
		}
		if contains(names, name) {
			return fmt.Errorf("%s has %.20q twice", what, name)
		}
		names = append(names, name)
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return fmt.Errorf("%s is not valid JSON", what)
		}
		if err := member(name, value); err != nil {
			return fmt.Errorf("%s: %.20q %w", what, name, err)
		}
	}
	if _, err := dec.Token(); err != nil { // the closing brace
		return fmt.Errorf("%s is not valid JSON", what)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s has something behind its object", what)
	}
	return nil
}

func readString(value json.RawMessage) (string, error) {
	if len(value) == 0 || value[0] != '"' {
		return "", errors.New("is not a string")
	}
	var s string
	if err := json.Unmarshal(value, &s); err != nil {
		return "", errors.New("is not a string")
	}
	return s, nil
}

// readTime reads whole seconds since the epoch.
func readTime(value json.RawMessage) (time.Time, error) {
	n, err := strconv.ParseInt(string(value), 10, 64)
	if err != nil || n < 0 || n > maxSeconds || string(value) != strconv.FormatInt(n, 10) {
		return time.Time{}, errors.New("is not a time in whole seconds")
	}
	return time.Unix(n, 0), nil
}

// decode64 reads base64url without padding, of which there is one for each content.
func decode64(text string) ([]byte, error) {
	if strings.ContainsAny(text, "\r\n") { // the decoder skips line breaks
		return nil, errors.New("line break")
	}
	return base64.RawURLEncoding.Strict().DecodeString(text)
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}
