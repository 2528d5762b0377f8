package roleserver

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ucloud-im/internal/config"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/jobs"
	"ucloud-im/internal/products"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/slurm"
	"ucloud-im/internal/store"
)

// compute is what jobs need.
type compute struct {
	jobs   *jobs.Service
	states atomic.Pointer[slurm.States]
}

// buildJobs makes the server's side of jobs; none without services.slurm. Nothing is executed yet.
func (s *server) buildJobs(context.Context) error {
	cfg := s.config.Load()
	if cfg.Services.Slurm == nil {
		return nil
	}
	states, err := slurmStates(cfg)
	if err != nil {
		return err
	}
	s.states.Store(states)
	o := jobs.Options{
		Provider: cfg.Provider.ID.String(), Store: s.store, Core: s.client, Accounts: s.accounts, Users: jobUsers{s}, Base: s.primaryDrive,
		Settings: func() jobs.Settings { return jobsOf(s.config.Load()) }, Log: s.log, Audit: s.audit,
	}
	if s.slurm != nil {
		o.Engine = jobs.Slurm{
			Client: s.slurm, States: s.states.Load, Service: s.serviceUID, Log: s.log,
			Partitions: func() []string { return partitions(s.config.Load()) },
			UID: func(name string) (ident.UID, bool) {
				_, uid, ok := jobUsers{s}.Mapped(name)
				return uid, ok
			},
		}
	}
	if s.jobs, err = jobs.New(o); err != nil {
		return err
	}
	s.jobMetrics()
	return nil
}

// slurmStates is the table of states with the site's changes.
func slurmStates(cfg *config.Config) (*slurm.States, error) {
	changes := map[string]string{}
	if c := cfg.Services.Slurm; c != nil {
		for name, meaning := range c.States.All() {
			changes[name] = *meaning
		}
	}
	states, err := slurm.NewStates(changes)
	if err != nil {
		return nil, fmt.Errorf("services.slurm.states: %w", err)
	}
	return states, nil
}

// partitions are those that jobs can be in; none: all are looked at.
func partitions(cfg *config.Config) []string {
	c := cfg.Services.Slurm
	if c == nil || !c.PartitionsFilter {
		return nil
	}
	var all []string
	seen := map[string]bool{}
	for _, m := range c.Machines.All() {
		if !seen[m.Partition] {
			seen[m.Partition] = true
			all = append(all, m.Partition)
		}
	}
	return all
}

// jobsOf are the settings of jobs.
func jobsOf(cfg *config.Config) jobs.Settings {
	c := cfg.Services.Slurm
	none := jobs.Settings{
		Machine:  func(providerapi.ProductReference) (jobs.Machine, bool) { return jobs.Machine{}, false },
		Category: func(string, string) ([]jobs.Machine, bool) { return nil, false },
		Keep:     time.Duration(cfg.Retention.FinishedJobs), Poll: time.Minute,
	}
	if c == nil { // it was removed by a reload; what runs is still watched
		return none
	}
	set := jobs.Settings{
		Folder: c.JobFolder, TimeExtension: c.TimeExtension, Poll: time.Duration(c.Poll.Jobs), Lookback: time.Duration(c.Poll.Lookback),
		RegisterOutside: c.ExternalJobs == "register", Keep: none.Keep, SSHLine: sshLine(cfg),
		Machine: func(ref providerapi.ProductReference) (jobs.Machine, bool) {
			m, ok := c.Machines.Get(ref.Category)
			if !ok || ref.Provider != cfg.Provider.ID.String() {
				return jobs.Machine{}, false
			}
			for _, s := range machinesOf(ref.Category, m) {
				if s.Name == ref.ID {
					return s, true
				}
			}
			return jobs.Machine{}, false
		},
		Category: func(partition, qos string) ([]jobs.Machine, bool) {
			found, category := (*config.Machine)(nil), ""
			for name, m := range c.Machines.All() {
				// One that names the QoS comes before one that takes any, as for usage.
				if m.Partition == partition && (m.QoS == "" && found == nil || m.QoS == qos && (found == nil || found.QoS != qos)) {
					found, category = m, name
				}
			}
			if found == nil {
				return nil, false
			}
			return machinesOf(category, found), true
		},
	}
	if c.Web.Enabled {
		set.PortMin, set.PortMax = int(c.Web.PortRange.First), int(c.Web.PortRange.Last)
	}
	return set
}

// machinesOf are the slices of a category.
func machinesOf(category string, m *config.Machine) []jobs.Machine {
	var all []jobs.Machine
	for group, g := range m.SliceGroups(category).All() {
		for i, name := range g.ProductNames(category, group) {
			s := jobs.Machine{
				Partition: m.Partition, QoS: m.QoS, Constraint: g.Constraint, Exclusive: g.Exclusive, FreeToUse: m.FreeToUse,
				MaxTime: time.Duration(m.MaxTime), MaxNodes: m.MaxNodes,
				JobMachine: ipcapi.JobMachine{
					Name: name, Category: category, CPU: g.CPU[i], CPUModel: g.CPUModel, MemoryGB: g.Memory[i], MemoryModel: g.MemoryModel,
				},
			}
			if i < len(g.GPU) && g.GPU[i] > 0 {
				s.GPU, s.GPUModel, s.GPUType = g.GPU[i], g.GPUModel, g.GPUType
			}
			all = append(all, s)
		}
	}
	return all
}

