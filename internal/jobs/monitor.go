package jobs

import (
	"context"
	"errors"
	"slices"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

const (
	// overlap is how much of the time before the last good round accounting is asked for again: slurmdbd gets news late.
	overlap = 10 * time.Minute
	// spacing is the shortest time between two rounds, also when somebody asks for one.
	spacing = time.Second
	// slowdown: a round that takes long is followed by a pause of so many times its length.
	slowdown = 3
	// maxPause bounds the pause between rounds of which none is good.
	maxPause = 5 * time.Minute
	// roundTimeout bounds a round.
	roundTimeout = 5 * time.Minute

	// missingRounds and missingFor: a job that is gone for so long is asked for by its id.
	missingRounds, missingFor = 3, 2 * time.Minute
	// givenUp is when a job that Slurm denies is called ended; givenUpMass is the same when many vanish at once, which
	// looks like a Slurm that has lost its memory.
	givenUp, givenUpMass = 10 * time.Minute, time.Hour
	// massAt and half of all jobs make many.
	massAt = 10
	// seenEvery is how often it is noted that a job was seen.
	seenEvery = time.Hour
	// detailsAfter is how long accounting may take until it knows how a job has ended.
	detailsAfter = 10 * time.Second
	// chunk is how many rows are changed in one transaction.
	chunk = 100
)

// Health is how the monitor goes.
type Health struct {
	Rounds, Failures uint64        // since the start
	LastGood         time.Time     // end of the last round in which both squeue and sacct answered
	LastTook         time.Duration // of the last round
	Watched          int           // jobs
	Missing          int           // of them, those that Slurm did not speak of
	Err              error         // of the last round; nil: it was good
}

// Health is how the monitor goes.
func (s *Service) Health() Health {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.health
}

// monitor looks at Slurm until ctx ends.
func (s *Service) monitor(ctx context.Context) error {
	m := &monitor{s: s, hints: map[int64]hint{}}
	failures := 0
	for {
		began := s.o.Now()
		err := m.round(ctx)
		took := s.o.Now().Sub(began)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.mu.Lock()
		s.health.Rounds++
		s.health.LastTook, s.health.Err = took, err
		if err == nil {
			s.health.LastGood = s.o.Now()
		} else {
			s.health.Failures++
		}
		s.mu.Unlock()
		pause := max(s.o.Settings().Poll, slowdown*took)
		if err != nil {
			failures++
			pause = min(pause<<min(failures-1, 8), max(maxPause, pause))
			s.log.Warn("Slurm was not looked at completely; jobs stay as they are", "error", err, "failures", failures, "pause", pause)
		} else {
			failures = 0
		}
		if !s.rest(ctx, pause, max(spacing, took)) {
			return ctx.Err()
		}
	}
}

// rest waits for the pause, or at least for the shortest one if somebody wants a round. false: ctx has ended.
func (s *Service) rest(ctx context.Context, pause, shortest time.Duration) bool {
	least := time.NewTimer(min(shortest, pause))
	defer least.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-least.C:
	}
	rest := time.NewTimer(max(0, pause-shortest))
	defer rest.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-s.lookNow:
	case <-rest.C:
	}
	return true
}

// monitor is what is remembered between rounds. Everything may be lost in a restart.
type monitor struct {
	s     *Service
	good  time.Time // beginning of the last good round
	hints map[int64]hint
	// outsideAt is when jobs that were submitted without us are looked at again after a failure.
	outsideAt time.Time
	ended     map[int64]time.Time // jobs that were cancelled for their users, and when
	purge     time.Time
}

// view is what one round knows.
type view struct {
	began    time.Time
	queued   bool // squeue has answered: without it no end counts, since a job that sacct calls ended may wait again
	complete bool // sacct too: what is not there counts
	jobs     map[string]*seen
	claims   map[string][]string // by Core's id: the jobs that bear its mark
	open     []store.Job
	missing  []store.Job // submitted, not final, and Slurm does not speak of them
	matched  map[string]bool
	ending   []store.Job // they run, and their users have asked for the end
}

