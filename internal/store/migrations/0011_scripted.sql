-- Accounts that the provider itself assigns to users who connect (contract 03 section 3.1): one look per user, from the press
-- on "Connect" until somebody has found the account.
CREATE TABLE assignments (
	user_name  TEXT   NOT NULL PRIMARY KEY,
	state      TEXT   NOT NULL CHECK (state IN ('looking', 'found', 'failed')),
	uid        BIGINT,          -- of a found one, as is the next
	local_name TEXT   NOT NULL,
	message    TEXT   NOT NULL, -- for the user, of a failed one
	created_at BIGINT NOT NULL,
	updated_at BIGINT NOT NULL
);
CREATE INDEX assignments_looking ON assignments (created_at) WHERE state = 'looking';

-- Calls of scripts that must happen, in the order of their keys (contract 42 section A.3).
CREATE TABLE script_queue (
	id         BIGINT NOT NULL PRIMARY KEY,
	hook       TEXT   NOT NULL,
	call_key   TEXT   NOT NULL,
	payload    BLOB   NOT NULL,
	attempts   BIGINT NOT NULL,
	next_at    BIGINT, -- NULL: no repetition helps until an operator has changed something
	created_at BIGINT NOT NULL,
	last_error TEXT   NOT NULL
);
CREATE INDEX script_queue_key ON script_queue (hook, call_key, id);
