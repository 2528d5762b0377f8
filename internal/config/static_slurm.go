package config

import (
	"fmt"
	"strings"
	"time"
)

func (l *loader) checkSlurm() {
	c := l.config
	ssh := &c.Services.SSH
	if ssh.Enabled && ssh.Host == nil && !l.given("services.ssh.host") {
		l.errorf("CFG-5", "services.ssh", "add host", "ssh is enabled and the host is missing")
	}
	if ssh.InstallKeys && !ssh.Enabled {
		l.errorf("CFG-5", "services.ssh.installKeys", "set services.ssh.enabled: true", "keys can be installed with ssh enabled only")
	}
	if ssh.AuthorizedKeysFile.IsSet() && !strings.HasPrefix(ssh.AuthorizedKeysFile.String(), "#{home}") && !strings.HasPrefix(ssh.AuthorizedKeysFile.String(), "/") {
		l.errorf("CFG-5", "services.ssh.authorizedKeysFile", "start with #{home} or /", "the pattern does not give an absolute path")
	}
	for i, kind := range ssh.AllowedKeyTypes {
		if !strings.HasPrefix(kind, "rsa>=") && kind != "ed25519" && kind != "ecdsa" && kind != "rsa" && kind != "sk-*" {
			l.errorf("CFG-5", fmt.Sprintf("services.ssh.allowedKeyTypes[%d]", i), "write ed25519, ecdsa, rsa>=3072 or sk-*", "%s is not a kind of key", quote(kind))
		}
	}
	s := c.Services.Slurm
	if s == nil {
		return
	}
	const key = "services.slurm"
	switch {
	case s.JobFolder == "" || strings.ContainsAny(s.JobFolder, "/\x00\n") || s.JobFolder == "." || s.JobFolder == ".." || len(s.JobFolder) > 255:
		l.errorf("CFG-5", key+".jobFolder", "write one name such as ucloud-jobs", "%s is not the name of a folder", quote(s.JobFolder))
	case s.JobFolder == "Trash":
		l.errorf("X-12", key+".jobFolder", "choose another name", "Trash is the name of the bin")
	}
	if s.FakeResourceAllocation && c.Development.Enabled {
		l.warnf("X-14", key+".fakeResourceAllocation", "remove it on a real system", "jobs get almost no resources")
	}
	for name := range s.Sbatch.Extra.All() {
		if !directiveForm(name) {
			l.errorf("CFG-5", key+".sbatch.extra."+name, "write the long name without dashes in front, such as constraint", "%s is not the name of a directive", quote(name))
		}
	}
	l.checkAccounts(key+".accountManagement", s)
	l.checkMachines(key+".machines", s)
}

func directiveForm(name string) bool {
	return name != "" && name[0] >= 'a' && name[0] <= 'z' && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz-") == ""
}

func (l *loader) checkAccounts(key string, s *Slurm) {
	a := s.Accounts
	switch {
	case a == nil && !l.config.Services.Unmanaged:
		l.errorf("X-03", key, "add accountManagement, or set services.unmanaged: true", "a managed provider says how Slurm accounts are made and found")
		return
	case a == nil:
		return
	case l.config.Services.Unmanaged:
		l.errorf("X-03", key, "remove it, or remove services.unmanaged", "an unmanaged provider has no account management")
	}
	if a.Accounting.Type == "Scripted" && a.Accounting.Scripted == nil {
		l.errorf("CFG-5", key+".accounting", "add scripted", "accounting type Scripted needs the section \"scripted\"")
	}
	m := &a.Mapper
	switch m.Type {
	case "Pattern":
		if !m.Users.IsSet() && !l.given(key+".accountMapper.users") {
			l.errorf("CFG-5", key+".accountMapper", "add users", "mapper type Pattern needs a pattern for users")
		}
		if !m.Projects.IsSet() && !l.given(key+".accountMapper.projects") {
			l.errorf("CFG-5", key+".accountMapper", "add projects", "mapper type Pattern needs a pattern for projects")
		}
	case "Scripted":
		if !m.Script.IsSet() && !l.given(key+".accountMapper.script") {
			l.errorf("CFG-5", key+".accountMapper", "add script", "mapper type Scripted needs a script")
		}
	}
}

