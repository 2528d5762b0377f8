package jobtemplate

import (
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// listFilters are those of lists, maps and numbers.
func listFilters() map[string]filterFunc {
	length := func(c *call) any { return c.m.length(c.line, c.v) }
	def := func(c *call) any {
		_, missing := c.v.(undefined)
		other := c.arg(0, "default_value", "")
		if missing || c.v == nil || c.boolArg(1, "boolean", false) && !truth(c.v) {
			return other
		}
		return c.v
	}
	return map[string]filterFunc{
		"default": def, "d": def,
		"length": length, "count": length,
		"abs":   absFilter,
		"int":   intFilter,
		"float": floatFilter,
		"round": roundFilter,
		"sum":   sumFilter,
		"min":   func(c *call) any { return c.extreme(-1) },
		"max":   func(c *call) any { return c.extreme(1) },
		"first": func(c *call) any {
			if l := c.elements(); len(l) > 0 {
				return l[0]
			}
			return undefined{}
		},
		"last": func(c *call) any {
			if l := c.elements(); len(l) > 0 {
				return l[len(l)-1]
			}
			return undefined{}
		},
		"list": func(c *call) any { return c.listOf(slices.Clone(c.elements())) },
		"join": joinFilter,
		"reverse": func(c *call) any {
			l := slices.Clone(c.elements())
			slices.Reverse(l)
			if _, ok := stringOf(c.v); ok {
				var b strings.Builder
				for _, r := range l {
					b.WriteString(text(r))
				}
				return b.String()
			}
			return c.listOf(l)
		},
		"sort": func(c *call) any {
			reverse, sensitive := c.boolArg(0, "reverse", false), c.boolArg(1, "case_sensitive", false)
			attribute := c.arg(2, "attribute", nil)
			return c.listOf(c.sorted(c.elements(), reverse, sensitive, func(v any) any { return c.attribute(v, attribute) }))
		},
		"unique": func(c *call) any {
			sensitive, attribute := c.boolArg(0, "case_sensitive", false), c.arg(1, "attribute", nil)
			var out, seen []any
			for _, e := range c.elements() {
				k := c.attribute(e, attribute)
				if s, ok := stringOf(k); ok && !sensitive {
					c.m.grow(c.line, len(s))
					k = strings.ToLower(s)
				}
				if !slices.ContainsFunc(seen, func(o any) bool { return c.m.equal(c.line, o, k, 0) }) {
					out, seen = append(out, e), append(seen, k)
				}
			}
			return c.listOf(out)
		},
		"items":      func(c *call) any { return c.listOf(c.pairs()) },
		"dictsort":   dictsortFilter,
		"batch":      batchFilter,
		"slice":      sliceFilter,
		"groupby":    groupbyFilter,
		"map":        mapFilter,
		"select":     func(c *call) any { return c.choose(false, true) },
		"reject":     func(c *call) any { return c.choose(false, false) },
		"selectattr": func(c *call) any { return c.choose(true, true) },
		"rejectattr": func(c *call) any { return c.choose(true, false) },
		"attr":       func(c *call) any { return c.m.item(c.line, c.v, c.textArg(0, "name", ""), "") },
	}
}

func (c *call) elements() []any { return c.m.elements(c.line, c.v) }

func (c *call) listOf(items []any) any {
	c.m.grow(c.line, 16*len(items))
	return &list{items: items}
}

// pairs are key and value of each entry of a map.
func (c *call) pairs() []any {
	if isNone(c.v) {
		return nil
	}
	d, ok := c.v.(*dict)
	if !ok {
		c.fail("uses %s with a %s, not a map", c.name, kindOf(c.v))
	}
	c.m.grow(c.line, 64*len(d.keys))
	out := make([]any, len(d.keys))
	for i, k := range d.keys {
		out[i] = &list{items: []any{k, d.values[k]}}
	}
	return out
}

// attribute is v itself, or its attribute of that name, where dots lead further down.
func (c *call) attribute(v, name any) any {
	if isNone(name) {
		return v
	}
	if i, ok := name.(int64); ok {
		return c.m.item(c.line, v, i, "")
	}
	for _, part := range strings.Split(c.m.scalar(c.line, name), ".") {
		var key any = part
		if n, err := strconv.ParseInt(part, 10, 32); err == nil {
			key = n
		}
		v = c.m.item(c.line, v, key, "")
	}
	return v
}

func (m *machine) length(line int, v any) any {
	switch v := v.(type) {
	case *list:
		return int64(len(v.items))
	case *dict:
		return int64(len(v.keys))
	case string, Code:
		s, _ := stringOf(v)
		m.spend(line, len(s)/64)
		return int64(utf8.RuneCountInString(s))
	case nil, undefined:
		return int64(0)
	}
	m.fail(line, "asks for the length of a %s", kindOf(v))
	return nil
}

func absFilter(c *call) any {
	switch v := c.v.(type) {
	case int64:
		if v == math.MinInt64 {
			c.fail("computes a number that is too large")
		}
		return max(v, -v)
	case float64:
		return math.Abs(v)
	case literal:
		return literal{strings.TrimPrefix(v.text, "-"), math.Abs(v.f)}
	}
	c.fail("uses abs with a %s", kindOf(c.v))
	return nil
}

// intFilter makes an integer; what is no number becomes the default.
func intFilter(c *call) any {
	otherwise, base := c.arg(0, "default", int64(0)), c.intArg(1, "base", 10)
	switch v := c.v.(type) {
	case int64:
		return v
	case bool:
		return int64(map[bool]int{true: 1}[v])
	case literal:
		if !strings.ContainsAny(v.text, ".eE") {
			return v
		}
	case string, Code:
		s := strings.TrimSpace(c.text())
		if base == 0 || base >= 2 && base <= 36 {
			if n, err := strconv.ParseInt(s, base, 64); err == nil {
				return n
			}
			if strings.HasPrefix(s, "0") && len(s) > 2 && base != 10 {
				if n, err := strconv.ParseInt(s[2:], base, 64); err == nil {
					return n
				}
			}
		}
		if f, err := strconv.ParseFloat(s, 64); err == nil && base == 10 {
			return c.truncated(f, otherwise)
		}
		return otherwise
	}
	if f, ok := floatOf(c.v); ok {
		return c.truncated(f, otherwise)
	}
	return otherwise
}

func (c *call) truncated(f float64, otherwise any) any {
	if math.IsNaN(f) || math.Abs(f) >= 1<<63 {
		return otherwise
	}
	return int64(f)
}

func floatFilter(c *call) any {
	otherwise := c.arg(0, "default", float64(0))
	if f, ok := floatOf(c.v); ok {
		return f
	}
	if _, ok := stringOf(c.v); ok {
		if f, err := strconv.ParseFloat(strings.TrimSpace(c.text()), 64); err == nil && !math.IsInf(f, 0) && !math.IsNaN(f) {
			return f
		}
	}
	return otherwise
}

func roundFilter(c *call) any {
	precision, method := c.intArg(0, "precision", 0), c.textArg(1, "method", "common")
	f, ok := floatOf(c.v)
	if !ok {
		c.fail("uses round with a %s", kindOf(c.v))
	}
	if precision > 300 || precision < -300 {
		c.fail("uses round with a precision of %d", precision)
	}
	scale := math.Pow(10, float64(precision))
	round, ok := map[string]func(float64) float64{"common": math.RoundToEven, "ceil": math.Ceil, "floor": math.Floor}[method]
	if !ok {
		c.fail("uses round with the unknown method %q", method)
	}
	return c.m.finite(c.line, round(f*scale)/scale)
}

func sumFilter(c *call) any {
	attribute, total := c.arg(0, "attribute", nil), c.arg(1, "start", int64(0))
	for _, e := range c.elements() {
		total = c.m.arithmetic(c.line, plus(), total, c.attribute(e, attribute))
	}
	return total
}

func (c *call) extreme(sign int) any {
	sensitive, attribute := c.boolArg(0, "case_sensitive", false), c.arg(1, "attribute", nil)
	l := c.sorted(c.elements(), sign > 0, sensitive, func(v any) any { return c.attribute(v, attribute) })
	if len(l) == 0 {
		return undefined{}
	}
	return l[0]
}

func joinFilter(c *call) any {
	separator, attribute := c.arg(0, "d", ""), c.arg(1, "attribute", nil)
	var parts []any
	for i, e := range c.elements() {
		if i > 0 {
			parts = append(parts, separator)
		}
		parts = append(parts, c.attribute(e, attribute))
	}
	return c.m.join(c.line, parts...)
}

func dictsortFilter(c *call) any {
	sensitive, by, reverse := c.boolArg(0, "case_sensitive", false), c.textArg(1, "by", "key"), c.boolArg(2, "reverse", false)
	index := int64(map[string]int{"key": 0, "value": 1}[by])
	return c.listOf(c.sorted(c.pairs(), reverse, sensitive, func(v any) any { return c.attribute(v, index) }))
}

func batchFilter(c *call) any {
	size, fill := c.intArg(0, "linecount", 1), c.arg(1, "fill_with", nil)
	if size < 1 {
		c.fail("uses batch with a size of %d", size)
	}
	items := c.elements()
	var out []any
	for group := range slices.Chunk(items, size) {
		group = slices.Clone(group)
		c.m.grow(c.line, 16*size)
		for len(group) < size && !isNone(fill) {
			group = append(group, fill)
		}
		out = append(out, &list{items: group})
	}
	return c.listOf(out)
}

func sliceFilter(c *call) any {
	n, fill := c.intArg(0, "slices", 1), c.arg(1, "fill_with", nil)
	if n < 1 {
		c.fail("uses slice with %d parts", n)
	}
	items := c.elements()
	c.m.grow(c.line, 48*n)
	c.m.spend(c.line, n)
	var out []any
	for i, at := 0, 0; i < n; i++ {
		size := len(items) / n
		if i < len(items)%n {
			size++
		}
		group := slices.Clone(items[at : at+size])
		at += size
		if !isNone(fill) && len(items)%n > 0 && i >= len(items)%n {
			group = append(group, fill)
		}
		out = append(out, &list{items: group})
	}
	return c.listOf(out)
}

func groupbyFilter(c *call) any {
	attribute := c.arg(0, "attribute", nil)
	by := func(v any) any { return c.attribute(v, attribute) }
	var out []any
	var group *list
	var current any
	for _, e := range c.sorted(c.elements(), false, true, by) {
		k := by(e)
		if group == nil || !c.m.equal(c.line, k, current, 0) {
			group, current = &list{}, k
			out = append(out, &list{items: []any{k, group}})
		}
		group.items = append(group.items, e)
	}
	return c.listOf(out)
}

// mapFilter applies a filter to, or takes an attribute of, each element.
func mapFilter(c *call) any {
	var out []any
	if attribute, ok := c.kwargs["attribute"]; ok {
		c.used = len(c.kwargs)
		otherwise := c.kwargs["default"]
		for _, e := range c.elements() {
			v := c.attribute(e, attribute)
			if isNone(v) && otherwise != nil {
				v = otherwise
			}
			out = append(out, v)
		}
		return c.listOf(out)
	}
	if len(c.args) == 0 {
		c.fail("uses map without a filter")
	}
	name := c.m.scalar(c.line, c.args[0])
	kwargs := c.kwargs
	c.used = len(kwargs)
	for _, e := range c.elements() {
		c.m.deeper(c.line, func() { out = append(out, c.m.apply(c.line, name, e, c.args[1:], kwargs)) })
	}
	return c.listOf(out)
}

// choose keeps the elements, or those whose attribute, for which a test gives want.
func (c *call) choose(byAttribute, want bool) any {
	args := c.args
	var attribute any
	if byAttribute {
		if len(args) == 0 {
			c.fail("uses %s without an attribute", c.name)
		}
		attribute, args = args[0], args[1:]
	}
	var out []any
	for _, e := range c.elements() {
		v := c.attribute(e, attribute)
		result := truth(v)
		if len(args) > 0 {
			result = c.m.testByName(c.line, c.m.scalar(c.line, args[0]), v, args[1:])
		}
		if result == want {
			out = append(out, e)
		}
	}
	return c.listOf(out)
}

// toJSON writes a value as JSON, which is data.
func (m *machine) toJSON(line int, v any) string {
	m.size(line, v, 0)
	b, err := json.Marshal(jsonValue(v))
	if err != nil {
		m.fail(line, "makes JSON of something that has none")
	}
	m.grow(line, len(b))
	return string(b)
}

// size pays for a value before it is written out.
func (m *machine) size(line int, v any, depth int) {
	if depth > maxNesting {
		m.fail(line, "writes out a value that is nested too deeply")
	}
	m.spend(line, 1)
	switch v := v.(type) {
	case string:
		m.grow(line, 2*len(v))
	case Code:
		m.grow(line, 2*len(v))
	case *list:
		for _, e := range v.items {
			m.size(line, e, depth+1)
		}
	case *dict:
		for _, k := range v.keys {
			m.size(line, v.values[k], depth+1)
		}
	case callable:
		m.fail(line, "writes out a function")
	}
}

func jsonValue(v any) any {
	switch v := v.(type) {
	case literal:
		return json.Number(v.text)
	case Code:
		return string(v)
	case undefined:
		return nil
	case *list:
		l := make([]any, len(v.items))
		for i, e := range v.items {
			l[i] = jsonValue(e)
		}
		return l
	case *dict:
		d := map[string]any{}
		for _, k := range v.keys {
			d[text(k)] = jsonValue(v.values[k])
		}
		return d
	}
	return v
}
