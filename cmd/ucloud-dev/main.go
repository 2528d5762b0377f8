// Command ucloud-dev holds what developers use: the demo with its simulated Core. It is never packaged.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"ucloud-im/internal/demo"
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
	self, err := os.Executable()
	if err != nil {
		return err
	}
	o := demo.Options{Out: os.Stdout, Version: version, Programs: filepath.Dir(self)}
	command := ""
	if len(args) > 0 {
		command, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet("ucloud-dev "+command, flag.ContinueOnError)
	flags.IntVar(&o.CorePort, "core-port", 18880, "port of the simulated Core on loopback")
	flags.IntVar(&o.GatewayPort, "gateway-port", 18889, "port of the gateway on loopback; the next one is for metrics")
	flags.StringVar(&o.LogLevel, "log-level", "info", "level of the provider's logs")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch command {
	case "demo":
		return demo.Run(ctx, o)
	case "demo-clean":
		return demo.Clean(o)
	default:
		return fmt.Errorf("usage: ucloud-dev demo|demo-clean [flags]")
	}
}
