// Command ucloud is the gateway, the server and the operator's command line of the UCloud Integration Module.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"ucloud-im/internal/auth"
	"ucloud-im/internal/cli"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/rolegateway"
	"ucloud-im/internal/roleserver"
	"ucloud-im/packaging"
)

// version is set at link time.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	code := cli.Run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr, hooks())
	stop()
	os.Exit(code)
}

func hooks() cli.Hooks {
	info := ipcapi.VersionInfo{Version: version, StartedAt: time.Now()}
	return cli.Hooks{
		Version: info, Units: packaging.Units(),
		ParseKeys:   func(b []byte) error { _, err := auth.ParsePublicKeys(b); return err },
		Unsupported: roleserver.Unsupported,
		RunServer: func(ctx context.Context, o cli.RoleOptions) error {
			return roleserver.Run(ctx, roleserver.Options{ConfigDir: o.ConfigDir, Version: info})
		},
		RunGateway: func(ctx context.Context, o cli.RoleOptions) error {
			return rolegateway.Run(ctx, rolegateway.Options{ConfigDir: o.ConfigDir, Build: version, Sandbox: true})
		},
	}
}
