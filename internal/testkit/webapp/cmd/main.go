// Command cmd serves the application of package webapp, for jobs of tests.
package main

import (
	"flag"
	"fmt"
	"net/http"
	"os"

	"ucloud-im/internal/testkit/webapp"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address")
	name := flag.String("name", "webapp", "name of the application")
	flag.Parse()
	if err := http.ListenAndServe(*listen, webapp.Handler(*name)); err != nil { //nolint:gosec // a test
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
