package config

import (
	"errors"
	"fmt"
	"strings"

	yaml "github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Bounds of one file. Nobody writes a configuration by hand that comes near them; they exist because the parser
// recurses, and a stack that overflows cannot be recovered from.
const (
	maxFileBytes = 1 << 20
	maxNodes     = 100_000
	maxDepth     = 32
)

type kind uint8

const (
	kindBroken kind = iota // reported already; whoever meets it says nothing more
	kindNull
	kindBool
	kindInt
	kindFloat
	kindText
	kindMap
	kindList
)

// what says how an operator would call a value of the kind.
func (k kind) what() string {
	return [...]string{"nothing", "nothing", "true/false", "a whole number", "a number", "text", "a map", "a list"}[k]
}

// position is a place in a file. Line and column count from 1; width is the number of characters to underline.
type position struct {
	src               *source
	line, column, len int
}

// node is one value of a file. It is our own form of the parser's tree: small, with a position everywhere, aliases
// already resolved, and easy to move about where an old key has a new place.
type node struct {
	kind   kind
	text   string // scalars: the text as written, without quotes
	pos    position
	fields []field // maps, in file order
	items  []*node // lists
}

type field struct {
	key   string
	pos   position
	value *node
}

// child is the value of a key, nil if the node is no map or has no such key.
func (n *node) child(key string) *node {
	if n == nil || n.kind != kindMap {
		return nil
	}
	for i := range n.fields {
		if n.fields[i].key == key {
			return n.fields[i].value
		}
	}
	return nil
}

// remove takes a key out of a map.
func (n *node) remove(key string) (field, bool) {
	if n == nil || n.kind != kindMap {
		return field{}, false
	}
	for i, f := range n.fields {
		if f.key == key {
			n.fields = append(n.fields[:i:i], n.fields[i+1:]...)
			return f, true
		}
	}
	return field{}, false
}

// builder turns the parser's tree into nodes.
type builder struct {
	src      *source
	problems *Problems
	anchors  map[string]*node
	count    int
}

// parse reads one file. It gives nil if the text is no YAML; the reason is in problems then.
func parse(src *source, data []byte, problems *Problems) (root *node) {
	report := func(pos position, message, remedy string) {
		problems.add(Problem{
			Severity: Error, Rule: "CFG-2", File: src.name, Line: pos.line, Column: pos.column,
			Message: message, Remedy: remedy, Excerpt: src.excerpt(pos),
		})
	}
	start := position{src: src, line: 1, column: 1, len: 1}
	if strings.ContainsRune(string(data), 0) || !validText(data) {
		report(start, "the file is not UTF-8 text", "save it as UTF-8 without NUL bytes")
		return nil
	}
	// The parser is somebody else's and reads hand-written text. If it panics, that is a file we cannot read and no
	// reason to show a stack trace to an operator.
	defer func() {
		if r := recover(); r != nil {
			report(start, "the file cannot be parsed", "check indentation, quotes and brackets")
			root = nil
		}
	}()
	tokens := lexer.Tokenize(string(data))
	if pos, ok := tooDeep(src, tokens); ok {
		report(pos, fmt.Sprintf("more than %d levels of nesting", maxDepth), "a configuration is never that deep; check brackets and dashes")
		return nil
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		pos, message := start, "not valid YAML"
		var se yaml.Error
		if errors.As(err, &se) && se.GetToken() != nil {
			pos = src.tokenPos(se.GetToken())
			// The parser may quote the text; that of a file with secrets is not repeated.
			if !src.secret {
				message += ": " + se.GetMessage()
			}
		}
		report(pos, message, "check indentation, quotes and the blank after each colon")
		return nil
	}
	b := &builder{src: src, problems: problems, anchors: map[string]*node{}}
	var body ast.Node
	docs := 0
	for _, d := range file.Docs {
		if d.Body == nil && d.Start == nil {
			continue // only comments
		}
		docs++
		if docs > 1 {
			pos := start
			if d.Start != nil {
				pos = src.tokenPos(d.Start)
			} else if d.Body != nil {
				pos = src.tokenPos(d.Body.GetToken())
			}
			report(pos, "a second document in the file", "remove the line \"---\" and what follows, or merge it into the first document")
			break
		}
		body = d.Body
	}
	if _, isComment := body.(*ast.CommentGroupNode); body == nil || isComment {
		return &node{kind: kindMap, pos: start} // an empty file: everything is missing, and is reported as such
	}
	return b.build(body, 0)
}

// tooDeep estimates nesting from the tokens, before the recursive parser sees them. Depth by indentation needs no check
// here: it costs a quadratic number of blanks, and maxFileBytes bounds that.
func tooDeep(src *source, tokens token.Tokens) (position, bool) {
	flow, line, onLine := 0, 0, 0
	for _, t := range tokens {
		if t.Position.Line != line {
			line, onLine = t.Position.Line, 0
		}
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			flow++
		case token.SequenceEndType, token.MappingEndType:
			flow--
		case token.SequenceEntryType, token.MappingKeyType, token.AnchorType, token.TagType:
			onLine++
		}
		if flow > maxDepth || onLine > maxDepth {
			return src.tokenPos(t), true
		}
	}
	return position{}, false
}

