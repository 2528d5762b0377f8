package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"ucloud-im/internal/observability"
)

// place names one value of one file: the document ("config", "server", "secrets") and the key path in it.
type place struct{ doc, path string }

// decoder fills structs from nodes. It goes on after each problem, so that one run reports everything.
type decoder struct {
	problems *Problems
	doc      string
	dir      string // what relative paths are joined with
	places   map[place]position
	secrets  *[]string // plain secrets that were met, for the last check of the report
}

func (d *decoder) report(sev Severity, rule string, pos position, path, message, remedy string) {
	p := Problem{Severity: sev, Rule: rule, KeyPath: path, Message: message, Remedy: remedy}
	if pos.src != nil {
		p.File, p.Line, p.Column, p.Excerpt = pos.src.name, pos.line, pos.column, pos.src.excerpt(pos)
	}
	d.problems.add(p)
}

// wrong reports a value that does not fit its type.
func (d *decoder) wrong(n *node, path, message, remedy string) {
	d.report(Error, "CFG-2", n.pos, path, message, remedy)
}

func (d *decoder) wrongErr(n *node, path string, err error) {
	if b, ok := err.(*badValue); ok {
		d.wrong(n, path, b.message, b.remedy)
		return
	}
	d.wrong(n, path, err.Error(), "")
}

func (d *decoder) outOfRange(n *node, path, message, remedy string) {
	d.report(Error, "CFG-5", n.pos, path, message, remedy)
}

// nodeDecoder is a type with a form of its own: several kinds of nodes, or a map that is not simply a struct.
type nodeDecoder interface {
	decodeNode(d *decoder, n *node, path string, f *keyInfo)
}

// value decodes one node into v.
func (d *decoder) value(v reflect.Value, n *node, path string, f *keyInfo) {
	switch n.kind {
	case kindBroken: // reported when the file was parsed
		return
	case kindNull:
		d.wrong(n, path, "the key has no value", "give it a value or remove the key")
		return
	}
	// Problems about a whole map or list point at its key, those about a single value at the value.
	if _, known := d.places[place{d.doc, path}]; !known || n.kind != kindMap && n.kind != kindList {
		d.places[place{d.doc, path}] = n.pos
	}
	if v.CanAddr() {
		if nd, ok := v.Addr().Interface().(nodeDecoder); ok {
			nd.decodeNode(d, n, path, f)
			return
		}
	}
	if scalar, ok := scalarOf(v.Type(), f); ok {
		d.scalar(v, n, path, f, scalar)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(v.Elem(), n, path, f)
	case reflect.Struct:
		d.object(v, n, path)
	case reflect.Slice:
		d.list(v, n, path, f)
	default:
		panic("config: no decoder for " + v.Type().String()) // a bug in the structs, found by any test
	}
}

func (d *decoder) scalar(v reflect.Value, n *node, path string, f *keyInfo, s scalarType) {
	if !slices.Contains(s.kinds, n.kind) {
		remedy := "write " + s.example
		if s.kinds[0] == kindText && (n.kind == kindInt || n.kind == kindFloat || n.kind == kindBool) {
			remedy = fmt.Sprintf("put it in quotes: %q", n.text)
		}
		if n.kind == kindText && s.kinds[0] == kindBool {
			remedy = "write true or false"
		}
		d.wrong(n, path, fmt.Sprintf("%s is expected here, not %s", s.name, n.kind.what()), remedy)
		return
	}
	out, err := s.parse(n.text, d.dir)
	if err != nil {
		d.hideLogin(n.text)
		d.wrongErr(n, path, err)
		return
	}
	v.Set(reflect.ValueOf(out).Convert(v.Type()))
	d.bounds(v, n, path, f)
}

// hideLogin keeps the password of a URL with a login out of the report.
func (d *decoder) hideLogin(text string) {
	if _, after, ok := strings.Cut(text, "://"); ok {
		if login, _, ok := strings.Cut(after, "@"); ok {
			*d.secrets = append(*d.secrets, login)
			if _, password, ok := strings.Cut(login, ":"); ok {
				*d.secrets = append(*d.secrets, password)
			}
		}
	}
}