// sshLine says how to log in, in the form that the web interface knows (contract 21 section 8); nil: nothing is said.
func sshLine(cfg *config.Config) func(string) string {
	ssh := cfg.Services.SSH
	if !ssh.Enabled || ssh.Host == nil {
		return nil
	}
	address, port := ssh.Host.Address, ssh.Host.Port
	if ip := net.ParseIP(address); ip != nil {
		address = ip.String()
	}
	return func(name string) string {
		line := "ssh " + name + "@" + address
		if port != 0 && port != 22 {
			line += " -p " + strconv.Itoa(port)
		}
		return line
	}
}

// jobUsers tells jobs who accounts are.
type jobUsers struct{ s *server }

// LocalName implements [jobs.Users].
func (u jobUsers) LocalName(uid ident.UID) (string, bool) {
	name := u.s.localName(uid)
	return name, name != ""
}

// Mapped implements [jobs.Users].
func (u jobUsers) Mapped(name string) (ident.UCloudUser, ident.UID, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), nameTimeout)
	defer cancel()
	account, err := u.s.directory.ByName(ctx, name)
	if err != nil {
		return "", 0, false
	}
	user, ok := u.s.users.User(account.UID)
	return user, account.UID, ok
}

// primaryDrive is where the folder of jobs of a workspace lies: in its first drive, in the order of the configuration, that
// the user may write to. None: the home directory.
func (s *server) primaryDrive(ctx context.Context, owner ident.Owner, user ident.UCloudUser) (found *ipcapi.FoundDrive, err error) {
	err = s.store.View(ctx, func(tx *store.Tx) error {
		rows, err := tx.DrivesOf(owner)
		found = firstDrive(s.config.Load(), rows, user)
		return err
	})
	return found, err
}

func firstDrive(cfg *config.Config, rows []store.Drive, user ident.UCloudUser) *ipcapi.FoundDrive {
	for category, fs := range cfg.Services.FileSystems.All() {
		for locator := range fs.DriveLocators.All() {
			for i := range rows {
				d := &rows[i]
				if d.Category != category || d.Locator != locator || d.State != store.DriveRegistered || d.ReadOnly || d.Member != "" && d.Member != user {
					continue
				}
				return &ipcapi.FoundDrive{
					ID: d.ID, Owner: d.Owner, ProviderGeneratedID: d.ProviderGeneratedID, Title: d.Title, Product: d.Product, Category: d.Category,
				}
			}
		}
	}
	return nil
}

// jobSettings are the settings of jobs for instances. What concerns their scripts is added by the site cache.
func jobSettings(cfg *config.Config) ipcapi.JobSettings {
	c := cfg.Services.Slurm
	if c == nil {
		return ipcapi.JobSettings{}
	}
	out := ipcapi.JobSettings{
		Enabled: true, Engine: ipcapi.EngineSlurm, Binaries: c.Binaries.String(), TimeoutMs: time.Duration(c.CommandTimeout).Milliseconds(),
		OnSubmit: c.Hooks.OnJobSubmit.Path.String(), Web: c.Web.Enabled, VNC: c.Web.Enabled && c.VNC.Enabled,
	}
	if hook := c.Hooks.OnJobSubmit; out.OnSubmit != "" {
		out.OnSubmitArgs, out.OnSubmitProtocol = hook.Args, hook.Protocol
		out.OnSubmitTimeoutMs, out.OnSubmitIgnore = time.Duration(hook.Timeout).Milliseconds(), hook.OnFailure == "ignore"
		out.OnSubmitEnvironment = map[string]string{}
		for name, value := range hook.Environment.All() {
			out.OnSubmitEnvironment[name] = *value
		}
	}
	if cfg.Development.FakeSlurm {
		out.Engine = ipcapi.EngineLocal
	}
	return out
}

// jobMetrics are the metrics of jobs.
func (s *server) jobMetrics() {
	gauge := func(name, help string, value func(jobs.Health) float64) {
		s.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "ucloud", Subsystem: "jobs", Name: name, Help: help},
			func() float64 { return value(s.jobs.Health()) }))
	}
	gauge("watched", "Jobs that are watched in Slurm.", func(h jobs.Health) float64 { return float64(h.Watched) })
	gauge("missing", "Jobs that Slurm did not speak of in the last round.", func(h jobs.Health) float64 { return float64(h.Missing) })
	gauge("round_seconds", "How long the last look at Slurm took.", func(h jobs.Health) float64 { return h.LastTook.Seconds() })
	gauge("last_good_timestamp_seconds", "When Slurm last answered everything; 0: not since the start.", func(h jobs.Health) float64 {
		if h.LastGood.IsZero() {
			return 0
		}
		return float64(h.LastGood.Unix())
	})
	gauge("rounds", "Looks at Slurm since the start.", func(h jobs.Health) float64 { return float64(h.Rounds) })
	gauge("failed_rounds", "Looks at Slurm that were not answered completely, since the start.", func(h jobs.Health) float64 { return float64(h.Failures) })
	s.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "ucloud", Subsystem: "jobs", Name: "updates_waiting", Help: "Updates of jobs that Core has not taken.",
	}, func() float64 {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		n, err := s.waitingUpdates(ctx)
		if err != nil {
			return -1
		}
		return float64(n)
	}))
}

