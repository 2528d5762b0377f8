package roleserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ucloud-im/internal/computeusage"
	"ucloud-im/internal/config"
	"ucloud-im/internal/driveplan"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/slurm"
	"ucloud-im/internal/slurmaccounts"
	"ucloud-im/internal/store"
)

// accounting is who finds and looks after Slurm accounts, and who counts what was used.
type accounting struct {
	slurm    *slurm.Client // nil: there is no Slurm
	accounts *slurmaccounts.Service
	charges  *computeusage.Service
}

// newSlurm makes the client of Slurm's commands; nil where there is no Slurm, or jobs run without it.
func (s *server) newSlurm(cfg *config.Config) *slurm.Client {
	c := cfg.Services.Slurm
	if c == nil || cfg.Development.FakeSlurm {
		return nil
	}
	return slurm.New(slurm.Options{Binaries: c.Binaries.String(), Timeout: time.Duration(c.CommandTimeout), Log: s.log})
}

// buildAccounts makes what services.slurm.accountManagement configures. Nothing is executed yet.
func (s *server) buildAccounts(context.Context) error {
	cfg := s.config.Load()
	s.slurm = s.newSlurm(cfg)
	plan, err := s.accountsPlan(cfg)
	if err != nil {
		return err
	}
	if err := s.useHooks(ofAccounts, plan.hooks); err != nil {
		return err
	}
	o := slurmaccounts.Options{
		Provider: cfg.Provider.ID.String(), Store: s.store, Accounts: accountsOf{s.users, s.policy, s.store}, Settings: plan.accounts, Log: s.log,
	}
	u := computeusage.Options{
		Provider: cfg.Provider.ID.String(), Store: s.store, Core: s.client, Settings: plan.usage, Retry: backoff(cfg), Log: s.log,
	}
	if s.slurm != nil {
		o.Cluster, u.Source = &slurmaccounts.Slurm{Client: s.slurm}, computeusage.Slurm{Client: s.slurm}
	}
	if s.accounts, err = slurmaccounts.New(o); err != nil {
		return err
	}
	if s.charges, err = computeusage.New(u); err != nil {
		return err
	}
	s.accountMetrics()
	return nil
}

// accountsPlan is services.slurm, as the parts take it.
type accountsPlan struct {
	accounts slurmaccounts.Settings
	usage    computeusage.Settings
	hooks    storagePlan
}

func (s *server) accountsPlan(cfg *config.Config) (p accountsPlan, err error) {
	c := cfg.Services.Slurm
	if c == nil {
		return p, nil
	}
	if s.slurm == nil && !cfg.Development.FakeSlurm {
		return p, errors.New("services.slurm was added: restart the server")
	}
	for name, m := range c.Machines.All() {
		account := slurmaccounts.Category{
			Name: name, Partition: m.Partition, QoS: m.QoS, Period: period(m.Payment.Interval), Unit: m.Payment.Unit,
			Money: m.Payment.Type == config.PaymentMoney, FreeToUse: m.FreeToUse,
		}
		used := computeusage.Category{
			Name: name, Partition: m.Partition, QoS: m.QoS, Period: account.Period, FreeToUse: m.FreeToUse, Unit: m.Payment.Unit,
		}
		if account.Money {
			account.Unit, used.Slices = m.Payment.Currency, slicesOf(m, name)
		}
		p.accounts.Categories, p.usage.Categories = append(p.accounts.Categories, account), append(p.usage.Categories, used)
	}
	p.usage.Poll, p.usage.Lookback = time.Duration(c.Poll.Usage), time.Duration(c.Poll.Lookback)
	a := c.Accounts
	if a == nil {
		return p, nil // unmanaged: users choose among the accounts that they have
	}
	if p.accounts.Mapping, err = s.accountMapping(&p.hooks, cfg, &a.Mapper); err != nil {
		return p, fmt.Errorf("services.slurm.accountManagement.accountMapper: %w", err)
	}
	switch {
	case a.Accounting.Type == slurmaccounts.Automatic && !cfg.Development.FakeSlurm:
		m := a.Accounting.Automatic
		p.accounts.Management = slurmaccounts.Management{
			Type: slurmaccounts.Automatic, KeepFairshare: m.Fairshare == "keep", Parent: m.ParentAccount.String(), CreateUsers: m.CreateUsers,
			SetDefaultAccount: m.SetDefaultAccount, Cleanup: m.Cleanup, WhenLocked: m.WhenLocked,
		}
		p.usage.Enabled = true
	case a.Accounting.Type == slurmaccounts.Scripted:
		if err := s.scriptedAccounting(&p, firstName(c.Machines.All()), a.Accounting.Scripted); err != nil {
			return p, fmt.Errorf("services.slurm.accountManagement.accounting.scripted: %w", err)
		}
	}
	return p, nil
}

