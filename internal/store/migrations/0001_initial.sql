-- The common dialect of the migrations: TEXT, BIGINT (also for times in milliseconds and for booleans) and BLOB, which
-- becomes BYTEA on PostgreSQL. No DEFAULT that one engine spells differently, no sequence: see counters.

CREATE TABLE counters (
	name  TEXT   NOT NULL PRIMARY KEY,
	value BIGINT NOT NULL
);

CREATE TABLE settings (
	name  TEXT NOT NULL PRIMARY KEY,
	value TEXT NOT NULL
);

-- UCloud user <-> local account. A removed row is kept for audit; only the others are unique.
CREATE TABLE mappings (
	id           BIGINT NOT NULL PRIMARY KEY,
	user_name    TEXT   NOT NULL,
	uid          BIGINT NOT NULL CHECK (uid > 0 AND uid < 4294967295), -- never root, never (uid_t)-1
	local_name   TEXT   NOT NULL,
	state        TEXT   NOT NULL CHECK (state IN ('pending', 'approved', 'active', 'expired', 'removed')),
	method       TEXT   NOT NULL,
	actor        TEXT   NOT NULL,
	created_at   BIGINT NOT NULL,
	updated_at   BIGINT NOT NULL,
	approved_at  BIGINT,
	expires_at   BIGINT,
	last_seen_at BIGINT
);
CREATE UNIQUE INDEX mappings_live_user ON mappings (user_name) WHERE state <> 'removed';
CREATE UNIQUE INDEX mappings_live_uid ON mappings (uid) WHERE state <> 'removed';

CREATE TABLE tickets (
	hash       BLOB   NOT NULL PRIMARY KEY,
	user_name  TEXT   NOT NULL,
	state      TEXT   NOT NULL CHECK (state IN ('open', 'used', 'superseded', 'rejected', 'expired')),
	created_at BIGINT NOT NULL,
	expires_at BIGINT NOT NULL,
	closed_at  BIGINT,
	uid        BIGINT,
	actor      TEXT   NOT NULL,
	message    TEXT   NOT NULL
);
CREATE INDEX tickets_open ON tickets (user_name, created_at) WHERE state = 'open';

-- Users that Core itself has named. Only these may be approved or registered.
CREATE TABLE seen_users (
	user_name  TEXT   NOT NULL PRIMARY KEY,
	first_seen BIGINT NOT NULL,
	last_seen  BIGINT NOT NULL
);

-- What must still reach Core. head marks the oldest entry of a key, the only one that may be delivered; so the next
-- delivery is found without looking at the rest of a long queue.
CREATE TABLE outbox (
	id         BIGINT NOT NULL PRIMARY KEY,
	kind       TEXT   NOT NULL,
	entry_key  TEXT   NOT NULL,
	payload    BLOB   NOT NULL,
	state      TEXT   NOT NULL CHECK (state IN ('queued', 'suspect')),
	head       BIGINT NOT NULL,
	begun      BIGINT NOT NULL,
	attempts   BIGINT NOT NULL,
	next_at    BIGINT, -- NULL: waits for an operator
	created_at BIGINT NOT NULL,
	last_error TEXT   NOT NULL
);
CREATE UNIQUE INDEX outbox_head ON outbox (entry_key) WHERE head = 1;
CREATE INDEX outbox_key ON outbox (entry_key, id);
CREATE INDEX outbox_due ON outbox (next_at, id) WHERE head = 1;
CREATE INDEX outbox_begun ON outbox (id) WHERE begun = 1;

CREATE TABLE wallets (
	owner_user    TEXT   NOT NULL,
	owner_project TEXT   NOT NULL,
	category      TEXT   NOT NULL,
	quota         BIGINT NOT NULL,
	total_usage   BIGINT NOT NULL,
	retired_usage BIGINT NOT NULL,
	locked        BIGINT NOT NULL,
	is_allocator  BIGINT NOT NULL,
	last_update   BIGINT NOT NULL,
	PRIMARY KEY (owner_user, owner_project, category),
	CHECK ((owner_user = '') <> (owner_project = ''))
);

CREATE TABLE projects (
	id          TEXT   NOT NULL PRIMARY KEY,
	modified_at BIGINT NOT NULL,
	document    TEXT   NOT NULL
);
CREATE TABLE project_members (
	project_id TEXT NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
	user_name  TEXT NOT NULL,
	PRIMARY KEY (project_id, user_name)
);
CREATE INDEX project_members_user ON project_members (user_name);

CREATE TABLE project_groups (
	project_id TEXT   NOT NULL PRIMARY KEY,
	gid        BIGINT NOT NULL CHECK (gid > 0 AND gid < 4294967295),
	group_name TEXT   NOT NULL
);
CREATE UNIQUE INDEX project_groups_gid ON project_groups (gid);

CREATE TABLE categories (
	name     TEXT NOT NULL PRIMARY KEY,
	document TEXT NOT NULL
);
CREATE TABLE declared_products (
	category    TEXT   NOT NULL PRIMARY KEY,
	hash        TEXT   NOT NULL,
	declared_at BIGINT NOT NULL
);

CREATE TABLE replay_users (
	user_name TEXT NOT NULL PRIMARY KEY
);

CREATE TABLE drives (
	pgid          TEXT   NOT NULL PRIMARY KEY, -- providerGeneratedId
	drive_id      TEXT   NOT NULL,             -- Core's id, empty until registered
	owner_user    TEXT   NOT NULL,
	owner_project TEXT   NOT NULL,
	category      TEXT   NOT NULL,
	product       TEXT   NOT NULL,
	locator       TEXT   NOT NULL,
	title         TEXT   NOT NULL,
	path          TEXT   NOT NULL,
	read_only     BIGINT NOT NULL,
	state         TEXT   NOT NULL CHECK (state IN ('desired', 'prepared', 'registering', 'registered', 'suspect', 'failed')),
	last_error    TEXT   NOT NULL,
	updated_at    BIGINT NOT NULL,
	CHECK ((owner_user = '') <> (owner_project = ''))
);
CREATE UNIQUE INDEX drives_id ON drives (drive_id) WHERE drive_id <> '';
CREATE INDEX drives_owner ON drives (owner_user, owner_project);

CREATE TABLE tokens (
	hash            BLOB   NOT NULL PRIMARY KEY, -- SHA-256; the token itself is never stored
	purpose         TEXT   NOT NULL,
	user_name       TEXT   NOT NULL,
	object          TEXT   NOT NULL,
	created_at      BIGINT NOT NULL,
	expires_at      BIGINT NOT NULL,
	idle_ms         BIGINT NOT NULL,
	first_use_by    BIGINT,
	used_at         BIGINT,
	uses_left       BIGINT NOT NULL,
	ends_at         BIGINT NOT NULL, -- the earliest of the limits above, for the purge
	data            BLOB   NOT NULL
);
CREATE INDEX tokens_end ON tokens (ends_at);
CREATE INDEX tokens_object ON tokens (purpose, object);
CREATE INDEX tokens_user ON tokens (user_name, purpose);
