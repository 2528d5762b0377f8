package config

import "strings"

// moved is a key of the reference module that has another place here (contract 40 section 12).
type moved struct {
	from, to string
	// value turns the old value into the new one; nil keeps it. An empty remedy means that it cannot be turned.
	value func(*node) bool
}

// movedKeys are the fixed moves within config.yml. A * stands for every entry of a map.
var movedKeys = []moved{
	{"provider.ipc.directory", "ipc.directory", nil},
	{"provider.logs", "logs", nil},
	{"logs.rotation.retentionPeriodInDays", "logs.rotation.maxAge", daysToDuration},
	{"logs.serverStdOut", "logs.destination", stdoutToDestination},
	{"provider.envoy.internalAddressToProvider", "internal.gatewayAddress", nil},
	{"provider.providerBranding", "provider.branding", nil},
	{"services.fileSystems.*.management.onQuotaUpdated", "services.fileSystems.*.management.scripted.onQuotaUpdated", nil},
	{"services.fileSystems.*.management.onUsageReporting", "services.fileSystems.*.management.scripted.onUsageReporting", nil},
	{"services.fileSystems.*.management.onDriveRemoved", "services.fileSystems.*.management.scripted.onDriveRemoved", nil},
	{"services.identityManagement.onUserConnected", "services.identityManagement.scripted.onUserConnected", nil},
	{"services.identityManagement.onProjectUpdated", "services.identityManagement.scripted.onProjectUpdated", nil},
	{"services.slurm.accountManagement.accounting.onQuotaUpdated", "services.slurm.accountManagement.accounting.scripted.onQuotaUpdated", nil},
	{"services.slurm.accountManagement.accounting.onProjectUpdated", "services.slurm.accountManagement.accounting.scripted.onProjectUpdated", nil},
	{"services.slurm.accountManagement.accounting.onUsageReporting", "services.slurm.accountManagement.accounting.scripted.onUsageReporting", nil},
}

// movedSecrets are the moves from secrets.yml to config.yml: what is no secret left that file.
var movedSecrets = []moved{
	{"freeipa.url", "services.identityManagement.freeipa.url", nil},
	{"freeipa.verifyTls", "services.identityManagement.freeipa.verifyTls", nil},
	{"freeipa.caCertFile", "services.identityManagement.freeipa.caFile", nil},
	{"freeipa.groupName", "services.identityManagement.freeipa.usersGroup", nil},
	{"freeipa.projectStrategy", "services.identityManagement.naming.projects", oldStrategy},
	{"freeipa.projectPrefix", "services.identityManagement.naming.projectPrefix", nil},
	{"gpfs.*.host", "services.fileSystems.*.management.gpfs.host", nil},
	{"gpfs.*.mapping", "services.fileSystems.*.management.gpfs.mapping", nil},
	{"gpfs.*.verifyTls", "services.fileSystems.*.management.gpfs.verifyTls", nil},
	{"gpfs.*.caCertFile", "services.fileSystems.*.management.gpfs.caFile", nil},
	{"gpfs.*.useStatFsForAccounting", "services.fileSystems.*.management.gpfs.useStatFs", nil},
}

// droppedKeys have no meaning any more; they are accepted with a warning.
var droppedKeys = []struct{ doc, path, why string }{
	{"config", "provider.envoy", "there is no external proxy; see gateway"},
	{"config", "services.licenses", "licences are in the database"},
	{"server", "database.embedded", "see database.type in config.yml"},
}

// legacy rewrites keys of the reference module to where they are now, each with a warning. It works on the nodes, which
// keep their places, so problems with a moved value point at the line that the operator wrote.
func (l *loader) legacy(main, server, secrets *node) {
	for _, m := range movedKeys {
		l.move("config", m, main, main)
	}
	for _, m := range movedSecrets {
		l.move("secrets", m, secrets, main)
	}
	l.move("server", moved{"database.ssl", "database.sslMode", boolToSSLMode}, server, server)
	roots := map[string]*node{"config": main, "server": server}
	for _, d := range droppedKeys {
		parentPath, key := splitLast(d.path)
		parent := at(roots[d.doc], parentPath)
		if f, ok := parent.remove(key); ok {
			l.deprecated(d.doc, f.pos, d.path, "the key has no effect any more: "+d.why, "remove it")
		}
	}
}

func (l *loader) move(doc string, m moved, from, to *node) {
	if from == nil {
		return
	}
	if !strings.Contains(m.from, "*") {
		l.moveOne(doc, m, from, to)
		return
	}
	prefix, _, _ := strings.Cut(m.from, ".*")
	parent := at(from, prefix)
	if parent == nil || parent.kind != kindMap {
		return
	}
	for _, f := range parent.fields {
		l.moveEntry(doc, m, prefix, f, to)
	}
}

