package jobtemplate

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/nikolalohinski/gonja/v2/tokens"
)

func plus() *tokens.Token { return &tokens.Token{Type: tokens.Addition, Val: "+"} }

// builtins are the functions of the language.
func builtins() map[string]any {
	return map[string]any{
		"range":     callable(rangeFunction),
		"dict":      callable(dictFunction),
		"namespace": callable(namespaceFunction),
		"cycler":    callable(cyclerFunction),
		"joiner":    callable(joinerFunction),
		"lipsum":    callable(lipsumFunction),
	}
}

func rangeFunction(m *machine, line int, args []any, _ map[string]any) any {
	bounds := []int64{0, 0, 1}
	for i, a := range args {
		n, ok := a.(int64)
		if !ok || i > 2 {
			m.fail(line, "calls range() with wrong arguments")
		}
		bounds[i] = n
	}
	switch len(args) {
	case 0:
		m.fail(line, "calls range() without an argument")
	case 1:
		bounds[0], bounds[1] = 0, bounds[0]
	}
	start, end, step := bounds[0], bounds[1], bounds[2]
	const largest = 1 << 40
	if step == 0 || max(start, end, step) > largest || min(start, end, step) < -largest {
		m.fail(line, "calls range() with wrong arguments")
	}
	count := int64(0)
	if step > 0 && end > start {
		count = (end - start + step - 1) / step
	} else if step < 0 && end < start {
		count = (start - end - step - 1) / -step
	}
	m.grow(line, mulBound(24, int(count)))
	m.spend(line, int(count))
	l := &list{items: make([]any, 0, count)}
	for i := range count {
		l.items = append(l.items, start+i*step)
	}
	return l
}

func dictFunction(m *machine, line int, args []any, kwargs map[string]any) any {
	d := newDict()
	for _, a := range args {
		other, ok := a.(*dict)
		if !ok {
			m.fail(line, "calls dict() with a %s", kindOf(a))
		}
		m.grow(line, 64*len(other.keys))
		for _, k := range other.keys {
			d.set(k, other.values[k])
		}
	}
	names := make([]string, 0, len(kwargs))
	for name := range kwargs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		d.set(name, kwargs[name])
	}
	return d
}

func namespaceFunction(m *machine, line int, args []any, kwargs map[string]any) any {
	d := dictFunction(m, line, args, kwargs).(*dict) //nolint:forcetypeassert // dictFunction gives nothing else
	d.open = true
	return d
}

func cyclerFunction(m *machine, line int, args []any, _ map[string]any) any {
	if len(args) == 0 {
		m.fail(line, "calls cycler() without values")
	}
	at := 0
	d := newDict()
	d.set("current", args[0])
	d.set("next", callable(func(*machine, int, []any, map[string]any) any {
		v := args[at]
		at = (at + 1) % len(args)
		d.set("current", args[at])
		return v
	}))
	d.set("reset", callable(func(*machine, int, []any, map[string]any) any {
		at = 0
		d.set("current", args[0])
		return Code("")
	}))
	return d
}

func joinerFunction(m *machine, line int, args []any, kwargs map[string]any) any {
	c := &call{m: m, line: line, name: "joiner", args: args, kwargs: kwargs}
	separator := c.arg(0, "sep", ", ")
	first := true
	return callable(func(*machine, int, []any, map[string]any) any {
		if first {
			first = false
			return Code("")
		}
		return separator
	})
}

// lipsumFunction gives filler text, the same every time.
func lipsumFunction(m *machine, line int, args []any, kwargs map[string]any) any {
	c := &call{m: m, line: line, name: "lipsum", args: args, kwargs: kwargs}
	const paragraph = "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut labore et dolore magna aliqua."
	n := max(0, c.intArg(0, "n", 5))
	m.grow(line, mulBound(len(paragraph)+2, n))
	return strings.TrimSuffix(strings.Repeat(paragraph+"\n\n", n), "\n\n")
}

// method is one of those that Python's texts, maps and lists have.
func (m *machine) method(line int, v any, name string, args []any, kwargs map[string]any) any {
	c := &call{m: m, line: line, name: name, v: v, args: args, kwargs: kwargs}
	if _, ok := stringOf(v); ok {
		if result, ok := c.stringMethod(); ok {
			return result
		}
	}
	if d, ok := v.(*dict); ok {
		switch name {
		case "items":
			return c.listOf(c.pairs())
		case "keys":
			return c.listOf(slices.Clone(d.keys))
		case "values":
			var l []any
			for _, k := range d.keys {
				l = append(l, d.values[k])
			}
			return c.listOf(l)
		case "get":
			if e, ok := d.values[m.key(line, c.arg(0, "key", ""))]; ok {
				return e
			}
			return c.arg(1, "default", nil)
		case "update":
			other, ok := c.arg(0, "other", nil).(*dict)
			if !ok {
				break
			}
			m.grow(line, 64*len(other.keys))
			for _, k := range slices.Clone(other.keys) {
				d.set(k, other.values[k])
			}
			return nil
		}
	}
	if l, ok := v.(*list); ok {
		switch name {
		case "append":
			m.grow(line, 32)
			l.items = append(l.items, c.arg(0, "item", nil))
			return nil
		case "count":
			n := int64(0)
			for _, e := range l.items {
				if m.equal(line, e, c.arg(0, "item", nil), 0) {
					n++
				}
			}
			return n
		case "index":
			for i, e := range l.items {
				if m.equal(line, e, c.arg(0, "item", nil), 0) {
					return int64(i)
				}
			}
			m.fail(line, "looks for something in a list that is not there")
		}
	}
	if isNone(v) {
		m.fail(line, "calls %s() of something undefined", name)
	}
	m.fail(line, "calls %s(), which a %s does not have", name, kindOf(v))
	return nil
}