func (s *server) waitingUpdates(ctx context.Context) (n int, err error) {
	err = s.store.View(ctx, func(tx *store.Tx) error {
		n = 0
		counts, err := tx.JobUpdateCounts()
		for _, c := range counts {
			n += c
		}
		return err
	})
	return n, err
}

// staleRounds is after how many intervals without a good look at Slurm an operator should know.
const staleRounds = 10

// jobStatus says how jobs go.
func (s *server) jobStatus(ctx context.Context) ipcapi.StatusPart {
	p := ipcapi.StatusPart{Name: "jobs", Health: ipcapi.HealthOK}
	if s.jobs == nil {
		p.Summary = "not configured"
		return p
	}
	counts := map[string]int{}
	err := s.store.View(ctx, func(tx *store.Tx) error {
		clear(counts)
		all, err := tx.JobCounts()
		for _, c := range all {
			name := string(c.State)
			if c.Submission != store.JobSubmitted {
				name = string(c.Submission)
			}
			counts[name] += c.N
		}
		return err
	})
	waiting, waitErr := s.waitingUpdates(ctx)
	if err != nil || waitErr != nil {
		p.Health, p.Summary = ipcapi.HealthError, "cannot be counted"
		return p
	}
	p.Summary = fmt.Sprintf("%d running, %d waiting", counts[string(providerapi.JobRunning)], counts[string(providerapi.JobInQueue)])
	for _, name := range []string{
		string(providerapi.JobRunning), string(providerapi.JobInQueue), string(providerapi.JobSuspended), string(store.JobBegun), string(store.JobLost),
	} {
		p.Facts = append(p.Facts, fact(name, counts[name]))
	}
	p.Facts = append(p.Facts, fact("updatesWaiting", waiting))
	if s.slurm == nil {
		p.Summary += "; without Slurm, for trying out"
		return p
	}
	h := s.jobs.Health()
	p.Facts = append(p.Facts, fact("lastLookAtSlurm", h.LastGood), fact("took", h.LastTook.Round(time.Millisecond)), fact("missing", h.Missing))
	poll := time.Duration(0)
	if c := s.config.Load().Services.Slurm; c != nil {
		poll = time.Duration(c.Poll.Jobs)
	}
	if h.Err != nil && time.Since(h.LastGood) > staleRounds*poll {
		p.Health = ipcapi.HealthWarning
		p.Summary += "; Slurm does not answer: " + h.Err.Error()
	}
	return p
}

// computeProducts are the machines of the configuration as products.
func computeProducts(cfg *config.Config) []products.Compute {
	slurm := cfg.Services.Slurm
	if slurm == nil {
		return nil
	}
	var all []products.Compute
	for category, m := range slurm.Machines.All() {
		c := products.Compute{
			Category: category, Hidden: m.HiddenInGrants, FreeToUse: m.FreeToUse,
			Payment: products.Payment{
				Unit: computeUnit(m.Payment.Unit), Interval: products.Interval(m.Payment.Interval), Currency: m.Payment.Currency,
			},
		}
		for group, g := range m.SliceGroups(category).All() {
			for i, name := range g.ProductNames(category, group) {
				c.Machines = append(c.Machines, slice(m, g, i, name))
			}
		}
		all = append(all, c)
	}
	return all
}

// computeUnit is how Core calls what is counted (contract 30 section 1, "Price").
func computeUnit(unit string) string {
	return map[string]string{config.UnitCPU: "Core", config.UnitGPU: "GPU", config.UnitMemory: "GB"}[unit]
}

// slice is the product of element i of a group's lists. Its price is what one interval costs: the number of units that the
// machine has, or the amount of money.
func slice(m *config.Machine, g *config.MachineGroup, i int, name string) products.Machine {
	p := products.Machine{
		Name: name, Description: g.Description, CPU: g.CPU[i], CPUModel: g.CPUModel, MemoryGB: g.Memory[i], MemoryModel: g.MemoryModel,
		Fraction: providerapi.Fraction{Numerator: g.Fraction.Numerator, Denominator: g.Fraction.Denominator},
	}
	if i < len(g.GPU) && g.GPU[i] > 0 {
		p.GPU, p.GPUModel = g.GPU[i], g.GPUModel
	}
	switch {
	case m.Payment.Type == config.PaymentMoney:
		p.Price = g.Price[i].Millionths()
	case m.Payment.Unit == config.UnitGPU:
		p.Price = int64(p.GPU)
	case m.Payment.Unit == config.UnitMemory:
		p.Price = int64(p.MemoryGB)
	default:
		p.Price = int64(p.CPU)
	}
	return p
}
