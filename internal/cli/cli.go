// Package cli is the command line of operators and users (contract 41). It holds the commands, how they ask, print and
// fail; what they do is done by the server, over IPC.
//
// # Trust
//
// The command runs as whoever types it and has no rights of its own: the server decides by the kernel's uid. It reads
// the configuration only to find the socket. What the server sends was partly written by other people (user names,
// titles, messages), so everything is stripped of control characters before it reaches a terminal (TestNoTerminalEscapes).
//
// # Streams
//
// Data go to stdout, everything else to stderr. Without a terminal there are no colours, no questions and no padding.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ucloud-im/internal/config"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
)

// RoleOptions are what a role is started with.
type RoleOptions struct {
	ConfigDir string
	Stdout    io.Writer
	Stderr    io.Writer
}

// Hooks are what the program supplies that holds this command line.
type Hooks struct {
	// RunServer and RunGateway run a role until ctx ends. An error of [config.Problems] is printed with places and
	// remedies. Nil: the role is not part of the program.
	RunServer  func(ctx context.Context, o RoleOptions) error
	RunGateway func(ctx context.Context, o RoleOptions) error

	// ParseKeys checks a file with public keys of Core, for config check. Nil: only its size and mode are checked.
	ParseKeys func([]byte) error
	// Unsupported is what the server refuses beside the rules, see [config.Options]. Nil: nothing.
	Unsupported func(*config.Config) config.Problems

	// Version identifies the program; Protocol and Platform are filled in.
	Version ipcapi.VersionInfo

	// Units are the systemd units by file name, for setup systemd.
	Units map[string]string

	Now func() time.Time // nil: time.Now
}

// DefaultSocket is where the server listens if no readable configuration says otherwise.
const DefaultSocket = "/run/ucloud/ucloud.sock"

// app is one run of the program.
type app struct {
	hooks  Hooks
	getenv func(string) string
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer

	// Global flags.
	configDir string
	socket    string
	output    string
	json      bool
	quiet     bool
	verbose   bool
	noColor   bool
	yes       bool
	dryRun    bool
	timeout   time.Duration

	// serverUID overrides whose server is trusted; for tests, where the socket lies in a directory of the test.
	serverUID func(ident.UID) bool
}

// Run runs one command and gives its exit code (contract 41 section 3). args are without the program's name.
func Run(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer, h Hooks) int {
	if h.Now == nil {
		h.Now = time.Now
	}
	h.Version.Protocol, h.Version.Platform = ipcapi.Protocol, platform()
	a := &app{hooks: h, getenv: getenv, stdin: stdin, stdout: stdout, stderr: stderr}
	return a.run(ctx, args)
}

func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return ExitOK
	}
	return a.report(ctx, cmd, err)
}

// root builds the tree of commands.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "ucloud",
		Short: "UCloud Integration Module: gateway, server and operator commands",
		Long: "ucloud connects an HPC centre to UCloud. \"ucloud server\" and \"ucloud gateway\" are the services; all other " +
			"commands ask the server, which decides by your user id what you may do.",
		SilenceErrors: true, SilenceUsage: true,
		SuggestionsMinimumDistance: 2,
		Version:                    a.hooks.Version.Version,
		PersistentPreRunE:          func(cmd *cobra.Command, _ []string) error { return a.prepare(cmd) },
		Args:                       cobra.ArbitraryArgs,
		RunE:                       group,
	}
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(flagError)
	root.SetHelpCommand(&cobra.Command{Use: "no-help", Hidden: true}) // --help exists at every level
	root.CompletionOptions.HiddenDefaultCmd = false

	f := root.PersistentFlags()
	f.StringVar(&a.configDir, "config-dir", "", "configuration directory (default "+config.DefaultDir+", or UCLOUD_CONFIG_DIR)")
	f.StringVar(&a.socket, "socket", "", "socket of the server (default as configured, else "+DefaultSocket+")")
	f.StringVarP(&a.output, "output", "o", "table", "table, wide, json, jsonl, yaml, csv or name")
	f.BoolVar(&a.json, "json", false, "same as --output json")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "print data only")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "print more about what happens")
	f.BoolVar(&a.noColor, "no-color", false, "no colours")
	f.BoolVarP(&a.yes, "yes", "y", false, "do not ask")
	f.BoolVar(&a.dryRun, "dry-run", false, "check and show what would change, and change nothing")
	f.DurationVar(&a.timeout, "timeout", 30*time.Second, "how long to wait for an answer")

	root.AddCommand(
		a.serverCommand(), a.gatewayCommand(), a.connectCommand(), a.meCommand(), a.usersCommand(), a.ticketsCommand(),
		a.statusCommand(), a.instancesCommand(), a.drivesCommand(), a.projectsCommand(), a.allocationsCommand(), a.configCommand(), a.doctorCommand(), a.setupCommand(),
		a.versionCommand(), a.schemaCommand(),
		a.scriptsCommand(),
		a.tasksCommand(),
		a.jobsCommand(),
		a.appsCommand(),
		a.slurmAccountsCommand(), a.slurmCommand(),
		a.keysCommand(), a.intentsCommand(),
	)
	return root
}

