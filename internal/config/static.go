package config

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// static checks what can be decided from the files alone (CFG-5): ranges that span several keys and the cross-checks
// It needs no network and no privileges.
func (l *loader) static() {
	l.checkProvider()
	l.checkDevelopment()
	l.checkListeners()
	l.checkGateway()
	l.checkInstances()
	l.checkIdentity()
	l.checkIntents()
	l.checkStorage()
	l.checkSlurm()
	l.checkSecrets()
}

func (l *loader) checkProvider() {
	p := &l.config.Provider
	dev := l.config.Development.Enabled
	if slices.Contains([]string{"aau", "ucloud", "k8s", "k8"}, string(p.ID)) {
		l.errorf("X-07", "provider.id", "choose another id and register it at UCloud/Core",
			"the id %q is reserved: UCloud/Core treats it as always connected", p.ID)
	}
	// The refresh token and all user data travel on these connections.
	for _, h := range []struct {
		key  string
		host Host
	}{{"ucloud", p.Hosts.UCloud}, {"ucloudPublic", p.Hosts.UCloudPublic}, {"selfPublic", p.Hosts.SelfPublic}} {
		path := "provider.hosts." + h.key
		if h.host.Scheme != "http" || dev {
			continue
		}
		if h.key == "ucloudPublic" && !l.given(path) {
			continue // reported at ucloud, where it comes from
		}
		if h.key == "selfPublic" && !l.given(path) {
			l.errorf("X-01", "provider.hosts.self", "use https, or give selfPublic with https if TLS ends at a proxy in front",
				"browsers would reach this provider over plain http")
			continue
		}
		l.errorf("X-01", path, "use https; plain http needs development.enabled: true", "plain http is for development only")
	}
	if r := p.Core.Retry; r.Initial > r.Max {
		l.errorf("CFG-5", "provider.core.retry.initial", "make max the larger one", "the first pause is longer than the longest one")
	}
	for i, name := range p.Maintenance.AllowList {
		if !userForm.MatchString(name) {
			l.warnf("X-16", fmt.Sprintf("provider.maintenance.allowList[%d]", i), "check the spelling",
				"%q is not a UCloud username (expected Name#1234)", name)
		}
	}
	if p.Branding != nil {
		for i, d := range p.Branding.ProductDescriptions {
			if !slices.Contains(l.config.Categories(), d.Category) {
				l.errorf("X-15", fmt.Sprintf("provider.branding.productDescription[%d].category", i),
					knownNames(d.Category, l.config.Categories()), "there is no product category %q", d.Category)
			}
		}
	}
}

func (l *loader) checkDevelopment() {
	c := l.config
	if c.Development.Enabled {
		public := ""
		for _, h := range []struct {
			key  string
			host Host
		}{{"ucloudPublic", c.Provider.Hosts.UCloudPublic}, {"selfPublic", c.Provider.Hosts.SelfPublic}} {
			if h.host.TLS() && public == "" {
				public = h.key
			}
		}
		open := slices.IndexFunc(c.Gateway.Listen, func(li Listen) bool { return !li.IsLoopback() })
		if public != "" && open >= 0 {
			l.errorf("CFG-12", "development.enabled", "remove it, or listen on 127.0.0.1 only",
				"development mode on a provider with a public https address (provider.hosts.%s) and the listener %s", public, c.Gateway.Listen[open])
		}
		return
	}
	// each of these weakens something, and is possible only where development mode says so.
	for _, k := range []struct {
		path string
		on   bool
	}{
		{"development.debugPorts", c.Development.DebugPorts != PortRange{}},
		{"development.fakeSlurm", c.Development.FakeSlurm},
		{"services.slurm.fakeResourceAllocation", c.Services.Slurm != nil && c.Services.Slurm.FakeResourceAllocation},
		{"userInstances.launcher", c.UserInstances.Launcher == LauncherSelf},
	} {
		if k.on {
			l.errorf("X-14", k.path, "remove it, or set development.enabled: true on a test system", "this is possible with development.enabled only")
		}
	}
}

