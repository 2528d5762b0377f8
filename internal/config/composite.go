package config

import (
	"encoding/json"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"

	"ucloud-im/internal/observability"
)

// Map is a map of the configuration file that keeps the order of the file, which is significant for drive locators.
type Map[V any] struct{ entries []entry[V] }

type entry[V any] struct {
	name  string
	value *V
}

// All goes through the entries in file order.
func (m Map[V]) All() iter.Seq2[string, *V] {
	return func(yield func(string, *V) bool) {
		for _, e := range m.entries {
			if !yield(e.name, e.value) {
				return
			}
		}
	}
}

// Get finds an entry by name.
func (m Map[V]) Get(name string) (*V, bool) {
	for _, e := range m.entries {
		if e.name == name {
			return e.value, true
		}
	}
	return nil, false
}

// Len is the number of entries.
func (m Map[V]) Len() int { return len(m.entries) }

// anyMap is how the generic parts of the package (printing, comparing, schema) see a [Map].
type anyMap interface {
	elem() reflect.Type
	each(func(name string, v reflect.Value))
}

func (m Map[V]) elem() reflect.Type { return reflect.TypeFor[V]() }

func (m Map[V]) each(f func(string, reflect.Value)) {
	for _, e := range m.entries {
		f(e.name, reflect.ValueOf(e.value).Elem())
	}
}

func (m *Map[V]) decodeNode(d *decoder, n *node, path string, f *keyInfo) {
	if n.kind != kindMap {
		d.wrong(n, path, "a map is expected here, not "+n.kind.what(), "write name: value lines, indented below this key")
		return
	}
	if f.nonEmpty && len(n.fields) == 0 {
		d.outOfRange(n, path, "the map is empty", "give at least one entry")
	}
	for _, fl := range n.fields {
		sub := join(path, fl.key)
		if err := checkKey(f.keyForm, fl.key); err != nil {
			d.wrongErr(&node{pos: fl.pos}, sub, err)
		}
		if fl.value.kind == kindNull {
			fl.value.pos = fl.pos
		}
		e := entry[V]{name: fl.key, value: new(V)}
		d.places[place{d.doc, sub}] = fl.pos
		d.value(reflect.ValueOf(e.value).Elem(), fl.value, sub, f)
		m.entries = append(m.entries, e)
	}
}

// hostForm and endpointForm are the map forms of a host and an endpoint.
type hostForm struct {
	Address string `key:"address" need:"yes" doc:"DNS name or IP address."`
	Port    int    `key:"port" min:"1" max:"65535" defaultDoc:"443 for https, 80 for http" doc:"TCP port."`
	Scheme  string `key:"scheme" enum:"http,https" default:"https" doc:"http or https."`
}

type endpointForm struct {
	Address string `key:"address" need:"yes" doc:"DNS name or IP address."`
	Port    int    `key:"port" min:"1" max:"65535" doc:"TCP port."`
	Scheme  string `key:"scheme" doc:"Ignored; accepted because older files have it."`
}

func (h *Host) decodeNode(d *decoder, n *node, path string, _ *keyInfo) {
	if n.kind == kindText {
		out, err := parseHostURL(n.text)
		if err != nil {
			d.hideLogin(n.text)
			d.wrongErr(n, path, err)
			return
		}
		*h = out
		return
	}
	if n.kind != kindMap {
		d.wrong(n, path, "a host is expected here, not "+n.kind.what(), "write a map {address, port, scheme} or a URL")
		return
	}
	var form hostForm
	d.object(reflect.ValueOf(&form).Elem(), n, path)
	if a := n.child("address"); a != nil && a.kind == kindText {
		if err := checkAddress(form.Address); err != nil {
			d.wrongErr(a, join(path, "address"), err)
		}
	}
	*h = Host(form)
	if h.Port == 0 {
		h.Port = schemePort(h.Scheme)
	}
}

func (e *Endpoint) decodeNode(d *decoder, n *node, path string, f *keyInfo) {
	defaultPort, _ := strconv.Atoi(f.port)
	if n.kind == kindText {
		text := n.text
		if _, err := parsePath(text, ""); err != nil {
			address, port, ok := strings.Cut(text, ":")
			p, perr := strconv.Atoi(port)
			if ok && (perr != nil || p < 1 || p > 65535) || checkAddress(address) != nil {
				d.wrong(n, path, quote(text)+" is not an address", "write a map {address, port}")
				return
			}
			*e = Endpoint{Address: address, Port: p}
		} else {
			*e = Endpoint{Address: text}
		}
	} else if n.kind == kindMap {
		var form endpointForm
		d.object(reflect.ValueOf(&form).Elem(), n, path)
		if a := n.child("address"); a != nil && a.kind == kindText && !strings.HasPrefix(form.Address, "/") {
			if err := checkAddress(form.Address); err != nil {
				d.wrongErr(a, join(path, "address"), err)
			}
		}
		*e = Endpoint{Address: form.Address, Port: form.Port}
	} else {
		d.wrong(n, path, "an address is expected here, not "+n.kind.what(), "write a map {address, port}")
		return
	}
	if e.Port == 0 {
		e.Port = defaultPort
	}
}

