package store

import "ucloud-im/internal/ident"

// OldestTokens are the tokens of a user for a purpose, the oldest first, at most limit of them.
func (tx *Tx) OldestTokens(user ident.UCloudUser, purpose string, limit int) ([]Token, error) {
	return list(tx, scanToken, "list tokens of a user",
		`SELECT `+tokenColumns+` FROM tokens WHERE user_name = ? AND purpose = ? ORDER BY created_at, hash LIMIT ?`,
		string(user), purpose, limit)
}
