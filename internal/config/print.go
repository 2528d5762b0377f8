package config

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"ucloud-im/internal/observability"
)

// PrintOptions say how [Config.Print] shows a configuration. Secrets are redacted whatever they say (SEC-4).
type PrintOptions struct {
	KeyPath   string // only this key and what is below it; empty means everything
	Effective bool   // with defaults, not only what stands in the files
	Origin    bool   // where each value comes from, as a comment
	JSON      bool   // JSON instead of YAML; Origin has no effect then
}

// ErrNoSuchKey tells that a key path names nothing in the configuration.
type ErrNoSuchKey struct{ KeyPath, Suggestion string }

// Error implements error.
func (e *ErrNoSuchKey) Error() string {
	if e.Suggestion != "" {
		return fmt.Sprintf("there is no key %q; did you mean %q?", e.KeyPath, e.Suggestion)
	}
	return fmt.Sprintf("there is no key %q", e.KeyPath)
}

// shown is one value as it is printed.
type shown struct {
	key      string // empty for items of a list
	scalar   string
	quoted   bool // the scalar is text and may need quotes
	isList   bool
	children []*shown // maps and lists
	origin   string
	leaf     bool
}

// Print writes the configuration as YAML that could be loaded again, apart from secrets. Those of server.yml and
// secrets.yml are below the keys server and secrets.
func (c *Config) Print(w io.Writer, o PrintOptions) error {
	root := c.show(o)
	if o.KeyPath != "" {
		part := root.find(o.KeyPath)
		if part == nil {
			return &ErrNoSuchKey{o.KeyPath, c.suggestKey(o.KeyPath)}
		}
		root = part
	}
	var b strings.Builder
	if o.JSON {
		root.json(&b, "")
		b.WriteByte('\n')
	} else {
		root.yaml(&b, "", o.Origin)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// String is the redacted effective configuration.
func (c *Config) String() string {
	var b strings.Builder
	_ = c.Print(&b, PrintOptions{Effective: true}) // a Builder does not fail
	return b.String()
}

// MarshalJSON implements [json.Marshaler] with the redacted effective configuration.
func (c *Config) MarshalJSON() ([]byte, error) {
	var b strings.Builder
	err := c.Print(&b, PrintOptions{Effective: true, JSON: true})
	return []byte(b.String()), err
}

func (c *Config) show(o PrintOptions) *shown {
	root := &shown{}
	add := func(doc string, v reflect.Value, into *shown) {
		c.showStruct(doc, v, "", o, into)
	}
	add("config", reflect.ValueOf(c).Elem(), root)
	for _, f := range []struct {
		doc string
		v   reflect.Value
	}{{"server", reflect.ValueOf(c.Server)}, {"secrets", reflect.ValueOf(c.Secrets)}} {
		if f.v.IsNil() {
			continue
		}
		sub := &shown{key: f.doc}
		add(f.doc, f.v.Elem(), sub)
		root.children = append(root.children, sub)
	}
	return root
}

func (c *Config) showStruct(doc string, v reflect.Value, path string, o PrintOptions, into *shown) {
	for _, k := range keysOf(v.Type()) {
		sub := join(path, k.key)
		if !c.isSet(doc, sub) && c.withoutEffect(v, k) {
			continue
		}
		if s := c.showValue(doc, v.FieldByIndex(k.index), sub, k, o); s != nil {
			s.key = k.key
			into.children = append(into.children, s)
		}
	}
}

// withoutEffect tells whether a default is left out of the effective configuration because another key makes it
// meaningless: tickets without identity type Manual, slices beside groups.
func (c *Config) withoutEffect(v reflect.Value, k *keyInfo) bool {
	switch x := v.Interface().(type) {
	case Identity:
		return k.key == "manual" && x.Type != IdentityManual
	case Machine:
		return len(k.index) > 1 && x.Groups.Len() > 0
	}
	return false
}

// showValue gives nil for what is not shown: values without effect and, unless everything is wanted, defaults.
func (c *Config) showValue(doc string, v reflect.Value, path string, k *keyInfo, o PrintOptions) *shown {
	set := c.isSet(doc, path)
	out := &shown{origin: c.origin(doc, path, set)}
	if m, ok := v.Interface().(anyMap); ok {
		m.each(func(name string, e reflect.Value) {
			if s := c.showValue(doc, e, path+"."+name, k, o); s != nil {
				s.key = name
				out.children = append(out.children, s)
			}
		})
		return out.unlessEmpty(set)
	}
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return nil
		}
		v = v.Elem()
	}
	switch x := v.Interface().(type) {
	case SecretRef:
		if x.IsSet() && x.source != "plain" {
			out.children = []*shown{{key: x.source, leaf: true, scalar: x.name, quoted: true}}
			return out
		}
	case Exec:
		if c.isSet(doc, path+".path") && set && x.IsSet() { // written as a map
			c.showStruct(doc, v, path, o, out)
			return out
		}
	}
	_, scalar := scalarOf(v.Type(), k)
	if scalar || isLeaf(v.Type()) {
		if !set && (!o.Effective || v.IsZero() && !k.hasDefault) {
			return nil
		}
		out.leaf = true
		out.scalar, out.quoted = scalarText(v)
		return out
	}
	switch v.Kind() {
	case reflect.Slice:
		if !set && (!o.Effective || v.Len() == 0 && !k.hasDefault) {
			return nil
		}
		out.isList = true
		for i := range v.Len() {
			item := c.showItem(doc, v.Index(i), fmt.Sprintf("%s[%d]", path, i), k, o)
			out.children = append(out.children, item)
		}
		return out
	case reflect.Struct:
		c.showStruct(doc, v, path, o, out)
		return out.unlessEmpty(set)
	}
	return nil
}

