package store

import (
	"errors"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// JobSubmission is how far the submission of a job is. See package jobs.
type JobSubmission string

// The states.
const (
	JobBegun     JobSubmission = "begun"     // an instance may be submitting it
	JobSubmitted JobSubmission = "submitted" // it has an id of the engine
	JobRefused   JobSubmission = "refused"   // the engine did not take it
	JobLost      JobSubmission = "lost"      // it never got to the engine, or Core does not have it
)

// Job is a job, or what an account claims to be one. Document is filled in only where a method says so.
type Job struct {
	Key       int64
	ID        string // Core's
	UID       ident.UID
	CreatedBy ident.UCloudUser
	Owner     ident.Owner
	Engine    string

	Submission JobSubmission
	Attempt    int64
	Until      time.Time
	EngineID   string
	PGID       string // provider generated id

	Account, Partition, QoS string
	Product, Category       string
	State                   providerapi.JobState
	EngineState             string

	CoreKnown    int // 0, 1 or 2: see the table
	CoreMisses   int
	CoreChecked  time.Time
	DeliverAfter time.Time

	Outside, Ending              bool
	Name                         string
	AppName, AppVersion, AppType string
	Replicas, Port               int
	LimitMs                      int64
	Folder, OutputFolder         string
	Targets                      []JobTarget
	Nodes                        []string

	CreatedAt, SubmittedAt, StartedAt, EndedAt, SeenAt, MissingSince time.Time
	MissingRounds                                                    int
	Message                                                          string
	Document                                                         string
}

// JobTarget is an interface of a job: what package ipcapi calls the same.
type JobTarget struct {
	Rank         int
	Type, Target string
	Port         int
	TLS          bool
}

// Open tells whether there is something to wait for: an answer of the instance, or the end.
func (j *Job) Open() bool {
	return j.Submission == JobBegun || j.Submission == JobSubmitted && !j.State.Final()
}

const (
	jobColumns = `job_key, id, uid, created_by, owner_user, owner_project, engine, submission, attempt, until_at, engine_id, pgid,
	 account, slurm_partition, qos, product, category, state, engine_state, core_known, core_misses, core_checked_at, deliver_after,
	 outside, ending, name, app_name, app_version, app_type, replicas, port, limit_ms, folder, output_folder, targets, nodes,
	 created_at, submitted_at, started_at, ended_at, seen_at, missing_since, missing_rounds, message`
	jobOpen = `(submission = 'begun' OR submission = 'submitted' AND state IN ('IN_QUEUE', 'RUNNING', 'SUSPENDED'))`
)

func scanJob(s scanner) (Job, error) { return scanJobAnd(s) }

func scanJobDocument(s scanner) (Job, error) {
	var document string
	j, err := scanJobAnd(s, &document)
	j.Document = document
	return j, err
}

func scanJobAnd(s scanner, more ...any) (j Job, err error) {
	var until, checked, deliver, outside, ending, created, submitted, started, ended, seen, missing int64
	var targets, nodes string
	err = s.Scan(append([]any{
		&j.Key, &j.ID, &j.UID, &j.CreatedBy, &j.Owner.User, &j.Owner.Project, &j.Engine, &j.Submission, &j.Attempt, &until,
		&j.EngineID, &j.PGID, &j.Account, &j.Partition, &j.QoS, &j.Product, &j.Category, &j.State, &j.EngineState,
		&j.CoreKnown, &j.CoreMisses, &checked, &deliver, &outside, &ending, &j.Name, &j.AppName, &j.AppVersion, &j.AppType,
		&j.Replicas, &j.Port, &j.LimitMs, &j.Folder, &j.OutputFolder, &targets, &nodes, &created, &submitted, &started, &ended,
		&seen, &missing, &j.MissingRounds, &j.Message,
	}, more...)...)
	if err != nil {
		return j, err
	}
	j.Until, j.CoreChecked, j.DeliverAfter, j.Outside, j.Ending = fromMS(until), fromMS(checked), fromMS(deliver), outside != 0, ending != 0
	j.CreatedAt, j.SubmittedAt, j.StartedAt, j.EndedAt = fromMS(created), fromMS(submitted), fromMS(started), fromMS(ended)
	j.SeenAt, j.MissingSince = fromMS(seen), fromMS(missing)
	if targets != "" {
		if j.Targets, err = decode[[]JobTarget](targets); err != nil {
			return j, err
		}
	}
	if nodes != "" {
		j.Nodes, err = decode[[]string](nodes)
	}
	return j, err
}

// values are the columns after the key, in order.
func (j *Job) values() ([]any, error) {
	var targets, nodes string
	var err error
	if len(j.Targets) > 0 {
		if targets, err = encode(j.Targets); err != nil {
			return nil, err
		}
	}
	if len(j.Nodes) > 0 {
		if nodes, err = encode(j.Nodes); err != nil {
			return nil, err
		}
	}
	return []any{
		j.ID, int64(j.UID), string(j.CreatedBy), string(j.Owner.User), string(j.Owner.Project), j.Engine, string(j.Submission),
		j.Attempt, toMS(j.Until), j.EngineID, j.PGID, prose(j.Account), prose(j.Partition), prose(j.QoS), j.Product, j.Category,
		string(j.State), prose(j.EngineState), j.CoreKnown, j.CoreMisses, toMS(j.CoreChecked), toMS(j.DeliverAfter), toBit(j.Outside),
		toBit(j.Ending), prose(j.Name), prose(j.AppName), prose(j.AppVersion), prose(j.AppType), j.Replicas, j.Port, j.LimitMs,
		j.Folder, j.OutputFolder, prose(targets), prose(nodes), toMS(j.CreatedAt), toMS(j.SubmittedAt), toMS(j.StartedAt), toMS(j.EndedAt),
		toMS(j.SeenAt), toMS(j.MissingSince), j.MissingRounds, prose(j.Message),
	}, nil
}

// InsertJob stores a new job, with its document, and gives its key. One that the same account claims already is [ErrConflict].
func (tx *Tx) InsertJob(j Job) (int64, error) {
	if j.ID == "" || !j.Owner.Valid() {
		return 0, errors.New("store job: it has no id or no owner")
	}
	key, err := tx.next("jobs")
	if err != nil {
		return 0, err
	}
	values, err := j.values()
	if err != nil {
		return 0, err
	}
	return key, tx.execOne(ErrConflict, "store job",
		`INSERT INTO jobs (`+jobColumns+`, document) VALUES (?, `+marks(len(values))+`, ?) ON CONFLICT DO NOTHING`,
		append(append([]any{key}, values...), prose(j.Document))...)
}

// marks are n question marks.
func marks(n int) string {
	out := "?"
	for range n - 1 {
		out += ", ?"
	}
	return out
}

// UpdateJob stores what has changed; the document and what the job is stay as they were. An engine's id that another job
// of the account has is an error that ends the transaction.
func (tx *Tx) UpdateJob(j Job) error {
	values, err := j.values()
	if err != nil {
		return err
	}
	return tx.execOne(ErrNotFound, "update job",
		`UPDATE jobs SET id = ?, uid = ?, created_by = ?, owner_user = ?, owner_project = ?, engine = ?, submission = ?, attempt = ?,
		 until_at = ?, engine_id = ?, pgid = ?, account = ?, slurm_partition = ?, qos = ?, product = ?, category = ?, state = ?,
		 engine_state = ?, core_known = ?, core_misses = ?, core_checked_at = ?, deliver_after = ?, outside = ?, ending = ?, name = ?,
		 app_name = ?, app_version = ?, app_type = ?, replicas = ?, port = ?, limit_ms = ?, folder = ?, output_folder = ?, targets = ?,
		 nodes = ?, created_at = ?, submitted_at = ?, started_at = ?, ended_at = ?, seen_at = ?, missing_since = ?, missing_rounds = ?,
		 message = ? WHERE job_key = ?`, append(values, j.Key)...)
}

// SetJobDocument replaces Core's document of a job.
func (tx *Tx) SetJobDocument(key int64, document string) error {
	return tx.execOne(ErrNotFound, "store document of job", `UPDATE jobs SET document = ? WHERE job_key = ?`, prose(document), key)
}

// Job is the job with our key, with its document.
func (tx *Tx) Job(key int64) (Job, error) {
	return one(tx, scanJobDocument, "look up job", `SELECT `+jobColumns+`, document FROM jobs WHERE job_key = ?`, key)
}

// JobsByID are all claims to a job of Core's, with their documents, oldest first.
func (tx *Tx) JobsByID(id string) ([]Job, error) {
	return list(tx, scanJobDocument, "look up job by id", `SELECT `+jobColumns+`, document FROM jobs WHERE id = ? ORDER BY job_key`, id)
}

// JobOf is what the account says about a job of Core's, with the document.
func (tx *Tx) JobOf(id string, uid ident.UID) (Job, error) {
	return one(tx, scanJobDocument, "look up job of an account",
		`SELECT `+jobColumns+`, document FROM jobs WHERE id = ? AND uid = ?`, id, int64(uid))
}

// JobsByEngineID are the jobs with an id of the engine, with their documents, oldest first.
func (tx *Tx) JobsByEngineID(engine, id string) ([]Job, error) {
	return list(tx, scanJobDocument, "look up job by the engine's id",
		`SELECT `+jobColumns+`, document FROM jobs WHERE engine = ? AND engine_id = ? AND engine_id <> '' ORDER BY job_key`, engine, id)
}

// OpenJobs are the jobs that something is waited for, oldest first, without documents.
func (tx *Tx) OpenJobs() ([]Job, error) {
	return list(tx, scanJob, "list open jobs", `SELECT `+jobColumns+` FROM jobs WHERE `+jobOpen+` ORDER BY job_key`)
}

// OpenJobsOf are those of an account, without documents.
func (tx *Tx) OpenJobsOf(uid ident.UID) ([]Job, error) {
	return list(tx, scanJob, "list open jobs of an account",
		`SELECT `+jobColumns+` FROM jobs WHERE uid = ? AND `+jobOpen+` ORDER BY job_key`, int64(uid))
}

// Jobs are up to limit jobs after a key, in the order of keys, without documents.
func (tx *Tx) Jobs(after int64, limit int) ([]Job, error) {
	return list(tx, scanJob, "list jobs", `SELECT `+jobColumns+` FROM jobs WHERE job_key > ? ORDER BY job_key LIMIT ?`, after, limit)
}

// JobCount counts jobs by submission and state.
type JobCount struct {
	Submission JobSubmission
	State      providerapi.JobState
	N          int
}

// JobCounts counts all jobs.
func (tx *Tx) JobCounts() ([]JobCount, error) {
	return list(tx, func(s scanner) (c JobCount, err error) { return c, s.Scan(&c.Submission, &c.State, &c.N) },
		"count jobs", `SELECT submission, state, count(*) FROM jobs GROUP BY submission, state`)
}

// JobUpdate is something that Core is to be told.
type JobUpdate struct {
	ID        int64
	Key       int64  // of the job
	Job       string // Core's id
	Update    providerapi.JobUpdate
	CreatedAt time.Time
}

func scanJobUpdate(s scanner) (u JobUpdate, err error) {
	var created int64
	var payload string
	if err = s.Scan(&u.ID, &u.Key, &u.Job, &payload, &created); err != nil {
		return u, err
	}
	u.CreatedAt = fromMS(created)
	u.Update, err = decode[providerapi.JobUpdate](payload)
	return u, err
}

// AddJobUpdate puts an update behind those of the same job.
func (tx *Tx) AddJobUpdate(key int64, u providerapi.JobUpdate, at time.Time) error {
	payload, err := encode(u)
	if err != nil {
		return err
	}
	id, err := tx.next("job_updates")
	if err != nil {
		return err
	}
	_, err = tx.exec("store update of a job", `INSERT INTO job_updates (id, job_key, payload, created_at) VALUES (?, ?, ?, ?)`,
		id, key, prose(payload), toMS(at))
	return err
}

// DueJobUpdates are up to limit updates in the order in which they are to be told: of jobs that Core is known to have, and
// that need not wait. The order of the join is given: few jobs have updates, and many are kept.
func (tx *Tx) DueJobUpdates(now time.Time, limit int) ([]JobUpdate, error) {
	return list(tx, scanJobUpdate, "list updates of jobs",
		`SELECT u.id, u.job_key, j.id, u.payload, u.created_at FROM job_updates u CROSS JOIN jobs j
		 WHERE j.job_key = u.job_key AND j.core_known > 0 AND j.submission = 'submitted' AND j.deliver_after <= ? ORDER BY u.id LIMIT ?`, toMS(now), limit)
}

// JobUpdatesOf are the updates of a job that Core has not taken.
func (tx *Tx) JobUpdatesOf(key int64) ([]JobUpdate, error) {
	return list(tx, scanJobUpdate, "list updates of a job",
		`SELECT u.id, u.job_key, j.id, u.payload, u.created_at FROM job_updates u JOIN jobs j ON j.job_key = u.job_key
		 WHERE u.job_key = ? ORDER BY u.id`, key)
}

// JobUpdateCounts says how many updates wait, by job.
func (tx *Tx) JobUpdateCounts() (map[int64]int, error) {
	type row struct {
		key int64
		n   int
	}
	rows, err := list(tx, func(s scanner) (r row, err error) { return r, s.Scan(&r.key, &r.n) },
		"count updates of jobs", `SELECT job_key, count(*) FROM job_updates GROUP BY job_key`)
	out := make(map[int64]int, len(rows))
	for _, r := range rows {
		out[r.key] = r.n
	}
	return out, err
}

// RemoveJobUpdate removes an update that Core has taken; no error if it is gone.
func (tx *Tx) RemoveJobUpdate(id int64) error {
	_, err := tx.exec("remove update of a job", `DELETE FROM job_updates WHERE id = ?`, id)
	return err
}

// DropJobUpdates removes all updates of a job, which Core does not have.
func (tx *Tx) DropJobUpdates(key int64) error {
	_, err := tx.exec("drop updates of a job", `DELETE FROM job_updates WHERE job_key = ?`, key)
	return err
}

// JobsToConfirm are jobs of which Core must be asked whether it has them, without documents: those that ended meanwhile
// included, as long as there is something to tell. Those that have waited longest come first.
func (tx *Tx) JobsToConfirm(checkedBefore time.Time, limit int) ([]Job, error) {
	return list(tx, scanJob, "list jobs to confirm",
		`SELECT `+jobColumns+` FROM jobs WHERE submission = 'submitted' AND (core_known < 2 OR core_misses > 0) AND core_checked_at < ?
		 ORDER BY core_checked_at, job_key LIMIT ?`, toMS(checkedBefore), limit)
}

// PurgeJobs removes jobs that ended before a time and of which nothing is left to tell, up to limit. It gives how many.
func (tx *Tx) PurgeJobs(before time.Time, limit int) (int64, error) {
	return tx.exec("purge jobs",
		`DELETE FROM jobs WHERE job_key IN (SELECT job_key FROM jobs WHERE ended_at > 0 AND ended_at < ? AND NOT `+jobOpen+`
		 AND NOT EXISTS (SELECT 1 FROM job_updates u WHERE u.job_key = jobs.job_key) ORDER BY ended_at LIMIT ?)`, toMS(before), limit)
}
