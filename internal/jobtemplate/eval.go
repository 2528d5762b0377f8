package jobtemplate

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/nikolalohinski/gonja/v2/nodes"
	"github.com/nikolalohinski/gonja/v2/tokens"
)

// eval gives the value of an expression. line is that of the surrounding delimiter, for nodes that do not know theirs.
func (m *machine) eval(line int, e nodes.Node) (result any) {
	m.spend(line, 1)
	m.deeper(line, func() { result = m.evalNode(line, e) })
	return result
}

func (m *machine) evalNode(line int, e nodes.Node) any {
	switch n := e.(type) {
	case *nodes.None:
		return nil
	case *nodes.Bool:
		return n.Val
	case *nodes.Integer:
		return int64(n.Val)
	case *nodes.Float:
		return m.finite(line, n.Val)
	case *nodes.String:
		i, err := strconv.Atoi(n.Val)
		if err != nil || i < 0 || i >= len(m.source.literals) {
			m.fail(line, "has a string that cannot be read")
		}
		return m.source.literals[i]
	case *nodes.List:
		return m.evalList(line, n.Val)
	case *nodes.Tuple:
		return m.evalList(line, n.Val)
	case *nodes.Dict:
		d := newDict()
		for _, p := range n.Pairs {
			m.grow(line, 64)
			d.set(m.key(line, m.eval(line, p.Key)), m.eval(line, p.Value))
		}
		return d
	case *nodes.Name:
		return m.lookup(n.Name.Val)
	case *nodes.GetAttribute:
		v := m.eval(line, n.Node)
		if n.Attribute == "" {
			return m.item(line, v, int64(n.Index), describe(n))
		}
		return m.item(line, v, n.Attribute, describe(n))
	case *nodes.GetItem:
		v := m.eval(line, n.Node)
		if n.Arg == nil {
			m.fail(line, "has empty brackets")
		}
		return m.item(line, v, m.key(line, m.eval(line, n.Arg)), describe(n))
	case *nodes.GetSlice:
		return m.slice(line, n)
	case *nodes.Call:
		return m.call(line, n)
	case *nodes.Negation:
		return !truth(m.eval(line, n.Term))
	case *nodes.UnaryExpression:
		return m.sign(line, n)
	case *nodes.BinaryExpression:
		return m.binary(line, n)
	case *nodes.FilteredExpression:
		v := m.eval(line, n.Expression)
		for _, f := range n.Filters {
			v = m.filter(line, f, v)
		}
		return v
	case *nodes.TestExpression:
		return m.test(line, n)
	}
	m.fail(line, "has an expression that is incomplete")
	return nil
}

func (m *machine) evalList(line int, expressions []nodes.Expression) *list {
	m.grow(line, 16*len(expressions))
	l := &list{items: make([]any, len(expressions))}
	for i, x := range expressions {
		l.items[i] = m.eval(line, x)
	}
	return l
}

// lookup finds a variable. An undefined one is remembered for the sentence of an error.
func (m *machine) lookup(name string) any {
	v, ok := m.scope.get(name)
	if !ok {
		m.note(name)
		return undefined{}
	}
	return v
}

func (m *machine) note(name string) {
	const most, longest = 100, 100
	if len(m.undefined) < most && len(name) <= longest {
		m.undefined[name] = true
	}
}

// describe writes a chain of names, for messages.
func describe(e nodes.Node) string {
	const deepest = 8
	var parts []string
	for range deepest {
		switch n := e.(type) {
		case *nodes.Name:
			parts = append(parts, n.Name.Val)
			slices.Reverse(parts)
			return strings.Join(parts, ".")
		case *nodes.GetAttribute:
			parts = append(parts, n.Attribute)
			e = n.Node
		case *nodes.GetItem:
			parts = append(parts, "[]")
			e = n.Node
		default:
			return ""
		}
	}
	return ""
}

// key is a value as a key of a map or an index of a list.
func (m *machine) key(line int, v any) any {
	switch v := v.(type) {
	case int64, string:
		return v
	case Code:
		return string(v)
	}
	m.fail(line, "uses a %s as a key", kindOf(v))
	return nil
}

// item gets an element or attribute. What is not there is undefined.
func (m *machine) item(line int, v, key any, what string) any {
	switch v := v.(type) {
	case *dict:
		if e, ok := v.values[key]; ok {
			return e
		}
	case *list:
		if i, ok := key.(int64); ok {
			if i < 0 {
				i += int64(len(v.items))
			}
			if 0 <= i && i < int64(len(v.items)) {
				return v.items[i]
			}
		}
	case string, Code:
		s, _ := stringOf(v)
		if i, ok := key.(int64); ok {
			m.grow(line, 4*len(s))
			runes := []rune(s)
			if i < 0 {
				i += int64(len(runes))
			}
			if 0 <= i && i < int64(len(runes)) {
				return string(runes[i])
			}
		}
	}
	if what != "" {
		m.note(what)
	}
	return undefined{}
}

