package jobtemplate

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/nikolalohinski/gonja/v2/nodes"
	"github.com/nikolalohinski/gonja/v2/tokens"
)

// machine evaluates one template once.
type machine struct {
	ctx       context.Context
	caller    context.Context // for functions: with the time of who renders, not that of the template
	limits    Limits
	options   Options
	source    *cleaned
	root      *nodes.Template
	filters   map[string]filterFunc
	out       *strings.Builder
	scope     *scope
	quote     bool // {{ }} quotes data
	undefined map[string]bool

	steps, bytes, depth int
	lastLook            int // steps at the last look at the clock
}

// scope holds variables.
type scope struct {
	names  map[string]any
	parent *scope
}

func (s *scope) get(name string) (any, bool) {
	for ; s != nil; s = s.parent {
		if v, ok := s.names[name]; ok {
			return v, true
		}
	}
	return nil, false
}

// inside runs f with a scope of its own.
func (m *machine) inside(parent *scope, f func()) {
	outer := m.scope
	m.scope = &scope{names: map[string]any{}, parent: parent}
	f()
	m.scope = outer
}

// spend pays for n steps and looks at the clock now and then.
func (m *machine) spend(line, n int) {
	m.steps += max(0, n)
	if m.steps > m.limits.Steps {
		m.fail(line, "needs more than %d steps to render", m.limits.Steps)
	}
	const often = 512
	if m.steps-m.lastLook >= often {
		m.lastLook = m.steps
		if m.ctx.Err() != nil {
			m.fail(line, "takes longer than %v to render", m.limits.Time)
		}
	}
}

// grow pays for n bytes of memory. It is called before they are allocated.
func (m *machine) grow(line, n int) {
	if n < 0 || m.bytes+n > m.limits.Bytes {
		m.fail(line, "needs more than %d bytes to render", m.limits.Bytes)
	}
	m.bytes += n
	m.spend(line, n/64)
}

// deeper runs f one level deeper. Go ends the process when a stack is full, so depth is counted.
func (m *machine) deeper(line int, f func()) {
	m.depth++
	if m.depth > m.limits.Depth {
		m.fail(line, "is nested more than %d deep", m.limits.Depth)
	}
	f()
	m.depth--
}

func (m *machine) lineOf(t *tokens.Token) int {
	if t == nil || m.source == nil {
		return 0
	}
	return m.source.lineAt(t.Pos)
}

// write adds to the output.
func (m *machine) write(line int, s string) {
	if m.out.Len()+len(s) > m.limits.Output {
		m.fail(line, "makes more than %d bytes of output", m.limits.Output)
	}
	m.grow(line, len(s))
	m.out.WriteString(s)
}

// capture runs f and gives what it has written.
func (m *machine) capture(f func()) Code {
	outer := m.out
	m.out = &strings.Builder{}
	f()
	text := m.out.String()
	m.out = outer
	return Code(text)
}

// globals defines functions and variables; variables of the caller come first.
func (m *machine) globals() {
	m.filters = allFilters()
	m.scope = &scope{names: builtins()}
	for name, f := range m.options.Functions {
		m.scope.names[name] = function(name, f)
	}
	m.scope = &scope{names: map[string]any{}, parent: m.scope}
	for _, name := range slices.Sorted(maps.Keys(m.options.Variables)) {
		m.scope.names[name] = m.convert(m.options.Variables[name], 0)
	}
}

const blank = " \r\n\t"

func (m *machine) nodes(list []nodes.Node) {
	for _, n := range list {
		if n != nil {
			m.node(n)
		}
	}
}

func (m *machine) body(line int, w *nodes.Wrapper) {
	m.deeper(line, func() { m.nodes(w.Nodes) })
}

// node executes one node of the document.
func (m *machine) node(n nodes.Node) {
	m.spend(0, 1)
	switch n := n.(type) {
	case *nodes.Data:
		text := n.Data.Val
		if n.Trim.Left {
			text = strings.TrimLeft(text, blank)
		}
		if n.Trim.Right {
			text = strings.TrimRight(text, blank)
		}
		m.write(m.lineOf(n.Data), text)
	case *nodes.Comment:
	case *nodes.Output:
		line := m.lineOf(n.Start)
		v, ok := m.conditional(line, conditional{n.Expression, n.Condition, n.Alternative})
		if ok {
			m.print(line, v)
		}
	case *nodes.ControlStructureBlock:
		m.statement(m.lineOf(n.Location), n.ControlStructure)
	default:
		m.fail(0, "contains something that cannot be rendered")
	}
}

// print writes a value as {{ }} does.
func (m *machine) print(line int, v any) {
	if m.quote {
		m.write(line, m.quoted(line, v))
	} else {
		m.write(line, m.unquoted(line, v))
	}
}

// conditional evaluates "value if condition else alternative". Without an alternative there may be no value.
func (m *machine) conditional(line int, c conditional) (any, bool) {
	if c.condition == nil || truth(m.eval(line, c.condition)) {
		return m.eval(line, c.value), true
	}
	if c.alternative != nil {
		return m.eval(line, c.alternative), true
	}
	return undefined{}, false
}