// hideValues keeps everything below a node out of the report. It is for unknown keys that sound like a secret.
func (d *decoder) hideValues(n *node) {
	if n.text != "" {
		*d.secrets = append(*d.secrets, n.text)
	}
	for _, f := range n.fields {
		d.hideValues(f.value)
	}
	for _, i := range n.items {
		d.hideValues(i)
	}
}

// bounds applies the limits of a field's tag to a scalar.
func (d *decoder) bounds(v reflect.Value, n *node, path string, f *keyInfo) {
	if f == nil {
		return
	}
	text := v.String()
	if v.Kind() == reflect.String && len(f.enum) > 0 && !slices.Contains(f.enum, text) {
		remedy := "write one of: " + strings.Join(f.enum, ", ")
		if s := suggest(text, f.enum); s != "" {
			remedy = fmt.Sprintf("did you mean %q? allowed: %s", s, strings.Join(f.enum, ", "))
		}
		d.outOfRange(n, path, quote(text)+" is not possible here", remedy)
		v.SetZero() // so that no later rule says more about a word that means nothing
		if v.CanAddr() && f.hasDefault {
			d.setDefault(v, f)
		}
	}
	if f.min != "" || f.max != "" || f.zero {
		d.limits(v, n, path, f)
		return
	}
	if t, ok := v.Interface().(time.Duration); ok && t <= 0 {
		d.outOfRange(n, path, "the duration must be above 0", "write a positive duration")
	}
}

func (d *decoder) limits(v reflect.Value, n *node, path string, f *keyInfo) {
	if v.Kind() != reflect.Int && v.Kind() != reflect.Int64 {
		return
	}
	s, _ := scalarOf(v.Type(), f)
	number := func(text string) int64 {
		x, err := s.parse(text, "")
		if err != nil {
			panic("config: bad bound in the tag of " + path + ": " + text)
		}
		return reflect.ValueOf(x).Int()
	}
	x := v.Int()
	_, isDuration := v.Interface().(time.Duration)
	switch {
	case f.zero && x == 0:
	case f.min != "" && x < number(f.min):
		d.outOfRange(n, path, "the value is below "+f.min, boundsText(f))
	case f.max != "" && x > number(f.max):
		d.outOfRange(n, path, "the value is above "+f.max, boundsText(f))
	case isDuration && x <= 0:
		d.outOfRange(n, path, "the duration must be above 0", "write a positive duration")
	case f.min == "" && x < 0:
		d.outOfRange(n, path, "the value is negative", boundsText(f))
	}
}

func boundsText(f *keyInfo) string {
	text := "allowed: "
	if f.zero {
		text += "0, or "
	}
	switch {
	case f.min != "" && f.max != "":
		return text + f.min + " to " + f.max
	case f.min != "":
		return text + "at least " + f.min
	case f.max != "":
		return text + "at most " + f.max
	}
	return text + "more than 0"
}

func (d *decoder) list(v reflect.Value, n *node, path string, f *keyInfo) {
	if n.kind != kindList {
		d.wrong(n, path, "a list is expected here, not "+n.kind.what(), "write [a, b] or one entry per line with a dash")
		return
	}
	out := reflect.MakeSlice(v.Type(), 0, len(n.items))
	for i, item := range n.items {
		e := reflect.New(v.Type().Elem()).Elem()
		d.value(e, item, fmt.Sprintf("%s[%d]", path, i), f)
		out = reflect.Append(out, e)
	}
	v.Set(out)
	if f != nil && f.nonEmpty && len(n.items) == 0 {
		d.outOfRange(n, path, "the list is empty", "give at least one entry")
	}
}

