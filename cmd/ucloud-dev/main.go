// Command ucloud-dev holds what developers use: the demo with its simulated Core. It is never packaged.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"

	"ucloud-im/internal/demo"
	"ucloud-im/internal/devcore"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/intent"
)

// version is set at link time.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "ucloud-dev:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	command := ""
	if len(args) > 0 {
		command, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet("ucloud-dev "+command, flag.ContinueOnError)
	switch command {
	case "demo", "demo-clean":
		return runDemo(ctx, command, flags, args)
	case "captured", "forge":
		return runAttack(ctx, command, flags, args)
	default:
		return fmt.Errorf("usage: ucloud-dev demo|demo-clean|captured|forge [flags]")
	}
}

func runDemo(ctx context.Context, command string, flags *flag.FlagSet, args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	o := demo.Options{Out: os.Stdout, Version: version, Programs: filepath.Dir(self)}
	flags.IntVar(&o.CorePort, "core-port", 18880, "port of the simulated Core on loopback")
	flags.IntVar(&o.GatewayPort, "gateway-port", 18889, "port of the gateway on loopback; the next one is for metrics")
	flags.StringVar(&o.LogLevel, "log-level", "info", "level of the provider's logs")
	flags.StringVar(&o.SignedIntents, "signed-intents", intent.ModeOff, "what the provider does about calls that users have not signed: off, log or require")
	flags.BoolVar(&o.TakenOver, "taken-over", false, "the simulated Core is in wrong hands: see the commands captured and forge")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if !slices.Contains([]string{intent.ModeOff, intent.ModeLog, intent.ModeRequire}, o.SignedIntents) {
		return fmt.Errorf("--signed-intents is off, log or require, not %q", o.SignedIntents)
	}
	if command == "demo" {
		return demo.Run(ctx, o)
	}
	return demo.Clean(o)
}

func runAttack(ctx context.Context, command string, flags *flag.FlagSet, args []string) error {
	a := demo.Attacker{Out: os.Stdout}
	var f devcore.Forgery
	flags.StringVar(&a.Console, "console", "", "address of the console as the demo prints it, with the key")
	if command == "forge" {
		flags.IntVar(&f.Replay, "replay", 0, "send a captured call again: its number, see captured")
		flags.StringVar((*string)(&f.User), "user", "", "the UCloud user in whose name it is sent")
		flags.StringVar(&f.Method, "method", "", "method")
		flags.StringVar(&f.Path, "path", "", "path, such as /ucloud/demo/files/folder")
		flags.StringVar(&f.Body, "body", "", "body, JSON")
		flags.BoolVar(&f.NoIntents, "no-intent", false, "leave out the signed intent of the captured call")
		flags.Func("intent", "a signed intent, instead of that of the captured call; may be repeated", func(text string) error {
			f.Intents = append(f.Intents, text)
			return nil
		})
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	if f.User != "" {
		user, err := ident.ParseUCloudUser(string(f.User))
		if err != nil {
			return err
		}
		f.User = user
	}
	if command == "captured" {
		return a.Captured(ctx)
	}
	return a.Forge(ctx, f)
}
