package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ucloud-im/internal/ipcapi"
)

func platform() string { return runtime.GOOS + "/" + runtime.GOARCH }

func (a *app) statusCommand() *cobra.Command {
	var watch time.Duration
	c := a.verb("status", "health of the service on one screen", 0, 0, func(ctx context.Context, _ *cobra.Command, _ []string) error {
		if watch < 0 || watch > 0 && watch < 100*time.Millisecond {
			return usagef("--watch must be at least 100ms")
		}
		for {
			rep, err := call(ctx, a, ipcapi.ServiceStatus, ipcapi.Empty{})
			if err != nil {
				return err
			}
			if err := a.printStatus(rep); err != nil {
				return err
			}
			if watch == 0 {
				return healthExit(rep.Health)
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(watch):
			}
		}
	})
	c.Flags().DurationVar(&watch, "watch", 0, "print again after this time, until interrupted")
	return c
}

// healthExit is the exit code of status and doctor: 0, 10 or 11 (contract 41 section 3).
func healthExit(h ipcapi.Health) error {
	switch h {
	case ipcapi.HealthOK:
		return nil
	case ipcapi.HealthWarning:
		return silent(ExitWarnings)
	}
	return silent(ExitErrors)
}

func (a *app) healthText(h ipcapi.Health) string {
	switch h {
	case ipcapi.HealthOK:
		return a.colour("32", "ok")
	case ipcapi.HealthWarning:
		return a.colour("33", "warning")
	}
	return a.colour("31", "error")
}

func (a *app) printStatus(rep ipcapi.StatusReport) error {
	return item(a, "service", "status", string(rep.Health), rep, func() error {
		head := fmt.Sprintf("%s: %s, version %s, up since %s", clean(rep.Provider), a.healthText(rep.Health), clean(rep.Version.Version), localTime(&rep.Version.StartedAt))
		if _, err := fmt.Fprintln(a.stdout, head); err != nil {
			return err
		}
		if rep.Development {
			a.note("development switches are on: not for production")
		}
		if rep.Maintenance != "" {
			a.note("maintenance: %s", rep.Maintenance)
		}
		var lines [][]string
		for _, p := range rep.Parts {
			lines = append(lines, []string{clean(p.Name), a.healthText(p.Health), clean(p.Summary)})
			if a.output == "wide" || a.verbose {
				for _, f := range p.Facts {
					lines = append(lines, []string{"", "", clean(f.Name + ": " + f.Value)})
				}
			}
		}
		return a.align(lines)
	})
}

// versions is what "ucloud version" says.
type versions struct {
	Client ipcapi.VersionInfo  `json:"client"`
	Server *ipcapi.VersionInfo `json:"server"`
}

func (a *app) versionCommand() *cobra.Command {
	return a.verb("version", "version of this program, and of the service if it runs", 0, 0, func(ctx context.Context, _ *cobra.Command, _ []string) error {
		v := versions{Client: a.hooks.Version}
		if server, err := a.serverVersion(ctx); err == nil {
			v.Server = &server
		}
		return item(a, "version", "show", v.Client.Version, v, func() error {
			line := func(who string, i ipcapi.VersionInfo) error {
				_, err := fmt.Fprintln(a.stdout, strings.Join(strings.Fields(clean(fmt.Sprintf("%s %s %s %s %s", who, i.Version, i.Commit, i.BuildTime, i.Platform))), " "))
				return err
			}
			if err := line("ucloud", v.Client); err != nil || v.Server == nil {
				return err
			}
			return line("server", *v.Server)
		})
	})
}

// serverVersion asks a running service, and does not wait for one that hangs.
func (a *app) serverVersion(ctx context.Context) (ipcapi.VersionInfo, error) {
	quick := *a
	quick.timeout, quick.verbose = min(a.timeout, 2*time.Second), false
	return call(ctx, &quick, ipcapi.ServiceVersion, ipcapi.Empty{})
}

func (a *app) gatewayCommand() *cobra.Command {
	c := a.roleCommand("gateway", "run the gateway; with dump, show what the gateways know", a.hooks.RunGateway)
	run := c.RunE
	c.Args = cobra.ArbitraryArgs
	c.SuggestionsMinimumDistance = 2
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return group(cmd, args)
		}
		return run(cmd, args)
	}
	var routes, tokens bool
	dump := a.verb("dump", "the route table", 0, 0, func(ctx context.Context, _ *cobra.Command, _ []string) error {
		state, err := call(ctx, a, ipcapi.GatewayDump, ipcapi.GatewayDumpRequest{Tokens: tokens})
		if err != nil {
			return err
		}
		return item(a, "gateway", "dump", "gateway", state, func() error { return a.printGateway(state, routes) })
	})
	dump.Flags().BoolVar(&routes, "routes", false, "routes only")
	dump.Flags().BoolVar(&tokens, "tokens", false, "keys of the routes as well; root only, audited")
	c.AddCommand(dump)
	return c
}

func (a *app) printGateway(s ipcapi.GatewayState, routesOnly bool) error {
	var lines [][]string
	if !routesOnly {
		for _, g := range s.Gateways {
			lines = append(lines, []string{
				"gateway", fmt.Sprint(g.PID), clean(strings.Join(g.Listen, " ")), clean(g.Build),
				fmt.Sprintf("update %d of %d applied", g.Applied, g.Sent), "sandbox: " + clean(g.Sandbox),
			})
		}
	}
	for _, r := range s.Routes {
		lines = append(lines, []string{
			"route", uidText(r.UID), clean(string(r.User)), fmt.Sprintf("127.0.0.1:%d", r.Port), fmt.Sprintf("%d.%d", r.Route, r.Generation), clean(r.Key),
		})
	}
	return a.align(lines)
}

func (a *app) schemaCommand() *cobra.Command {
	return a.verb("schema NOUN VERB", "JSON Schema of a command's output", 2, 2, func(_ context.Context, cmd *cobra.Command, args []string) error {
		s, err := outputSchema(cmd.Root(), args[0], args[1])
		if err != nil {
			return err
		}
		raw, err := json.MarshalIndent(s, "", "  ")
		if err != nil {
			return errors.Join(errors.New("write the schema"), err)
		}
		_, err = fmt.Fprintln(a.stdout, string(raw))
		return err
	})
}
