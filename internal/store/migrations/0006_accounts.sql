-- The Slurm account of a workspace in a machine category. It is found once and kept; an account belongs to one workspace.
CREATE TABLE slurm_accounts (
	owner_user    TEXT   NOT NULL,
	owner_project TEXT   NOT NULL,
	category      TEXT   NOT NULL,
	account       TEXT   NOT NULL,
	created_at    BIGINT NOT NULL,
	PRIMARY KEY (owner_user, owner_project, category),
	CHECK ((owner_user = '') <> (owner_project = ''))
);
CREATE INDEX slurm_accounts_account ON slurm_accounts (account);

-- Accounts in Slurm that this module manages: those it made, and those an operator handed over.
CREATE TABLE slurm_managed (
	account TEXT   NOT NULL PRIMARY KEY,
	adopted BIGINT NOT NULL,
	at      BIGINT NOT NULL
);

-- Members of accounts that this module has put there, or has told the site's script of. Only these are ever removed.
CREATE TABLE slurm_members (
	account    TEXT   NOT NULL,
	local_name TEXT   NOT NULL,
	user_name  TEXT   NOT NULL,
	uid        BIGINT NOT NULL,
	member_role TEXT NOT NULL,
	PRIMARY KEY (account, local_name)
);

-- How far accounts are from what they should be: by account for sacctmgr, by request for the scripts of the site.
CREATE TABLE slurm_work (
	work_key   TEXT   NOT NULL PRIMARY KEY,
	account    TEXT   NOT NULL,
	applied    TEXT   NOT NULL, -- digest of what was done last, empty: nothing
	wanted     TEXT   NOT NULL, -- digest of what is being tried
	minutes    BIGINT NOT NULL, -- the limit that was set last, -1: none
	locked     BIGINT NOT NULL,
	applied_at BIGINT NOT NULL, -- 0: never
	attempts   BIGINT NOT NULL, -- failures since wanted changed
	since      BIGINT NOT NULL, -- when wanted became what it is
	next_at    BIGINT,          -- NULL: waits for an operator
	last_error TEXT   NOT NULL
);
CREATE INDEX slurm_work_account ON slurm_work (account);

-- Runs of jobs as Slurm's accounting told of them last, and whom each was charged to. rate is in units of the category.
-- Runs that ended long ago are removed; what they used is in compute_usage.
CREATE TABLE compute_runs (
	run_key       TEXT   NOT NULL PRIMARY KEY,
	account       TEXT   NOT NULL,
	owner_user    TEXT   NOT NULL,
	owner_project TEXT   NOT NULL,
	category      TEXT   NOT NULL,
	rate          BIGINT NOT NULL CHECK (rate >= 0),
	seconds       BIGINT NOT NULL CHECK (seconds >= 0),
	ended_at      BIGINT NOT NULL, -- 0: has not ended
	CHECK ((owner_user = '') <> (owner_project = ''))
);
CREATE INDEX compute_runs_ended ON compute_runs (ended_at);

-- The ledger: what workspaces have used since the beginning, and what Core was told last.
CREATE TABLE compute_usage (
	owner_user    TEXT   NOT NULL,
	owner_project TEXT   NOT NULL,
	category      TEXT   NOT NULL,
	minutes       BIGINT NOT NULL CHECK (minutes >= 0), -- units times minutes, whole
	rest          BIGINT NOT NULL CHECK (rest >= 0 AND rest < 60), -- and units times seconds
	counted_at    BIGINT NOT NULL,
	units         BIGINT NOT NULL CHECK (units >= 0), -- what Core was told
	reported_at   BIGINT NOT NULL, -- 0: Core has never confirmed a report
	locked        BIGINT NOT NULL, -- Core's hint in the last answer
	refusals      BIGINT NOT NULL,
	next_at       BIGINT NOT NULL,
	last_error    TEXT   NOT NULL,
	PRIMARY KEY (owner_user, owner_project, category),
	CHECK ((owner_user = '') <> (owner_project = ''))
);

-- Accounts whose whole history was counted once.
CREATE TABLE compute_accounts (
	account   TEXT   NOT NULL PRIMARY KEY,
	filled_at BIGINT NOT NULL
);
