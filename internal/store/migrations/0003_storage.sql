-- What extension scripts were asked and answered (contract 42 section A.4).
CREATE TABLE script_calls (
	id            BIGINT NOT NULL PRIMARY KEY,
	invocation    TEXT   NOT NULL,
	hook          TEXT   NOT NULL,
	path          TEXT   NOT NULL,
	file_hash     TEXT   NOT NULL,
	call_key      TEXT   NOT NULL,
	owner_user    TEXT   NOT NULL, -- whom the call was about; both owners are empty if it was about nobody
	owner_project TEXT   NOT NULL,
	uid           BIGINT NOT NULL, -- who ran the script
	attempt       BIGINT NOT NULL,
	started_at    BIGINT NOT NULL,
	duration_ms   BIGINT NOT NULL,
	result        TEXT   NOT NULL,
	exit_status   BIGINT, -- NULL: it did not exit by itself
	term_signal   TEXT   NOT NULL,
	message       TEXT   NOT NULL,
	request       TEXT   NOT NULL, -- redacted
	stdout        TEXT   NOT NULL,
	stderr        TEXT   NOT NULL,
	stdout_bytes  BIGINT NOT NULL, -- what was written, of which the texts above are the beginning
	stderr_bytes  BIGINT NOT NULL
);
CREATE INDEX script_calls_hook ON script_calls (hook, id);
CREATE INDEX script_calls_failed ON script_calls (id) WHERE result <> 'ok';
CREATE INDEX script_calls_started ON script_calls (started_at);

-- What the drives hold, as measured last.
CREATE TABLE drive_usage (
	pgid        TEXT   NOT NULL PRIMARY KEY,
	bytes       BIGINT NOT NULL CHECK (bytes >= 0),
	files       BIGINT NOT NULL CHECK (files >= 0),
	method      TEXT   NOT NULL,
	measured_at BIGINT NOT NULL, -- 0: never
	tried_at    BIGINT NOT NULL,
	misses      BIGINT NOT NULL, -- failures since the last success
	last_error  TEXT   NOT NULL
);

-- What Core was told last, for each scope. Core keys scopes by owner and scope alone (contract 30 section 3).
CREATE TABLE usage_reports (
	owner_user    TEXT   NOT NULL,
	owner_project TEXT   NOT NULL,
	scope         TEXT   NOT NULL,
	category      TEXT   NOT NULL,
	units         BIGINT NOT NULL CHECK (units >= 0),
	reported_at   BIGINT NOT NULL, -- 0: Core has never confirmed a report
	locked        BIGINT NOT NULL, -- Core's hint in the last answer
	refusals      BIGINT NOT NULL, -- since the last success
	next_at       BIGINT NOT NULL, -- after a refusal: not before
	last_error    TEXT   NOT NULL,
	PRIMARY KEY (owner_user, owner_project, scope),
	CHECK ((owner_user = '') <> (owner_project = ''))
);

-- What was last done about the quota of a drive by a hook of the site.
CREATE TABLE drive_quotas (
	pgid       TEXT   NOT NULL PRIMARY KEY,
	applied    TEXT   NOT NULL, -- digest of the request that succeeded last, empty: none
	wanted     TEXT   NOT NULL, -- digest of the request that is being tried
	bytes      BIGINT NOT NULL, -- of the request that succeeded last
	locked     BIGINT NOT NULL,
	removed    BIGINT NOT NULL, -- the site was told that the drive has no allocation any more
	applied_at BIGINT NOT NULL, -- 0: never
	attempts   BIGINT NOT NULL, -- failures since the request changed
	since      BIGINT NOT NULL, -- when wanted became what it is
	next_at    BIGINT,          -- NULL: waits for an operator
	last_error TEXT   NOT NULL
);

-- Scans of directories that instances do for us, and where each goes on.
CREATE TABLE usage_scans (
	pgid        TEXT   NOT NULL PRIMARY KEY,
	scan_state  BLOB   NOT NULL,
	uid         BIGINT NOT NULL, -- who has it
	lease_until BIGINT NOT NULL,
	updated_at  BIGINT NOT NULL
);
