package jobtemplate

import (
	"encoding/json"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"ucloud-im/internal/shell"
)

// The values of templates: nil, undefined, bool, int64, float64, literal, string, Code, *list, *dict, callable. Nothing else
// comes to exist while a template is evaluated.
type (
	// undefined is the value of a name that nobody has defined. It behaves like nil, and its name is remembered for errors.
	undefined struct{}
	// literal is a number as it was written, which is printed so. It becomes a float64 in arithmetic.
	literal struct {
		text string
		f    float64
	}
	list struct{ items []any }
	// dict keeps its order. Keys are strings or int64.
	dict struct {
		keys   []any
		values map[any]any
		open   bool // a namespace, whose attributes can be set
	}
	// callable is a function or macro.
	callable func(m *machine, line int, args []any, kwargs map[string]any) any
)

func newDict() *dict { return &dict{values: map[any]any{}} }

func (d *dict) set(key, value any) {
	if _, there := d.values[key]; !there {
		d.keys = append(d.keys, key)
	}
	d.values[key] = value
}

// maxNesting bounds variables and results of functions.
const maxNesting = 20

// convert takes a Go value into the template.
func (m *machine) convert(v any, depth int) any {
	if depth > maxNesting {
		m.fail(0, "has a variable that is nested too deeply")
	}
	m.spend(0, 1)
	switch v := v.(type) {
	case nil, bool, int64, float64, Code, undefined:
		return v
	case string:
		m.grow(0, len(v))
		return v
	case int:
		return int64(v)
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, err := v.Float64()
		if err != nil {
			m.fail(0, "has a variable with the number %q", v.String())
		}
		return literal{v.String(), f}
	case []string:
		l := &list{}
		for _, s := range v {
			l.items = append(l.items, m.convert(s, depth+1))
		}
		return l
	case []any:
		l := &list{}
		for _, e := range v {
			l.items = append(l.items, m.convert(e, depth+1))
		}
		return l
	case map[string]any:
		d := newDict()
		for _, k := range slices.Sorted(maps.Keys(v)) {
			d.set(k, m.convert(v[k], depth+1))
		}
		return d
	}
	m.fail(0, "has a variable of a kind that templates do not know")
	return nil
}

// export gives a value to a Go function.
func (m *machine) export(line int, v any, depth int) any {
	m.spend(line, 1)
	if depth > maxNesting {
		m.fail(line, "hands over a value that is nested too deeply")
	}
	switch v := v.(type) {
	case literal:
		return json.Number(v.text)
	case undefined, callable:
		return nil
	case *list:
		m.grow(line, 16*len(v.items))
		l := make([]any, len(v.items))
		for i, e := range v.items {
			l[i] = m.export(line, e, depth+1)
		}
		return l
	case *dict:
		m.grow(line, 64*len(v.keys))
		d := map[string]any{}
		for _, k := range v.keys {
			d[text(k)] = m.export(line, v.values[k], depth+1)
		}
		return d
	}
	return v
}

func isNone(v any) bool {
	switch v.(type) {
	case nil, undefined:
		return true
	}
	return false
}

// stringOf gives the text of data and code.
func stringOf(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case Code:
		return string(v), true
	}
	return "", false
}

// floatOf gives the number of a number. A bool is none.
func floatOf(v any) (float64, bool) {
	switch v := v.(type) {
	case int64:
		return float64(v), true
	case float64:
		return v, true
	case literal:
		return v.f, true
	}
	return 0, false
}

func truth(v any) bool {
	switch v := v.(type) {
	case bool:
		return v
	case int64:
		return v != 0
	case float64:
		return v != 0
	case literal:
		return v.f != 0
	case string:
		return v != ""
	case Code:
		return v != ""
	case *list:
		return len(v.items) > 0
	case *dict:
		return len(v.keys) > 0
	case callable:
		return true
	}
	return false
}

// text is a scalar as text, without quoting. Numbers never have an exponent.
func text(v any) string {
	switch v := v.(type) {
	case bool:
		if v {
			return "True"
		}
		return "False"
	case int64:
		return strconv.FormatInt(v, 10)
	case float64:
		s := strconv.FormatFloat(v, 'f', -1, 64)
		if !strings.Contains(s, ".") {
			s += ".0"
		}
		return s
	case literal:
		return v.text
	case string:
		return v
	case Code:
		return string(v)
	}
	return ""
}

// scalar is the text of a value that has one; lists and maps have none but their printed form, which is for programs that know it.
func (m *machine) scalar(line int, v any) string {
	switch v.(type) {
	case *list, *dict, callable:
		m.fail(line, "uses a %s where text is expected", kindOf(v))
	}
	s := text(v)
	m.grow(line, len(s))
	return s
}

// kindOf names a kind of values for users.
func kindOf(v any) string {
	switch v := v.(type) {
	case nil:
		return "None"
	case undefined:
		return "undefined value"
	case bool:
		return "boolean"
	case int64, float64, literal:
		return "number"
	case string, Code:
		return "text"
	case *list:
		return "list"
	case *dict:
		if v.open {
			return "namespace"
		}
		return "map"
	}
	return "function"
}

// finite checks the result of arithmetic.
func (m *machine) finite(line int, f float64) float64 {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		m.fail(line, "computes a number that is too large or is none")
	}
	return f
}

