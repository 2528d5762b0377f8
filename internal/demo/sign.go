package demo

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// browserKey signs what the tour asks for, as the web client does (contract 01 section 7): the tour is its user's browser. It
// is written without the provider's code for the same.
type browserKey struct {
	private     *rsa.PrivateKey
	pem         string
	fingerprint string
	made        int // intents; no two of the same second are alike
}

// signedCalls are the names of the calls that the tour makes.
var signedCalls = map[string]string{
	"GET /api/files/browse": "files.browse", "POST /api/files/upload": "files.createUpload", "POST /api/files/download": "files.createDownload",
	"POST /api/files/copy": "files.copy", "POST /api/files/trash": "files.trash", "POST /api/files/emptyTrash": "files.emptyTrash",
	"POST /api/jobs": "jobs.create",
}

func newBrowserKey() (*browserKey, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(der)
	return &browserKey{
		private: key, pem: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})),
		fingerprint: "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:]),
	}, nil
}

// intent signs a call; it is "" without a key and for calls without a name.
func (k *browserKey) intent(call, user string) (string, error) {
	if k == nil || call == "" {
		return "", nil
	}
	now := time.Now().Unix()
	k.made++
	return jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.MapClaims{
		"iat": now, "exp": now + 30 + int64(k.made%30), "call": call, "username": user, "project": nil,
	}).SignedString(k.private)
}

// nameOf is the name of a call by method and path.
func nameOf(method, target string) string {
	path, _, _ := strings.Cut(target, "?")
	return signedCalls[method+" "+path]
}

// give uploads the key, as a page of Core does, and gives the address where the user is to prove who they are.
func (t *tour) give(ctx context.Context, address string) (string, error) {
	body, err := json.Marshal(map[string]string{"publicKey": t.key.pem})
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Origin", t.core)
	res, err := t.http.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		return "", err
	}
	var answer struct{ RedirectTo string }
	if err := json.Unmarshal(data, &answer); err != nil || res.StatusCode != http.StatusOK || answer.RedirectTo == "" {
		return "", fmt.Errorf("the provider did not take the key: %d %s", res.StatusCode, data)
	}
	return answer.RedirectTo, nil
}
