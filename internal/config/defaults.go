package config

import (
	"os"
	"path/filepath"
)

// computeDefaults fills what depends on other keys. All other defaults stand in the tags of the structs; each one here is
// described by a defaultDoc tag.
func (l *loader) computeDefaults() {
	c := l.config
	if c.Provider.Hosts.UCloudPublic.Address == "" {
		c.Provider.Hosts.UCloudPublic = c.Provider.Hosts.UCloud
	}
	if c.Provider.Hosts.SelfPublic.Address == "" {
		c.Provider.Hosts.SelfPublic = c.Provider.Hosts.Self
	}
	c.Provider.Core.keyFiles = l.keyFiles()

	if c.Gateway.StateDirectory == "" {
		c.Gateway.StateDirectory = c.StateDirectory
	}
	if !c.Internal.ServerListen.IsSet() {
		c.Internal.ServerListen = Listen{Path: filepath.Join(c.PrivateDirectory(), "server.sock")}
	}
	if c.Profiler.Socket == "" {
		c.Profiler.Socket = Path(filepath.Join(c.PrivateDirectory(), "pprof.sock"))
	}
	if !c.Health.Listen.IsSet() {
		c.Health.Listen = c.Metrics.Listen
	}
	if c.Database.Path == "" {
		c.Database.Path = Path(filepath.Join(string(c.StateDirectory), "ucloud.db"))
	}

	id := &c.Services.Identity
	if id.Type == "" && c.Services.Unmanaged {
		id.Type = IdentityManual
	}
	if id.ProjectGroups == "" {
		switch id.Type {
		case IdentityFreeIPA, IdentityLDAP:
			id.ProjectGroups = "fromBackend"
		case IdentityScripted:
			id.ProjectGroups = "scripted"
		default:
			id.ProjectGroups = "off"
		}
	}
	if id.FreeIPA != nil && id.FreeIPA.UsersGroup == "" {
		id.FreeIPA.UsersGroup = c.UserInstances.Group
	}
	for _, fs := range c.Services.FileSystems.All() {
		for name, loc := range fs.DriveLocators.All() {
			locatorDefaults(name, loc)
		}
	}
	if c.Server != nil && c.Server.Database != nil {
		if db := c.Server.Database; db.SSLMode == "" && db.Host != nil {
			db.SSLMode = "verify-full"
			if db.Host.IsLocal() {
				db.SSLMode = "disable"
			}
		}
	}
}

// keyFiles are the configured public keys of UCloud/Core, or the first of the two usual files that exists. If none
// exists, the first name is kept, so that the environment rules report it.
func (l *loader) keyFiles() []string {
	c := l.config
	var out []string
	for _, p := range c.Provider.Core.Certificates {
		out = append(out, string(p))
	}
	if len(out) > 0 {
		return out
	}
	for _, name := range []string{"ucloud_key.pub", "ucloud_crt.pem"} {
		if _, err := os.Stat(filepath.Join(c.Dir, name)); err == nil {
			return []string{filepath.Join(c.Dir, name)}
		}
	}
	return []string{filepath.Join(c.Dir, "ucloud_key.pub")}
}

func locatorDefaults(name string, loc *DriveLocator) {
	if !loc.Title.IsSet() {
		loc.Title = MustPattern(name)
	}
	if len(loc.AllowedRoots) == 0 && loc.Pattern.IsSet() {
		if root := fixedDirectory(loc.Pattern); root != "" {
			loc.AllowedRoots = []Path{root}
		}
	}
	owner, group, mode := "#{localUsername}", "#{localPrimaryGroup}", Mode(0o700)
	switch loc.Entity {
	case EntityProject:
		owner, group, mode = "root", "#{localGroupName}", 0o2770
	case EntityMemberFiles:
		group = "#{localGroupName}"
	}
	if !loc.Ownership.Owner.IsSet() {
		loc.Ownership.Owner = MustPattern(owner)
	}
	if !loc.Ownership.Group.IsSet() {
		loc.Ownership.Group = MustPattern(group)
	}
	if loc.Ownership.Mode == 0 {
		loc.Ownership.Mode = mode
	}
}

// fixedDirectory is the directory part of a pattern before its first variable, or the whole pattern if it has none. It
// is empty if the pattern does not start with an absolute directory.
func fixedDirectory(p Pattern) Path {
	prefix := p.FixedPrefix()
	if len(p.Variables()) > 0 {
		at := -1
		for i := range prefix {
			if prefix[i] == '/' {
				at = i
			}
		}
		prefix = prefix[:at+1]
	}
	dir, err := parsePath(prefix, "")
	if err != nil {
		return ""
	}
	return dir
}