// slice is x[start:end:step].
func (m *machine) slice(line int, n *nodes.GetSlice) any {
	v := m.eval(line, n.Node)
	bound := func(e nodes.Node) (int, bool) {
		if e == nil {
			return 0, false
		}
		i, ok := m.eval(line, e).(int64)
		if !ok || i > math.MaxInt32 || i < -math.MaxInt32 {
			m.fail(line, "takes a slice with a bound that is not a small number")
		}
		return int(i), true
	}
	start, hasStart := bound(n.Start)
	end, hasEnd := bound(n.End)
	step, hasStep := bound(n.Step)
	if !hasStep {
		step = 1
	}
	if step == 0 {
		m.fail(line, "takes a slice with step 0")
	}
	items := m.elements(line, v)
	length := len(items)
	clamp := func(i, low, high int) int {
		if i < 0 {
			i += length
		}
		return max(low, min(i, high))
	}
	if step > 0 {
		start = clamp(start, 0, length)
		if !hasEnd {
			end = length
		}
		end = clamp(end, 0, length)
	} else {
		if !hasStart {
			start = length - 1
		}
		start = clamp(start, -1, length-1)
		if hasEnd {
			end = clamp(end, -1, length-1)
		} else {
			end = -1
		}
	}
	m.grow(line, 16*length)
	var out []any
	for i := start; step > 0 && i < end || step < 0 && i > end; i += step {
		out = append(out, items[i])
	}
	if _, isText := stringOf(v); isText {
		var b strings.Builder
		for _, c := range out {
			b.WriteString(text(c))
		}
		return b.String() // a piece of code is not code
	}
	return &list{items: out}
}

func (m *machine) sign(line int, n *nodes.UnaryExpression) any {
	v := m.eval(line, n.Term)
	switch x := v.(type) {
	case int64:
		if !n.Negative {
			return x
		}
		if x == math.MinInt64 {
			m.fail(line, "computes a number that is too large")
		}
		return -x
	case float64:
		if n.Negative {
			return -x
		}
		return x
	case literal:
		if !n.Negative {
			return x
		}
		if strings.HasPrefix(x.text, "-") {
			return literal{x.text[1:], -x.f}
		}
		return literal{"-" + x.text, -x.f}
	}
	m.fail(line, "has a sign before a %s", kindOf(v))
	return nil
}

func (m *machine) binary(line int, n *nodes.BinaryExpression) any {
	// A chain such as a ~ b ~ c is a tree that leans to the left, as deep as it is long: walk down it without recursion.
	var chain []*nodes.BinaryExpression
	var e nodes.Node = n
	for {
		b, ok := e.(*nodes.BinaryExpression)
		if !ok {
			break
		}
		m.spend(line, 1)
		chain = append(chain, b)
		e = b.Left
	}
	v := m.eval(line, e)
	for _, b := range slices.Backward(chain) {
		v = m.operate(line, b, v)
	}
	return v
}

func (m *machine) operate(line int, n *nodes.BinaryExpression, left any) any {
	op := n.Operator.Token
	switch op.Type {
	case tokens.And:
		if !truth(left) {
			return left
		}
		return m.eval(line, n.Right)
	case tokens.Or:
		if truth(left) {
			return left
		}
		return m.eval(line, n.Right)
	}
	right := m.eval(line, n.Right)
	switch op.Type {
	case tokens.Equals:
		return m.equal(line, left, right, 0)
	case tokens.Ne:
		return !m.equal(line, left, right, 0)
	case tokens.LowerThan:
		return m.compare(line, left, right) < 0
	case tokens.LowerThanOrEqual:
		return m.compare(line, left, right) <= 0
	case tokens.GreaterThan:
		return m.compare(line, left, right) > 0
	case tokens.GreaterThanOrEqual:
		return m.compare(line, left, right) >= 0
	case tokens.In:
		return m.contains(line, right, left)
	case tokens.Tilde:
		return m.join(line, left, right)
	case tokens.Addition:
		_, a := stringOf(left)
		_, b := stringOf(right)
		if a || b {
			return m.join(line, left, right)
		}
		if x, ok := left.(*list); ok {
			if y, ok := right.(*list); ok {
				m.grow(line, 16*(len(x.items)+len(y.items)))
				return &list{items: slices.Concat(x.items, y.items)}
			}
		}
	case tokens.Multiply:
		if n, ok := right.(int64); ok {
			return m.repeat(line, left, n, right)
		}
		if n, ok := left.(int64); ok {
			return m.repeat(line, right, n, left)
		}
	case tokens.Modulo:
		if s, ok := left.(string); ok {
			args := []any{right}
			if l, ok := right.(*list); ok {
				args = l.items
			}
			return m.format(line, s, args)
		}
	}
	return m.arithmetic(line, op, left, right)
}

// repeat is text or a list several times, or else a product.
func (m *machine) repeat(line int, v any, n int64, factor any) any {
	n32 := int(max(0, min(n, math.MaxInt32)))
	switch v := v.(type) {
	case string:
		m.grow(line, mulBound(len(v), n32))
		return strings.Repeat(v, n32)
	case Code:
		m.grow(line, mulBound(len(v), n32))
		return Code(strings.Repeat(string(v), n32))
	case *list:
		m.grow(line, mulBound(16*len(v.items), n32))
		return &list{items: slices.Repeat(v.items, n32)}
	}
	return m.arithmetic(line, &tokens.Token{Type: tokens.Multiply, Val: "*"}, v, factor)
}

