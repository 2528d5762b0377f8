package auth

import (
	"crypto/rsa"
	"fmt"
	"os"
)

// ReadKeys reads all public keys of Core from the given files, in any of the shapes of [ParsePublicKeys].
func ReadKeys(files []string) ([]*rsa.PublicKey, error) {
	var keys []*rsa.PublicKey
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read a public key of Core: %w", err)
		}
		found, err := ParsePublicKeys(data)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		keys = append(keys, found...)
	}
	return keys, nil
}
