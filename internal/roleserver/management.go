package roleserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"ucloud-im/internal/config"
	"ucloud-im/internal/driveplan"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/store"
	"ucloud-im/internal/usage"
	"ucloud-im/internal/usage/gift"
	"ucloud-im/internal/usage/quota"
)

// management is who makes directories, sets quotas, measures and reports.
type management struct {
	runner     *scripts.Runner
	spoolOpen  bool // guarded by reloading once the server runs
	hooks      hooksInUse
	locations  scripts.Locations
	quotas     *quota.Worker
	usage      *usage.Service
	drives     *driveplan.Planner
	gifts      *gift.Gifts
	scriptSeen scriptMetrics
}

// buildManagement makes what services.fileSystems configures. Nothing is executed yet.
func (s *server) buildManagement(cfg *config.Config) error {
	s.scriptSeen = newScriptMetrics(s.registry)
	var err error
	s.runner, err = scripts.New(scripts.Options{
		Provider: cfg.Provider.ID.String(), Spool: cfg.Scripts.Spool.String(), Home: cfg.StateDirectory.String(),
		Record: s.scripts, Observe: s.scriptSeen.observe, Log: s.log,
	})
	if err != nil {
		return err
	}
	plan, err := s.storagePlan(cfg)
	if err != nil {
		return err
	}
	if err := s.useHooks(ofStorage, plan); err != nil {
		return err
	}
	s.quotas, err = quota.New(quota.Options{
		Store: s.store, Categories: plan.quotas, Log: s.log,
		Recommend: func(ctx context.Context, d store.Drive) (driveplan.Recommendation, error) {
			return s.drives.Recommend(ctx, d)
		},
		Applied: func(owners ...ident.Owner) { s.drives.Changed(owners...) },
	})
	if err != nil {
		return err
	}
	s.usage, err = usage.New(usage.Options{
		Provider: cfg.Provider.ID.String(), Categories: plan.usage, Store: s.store, Core: s.client, Retry: backoff(cfg), Log: s.log,
	})
	if err != nil {
		return err
	}
	s.gifts, err = gift.New(gift.Options{
		Provider: cfg.Provider.ID.String(), Categories: plan.gifts, Store: s.store, Core: s.client, Declared: s.products.Declared,
		Outbox: s.outbox, Log: s.log,
	})
	if err != nil {
		return err
	}
	s.drives, err = driveplan.New(driveplan.Options{
		Provider: cfg.Provider.ID.String(), Categories: plan.locators, Store: s.store, Core: s.client, Products: s.products,
		Accounts: accountsOf{s.users, s.policy, s.store}, Outbox: s.outbox, Log: s.log,
		Registered: func(ident.Owner, ident.DriveID) { s.usage.Changed() },
	})
	return err
}

// storagePlan is services.fileSystems, as the parts take it.
type storagePlan struct {
	locators []driveplan.Category
	quotas   []quota.Category
	usage    []usage.Category
	gifts    []gift.Category
	hooks    []*scripts.Hook
}

// storagePlan makes hooks and categories of a configuration. It changes nothing but the defaults of scripts.
func (s *server) storagePlan(cfg *config.Config) (p storagePlan, err error) {
	s.runner.SetDefaults(scriptDefaults(cfg)) // hooks take them when they are made
	for name, fs := range cfg.Services.FileSystems.All() {
		if err := s.planFileSystem(&p, cfg, name, fs); err != nil {
			return p, fmt.Errorf("services.fileSystems.%s: %w", name, err)
		}
	}
	return p, nil
}

func scriptDefaults(cfg *config.Config) scripts.Defaults {
	return scripts.Defaults{
		Timeout: time.Duration(cfg.Scripts.Timeout), Concurrency: cfg.Scripts.Concurrency,
		MaxOutput: int(cfg.Scripts.MaxOutput.Bytes()), Redact: cfg.Scripts.Redact,
	}
}