// round looks at Slurm once. What fails changes nothing.
func (m *monitor) round(ctx context.Context) error {
	s := m.s
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	v := &view{began: s.o.Now(), claims: map[string][]string{}, matched: map[string]bool{}}
	if err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) { v.open, err = tx.OpenJobs(); return err }); err != nil {
		return err
	}
	v.open = slices.DeleteFunc(v.open, func(j store.Job) bool { return j.Engine != ipcapi.EngineSlurm })
	queue, queueErr := s.o.Engine.Queue(ctx)
	history, historyErr := s.o.Engine.History(ctx, m.since(v))
	if queueErr != nil {
		queue = nil
	}
	if historyErr != nil {
		history = nil
	}
	v.queued = queueErr == nil
	v.complete = v.queued && historyErr == nil
	v.jobs = together(queue, history)
	for id, what := range v.jobs {
		for i := range what.parts {
			if claim, ok := s.claimOf(what.parts[i].Comment); ok && !slices.Contains(v.claims[claim], id) {
				v.claims[claim] = append(v.claims[claim], id)
			}
		}
	}
	err := errors.Join(queueErr, historyErr, m.compare(ctx, v), m.confirmMissing(ctx, v))
	m.end(ctx, v)
	if v.queued && !v.began.Before(m.outsideAt) { // accounting alone is late
		if failed := m.outside(ctx, v); failed != nil && ctx.Err() == nil {
			// That Core does not answer is no reason to look at Slurm less often.
			m.outsideAt = v.began.Add(outsideAgain)
			s.log.Warn("jobs that were submitted without us were not registered", "error", failed, "next", outsideAgain)
		}
	}
	err = errors.Join(err, m.tidy(ctx))
	s.mu.Lock()
	s.health.Watched, s.health.Missing = len(v.open), len(v.missing)
	s.mu.Unlock()
	if err == nil {
		m.good = v.began
	}
	return err
}

// since is from when on accounting is asked: since the last good round, or, after a start, since any open job was seen.
func (m *monitor) since(v *view) time.Time {
	from := m.good
	select {
	case <-m.s.lookBack:
		from = time.Time{}
	default:
	}
	if from.IsZero() {
		from = v.began
		for i := range v.open {
			j := &v.open[i]
			last := j.SeenAt
			if last.IsZero() {
				last = j.CreatedAt
			}
			if last.Before(from) {
				from = last.Add(-seenEvery)
			}
		}
	}
	from = from.Add(-overlap)
	if oldest := v.began.Add(-m.s.o.Settings().Lookback); from.Before(oldest) {
		from = oldest
	}
	return from
}

// decision is what a round makes of a row: nothing, or a change in a transaction.
type decision struct {
	key int64
	do  func(tx *store.Tx, j *store.Job) (changed bool, err error)
}

// compare takes over what Slurm says about the jobs that are watched.
func (m *monitor) compare(ctx context.Context, v *view) error {
	s := m.s
	var all []decision
	names := map[uint32]string{}
	nameOf := func(j *store.Job) string {
		name, ok := names[uint32(j.UID)]
		if !ok {
			name, _ = s.o.Users.LocalName(j.UID)
			names[uint32(j.UID)] = name
		}
		return name
	}
	var asIs []string // arrays that seem to have ended
	for i := range v.open {
		j := &v.open[i]
		name := nameOf(j)
		if j.Submission == store.JobBegun {
			if d := m.begun(v, j, name); d != nil {
				all = append(all, *d)
			}
			continue
		}
		v.matched[j.EngineID] = true
		what := v.jobs[j.EngineID]
		if name == "" {
			continue // the name service does not answer, or the account is gone
		}
		if what == nil || !what.of(name) {
			if what != nil {
				s.log.Warn("an account claims a job of Slurm that is somebody else's", "job", j.ID, "slurm", j.EngineID, "uid", j.UID)
			}
			v.missing = append(v.missing, *j)
			continue
		}
		o, ok := what.whole()
		switch {
		case !ok:
			if what.inQueue {
				continue // it is there, in a state that we do not know
			}
			v.missing = append(v.missing, *j)
		case !o.State.Final() && !what.inQueue:
			v.missing = append(v.missing, *j) // accounting is late, or knows a job that slurmctld has lost
		case o.State.Final() && !v.queued:
		case o.State.Final() && (len(what.parts) > 1 || what.parts[0].Task != ""):
			asIs = append(asIs, j.EngineID) // accounting has the tasks that ended before
		default:
			if d := m.observed(v, j, &o); d != nil {
				all = append(all, *d)
			}
		}
	}
	err := m.arrays(ctx, v, asIs, nameOf, &all)
	return errors.Join(err, m.decide(ctx, all))
}

