package config

import (
	"reflect"
	"slices"
	"strings"
)

// Change is one difference between two configurations. Values of secrets are redacted.
type Change struct {
	KeyPath string // such as gateway.hold.timeout; keys of the other files begin with server: or secrets:
	Old     string // empty if the key was not there
	New     string // empty if the key is gone
}

// Diff compares a running configuration with a newly loaded one (contract 40 section 10). apply is what a reload puts
// into effect at once; restart is what needs a restart, until which the old value is used; refused is what must not be
// done at all. If anything is refused, the reload keeps the old configuration as a whole.
func Diff(old, new *Config) (apply, restart []Change, refused []Problem) {
	before, order := flatten(old)
	after, more := flatten(new)
	for _, key := range more {
		if _, ok := before[key]; !ok {
			order = append(order, key)
		}
	}
	for _, key := range order {
		a, b := before[key], after[key]
		if a.text == b.text {
			continue
		}
		change := Change{KeyPath: key, Old: a.show(), New: b.show()}
		if a.restart || b.restart {
			restart = append(restart, change)
		} else {
			apply = append(apply, change)
		}
	}
	return apply, restart, new.refused(old)
}

type flat struct {
	text    string
	secret  bool
	restart bool
}

func (f flat) show() string {
	if f.secret && f.text != "" {
		return "[redacted]"
	}
	return f.text
}

// flatten gives the values of a configuration by key path, in a fixed order.
func flatten(c *Config) (map[string]flat, []string) {
	values, order := map[string]flat{}, []string{}
	collect := func(prefix string, root reflect.Value) {
		var needsRestart []string // paths whose members inherit it
		walkValues(root, "", func(path string, v reflect.Value, k *keyInfo, leaf bool) bool {
			restart := k.restart || slices.ContainsFunc(needsRestart, func(p string) bool {
				return strings.HasPrefix(path, p+".") || strings.HasPrefix(path, p+"[")
			})
			if restart && !leaf {
				needsRestart = append(needsRestart, path)
			}
			if !leaf {
				return true
			}
			if v.Kind() == reflect.Pointer {
				if v.IsNil() {
					return true
				}
				v = v.Elem()
			}
			f := flat{restart: restart}
			if s, ok := v.Interface().(SecretRef); ok {
				// The source as well as the value: a file may have been rewritten in place (SEC-6).
				f.text, f.secret = s.source+"\x00"+s.name+"\x00"+s.Value().Reveal(), s.IsSet()
				if !s.IsSet() {
					f.text = ""
				}
			} else if e, ok := v.Interface().(Exec); ok {
				f.text = execText(e)
			} else {
				f.text, _ = scalarText(v)
			}
			values[prefix+path] = f
			order = append(order, prefix+path)
			return true
		})
	}
	collect("", reflect.ValueOf(c).Elem())
	if c.Server != nil {
		collect("server:", reflect.ValueOf(c.Server).Elem())
	}
	if c.Secrets != nil {
		collect("secrets:", reflect.ValueOf(c.Secrets).Elem())
	}
	return values, order
}

// execText is everything about a program on one line.
func execText(e Exec) string {
	if !e.IsSet() {
		return ""
	}
	var b strings.Builder
	walkValues(reflect.ValueOf(e), "", func(path string, v reflect.Value, _ *keyInfo, leaf bool) bool {
		if leaf && !v.IsZero() {
			text, _ := scalarText(v)
			if path == "path" {
				b.WriteString(text)
			} else {
				b.WriteString(" " + path + "=" + text)
			}
		}
		return true
	})
	return b.String()
}

// refused finds changes that UCloud/Core cannot follow: it keeps products for ever, and unit, period and freeToUse of a
// category as they were first declared (contract 30 section 2).
func (c *Config) refused(old *Config) []Problem {
	var out []Problem
	refuse := func(key, message, remedy string) {
		out = append(out, c.NewProblem(Error, "X-08", key, message, remedy))
	}
	const newCategory = "keep it and create a new category beside it"
	for name, was := range old.Services.FileSystems.All() {
		key := "services.fileSystems." + name
		is, ok := c.Services.FileSystems.Get(name)
		switch {
		case !ok:
			refuse(key, "the product "+quote(name)+" was removed, but UCloud/Core cannot forget it", "keep it; hide it or give it no allocations")
		case is.Payment.Type != was.Payment.Type || is.Payment.Unit != was.Payment.Unit || is.Payment.Currency != was.Payment.Currency:
			refuse(key+".payment", "the unit of the registered product "+quote(name)+" was changed", newCategory)
		case is.Payment.Interval != was.Payment.Interval:
			refuse(key+".payment.interval", "the interval of the registered product "+quote(name)+" was changed", newCategory)
		}
	}
	if old.Services.Slurm == nil {
		return out
	}
	for name, was := range old.Services.Slurm.Machines.All() {
		key := "services.slurm.machines." + name
		var is *Machine
		if c.Services.Slurm != nil {
			is, _ = c.Services.Slurm.Machines.Get(name)
		}
		if is == nil {
			refuse(key, "the product "+quote(name)+" was removed, but UCloud/Core cannot forget it", "keep it; hide it with hiddenInGrants")
			continue
		}
		switch {
		case is.Payment.Type != was.Payment.Type || is.Payment.Unit != was.Payment.Unit || is.Payment.Currency != was.Payment.Currency:
			refuse(key+".payment", "the unit of the registered product "+quote(name)+" was changed", newCategory)
		case is.Payment.Interval != was.Payment.Interval:
			refuse(key+".payment.interval", "the interval of the registered product "+quote(name)+" was changed", newCategory)
		case is.FreeToUse != was.FreeToUse:
			refuse(key+".freeToUse", "freeToUse of the registered product "+quote(name)+" was changed", newCategory)
		}
		var names []string
		for group, g := range is.SliceGroups(name).All() {
			names = append(names, g.ProductNames(name, group)...)
		}
		for group, g := range was.SliceGroups(name).All() {
			for _, product := range g.ProductNames(name, group) {
				if !slices.Contains(names, product) {
					refuse(key, "the machine "+quote(product)+" was removed, but UCloud/Core cannot forget it", "keep it, or create a new category beside it")
				}
			}
		}
	}
	return out
}
