-- Jobs of which Core must be asked. They are looked for every second, among all that are kept.
CREATE INDEX jobs_confirm ON jobs (submission, core_checked_at, job_key) WHERE core_known < 2 OR core_misses > 0;
