-- Jobs (contract 20, 22). Core's id of a job is not the key: what an account claims about a job is kept apart from what
-- another account claims about the same, until Core has said whose it is.
CREATE TABLE jobs (
	job_key         BIGINT NOT NULL PRIMARY KEY,
	id              TEXT   NOT NULL, -- Core's
	uid             BIGINT NOT NULL CHECK (uid > 0 AND uid < 4294967295), -- whose process it is: the kernel's answer
	created_by      TEXT   NOT NULL,
	owner_user      TEXT   NOT NULL,
	owner_project   TEXT   NOT NULL,
	engine          TEXT   NOT NULL CHECK (engine IN ('slurm', 'local')),
	submission      TEXT   NOT NULL CHECK (submission IN ('begun', 'submitted', 'refused', 'lost')),
	attempt         BIGINT NOT NULL, -- counts leaves to submit; reports of older ones are refused
	until_at        BIGINT NOT NULL, -- end of the last leave
	engine_id       TEXT   NOT NULL, -- empty until it is known
	pgid            TEXT   NOT NULL,
	account         TEXT   NOT NULL,
	slurm_partition TEXT   NOT NULL,
	qos             TEXT   NOT NULL,
	product         TEXT   NOT NULL,
	category        TEXT   NOT NULL,
	state           TEXT   NOT NULL CHECK (state IN ('IN_QUEUE', 'RUNNING', 'SUSPENDED', 'SUCCESS', 'FAILURE', 'EXPIRED')),
	engine_state    TEXT   NOT NULL, -- as the engine called it last
	core_known      BIGINT NOT NULL, -- 0: Core has not been asked whose it is; 1: it was the right answer; 2: and it stayed
	core_misses     BIGINT NOT NULL, -- times in a row that Core did not know it
	core_checked_at BIGINT NOT NULL,
	deliver_after   BIGINT NOT NULL, -- no updates before
	outside         BIGINT NOT NULL, -- submitted without us, registered at Core by us
	ending          BIGINT NOT NULL, -- somebody has asked for the end
	name            TEXT   NOT NULL,
	app_name        TEXT   NOT NULL,
	app_version     TEXT   NOT NULL,
	app_type        TEXT   NOT NULL,
	replicas        BIGINT NOT NULL,
	port            BIGINT NOT NULL,
	limit_ms        BIGINT NOT NULL, -- 0: not known
	folder          TEXT   NOT NULL, -- local path
	output_folder   TEXT   NOT NULL, -- the same as Core calls it
	targets         TEXT   NOT NULL, -- JSON
	nodes           TEXT   NOT NULL, -- JSON, by rank
	created_at      BIGINT NOT NULL,
	submitted_at    BIGINT NOT NULL,
	started_at      BIGINT NOT NULL,
	ended_at        BIGINT NOT NULL,
	seen_at         BIGINT NOT NULL, -- when the engine spoke of it last
	missing_since   BIGINT NOT NULL, -- 0: the engine knows it
	missing_rounds  BIGINT NOT NULL,
	message         TEXT   NOT NULL, -- what was told last
	document        TEXT   NOT NULL, -- as Core has sent it, without secrets
	CHECK ((owner_user = '') <> (owner_project = '')),
	CHECK (submission <> 'submitted' OR engine_id <> '')
);
CREATE UNIQUE INDEX jobs_id ON jobs (id, uid);
CREATE UNIQUE INDEX jobs_engine ON jobs (engine, engine_id, uid) WHERE engine_id <> '';
CREATE INDEX jobs_open ON jobs (submission, state, job_key);
CREATE INDEX jobs_ended ON jobs (ended_at) WHERE ended_at > 0;

-- What Core is to be told about jobs, in this order for each job.
CREATE TABLE job_updates (
	id         BIGINT NOT NULL PRIMARY KEY,
	job_key    BIGINT NOT NULL,
	payload    TEXT   NOT NULL, -- JSON
	created_at BIGINT NOT NULL
);
CREATE INDEX job_updates_job ON job_updates (job_key, id);