// object decodes a map into a struct: known keys, then unknown ones, then defaults and what is missing.
func (d *decoder) object(v reflect.Value, n *node, path string) {
	if n.kind != kindMap {
		d.wrong(n, path, "a map is expected here, not "+n.kind.what(), "write key: value lines, indented below this key")
		return
	}
	keys := keysOf(v.Type())
	seen := map[string]bool{}
	for _, fl := range n.fields {
		k, ok := keys.find(fl.key)
		if !ok {
			d.unknown(fl, path, keys)
			continue
		}
		seen[fl.key] = true
		sub := join(path, fl.key)
		d.places[place{d.doc, sub}] = fl.pos
		// The default comes first and stays if the value is wrong, so that later rules do not stumble over it.
		d.setDefault(v.FieldByIndex(k.index), k)
		if fl.value.pos.src == nil || fl.value.kind == kindNull {
			fl.value.pos = fl.pos
		}
		d.value(v.FieldByIndex(k.index), fl.value, sub, k)
	}
	for _, k := range keys {
		if seen[k.key] {
			continue
		}
		if k.need == "yes" {
			pos := d.placeOf(path)
			d.report(Error, "CFG-5", pos, join(path, k.key), fmt.Sprintf("the key %q is missing", k.key), "add "+k.example())
			continue
		}
		d.setDefault(v.FieldByIndex(k.index), k)
	}
}

// placeOf is the position of the value at path, or of the nearest one around it that stands in the file.
func (d *decoder) placeOf(path string) position { return nearest(d.places, d.doc, path) }

