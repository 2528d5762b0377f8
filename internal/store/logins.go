package store

import (
	"database/sql"
	"time"

	"ucloud-im/internal/ident"
)

// LoginStage is how far a login of a browser is.
type LoginStage string

// The stages. The last three are final.
const (
	LoginStarted   LoginStage = "started"   // the browser is at the identity provider
	LoginChecking  LoginStage = "checking"  // it has come back, and what it brought is being checked
	LoginProved    LoginStage = "proved"    // both accounts are known; the user has not agreed yet
	LoginAgreed    LoginStage = "agreed"    // the mapping is stored
	LoginCancelled LoginStage = "cancelled" // by the user
	LoginFailed    LoginStage = "failed"    // see Message
)

// Login is the way of one browser through a login (contract 03 section 7.8). Secrets are not stored, only their SHA-256.
type Login struct {
	StateHash  [32]byte
	CookieHash [32]byte
	Salt       []byte
	User       ident.UCloudUser // whom Core has named
	Key        string           // id of the signing key that came with it, "" for none
	Stage      LoginStage
	Issuer     string // from LoginProved on, as are the next three
	Subject    string
	UID        ident.UID
	LocalName  string
	Message    string // for the user, of LoginFailed
	CreatedAt  time.Time
	ExpiresAt  time.Time
}

const loginColumns = `state_hash, cookie_hash, salt, user_name, key_id, stage, issuer, subject, uid, local_name, message, created_at, expires_at`

func scanLogin(s scanner) (l Login, err error) {
	var state, cookie []byte
	var uid sql.NullInt64
	var created, expires int64
	if err = s.Scan(&state, &cookie, (*blob)(&l.Salt), &l.User, &l.Key, &l.Stage, &l.Issuer, &l.Subject, &uid, &l.LocalName, &l.Message,
		&created, &expires); err != nil {
		return l, err
	}
	if uid.Valid {
		l.UID = ident.UID(uid.Int64) //nolint:gosec // as it was stored
	}
	l.CreatedAt, l.ExpiresAt = fromMS(created), fromMS(expires)
	if l.StateHash, err = hashOf(state); err != nil {
		return l, err
	}
	l.CookieHash, err = hashOf(cookie)
	return l, err
}

// InsertLogin stores a login that begins.
func (tx *Tx) InsertLogin(l Login) error {
	return tx.execOne(ErrConflict, "store login",
		`INSERT INTO logins (`+loginColumns+`) VALUES (?, ?, ?, ?, ?, 'started', '', '', NULL, '', '', ?, ?) ON CONFLICT DO NOTHING`,
		l.StateHash[:], l.CookieHash[:], l.Salt, string(l.User), l.Key, toMS(l.CreatedAt), toMS(l.ExpiresAt))
}

// LoginByCookie finds the login of a browser, whether its time is over or not.
func (tx *Tx) LoginByCookie(hash [32]byte) (Login, error) {
	return one(tx, scanLogin, "look up login", `SELECT `+loginColumns+` FROM logins WHERE cookie_hash = ?`, hash[:])
}

// LoginByState finds the login to which an answer of the identity provider belongs.
func (tx *Tx) LoginByState(hash [32]byte) (Login, error) {
	return one(tx, scanLogin, "look up login", `SELECT `+loginColumns+` FROM logins WHERE state_hash = ?`, hash[:])
}

// MoveLogin takes a login from one stage to the next, which l.Stage names, with what is known then. A login that is not
// there, or in another stage, is [ErrConflict]: each step is taken once.
func (tx *Tx) MoveLogin(l Login, from LoginStage) error {
	uid := sql.NullInt64{Int64: int64(l.UID), Valid: l.UID != 0}
	return tx.execOne(ErrConflict, "change login",
		`UPDATE logins SET stage = ?, issuer = ?, subject = ?, uid = ?, local_name = ?, message = ?, expires_at = ?
		 WHERE state_hash = ? AND stage = ?`,
		string(l.Stage), l.Issuer, l.Subject, uid, l.LocalName, l.Message, toMS(l.ExpiresAt), l.StateHash[:], string(from))
}

// FailCheckingLogins ends the logins that were being checked when the process ended.
func (tx *Tx) FailCheckingLogins(message string) (int, error) {
	n, err := tx.exec("end interrupted logins", `UPDATE logins SET stage = 'failed', message = ? WHERE stage = 'checking'`, message)
	return int(n), err
}

// LoginsOf are the logins of a user, the newest first.
func (tx *Tx) LoginsOf(user ident.UCloudUser) ([]Login, error) {
	return list(tx, scanLogin, "list logins", `SELECT `+loginColumns+` FROM logins WHERE user_name = ? ORDER BY created_at DESC, state_hash`, string(user))
}

// CountLogins counts all logins.
func (tx *Tx) CountLogins() (int, error) {
	return one(tx, value[int], "count logins", `SELECT COUNT(*) FROM logins`)
}

// DeleteLogin forgets a login.
func (tx *Tx) DeleteLogin(state [32]byte) error {
	return tx.execOne(ErrNotFound, "remove login", `DELETE FROM logins WHERE state_hash = ?`, state[:])
}

// DeleteLoginsOf forgets all logins of a user.
func (tx *Tx) DeleteLoginsOf(user ident.UCloudUser) error {
	_, err := tx.exec("remove logins of user", `DELETE FROM logins WHERE user_name = ?`, string(user))
	return err
}

// PurgeLogins forgets the logins whose time is over.
func (tx *Tx) PurgeLogins(now time.Time) (int, error) {
	n, err := tx.exec("purge logins", `DELETE FROM logins WHERE expires_at <= ?`, toMS(now))
	return int(n), err
}

// Identity says whose an identity at an identity provider is.
type Identity struct {
	Issuer    string
	Subject   string
	User      ident.UCloudUser
	CreatedAt time.Time
}

const identityColumns = `issuer, subject, user_name, created_at`

func scanIdentity(s scanner) (i Identity, err error) {
	var created int64
	err = s.Scan(&i.Issuer, &i.Subject, &i.User, &created)
	i.CreatedAt = fromMS(created)
	return i, err
}

// IdentityBySubject finds whose an identity is.
func (tx *Tx) IdentityBySubject(issuer, subject string) (Identity, error) {
	return one(tx, scanIdentity, "look up identity", `SELECT `+identityColumns+` FROM identities WHERE issuer = ? AND subject = ?`, issuer, subject)
}

// IdentityOfUser finds the identity of a user.
func (tx *Tx) IdentityOfUser(user ident.UCloudUser) (Identity, error) {
	return one(tx, scanIdentity, "look up identity of user", `SELECT `+identityColumns+` FROM identities WHERE user_name = ?`, string(user))
}

// InsertIdentity stores whose an identity is. [ErrConflict] if the identity or the user has another one already; the
// constraints of the database decide that. The transaction stays usable.
func (tx *Tx) InsertIdentity(i Identity) error {
	return tx.execOne(ErrConflict, "store identity",
		`INSERT INTO identities (`+identityColumns+`) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING`,
		i.Issuer, i.Subject, string(i.User), toMS(i.CreatedAt))
}

// DeleteIdentity forgets whose an identity is. There may be none.
func (tx *Tx) DeleteIdentity(issuer, subject string) error {
	_, err := tx.exec("remove identity", `DELETE FROM identities WHERE issuer = ? AND subject = ?`, issuer, subject)
	return err
}
