package jobtemplate

import (
	"math"
	"regexp"
	"regexp/syntax"
	"strings"

	"github.com/nikolalohinski/gonja/v2/nodes"
)

// test is "value is name(arguments)" and "value in list".
func (m *machine) test(line int, n *nodes.TestExpression) bool {
	v := m.eval(line, n.Expression)
	args, _ := m.arguments(line, n.Test.Args, nil)
	if n.Test.Name == "in" {
		// Two adjacent arguments mean that the parser has taken a tuple apart; there is exactly one.
		if len(args) != 1 {
			m.fail(line, "has the word in without a list")
		}
		return m.contains(line, args[0], v)
	}
	return m.testByName(line, n.Test.Name, v, args)
}

func (m *machine) testByName(line int, name string, v any, args []any) bool {
	m.spend(line, 1)
	argument := func() any {
		if len(args) == 0 {
			m.fail(line, "uses the test %q without an argument", name)
		}
		return args[0]
	}
	integer := func(v any) int64 {
		n, ok := v.(int64)
		if !ok {
			m.fail(line, "uses the test %q with a %s", name, kindOf(v))
		}
		return n
	}
	_, isText := stringOf(v)
	f, isNumber := floatOf(v)
	switch name {
	case "defined":
		_, missing := v.(undefined)
		return !missing
	case "undefined":
		_, missing := v.(undefined)
		return missing
	case "none":
		return isNone(v)
	case "true":
		return v == true
	case "false":
		return v == false
	case "boolean":
		_, ok := v.(bool)
		return ok
	case "string":
		return isText
	case "number":
		return isNumber
	case "integer":
		l, ok := v.(literal)
		_, isInt := v.(int64)
		return isInt || ok && !strings.ContainsAny(l.text, ".eE")
	case "float":
		l, ok := v.(literal)
		_, isFloat := v.(float64)
		return isFloat || ok && strings.ContainsAny(l.text, ".eE")
	case "mapping":
		_, ok := v.(*dict)
		return ok
	case "sequence", "iterable":
		_, isList := v.(*list)
		_, isDict := v.(*dict)
		return isList || isDict || isText
	case "callable":
		_, ok := v.(callable)
		return ok
	case "escaped":
		_, ok := v.(Code)
		return ok
	case "even":
		return integer(v)%2 == 0
	case "odd":
		return integer(v)%2 != 0
	case "divisibleby":
		d := integer(argument())
		if d == 0 {
			m.fail(line, "divides by zero")
		}
		return d == -1 || integer(v)%d == 0
	case "lower":
		s := m.scalar(line, v)
		return s == strings.ToLower(s)
	case "upper":
		s := m.scalar(line, v)
		return s == strings.ToUpper(s)
	case "eq", "equalto", "==", "sameas":
		return m.equal(line, v, argument(), 0)
	case "ne", "!=":
		return !m.equal(line, v, argument(), 0)
	case "lt", "lessthan", "<":
		return m.compare(line, v, argument()) < 0
	case "le", "<=":
		return m.compare(line, v, argument()) <= 0
	case "gt", "greaterthan", ">":
		return m.compare(line, v, argument()) > 0
	case "ge", ">=":
		return m.compare(line, v, argument()) >= 0
	case "in":
		return m.contains(line, argument(), v)
	case "match", "search":
		return matchTest(&call{m: m, line: line, name: name, v: v, args: args}, name == "match")
	case "nan":
		return isNumber && math.IsNaN(f)
	}
	m.fail(line, "uses the test %q, which does not exist", name)
	return false
}

// Bounds of regular expressions. Go's take time linear in expression and text; what is bounded is the product.
const (
	maxPattern     = 1000 // bytes
	maxPatternSize = 5000 // nodes with repetitions written out
)

// matchTest looks for a regular expression: at the beginning of the text, or anywhere.
func matchTest(c *call, anchored bool) bool {
	if isNone(c.v) {
		return false
	}
	s, pattern := c.text(), c.textArg(0, "pattern", "")
	flags := ""
	if c.boolArg(1, "ignorecase", false) {
		flags += "i"
	}
	if c.boolArg(2, "multiline", false) {
		flags += "m"
	}
	if len(pattern) > maxPattern {
		c.fail("uses a regular expression longer than %d bytes", maxPattern)
	}
	if flags != "" {
		pattern = "(?" + flags + ")" + pattern
	}
	if anchored {
		pattern = `\A(?:` + pattern + `)`
	}
	tree, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		c.fail("uses a wrong regular expression")
	}
	size := patternSize(tree)
	if size > maxPatternSize {
		c.fail("uses a regular expression that is too large")
	}
	re, err := regexp.Compile(pattern)
	if err != nil {
		c.fail("uses a wrong regular expression")
	}
	c.m.grow(c.line, 100*size)
	c.m.spend(c.line, size+mulBound(len(s), size)/16)
	return re.MatchString(s)
}

// patternSize is the size of a regular expression with its repetitions written out.
func patternSize(re *syntax.Regexp) int {
	size := 1 + len(re.Rune)
	for _, sub := range re.Sub {
		size = min(maxPatternSize+1, size+patternSize(sub))
	}
	if re.Op == syntax.OpRepeat {
		size = min(maxPatternSize+1, mulBound(size, max(1, re.Max, re.Min)))
	}
	return size
}
