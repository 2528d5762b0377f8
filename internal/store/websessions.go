package store

import (
	"time"

	"ucloud-im/internal/ident"
)

// WebInterface is a web application or desktop of a job that somebody has opened.
type WebInterface struct {
	ID        string
	Job       string
	UID       ident.UID        // of the job
	CreatedBy ident.UCloudUser // of the job
	Rank      int
	Kind      string // WEB or VNC
	Target    string
	Host      string // empty for a desktop
	TLS       bool
	CreatedAt time.Time
}

// WebSession is the right of one browser to use an interface. The value of its cookie is not stored, only its SHA-256.
type WebSession struct {
	Hash      [32]byte
	Interface string
	User      ident.UCloudUser
	CreatedAt time.Time
	ExpiresAt time.Time
}

const (
	webInterfaceColumns = `id, job_id, uid, created_by, job_rank, kind, target, host, tls, created_at`
	webSessionColumns   = `hash, interface, user_name, created_at, expires_at`
)

func scanWebInterface(s scanner) (w WebInterface, err error) {
	var created, tls int64
	err = s.Scan(&w.ID, &w.Job, &w.UID, &w.CreatedBy, &w.Rank, &w.Kind, &w.Target, &w.Host, &tls, &created)
	w.TLS, w.CreatedAt = tls != 0, fromMS(created)
	return w, err
}

func scanWebSession(s scanner) (w WebSession, err error) {
	var hash []byte
	var created, expires int64
	if err = s.Scan(&hash, &w.Interface, &w.User, &created, &expires); err != nil {
		return w, err
	}
	w.CreatedAt, w.ExpiresAt = fromMS(created), fromMS(expires)
	w.Hash, err = hashOf(hash)
	return w, err
}

// PutWebInterface stores an interface, or how it speaks if it is known. An id or host of another one is [ErrConflict].
func (tx *Tx) PutWebInterface(w WebInterface) error {
	tls := int64(0)
	if w.TLS {
		tls = 1
	}
	return tx.execOne(ErrConflict, "store web interface",
		`INSERT INTO web_interfaces (`+webInterfaceColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		 ON CONFLICT (id) DO UPDATE SET tls = excluded.tls WHERE web_interfaces.job_id = excluded.job_id
		   AND web_interfaces.uid = excluded.uid AND web_interfaces.created_by = excluded.created_by
		   AND web_interfaces.job_rank = excluded.job_rank AND web_interfaces.kind = excluded.kind AND web_interfaces.target = excluded.target`,
		w.ID, w.Job, w.UID, string(w.CreatedBy), w.Rank, w.Kind, w.Target, w.Host, tls, toMS(w.CreatedAt))
}

// WebInterfaceByHost finds a web application by its host name.
func (tx *Tx) WebInterfaceByHost(host string) (WebInterface, error) {
	return one(tx, scanWebInterface, "look up web interface", `SELECT `+webInterfaceColumns+` FROM web_interfaces WHERE host = ? AND host <> ''`, host)
}

// WebInterfaceByID finds an interface.
func (tx *Tx) WebInterfaceByID(id string) (WebInterface, error) {
	return one(tx, scanWebInterface, "look up web interface", `SELECT `+webInterfaceColumns+` FROM web_interfaces WHERE id = ?`, id)
}

// WebInterfaces are all interfaces.
func (tx *Tx) WebInterfaces() ([]WebInterface, error) {
	return list(tx, scanWebInterface, "list web interfaces", `SELECT `+webInterfaceColumns+` FROM web_interfaces ORDER BY id`)
}

// WebInterfacesOf are the interfaces of a job.
func (tx *Tx) WebInterfacesOf(job string) ([]WebInterface, error) {
	return list(tx, scanWebInterface, "list web interfaces of a job", `SELECT `+webInterfaceColumns+` FROM web_interfaces WHERE job_id = ? ORDER BY id`, job)
}

// DeleteWebInterface removes an interface with its sessions.
func (tx *Tx) DeleteWebInterface(id string) error {
	return tx.execOne(ErrNotFound, "remove web interface", `DELETE FROM web_interfaces WHERE id = ?`, id)
}

// InsertWebSession stores a session of a browser.
func (tx *Tx) InsertWebSession(w WebSession) error {
	return tx.execOne(ErrConflict, "store web session",
		`INSERT INTO web_sessions (`+webSessionColumns+`) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
		w.Hash[:], w.Interface, string(w.User), toMS(w.CreatedAt), toMS(w.ExpiresAt))
}

// WebSessionsOf are the sessions of an interface that are not over, the newest first.
func (tx *Tx) WebSessionsOf(id string, now time.Time) ([]WebSession, error) {
	return list(tx, scanWebSession, "list web sessions",
		`SELECT `+webSessionColumns+` FROM web_sessions WHERE interface = ? AND expires_at > ? ORDER BY created_at DESC, hash`, id, toMS(now))
}

// WebSessionsOfUser are the sessions of a user.
func (tx *Tx) WebSessionsOfUser(user ident.UCloudUser) ([]WebSession, error) {
	return list(tx, scanWebSession, "list web sessions of a user", `SELECT `+webSessionColumns+` FROM web_sessions WHERE user_name = ? ORDER BY hash`, string(user))
}

// DeleteWebSession ends a session.
func (tx *Tx) DeleteWebSession(hash [32]byte) error {
	return tx.execOne(ErrNotFound, "remove web session", `DELETE FROM web_sessions WHERE hash = ?`, hash[:])
}

// PurgeWebSessions removes the sessions whose time is over and names their interfaces.
func (tx *Tx) PurgeWebSessions(now time.Time) ([]string, error) {
	return list(tx, value[string], "purge web sessions", `DELETE FROM web_sessions WHERE expires_at <= ? RETURNING interface`, toMS(now))
}
