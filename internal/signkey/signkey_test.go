package signkey

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"math/big"
	"os/exec"
	"strings"
	"testing"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/testkit"
)

// modulus gives an odd number of the given size. Nothing here needs its factors.
func modulus(bits int) *big.Int {
	n := new(big.Int).Lsh(big.NewInt(3), uint(bits-2))
	return n.Add(n, big.NewInt(0x12345671))
}

func pemOf(t *testing.T, public any) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return block("PUBLIC KEY", der)
}

func block(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func good(t *testing.T) string {
	t.Helper()
	return pemOf(t, &rsa.PublicKey{N: modulus(2048), E: 65537})
}

func TestAcceptedKeys(t *testing.T) {
	t.Parallel()
	edKey, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaText := good(t)
	for _, tc := range []struct{ name, text, alg string }{
		{"as openssl writes it", rsaText, RS256},
		{"as browsers send it", strings.ReplaceAll(rsaText, "\n", "\r\n"), RS256},
		{"blanks around", "\n " + rsaText + "\n\n \r\n", RS256},
		{"without the last line end", strings.TrimSpace(rsaText), RS256},
		{"8192 bits", pemOf(t, &rsa.PublicKey{N: modulus(8192), E: 65537}), RS256},
		{"a larger exponent", pemOf(t, &rsa.PublicKey{N: modulus(2048), E: 1<<31 - 1}), RS256},
		{"Ed25519", pemOf(t, edKey), EdDSA},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			key, err := Parse(tc.text)
			if err != nil {
				t.Fatal(err)
			}
			if key.Algorithm() != tc.alg {
				t.Errorf("algorithm %s", key.Algorithm())
			}
			again, err := FromDER(key.DER())
			if err != nil || again.Fingerprint() != key.Fingerprint() {
				t.Errorf("the DER of the key is not the key: %v", err)
			}
			if other, err := Parse(key.PEM()); err != nil || other.Fingerprint() != key.Fingerprint() {
				t.Errorf("the PEM of the key is not the key: %v", err)
			}
		})
	}
}

//attack:actor internet
//attack:does Uploads an RSA key of 1024 or 2047 bits, whose private half can be computed.
//attack:control Keys for signed intents are RSA of at least 2048 bits.
//attack:remove internal/signkey/signkey.go: case bits < minBits: => case bits < 8:
//attack:actor internet
//attack:does Uploads an RSA key with exponent 1 (everybody can sign), 3 or an even one.
//attack:control The public exponent is odd and at least 65537.
//attack:remove internal/signkey/signkey.go: k.E < minExponent || k.E > maxExponent || k.E%2 == 0: => k.E < 0:
//attack:actor internet
//attack:does Uploads an Ed25519 point of small order, for which everybody can make signatures.
//attack:control Points of small order are no keys.
//attack:remove internal/signkey/signkey.go: || smallOrder(k) { => {
func TestRefusedKeys(t *testing.T) {
	t.Parallel()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	even := modulus(2048)
	even.Sub(even, big.NewInt(1))
	twisted := smallPoints[2]
	twisted[31] |= 0x80
	text := good(t)
	for _, tc := range []struct{ name, text, why string }{
		{"empty", "", "PEM"},
		{"bare base64", strings.Join(strings.Split(text, "\n")[1:3], ""), "PEM"},
		{"cut", text[:200], "PEM"},
		{"private", block("PRIVATE KEY", pkcs8), "private key"},
		{"certificate", block("CERTIFICATE", []byte{0x30, 0}), "not a PUBLIC KEY"},
		{"headers", strings.Replace(text, "-----\n", "-----\nA: b\n\n", 1), "headers"},
		{"two", text + text, "beside"},
		{"something before", "key:\n" + text, "PEM"},
		{"something after", text + "x", "beside"},
		{"P-256", pemOf(t, &ec.PublicKey), "Ed25519"},
		{"1024 bits", pemOf(t, &rsa.PublicKey{N: modulus(1024), E: 65537}), "2048"},
		{"2047 bits", pemOf(t, &rsa.PublicKey{N: modulus(2047), E: 65537}), "2048"},
		{"8193 bits", pemOf(t, &rsa.PublicKey{N: modulus(8193), E: 65537}), "8192"},
		{"even modulus", pemOf(t, &rsa.PublicKey{N: even, E: 65537}), "even"},
		{"exponent 1", pemOf(t, &rsa.PublicKey{N: modulus(2048), E: 1}), "exponent"},
		{"exponent 3", pemOf(t, &rsa.PublicKey{N: modulus(2048), E: 3}), "exponent"},
		{"even exponent", pemOf(t, &rsa.PublicKey{N: modulus(2048), E: 65538}), "exponent"},
		{"huge exponent", pemOf(t, &rsa.PublicKey{N: modulus(2048), E: 1<<33 + 1}), "exponent"},
		{"small order", pemOf(t, ed25519.PublicKey(smallPoints[1][:])), "usable point"},
		{"small order, other sign", pemOf(t, ed25519.PublicKey(twisted[:])), "usable point"},
		{"long", text + strings.Repeat(" ", MaxText), "longer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			_, err := Parse(tc.text)
			if !failure.Is(err, failure.Invalid) || !strings.Contains(failure.Why(err), tc.why) {
				t.Fatalf("got %v, want a refusal with %q", err, tc.why)
			}
		})
	}
}

