package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
)

// DefaultDir is where the configuration is unless --config-dir or UCLOUD_CONFIG_DIR says otherwise.
const DefaultDir = "/etc/ucloud"

// Role is for whom a configuration is loaded. It decides which files are read.
type Role uint8

// The roles. The zero value is invalid.
const (
	RoleServer  Role = iota + 1 // config.yml, server.yml and secrets.yml
	RoleGateway                 // config.yml, never a file with secrets of the server
	RoleCLI                     // config.yml; finding the socket is all that it needs
	RoleCheck                   // everything that is there: ucloud config check and doctor
)

// String is the word of the command line.
func (r Role) String() string {
	return [...]string{"", "server", "gateway", "cli", "check"}[min(int(r), 4)]
}

func (r Role) readsSecrets() bool { return r == RoleServer || r == RoleCheck }

// Options say how to load.
type Options struct {
	Role Role

	// Environment adds the rules that look at this machine: files, owners, modes, groups, certificates. Secrets that are
	// in files, variables or credentials are read only then. Without it nothing but the configuration files is read, so a
	// configuration can be tested elsewhere (CFG-5).
	Environment bool

	// Getenv reads an environment variable; nil means os.Getenv.
	Getenv func(string) string

	// Service is the account of the service; nil means the account of this process. ucloud config check sets it when root
	// runs it.
	Service *Account

	// Group looks up a local group as the name service sees it. ok is false if there is none. Nil means the group file
	// alone, which misses groups of a directory.
	Group func(name string) (g Group, ok bool, err error)

	// ParseKeys checks a file with public keys of UCloud/Core; nil means that only size and mode are checked.
	ParseKeys func([]byte) error
	// Unsupported tells what the program does not do although a configuration may say it. It is asked about a configuration
	// without errors. Nil: it does everything.
	Unsupported func(*Config) Problems
}

// Account is a local account.
type Account struct {
	Name     string
	UID, GID int
	Groups   []int // supplementary groups
}

// Group is a local group.
type Group struct {
	GID     int
	Members []string
}

// Load reads and checks the configuration in dir. It reports everything that is wrong in one run, in a fixed order
// (CFG-3). The configuration is nil if and only if there are errors; warnings are in both results.
//
// Load has no side effects: it creates, changes and locks nothing.
func Load(dir string, o Options) (*Config, Problems) {
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	l := &loader{options: o, config: &Config{Role: o.Role, meta: &metadata{places: map[place]position{}}}}
	l.run(dir)
	if o.Unsupported != nil && !l.problems.HasErrors() {
		for _, p := range o.Unsupported(l.config) {
			l.problems.add(p)
		}
	}
	out := l.problems.sorted()
	for i := range out {
		l.scrub(&out[i])
	}
	if out.HasErrors() {
		return nil, out
	}
	l.config.Warnings = out
	return l.config, out
}

type loader struct {
	options  Options
	config   *Config
	problems Problems
	secrets  []string // plain secrets that were met, to be cut out of the report; they do not outlive the loader
	damaged  bool     // a file could not be read or parsed: rules about the whole make no sense
}

func (l *loader) run(dir string) {
	abs, err := filepath.Abs(dir)
	if err != nil || dir == "" {
		l.problems.add(Problem{Severity: Error, Rule: "CFG-1", File: "config.yml", Message: "there is no configuration directory", Remedy: "give --config-dir or UCLOUD_CONFIG_DIR"})
		return
	}
	c := l.config
	c.Dir = abs
	main := l.read("config", true)
	var server, secrets *node
	if l.options.Role.readsSecrets() {
		server = l.read("server", l.options.Role == RoleServer || l.options.Environment)
		secrets = l.read("secrets", false)
	}
	if main == nil || l.damaged {
		// Go on with what can be read, so that one broken file does not hide the problems of the others.
		l.damaged = true
	}
	l.legacy(main, server, secrets)
	if main != nil {
		l.decode("config", reflect.ValueOf(c).Elem(), main)
	}
	if server != nil {
		c.Server = &ServerFile{}
		l.decode("server", reflect.ValueOf(c.Server).Elem(), server)
	}
	if secrets != nil {
		c.Secrets = &SecretsFile{}
		l.decode("secrets", reflect.ValueOf(c.Secrets).Elem(), secrets)
	}
	if main == nil {
		return
	}
	l.computeDefaults()
	if l.damaged {
		return
	}
	l.static()
	if l.options.Environment {
		l.environment()
	}
}