// showItem shows an item of a list, which is there even if it is a default.
func (c *Config) showItem(doc string, v reflect.Value, path string, k *keyInfo, o PrintOptions) *shown {
	if s := c.showValue(doc, v, path, k, o); s != nil {
		s.origin = ""
		return s
	}
	text, quoted := scalarText(v)
	return &shown{leaf: true, scalar: text, quoted: quoted}
}

func (s *shown) unlessEmpty(set bool) *shown {
	if len(s.children) == 0 && !set {
		return nil
	}
	return s
}

func (c *Config) origin(doc, path string, set bool) string {
	if !set {
		return "default"
	}
	pos := c.meta.places[place{doc, path}]
	return fmt.Sprintf("%s:%d", pos.src.name, pos.line)
}

// scalarText is the text of a leaf and whether it is text that may need quotes.
func scalarText(v reflect.Value) (string, bool) {
	switch x := v.Interface().(type) {
	case time.Duration:
		return FormatDuration(x), false
	case Exec:
		return string(x.Path), true
	case SecretRef:
		return observability.Redacted, true
	case Pattern:
		return x.text, true
	case Mode:
		return x.String(), true // in quotes, so that no reader takes it for a decimal number
	case Size:
		return x.String(), false
	case PortRange:
		return x.String(), false
	case IDRange:
		return x.String(), false
	case Percent:
		return x.String(), false
	case netip.Prefix:
		return x.String(), true
	case netip.Addr:
		return x.String(), true
	case fmt.Stringer:
		return x.String(), true
	case bool:
		return strconv.FormatBool(x), false
	case int:
		return strconv.Itoa(x), false
	}
	return v.String(), true
}

