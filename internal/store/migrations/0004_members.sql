-- The member of the project whose drive this is; empty for drives of all members, and of users.
ALTER TABLE drives ADD COLUMN member TEXT NOT NULL DEFAULT '';
