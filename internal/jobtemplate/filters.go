package jobtemplate

import (
	"maps"
	"math"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/nikolalohinski/gonja/v2/nodes"

	"ucloud-im/internal/shell"
)

// call is a filter, test or method at work.
type call struct {
	m      *machine
	line   int
	name   string
	v      any // what it is applied to
	args   []any
	kwargs map[string]any
	used   int // names of kwargs that were asked for
}

// filterFunc is a filter. What a filter makes of Code is data again, unless its comment says otherwise.
type filterFunc func(c *call) any

// allFilters is made for each rendering, so that a process that renders nothing has nothing of it.
func allFilters() map[string]filterFunc {
	all := textFilters()
	maps.Copy(all, listFilters())
	maps.Copy(all, shellFilters())
	return all
}

// filter applies a filter of the tree.
func (m *machine) filter(line int, f *nodes.FilterCall, v any) any {
	if at := m.lineOf(f.Token); at > 0 {
		line = at
	}
	args, kwargs := m.arguments(line, f.Args, f.Kwargs)
	return m.apply(line, f.Name, v, args, kwargs)
}

// apply applies a filter by name.
func (m *machine) apply(line int, name string, v any, args []any, kwargs map[string]any) any {
	f, ok := m.filters[name]
	if !ok {
		m.fail(line, "uses the filter %q, which does not exist", name)
	}
	m.spend(line, 1)
	c := &call{m: m, line: line, name: name, v: v, args: args, kwargs: kwargs}
	result := f(c)
	if c.used < len(kwargs) {
		m.fail(line, "gives the filter %q an argument that it does not have", name)
	}
	return result
}

// arg is an argument by place or name.
func (c *call) arg(i int, name string, otherwise any) any {
	if v, ok := c.kwargs[name]; ok {
		c.used++
		return v
	}
	if i < len(c.args) {
		return c.args[i]
	}
	return otherwise
}

func (c *call) fail(format string, args ...any) { c.m.fail(c.line, format, args...) }

func (c *call) textArg(i int, name, otherwise string) string {
	return c.m.scalar(c.line, c.arg(i, name, otherwise))
}

func (c *call) boolArg(i int, name string, otherwise bool) bool {
	return truth(c.arg(i, name, otherwise))
}

// most is the largest number that is taken for a width or count.
const most = 1 << 20

func (c *call) intArg(i int, name string, otherwise int) int {
	f, ok := floatOf(c.arg(i, name, int64(otherwise)))
	if !ok || f != math.Trunc(f) || math.Abs(f) > most {
		c.fail("gives %q an argument that is not a small number", c.name)
	}
	return int(f)
}

// text is the text of what the filter is applied to.
func (c *call) text() string { return c.m.scalar(c.line, c.v) }

// made pays for a text that has been made. Filters whose result can be much longer than what goes in pay before.
func (c *call) made(s string) any {
	c.m.grow(c.line, len(s))
	return s
}

// cutset is the characters that are cut off a text. Looking for one takes as long as there are many of them, for each that is
// cut off, and nothing looks at the clock meanwhile.
func (c *call) cutset(v any) string {
	const most = 256
	s := c.m.scalar(c.line, v)
	if len(s) > most {
		c.fail("cuts off one of more than %d characters", most)
	}
	return s
}

// textFilters are those of texts.
func textFilters() map[string]filterFunc {
	return map[string]filterFunc{
		"lower":      func(c *call) any { return c.made(strings.ToLower(c.text())) },
		"upper":      func(c *call) any { return c.made(strings.ToUpper(c.text())) },
		"capitalize": func(c *call) any { return c.made(capitalize(c.text())) },
		"title":      func(c *call) any { return c.made(title(c.text())) },
		"string": func(c *call) any {
			if _, ok := stringOf(c.v); ok {
				return c.v
			}
			return c.text()
		},
		"trim": func(c *call) any {
			cut := c.arg(0, "chars", nil)
			chars := " \t\n\r\v\f"
			if !isNone(cut) {
				chars = c.cutset(cut)
			} else if code, ok := c.v.(Code); ok {
				return Code(strings.Trim(string(code), chars)) // white space around code is not part of it
			}
			return strings.Trim(c.text(), chars)
		},
		"replace":  replaceFilter,
		"center":   centerFilter,
		"indent":   indentFilter,
		"truncate": truncateFilter,
		"wordcount": func(c *call) any {
			return int64(len(strings.FieldsFunc(c.text(), func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) && r != '_' })))
		},
		"wordwrap":  wordwrapFilter,
		"striptags": func(c *call) any { return c.made(stripTags(c.text())) },
		"urlencode": func(c *call) any { return c.made(urlEncode(c.text())) },
		"format":    func(c *call) any { return c.m.format(c.line, c.text(), c.args) },
		"tojson":    func(c *call) any { return c.m.toJSON(c.line, c.v) },
	}
}