//attack:actor internet
//attack:does Uploads a key that is known (revoked, or somebody else's) in another encoding, with another fingerprint.
//attack:control Only the one DER encoding of a key is accepted.
//attack:remove internal/signkey/signkey.go: if !bytes.Equal(key.der, der) { => if len(der) == 0 {
func TestOneEncodingPerKey(t *testing.T) {
	t.Parallel()
	key, err := Parse(good(t))
	if err != nil {
		t.Fatal(err)
	}
	der := key.DER()
	long := append([]byte{0x30, 0x83, 0x00}, der[2:]...) // 30 82 xx xx: the length in three bytes
	// The outer sequence with one more element, which parsers of X.509 pass over.
	more := append(key.DER(), 0x05, 0x00)
	binary.BigEndian.PutUint16(more[2:], uint16(len(more)-4))
	for name, other := range map[string][]byte{
		"length in more bytes": long,
		"something behind":     append(key.DER(), 0),
		"nothing":              {},
		"one more element":     more,
	} {
		if _, err := FromDER(other); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	edKey, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	withNull := append([]byte{0x30, 0x2c, 0x30, 0x07, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x05, 0x00, 0x03, 0x21, 0x00}, edKey...)
	if _, err := FromDER(withNull); err == nil {
		t.Error("an Ed25519 key with parameters is accepted")
	}
}

// TestFingerprintAsOthersComputeIt compares with openssl, if there is one.
func TestFingerprintAsOthersComputeIt(t *testing.T) {
	t.Parallel()
	text := good(t)
	key, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	testkit.Require(t, testkit.Component("openssl"))
	cmd := exec.Command("sh", "-c", "openssl pkey -pubin -outform DER | openssl dgst -sha256 -binary | openssl base64 | tr -d '='")
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if want := "SHA256:" + strings.TrimSpace(string(out)); key.Fingerprint() != want {
		t.Errorf("fingerprint %s, openssl says %s", key.Fingerprint(), want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(block("PUBLIC KEY", []byte{0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00}))
	f.Add(pemForFuzz(&rsa.PublicKey{N: modulus(2048), E: 65537}))
	f.Add(pemForFuzz(ed25519.PublicKey(make([]byte, 32))))
	f.Add("-----BEGIN PUBLIC KEY-----\r\nAAAA\r\n-----END PUBLIC KEY-----\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		key, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Parse(key.PEM())
		if err != nil || again.Fingerprint() != key.Fingerprint() {
			t.Fatalf("a key that was read cannot be written and read: %v", err)
		}
	})
}

func pemForFuzz(public any) string {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		panic(err)
	}
	return block("PUBLIC KEY", der)
}
