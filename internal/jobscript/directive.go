package jobscript

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/shell"
)

// Limits of directives. sbatch copies an argument into a buffer of some kilobytes; far below it is nothing to worry about.
const (
	maxDirectiveName  = 64
	maxDirectiveValue = 2048
	maxDirectives     = 100
)

// protected names are the provider's: who pays, where it runs, how the job is found again, and with which environment it is submitted
// (contract 22 sections 4.1 and 12.6). With --quiet sbatch does not print the id of the job.
var protected = []string{"account", "partition", "parsable", "comment", "export", "export-file", "quiet"}

// refused names would make sbatch do something else than submit this script as this job.
var refused = []string{
	"wrap", "wait", "test-only", "help", "usage", "version", "clusters", "uid", "gid", "cluster-constraint",
}

// Directives are the options of sbatch that stand at the beginning of a script. The zero value is empty.
type Directives struct {
	values map[string]string
	flags  map[string]bool // without a value
	locked []string
}

// Lock keeps further names from being changed by [Directives.Override]. A name covers its abbreviations.
func (d *Directives) Lock(names ...string) { d.locked = append(d.locked, names...) }

// Set is for the provider's own values. It checks the value, not the name.
func (d *Directives) Set(name, value string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if value == "" {
		return failure.New(failure.Invalid, "The sbatch option --%s has no value", name)
	}
	if len(value) > maxDirectiveValue {
		return failure.New(failure.Invalid, "The value of the sbatch option --%s is longer than %d bytes", name, maxDirectiveValue)
	}
	if err := shell.CheckLine("The value of the sbatch option --"+name, value); err != nil {
		return err
	}
	d.make()
	if len(d.values) >= maxDirectives {
		return failure.New(failure.Invalid, "There are more than %d sbatch options", maxDirectives)
	}
	delete(d.flags, name)
	d.values[name] = value
	return nil
}

// Flag sets an option that takes no value.
func (d *Directives) Flag(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	d.make()
	if len(d.flags) >= maxDirectives {
		return failure.New(failure.Invalid, "There are more than %d sbatch options", maxDirectives)
	}
	delete(d.values, name)
	d.flags[name] = true
	return nil
}

func (d *Directives) make() {
	if d.values == nil {
		d.values, d.flags = map[string]string{}, map[string]bool{}
	}
}

// Get is the value of an option.
func (d *Directives) Get(name string) (string, bool) {
	if d.flags[name] {
		return "", true
	}
	v, ok := d.values[name]
	return v, ok
}

// Remove takes an option away.
func (d *Directives) Remove(name string) {
	delete(d.values, name)
	delete(d.flags, name)
}

// Override is for values that an application or a template sets. Names of the provider are left alone and reported as ignored
// (contract 24 section 6.3), as are requests for no GPUs. An empty value makes it an option without a value.
func (d *Directives) Override(name, value string) (ignored bool, err error) {
	if err := checkName(name); err != nil {
		return false, err
	}
	if covered(name, protected) || covered(name, d.locked) {
		return true, nil
	}
	if covered(name, refused) {
		return false, failure.New(failure.Invalid, "The sbatch option --%s cannot be set by an application", name)
	}
	if strings.HasPrefix(name, "gpus-per-") && !positive(value) {
		return true, nil
	}
	for _, other := range instead[name] {
		if !slices.Contains(d.locked, other) {
			d.Remove(other)
		}
	}
	if value == "" {
		return false, d.Flag(name)
	}
	return false, d.Set(name, value)
}

// instead says which of the provider's defaults an option takes the place of, because sbatch refuses both together.
var instead = map[string][]string{
	"mem-per-cpu":       {"mem"},
	"mem-per-gpu":       {"mem"},
	"cpus-per-gpu":      {"cpus-per-task"},
	"gpus":              {"gpus-per-task", "ntasks-per-node"},
	"gpus-per-node":     {"gpus-per-task", "ntasks-per-node"},
	"gpus-per-socket":   {"gpus-per-task", "ntasks-per-node"},
	"gres":              {"gpus-per-task", "ntasks-per-node"},
	"ntasks":            {"ntasks-per-node"},
	"ntasks-per-gpu":    {"ntasks-per-node", "gpus-per-task"},
	"tres-per-task":     {"gpus-per-task", "cpus-per-task"},
	"ntasks-per-core":   {"ntasks-per-node"},
	"ntasks-per-socket": {"ntasks-per-node"},
}

// positive tells whether a number of GPUs, perhaps after a type ("a100:2"), asks for any.
func positive(value string) bool {
	count := value[strings.LastIndexByte(value, ':')+1:]
	if strings.HasPrefix(count, "-") {
		return false
	}
	return strings.Trim(count, "0 .") != ""
}

// covered tells whether name is one of list, or could be read by sbatch as an abbreviation of one. getopt_long accepts every
// unambiguous beginning of a long option ("--acc"); what is ambiguous in one version of Slurm need not be in the next.
func covered(name string, list []string) bool {
	return slices.ContainsFunc(list, func(l string) bool {
		return name == l || strings.HasPrefix(l, name) && !known[name]
	})
}

// known are options that are the beginning of another one.
var known = map[string]bool{"export": true, "gpus": true, "mem": true, "ntasks": true, "time": true, "wait": true}

func checkName(name string) error {
	if len(name) > maxDirectiveName {
		return failure.New(failure.Invalid, "The name of an sbatch option is longer than %d characters", maxDirectiveName)
	}
	for i, c := range []byte(name) {
		if ('a' > c || c > 'z') && (c != '-' || i == 0) {
			return failure.New(failure.Invalid, "%q cannot be an sbatch option: names have small letters and hyphens only, and begin with a letter", name)
		}
	}
	if name == "" {
		return failure.New(failure.Invalid, "The name of an sbatch option is empty")
	}
	return nil
}

// Lines are the directives as they stand in a script, sorted by name.
func (d *Directives) Lines() []string {
	names := slices.Collect(maps.Keys(d.values))
	names = append(names, slices.Collect(maps.Keys(d.flags))...)
	slices.SortFunc(names, cmp.Compare[string])
	lines := make([]string, len(names))
	for i, name := range names {
		lines[i] = "#SBATCH --" + name
		if value, ok := d.values[name]; ok {
			lines[i] += "=" + quoteDirective(value)
		}
	}
	return lines
}

// quoteDirective writes a value in the grammar of sbatch's own reader of #SBATCH lines, which is not that of a shell: within quotes
// of either kind a backslash takes the meaning from the next character, and outside of them # begins a comment. Values that are plain
// are left as they are, for the reader.
func quoteDirective(value string) string {
	plain := func(c byte) bool {
		return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("._/:,+@%=-", c) >= 0
	}
	for i := range len(value) {
		if !plain(value[i]) {
			return `'` + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(value) + `'`
		}
	}
	return value
}
