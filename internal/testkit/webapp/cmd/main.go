// Command cmd serves the application of package webapp, for jobs of tests.
package main

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"strings"

	"ucloud-im/internal/testkit/vnckit"
	"ucloud-im/internal/testkit/webapp"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address")
	name := flag.String("name", "webapp", "name of the application")
	obfuscate := flag.String("vncpasswd", "", "print the VNC password in this file in the form of password files, and end")
	flag.Parse()
	if *obfuscate != "" {
		password, err := os.ReadFile(*obfuscate)
		if err == nil {
			_, err = os.Stdout.Write(vnckit.Obfuscated(strings.TrimSpace(string(password))))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if err := http.ListenAndServe(*listen, webapp.Handler(*name)); err != nil { //nolint:gosec // a test
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