// shellFilters decide what is data and what is code.
func shellFilters() map[string]filterFunc {
	quote := func(c *call) any { return Code(c.m.quoted(c.line, c.v)) }
	return map[string]filterFunc{
		// safe makes code of data: the author of the template says that it is.
		"safe": func(c *call) any {
			if isNone(c.v) {
				return Code("")
			}
			return Code(c.m.unquoted(c.line, c.v))
		},
		"escape": quote,
		"e":      quote,
		"forceescape": func(c *call) any {
			if code, ok := c.v.(Code); ok {
				return Code(c.m.quoted(c.line, string(code)))
			}
			return quote(c)
		},
		"flag":                   flagFilter,
		"option":                 optionFilter,
		testFilter + "match":     func(c *call) any { return matchTest(c, true) },
		testFilter + "search":    func(c *call) any { return matchTest(c, false) },
		testFilter + "notmatch":  func(c *call) any { return !matchTest(c, true) },
		testFilter + "notsearch": func(c *call) any { return !matchTest(c, false) },
	}
}

// flagFilter gives the one text for what is true and the other for what is not.
func flagFilter(c *call) any {
	on, off := c.arg(0, "on", nil), c.arg(1, "off", nil)
	if isNone(on) {
		c.fail("uses the filter flag without a text")
	}
	v := off
	if truth(c.v) {
		v = on
	}
	if isNone(v) {
		return Code("")
	}
	if _, ok := stringOf(v); !ok {
		return c.m.scalar(c.line, v)
	}
	return v
}

// optionFilter gives an option with its value: as two words, or, where the name ends in = or addSpace is false, as one.
// A list gives the option once for each element.
func optionFilter(c *call) any {
	name := c.textArg(0, "name", "")
	spaced := c.boolArg(1, "addSpace", !strings.HasSuffix(name, "="))
	if name == "" {
		c.fail("uses the filter option without a name")
	}
	values := []any{c.v}
	if l, ok := c.v.(*list); ok {
		values = l.items
	}
	var words []string
	for _, v := range values {
		c.m.spend(c.line, 1)
		if isNone(v) {
			continue
		}
		if code, ok := v.(Code); ok {
			words = append(words, bareOrQuoted(name)+map[bool]string{true: " "}[spaced]+string(code))
			continue
		}
		s := c.m.scalar(c.line, v)
		if strings.IndexByte(s, 0) >= 0 {
			c.fail("prints text with a NUL byte")
		}
		if spaced {
			words = append(words, bareOrQuoted(name)+" "+shell.Quote(s))
		} else {
			words = append(words, shell.Quote(name+s))
		}
		c.m.grow(c.line, len(name)+2*len(s))
	}
	return Code(strings.Join(words, " "))
}

// bareOrQuoted leaves the usual names of options as they are.
func bareOrQuoted(name string) string {
	for _, r := range name {
		if r > 127 || !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("-_.+=:", r) {
			return shell.Quote(name)
		}
	}
	return name
}

func capitalize(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	if n == 0 {
		return s
	}
	return string(unicode.ToUpper(r)) + strings.ToLower(s[n:])
}

func title(s string) string {
	inWord := false
	return strings.Map(func(r rune) rune {
		defer func() { inWord = !unicode.IsSpace(r) && !strings.ContainsRune("-([{<", r) }()
		if inWord {
			return unicode.ToLower(r)
		}
		return unicode.ToUpper(r)
	}, s)
}

