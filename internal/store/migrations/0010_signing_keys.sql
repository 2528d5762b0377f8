-- Public keys with which the browsers of users sign their requests (contract 01 section 7). A key that was uploaded is
-- pending and verifies nothing until the login that follows has succeeded; one for which that did not happen is deleted.
-- What has been active, or was revoked by somebody, stays on record for a while.
CREATE TABLE signing_keys (
	id           TEXT   NOT NULL PRIMARY KEY,
	user_name    TEXT   NOT NULL,
	public_key   BLOB   NOT NULL, -- SubjectPublicKeyInfo, DER
	fingerprint  TEXT   NOT NULL,
	algorithm    TEXT   NOT NULL,
	session      BLOB   NOT NULL, -- SHA-256 of the token of the upload
	state        TEXT   NOT NULL CHECK (state IN ('pending', 'active', 'expired', 'revoked')),
	created_at   BIGINT NOT NULL,
	activated_at BIGINT,
	expires_at   BIGINT NOT NULL, -- pending: when the upload is forgotten; active: when the key ends
	ended_at     BIGINT,
	uid          BIGINT CHECK (uid > 0 AND uid < 4294967295), -- the account for which it was activated
	proof        TEXT   NOT NULL, -- how the user proved who they are
	actor        TEXT   NOT NULL, -- who ended it, and why
	barred       BIGINT NOT NULL, -- somebody revoked the key itself: this user cannot bring it back
	CHECK ((state = 'active') <= (activated_at IS NOT NULL AND uid IS NOT NULL)),
	CHECK ((state IN ('pending', 'active')) = (ended_at IS NULL))
);
CREATE UNIQUE INDEX signing_keys_active ON signing_keys (user_name, fingerprint) WHERE state = 'active';
CREATE UNIQUE INDEX signing_keys_session ON signing_keys (session);
CREATE INDEX signing_keys_user ON signing_keys (user_name, created_at);
CREATE INDEX signing_keys_end ON signing_keys (expires_at) WHERE state IN ('pending', 'active');

-- The key that came with the press of "Connect" that a ticket stands for; empty: none.
ALTER TABLE tickets ADD COLUMN key_id TEXT NOT NULL DEFAULT '';