// quoted is a value as bash text. It is where data turns into code.
func (m *machine) quoted(line int, v any) string {
	switch v := v.(type) {
	case Code:
		return string(v)
	case string:
		if strings.IndexByte(v, 0) >= 0 {
			m.fail(line, "prints text with a NUL byte")
		}
		m.grow(line, len(v))
		return shell.Quote(v)
	case *list:
		words := make([]string, len(v.items))
		for i, item := range v.items {
			m.spend(line, 1)
			switch item.(type) {
			case *list, *dict, callable:
				m.fail(line, "prints a list that contains a %s", kindOf(item))
			}
			words[i] = m.quoted(line, item)
		}
		s := strings.Join(words, " ")
		m.grow(line, len(s))
		return s
	case *dict, callable:
		m.fail(line, "prints a %s, which has no form in a script", kindOf(v))
	}
	return text(v)
}

// unquoted is a value as text where quoting is off.
func (m *machine) unquoted(line int, v any) string {
	if l, ok := v.(*list); ok {
		words := make([]string, len(l.items))
		for i, item := range l.items {
			words[i] = m.scalar(line, item)
		}
		s := strings.Join(words, " ")
		m.grow(line, len(s))
		return s
	}
	return m.scalar(line, v)
}

// join concatenates texts. If any of them is code, the others are quoted and the result is code.
func (m *machine) join(line int, parts ...any) any {
	anyCode := false
	for _, p := range parts {
		if _, ok := p.(Code); ok {
			anyCode = true
		}
	}
	var b strings.Builder
	for _, p := range parts {
		var s string
		switch {
		case anyCode && !m.options.Raw && !isNone(p):
			s = m.quoted(line, p)
		default:
			s = m.scalar(line, p)
		}
		m.grow(line, len(s))
		b.WriteString(s)
	}
	if anyCode {
		return Code(b.String())
	}
	return b.String()
}

// equal compares without conversion of kinds, but numbers of different kinds may be equal, and None equals undefined.
func (m *machine) equal(line int, a, b any, depth int) bool {
	m.spend(line, 1)
	if depth > maxNesting {
		m.fail(line, "compares values that are nested too deeply")
	}
	if isNone(a) || isNone(b) {
		return isNone(a) && isNone(b)
	}
	if x, ok := a.(int64); ok {
		if y, ok := b.(int64); ok {
			return x == y
		}
	}
	if x, ok := a.(literal); ok {
		if y, ok := b.(literal); ok {
			return x.text == y.text || x.f == y.f && strings.ContainsAny(x.text+y.text, ".eE")
		}
	}
	if x, ok := floatOf(a); ok {
		y, ok := floatOf(b)
		return ok && x == y
	}
	if x, ok := stringOf(a); ok {
		y, ok := stringOf(b)
		m.spend(line, len(x)/64)
		return ok && x == y
	}
	switch x := a.(type) {
	case bool:
		y, ok := b.(bool)
		return ok && x == y
	case *list:
		y, ok := b.(*list)
		if !ok || len(x.items) != len(y.items) {
			return false
		}
		for i := range x.items {
			if !m.equal(line, x.items[i], y.items[i], depth+1) {
				return false
			}
		}
		return true
	case *dict:
		y, ok := b.(*dict)
		if !ok || len(x.keys) != len(y.keys) {
			return false
		}
		for _, k := range x.keys {
			other, there := y.values[k]
			if !there || !m.equal(line, x.values[k], other, depth+1) {
				return false
			}
		}
		return true
	}
	return false
}

// less orders numbers and texts.
func (m *machine) compare(line int, a, b any) int {
	if x, ok := a.(int64); ok {
		if y, ok := b.(int64); ok {
			return cmpOf(x, y)
		}
	}
	if x, ok := floatOf(a); ok {
		if y, ok := floatOf(b); ok {
			return cmpOf(x, y)
		}
	}
	if x, ok := stringOf(a); ok {
		if y, ok := stringOf(b); ok {
			m.spend(line, min(len(x), len(y))/64)
			return strings.Compare(x, y)
		}
	}
	if x, ok := a.(bool); ok {
		if y, ok := b.(bool); ok {
			return cmpOf(map[bool]int{true: 1}[x], map[bool]int{true: 1}[y])
		}
	}
	m.fail(line, "compares a %s with a %s", kindOf(a), kindOf(b))
	return 0
}

func cmpOf[T int | int64 | float64](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// elements are what a loop goes through.
func (m *machine) elements(line int, v any) []any {
	switch v := v.(type) {
	case nil, undefined:
		return nil
	case *list:
		m.spend(line, len(v.items))
		return v.items
	case *dict:
		m.spend(line, len(v.keys))
		return v.keys
	case string, Code:
		s, _ := stringOf(v)
		m.grow(line, 16*len(s))
		m.spend(line, len(s))
		var l []any
		for _, r := range s {
			l = append(l, string(r))
		}
		return l
	}
	m.fail(line, "goes through a %s as if it were a list", kindOf(v))
	return nil
}

// function makes a callable of a function of the caller.
func function(name string, f Function) callable {
	return func(m *machine, line int, args []any, kwargs map[string]any) any {
		if len(kwargs) > 0 {
			m.fail(line, "gives keyword arguments to %s(), which has none", name)
		}
		list := make([]any, len(args))
		for i, a := range args {
			list[i] = m.export(line, a, 0)
		}
		result, err := f(m.caller, list)
		if err != nil {
			panic(stop{line: line, cause: err})
		}
		return m.convert(result, 0)
	}
}