// Exec is an extension script or another program that the operator lets us run (contract 42, SCR-1). The zero value
// means that none is configured.
type Exec struct {
	Path        Path        `key:"path" need:"yes" doc:"Executable file."`
	Args        []string    `key:"args" default:"[]" flags:"numeric" doc:"Arguments before the path of the request file."`
	Timeout     Duration    `key:"timeout" max:"1h" defaultDoc:"that of the hook, else scripts.timeout" doc:"After it the process group is ended."`
	Protocol    int         `key:"protocol" default:"1" min:"1" max:"2" doc:"Version of the envelope."`
	Concurrency int         `key:"concurrency" min:"1" max:"1000" defaultDoc:"that of the hook" doc:"How many calls may run at once."`
	Retry       Retry       `key:"retry" doc:"Back-off of change hooks."`
	Environment Map[string] `key:"environment" keys:"env" flags:"numeric" defaultDoc:"{}" doc:"Variables added to the clean environment. Names that begin with UCLOUD_ are refused."`
	PassSecrets []Name      `key:"passSecrets" default:"[]" doc:"Secrets that are passed by descriptor."`
	RunAs       string      `key:"runAs" enum:"service,root" default:"service" doc:"root needs a sudo rule for exactly this path."`
	OnFailure   string      `key:"onFailure" enum:"refuse,ignore" default:"refuse" doc:"What a failure means for a job that is about to be submitted."`
	Batch       bool        `key:"batch" default:"false" doc:"Usage hooks: many drives in one call."`
	// AllowDecrease lets a usage hook report less than before.
	AllowDecrease bool `key:"allowDecrease" default:"false" doc:"Usage hooks: a total may fall."`
}

// Duration is a plain [time.Duration] in the structs; [ParseDuration] says how it is written.
type Duration = time.Duration

// Retry is a back-off.
type Retry struct {
	Initial  Duration `key:"initial" default:"10s" doc:"First pause."`
	Max      Duration `key:"max" default:"1h" doc:"Longest pause."`
	Deadline Duration `key:"deadline" zero:"yes" default:"0" doc:"When to give up; 0 = never."`
}

// IsSet tells whether a program is configured.
func (e Exec) IsSet() bool { return e.Path != "" }

// String is the path.
func (e Exec) String() string { return string(e.Path) }

func (e *Exec) decodeNode(d *decoder, n *node, path string, _ *keyInfo) {
	type form Exec // without this method, so that the map form is an ordinary struct
	switch n.kind {
	case kindText:
		p, err := parsePath(n.text, "")
		if err != nil {
			d.wrongErr(n, path, err)
			return
		}
		d.object(reflect.ValueOf((*form)(e)).Elem(), &node{kind: kindMap, pos: n.pos, fields: []field{
			{key: "path", pos: n.pos, value: &node{kind: kindText, text: string(p), pos: n.pos}},
		}}, path)
	case kindMap:
		d.object(reflect.ValueOf((*form)(e)).Elem(), n, path)
	default:
		d.wrong(n, path, "a program is expected here, not "+n.kind.what(), "write its path, or a map {path, args, timeout, …}")
	}
}

// Fraction is the part of a device that a machine has.
type Fraction struct{ Numerator, Denominator int }

type fractionForm struct {
	Numerator   int `key:"numerator" need:"yes" min:"1" max:"1000000" doc:"Parts."`
	Denominator int `key:"denominator" need:"yes" min:"1" max:"1000000" doc:"Parts of the whole device."`
}

// String is numerator/denominator.
func (f Fraction) String() string { return fmt.Sprintf("%d/%d", f.Numerator, f.Denominator) }

// IsWhole tells whether the fraction is 1.
func (f Fraction) IsWhole() bool { return f.Numerator == f.Denominator }

func (f *Fraction) decodeNode(d *decoder, n *node, path string, _ *keyInfo) {
	if n.kind == kindText {
		a, b, ok := strings.Cut(n.text, "/")
		x, err1 := strconv.Atoi(a)
		y, err2 := strconv.Atoi(b)
		if !ok || err1 != nil || err2 != nil || x < 1 || y < 1 || x > y || y > 1e6 {
			d.wrong(n, path, quote(n.text)+" is not a fraction", `write {numerator: 1, denominator: 2} or "1/2"`)
			return
		}
		*f = Fraction{x, y}
		return
	}
	var form fractionForm
	d.object(reflect.ValueOf(&form).Elem(), n, path)
	*f = Fraction(form)
	if n.kind == kindMap && f.Numerator > f.Denominator && f.Denominator > 0 {
		d.outOfRange(n, path, "the fraction is more than 1", "a machine has at most the whole device")
	}
}

// SecretRef is a secret and where it comes from (contract 40 section 9, SEC-2). The value is never printed: it is not
// reachable by reflection, and every printing method says [redacted].
type SecretRef struct {
	source string // "plain", "file", "env", "credential", or "" if not configured
	name   string // path, variable or credential
	// A pointer: fmt follows no pointer to a text, whatever the verb, so the value cannot be printed by mistake.
	value *observability.Secret
}

