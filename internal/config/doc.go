// Package config reads the operator's configuration: config.yml, server.yml and secrets.yml in one directory
// (contract 40). Everything that is wrong is reported in one run, with file, line, column, rule and remedy, and then
// nothing starts.
//
// # How roles use it
//
//	cfg, problems := config.Load(dir, config.Options{Role: config.RoleServer, Environment: true, Group: accounts.Group, ParseKeys: ...})
//	if err := problems.Err(); err != nil {
//		problems.WriteText(stderr, color)
//		return err // the command line turns it into exit code 78
//	}
//	for _, w := range cfg.Warnings { ... }
//	core := coreapi.New(coreapi.Options{BaseURL: cfg.Provider.Hosts.UCloud.URL(), Token: cfg.Server.RefreshToken.Value()})
//
// A role takes single values from the [Config] and puts them into the options of the packages that it builds; those
// packages do not know this one. User instances do not read configuration at all (CFG-8).
//
// # How it works
//
// The YAML text becomes a small tree of nodes that all know their place (tree.go), old keys are moved to where they are
// now, and one reflecting decoder fills the structs. The tags of the structs are the single source for parser, defaults,
// JSON Schema ([Schema]) and reference text ([Reference]); see keyInfo for the tags. Then come the static rules, which
// need nothing but the files, and, if asked for, the environment rules, which look at this machine and change nothing.
//
// # Trust
//
// The files are written by the operator and trusted to mean well, not to be right. Secrets are [SecretRef] values: they
// are read only from files whose owner and mode are right (SEC-1), and no printing of any kind shows them; lines of
// server.yml and secrets.yml are cut after the key before anything can quote them. TestSecretsNeverAppear proves it.
package config