// mulBound is a product, or the largest int.
func mulBound(a, b int) int {
	if a != 0 && b > math.MaxInt/a {
		return math.MaxInt
	}
	return a * b
}

func (m *machine) arithmetic(line int, op *tokens.Token, left, right any) any {
	a, aInt := left.(int64)
	b, bInt := right.(int64)
	x, ok1 := floatOf(left)
	y, ok2 := floatOf(right)
	if !ok1 || !ok2 {
		m.fail(line, "uses %s with a %s and a %s", op.Val, kindOf(left), kindOf(right))
	}
	ints := aInt && bInt
	overflow := func() any {
		m.fail(line, "computes a number that is too large")
		return nil
	}
	switch op.Type {
	case tokens.Addition:
		if ints {
			if c := a + b; (c > a) == (b > 0) {
				return c
			}
			return overflow()
		}
		return m.finite(line, x+y)
	case tokens.Subtraction:
		if ints {
			if c := a - b; (c < a) == (b > 0) {
				return c
			}
			return overflow()
		}
		return m.finite(line, x-y)
	case tokens.Multiply:
		if ints {
			c := a * b
			if a != 0 && (c/a != b || a == -1 && b == math.MinInt64) {
				return overflow()
			}
			return c
		}
		return m.finite(line, x*y)
	case tokens.Division, tokens.FloorDivision, tokens.Modulo:
		if y == 0 {
			m.fail(line, "divides by zero")
		}
		switch {
		case op.Type == tokens.Division:
			return m.finite(line, x/y)
		case ints && a == math.MinInt64 && b == -1:
			return overflow()
		case ints && op.Type == tokens.FloorDivision:
			q := a / b
			if a%b != 0 && (a < 0) != (b < 0) {
				q--
			}
			return q
		case ints:
			r := a % b
			if r != 0 && (r < 0) != (b < 0) {
				r += b
			}
			return r
		case op.Type == tokens.FloorDivision:
			return m.finite(line, math.Floor(x/y))
		}
		r := math.Mod(x, y)
		if r != 0 && (r < 0) != (y < 0) {
			r += y
		}
		return m.finite(line, r)
	case tokens.Power:
		if ints && b >= 0 {
			result := int64(1)
			for range min(b, 64) {
				if a != 0 && (result*a)/a != result || b > 63 && a != 0 && a != 1 && a != -1 {
					return overflow()
				}
				result *= a
			}
			if b > 64 && a == -1 && b%2 == 1 {
				return int64(-1)
			}
			return result
		}
		return m.finite(line, math.Pow(x, y))
	}
	m.fail(line, "uses the unknown operator %s", op.Val)
	return nil
}

// contains is "needle in v".
func (m *machine) contains(line int, v, needle any) bool {
	switch v := v.(type) {
	case string, Code:
		s, _ := stringOf(v)
		n, ok := stringOf(needle)
		if !ok {
			m.fail(line, "looks for a %s in a text", kindOf(needle))
		}
		m.spend(line, len(s)/64)
		return strings.Contains(s, n)
	case *dict:
		key := needle
		if c, ok := key.(Code); ok {
			key = string(c)
		}
		switch key.(type) {
		case string, int64:
			_, ok := v.values[key]
			return ok
		}
		return false
	}
	for _, e := range m.elements(line, v) {
		if m.equal(line, e, needle, 0) {
			return true
		}
	}
	return false
}

// arguments evaluates those of a call, those with names in the order of their names.
func (m *machine) arguments(line int, args []nodes.Expression, kwargs map[string]nodes.Expression) ([]any, map[string]any) {
	values := make([]any, len(args))
	for i, a := range args {
		values[i] = m.eval(line, a)
	}
	named := map[string]any{}
	for _, name := range slices.Sorted(maps.Keys(kwargs)) {
		named[name] = m.eval(line, kwargs[name])
	}
	return values, named
}

func (m *machine) call(line int, n *nodes.Call) any {
	if at := m.lineOf(n.Location); at > 0 {
		line = at
	}
	if attribute, ok := n.Func.(*nodes.GetAttribute); ok && attribute.Attribute != "" {
		receiver := m.eval(line, attribute.Node)
		if d, isDict := receiver.(*dict); isDict {
			if f, isFunction := d.values[attribute.Attribute].(callable); isFunction {
				args, kwargs := m.arguments(line, n.Args, n.Kwargs)
				return f(m, line, args, kwargs)
			}
		}
		args, kwargs := m.arguments(line, n.Args, n.Kwargs)
		return m.method(line, receiver, attribute.Attribute, args, kwargs)
	}
	f, ok := m.eval(line, n.Func).(callable)
	if !ok {
		m.fail(line, "calls %s(), which is not a function", describe(n.Func))
	}
	args, kwargs := m.arguments(line, n.Args, n.Kwargs)
	return f(m, line, args, kwargs)
}