// Value is the secret. It is empty if none is configured, and also for a file, variable or credential as long as the
// environment was not looked at (Options.Environment).
func (s SecretRef) Value() observability.Secret {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// IsSet tells whether a secret is configured, whether or not it was read yet.
func (s SecretRef) IsSet() bool { return s.source != "" }

// File is the path of the file that holds the secret, empty if it comes from elsewhere. TLS keys are read again from it
// when they change.
func (s SecretRef) File() string {
	if s.source == "file" {
		return s.name
	}
	return ""
}

// String tells the source and never the value.
func (s SecretRef) String() string {
	switch s.source {
	case "":
		return ""
	case "plain":
		return observability.Redacted
	}
	return s.source + ":" + s.name
}

// GoString implements [fmt.GoStringer].
func (s SecretRef) GoString() string { return s.String() }

// Format implements [fmt.Formatter], so that no verb prints the fields.
func (s SecretRef) Format(st fmt.State, _ rune) { _, _ = st.Write([]byte(s.String())) }

// MarshalJSON implements [json.Marshaler].
func (s SecretRef) MarshalJSON() ([]byte, error) { return json.Marshal(s.String()) }

type secretForm struct {
	File       Path   `key:"file" flags:"relative" defaultDoc:"none" doc:"File that holds the secret; a last newline is dropped."`
	Env        string `key:"env" defaultDoc:"none" doc:"Environment variable of the service."`
	Credential string `key:"credential" defaultDoc:"none" doc:"Credential of the systemd unit (CREDENTIALS_DIRECTORY)."`
}

func (s *SecretRef) decodeNode(d *decoder, n *node, path string, f *keyInfo) {
	const forms = "write { file: /path }, { env: NAME } or { credential: name }"
	switch n.kind {
	case kindText, kindInt, kindFloat, kindBool:
		if d.doc == "config" {
			// CFG-7. A path alone is taken as what it looks like; a value that is no path is a secret in the wrong file.
			if p, err := parsePath(n.text, ""); err == nil {
				*s = SecretRef{source: "file", name: string(p)}
				return
			}
			*d.secrets = append(*d.secrets, n.text)
			d.report(Error, "CFG-7", n.pos, path, "a secret must not stand in config.yml", forms)
			return
		}
		*d.secrets = append(*d.secrets, n.text)
		v := observability.Secret(n.text)
		if v == "" {
			d.outOfRange(n, path, "the secret is empty", forms)
			return
		}
		*s = SecretRef{source: "plain", value: &v}
	case kindMap:
		var form secretForm
		d.object(reflect.ValueOf(&form).Elem(), n, path)
		given := 0
		for _, c := range []struct{ source, name string }{{"file", string(form.File)}, {"env", form.Env}, {"credential", form.Credential}} {
			if c.name != "" {
				given++
				*s = SecretRef{source: c.source, name: c.name}
			}
		}
		switch {
		case given != 1 && len(n.fields) != 0 && given > 0:
			d.wrong(n, path, "a secret has one source, this one has "+strconv.Itoa(given), forms)
		case len(n.fields) == 0:
			d.wrong(n, path, "the secret has no source", forms)
		}
		if form.Env != "" && !envForm.MatchString(form.Env) {
			d.wrong(n, join(path, "env"), "this is not the name of an environment variable", forms)
		}
		if strings.ContainsAny(form.Credential, "/\x00") || form.Credential == ".." {
			d.wrong(n, join(path, "credential"), "this is not the name of a credential", "write the ID of LoadCredential= alone")
		}
	default:
		d.wrong(n, path, "a secret is expected here, not "+n.kind.what(), forms)
	}
}

// resolve reads the secret from its source. Errors name the source, never the content.
func (s *SecretRef) resolve(getenv func(string) string, check func(*os.File) error) error {
	read := func(path string, verify func(*os.File) error) error {
		data, err := readChecked(path, maxSecretBytes, verify)
		if err != nil {
			return err
		}
		v := observability.Secret(strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r"))
		if v == "" {
			return fmt.Errorf("%s is empty", path)
		}
		s.value = &v
		return nil
	}
	switch s.source {
	case "file":
		return read(s.name, check)
	case "credential":
		dir := getenv("CREDENTIALS_DIRECTORY")
		if !filepath.IsAbs(dir) {
			return fmt.Errorf("CREDENTIALS_DIRECTORY is not set, so there is no credential %q", s.name)
		}
		// systemd made that directory for this service alone (systemd.exec(5)); its files belong to root with mode 0440.
		return read(filepath.Join(dir, s.name), nil)
	case "env":
		v := observability.Secret(getenv(s.name))
		if v == "" {
			return fmt.Errorf("the environment variable %s is empty or not set", s.name)
		}
		s.value = &v
	}
	return nil
}

// maxSecretBytes bounds a file with one secret; a TLS key with its chain is far below it.
const maxSecretBytes = 64 << 10
