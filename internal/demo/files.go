package demo

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"

	"ucloud-im/internal/devcore"
)

// directories makes the tree. Everything is remade with the right owner and mode at each start.
func (l *layout) directories() error {
	type dir struct {
		path string
		mode fs.FileMode
		own  bool // by the service account
	}
	dirs := []dir{
		{l.base, 0o755, false},
		{l.config, 0o750, true},
		{l.state, 0o700, true},
		{l.logs, 0o750, true},
		{l.run, 0o755, true},
		{filepath.Join(l.run, "private"), 0o700, true},
		{l.projects, 0o755, false},
		{filepath.Join(l.base, "spool"), 0o700, true},
	}
	if !l.root {
		dirs[0].mode = 0o700
	}
	if l.programs != "" {
		dirs = append(dirs, dir{l.programs, 0o755, false})
	}
	for _, d := range dirs {
		if err := os.MkdirAll(d.path, d.mode); err != nil {
			return err
		}
		if err := os.Chmod(d.path, d.mode); err != nil {
			return err
		}
		if l.root && d.own {
			if err := os.Chown(d.path, l.uid, l.gid); err != nil {
				return err
			}
		}
	}
	return l.projectDirectory()
}

// projectDirectory is the shared directory of the demo's project: setgid, so that files of one member can be used by
// the others.
func (l *layout) projectDirectory() error {
	path := filepath.Join(l.projects, string(projectID))
	if err := os.MkdirAll(path, 0o770); err != nil {
		return err
	}
	if l.root {
		g, err := user.LookupGroup(projectGroup)
		if err != nil {
			return err
		}
		gid, _ := strconv.Atoi(g.Gid)
		if err := os.Chown(path, 0, gid); err != nil {
			return err
		}
	}
	return os.Chmod(path, 0o770|fs.ModeSetgid)
}

// install copies the programs to where the service account can run them and only root can change them.
func (l *layout) install(from string) error {
	if l.programs == "" { // an ordinary user runs them in place
		abs, err := filepath.Abs(from)
		l.programs = abs
		return err
	}
	for _, name := range []string{"ucloud", "ucloud-user"} {
		if err := installFile(filepath.Join(from, name), filepath.Join(l.programs, name)); err != nil {
			return err
		}
	}
	return nil
}

func installFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	tmp := to + ".new"
	out, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Chmod(0o755), out.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, to)
}

var configTemplate = template.Must(template.New("config").Parse(`version: 1
provider:
  id: {{.Provider}}
  hosts:
    ucloud: { address: 127.0.0.1, port: {{.CorePort}}, scheme: http }
    self: { address: 127.0.0.1, port: {{.GatewayPort}}, scheme: http }
{{- if .Signing}}
  core:
    signedIntents: { mode: "{{.SignedIntents}}" }
{{- end}}
development:
  enabled: true # plain http on loopback
{{- if not .Partition}}
  fakeSlurm: true # jobs are processes of the users on this machine
{{- end}}
gateway:
  listen: ["127.0.0.1:{{.GatewayPort}}"]
internal:
  serverListen: unix:{{.Run}}/private/server.sock
metrics:
  listen: 127.0.0.1:{{.MetricsPort}}
stateDirectory: {{.State}}
ipc:
  directory: {{.Run}}
logs:
  destination: stdout
  directory: {{.Logs}}
  level: {{.LogLevel}}
database:
  type: sqlite
  path: {{.State}}/ucloud.db
scripts:
  spool: {{.Base}}/spool
userInstances:
{{- if .Self}}
  launcher: self
{{- end}}
  group: {{.Group}}
  deniedUsers: [root, {{.Service}}]
  executable: {{.Programs}}/ucloud-user
  idleTimeout: 10m
services:
  type: Slurm
  unmanaged: true
  identityManagement:
    type: Manual
    manual:
      tickets: { enabled: true, contact: hpc-help@demo.invalid }
      selfService: true
  fileSystems:
    {{.Category}}:
      payment: { type: Resource, unit: GB }
      driveLocators:
        home: { entity: User, pattern: "{{.Home}}", title: Home, freeQuota: 0 }
        work: { entity: Project, pattern: "{{.Projects}}/#{ucloudProjectId}", title: "Work (#{ucloudProjectTitle})" }
      userDrives: { locators: [home, work] }
  slurm:
    poll: { jobs: 2s }
    web: { enabled: true, prefix: app-, suffix: .apps.localhost, portRange: 15000-16999 }
    machines:
      {{.Machines}}:
        partition: {{or .Partition "none"}}
        payment: { type: Resource, unit: Cpu, interval: Minutely }
        cpu: [1, 2]
        memory: [1, 2]
        maxTime: 2h
`))

// configure writes the configuration files.
func (l *layout) configure(o Options, core *devcore.Core) error {
	var text strings.Builder
	deniedService := l.service
	if !l.root {
		deniedService = "nobody" // the one account there is must be allowed
	}
	err := configTemplate.Execute(&text, map[string]any{
		"Provider": Provider, "CorePort": o.CorePort, "GatewayPort": o.GatewayPort, "MetricsPort": o.GatewayPort + 1,
		"Run": l.run, "State": l.state, "Logs": l.logs, "LogLevel": o.LogLevel, "Base": l.base, "Self": !l.root,
		"Group": l.userGroup, "Service": deniedService, "Programs": l.programs, "Category": category,
		"Home": l.home, "Projects": l.projects, "Partition": l.partition, "Machines": machines, "Signing": o.signing(), "SignedIntents": o.SignedIntents,
	})
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name, text string
		mode       fs.FileMode
	}{
		{"config.yml", text.String(), 0o640},
		{"server.yml", "version: 1\nrefreshToken: " + core.RefreshToken() + "\n", 0o600},
		{"ucloud_crt.pem", core.PublicKey() + "\n", 0o644},
	} {
		path := filepath.Join(l.config, f.name)
		if err := os.WriteFile(path, []byte(f.text), f.mode); err != nil {
			return err
		}
		if err := os.Chmod(path, f.mode); err != nil {
			return err
		}
		if l.root {
			if err := os.Chown(path, l.uid, l.gid); err != nil {
				return err
			}
		}
	}
	return nil
}
