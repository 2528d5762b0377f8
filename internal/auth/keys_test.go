package auth

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"
)

// Making RSA keys is slow: each test key is made once.
var (
	coreKey  = sync.OnceValue(func() *rsa.PrivateKey { return newKey(2048) })
	nextKey  = sync.OnceValue(func() *rsa.PrivateKey { return newKey(2048) })
	otherKey = sync.OnceValue(func() *rsa.PrivateKey { return newKey(2048) })
)

func newKey(bits int) *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		panic(err)
	}
	return k
}

func pkixDER(pub any) []byte {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		panic(err)
	}
	return der
}

func certificate(key *rsa.PrivateKey) []byte {
	// Long expired on purpose: only the key in it counts.
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Unix(1, 0), NotAfter: time.Unix(2, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return der
}

func block(typ string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}))
}

func TestParsePublicKeys(t *testing.T) {
	t.Parallel()
	core, next := coreKey(), nextKey()
	der := pkixDER(&core.PublicKey)
	bare := base64.StdEncoding.EncodeToString(der)
	var wrapped strings.Builder
	for i := 0; i < len(bare); i += 64 {
		wrapped.WriteString(bare[i:min(len(bare), i+64)] + "\r\n")
	}
	pemKey := block("PUBLIC KEY", der)
	one, both := []*rsa.PublicKey{&core.PublicKey}, []*rsa.PublicKey{&core.PublicKey, &next.PublicKey}
	for _, tc := range []struct {
		name string
		in   string
		want []*rsa.PublicKey
	}{
		{"bare base64, as Core shows it", bare, one},
		{"bare base64, final newline", bare + "\n", one},
		{"bare base64, wrapped lines with CRLF", wrapped.String(), one},
		{"bare base64, padding lost", strings.TrimRight(bare, "="), one},
		{"byte order mark", "\ufeff" + bare, one},
		{"PEM", pemKey, one},
		{"PEM with CRLF, as a browser sends it", strings.ReplaceAll(pemKey, "\n", "\r\n"), one},
		{"PEM with text before it", "# key of Core\n" + pemKey, one},
		{"PEM, PKCS #1", block("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&core.PublicKey)), one},
		{"PEM certificate", block("CERTIFICATE", certificate(core)), one},
		{"two keys", pemKey + block("CERTIFICATE", certificate(next)), both},
		{"DER", string(der), one},
		{"DER certificate", string(certificate(core)), one},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := ParsePublicKeys([]byte(tc.in))
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != len(tc.want) {
				t.Fatalf("got %d keys, want %d", len(got), len(tc.want))
			}
			for i := range got {
				if !got[i].Equal(tc.want[i]) {
					t.Errorf("key %d is another one", i)
				}
			}
		})
	}
}

//attack:actor malicious identity
//attack:does Has a weak key installed as that of Core.
//attack:control Keys have at least 2048 bits and a sane exponent.
//attack:remove internal/auth/keys.go: case bits < minKeyBits: => case bits < 2:
func TestParsePublicKeysRefuses(t *testing.T) {
	t.Parallel()
	core := coreKey()
	der := pkixDER(&core.PublicKey)
	pemKey := block("PUBLIC KEY", der)
	weak := *newWeakKey()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, in, want string }{
		{"empty", " \n", "empty"},
		{"not a key", "hello world!", "neither base64 nor PEM"},
		{"base64 of something else", base64.StdEncoding.EncodeToString([]byte("hello world")), "neither a public key nor a certificate"},
		{"cut off", pemKey[:len(pemKey)-30], "damaged"},
		{"second key cut off", pemKey + pemKey[:len(pemKey)-30], "damaged after"},
		{"private key", block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(core)), "private key"},
		{"private key, PKCS #8", block("PRIVATE KEY", []byte("x")), "private key"},
		{"public key and private key", pemKey + block("PRIVATE KEY", []byte("x")), "private key"},
		{"1024 bits", block("PUBLIC KEY", pkixDER(&weak)), "1024 bits"},
		{"16384 bits", block("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 16383, 1), E: 65537})), "16384 bits"},
		{"exponent 3", block("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&rsa.PublicKey{N: core.N, E: 3})), "exponent"},
		{"even modulus", block("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&rsa.PublicKey{N: new(big.Int).SetBit(new(big.Int), 2047, 1), E: 65537})), "even modulus"},
		{"elliptic curve", block("PUBLIC KEY", pkixDER(&ec.PublicKey)), "another kind"},
		{"too long", strings.Repeat("A", maxKeyFile+1), "too many"},
		{"something after the DER", string(append(bytes.Clone(der), 0)), "neither"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			keys, err := ParsePublicKeys([]byte(tc.in))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %d keys, %v, want an error with %q", len(keys), err, tc.want)
			}
		})
	}
}

// newWeakKey makes a key that Go itself refuses to make.
func newWeakKey() *rsa.PublicKey {
	p, err := rand.Prime(rand.Reader, 512)
	if err != nil {
		panic(err)
	}
	q, err := rand.Prime(rand.Reader, 512)
	if err != nil {
		panic(err)
	}
	return &rsa.PublicKey{N: new(big.Int).Mul(p, q), E: 65537}
}

func FuzzParsePublicKeys(f *testing.F) {
	der := pkixDER(&coreKey().PublicKey)
	f.Add(der)
	f.Add([]byte(base64.StdEncoding.EncodeToString(der)))
	f.Add([]byte(block("PUBLIC KEY", der)))
	f.Add([]byte(block("CERTIFICATE", certificate(coreKey()))))
	f.Fuzz(func(t *testing.T, data []byte) {
		keys, err := ParsePublicKeys(data)
		if (err == nil) == (len(keys) == 0) {
			t.Fatalf("%d keys and %v", len(keys), err)
		}
		for _, k := range keys {
			if k.N.BitLen() < minKeyBits || k.E < minExponent {
				t.Fatalf("a weak key passed: %d bits, exponent %d", k.N.BitLen(), k.E)
			}
		}
	})
}
