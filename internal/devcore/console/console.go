// Package console holds the web page with which one is a UCloud user of the simulated Core: sign in, connect to the
// provider, look at drives, browse, make folders. It talks to the same calls that the real web client uses.
package console

import (
	"embed"
	"io/fs"
)

//go:embed static
var static embed.FS

// Files are the files of the page, index.html among them.
func Files() fs.FS {
	sub, err := fs.Sub(static, "static")
	if err != nil {
		panic("console: " + err.Error()) // the directory is embedded above
	}
	return sub
}