// period is how many minutes a unit of a compute product lasts (contract 30 section 1).
func period(interval string) int64 {
	switch interval {
	case "Hourly":
		return 60
	case "Daily":
		return 24 * 60
	}
	return 1
}

// slicesOf are the machines of a category that counts money.
func slicesOf(m *config.Machine, category string) []computeusage.Slice {
	all := []computeusage.Slice{}
	for _, g := range m.SliceGroups(category).All() {
		for i := range min(len(g.CPU), len(g.Memory), len(g.Price)) {
			x := computeusage.Slice{CPU: int64(g.CPU[i]), MemoryGB: int64(g.Memory[i]), Price: g.Price[i].Millionths()}
			if i < len(g.GPU) {
				x.GPU = int64(g.GPU[i])
			}
			all = append(all, x)
		}
	}
	return all
}

func (s *server) accountMapping(p *storagePlan, cfg *config.Config, m *config.AccountMapper) (out slurmaccounts.Mapping, err error) {
	out.LocalName = cfg.Scripts.Compat.LocalNameAsUcloudUsername
	switch m.Type {
	case "Pattern":
		out.Users = func(v driveplan.Vars) (string, error) { return m.Users.Expand(v) }
		out.Projects = func(v driveplan.Vars) (string, error) { return m.Projects.Expand(v) }
	case "Scripted":
		hook, err := s.hook(p, scripts.HookAccountMapper, scripts.Purpose{
			At: "services.slurm.accountManagement.accountMapper.script", Form: scripts.FormAccount, Category: firstName(cfg.Services.Slurm.Machines.All()),
			Accept: func(_ context.Context, answer any, _ bool) error { return slurmaccounts.CheckName(answer.(string)) },
		}, m.Script, 0)
		if err != nil {
			return out, err
		}
		out.Script = func(ctx context.Context, owner ident.Owner, v driveplan.Vars) (string, error) {
			return scripts.MapAccount(ctx, hook, owner, v)
		}
	}
	return out, nil
}

func (s *server) scriptedAccounting(p *accountsPlan, category string, c *config.ScriptedAccounting) (err error) {
	about := func(name string, f scripts.Form) scripts.Purpose {
		return scripts.Purpose{At: "services.slurm.accountManagement.accounting.scripted." + name, Form: f, Category: category}
	}
	m := slurmaccounts.Management{Type: slurmaccounts.Scripted}
	if m.QuotaUpdated, err = s.hook(&p.hooks, scripts.HookQuotaUpdated, about(scripts.HookQuotaUpdated, scripts.FormAccountQuota), c.OnQuotaUpdated, scripts.AccountQuotaTimeout); err != nil {
		return err
	}
	if m.ProjectUpdated, err = s.hook(&p.hooks, scripts.HookProjectUpdated, about(scripts.HookProjectUpdated, scripts.FormAccountMembers), c.OnProjectUpdated, 0); err != nil {
		return err
	}
	if m.Disconnected, err = s.hook(&p.hooks, scripts.HookUserDisconnected, about(scripts.HookUserDisconnected, scripts.FormAccountDisconnected), c.OnUserDisconnected, 0); err != nil {
		return err
	}
	report, err := s.hook(&p.hooks, scripts.HookUsage, about(scripts.HookUsage, scripts.FormAccountUsage), c.OnUsageReporting, scripts.AccountUsageTimeout)
	if err != nil {
		return err
	}
	p.accounts.Management, p.usage.Enabled = m, true
	p.usage.Totals = func(ctx context.Context, accounts []string) (all []computeusage.Total, err error) {
		var reply scripts.AccountUsageReply
		if err := report.Call(ctx, scripts.Call{Request: scripts.AccountUsageRequest{Accounts: accounts}, Reason: "schedule"}, &reply); err != nil {
			return nil, err
		}
		for _, u := range reply.Usage {
			all = append(all, computeusage.Total{Account: u.Account, Category: u.Category, Minutes: *u.Minutes})
		}
		return all, nil
	}
	return nil
}

// setAccounts takes over services.slurm of a new configuration.
func (s *server) setAccounts(p accountsPlan) error {
	if err := s.useHooks(ofAccounts, p.hooks); err != nil {
		return err
	}
	if err := s.accounts.SetSettings(p.accounts); err != nil {
		return err
	}
	return s.charges.SetSettings(p.usage)
}

// membershipChanged has the Slurm accounts looked at in which a user is, or was until now.
func (s *server) membershipChanged(ctx context.Context, user ident.UCloudUser) {
	owners := []ident.Owner{{User: user}}
	if err := s.store.View(ctx, func(tx *store.Tx) error {
		owners = owners[:1]
		projects, err := tx.ProjectsOf(user)
		for _, p := range projects {
			owners = append(owners, ident.Owner{Project: p.ID})
		}
		return err
	}); err != nil {
		s.log.Error("the projects of a user cannot be read; their Slurm accounts are looked at within the hour", "user", user, "error", err)
	}
	s.accounts.Changed(owners...)
}