// stringMethod is a method of text. The result is data.
func (c *call) stringMethod() (any, bool) {
	s := c.text()
	cut := func() string {
		if v := c.arg(0, "chars", nil); !isNone(v) {
			return c.cutset(v)
		}
		return " \t\n\r\v\f"
	}
	filterNames := []string{"lower", "upper", "title", "capitalize", "center", "replace", "format"}
	if slices.Contains(filterNames, c.name) && c.name != "format" {
		return c.m.apply(c.line, c.name, s, c.args, c.kwargs), true
	}
	switch c.name {
	case "strip":
		return strings.Trim(s, cut()), true
	case "lstrip":
		return strings.TrimLeft(s, cut()), true
	case "rstrip":
		return strings.TrimRight(s, cut()), true
	case "startswith":
		return strings.HasPrefix(s, c.textArg(0, "prefix", "")), true
	case "endswith":
		return strings.HasSuffix(s, c.textArg(0, "suffix", "")), true
	case "removeprefix":
		return strings.TrimPrefix(s, c.textArg(0, "prefix", "")), true
	case "removesuffix":
		return strings.TrimSuffix(s, c.textArg(0, "suffix", "")), true
	case "find":
		return int64(strings.Index(s, c.textArg(0, "sub", ""))), true
	case "count":
		return int64(strings.Count(s, c.textArg(0, "sub", ""))), true
	case "isdigit":
		return s != "" && strings.IndexFunc(s, func(r rune) bool { return !unicode.IsDigit(r) }) < 0, true
	case "isalpha":
		return s != "" && strings.IndexFunc(s, func(r rune) bool { return !unicode.IsLetter(r) }) < 0, true
	case "zfill":
		width := c.intArg(0, "width", 0)
		c.m.grow(c.line, max(0, width))
		return strings.Repeat("0", max(0, width-len(s))) + s, true
	case "splitlines":
		return c.texts(strings.Split(strings.TrimSuffix(s, "\n"), "\n")), true
	case "split":
		limit := c.intArg(1, "maxsplit", -1)
		if separator := c.arg(0, "sep", nil); !isNone(separator) {
			by := c.m.scalar(c.line, separator)
			if by == "" {
				c.fail("splits a text at nothing")
			}
			if limit >= 0 {
				limit++
			}
			c.m.grow(c.line, 16*strings.Count(s, by))
			return c.texts(strings.SplitN(s, by, limit)), true
		}
		c.m.grow(c.line, 8*len(s))
		return c.texts(strings.Fields(s)), true
	case "join":
		c2 := *c
		c2.v, c2.args = c.arg(0, "iterable", nil), []any{c.v}
		c2.kwargs = nil
		return joinFilter(&c2), true
	}
	return nil, false
}

func (c *call) texts(list []string) any {
	items := make([]any, len(list))
	for i, s := range list {
		items[i] = s
	}
	return c.listOf(items)
}

// format is Python's % for texts and numbers.
func (m *machine) format(line int, pattern string, args []any) any {
	var b strings.Builder
	next := 0
	for i := 0; i < len(pattern); i++ {
		if pattern[i] != '%' {
			b.WriteByte(pattern[i])
			continue
		}
		spec := pattern[i+1:]
		n := 0
		for n < len(spec) && strings.IndexByte("-+ #0123456789.", spec[n]) >= 0 {
			n++
		}
		const longest = 10
		if n >= len(spec) || n > longest {
			m.fail(line, "formats with a pattern that is wrong")
		}
		verb := spec[n]
		i += n + 1
		if verb == '%' {
			b.WriteByte('%')
			continue
		}
		if next >= len(args) {
			m.fail(line, "formats with too few values")
		}
		m.grow(line, b.Len()/8)
		b.WriteString(m.formatOne(line, spec[:n], verb, args[next]))
		m.grow(line, 64)
		next++
	}
	m.grow(line, b.Len())
	return b.String()
}

func (m *machine) formatOne(line int, flags string, verb byte, v any) string {
	for _, width := range strings.FieldsFunc(flags, func(r rune) bool { return r < '0' || r > '9' }) {
		const widest = 1000
		if n, err := strconv.Atoi(width); err != nil || n > widest {
			m.fail(line, "formats with a width that is too large")
		}
	}
	switch verb {
	case 's', 'r':
		return fmt.Sprintf("%"+flags+"s", m.scalar(line, v))
	case 'd', 'i', 'x', 'X', 'o':
		if verb == 'i' {
			verb = 'd'
		}
		switch n := v.(type) {
		case int64:
			return fmt.Sprintf("%"+flags+string(verb), n)
		case float64, literal:
			f, _ := floatOf(n)
			if f > -1<<62 && f < 1<<62 {
				return fmt.Sprintf("%"+flags+string(verb), int64(f))
			}
		}
	case 'f', 'F', 'e', 'g':
		if f, ok := floatOf(v); ok {
			return fmt.Sprintf("%"+flags+strings.ToLower(string(verb)), f)
		}
	}
	m.fail(line, "formats a %s with %%%c", kindOf(v), verb)
	return ""
}