func (b *builder) fail(pos position, message, remedy string) {
	b.problems.add(Problem{
		Severity: Error, Rule: "CFG-2", File: b.src.name, Line: pos.line, Column: pos.column,
		Message: message, Remedy: remedy, Excerpt: b.src.excerpt(pos),
	})
}

// build converts a value. It never gives nil: what cannot be understood is reported and becomes a broken node.
func (b *builder) build(n ast.Node, depth int) *node {
	broken := &node{kind: kindBroken}
	if n == nil {
		return broken
	}
	pos := b.src.tokenPos(n.GetToken())
	b.count++
	if b.count > maxNodes || depth > maxDepth {
		if b.count <= maxNodes+1 {
			b.count = maxNodes + 2 // report once
			b.fail(pos, "the file holds more values than a configuration can", "check anchors and nesting")
		}
		return broken
	}
	out := &node{pos: pos, text: pos.text(n.GetToken())}
	switch v := n.(type) {
	case *ast.NullNode:
		out.kind = kindNull
	case *ast.BoolNode:
		out.kind = kindBool
	case *ast.IntegerNode:
		out.kind = kindInt
	case *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		out.kind = kindFloat
	case *ast.StringNode:
		out.kind, out.text = kindText, v.Value
	case *ast.LiteralNode:
		out.kind, out.text = kindText, v.Value.Value
	case *ast.MappingNode:
		out.kind = kindMap
		if len(v.Values) > 0 && !v.IsFlowStyle {
			out.pos = b.src.tokenPos(v.Values[0].Key.GetToken())
		}
		for _, mv := range v.Values {
			b.pair(out, mv, depth)
		}
	case *ast.MappingValueNode:
		out.kind = kindMap
		out.pos = b.src.tokenPos(v.Key.GetToken())
		b.pair(out, v, depth)
	case *ast.SequenceNode:
		out.kind = kindList
		for _, item := range v.Values {
			out.items = append(out.items, b.build(item, depth+1))
		}
	case *ast.AnchorNode:
		target := b.build(v.Value, depth+1)
		if v.Name != nil {
			// Registered after its value is built, so an anchor cannot contain itself.
			b.anchors[v.Name.GetToken().Value] = target
		}
		return target
	case *ast.AliasNode:
		name := ""
		if v.Value != nil {
			name = v.Value.GetToken().Value
		}
		target, ok := b.anchors[name]
		if !ok {
			b.fail(pos, "alias without an anchor before it", "define it with & first, or write the value out")
			return broken
		}
		return b.copyOf(target, pos)
	case *ast.TagNode:
		b.fail(pos, "YAML tags (!…) are not used here", "remove the tag")
		return broken
	default:
		b.fail(pos, "this form of YAML is not used here", "write a plain key: value")
		return broken
	}
	return out
}

// copyOf repeats an anchored value. Copies count against maxNodes, which is what stops aliases of aliases of aliases
// from growing without bound.
func (b *builder) copyOf(n *node, pos position) *node {
	b.count++
	if b.count > maxNodes {
		if b.count <= maxNodes+1 {
			b.count = maxNodes + 2
			b.fail(pos, "the file holds more values than a configuration can", "check anchors and nesting")
		}
		return &node{kind: kindBroken}
	}
	c := *n
	c.fields, c.items = nil, nil
	for _, f := range n.fields {
		f.value = b.copyOf(f.value, pos)
		c.fields = append(c.fields, f)
	}
	for _, i := range n.items {
		c.items = append(c.items, b.copyOf(i, pos))
	}
	return &c
}

// pair adds one key with its value to a map, refusing what is no plain key and keys that are there already.
func (b *builder) pair(out *node, mv *ast.MappingValueNode, depth int) {
	tok := mv.Key.GetToken()
	pos := b.src.tokenPos(tok)
	switch k := mv.Key.(type) {
	case *ast.MergeKeyNode:
		b.fail(pos, "merge keys (<<) are not part of YAML 1.2", "write the keys out; an alias (*name) for a whole value is fine")
		return
	case *ast.StringNode:
		pos.len = max(len([]rune(k.Value)), 1)
		if len(k.Value) > 200 {
			b.fail(pos, "key longer than 200 characters", "check quotes and indentation")
			return
		}
		b.store(out, k.Value, pos, mv, depth)
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.NullNode:
		b.store(out, tok.Value, pos, mv, depth)
	default:
		b.fail(pos, "a key must be plain text", "write key: value")
	}
}

func (b *builder) store(out *node, key string, pos position, mv *ast.MappingValueNode, depth int) {
	for i := range out.fields {
		if out.fields[i].key == key {
			b.fail(pos, fmt.Sprintf("key %q is given twice (first in line %d)", key, out.fields[i].pos.line), "remove one of them")
			return
		}
	}
	out.fields = append(out.fields, field{key: key, pos: pos, value: b.build(mv.Value, depth+1)})
}
