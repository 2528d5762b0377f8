package jobs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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
		why, err := s.register(ctx, owners, set, &o)
		if err != nil {
			return err // Core would not take the others either, and the monitor has to go on
		}
		if why != "" {
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

// candidate is a job that was submitted without us, with what Core would be told about it.
type candidate struct {
	user    ident.UCloudUser
	uid     ident.UID
	owner   ident.Owner
	machine *Machine
	nodes   int
	known   string // Core's id, if it was registered before
}

// classify decides whether Core is told about a job that was submitted without us. why is empty if it is; otherwise it is the
// reason, for operators.
func (s *Service) classify(ctx context.Context, owners Owners, set Settings, o *Observation) (c candidate, why string, err error) {
	var ok bool
	if c.user, c.uid, ok = s.o.Users.Mapped(o.User); !ok {
		return c, "the account " + o.User + " is not connected to a UCloud user", nil
	}
	if err := s.o.Store.View(ctx, func(tx *store.Tx) error {
		rows, err := tx.JobsByEngineID(ipcapi.EngineSlurm, o.ID)
		for i := range rows {
			if rows[i].UID == c.uid {
				c.known = rows[i].ID
			}
		}
		return err
	}); err != nil {
		return c, "", err
	}
	if c.known != "" {
		return c, "it is job " + c.known + " of UCloud already", nil
	}
	machines, ok := set.Category(o.Partition, o.QoS)
	if !ok || len(machines) == 0 {
		return c, fmt.Sprintf("no category of machines has the partition %q with the QoS %q", o.Partition, o.QoS), nil
	}
	category := machines[0].Category
	if c.owner, ok, err = owners.OwnerOf(ctx, o.Account, category); err != nil || !ok {
		return c, fmt.Sprintf("the Slurm account %q is not that of a workspace in category %s", o.Account, category), err
	}
	switch {
	case c.owner.IsProject():
		belongs := false
		if err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) { belongs, _, err = member(tx, c.owner.Project, c.user); return err }); err != nil {
			return c, "", err
		}
		if !belongs {
			return c, fmt.Sprintf("%s does not belong to project %s, whose account %s is", c.user, c.owner.Project, o.Account), nil
		}
	case c.owner.User != c.user:
		return c, fmt.Sprintf("the account %s is that of %s, and the job is one of %s", o.Account, c.owner.User, c.user), nil
	}
	c.nodes = max(o.NodeCount, 1)
	c.machine = smallest(machines, o, c.nodes)
	return c, "", nil
}

// register tells Core about a job. A reason: it is none that Core is told about.
func (s *Service) register(ctx context.Context, owners Owners, set Settings, o *Observation) (why string, err error) {
	c, why, err := s.classify(ctx, owners, set, o)
	if err != nil || why != "" {
		return why, err
	}
	submitted := o.Submitted
	if submitted.IsZero() {
		submitted = time.Unix(0, 0)
	}
	r := providerapi.RegisterJob{
		// The same in every attempt, so that a job is registered once.
		ProviderGeneratedID: o.Account + "/" + o.ID + "/" + strconv.FormatInt(submitted.UnixMilli(), 10), CreatedBy: &c.user,
		Spec: providerapi.JobSpecification{
			Product:     providerapi.ProductReference{ID: c.machine.Name, Category: c.machine.Category, Provider: s.o.Provider},
			Application: providerapi.ApplicationReference{Name: "unknown", Version: "unknown"},
			Name:        clip(o.Name, 200) + " (SlurmID: " + o.ID + ")", Replicas: c.nodes, Parameters: map[string]providerapi.AppParameterValue{},
		},
	}
	if o.Limit > 0 {
		d := providerapi.SimpleDurationOf(o.Limit)
		r.Spec.TimeAllocation = &d
	}
	if c.owner.IsProject() {
		r.Project = &c.owner.Project
	}
	id, err := s.o.Core.RegisterJob(ctx, r)
	if coreapi.Status(err) == http.StatusConflict {
		var found providerapi.Job
		var ok bool
		found, ok, err = s.o.Core.FindJob(ctx, r.ProviderGeneratedID)
		if err == nil && !ok {
			err = errors.New("core says that the job is registered, and does not show it")
		}
		id = found.ID
	}
	if err != nil {
		if status := coreapi.Status(err); status >= 400 && status < 500 && status != http.StatusConflict {
			s.log.Warn("Core does not take a job that was submitted outside of it", "slurm", o.ID, "error", err)
			return "UCloud does not take it: " + err.Error(), nil
		}
		return "", err
	}
	return "", s.insertOutside(ctx, o, id, &r, &c)
}

// insertOutside stores a job that Core has just been told about.
func (s *Service) insertOutside(ctx context.Context, o *Observation, id string, r *providerapi.RegisterJob, c *candidate) error {
	now := s.o.Now()
	j := store.Job{
		ID: id, UID: c.uid, CreatedBy: c.user, Owner: c.owner, Engine: ipcapi.EngineSlurm, Submission: store.JobSubmitted, Attempt: 1,
		EngineID: o.ID, PGID: r.ProviderGeneratedID, Account: o.Account, Partition: o.Partition, QoS: o.QoS, Product: c.machine.Name,
		Category: c.machine.Category, State: providerapi.JobInQueue, EngineState: o.Word, CoreKnown: 2, CoreChecked: now, Outside: true,
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
		if best == nil || cmp.Or(cmp.Compare(c.GPU, best.GPU), cmp.Compare(c.CPU, best.CPU), cmp.Compare(c.MemoryGB, best.MemoryGB)) < 0 {
			best = c
		}
	}
	if best == nil {
		return largest
	}
	return best
}
