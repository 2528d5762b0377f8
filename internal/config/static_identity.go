package config

import "strings"

// checkIdentity checks how users are found.
func (l *loader) checkIdentity() {
	c := l.config
	id := &c.Services.Identity
	const key = "services.identityManagement"
	switch {
	case id.Type == "" && l.given(key+".type"):
		return // not one of the types, reported already
	case id.Type == "" && !c.Services.Unmanaged:
		l.errorf("X-04", key+".type", "add type: FreeIPA | LDAP | OIDC | Scripted | Static | Manual, or set services.unmanaged: true", "a managed provider needs a way to find users")
		return
	case c.Services.Unmanaged && id.Type != IdentityManual && id.Type != IdentityOIDC && id.Type != IdentityStatic:
		l.errorf("X-03", key+".type", "use Manual, OIDC or Static, or remove services.unmanaged", "identity type %s is not possible for an unmanaged provider", id.Type)
	}
	if c.Services.Unmanaged && id.ProjectGroups != "off" && l.given(key+".projectGroups") {
		l.errorf("X-03", key+".projectGroups", "remove it, or remove services.unmanaged", "an unmanaged provider has no project groups")
	}
	l.checkIdentitySections(key, id)
	l.checkTickets(key, id)
	if id.OnDisconnect == "script" && (id.Scripted == nil || !id.Scripted.OnUserDisconnected.IsSet()) {
		l.errorf("CFG-5", key+".onDisconnect", "add scripted.onUserDisconnected", "onDisconnect is script, but there is no script")
	}
	switch id.ProjectGroups {
	case "scripted":
		if id.Scripted == nil || !id.Scripted.OnProjectUpdated.IsSet() {
			l.errorf("CFG-5", key, "add scripted.onProjectUpdated", "project groups are made by a script, but there is none")
		}
	case "fromBackend":
		if id.Type != IdentityFreeIPA && id.Type != IdentityLDAP {
			l.errorf("CFG-5", key+".projectGroups", "use scripted or off", "identity type %s makes no groups", id.Type)
		}
	}
	if n := id.Naming.Users; n != "firstInitialLastName" && n != "ucloud" {
		p, err := parsePattern(n, patternVariables("userNaming"))
		switch {
		case err != nil:
			b := err.(*badValue)
			l.errorf("CFG-5", key+".naming.users", b.remedy, "%s", b.message)
		case len(p.Variables()) == 0:
			l.errorf("CFG-5", key+".naming.users", "write firstInitialLastName, ucloud, or a pattern with variables", "%s would give all users the same name", quote(n))
		}
	}
	if p := id.Naming.ProjectPrefix; p == "" || len(p) > 16 || p[0] < 'a' || p[0] > 'z' || strings.Trim(p, "abcdefghijklmnopqrstuvwxyz0123456789_-") != "" {
		l.errorf("CFG-5", key+".naming.projectPrefix", "use small letters, digits, _ and -, starting with a letter, at most 16", "%s cannot start the name of a group", quote(p))
	}
}

// checkIdentitySections checks that the section of the type is there, and warns of sections that have no effect.
func (l *loader) checkIdentitySections(key string, id *Identity) {
	for _, s := range []struct {
		typ, name string
		present   bool
	}{
		{IdentityFreeIPA, "freeipa", id.FreeIPA != nil},
		{IdentityLDAP, "ldap", id.LDAP != nil},
		{IdentityOIDC, "oidc", id.OIDC != nil},
		{IdentityScripted, "scripted", id.Scripted != nil},
		{IdentityStatic, "static", id.Static != nil},
	} {
		needed := id.Type == s.typ
		switch {
		case s.name == "scripted" && (id.ProjectGroups == "scripted" || id.OnDisconnect == "script"):
			// Checked with those keys.
		case s.name == "freeipa" && needed && !s.present && !l.config.Role.readsSecrets():
			// An old configuration has it in secrets.yml, which this role does not read.
		case needed && !s.present:
			l.errorf("X-04", key+"."+s.name, "add "+s.name, "identity type %s needs the section %q", s.typ, s.name)
		case !needed && s.present:
			l.warnf("X-04", key+"."+s.name, "remove it, or change the type", "this section has no effect: the type is %s", id.Type)
		}
	}
	if id.Type == IdentityScripted && id.Scripted != nil && !id.Scripted.OnUserConnected.IsSet() {
		l.errorf("CFG-5", key+".scripted", "add onUserConnected", "identity type Scripted needs onUserConnected")
	}
	if f := id.FreeIPA; f != nil {
		if f.URL == "" && l.config.Role.readsSecrets() && id.Type == IdentityFreeIPA {
			l.errorf("CFG-5", key+".freeipa.url", "add url", "the address of the FreeIPA server is missing")
		}
		if f.UsersGroup != l.config.UserInstances.Group {
			l.errorf("X-04", key+".freeipa.usersGroup", "make it equal to userInstances.group ("+string(l.config.UserInstances.Group)+"), or remove it",
				"the group %q is not the group whose members can have an instance", f.UsersGroup)
		}
		if !f.VerifyTLS {
			l.warnf("CFG-5", key+".freeipa.verifyTls", "set caFile instead", "anybody on the network can pretend to be the FreeIPA server")
		}
	}
	if d := id.LDAP; d != nil {
		if !d.VerifyTLS {
			l.warnf("CFG-5", key+".ldap.verifyTls", "set caFile instead", "anybody on the network can pretend to be the directory")
		}
		if !strings.HasPrefix(string(d.URL), "ldap") {
			l.errorf("CFG-5", key+".ldap.url", "write ldaps://host", "%s is not the URL of a directory", quote(string(d.URL)))
		} else if strings.HasPrefix(string(d.URL), "ldap://") {
			l.warnf("CFG-5", key+".ldap.url", "use ldaps://", "the password of the directory would travel in plain text")
		}
	}
	if o := id.OIDC; o != nil && o.Issuer != "" && !strings.HasPrefix(string(o.Issuer), "https://") && !l.config.Development.Enabled {
		l.errorf("X-14", key+".oidc.issuer", "use https", "plain http is for development only")
	}
}

func (l *loader) checkTickets(key string, id *Identity) {
	manual := id.Type == IdentityManual
	if !manual && l.given(key+".manual") {
		l.errorf("X-21", key+".manual", "remove it, or set type: Manual", "tickets need identity type Manual, this is %s", id.Type)
		return
	}
	t := &id.Manual.Tickets
	if manual && t.Enabled && strings.TrimSpace(t.Contact) == "" {
		l.errorf("X-21", key+".manual.tickets.contact", "add services.identityManagement.manual.tickets.contact with a mail address or URL, or set tickets.enabled: false",
			"tickets are enabled and the contact is missing")
		return
	}
	if c := t.Contact; c != "" {
		_, err := parseURL(c)
		at := strings.IndexByte(c, '@')
		if (err != nil || !strings.HasPrefix(c, "http")) && (at < 1 || at == len(c)-1 || strings.ContainsAny(c, " <>\"\n\t")) {
			l.errorf("X-21", key+".manual.tickets.contact", "write help@example.org or https://example.org/help", "%s is neither a mail address nor a URL", quote(c))
		}
	}
	if manual && !t.Enabled && id.Manual.SelfService && l.given(key+".manual.selfService") {
		l.warnf("X-21", key+".manual.selfService", "enable tickets, or remove it", "self service has no effect without tickets")
	}
}