func (m *machine) statement(line int, s nodes.ControlStructure) {
	switch s := s.(type) {
	case *ifNode:
		for i, c := range s.conditions {
			if truth(m.eval(line, c)) {
				m.body(line, s.bodies[i])
				return
			}
		}
		if len(s.bodies) > len(s.conditions) {
			m.body(line, s.bodies[len(s.bodies)-1])
		}
	case *forNode:
		m.loop(line, s)
	case *setNode:
		m.assign(line, s)
	case *withNode:
		values := make([]any, len(s.values))
		for i, v := range s.values {
			values[i] = m.eval(line, v)
		}
		m.inside(m.scope, func() {
			for i, name := range s.names {
				m.scope.names[name] = values[i]
			}
			m.body(line, s.body)
		})
	case *macroNode:
		m.scope.names[s.name] = m.macro(s, m.scope)
	case *filterNode:
		var v any
		m.inside(m.scope, func() { v = m.capture(func() { m.body(line, s.body) }) })
		// What the body has rendered is code, and what a filter makes of it is data or code by the same rules as everywhere:
		// text that lost its quotes in a filter is quoted as a whole.
		for _, f := range s.filters {
			v = m.filter(line, f, v)
		}
		m.print(line, v)
	case *autoescapeNode:
		outer := m.quote
		m.quote = s.on && !m.options.Raw
		m.inside(m.scope, func() { m.body(line, s.body) })
		m.quote = outer
	default:
		m.fail(line, "contains a statement that cannot be rendered")
	}
}

func (m *machine) assign(line int, s *setNode) {
	var value any
	if s.body != nil {
		m.inside(m.scope, func() { value = m.capture(func() { m.body(line, s.body) }) })
		if m.options.Raw {
			value = string(value.(Code)) //nolint:forcetypeassert // capture gives Code
		}
		for _, f := range s.filters {
			value = m.filter(line, f, value)
		}
	} else {
		value, _ = m.conditional(line, s.value)
	}
	if s.attribute == "" {
		m.scope.names[s.name] = value
		return
	}
	target, _ := m.scope.get(s.name)
	d, ok := target.(*dict)
	if !ok || !d.open {
		m.fail(line, "sets an attribute of %s, which is not a namespace", s.name)
	}
	m.grow(line, len(s.attribute)+64)
	d.set(s.attribute, value)
}

func (m *machine) loop(line int, s *forNode) {
	bind := func(item any) {
		if len(s.targets) == 1 {
			m.scope.names[s.targets[0]] = item
			return
		}
		parts := m.elements(line, item)
		if len(parts) != len(s.targets) {
			m.fail(line, "takes %d values apart into %d names", len(parts), len(s.targets))
		}
		for i, name := range s.targets {
			m.scope.names[name] = parts[i]
		}
	}
	source := m.eval(line, s.list)
	items := m.elements(line, source)
	if d, ok := source.(*dict); ok && len(s.targets) == 2 {
		// The dialect lets a loop over a map have key and value.
		items = nil
		for _, k := range d.keys {
			items = append(items, &list{items: []any{k, d.values[k]}})
		}
	}
	if s.condition != nil {
		var kept []any
		for _, item := range items {
			m.inside(m.scope, func() {
				bind(item)
				if truth(m.eval(line, s.condition)) {
					kept = append(kept, item)
				}
			})
		}
		items = kept
	}
	if len(items) == 0 && s.empty != nil {
		m.inside(m.scope, func() { m.body(line, s.empty) })
		return
	}
	depth := int64(1)
	if outer, ok := m.scope.get("loop"); ok {
		if d, ok := outer.(*dict); ok {
			if n, ok := d.values["depth"].(int64); ok {
				depth = n + 1
			}
		}
	}
	for i, item := range items {
		m.spend(line, 4)
		m.grow(line, 256)
		m.inside(m.scope, func() {
			bind(item)
			m.scope.names["loop"] = loopInfo(items, i, depth)
			m.body(line, s.body)
		})
	}
}

func loopInfo(items []any, i int, depth int64) *dict {
	n := len(items)
	d := newDict()
	for _, e := range []struct {
		name  string
		value any
	}{
		{"index", int64(i + 1)},
		{"index0", int64(i)},
		{"revindex", int64(n - i)},
		{"revindex0", int64(n - i - 1)},
		{"first", i == 0},
		{"last", i == n-1},
		{"length", int64(n)},
		{"depth", depth},
		{"depth0", depth - 1},
	} {
		d.set(e.name, e.value)
	}
	if i > 0 {
		d.set("previtem", items[i-1])
	}
	if i+1 < n {
		d.set("nextitem", items[i+1])
	}
	d.set("cycle", callable(func(m *machine, line int, args []any, _ map[string]any) any {
		if len(args) == 0 {
			m.fail(line, "calls cycle() without values")
		}
		return args[i%len(args)]
	}))
	return d
}

// macro makes a callable of a macro. What it renders is code.
func (m *machine) macro(n *macroNode, defined *scope) callable {
	return func(m *machine, line int, args []any, kwargs map[string]any) any {
		if len(args) > len(n.params) {
			m.fail(line, "gives %s() %d arguments, it has %d", n.name, len(args), len(n.params))
		}
		for name := range kwargs {
			if !slices.Contains(n.params, name) {
				m.fail(line, "gives %s() the argument %s, which it does not have", n.name, name)
			}
		}
		var result Code
		m.deeper(line, func() {
			m.inside(defined, func() {
				for i, name := range n.params {
					var v any = undefined{}
					if k, ok := kwargs[name]; ok {
						v = k
					} else if i < len(args) {
						v = args[i]
					} else if n.defaults[i] != nil {
						v = m.eval(line, n.defaults[i])
					}
					m.scope.names[name] = v
				}
				result = m.capture(func() { m.body(line, n.body) })
			})
		})
		if m.options.Raw {
			return string(result)
		}
		return result
	}
}
