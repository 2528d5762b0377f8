package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"ucloud-im/internal/config"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/localuser"
)

// defaultServiceAccount is who the service runs as unless somebody says otherwise.
const defaultServiceAccount = "ucloud"

func (a *app) configCommand() *cobra.Command {
	return noun("config", "configuration of the service",
		a.configCheckCommand(), a.configShowCommand(), a.configReloadCommand(), a.configDiffCommand(),
		a.verb("schema", "JSON Schema of config.yml", 0, 0, func(context.Context, *cobra.Command, []string) error {
			_, err := a.stdout.Write(config.Schema())
			return err
		}),
	)
}

// checkReport is the JSON of config check.
type checkReport struct {
	Dir      string                 `json:"dir"`
	Accepted bool                   `json:"accepted"`
	Problems []ipcapi.ConfigProblem `json:"problems"`
}

// problemsOf are problems as documents show them, the same from here and from the server.
func problemsOf(ps config.Problems) []ipcapi.ConfigProblem {
	out := make([]ipcapi.ConfigProblem, 0, len(ps))
	for _, p := range ps {
		out = append(out, ipcapi.ConfigProblem{
			Severity: p.Severity.String(), File: p.File, Line: p.Line, Column: p.Column, Key: p.KeyPath, Rule: p.Rule,
			Message: p.Message, Hint: p.Remedy,
		})
	}
	return out
}

func (a *app) configCheckCommand() *cobra.Command {
	var static bool
	var role, account string
	c := a.verb("check [DIR]", "check a configuration and print every problem", 0, 1, func(ctx context.Context, _ *cobra.Command, args []string) error {
		dir := a.dir()
		if len(args) == 1 {
			dir = args[0]
		}
		o, err := a.checkOptions(ctx, account)
		if err != nil {
			return err
		}
		switch o.Environment = !static; role {
		case "": // everything that is there
		case "server":
			o.Role = config.RoleServer
		case "gateway":
			o.Role = config.RoleGateway
		case "user": // what an instance learns comes from config.yml alone
			o.Role, o.Environment = config.RoleCLI, false
		default:
			return usagef("--role is server, gateway or user, not %q", role)
		}
		if !o.Environment || o.Role == config.RoleGateway { // nothing is said about the server of this machine
			o.Unsupported = nil
		}
		c, problems := config.Load(dir, o)
		if c != nil {
			problems = c.Warnings
			if o.Environment && o.Role != config.RoleGateway { // it is the server that has to do with Slurm
				service := ""
				if o.Service != nil {
					service = o.Service.Name
				}
				problems = append(problems, slurmProblems(ctx, c, service)...)
			}
		}
		rep := checkReport{Dir: dir, Accepted: !problems.HasErrors(), Problems: problemsOf(problems)}
		err = item(a, "config", "check", dir, rep, func() error {
			if len(problems) == 0 {
				_, err := fmt.Fprintf(a.stdout, "%s: accepted\n", clean(dir))
				return err
			}
			return problems.WriteText(a.stdout, a.coloured(a.stdout))
		})
		switch {
		case err != nil:
			return err
		case problems.HasErrors():
			return silent(ExitConfig)
		case len(problems) > 0:
			return silent(ExitWarnings)
		}
		return nil
	})
	c.Flags().BoolVar(&static, "static", false, "only rules that need nothing but the files")
	c.Flags().StringVar(&role, "role", "", "check what this role reads: server, gateway or user")
	c.Flags().StringVar(&account, "service-account", defaultServiceAccount, "account the service runs as, when root checks")
	return c
}

// checkOptions are the options of a check: root checks on behalf of the service account.
func (a *app) checkOptions(ctx context.Context, account string) (config.Options, error) {
	dir := localuser.NewDirectory(localuser.Options{})
	o := config.Options{
		Role: config.RoleCheck, Getenv: a.getenv, ParseKeys: a.hooks.ParseKeys, Unsupported: a.hooks.Unsupported,
		Group: func(name string) (config.Group, bool, error) {
			g, err := dir.Group(ctx, name)
			if failure.Is(err, failure.NotFound) {
				return config.Group{}, false, nil
			}
			return config.Group{GID: int(g.GID), Members: g.Members}, err == nil, err
		},
	}
	if hostUID() != 0 {
		return o, nil
	}
	acc, err := dir.ByName(ctx, account)
	if failure.Is(err, failure.NotFound) || failure.Is(err, failure.Invalid) {
		return o, nil // the rules say so
	}
	if err != nil {
		return o, err
	}
	gids, err := dir.Groups(ctx, acc.Name)
	if err != nil {
		return o, err
	}
	service := config.Account{Name: acc.Name, UID: int(acc.UID), GID: int(acc.GID)}
	for _, g := range gids {
		service.Groups = append(service.Groups, int(g))
	}
	o.Service = &service
	return o, nil
}

