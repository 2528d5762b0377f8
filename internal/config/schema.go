package config

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"time"
)

// object is an ordered JSON object, so that the schema lists keys in the order of the reference.
type object []member

type member struct {
	key   string
	value any
}

// MarshalJSON implements [json.Marshaler].
func (o object) MarshalJSON() ([]byte, error) {
	var b strings.Builder
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		key, err := json.Marshal(m.key)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(m.value)
		if err != nil {
			return nil, err
		}
		b.Write(key)
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	return []byte(b.String()), nil
}

// Schema is the JSON Schema (2020-12) of config.yml, with those of server.yml and secrets.yml as definitions. It is made
// from the tags that the parser uses (CFG-6). Every description ends with the default of an optional key.
func Schema() []byte {
	root := object{
		{"$schema", "https://json-schema.org/draft/2020-12/schema"},
		{"title", "UCloud Integration Module: config.yml"},
	}
	root = append(root, structSchema(configType)...)
	root = append(root, member{"$defs", object{
		{"server.yml", structSchema(reflect.TypeFor[ServerFile]())},
		{"secrets.yml", structSchema(reflect.TypeFor[SecretsFile]())},
	}})
	out, err := json.MarshalIndent(root, "", "  ")
	if err != nil {
		panic("config: schema cannot be written: " + err.Error()) // only maps, lists and text are in it
	}
	return append(out, '\n')
}

func structSchema(t reflect.Type) object {
	properties, required := object{}, []string{}
	for _, k := range keysOf(t) {
		properties = append(properties, member{k.key, k.schema()})
		if k.need == "yes" {
			required = append(required, k.key)
		}
	}
	out := object{{"type", "object"}, {"properties", properties}, {"additionalProperties", false}}
	if len(required) > 0 {
		out = append(out, member{"required", required})
	}
	return out
}

func (k *keyInfo) schema() object {
	out := object{{"description", k.description()}}
	out = append(out, typeSchema(k.typ, k)...)
	if k.hasDefault {
		out = append(out, member{"default", defaultValue(literal(k.def))})
	}
	return out
}

// description is the documentation of a key with what is needed and what happens without it.
func (k *keyInfo) description() string {
	text := k.doc
	switch {
	case k.need == "yes":
		text += " Required."
	case strings.HasPrefix(k.need, "exactly"):
		text += " E" + k.need[1:] + "."
	case k.need != "":
		text += " Required " + k.need + "."
	case k.defaultDoc != "":
		text += " Default: " + k.defaultDoc + "."
	}
	return text
}

func defaultValue(n *node) any {
	switch n.kind {
	case kindBool:
		return n.text == "true"
	case kindInt:
		return json.Number(strings.TrimLeft(n.text, "0") + map[bool]string{true: "0"}[strings.Trim(n.text, "0") == ""])
	case kindList:
		list := []any{}
		for _, i := range n.items {
			list = append(list, defaultValue(i))
		}
		return list
	case kindMap:
		o := object{}
		for _, f := range n.fields {
			o = append(o, member{f.key, defaultValue(f.value)})
		}
		return o
	}
	return n.text
}

func typeSchema(t reflect.Type, k *keyInfo) object {
	text := func(pattern string) object { return object{{"type", "string"}, {"pattern", pattern}} }
	oneOf := func(options ...any) object { return object{{"oneOf", options}} }
	if m, ok := reflect.Zero(t).Interface().(anyMap); ok {
		out := object{{"type", "object"}, {"additionalProperties", typeSchema(m.elem(), k)}}
		if k != nil && k.nonEmpty {
			out = append(out, member{"minProperties", 1})
		}
		return out
	}
	switch reflect.Zero(t).Interface().(type) {
	case time.Duration:
		return oneOf(text(durationForm.String()), object{{"const", 0}}, object{{"const", "0"}})
	case Size:
		return oneOf(text(sizeForm.String()), object{{"const", 0}}, object{{"const", "0"}})
	case Path:
		if k != nil && k.relative {
			return object{{"type", "string"}, {"minLength", 1}}
		}
		return text(`^/`)
	case Name:
		return text(nameForm.String())
	case Mode:
		return object{{"type", []string{"string", "integer"}}, {"pattern", `^(0o)?[0-7]{1,5}$`}}
	case Percent:
		return text(`^[0-9]+%$`)
	case Money:
		return object{{"type", []string{"string", "number"}}, {"pattern", moneyForm.String()}}
	case PortRange, IDRange:
		return text(`^[0-9]+-[0-9]+$`)
	case Listen:
		return text(`^(unix:/.+|.+:[0-9]+)$`)
	case URL:
		return object{{"type", "string"}, {"format", "uri"}}
	case netip.Prefix, netip.Addr, Pattern:
		return object{{"type", "string"}}
	case Host:
		return oneOf(text(`^https?://[^/]+/?$`), structSchema(reflect.TypeFor[hostForm]()))
	case Endpoint:
		return oneOf(object{{"type", "string"}}, structSchema(reflect.TypeFor[endpointForm]()))
	case Exec:
		return oneOf(text(`^/`), structSchema(t))
	case SecretRef:
		return oneOf(object{{"type", []string{"string", "number"}}}, structSchema(reflect.TypeFor[secretForm]()))
	case Fraction:
		return oneOf(text(`^[0-9]+/[0-9]+$`), structSchema(reflect.TypeFor[fractionForm]()))
	}
	switch t.Kind() {
	case reflect.Pointer:
		return typeSchema(t.Elem(), k)
	case reflect.Slice:
		out := object{{"type", "array"}, {"items", typeSchema(t.Elem(), k)}}
		if k != nil && k.nonEmpty {
			out = append(out, member{"minItems", 1})
		}
		return out
	case reflect.Struct:
		return structSchema(t)
	case reflect.Bool:
		return object{{"type", "boolean"}}
	case reflect.Int:
		out := object{{"type", "integer"}}
		if k != nil && k.min != "" {
			out = append(out, member{"minimum", json.Number(k.min)})
		}
		if k != nil && k.max != "" {
			out = append(out, member{"maximum", json.Number(k.max)})
		}
		return out
	}
	out := object{{"type", "string"}}
	switch {
	case k != nil && len(k.enum) > 0:
		out = append(out, member{"enum", k.enum})
	case k != nil && k.numeric:
		out[0].value = []string{"string", "number"}
	}
	return out
}
