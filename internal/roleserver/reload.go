package roleserver

import (
	"bytes"
	"context"
	"errors"

	"ucloud-im/internal/auth"
	"ucloud-im/internal/config"
	"ucloud-im/internal/ipcapi"
)

// reloadOnSignal is what SIGHUP does.
func (s *server) reloadOnSignal(ctx context.Context) {
	s.note(s.notifier.Reloading())
	defer func() { s.note(s.notifier.Ready()) }()
	report, err := s.reload(ctx, false)
	if err != nil {
		s.log.Error("configuration not reloaded, the old one stays in use", "error", err)
		return
	}
	wrong := false
	for _, p := range report.Problems {
		s.log.Warn("configuration", "severity", p.Severity, "file", p.File, "line", p.Line, "rule", p.Rule, "problem", p.Message, "remedy", p.Hint)
		wrong = wrong || p.Severity == config.Error.String()
	}
	if wrong {
		s.log.Error("configuration not reloaded, the old one stays in use")
		return
	}
	s.log.Info("configuration reloaded", "applied", report.Applied, "needs_restart", report.NeedsRestart)
}

// reload reads the configuration again, beside the one in use, and swaps it in if nothing is wrong with it (contract 40
// section 10). With dryRun it only tells what would happen. A report with problems of severity "error" means that nothing
// has changed.
func (s *server) reload(ctx context.Context, dryRun bool) (ipcapi.ReloadReport, error) {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	s.directory.Invalidate()
	old := s.config.Load()
	next, problems := load(ctx, old.Dir, s.directory)
	report := ipcapi.ReloadReport{Problems: wireProblems(problems)}
	if next == nil {
		return report, nil
	}
	applied, restart, refused := config.Diff(old, next)
	for _, c := range applied {
		report.Applied = append(report.Applied, c.KeyPath)
	}
	for _, c := range restart {
		report.NeedsRestart = append(report.NeedsRestart, c.KeyPath)
	}
	if len(refused) > 0 {
		report.Problems = append(report.Problems, wireProblems(refused)...)
		return report, nil
	}
	// Everything that can fail happens before anything is swapped.
	keys, keyErr := auth.ReadKeys(next.Provider.Core.KeyFiles())
	branding, brandingErr := loadBranding(next)
	catalogue, catalogueErr := newCatalogue(next)
	plan, planErr := s.storagePlan(next)
	accounts, accountsErr := s.accountsPlan(next)
	states, statesErr := slurmStates(next)
	applyLogin, loginErr := s.loginPlan(next)
	applyAssigned, assignedErr := s.assignedPlan(next)
	defer func() {
		if s.config.Load() == old { // nothing has changed after all
			s.runner.SetDefaults(scriptDefaults(old))
		}
	}()
	if err := errors.Join(keyErr, brandingErr, catalogueErr, planErr, accountsErr, statesErr, loginErr, assignedErr); err != nil {
		return report, err
	}
	if dryRun {
		return report, nil
	}
	if err := s.verifier.SetKeys(keys); err != nil {
		return report, err
	}
	s.use(next)
	s.setLevel(next)
	s.branding.Store(branding)
	s.core.SetRefreshToken(next.Server.RefreshToken.Value())
	s.states.Store(states)
	s.products.SetCatalog(catalogue)
	s.tasks.SetLimits(next.Tasks.MaxPerUser, next.Tasks.MaxGlobal)
	drivesErr := errors.Join(s.setStorage(ctx, plan), s.setAccounts(accounts), applyLogin(), applyAssigned(ctx))
	s.launcher.Reconfigure(ctx)
	s.launcher.Recheck(ctx) // maintenance, limits of uids and denied users may stop an instance
	return report, drivesErr
}

func wireProblems(problems []config.Problem) []ipcapi.ConfigProblem {
	out := make([]ipcapi.ConfigProblem, 0, len(problems))
	for _, p := range problems {
		out = append(out, ipcapi.ConfigProblem{
			Severity: p.Severity.String(), File: p.File, Line: p.Line, Column: p.Column, Key: p.KeyPath, Rule: p.Rule,
			Message: p.Message, Hint: p.Remedy,
		})
	}
	return out
}

// running gives the configuration in use, redacted.
func (s *server) running() (ipcapi.RunningConfig, error) {
	cfg := s.config.Load()
	var text bytes.Buffer
	err := cfg.Print(&text, config.PrintOptions{Effective: true})
	return ipcapi.RunningConfig{YAML: text.String(), Dir: cfg.Dir}, err
}