func replaceFilter(c *call) any {
	s, from, to := c.text(), c.textArg(0, "old", ""), c.textArg(1, "new", "")
	return c.m.replace(c.line, s, from, to, c.intArg(2, "count", -1))
}

// replace pays for the result before it is made.
func (m *machine) replace(line int, s, from, to string, count int) string {
	n := strings.Count(s, from)
	if count >= 0 {
		n = min(n, count)
	}
	m.grow(line, len(s)+mulBound(max(0, len(to)-len(from)), n))
	return strings.Replace(s, from, to, count)
}

func centerFilter(c *call) any {
	s, width := c.text(), c.intArg(0, "width", 80)
	pad := max(0, width-utf8.RuneCountInString(s))
	c.m.grow(c.line, pad)
	return strings.Repeat(" ", pad/2) + s + strings.Repeat(" ", pad-pad/2)
}

// indentFilter keeps code code: it is for blocks of lines, which only white space is added to.
func indentFilter(c *call) any {
	s, first, blankLines := c.text(), c.boolArg(1, "first", false), c.boolArg(2, "blank", false)
	var prefix string
	width := c.arg(0, "width", int64(4))
	if p, ok := width.(string); ok && strings.Trim(p, " \t") == "" {
		prefix = p
	} else {
		c.args, c.kwargs = []any{width}, nil
		n := max(0, c.intArg(0, "", 4))
		c.m.grow(c.line, n)
		prefix = strings.Repeat(" ", n)
	}
	c.m.grow(c.line, mulBound(len(prefix), strings.Count(s, "\n")+1))
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if i == 0 && !first || l == "" && !blankLines && i > 0 {
			continue
		}
		lines[i] = prefix + l
	}
	s = strings.Join(lines, "\n")
	if _, ok := c.v.(Code); ok {
		return Code(s)
	}
	return s
}

func truncateFilter(c *call) any {
	s, n := c.text(), max(0, c.intArg(0, "length", 255))
	whole, ending, leeway := !c.boolArg(1, "killwords", false), c.textArg(2, "end", "..."), max(0, c.intArg(3, "leeway", 5))
	c.m.grow(c.line, 4*len(s))
	runes := []rune(s)
	if len(runes) <= n+leeway {
		return s
	}
	cut := string(runes[:max(0, n-utf8.RuneCountInString(ending))])
	if i := strings.LastIndexByte(cut, ' '); whole && i >= 0 {
		cut = cut[:i]
	}
	return cut + ending
}

func wordwrapFilter(c *call) any {
	s, width := c.text(), max(1, c.intArg(0, "width", 79))
	c.m.grow(c.line, 2*len(s))
	var out []string
	for _, paragraph := range strings.Split(s, "\n") {
		line := ""
		for _, word := range strings.Fields(paragraph) {
			if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
				out = append(out, line)
				line = ""
			}
			c.m.spend(c.line, 1+len(line)/64)
			if line != "" {
				line += " "
			}
			line += word
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

func stripTags(s string) string {
	var b strings.Builder
	inside := false
	for _, r := range s {
		switch {
		case r == '<':
			inside = true
		case r == '>' && inside:
			inside = false
		case !inside:
			b.WriteRune(r)
		}
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

func urlEncode(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for _, c := range []byte(s) {
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-_.~/", c) >= 0 {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('%')
		b.WriteByte(hex[c>>4])
		b.WriteByte(hex[c&15])
	}
	return b.String()
}

// sorted gives the elements in order.
func (c *call) sorted(items []any, reverse, caseSensitive bool, by func(any) any) []any {
	c.m.grow(c.line, 16*len(items))
	out := slices.Clone(items)
	slices.SortStableFunc(out, func(a, b any) int {
		c.m.spend(c.line, 1)
		x, y := by(a), by(b)
		if !caseSensitive {
			if s, ok := stringOf(x); ok {
				c.m.spend(c.line, len(s)/16)
				x = strings.ToLower(s)
			}
			if s, ok := stringOf(y); ok {
				c.m.spend(c.line, len(s)/16)
				y = strings.ToLower(s)
			}
		}
		n := c.m.compare(c.line, x, y)
		if reverse {
			return -n
		}
		return n
	})
	return out
}