// accountStatus says how the accounts in Slurm are.
func (s *server) accountStatus(ctx context.Context) ipcapi.StatusPart {
	p := ipcapi.StatusPart{Name: "slurm-accounts", Health: ipcapi.HealthOK}
	st, err := s.accounts.Status(ctx)
	if err != nil {
		p.Health, p.Summary = ipcapi.HealthError, "cannot be counted"
		return p
	}
	switch p.Summary = fmt.Sprintf("%d", st.Accounts); {
	case st.Type == slurmaccounts.Off:
		p.Summary += ", not managed here"
	case st.Parked > 0:
		p.Health = ipcapi.HealthError
		p.Summary += fmt.Sprintf(", %d wait for you: %s", st.Parked, st.Error)
	case st.Failing > 0:
		p.Health = ipcapi.HealthWarning
		p.Summary += fmt.Sprintf(", %d are not as they should be and are tried again: %s", st.Failing, st.Error)
	}
	p.Facts = append(p.Facts, fact("accounts", st.Accounts), fact("failing", st.Failing), fact("waitForYou", st.Parked))
	return p
}

// chargeStatus says how counting and reporting of machines go.
func (s *server) chargeStatus(ctx context.Context) ipcapi.StatusPart {
	p := ipcapi.StatusPart{Name: "compute-usage", Health: ipcapi.HealthOK, Summary: "not counted here"}
	st, err := s.charges.Status(ctx)
	if err != nil {
		p.Health, p.Summary = ipcapi.HealthError, "cannot be counted"
		return p
	}
	if !st.Enabled {
		return p
	}
	p.Summary = fmt.Sprintf("%d totals, %d reported", st.Lines, st.Reported)
	switch {
	case st.Failures >= 3:
		p.Health = ipcapi.HealthError
		p.Summary += fmt.Sprintf("; not counted %d times in a row: %s", st.Failures, st.Error)
	case st.Failures > 0 || st.Refused > 0:
		p.Health = ipcapi.HealthWarning
		p.Summary += "; " + st.Error
	case st.Unmatched > 0:
		p.Health = ipcapi.HealthWarning
		p.Summary += fmt.Sprintf("; %d belong to no category and are charged to nobody", st.Unmatched)
	}
	p.Facts = append(p.Facts, fact("totals", st.Lines), fact("reported", st.Reported), fact("refused", st.Refused), fact("unmatched", st.Unmatched))
	return p
}

// accountMetrics adds the numbers about accounts and usage.
func (s *server) accountMetrics() {
	gauge := func(subsystem, name, help string, value func(ctx context.Context) (float64, error)) {
		s.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "ucloud", Subsystem: subsystem, Name: name, Help: help}, func() float64 {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			v, err := value(ctx)
			if err != nil {
				return -1
			}
			return v
		}))
	}
	account := func(f func(slurmaccounts.Status) int) func(context.Context) (float64, error) {
		return func(ctx context.Context) (float64, error) {
			st, err := s.accounts.Status(ctx)
			return float64(f(st)), err
		}
	}
	charge := func(f func(computeusage.Status) float64) func(context.Context) (float64, error) {
		return func(ctx context.Context) (float64, error) {
			st, err := s.charges.Status(ctx)
			return f(st), err
		}
	}
	gauge("slurm_accounts", "known", "Slurm accounts of workspaces.", account(func(st slurmaccounts.Status) int { return st.Accounts }))
	gauge("slurm_accounts", "failing", "Slurm accounts that are not as they should be and are tried again.", account(func(st slurmaccounts.Status) int { return st.Failing }))
	gauge("slurm_accounts", "parked", "Slurm accounts that wait for an operator.", account(func(st slurmaccounts.Status) int { return st.Parked }))
	gauge("compute_usage", "totals", "Workspaces and categories in the ledger.", charge(func(st computeusage.Status) float64 { return float64(st.Lines) }))
	gauge("compute_usage", "refused", "Totals that Core refuses.", charge(func(st computeusage.Status) float64 { return float64(st.Refused) }))
	gauge("compute_usage", "failures", "Counts that failed since the last success.", charge(func(st computeusage.Status) float64 { return float64(st.Failures) }))
	gauge("compute_usage", "unmatched", "Runs of jobs that belong to no category of their account.", charge(func(st computeusage.Status) float64 { return float64(st.Unmatched) }))
	gauge("compute_usage", "counted_timestamp_seconds", "When usage was last counted; 0: not since the start.", charge(func(st computeusage.Status) float64 {
		if st.CountedAt.IsZero() {
			return 0
		}
		return float64(st.CountedAt.Unix())
	}))
	gauge("compute_usage", "round_seconds", "How long the last count took.", charge(func(st computeusage.Status) float64 { return st.Took.Seconds() }))
}