func (s *server) planFileSystem(p *storagePlan, cfg *config.Config, name string, fs *config.FileSystem) error {
	m := fs.Management
	if m == nil {
		m = &config.Management{Type: config.ManagementNone}
	}
	drives := driveplan.Category{Name: name}
	measured := usage.Category{
		Name: name, UnitBytes: fs.Payment.UnitBytes(), Interval: time.Duration(m.Usage.Interval), Timeout: time.Duration(m.Usage.Timeout),
		Parallel: m.Usage.Parallel,
	}
	switch m.Type {
	case config.ManagementScripted:
		key := "services.fileSystems." + name + ".management.scripted."
		about := scripts.Purpose{At: key + scripts.HookQuotaUpdated, Form: scripts.FormDriveQuota, Category: name, Drive: s.driveID}
		about.Locator = firstName(fs.DriveLocators.All())
		updated, err := s.hook(p, scripts.HookQuotaUpdated, about, m.Scripted.OnQuotaUpdated, 0)
		if err != nil {
			return err
		}
		about.At, about.Form = key+scripts.HookDriveRemoved, scripts.FormDriveRemoved
		removed, err := s.hook(p, scripts.HookDriveRemoved, about, m.Scripted.OnDriveRemoved, 0)
		if err != nil {
			return err
		}
		about.At, about.Form = key+scripts.HookUsage, scripts.FormDriveUsage
		if m.Scripted.OnUsageReporting.Batch {
			about.Form = scripts.FormDriveUsages
		}
		report, err := s.hook(p, scripts.HookUsage, about, m.Scripted.OnUsageReporting, time.Duration(m.Usage.Timeout))
		if err != nil {
			return err
		}
		p.quotas = append(p.quotas, quota.Category{Name: name, UnitBytes: measured.UnitBytes, Updated: updated, Removed: removed})
		measured.Measure = usage.Scripted{Hook: report, Many: m.Scripted.OnUsageReporting.Batch, Owner: s.workspace}
		measured.Timeout = max(measured.Timeout, time.Duration(m.Scripted.OnUsageReporting.Timeout))
	case config.ManagementPosix:
		measured.Measure, measured.Scan = usage.StatFS{}, true
	}
	measured.Roots = map[string][]string{}
	for locatorName, l := range fs.DriveLocators.All() {
		for _, root := range l.AllowedRoots {
			measured.Roots[locatorName] = append(measured.Roots[locatorName], root.String())
		}
		if l.Hidden {
			continue
		}
		out, err := s.locator(p, name, locatorName, l)
		if err != nil {
			return err
		}
		switch m.Type {
		case config.ManagementScripted:
			withOwnership(&out, l)
			out.Ready = func(ctx context.Context, d store.Drive) (string, error) { return s.quotas.Ready(ctx, d) }
		case config.ManagementPosix:
			withOwnership(&out, l)
			out.Owned = s.ownerNumbers
		}
		drives.Locators = append(drives.Locators, out)
	}
	if g := freeQuota(name, fs); g.Units > 0 && cfg.Managed() {
		p.gifts = append(p.gifts, g)
	}
	p.locators, p.usage = append(p.locators, drives), append(p.usage, measured)
	return nil
}

// freeQuota is what every user gets of a product: that of all its locators for users together.
func freeQuota(name string, fs *config.FileSystem) gift.Category {
	g := gift.Category{Name: name}
	for _, l := range fs.DriveLocators.All() {
		if l.Entity == config.EntityUser && l.FreeQuota != nil {
			g.Units += int64(*l.FreeQuota)
			g.Again = g.Again || !l.FreeQuotaOnce
		}
	}
	return g
}

// giveGifts asks for what connected users were never given.
func (s *server) giveGifts(ctx context.Context) error {
	mappings, err := s.users.Mappings(ctx)
	if err != nil {
		return err
	}
	var users []ident.UCloudUser
	for _, m := range mappings {
		if m.State == store.MappingActive {
			users = append(users, m.User)
		}
	}
	return s.gifts.Repair(ctx, users)
}

