// Command ucloud-user is one user's instance: it runs as that user and serves the user's requests. It takes no
// arguments and is started by the IM/Server only; see package roleuser.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"ucloud-im/internal/roleuser"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	code := roleuser.Run(ctx)
	stop()
	os.Exit(code)
}
