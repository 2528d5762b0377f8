package store

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

const settingReplayFrom = "events.replayFrom"

// Setting reads a named value, such as "provider.id".
func (tx *Tx) Setting(key string) (string, error) {
	return one(tx, value[string], "read setting "+key, `SELECT value FROM settings WHERE name = ?`, key)
}

// SetSetting writes a named value.
func (tx *Tx) SetSetting(key, val string) error {
	_, err := tx.exec("write setting "+key,
		`INSERT INTO settings (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value`, key, val)
	return err
}

// SeeUser notes that Core has named the user, in an event or a call. Only users and projects that Core has named may
// be approved or registered: others end the Core process (contract 05 C6).
func (tx *Tx) SeeUser(user ident.UCloudUser, at time.Time) error {
	_, err := tx.exec("note user",
		`INSERT INTO seen_users (user_name, first_seen, last_seen) VALUES (?, ?, ?)
		 ON CONFLICT (user_name) DO UPDATE SET last_seen = excluded.last_seen WHERE seen_users.last_seen < excluded.last_seen`,
		string(user), toMS(at), toMS(at))
	return err
}

// UserSeen tells whether Core has ever named the user.
func (tx *Tx) UserSeen(user ident.UCloudUser) (bool, error) {
	n, err := one(tx, value[int64], "look up user", `SELECT count(*) FROM seen_users WHERE user_name = ?`, string(user))
	return n > 0, err
}

// AddReplayUser notes that Core must be asked to send everything about a user again (contract 31 section 3.6), once a
// session is up. Adding a user twice is no error.
func (tx *Tx) AddReplayUser(user ident.UCloudUser) error {
	_, err := tx.exec("note replay of user",
		`INSERT INTO replay_users (user_name) VALUES (?) ON CONFLICT DO NOTHING`, string(user))
	return err
}

// ReplayUsers are the users to ask for, in no particular order.
func (tx *Tx) ReplayUsers() ([]ident.UCloudUser, error) {
	return list(tx, value[ident.UCloudUser], "list replays", `SELECT user_name FROM replay_users`)
}

// RemoveReplayUser forgets the note; no error if there is none.
func (tx *Tx) RemoveReplayUser(user ident.UCloudUser) error {
	_, err := tx.exec("forget replay of user", `DELETE FROM replay_users WHERE user_name = ?`, string(user))
	return err
}

// ReplayFrom is the time of the last event that was processed, zero for "everything" (contract 31 section 3.1). It is
// written in the transaction that stores the event.
func (tx *Tx) ReplayFrom() (time.Time, error) {
	text, err := tx.Setting(settingReplayFrom)
	if errors.Is(err, ErrNotFound) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, err
	}
	ms, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("read replay-from: %w", err)
	}
	return fromMS(ms), nil
}

// SetReplayFrom moves the position in the event stream. The zero time asks for everything again.
func (tx *Tx) SetReplayFrom(t time.Time) error {
	return tx.SetSetting(settingReplayFrom, strconv.FormatInt(toMS(t), 10))
}

// PutCategory stores a product category as Core has sent it.
func (tx *Tx) PutCategory(name string, doc providerapi.ProductCategory) error {
	text, err := encode(doc)
	if err != nil {
		return err
	}
	_, err = tx.exec("store category", `INSERT INTO categories (name, document) VALUES (?, ?)
		ON CONFLICT (name) DO UPDATE SET document = excluded.document`, name, text)
	return err
}

// Category is the category as Core has sent it last.
func (tx *Tx) Category(name string) (providerapi.ProductCategory, error) {
	text, err := one(tx, value[string], "look up category "+name, `SELECT document FROM categories WHERE name = ?`, name)
	if err != nil {
		return providerapi.ProductCategory{}, err
	}
	return decode[providerapi.ProductCategory](text)
}

// Declared is the hash of the products that Core has accepted last for a category (contract 05 B7).
func (tx *Tx) Declared(category string) (hash string, err error) {
	return one(tx, value[string], "look up declared category "+category,
		`SELECT hash FROM declared_products WHERE category = ?`, category)
}

// SetDeclared notes that Core answered 200 to the products of a category.
func (tx *Tx) SetDeclared(category, hash string, at time.Time) error {
	_, err := tx.exec("note declared category",
		`INSERT INTO declared_products (category, hash, declared_at) VALUES (?, ?, ?)
		 ON CONFLICT (category) DO UPDATE SET hash = excluded.hash, declared_at = excluded.declared_at`,
		category, hash, toMS(at))
	return err
}