func (l *loader) checkInstances() {
	u := &l.config.UserInstances
	if u.MinUID > u.MaxUID {
		l.errorf("X-19", "userInstances.minUid", "lower minUid or raise maxUid", "minUid is above maxUid, so nobody could have an instance")
	}
	if u.MinUID < 500 {
		l.warnf("X-19", "userInstances.minUid", "use the first uid of ordinary users, usually 1000", "uids below 500 belong to system accounts")
	}
	if u.Launcher != LauncherSelf && !slices.Contains(u.DeniedUsers, "root") {
		l.warnf("X-19", "userInstances.deniedUsers", "add root to the list", "root is not on the list; uid 0 is refused anyway")
	}
	if ceiling := Mode(0o777); u.Umask > ceiling {
		l.errorf("CFG-5", "userInstances.umask", "write three octal digits such as 0007", "a umask has no more than the nine permission bits")
	}
	if u.Umask&0o007 != 0o007 {
		l.warnf("CFG-5", "userInstances.umask", "use 0007 or 0077", "files that users make would be open to every local account")
	}
}

func (l *loader) checkSecrets() {
	c := l.config
	if c.Database.Type == Postgres && c.Server != nil && c.Server.Database == nil {
		l.problems.add(c.problem("server", Error, "X-17", "database", "database.type is postgres, but server.yml has no database", "add database with host, database, username and password"))
	}
	if c.Database.Type == SQLite && c.Server != nil && c.Server.Database != nil {
		l.problems.add(c.problem("server", Warning, "X-17", "database", "the database login is not used, because database.type is sqlite", "set database.type: postgres in config.yml, or remove it here"))
	}
	if c.Server != nil && c.Server.Database != nil {
		db := c.Server.Database
		if db.SSLMode == "disable" && db.Host != nil && !db.Host.IsLocal() {
			l.problems.add(c.problem("server", Warning, "SEC-7", "database.sslMode", "the connection to the database is not encrypted", "use verify-full"))
		}
		if (db.ClientCertificate != "") != db.ClientKey.IsSet() {
			l.problems.add(c.problem("server", Error, "SEC-7", "database", "clientCertificate and clientKey belong together", "give both or none"))
		}
	}
	if c.Database.Type == Postgres && l.given("database.path") {
		l.warnf("X-17", "database.path", "remove it", "the path has no meaning for postgres")
	}
	l.checkSecretsFile()
}

// checkSecretsFile looks for logins that are missing or belong to nothing. It is skipped where secrets.yml is not read.
func (l *loader) checkSecretsFile() {
	c := l.config
	if !c.Role.readsSecrets() {
		return
	}
	s := c.Secrets
	if s == nil {
		s = &SecretsFile{}
	}
	missing := Error
	if c.source("secrets") == nil && !l.options.Environment {
		missing = Warning // on another machine the file is missing for good reason
	}
	need := func(given bool, typ, key, rule string) {
		if c.Services.Identity.Type == typ && !given {
			l.problems.add(c.problem("secrets", missing, rule, key, fmt.Sprintf("identity type %s needs its login in secrets.yml", typ), "add "+key))
		}
		if c.Services.Identity.Type != typ && given {
			l.problems.add(c.problem("secrets", Warning, rule, key, fmt.Sprintf("this login is not used: the identity type is not %s", typ), "remove it"))
		}
	}
	need(s.FreeIPA != nil, IdentityFreeIPA, "freeipa", "CFG-5")
	need(s.LDAP != nil, IdentityLDAP, "ldap", "CFG-5")
	need(s.OIDC != nil, IdentityOIDC, "oidc", "CFG-5")
	for name, fs := range c.Services.FileSystems.All() {
		if fs.Management != nil && fs.Management.Type == ManagementGPFS {
			if _, ok := s.GPFS.Get(name); !ok {
				l.problems.add(c.problem("secrets", missing, "X-06", "gpfs."+name, fmt.Sprintf("the GPFS product %q has no login in secrets.yml", name), "add gpfs."+name+" with username and password"))
			}
		}
	}
	for name := range s.GPFS.All() {
		if fs, ok := c.Services.FileSystems.Get(name); !ok || fs.Management == nil || fs.Management.Type != ManagementGPFS {
			l.problems.add(c.problem("secrets", Error, "X-06", "gpfs."+name, fmt.Sprintf("there is no GPFS product %q", name), "remove the login or correct its name"))
		}
	}
}

// userForm is how UCloud usernames usually look; others are possible, so this is for warnings only.
var userForm = regexp.MustCompile(`^[^#\x00-\x1f]+#[0-9]{1,9}$`)

func knownNames(word string, names []string) string {
	if s := suggest(word, names); s != "" {
		return fmt.Sprintf("did you mean %q?", s)
	}
	return "configured: " + strings.Join(names, ", ")
}
