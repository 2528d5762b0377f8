package config

import (
	"fmt"
	"slices"
	"strings"

	"ucloud-im/internal/intent"
)

// checkIntents checks the policy about signed intents (contract 01 section 7).
func (l *loader) checkIntents() {
	s := &l.config.Provider.Core.SignedIntents
	const key = "provider.core.signedIntents"
	required := ""
	note := func(path, mode string) {
		if mode == IntentsRequire && required == "" {
			required = path
		}
	}
	note(key+".mode", s.Mode)
	for name, mode := range s.Users.All() {
		path := key + ".users." + name
		note(path, *mode)
		if !userForm.MatchString(name) {
			l.warnf("X-16", path, "check the spelling", "%q is not a UCloud username (expected Name#1234)", name)
		}
	}
	for name, mode := range s.Calls.All() {
		path := key + ".calls." + name
		note(path, *mode)
		l.checkCall(path, name)
		if slices.Contains(s.Exempt, name) {
			l.warnf("CFG-5", path, "remove it here or from exempt", "this mode has no effect: %s needs no intent", name)
		}
	}
	for i, name := range s.Exempt {
		l.checkCall(fmt.Sprintf("%s.exempt[%d]", key, i), name)
	}
	switch id := l.config.Services.Identity; {
	case required == "":
	case id.Type != "" && !id.ProvesUser():
		l.errorf("CFG-5", required, "use log, or an identity type with a proof of the user (Manual, OIDC)",
			"identity type %s connects users without anything that only they can do, so nobody can have a signing key, and require refuses all calls", id.Type)
	default:
		l.warnf("CFG-5", required, "use log until UCloud/Core forwards intents",
			"today's UCloud/Core forwards no intents, so require refuses all its calls")
	}
}

func (l *loader) checkCall(path, name string) {
	names := intent.Names()
	if !slices.Contains(names, name) {
		l.errorf("CFG-5", path, nearNames(name, names), "no call that users can sign has the name %q", name)
	}
}

// nearNames is a hint about a name of a call: the one that was probably meant, or those of the same kind.
func nearNames(word string, names []string) string {
	if s := suggest(word, names); s != "" {
		return fmt.Sprintf("did you mean %q?", s)
	}
	area, _, _ := strings.Cut(word, ".")
	var near []string
	for _, n := range names {
		if strings.HasPrefix(n, area+".") {
			near = append(near, n)
		}
	}
	if len(near) == 0 {
		near = names
	}
	const most = 8
	if n := len(near); n > most {
		return fmt.Sprintf("known here: %s and %d more, see the operator guide", strings.Join(near[:most], ", "), n-most)
	}
	return "known here: " + strings.Join(near, ", ")
}
