// Package console holds the web page with which one is a UCloud user of the simulated Core: sign in, connect to the
// provider, and do with files what can be done with them. It makes the calls that the real web client makes; uploads and
// downloads go straight to the provider's gateway.
//
//	app.js        signing in, the connection, the list of drives
//	files.js      the listing of a folder, what is selected, and the buttons
//	upload.js     the client side of the upload protocol, without any page
//	transfers.js  the list of uploads
//	tasks.js      the list of background tasks
//	search.js     the search below a folder
//	jobs.js       the list of jobs and the page of a job
//	jobform.js    the fields of an application
//	terminal.js   a terminal; the emulator itself is xterm.js in vendor (scripts/vendor-console)
//	signing.js    the key of this browser, and what it signs
//	api.js        calls, and names and numbers for people
//
// Names of files come from whoever can write to a directory. They are only ever put into the page as text, and the
// policy that [ucloud-im/internal/devcore] sends lets nothing run but these files (TestBrowserOperations).
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
