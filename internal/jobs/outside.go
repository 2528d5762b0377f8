package jobs

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

const (
	// leftAlone is how long a job is left alone of which it was decided that Core is not told about it.
	leftAlone = time.Hour
	// outsideAgain is the pause after Core could not be told about one.
	outsideAgain = time.Minute
	// registrations is how many jobs are registered in one round.
	registrations = 20
)

// outside registers jobs that were submitted without us (contract 20 section 3.3): those of mapped users, on machines that
// are configured, of accounts that are a workspace's.
func (m *monitor) outside(ctx context.Context, v *view) error {
	s := m.s
	set := s.o.Settings()
	owners, ok := s.o.Accounts.(Owners)
	if !set.RegisterOutside || !ok {
		return nil
	}
	s.mu.Lock()
	for id := range s.quiet {
		if v.jobs[id] == nil {
			delete(s.quiet, id)
		}
	}
	s.mu.Unlock()
	done := 0
	for id, what := range v.jobs {
		if !what.inQueue || v.matched[id] || done >= registrations {
			continue
		}
		s.mu.Lock()
		quiet := v.began.Before(s.quiet[id])
		s.mu.Unlock()
		if quiet {
			continue
		}
		o, ok := what.whole()
		if !ok || o.State.Final() || !what.of(o.User) {
			continue
		}
		if claim, ours := s.claimOf(o.Comment); ours && v.begunClaim(claim) {
			continue // it is being submitted
		}
		done++
		registered, err := m.register(ctx, owners, set, &o)
		if err != nil {
			return err // Core would not take the others either, and the monitor has to go on
		}
		if !registered {
			s.mu.Lock()
			s.quiet[id] = v.began.Add(leftAlone)
			s.mu.Unlock()
			done--
		}
	}
	return nil
}

// begunClaim tells whether a job with this id of Core's is being submitted.
func (v *view) begunClaim(id string) bool {
	return slices.ContainsFunc(v.open, func(j store.Job) bool { return j.ID == id && j.Submission == store.JobBegun })
}

// register tells Core about a job. false: it is none that Core is told about.
func (m *monitor) register(ctx context.Context, owners Owners, set Settings, o *Observation) (bool, error) {
	s := m.s
	user, uid, ok := s.o.Users.Mapped(o.User)
	if !ok {
		return false, nil
	}
	known := false
	if err := s.o.Store.View(ctx, func(tx *store.Tx) error {
		rows, err := tx.JobsByEngineID(ipcapi.EngineSlurm, o.ID)
		known = slices.ContainsFunc(rows, func(j store.Job) bool { return j.UID == uid })
		return err
	}); err != nil || known {
		return false, err
	}
	machines, ok := set.Category(o.Partition, o.QoS)
	if !ok || len(machines) == 0 {
		return false, nil
	}
	owner, ok, err := owners.OwnerOf(ctx, o.Account, machines[0].Category)
	if err != nil || !ok {
		return false, err
	}
	if owner.IsProject() {
		var belongs bool
		if err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) { belongs, _, err = member(tx, owner.Project, user); return err }); err != nil || !belongs {
			return false, err
		}
	} else if owner.User != user {
		return false, nil
	}
	nodes := max(o.NodeCount, 1)
	machine := smallest(machines, o, nodes)
	submitted := o.Submitted
	if submitted.IsZero() {
		submitted = time.Unix(0, 0)
	}
	r := providerapi.RegisterJob{
		// The same in every attempt, so that a job is registered once.
		ProviderGeneratedID: o.Account + "/" + o.ID + "/" + strconv.FormatInt(submitted.UnixMilli(), 10), CreatedBy: &user,
		Spec: providerapi.JobSpecification{
			Product:     providerapi.ProductReference{ID: machine.Name, Category: machine.Category, Provider: s.o.Provider},
			Application: providerapi.ApplicationReference{Name: "unknown", Version: "unknown"},
			Name:        clip(o.Name, 200) + " (SlurmID: " + o.ID + ")", Replicas: nodes, Parameters: map[string]providerapi.AppParameterValue{},
		},
	}
	if o.Limit > 0 {
		d := providerapi.SimpleDurationOf(o.Limit)
		r.Spec.TimeAllocation = &d
	}
	if owner.IsProject() {
		r.Project = &owner.Project
	}
	id, err := s.o.Core.RegisterJob(ctx, r)
	if coreapi.Status(err) == http.StatusConflict {
		var found providerapi.Job
		found, ok, err = s.o.Core.FindJob(ctx, r.ProviderGeneratedID)
		if err == nil && !ok {
			err = errors.New("core says that the job is registered, and does not show it")
		}
		id = found.ID
	}
	if err != nil {
		if status := coreapi.Status(err); status >= 400 && status < 500 && status != http.StatusConflict {
			s.log.Warn("Core does not take a job that was submitted outside of it", "slurm", o.ID, "error", err)
			return false, nil
		}
		return false, err
	}
	return true, m.insertOutside(ctx, o, id, r, machine, owner, user, uid)
}

// insertOutside stores a job that Core has just been told about.
func (m *monitor) insertOutside(ctx context.Context, o *Observation, id string, r providerapi.RegisterJob, machine *Machine, owner ident.Owner, user ident.UCloudUser, uid ident.UID) error {
	s := m.s
	now := s.o.Now()
	j := store.Job{
		ID: id, UID: uid, CreatedBy: user, Owner: owner, Engine: ipcapi.EngineSlurm, Submission: store.JobSubmitted, Attempt: 1,
		EngineID: o.ID, PGID: r.ProviderGeneratedID, Account: o.Account, Partition: o.Partition, QoS: o.QoS, Product: machine.Name,
		Category: machine.Category, State: providerapi.JobInQueue, EngineState: o.Word, CoreKnown: 2, CoreChecked: now, Outside: true,
		Name: r.Spec.Name, AppName: r.Spec.Application.Name, AppVersion: r.Spec.Application.Version, Replicas: r.Spec.Replicas,
		LimitMs: o.Limit.Milliseconds(), CreatedAt: now, SubmittedAt: now, SeenAt: now, StartedAt: o.Started, Nodes: o.Nodes,
	}
	return s.o.Store.Update(ctx, func(tx *store.Tx) error {
		key, err := tx.InsertJob(j)
		if errors.Is(err, store.ErrConflict) {
			return nil
		}
		if err != nil {
			return err
		}
		j.Key = key
		if err := s.enter(tx, &j, o.State, message(&j, o)); err != nil {
			return err
		}
		tx.AfterCommit(func() { s.committed(&j) })
		return tx.UpdateJob(j)
	})
}

// smallest is the machine that fits best to what one node of the job has: the smallest with enough of everything, or the
// largest.
func smallest(machines []Machine, o *Observation, nodes int) *Machine {
	cpus, gpus := (o.CPUs+nodes-1)/nodes, (o.GPUs+nodes-1)/nodes
	memory := (o.MemoryMB/int64(nodes) + 1023) / 1024 // GB of the configuration are those of Slurm
	var best, largest *Machine
	for i := range machines {
		c := &machines[i]
		if largest == nil || c.CPU > largest.CPU {
			largest = c
		}
		if c.CPU < cpus || c.GPU < gpus || int64(c.MemoryGB) < memory {
			continue
		}
		if best == nil || c.GPU < best.GPU || c.GPU == best.GPU && c.CPU < best.CPU {
			best = c
		}
	}
	if best == nil {
		return largest
	}
	return best
}
