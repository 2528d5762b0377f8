-- Interfaces of jobs that were opened, and the sessions of browsers that may use them (contract 21 section 5.2). Where an
-- interface is follows from the job and is not stored.
CREATE TABLE web_interfaces (
	id         TEXT   NOT NULL PRIMARY KEY,
	job_id     TEXT   NOT NULL,
	uid        BIGINT NOT NULL CHECK (uid > 0 AND uid < 4294967295), -- of the job,
	created_by TEXT   NOT NULL,                                      -- with its user
	job_rank   BIGINT NOT NULL,
	kind       TEXT   NOT NULL CHECK (kind IN ('WEB', 'VNC')),
	target     TEXT   NOT NULL,
	host       TEXT   NOT NULL, -- empty for a desktop
	tls        BIGINT NOT NULL,
	created_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX web_interfaces_host ON web_interfaces (host) WHERE host <> '';
CREATE UNIQUE INDEX web_interfaces_place ON web_interfaces (job_id, uid, job_rank, kind, target);

CREATE TABLE web_sessions (
	hash       BLOB   NOT NULL PRIMARY KEY, -- SHA-256 of the value of the cookie
	interface  TEXT   NOT NULL REFERENCES web_interfaces (id) ON DELETE CASCADE,
	user_name  TEXT   NOT NULL,
	created_at BIGINT NOT NULL,
	expires_at BIGINT NOT NULL
);
CREATE INDEX web_sessions_interface ON web_sessions (interface, created_at);
CREATE INDEX web_sessions_user ON web_sessions (user_name);
CREATE INDEX web_sessions_end ON web_sessions (expires_at);