// of tells whether Slurm says that the whole job is the user's.
func (v *seen) of(name string) bool {
	return !slices.ContainsFunc(v.parts, func(o Observation) bool { return o.User != name })
}

// arrays ends arrays and heterogeneous jobs, once accounting was asked for all their parts.
func (m *monitor) arrays(ctx context.Context, v *view, ids []string, nameOf func(*store.Job) string, all *[]decision) error {
	if len(ids) == 0 {
		return nil
	}
	found, err := m.lookUp(ctx, ids)
	if err != nil {
		return err
	}
	for i := range v.open {
		j := &v.open[i]
		what := found[j.EngineID]
		if what == nil || !slices.Contains(ids, j.EngineID) || !what.of(nameOf(j)) {
			continue
		}
		what.add(v.jobs[j.EngineID]) // accounting does not have all that ended just now
		if o, ok := what.whole(); ok && o.State.Final() {
			if d := m.observed(v, j, &o); d != nil {
				*all = append(*all, *d)
			}
		}
	}
	return nil
}

// add takes over parts that only the other knows.
func (v *seen) add(o *seen) {
	for _, p := range o.parts {
		if !slices.ContainsFunc(v.parts, func(q Observation) bool { return q.Task == p.Task && q.Het == p.Het }) {
			v.parts = append(v.parts, p)
		}
	}
}