func (a *app) configShowCommand() *cobra.Command {
	var effective, origin, defaults bool
	c := a.verb("show [KEYPATH]", "print the configuration, without secrets", 0, 1, func(ctx context.Context, _ *cobra.Command, args []string) error {
		if defaults {
			_, err := fmt.Fprint(a.stdout, config.Reference())
			return err
		}
		o := config.PrintOptions{Effective: effective, Origin: origin, JSON: a.output == "json" || a.output == "jsonl"}
		if len(args) == 1 {
			o.KeyPath = args[0]
		}
		if !a.readable() {
			// An operator need not be able to read the files: the server shows what it uses.
			if o.KeyPath != "" || origin || o.JSON {
				return exitf(ExitPermission, "PERMISSION", "%s cannot be read by you; without these options the server's configuration is shown", a.dir())
			}
			running, err := call(ctx, a, ipcapi.ConfigRunning, ipcapi.Empty{})
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(a.stdout, running.YAML)
			return err
		}
		c, problems := config.Load(a.dir(), config.Options{Role: config.RoleCheck, Getenv: a.getenv})
		if c == nil {
			return problems
		}
		err := c.Print(a.stdout, o)
		if missing, ok := errors.AsType[*config.ErrNoSuchKey](err); ok {
			return exitf(ExitNoMatch, "NOT_FOUND", "%v", missing)
		}
		return err
	})
	c.Aliases = append(c.Aliases, "print") // contract 41 CLI-0
	c.Flags().BoolVar(&effective, "effective", false, "with defaults")
	c.Flags().BoolVar(&origin, "origin", false, "where each value comes from")
	c.Flags().BoolVar(&defaults, "defaults", false, "all keys with defaults and meaning, instead of the configuration")
	return c
}

// readable tells whether config.yml can be opened, or is missing for another reason than rights.
func (a *app) readable() bool {
	for _, name := range []string{"config.yml", "config.yaml"} {
		f, err := os.Open(filepath.Join(a.dir(), name))
		if err == nil {
			_ = f.Close()
			return true
		}
		if errors.Is(err, fs.ErrPermission) {
			return false
		}
	}
	return true
}

func (a *app) configReloadCommand() *cobra.Command {
	return a.verb("reload", "have the server read its configuration again", 0, 0, func(ctx context.Context, _ *cobra.Command, _ []string) error {
		return a.reload(ctx, "reload", a.dryRun)
	})
}

func (a *app) configDiffCommand() *cobra.Command {
	return a.verb("diff", "what a reload would change", 0, 0, func(ctx context.Context, _ *cobra.Command, _ []string) error {
		return a.reload(ctx, "diff", true)
	})
}

func (a *app) reload(ctx context.Context, verb string, dryRun bool) error {
	rep, err := call(ctx, a, ipcapi.ConfigReload, ipcapi.Reload{DryRun: dryRun})
	if err != nil {
		return err
	}
	refused := false
	for _, p := range rep.Problems {
		refused = refused || p.Severity == "error"
	}
	err = item(a, "config", verb, "config", rep, func() error { return a.printReload(rep, refused, dryRun) })
	if err == nil && refused {
		return silent(ExitConfig)
	}
	return err
}

func (a *app) printReload(rep ipcapi.ReloadReport, refused, dryRun bool) error {
	var lines [][]string
	for _, p := range rep.Problems {
		lines = append(lines, []string{p.Severity, clean(fmt.Sprintf("%s:%d", p.File, p.Line)), clean(p.Key), clean(p.Message)})
	}
	applied := "applied"
	switch {
	case refused:
		a.note("the configuration is not accepted; nothing is changed")
		return a.align(lines)
	case dryRun:
		applied = "a reload applies"
	}
	for _, k := range rep.Applied {
		lines = append(lines, []string{applied, clean(k)})
	}
	for _, k := range rep.NeedsRestart {
		lines = append(lines, []string{"needs a restart", clean(k)})
	}
	if len(lines) == 0 {
		a.note("no difference")
	}
	return a.align(lines)
}

// account looks a local account up for set-up and checks.
func account(ctx context.Context, name string) (localuser.Account, error) {
	a, err := localuser.NewDirectory(localuser.Options{}).ByName(ctx, name)
	if failure.Is(err, failure.NotFound) {
		e := exitf(ExitNoMatch, "NOT_FOUND", "there is no local account %q", name)
		return a, withHint(e, "useradd --system --home-dir /var/lib/ucloud --shell /usr/sbin/nologin %s", name)
	}
	return a, err
}

// isServiceAccount tells whether this process runs as the account.
func isServiceAccount(a localuser.Account) bool {
	return ident.UID(os.Geteuid()) == a.UID && a.UID != 0
}