// prepare checks the global flags before any command runs.
func (a *app) prepare(cmd *cobra.Command) error {
	if a.json {
		if cmd.Flags().Changed("output") && a.output != "json" {
			return usagef("--json and --output %s contradict each other", a.output)
		}
		a.output = "json"
	}
	if !validFormat(a.output) {
		return usagef("unknown output format %q: use %s", a.output, strings.Join(formats, ", "))
	}
	if a.timeout <= 0 {
		return usagef("--timeout must be positive")
	}
	return nil
}

// deadline gives the context of one command.
func (a *app) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, a.timeout)
}

// note prints something that is no data, unless the user wants silence.
func (a *app) note(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintln(a.stderr, clean(fmt.Sprintf(format, args...)))
	}
}

// group is what a command does that only has other commands below it.
func group(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usagef("%s needs a command", cmd.CommandPath())
	}
	word := clean(args[0])
	err := usagef("unknown command %q for %q", word, cmd.CommandPath())
	if near := suggestions(cmd, args[0]); len(near) > 0 {
		err = withHint(err, "did you mean %s?", strings.Join(near, " or "))
	}
	return err
}

// suggestions are commands that look like the word, aliases included.
func suggestions(cmd *cobra.Command, word string) []string {
	near := cmd.SuggestionsFor(word)
	for i := range near {
		near[i] = cmd.CommandPath() + " " + near[i]
	}
	return near
}

// flagError turns pflag's errors into ours, with a suggestion for a misspelt name.
func flagError(cmd *cobra.Command, err error) error {
	u := usagef("%s", clean(err.Error()))
	if name, ok := strings.CutPrefix(err.Error(), "unknown flag: --"); ok {
		if near := nearestFlag(cmd, name); near != "" {
			u = withHint(u, "did you mean --%s?", near)
		}
	}
	return u
}

// noun makes a command that groups others.
func noun(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, RunE: group, SuggestionsMinimumDistance: 2}
	c.AddCommand(subs...)
	return c
}

// verbAliases are the other words for each verb (contract 41 CLI-4).
var verbAliases = map[string][]string{
	"list":   {"ls"},
	"show":   {"get", "view", "stat", "retrieve"},
	"remove": {"rm", "delete", "del"},
	"add":    {"create"},
	"set":    {"replace", "update"},
}

// verb makes a command that does something. Arguments beyond most are an error; -1 means any number.
func (a *app) verb(use, short string, least, most int, run func(ctx context.Context, cmd *cobra.Command, args []string) error) *cobra.Command {
	word, _, _ := strings.Cut(use, " ")
	return &cobra.Command{
		Use: use, Short: short, Aliases: verbAliases[word],
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) < least:
				return usagef("an argument is missing: %s", cmd.UseLine())
			case most >= 0 && len(args) > most:
				return usagef("unexpected argument %q", clean(args[most]))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return run(cmd.Context(), cmd, args) },
	}
}

func (a *app) serverCommand() *cobra.Command {
	return a.roleCommand("server", "run IM/Server", a.hooks.RunServer)
}

func (a *app) roleCommand(use, short string, run func(context.Context, RoleOptions) error) *cobra.Command {
	return a.verb(use, short, 0, 0, func(ctx context.Context, _ *cobra.Command, _ []string) error {
		if run == nil {
			return errors.New("this program does not hold that role")
		}
		return run(ctx, RoleOptions{ConfigDir: a.dir(), Stdout: a.stdout, Stderr: a.stderr})
	})
}

// dir is the configuration directory (contract 40 CFG-1).
func (a *app) dir() string {
	switch {
	case a.configDir != "":
		return a.configDir
	case a.getenv("UCLOUD_CONFIG_DIR") != "":
		return a.getenv("UCLOUD_CONFIG_DIR")
	}
	return config.DefaultDir
}

// dirGiven tells whether somebody chose the directory.
func (a *app) dirGiven() bool { return a.configDir != "" || a.getenv("UCLOUD_CONFIG_DIR") != "" }

// hostUID is the uid that runs the command.
func hostUID() ident.UID { return ident.UID(os.Getuid()) }