func nearest(places map[place]position, doc, path string) position {
	for {
		if pos, ok := places[place{doc, path}]; ok {
			return pos
		}
		if path == "" {
			return position{}
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
}

var soundsSecret = regexp.MustCompile(`(?i)passw|secret|token|credential|private`)

func (d *decoder) unknown(fl field, path string, keys keyList) {
	var names []string
	for _, k := range keys {
		names = append(names, k.key)
	}
	remedy := "remove it; known here: " + strings.Join(names, ", ")
	if s := suggest(fl.key, names); s != "" {
		remedy = fmt.Sprintf("did you mean %q?", s)
	} else if elsewhere := keyElsewhere(fl.key); elsewhere != "" {
		remedy = "this key belongs to " + elsewhere
	}
	if soundsSecret.MatchString(fl.key) {
		d.hideValues(fl.value)
	}
	d.report(Error, "CFG-2", fl.pos, join(path, fl.key), fmt.Sprintf("unknown key %q", fl.key), remedy)
}

// setDefault fills a value that is not in the file: the default of its tag, or those of its members.
func (d *decoder) setDefault(v reflect.Value, k *keyInfo) {
	if k.hasDefault {
		n := literal(k.def)
		silent := &decoder{problems: &Problems{}, doc: "default", dir: d.dir, places: map[place]position{}, secrets: d.secrets}
		silent.value(v, n, k.key, k)
		if len(*silent.problems) > 0 {
			panic("config: bad default in the tag of " + k.key + ": " + (*silent.problems)[0].Message)
		}
		return
	}
	if _, ok := v.Addr().Interface().(nodeDecoder); ok {
		return
	}
	if _, ok := scalarOf(v.Type(), k); !ok && v.Kind() == reflect.Struct {
		for _, sub := range keysOf(v.Type()) {
			d.setDefault(v.FieldByIndex(sub.index), sub)
		}
	}
}

// literal reads the text of a default as the file would be read. Plain words and numbers, nearly all of them, need no
// parser.
func literal(text string) *node {
	n := &node{kind: kindText, text: text}
	switch {
	case text == "true" || text == "false":
		n.kind = kindBool
		return n
	case strings.Trim(text, "0123456789") == "":
		n.kind = kindInt
		return n
	case !strings.ContainsAny(text, "[]{}\"'#&*!|>, "):
		return n
	}
	var problems Problems
	root := parse(&source{name: "default"}, []byte("v: "+text), &problems)
	if len(problems) > 0 || root.child("v") == nil {
		panic("config: default is no YAML: " + text)
	}
	return root.child("v")
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// scalarType says how one Go type is written in a file.
type scalarType struct {
	name, example string
	kinds         []kind
	parse         func(text, dir string) (any, error)
}

var anyText = []kind{kindText, kindInt, kindFloat}

func scalarFunc[T any](parse func(string) (T, error)) func(string, string) (any, error) {
	return func(text, _ string) (any, error) { return parse(text) }
}

// scalarOf gives the scalar form of a type, if it has one.
func scalarOf(t reflect.Type, f *keyInfo) (scalarType, bool) {
	switch reflect.Zero(t).Interface().(type) {
	case time.Duration:
		return scalarType{"a duration", "a duration such as 30s", anyText, scalarFunc(ParseDuration)}, true
	case Size:
		return scalarType{"a size", "a size such as 64MiB", anyText, scalarFunc(ParseSize)}, true
	case Path:
		return scalarType{"a path", "an absolute path", []kind{kindText}, func(text, dir string) (any, error) {
			if f == nil || !f.relative {
				dir = ""
			}
			return parsePath(text, dir)
		}}, true
	case Name:
		return scalarType{"a name", "a name such as ucloud_users", []kind{kindText}, scalarFunc(parseName)}, true
	case Mode:
		return scalarType{"a set of permission bits", `octal digits such as "0700"`, []kind{kindText, kindInt}, scalarFunc(parseMode)}, true
	case Percent:
		return scalarType{"a percentage", "a percentage such as 200%", []kind{kindText}, scalarFunc(parsePercent)}, true
	case Money:
		return scalarType{"an amount of money", "a decimal number such as 0.25", anyText, scalarFunc(parseMoney)}, true
	case PortRange:
		return scalarType{"a range of ports", "a range such as 42000-49999", []kind{kindText}, scalarFunc(parsePortRange)}, true
	case IDRange:
		return scalarType{"a range of ids", "a range such as 30000-39999", []kind{kindText}, scalarFunc(parseIDRange)}, true
	case Listen:
		return scalarType{"an address to listen on", `an address such as "127.0.0.1:8889"`, []kind{kindText}, scalarFunc(parseListen)}, true
	case URL:
		return scalarType{"a URL", `a URL such as "https://login.example.org"`, []kind{kindText}, scalarFunc(parseURL)}, true
	case netip.Prefix:
		return scalarType{"a network", `a network such as "10.0.0.0/8"`, []kind{kindText}, scalarFunc(parsePrefix)}, true
	case netip.Addr:
		return scalarType{"an IP address", `an address such as "127.0.0.1"`, []kind{kindText}, scalarFunc(parseAddr)}, true
	case Pattern:
		return scalarType{"a pattern", `text with variables such as "/home/#{localUsername}"`, []kind{kindText}, func(text, _ string) (any, error) {
			place := ""
			if f != nil {
				place = f.vars
			}
			return parsePattern(text, patternVariables(place))
		}}, true
	case observability.Secret:
		panic("config: use SecretRef for secrets")
	}
	switch t.Kind() {
	case reflect.String:
		kinds := []kind{kindText}
		if f != nil && f.numeric {
			kinds = anyText
		}
		return scalarType{"text", "text", kinds, func(text, _ string) (any, error) {
			if len(text) > 64<<10 {
				return nil, bad("shorten it", "the text is longer than 64 KiB")
			}
			if strings.ContainsRune(text, 0) {
				return nil, bad("remove it", "the text contains a NUL character")
			}
			if f != nil && f.nonEmpty && strings.TrimSpace(text) == "" {
				return nil, bad("write something or remove the key", "the text is empty")
			}
			return text, nil
		}}, true
	case reflect.Bool:
		return scalarType{"true or false", "true or false", []kind{kindBool}, func(text, _ string) (any, error) {
			switch text {
			case "true", "True", "TRUE":
				return true, nil
			case "false", "False", "FALSE":
				return false, nil
			}
			return nil, bad("write true or false", "%s is neither true nor false", quote(text))
		}}, true
	case reflect.Int:
		return scalarType{"a whole number", "a whole number", []kind{kindInt}, func(text, _ string) (any, error) {
			// Digits only: 0x10, 0o17, 010 and 1_000 mean different things to different readers of YAML.
			n, err := strconv.Atoi(text)
			if digits := strings.TrimLeft(text, "-"); err != nil || (len(digits) > 1 && digits[0] == '0') || text[0] == '+' {
				return nil, bad("write plain decimal digits", "%s is not a plain whole number", quote(text))
			}
			return n, nil
		}}, true
	}
	return scalarType{}, false
}