// moveEntry moves a key of one entry of a map. Names of entries may contain dots, so the entry is walked to by itself and
// not by a joined path.
func (l *loader) moveEntry(doc string, m moved, prefix string, entry field, to *node) {
	rest := strings.TrimPrefix(m.from, prefix+".*.")
	toPrefix, toRest, _ := strings.Cut(m.to, ".*.")
	parentPath, key := splitLast(rest)
	parent := at(entry.value, parentPath)
	if parent.child(key) == nil {
		return
	}
	target := to
	if doc == "secrets" {
		target = at(to, toPrefix).child(entry.key)
		if target == nil || target.kind != kindMap {
			return // no such product: the login itself is reported
		}
	} else {
		target = entry.value
	}
	l.transfer(doc, m, parent, key, prefix+"."+entry.key+"."+rest, target, toRest, toPrefix+"."+entry.key+"."+toRest)
}

func (l *loader) moveOne(doc string, m moved, from, to *node) {
	parentPath, key := splitLast(m.from)
	parent := at(from, parentPath)
	if parent.child(key) == nil || to == nil {
		return
	}
	l.transfer(doc, m, parent, key, m.from, to, m.to, m.to)
	// An emptied section of the old form is no section.
	if len(parent.fields) == 0 && parentPath != "" {
		grand, name := splitLast(parentPath)
		at(from, grand).remove(name)
	}
}

// transfer takes a value from its old place, warns, and puts it into the new one.
func (l *loader) transfer(doc string, m moved, parent *node, key, oldPath string, target *node, rel, newPath string) {
	f, _ := parent.remove(key)
	file := "config.yml"
	if doc == "server" {
		file = "server.yml"
	}
	where := newPath
	if doc == "secrets" {
		where += " in config.yml"
	}
	if m.value != nil && !m.value(f.value) {
		l.deprecated(doc, f.pos, oldPath, "this old key has no effect", "use "+newPath+" in "+file)
		return
	}
	l.deprecated(doc, f.pos, oldPath, "the key has moved", "write "+where)
	l.put(target, rel, f, newPath)
}

// put stores a value below a node, making the maps in between. A map goes into a map that is there; anything else that is
// there already is a conflict.
func (l *loader) put(target *node, rel string, f field, newPath string) {
	parts := strings.Split(rel, ".")
	for _, part := range parts[:len(parts)-1] {
		next := target.child(part)
		if next == nil {
			next = &node{kind: kindMap, pos: f.pos}
			target.fields = append(target.fields, field{key: part, pos: f.pos, value: next})
		}
		if next.kind != kindMap {
			return // reported when it is decoded
		}
		target = next
	}
	last := parts[len(parts)-1]
	existing := target.child(last)
	switch {
	case existing == nil:
		target.fields = append(target.fields, field{key: last, pos: f.pos, value: f.value})
	case existing.kind == kindMap && f.value.kind == kindMap:
		for _, sub := range f.value.fields {
			l.put(existing, sub.key, sub, newPath+"."+sub.key)
		}
	default:
		l.problems.add(Problem{
			Severity: Error, Rule: "CFG-2", File: f.pos.src.name, Line: f.pos.line, Column: f.pos.column, KeyPath: newPath,
			Message: "the value is given in its old and in its new place", Remedy: "keep " + newPath, Excerpt: f.pos.src.excerpt(f.pos),
		})
	}
}

func (l *loader) deprecated(doc string, pos position, path, message, remedy string) {
	l.decoder(doc).report(Warning, "CFG-2", pos, path, message, remedy)
}

// at walks down a path of fixed keys. It gives nil if there is nothing.
func at(n *node, path string) *node {
	if path == "" {
		return n
	}
	for part := range strings.SplitSeq(path, ".") {
		n = n.child(part)
	}
	return n
}

func splitLast(path string) (parent, key string) {
	i := strings.LastIndexByte(path, '.')
	return path[:max(i, 0)], path[i+1:]
}

// daysToDuration turns N into Nd.
func daysToDuration(n *node) bool {
	if n.kind == kindInt {
		n.kind, n.text = kindText, n.text+"d"
	}
	return true
}

func stdoutToDestination(n *node) bool {
	if n.kind == kindBool && !strings.EqualFold(n.text, "true") {
		return false // logs went elsewhere, which is what the default does
	}
	if n.kind == kindBool {
		n.kind, n.text = kindText, "stdout"
	}
	return true
}

func boolToSSLMode(n *node) bool {
	if n.kind == kindBool {
		mode := "disable"
		if strings.EqualFold(n.text, "true") {
			mode = "verify-full"
		}
		n.kind, n.text = kindText, mode
	}
	return true
}

func oldStrategy(n *node) bool {
	if n.kind == kindText {
		if to, ok := map[string]string{"Default": "title", "Date": "date", "UUID": "uuid"}[n.text]; ok {
			n.text = to
		}
	}
	return true
}

// keyElsewhere tells where a key belongs that was written in a wrong place: the paths of config.yml that end with it. It
// is empty if there is none, or more than two.
func keyElsewhere(key string) string {
	var found []string
	walkKeys(configType, "", func(path string, k *keyInfo) {
		if k.key == key {
			found = append(found, path)
		}
	})
	if len(found) == 0 || len(found) > 2 {
		return ""
	}
	return strings.Join(found, " or ")
}