func (l *loader) checkMachines(key string, s *Slurm) {
	c := l.config
	used := map[[2]string]string{}
	var longest time.Duration
	for category, m := range s.Machines.All() {
		at := key + "." + category
		if _, ok := c.Services.FileSystems.Get(category); ok {
			l.errorf("X-07", at, "rename one of them", "%q is also the name of a file system", category)
		}
		pair := [2]string{m.Partition, m.QoS}
		if other, ok := used[pair]; ok && m.Partition != "" {
			l.errorf("X-09", at, "give each category its own pair, or make them groups of one category", "partition %q with QoS %q is already used by %q", m.Partition, m.QoS, other)
		} else {
			used[pair] = category
		}
		for _, f := range []struct{ name, text string }{{"partition", m.Partition}, {"qos", m.QoS}} {
			if strings.ContainsAny(f.text, " ,'\"\n\t\\") {
				l.errorf("CFG-5", at+"."+f.name, "write one name", "%s is not a Slurm name", quote(f.text))
			}
		}
		l.checkComputePayment(at+".payment", &m.Payment)
		l.checkGroups(at, category, m)
		longest = max(longest, m.MaxTime)
	}
	if r := c.Retention.FinishedJobs; r < longest {
		l.errorf("X-20", "retention.finishedJobs", "keep finished jobs for at least "+FormatDuration(longest), "jobs may run for %s, but finished ones are removed after %s", FormatDuration(longest), FormatDuration(r))
	}
}

func (l *loader) checkComputePayment(key string, p *ComputePayment) {
	switch p.Type {
	case PaymentResource:
		if p.Unit == "" && !l.given(key+".unit") {
			l.errorf("X-08", key, "add unit: Cpu | Gpu | Memory", "payment type Resource needs a unit")
		}
		l.forbid("X-08", key, "payment type Resource has no currency", map[string]bool{"currency": p.Currency != ""})
	case PaymentMoney:
		l.checkCurrency(key, p.Currency)
	}
}

// checkGroups checks the slices of a category: exactly one of both forms, lists of equal length, unique product names.
func (l *loader) checkGroups(at, category string, m *Machine) {
	inline := ""
	for _, k := range keysOf(machineGroupType) {
		if l.given(at + "." + k.key) {
			inline = k.key
			break
		}
	}
	hasGroups := l.given(at + ".groups")
	switch {
	case hasGroups && inline != "":
		l.errorf("CFG-5", at+"."+inline, "move it into the groups", "the category has groups, so %q cannot stand beside them", inline)
		return
	case !hasGroups && inline == "":
		l.errorf("CFG-5", at, "add cpu and memory, or groups", "the category has no slices")
		return
	}
	names := map[string]string{}
	for group, g := range m.SliceGroups(category).All() {
		where := at
		if hasGroups {
			where = at + ".groups." + group
		}
		if !l.checkLists(where, m, g) {
			continue
		}
		for i, name := range g.ProductNames(category, group) {
			switch {
			case len(name) > productNameLimit:
				l.errorf("X-07", where, "shorten the name of category or group", "the product name %q is longer than %d characters", name, productNameLimit)
			case names[name] != "":
				l.errorf("X-07", where, "use another nameSuffix, or other values", "slice %d has the product name %q, which %s has too", i+1, name, names[name])
			}
			names[name] = fmt.Sprintf("slice %d of group %q", i+1, group)
		}
	}
}

func (l *loader) checkLists(where string, m *Machine, g *MachineGroup) bool {
	n := len(g.CPU)
	ok := true
	for _, list := range []struct {
		name     string
		length   int
		required bool
	}{
		{"cpu", n, true},
		{"memory", len(g.Memory), true},
		{"gpu", len(g.GPU), false},
		{"price", len(g.Price), m.Payment.Type == PaymentMoney},
	} {
		switch {
		case list.length == 0 && list.required && l.given(where+"."+list.name):
			if list.name == "cpu" || list.name == "memory" {
				ok = false
			}
		case list.length == 0 && list.required:
			l.errorf(ruleOf(list.name), where, "add "+list.name, "the list %q is missing", list.name)
			ok = false
		case list.length != 0 && n != 0 && list.length != n:
			l.errorf("CFG-5", where+"."+list.name, "give one value for each slice", "%q has %s, but cpu has %d", list.name, plural(list.length, "value"), n)
			ok = false
		}
	}
	if m.Payment.Type == PaymentResource {
		l.forbid("X-08", where, "payment type Resource has no price", map[string]bool{"price": len(g.Price) > 0})
	}
	if m.Payment.Unit == UnitGPU && len(g.GPU) == 0 && ok {
		l.errorf("X-08", where, "add gpu, or count another unit", "the unit is Gpu, but the slices have none")
	}
	return ok
}

func ruleOf(list string) string {
	if list == "price" {
		return "X-08"
	}
	return "CFG-5"
}