// read finds and parses one file. Nil means that there is none or that it is broken, which is reported.
func (l *loader) read(doc string, required bool) *node {
	var found []string
	for _, ext := range []string{".yml", ".yaml"} {
		if _, err := os.Lstat(filepath.Join(l.config.Dir, doc+ext)); err == nil {
			found = append(found, doc+ext)
		} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			l.fileProblem(Error, "CFG-1", doc+ext, shortError(err), "")
			l.damaged = true
			return nil
		}
	}
	switch {
	case len(found) == 2:
		l.fileProblem(Error, "CFG-1", doc+".yml", "both "+found[0]+" and "+found[1]+" exist", "keep "+found[0])
		l.damaged = true
		return nil
	case len(found) == 0 && required:
		l.fileProblem(Error, "CFG-1", doc+".yml", "there is no "+doc+".yml in "+l.config.Dir, "create it, or name another directory with --config-dir")
		l.damaged = true
		return nil
	case len(found) == 0:
		if doc == "server" {
			l.fileProblem(Warning, "CFG-1", doc+".yml", "there is no server.yml in "+l.config.Dir+"; it was not checked", "the server needs it")
		}
		return nil
	}
	secret := doc != "config"
	path := filepath.Join(l.config.Dir, found[0])
	verify := func(*os.File) error { return nil }
	if secret && l.options.Environment {
		verify = func(f *os.File) error {
			err := l.secretFile(f)
			if _, ok := errors.AsType[*badFile](err); ok {
				l.fileProblem(Error, "SEC-1", found[0], err.Error(), remedyOf(err))
				return nil // nothing starts with it; it is read so that its other problems are told with this one
			}
			return err
		}
	}
	data, err := readChecked(path, maxFileBytes, verify)
	if err != nil {
		rule := "CFG-1"
		if _, ok := errors.AsType[*badFile](err); ok {
			rule = "SEC-1"
		}
		if errors.Is(err, fs.ErrPermission) && l.options.Role == RoleCheck && !l.options.Environment {
			l.fileProblem(Warning, rule, found[0], "the file cannot be read by you and was not checked", "check as root or as the service account")
			return nil
		}
		l.fileProblem(Error, rule, found[0], shortError(err), remedyOf(err))
		l.damaged = true
		return nil
	}
	src := newSource(found[0], path, secret, data)
	src.doc = doc
	l.config.meta.sources = append(l.config.meta.sources, src)
	root := parse(src, data, &l.problems)
	if root == nil {
		l.damaged = true
		return nil
	}
	if root.kind != kindMap {
		d := l.decoder(doc)
		d.wrong(root, "", "the file holds "+root.kind.what()+", not keys with values", "write key: value lines")
		l.damaged = true
		return nil
	}
	l.version(doc, src, root)
	return root
}

// version checks the form of a file (CFG-10).
func (l *loader) version(doc string, src *source, root *node) {
	d := l.decoder(doc)
	v := root.child("version")
	start := position{src: src, line: 1, column: 1}
	switch {
	case v == nil:
		d.report(Warning, "CFG-10", start, "version", "the file does not tell its version; it is read as version 1", "add version: 1 at the top")
	case v.kind == kindInt && v.text != "1":
		d.report(Error, "CFG-10", v.pos, "version", "version "+quote(v.text)+" is not known to this program", "write version: 1, or install a newer program")
		l.damaged = true
	}
}

func (l *loader) decoder(doc string) *decoder {
	return &decoder{problems: &l.problems, doc: doc, dir: l.config.Dir, places: l.config.meta.places, secrets: &l.secrets}
}

func (l *loader) decode(doc string, v reflect.Value, root *node) {
	d := l.decoder(doc)
	d.places[place{doc, ""}] = position{src: root.pos.src, line: 1, column: 1} // no length: the file as a whole
	d.object(v, root, "")
}

func (l *loader) fileProblem(sev Severity, rule, file, message, remedy string) {
	l.problems.add(Problem{Severity: sev, Rule: rule, File: file, Message: message, Remedy: remedy})
}

// problem reports something about a key of config.yml.
func (l *loader) problem(sev Severity, rule, keyPath, message, remedy string) {
	l.problems.add(l.config.problem("config", sev, rule, keyPath, message, remedy))
}

func (l *loader) errorf(rule, keyPath, remedy, format string, args ...any) {
	l.problem(Error, rule, keyPath, fmt.Sprintf(format, args...), remedy)
}

func (l *loader) warnf(rule, keyPath, remedy, format string, args ...any) {
	l.problem(Warning, rule, keyPath, fmt.Sprintf(format, args...), remedy)
}

// scrub cuts plain secrets out of a problem. Nothing should put them there; this is the net below.
func (l *loader) scrub(p *Problem) {
	for _, s := range l.secrets {
		if len(s) < 4 {
			continue // would cut parts out of words, and is no secret
		}
		for _, text := range []*string{&p.Message, &p.Remedy, &p.Excerpt} {
			*text = strings.ReplaceAll(*text, s, "[redacted]")
		}
	}
}
