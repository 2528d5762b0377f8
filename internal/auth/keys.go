package auth

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"unicode"
)

const (
	// maxKeyFile bounds the text of keys; a 4096 bit key takes 800 bytes.
	maxKeyFile = 64 << 10
	// minKeyBits and maxKeyBits bound the modulus. Verifying takes time that grows with the square of the size.
	minKeyBits = 2048
	maxKeyBits = 8192
	// minExponent is the usual 65537; smaller ones are legal RSA, are never made by Core or a browser, and have a
	// history of attacks (FIPS 186-5 section 5.1 demands more than 2^16).
	minExponent = 1<<16 + 1
)

// ParsePublicKeys reads RSA public keys in all shapes in which providers have them: the base64 text that Core shows,
// with or without line breaks; PEM, as public key (PKIX or PKCS #1) or inside a certificate, several in one file;
// bare DER of either. A certificate counts for its key alone: dates, names and signature are not looked at. At least
// one key is found, or there is an error that says what is wrong in the words of an operator.
func ParsePublicKeys(data []byte) ([]*rsa.PublicKey, error) {
	keys, err := parsePublicKeys(data)
	if err != nil {
		return nil, fmt.Errorf("read public key: %w", err)
	}
	for _, k := range keys {
		if err := checkKey(k); err != nil {
			return nil, fmt.Errorf("read public key: %w", err)
		}
	}
	return keys, nil
}

func parsePublicKeys(data []byte) ([]*rsa.PublicKey, error) {
	if len(data) > maxKeyFile {
		return nil, fmt.Errorf("%d bytes are too many for a key", len(data))
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff")) // some editors begin a file so
	text := strings.TrimSpace(string(data))
	switch {
	case text == "":
		return nil, errors.New("the text is empty")
	case strings.Contains(text, "-----BEGIN"):
		return parsePEM([]byte(text))
	case len(data) > 1 && data[0] == 0x30 && data[1] >= 0x80: // a DER sequence of more than 127 bytes; not a text
		return parseOne(data)
	}
	compact := strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return -1
		}
		return r
	}, text)
	der, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(compact, "="))
	if err != nil {
		return nil, errors.New("the text is neither base64 nor PEM")
	}
	return parseOne(der)
}

func parsePEM(data []byte) ([]*rsa.PublicKey, error) {
	var keys []*rsa.PublicKey
	for {
		var block *pem.Block
		block, data = pem.Decode(data)
		if block == nil {
			break
		}
		if strings.Contains(block.Type, "PRIVATE KEY") {
			return nil, errors.New("it is a private key; the public key is needed, and the private one should not be here")
		}
		found, err := parseOne(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("PEM block %s: %w", block.Type, err)
		}
		keys = append(keys, found...)
	}
	if len(keys) == 0 {
		return nil, errors.New("the PEM text is damaged")
	}
	if bytes.Contains(data, []byte("-----BEGIN")) {
		return nil, errors.New("the PEM text is damaged after the first key")
	}
	return keys, nil
}

// parseOne reads a DER structure, whichever of the three it is.
func parseOne(der []byte) ([]*rsa.PublicKey, error) {
	if pub, err := x509.ParsePKIXPublicKey(der); err == nil {
		return asRSA(pub)
	}
	if pub, err := x509.ParsePKCS1PublicKey(der); err == nil {
		return asRSA(pub)
	}
	if cert, err := x509.ParseCertificate(der); err == nil {
		return asRSA(cert.PublicKey)
	}
	return nil, errors.New("it is neither a public key nor a certificate")
}

func asRSA(pub any) ([]*rsa.PublicKey, error) {
	key, ok := pub.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("it is a key of another kind (%T), RSA is needed", pub)
	}
	return []*rsa.PublicKey{key}, nil
}

func checkKey(k *rsa.PublicKey) error {
	switch bits := k.N.BitLen(); {
	case bits < minKeyBits:
		return fmt.Errorf("the key has %d bits, at least %d are needed", bits, minKeyBits)
	case bits > maxKeyBits:
		return fmt.Errorf("the key has %d bits, at most %d are accepted", bits, maxKeyBits)
	case k.E < minExponent || k.E%2 == 0:
		return fmt.Errorf("the key has the exponent %d, which is not safe", k.E)
	case k.N.Bit(0) == 0:
		return errors.New("the key has an even modulus")
	}
	return nil
}
