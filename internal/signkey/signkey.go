// Package signkey reads the public keys with which users' browsers sign their intents (contract 01 sections 7.2 and
// 8.12), and says what they are.
//
// Trust: a key comes from the internet. Reading one says nothing about whose it is; it only makes sure that the key is
// of a kind that cannot be broken or confused: RSA of at least 2048 bits with a sane exponent, or Ed25519, in the one
// encoding that exists for it, so that two texts of the same key have the same fingerprint (TestOneEncodingPerKey).
//
// The package is linked into instances, so it brings nothing but the standard library's parsers.
package signkey

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"strings"

	"ucloud-im/internal/failure"
)

// The algorithms of keys, by the name that a signature's header has for them (RFC 7518, RFC 8037).
const (
	RS256 = "RS256"
	EdDSA = "EdDSA"
)

const (
	// MaxText is the longest text of a key that is looked at. A key of 8192 bits has 1.4 kB.
	MaxText = 8 << 10

	minBits = 2048
	maxBits = 8192 // verifying costs time that grows with the square
	// minExponent is the only exponent that browsers and tools have been making for decades (F4, FIPS 186-5 section
	// A.1.1 demands more than 2^16). 3 is refused although our own check of the padding is strict: with such a key
	// forgeries verify wherever the check is lax, and a browser that makes one is not the user's browser.
	minExponent = 65537
	maxExponent = 1<<31 - 1
)

// Key is a public key that may verify intents. The zero value is none.
type Key struct {
	public crypto.PublicKey
	der    []byte
}

// Parse reads the text of a key: one PEM block "PUBLIC KEY" with a SubjectPublicKeyInfo, with any line ends, and with
// nothing but white space around it.
func Parse(text string) (Key, error) {
	if len(text) > MaxText {
		return Key{}, refuse("it is longer than %d bytes", MaxText)
	}
	text = strings.TrimSpace(strings.ReplaceAll(text, "\r\n", "\n"))
	if !strings.HasPrefix(text, "-----BEGIN ") {
		return Key{}, refuse("it is not in PEM form (-----BEGIN PUBLIC KEY-----)")
	}
	block, rest := pem.Decode([]byte(text + "\n"))
	switch {
	case block == nil:
		return Key{}, refuse("it is not in PEM form (-----BEGIN PUBLIC KEY-----)")
	case strings.Contains(block.Type, "PRIVATE"):
		return Key{}, refuse("it is a private key, which must stay where it was made")
	case block.Type != "PUBLIC KEY":
		return Key{}, refuse("its PEM block is not a PUBLIC KEY")
	case len(block.Headers) > 0:
		return Key{}, refuse("its PEM block has headers")
	case len(bytes.TrimSpace(rest)) > 0 || strings.Count(text, "-----BEGIN ") != 1:
		return Key{}, refuse("there is something beside the one PEM block")
	}
	return FromDER(block.Bytes)
}

// FromDER reads a SubjectPublicKeyInfo in DER.
func FromDER(der []byte) (Key, error) {
	if len(der) > MaxText {
		return Key{}, refuse("it is longer than %d bytes", MaxText)
	}
	public, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return Key{}, failure.Wrap(err, failure.Invalid, "The public key is not accepted: it cannot be read")
	}
	key, err := FromPublic(public)
	if err != nil {
		return Key{}, err
	}
	if !bytes.Equal(key.der, der) {
		return Key{}, refuse("it is not encoded as DER demands")
	}
	return key, nil
}

// Check tells whether an [*rsa.PublicKey] or [ed25519.PublicKey] may verify intents.
func Check(public crypto.PublicKey) error {
	switch k := public.(type) {
	case *rsa.PublicKey:
		return checkRSA(k)
	case ed25519.PublicKey:
		if len(k) != ed25519.PublicKeySize || smallOrder(k) {
			return refuse("it is not a usable point of Ed25519")
		}
		return nil
	}
	return refuse("it must be an RSA key of at least %d bits or an Ed25519 key", minBits)
}

// FromPublic takes what [Check] accepts.
func FromPublic(public crypto.PublicKey) (Key, error) {
	if err := Check(public); err != nil {
		return Key{}, err
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return Key{}, failure.Wrap(err, failure.Invalid, "The public key is not accepted: it cannot be encoded")
	}
	return Key{public: public, der: der}, nil
}

func checkRSA(k *rsa.PublicKey) error {
	if k == nil || k.N == nil {
		return refuse("it has no modulus")
	}
	switch bits := k.N.BitLen(); {
	case bits < minBits:
		return refuse("an RSA key must have at least %d bits, this one has %d", minBits, bits)
	case bits > maxBits:
		return refuse("an RSA key may have at most %d bits, this one has %d", maxBits, bits)
	case k.N.Bit(0) == 0:
		return refuse("its modulus is even")
	case k.E < minExponent || k.E > maxExponent || k.E%2 == 0:
		return refuse("its public exponent must be odd and between %d and %d", minExponent, maxExponent)
	}
	return nil
}

// smallOrder tells whether k is one of the few points for which signatures exist that verify for any message, so that
// everybody can sign. They are those of order 1, 2, 4 and 8, each with the encodings that decoders take for it.
func smallOrder(k ed25519.PublicKey) bool {
	for _, p := range smallPoints {
		if bytes.Equal(k[:31], p[:31]) && k[31]&0x7f == p[31] {
			return true
		}
	}
	return false
}

// smallPoints are the y coordinates of the points of small order, little-endian, without the sign of x.
var smallPoints = [...][32]byte{
	{}, // 0: order 4
	{0: 1},
	{ // order 8
		0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0,
		0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
	},
	{ // order 8
		0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f,
		0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
	},
	field(0xec), // p-1: order 2
	field(0xed), // p: 0 in another encoding
	field(0xee), // p+1: 1 in another encoding
}

// field is 2^255 - 19 with another last byte.
func field(last byte) [32]byte {
	var p [32]byte
	for i := range p {
		p[i] = 0xff
	}
	p[0], p[31] = last, 0x7f
	return p
}

// Public is an [*rsa.PublicKey] or [ed25519.PublicKey].
func (k Key) Public() crypto.PublicKey { return k.public }

// DER is the key as SubjectPublicKeyInfo.
func (k Key) DER() []byte { return bytes.Clone(k.der) }

// PEM is the key as text.
func (k Key) PEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.der}))
}

// Fingerprint is what people compare: "SHA256:" and the unpadded base64 of the SHA-256 of [Key.DER].
func (k Key) Fingerprint() string {
	sum := sha256.Sum256(k.der)
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// Algorithm is [RS256] or [EdDSA].
func (k Key) Algorithm() string {
	if _, ok := k.public.(ed25519.PublicKey); ok {
		return EdDSA
	}
	return RS256
}

// refuse is a refusal whose reason the user may see.
func refuse(format string, args ...any) error {
	return failure.New(failure.Invalid, "The public key is not accepted: %s", fmt.Sprintf(format, args...))
}