// locator makes the locator of a configured one. Variables of pattern and title are needed, those of a script are up to
// the script.
func (s *server) locator(p *storagePlan, category, name string, l *config.DriveLocator) (driveplan.Locator, error) {
	out := driveplan.Locator{Name: name, Entity: driveplan.Entity(l.Entity), ReadOnly: l.ReadOnly}
	for _, root := range l.AllowedRoots {
		out.AllowedRoots = append(out.AllowedRoots, root.String())
	}
	if l.Script.IsSet() {
		h, err := s.hook(p, scripts.HookDriveLocator, scripts.Purpose{
			At: "services.fileSystems." + category + ".driveLocators." + name + ".script", Form: scripts.FormLocator, Category: category, Locator: name, Entity: string(l.Entity),
			Accept: func(_ context.Context, answer any, _ bool) error {
				return driveplan.CheckPath(answer.(scripts.Location).Path, out.AllowedRoots)
			},
		}, l.Script, 0)
		if err != nil {
			return out, err
		}
		ask := scripts.Locator[driveplan.Vars](h, &s.locations)
		out.Script = func(ctx context.Context, v driveplan.Vars) (driveplan.Found, error) {
			l, err := ask(ctx, v)
			return driveplan.Found(l), err
		}
		out.Needs = scriptNeeds(out.Entity)
	} else {
		out.Needs = l.Pattern.Variables()
		out.Pattern = func(v driveplan.Vars) (string, error) { return l.Pattern.Expand(v) }
	}
	if l.Title.IsSet() {
		out.Title = func(v driveplan.Vars) (string, error) { return l.Title.ExpandText(v) }
		need(&out, l.Title)
	}
	return out, nil
}

// scriptNeeds are the variables that must be known before a script is asked: who the owner is on this machine (contract
// 12 section 4: evaluation needs the mapping to exist). One that serves every owner is asked in any case.
func scriptNeeds(e driveplan.Entity) []string {
	switch e {
	case driveplan.EntityUser:
		return []string{driveplan.VarLocalUsername}
	case driveplan.EntityProject:
		return []string{driveplan.VarLocalGroupName}
	case driveplan.EntityMemberFiles:
		return []string{driveplan.VarLocalUsername, driveplan.VarLocalGroupName}
	}
	return nil
}

// withOwnership adds what the directory of a drive should be like, for whoever makes it.
func withOwnership(out *driveplan.Locator, l *config.DriveLocator) {
	out.Owner = func(v driveplan.Vars) (string, error) { return l.Ownership.Owner.Expand(v) }
	out.Group = func(v driveplan.Vars) (string, error) { return l.Ownership.Group.Expand(v) }
	out.Mode = uint32(l.Ownership.Mode)
	need(out, l.Ownership.Owner)
	need(out, l.Ownership.Group)
}

func need(out *driveplan.Locator, p config.Pattern) {
	for _, v := range p.Variables() {
		if !slices.Contains(out.Needs, v) {
			out.Needs = append(out.Needs, v)
		}
	}
}

// hook makes the hook of a configured program; nil if none is configured. timeout is the default, 0 that of the hook.
// about says what the hook is for, so that operators can try it.
func (s *server) hook(p *storagePlan, name string, about scripts.Purpose, e config.Exec, timeout time.Duration) (*scripts.Hook, error) {
	if !e.IsSet() {
		return nil, nil //nolint:nilnil // hooks may be absent
	}
	environment := map[string]string{}
	for k, v := range e.Environment.All() {
		environment[k] = *v
	}
	h, err := s.runner.Hook(scripts.HookOptions{
		Name: name, Path: e.String(), Args: e.Args, Timeout: cmp.Or(time.Duration(e.Timeout), timeout), Protocol: e.Protocol,
		Concurrency: e.Concurrency, Environment: environment, Purpose: about,
		Retry: scripts.Retry{Initial: time.Duration(e.Retry.Initial), Max: time.Duration(e.Retry.Max), Deadline: time.Duration(e.Retry.Deadline)},
	})
	if err == nil {
		p.hooks = append(p.hooks, h)
	}
	return h, err
}

// ownerNumbers looks up whom a directory should belong to.
func (s *server) ownerNumbers(ctx context.Context, owner, group string) (ident.UID, ident.GID, error) {
	account, err := s.directory.ByName(ctx, owner)
	if err != nil {
		return 0, 0, err
	}
	g, err := s.directory.Group(ctx, group)
	return account.UID, g.GID, err
}

