// Package packaging holds the files that a package installs, so that `ucloud setup` can print them and tests can check
// them.
package packaging

import (
	"embed"
	"io/fs"
)

//go:embed systemd/*.service sysctl/*.conf
var files embed.FS

// Units are the systemd units by file name.
func Units() map[string]string { return read("systemd") }

// Sysctl are the sysctl.d files by file name.
func Sysctl() map[string]string { return read("sysctl") }

func read(dir string) map[string]string {
	out := map[string]string{}
	entries, err := fs.ReadDir(files, dir)
	if err != nil {
		panic("packaging: " + err.Error()) // the directory is embedded above
	}
	for _, e := range entries {
		data, err := files.ReadFile(dir + "/" + e.Name())
		if err != nil {
			panic("packaging: " + err.Error())
		}
		out[e.Name()] = string(data)
	}
	return out
}