// lookUp asks accounting for jobs by their ids.
func (m *monitor) lookUp(ctx context.Context, ids []string) (map[string]*seen, error) {
	var all []Observation
	for part := range slices.Chunk(ids, 500) {
		some, err := m.s.o.Engine.Lookup(ctx, part)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	return together(nil, all), nil
}

// begun decides about a submission of which nothing was heard yet.
func (m *monitor) begun(v *view, j *store.Job, name string) *decision {
	var best *Observation
	for _, id := range v.claims[j.ID] {
		what := v.jobs[id]
		if name == "" || !what.of(name) || v.matched[id] {
			continue
		}
		o := what.parts[0]
		if o.Submitted.Before(j.CreatedAt.Add(-overlap)) {
			continue // of another time
		}
		if best == nil || o.Submitted.Before(best.Submitted) {
			best = &o
		}
	}
	if best != nil {
		id := best.ID
		v.matched[id] = true
		return &decision{j.Key, func(tx *store.Tx, j *store.Job) (bool, error) {
			if j.Submission != store.JobBegun {
				return false, nil
			}
			m.s.log.Info("job found in Slurm by its comment", "job", j.ID, "slurm", id)
			signal(m.s.lookNow)
			err := m.s.adopt(tx, j, id)
			if failure.Is(err, failure.Conflict) { // the id is that of another job of the account
				j.Submission, j.EndedAt, err = store.JobLost, m.s.o.Now(), nil
			}
			return true, err
		}}
	}
	if !v.complete || !v.began.After(j.Until.Add(settling)) {
		return nil
	}
	return &decision{j.Key, func(tx *store.Tx, j *store.Job) (bool, error) {
		if j.Submission != store.JobBegun || !v.began.After(j.Until.Add(settling)) {
			return false, nil
		}
		if j.MissingRounds++; j.MissingRounds >= 2 {
			m.s.log.Info("job was never submitted", "job", j.ID, "attempt", j.Attempt)
			j.Submission, j.EndedAt, j.Message = store.JobLost, m.s.o.Now(), "It never came to Slurm"
		}
		return true, nil
	}}
}

// decide carries out decisions, some in each transaction. A row that cannot be changed does not hold up the others.
func (m *monitor) decide(ctx context.Context, all []decision) error {
	var problems []error
	for part := range slices.Chunk(all, chunk) {
		err := m.apply(ctx, part)
		if err == nil {
			continue
		}
		problems = append(problems, err)
		for i := range part {
			if ctx.Err() != nil {
				break
			}
			if err := m.apply(ctx, part[i:i+1]); err != nil {
				m.s.log.Error("a job cannot be brought up to date", "key", part[i].key, "error", err)
			}
		}
	}
	return errors.Join(problems...)
}

func (m *monitor) apply(ctx context.Context, part []decision) error {
	return m.s.o.Store.Update(ctx, func(tx *store.Tx) error {
		for _, d := range part {
			j, err := tx.Job(d.key)
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			changed, err := d.do(tx, &j)
			if err != nil {
				return err
			}
			if !changed {
				continue
			}
			if err := tx.UpdateJob(j); err != nil {
				return err
			}
			tx.AfterCommit(func() { m.s.committed(&j) })
		}
		return nil
	})
}

// observed decides what an observation changes. nil: nothing.
func (m *monitor) observed(v *view, j *store.Job, o *Observation) *decision {
	if age := v.began.Sub(o.Ended); o.Vague && o.State.Final() && v.complete && age.Abs() < detailsAfter {
		signal(m.s.lookNow)
		return nil
	}
	hint, told := m.hint(v.began, j, o)
	cancel := j.Ending && !o.State.Final() && o.Word != "COMPLETING"
	if cancel {
		v.ending = append(v.ending, *j)
	}
	same := j.State == o.State && j.EngineState == o.Word && j.MissingSince.IsZero() && v.began.Sub(j.SeenAt) < seenEvery &&
		slices.Equal(j.Nodes, nodesOf(j, o)) && !limitDiffers(j, o) && hint == "" && (o.Started.IsZero() || o.Started.Equal(j.StartedAt))
	if same {
		return nil
	}
	return &decision{j.Key, func(tx *store.Tx, j *store.Job) (bool, error) {
		if !j.Open() || j.Submission != store.JobSubmitted || j.EngineID != o.ID {
			return false, nil
		}
		j.EngineState, j.SeenAt, j.MissingSince, j.MissingRounds = o.Word, v.began, time.Time{}, 0
		j.Nodes = nodesOf(j, o)
		if !o.Started.IsZero() {
			j.StartedAt = o.Started
		}
		if !o.State.Final() && limitDiffers(j, o) {
			known := j.LimitMs > 0
			if known {
				if err := m.s.setLimit(tx, j, o.Limit); err != nil {
					return false, err
				}
			}
			j.LimitMs = o.Limit.Milliseconds()
		}
		if j.State != o.State {
			if o.State.Final() {
				j.EndedAt = o.Ended
			}
			return true, m.s.enter(tx, j, o.State, message(j, o))
		}
		if hint != "" && j.State == providerapi.JobInQueue {
			m.hints[j.Key] = told
			return true, m.s.tell(tx, j, providerapi.JobUpdate{Status: &hint})
		}
		return true, nil
	}}
}

// nodesOf are the nodes of a job: those of its last run stay when it has ended.
func nodesOf(j *store.Job, o *Observation) []string {
	if len(o.Nodes) == 0 && o.State.Final() {
		return j.Nodes
	}
	return o.Nodes
}

// limitDiffers tells whether somebody has changed the time limit. Slurm rounds up to minutes.
func limitDiffers(j *store.Job, o *Observation) bool {
	return o.Limit > 0 && !o.State.Final() && roundUp(o.Limit) != roundUp(time.Duration(j.LimitMs)*time.Millisecond)
}

// confirmMissing counts the rounds in which jobs were missing, asks accounting for those that are missing for long, and ends
// those that nobody knows any more.
func (m *monitor) confirmMissing(ctx context.Context, v *view) error {
	if !v.complete || len(v.missing) == 0 {
		return nil
	}
	s := m.s
	watched := 0
	for i := range v.open {
		if v.open[i].Submission == store.JobSubmitted {
			watched++
		}
	}
	patience := givenUp
	if len(v.missing) >= massAt && len(v.missing)*2 >= watched {
		patience = givenUpMass
		s.log.Error("Slurm does not know most of the jobs that it knew; they are kept for now", "missing", len(v.missing), "watched", watched)
	}
	var ids []string
	for i := range v.missing {
		if j := &v.missing[i]; j.MissingRounds >= missingRounds && v.began.Sub(j.MissingSince) >= missingFor {
			ids = append(ids, j.EngineID)
		}
	}
	found, present := map[string]*seen{}, map[string]*seen{}
	asked := false
	if len(ids) > 0 {
		var err error
		if found, err = m.lookUp(ctx, ids); err != nil {
			return err
		}
		// A job may have been moved to a partition that is not looked at, or its category left the configuration.
		there, err := s.o.Engine.Present(ctx, ids)
		if err != nil {
			return err
		}
		present = together(there, nil)
		asked = true
	}
	var all []decision
	for i := range v.missing {
		j := &v.missing[i]
		if v.began.Before(j.SubmittedAt.Add(settling)) {
			continue // squeue may have been asked before
		}
		name, _ := s.o.Users.LocalName(j.UID)
		if what := present[j.EngineID]; what != nil && what.of(name) {
			o, ok := what.whole()
			if !ok {
				continue // it is there, in a state that we do not know
			}
			if !o.State.Final() {
				if d := m.observed(v, j, &o); d != nil {
					all = append(all, *d)
				}
				continue
			}
		}
		if what := found[j.EngineID]; what != nil {
			if o, ok := what.whole(); ok && o.State.Final() && what.of(name) {
				if d := m.observed(v, j, &o); d != nil {
					all = append(all, *d)
				}
				continue
			}
		}
		due := asked && slices.Contains(ids, j.EngineID) && v.began.Sub(j.MissingSince) >= patience
		all = append(all, decision{j.Key, func(tx *store.Tx, j *store.Job) (bool, error) {
			if !j.Open() || j.Submission != store.JobSubmitted {
				return false, nil
			}
			if j.MissingSince.IsZero() {
				j.MissingSince = v.began
			}
			j.MissingRounds++
			if !due {
				return j.MissingRounds <= missingRounds, nil // what is counted further on does not matter
			}
			s.log.Warn("Slurm does not know a job any more", "job", j.ID, "slurm", j.EngineID)
			state, text := gone(j, v.began)
			return true, s.enter(tx, j, state, text)
		}})
	}
	return m.decide(ctx, all)
}

// tidy forgets jobs that ended long ago, and hints about jobs that do not wait.
func (m *monitor) tidy(ctx context.Context) error {
	now := m.s.o.Now()
	keep := m.s.o.Settings().Keep
	if now.Sub(m.purge) < time.Hour || keep <= 0 {
		return nil
	}
	m.purge = now
	for key, h := range m.hints {
		if now.Sub(h.at) > 30*24*time.Hour {
			delete(m.hints, key)
		}
	}
	for ctx.Err() == nil {
		var n int64
		err := m.s.o.Store.Update(ctx, func(tx *store.Tx) (err error) { n, err = tx.PurgeJobs(now.Add(-keep), 500); return err })
		if err != nil || n == 0 {
			return err
		}
	}
	return ctx.Err()
}