// workspace tells a script whose a drive is, as far as that is known.
func (s *server) workspace(ctx context.Context, d store.Drive) scripts.Workspace {
	w := scripts.WorkspaceOf(d.Owner)
	if r, err := s.drives.Recommend(ctx, d); err == nil {
		quota.Identify(&w, r.Vars)
	}
	return w
}

// openSpool opens the directory for requests when there is a script for the first time: a provider without scripts needs
// none.
func (s *server) openSpool(p storagePlan) error {
	if len(p.hooks) == 0 || s.spoolOpen {
		return nil
	}
	if err := s.runner.Open(); err != nil {
		return err
	}
	s.spoolOpen = true
	return nil
}

// setStorage takes over services.fileSystems of a new configuration.
func (s *server) setStorage(ctx context.Context, p storagePlan) error {
	if err := s.useHooks(ofStorage, p); err != nil {
		return err
	}
	if err := s.quotas.SetCategories(p.quotas); err != nil {
		return err
	}
	if err := s.usage.SetCategories(p.usage); err != nil {
		return err
	}
	s.gifts.SetCategories(p.gifts)
	s.locations.Keep(p.hooks...)
	return errors.Join(s.drives.SetCategories(p.locators), s.giveGifts(ctx))
}

// ownersChanged has everything looked at again that depends on who owners are and what they were given.
func (s *server) ownersChanged(owners ...ident.Owner) {
	s.locations.Forget(owners...)
	s.quotas.Changed(owners...)
	s.drives.Changed(owners...)
	s.usage.Changed()
	s.accounts.Changed(owners...)
}

// apply has the quotas of an owner set again, because an operator wants it.
func (s *server) apply(owner ident.Owner) {
	s.locations.Forget(owner)
	s.quotas.Again(owner)
	s.accounts.Again(owner)
	s.drives.Changed(owner)
}

// units are the units of the storage products; those that count money have none.
func units(cfg *config.Config) map[string]string {
	out := map[string]string{}
	for name, fs := range cfg.Services.FileSystems.All() {
		out[name] = cmp.Or(fs.Payment.Unit, fs.Payment.Currency)
	}
	return out
}

