-- Background tasks of users (contract 14). The server keeps them; instances do the work.
CREATE TABLE tasks (
	id          BIGINT NOT NULL PRIMARY KEY,
	uid         BIGINT NOT NULL CHECK (uid > 0 AND uid < 4294967295), -- who owns the task: the kernel's uid,
	user_name   TEXT   NOT NULL,                                      -- as this UCloud user
	submit_key  BLOB   NOT NULL, -- chosen by the instance, so that a repeated submission is the same task
	kind        TEXT   NOT NULL,
	title       TEXT   NOT NULL,
	icon        TEXT   NOT NULL,
	can_pause   BIGINT NOT NULL,
	can_cancel  BIGINT NOT NULL,
	params      BLOB   NOT NULL,
	saved       BLOB   NOT NULL, -- where the work continues after an interruption
	state       TEXT   NOT NULL CHECK (state IN ('queued', 'running', 'suspended', 'cancelled', 'failed', 'succeeded')),
	wanted      TEXT   NOT NULL CHECK (wanted IN ('', 'suspended', 'cancelled')),
	attempt     BIGINT NOT NULL, -- counts hand-outs to an instance; reports of older ones are refused
	losses      BIGINT NOT NULL, -- attempts in a row that ended with their process
	retries     BIGINT NOT NULL, -- attempts in a row that ended in a passing error
	retry_since BIGINT NOT NULL,
	not_before  BIGINT NOT NULL,
	created_at  BIGINT NOT NULL,
	updated_at  BIGINT NOT NULL, -- last sign of progress
	state_at    BIGINT NOT NULL, -- since when it is in its state
	body        TEXT   NOT NULL,
	progress    TEXT   NOT NULL,
	percent     BIGINT NOT NULL, -- hundredths; negative: not known
	core_state  TEXT   NOT NULL CHECK (core_state IN ('none', 'wanted', 'known', 'closed')),
	core_id     BIGINT
);
CREATE UNIQUE INDEX tasks_submit ON tasks (uid, submit_key);
CREATE UNIQUE INDEX tasks_core ON tasks (core_id) WHERE core_id IS NOT NULL;
CREATE INDEX tasks_open ON tasks (uid, state, not_before, id) WHERE state IN ('queued', 'running', 'suspended');
CREATE INDEX tasks_ended ON tasks (state_at) WHERE state NOT IN ('queued', 'running', 'suspended');