// find walks to a key path; list items are name[0].
func (s *shown) find(path string) *shown {
	if path == "" {
		return s
	}
	for _, child := range s.children {
		rest, ok := strings.CutPrefix(path, child.key)
		if !ok || child.key == "" {
			continue
		}
		for strings.HasPrefix(rest, "[") && child.isList {
			number, after, _ := strings.Cut(rest[1:], "]")
			i, err := strconv.Atoi(number)
			if err != nil || i < 0 || i >= len(child.children) {
				return nil
			}
			child, rest = child.children[i], after
		}
		if rest == "" {
			return child
		}
		// Names may contain dots, so more than one child can be meant; the first that leads on wins.
		if rest, ok := strings.CutPrefix(rest, "."); ok {
			if found := child.find(rest); found != nil {
				return found
			}
		}
	}
	return nil
}

// plainForm is text that YAML reads as the same text without quotes.
var plainForm = regexp.MustCompile(`^[A-Za-z/_][A-Za-z0-9/_.@+-]*$`)

func (s *shown) text() string {
	if !s.quoted || plainForm.MatchString(s.scalar) && !isYAMLWord(s.scalar) {
		return s.scalar
	}
	b, err := json.Marshal(s.scalar) // a JSON string is a YAML double-quoted one
	if err != nil {
		return `""`
	}
	return string(b)
}

func isYAMLWord(text string) bool {
	switch strings.ToLower(text) {
	case "true", "false", "null", "yes", "no", "on", "off", "y", "n", ".nan", ".inf":
		return true
	}
	return false
}

func (s *shown) yaml(b *strings.Builder, indent string, origin bool) {
	if s.leaf {
		b.WriteString(indent + s.text() + s.comment(origin) + "\n")
		return
	}
	for _, c := range s.children {
		switch {
		case s.isList && c.leaf:
			b.WriteString(indent + "- " + c.text() + "\n")
		case s.isList:
			var item strings.Builder
			c.yaml(&item, indent+"  ", origin)
			b.WriteString(indent + "- " + strings.TrimPrefix(item.String(), indent+"  "))
		case c.leaf:
			b.WriteString(indent + yamlKey(c.key) + ": " + c.text() + c.comment(origin) + "\n")
		case len(c.children) == 0 && c.isList:
			b.WriteString(indent + yamlKey(c.key) + ": []" + c.comment(origin) + "\n")
		case len(c.children) == 0:
			b.WriteString(indent + yamlKey(c.key) + ": {}" + c.comment(origin) + "\n")
		case c.isList:
			b.WriteString(indent + yamlKey(c.key) + ":" + c.comment(origin) + "\n")
			c.yaml(b, indent+"  ", origin)
		default:
			b.WriteString(indent + yamlKey(c.key) + ":\n")
			c.yaml(b, indent+"  ", origin)
		}
	}
}

func yamlKey(key string) string { return (&shown{scalar: key, quoted: true}).text() }

func (s *shown) comment(origin bool) string {
	if !origin || s.origin == "" {
		return ""
	}
	return " # " + s.origin
}

func (s *shown) json(b *strings.Builder, indent string) {
	switch {
	case s.leaf && !s.quoted && isJSONLiteral(s.scalar):
		b.WriteString(s.scalar)
	case s.leaf:
		text, _ := json.Marshal(s.scalar)
		b.Write(text)
	default:
		open, end := "{", "}"
		if s.isList {
			open, end = "[", "]"
		}
		b.WriteString(open)
		for i, c := range s.children {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString("\n" + indent + "  ")
			if !s.isList {
				key, _ := json.Marshal(c.key)
				b.Write(key)
				b.WriteString(": ")
			}
			c.json(b, indent+"  ")
		}
		if len(s.children) > 0 {
			b.WriteString("\n" + indent)
		}
		b.WriteString(end)
	}
}

func isJSONLiteral(text string) bool {
	if text == "true" || text == "false" {
		return true
	}
	_, err := strconv.ParseInt(text, 10, 64)
	return err == nil && (text == "0" || text[0] != '0')
}

// suggestKey finds a key path that a mistyped one probably means.
func (c *Config) suggestKey(path string) string {
	var all []string
	walkKeys(configType, "", func(p string, _ *keyInfo) { all = append(all, p) })
	return suggest(path, all)
}
