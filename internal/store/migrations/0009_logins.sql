-- Logins of browsers that prove who a UCloud user is (contract 03 section 7.8): from the first page until some time after
-- the user has agreed. Neither the state that comes back from the identity provider nor the cookie of the browser is stored,
-- only their SHA-256; nonce and PKCE verifier follow from the cookie together with the salt.
CREATE TABLE logins (
	state_hash  BLOB   NOT NULL PRIMARY KEY,
	cookie_hash BLOB   NOT NULL,
	salt        BLOB   NOT NULL,
	user_name   TEXT   NOT NULL,
	key_id      TEXT   NOT NULL, -- signing key that the browser has uploaded; empty for none
	stage       TEXT   NOT NULL CHECK (stage IN ('started', 'checking', 'proved', 'agreed', 'cancelled', 'failed')),
	issuer      TEXT   NOT NULL, -- from here on: known once proved
	subject     TEXT   NOT NULL,
	uid         BIGINT,
	local_name  TEXT   NOT NULL,
	message     TEXT   NOT NULL, -- for the user, of a failed one
	created_at  BIGINT NOT NULL,
	expires_at  BIGINT NOT NULL
);
CREATE UNIQUE INDEX logins_cookie ON logins (cookie_hash);
CREATE INDEX logins_user ON logins (user_name, created_at);
CREATE INDEX logins_end ON logins (expires_at);

-- Whose identity at an identity provider it is. One identity belongs to one UCloud user and one user to one identity.
CREATE TABLE identities (
	issuer     TEXT   NOT NULL,
	subject    TEXT   NOT NULL,
	user_name  TEXT   NOT NULL,
	created_at BIGINT NOT NULL,
	PRIMARY KEY (issuer, subject)
);
CREATE UNIQUE INDEX identities_user ON identities (user_name);