// Unsupported refuses what the configuration may say and this version does not do: silence would be worse.
func Unsupported(cfg *config.Config) config.Problems {
	var out config.Problems
	refuse := func(key, remedy, message string, args ...any) {
		out = append(out, cfg.NewProblem(config.Error, "X-03", key, fmt.Sprintf(message, args...), remedy))
	}
	const guide = "use what this version offers, see docs/operator-guide.md"
	switch t := cfg.Services.Identity.Type; t {
	case config.IdentityManual, config.IdentityOIDC, config.IdentityScripted, config.IdentityStatic:
	default:
		refuse("services.identityManagement.type", guide, "identity management %q is not available in this version; Manual, OIDC, Scripted and Static are", t)
	}
	if cfg.Services.Identity.ProjectGroups == "scripted" {
		refuse("services.identityManagement.projectGroups", "write projectGroups: off, and give projects their groups by ucloud projects add", "groups of projects are not made by scripts in this version")
	}
	if c := cfg.Services.Identity.GroupCache.RefreshCommand; len(c) > 0 && !slices.Equal(c, config.DefaultRefreshCommand()) {
		refuse("services.identityManagement.groupCache.refreshCommand", "remove it, and have the script that makes accounts empty the cache itself",
			"the cache of the name service is not emptied by a command in this version; a new account has 30 s to be known")
	}
	if cfg.UserInstances.Launcher == "systemd" {
		refuse("userInstances.launcher", guide, `launcher "systemd" is not available in this version; sudo is`)
	}
	program := func(key string, e config.Exec) {
		if e.RunAs == "root" {
			refuse(key+".runAs", "let the script call sudo, with a rule for exactly what it needs", "scripts run as the service account in this version")
		}
		if len(e.PassSecrets) > 0 {
			refuse(key+".passSecrets", "put the secret into a file that only the service account can read", "passing secrets to scripts is not available in this version")
		}
	}
	if o := cfg.Services.Identity.OIDC; o != nil {
		program("services.identityManagement.oidc.onUserConnected", o.OnUserConnected)
	}
	program("services.identityManagement.manual.onTicketCreated", cfg.Services.Identity.Manual.OnTicketCreated)
	if c := cfg.Services.Identity.Scripted; c != nil {
		const key = "services.identityManagement.scripted."
		program(key+"onUserConnected", c.OnUserConnected)
		program(key+"onUserDisconnected", c.OnUserDisconnected)
		if c.OnProjectUpdated.IsSet() || c.OnProjectArchived.IsSet() {
			refuse(key+"onProject*", "remove it", "scripts are not told of projects in this version, except about Slurm accounts")
		}
	}
	for name, fs := range cfg.Services.FileSystems.All() {
		key := "services.fileSystems." + name
		for locatorName, l := range fs.DriveLocators.All() {
			program(key+".driveLocators."+locatorName+".script", l.Script)
		}
		m := fs.Management
		if m == nil || m.Type == config.ManagementNone {
			continue
		}
		if m.Type != config.ManagementPosix && m.Type != config.ManagementScripted {
			refuse(key+".management.type", "use None, Posix or Scripted", "management %q is not available in this version", m.Type)
			continue
		}
		if fs.Payment.Type == config.PaymentMoney {
			refuse(key+".payment.type", "use payment type Resource, or management type None", "an amount of money cannot be turned into a quota in bytes, nor usage in bytes into money")
		}
		if fs.Payment.Interval != "" {
			refuse(key+".payment.interval", "remove interval, or use management type None", "with management, storage is a quota that is counted once; accounting by time is not available in this version")
		}
		if sc := m.Scripted; sc != nil && m.Type == config.ManagementScripted {
			program(key+".management.scripted.onQuotaUpdated", sc.OnQuotaUpdated)
			program(key+".management.scripted.onUsageReporting", sc.OnUsageReporting)
			program(key+".management.scripted.onDriveRemoved", sc.OnDriveRemoved)
		}
	}
	if cfg.Services.Slurm != nil {
		unsupportedOfUsers(cfg.Services.Slurm, refuse)
	}
	if c := cfg.Services.Slurm; c != nil && c.Accounts != nil {
		const key = "services.slurm.accountManagement"
		program(key+".accountMapper.script", c.Accounts.Mapper.Script)
		if sc := c.Accounts.Accounting.Scripted; sc != nil {
			program(key+".accounting.scripted.onQuotaUpdated", sc.OnQuotaUpdated)
			program(key+".accounting.scripted.onProjectUpdated", sc.OnProjectUpdated)
			program(key+".accounting.scripted.onUsageReporting", sc.OnUsageReporting)
			program(key+".accounting.scripted.onUserDisconnected", sc.OnUserDisconnected)
			if sc.OnUsageReporting.AllowDecrease {
				refuse(key+".accounting.scripted.onUsageReporting.allowDecrease", "remove it", "a total of a Slurm account that falls is not taken over in this version")
			}
		}
	}
	return out
}

// unsupportedOfUsers is unsupported for the programs that instances run as their user.
func unsupportedOfUsers(c *config.Slurm, refuse func(key, remedy, message string, args ...any)) {
	with := func(key string, set bool, why string) {
		if set {
			refuse(key, "remove it", "%s", why)
		}
	}
	program := func(key string, e config.Exec) {
		with(key+".runAs", e.RunAs == "root", "the program runs as the user whose job it is")
		with(key+".passSecrets", len(e.PassSecrets) > 0, "a program that runs as a user gets no secrets")
		with(key+".concurrency", e.Concurrency != 0, "how many calls run at once in all instances cannot be bounded")
	}
	program("services.slurm.hooks.onJobSubmit", c.Hooks.OnJobSubmit)
	for i, e := range c.Templates.AllowScripts {
		key := fmt.Sprintf("services.slurm.templates.allowScripts[%d]", i)
		program(key, e)
		with(key+".args", len(e.Args) > 0, "a program that templates call gets one argument, the path of the variables")
		with(key+".timeout", e.Timeout != 0, "a program that templates call has two seconds, since UCloud waits for it")
		with(key+".protocol", e.Protocol > 1, "a program that templates call speaks protocol 1")
		with(key+".environment", e.Environment.Len() > 0, "a program that templates call has no variables of its own")
		with(key+".onFailure", e.OnFailure == "ignore", "without the answer of the program there is no script")
	}
}
