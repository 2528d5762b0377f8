// Package yamlnode reads small YAML documents into a tree whose nodes know their line. It is for the application and software files
// (contract 22 section 10, contract 24 section 8), of which a bad document must cost that document only; the configuration has a reader
// of its own. Size, nesting and number of nodes are bounded; anchors, aliases and tags are refused.
package yamlnode

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"unicode/utf8"

	yaml "github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"ucloud-im/internal/failure"
)

// Bounds of one document.
const (
	MaxBytes = 1 << 20
	maxNodes = 50_000
	maxDepth = 24
)

// Kind is a kind of nodes.
type Kind uint8

// The kinds.
const (
	Null Kind = iota
	Bool
	Int
	Float
	Text
	Map
	List
)

// Node is a value with its place.
type Node struct {
	Kind   Kind
	Text   string // of scalars, without quotes
	Line   int
	Fields []Field // of maps, in the order of the file
	Items  []*Node // of lists
}

// Field is an entry of a map.
type Field struct {
	Key   string
	Line  int
	Value *Node
}

// Split takes a file apart at the lines that say ---. line is the first line of each document.
func Split(data []byte) (documents [][]byte, lines []int) {
	start, startLine, line := 0, 1, 1
	for at := 0; at < len(data); line++ {
		end := len(data)
		if i := bytes.IndexByte(data[at:], '\n'); i >= 0 {
			end = at + i + 1
		}
		if strings.TrimRight(string(data[at:end]), " \t\r\n") == "---" {
			documents, lines = append(documents, data[start:at]), append(lines, startLine)
			start, startLine = end, line+1
		}
		at = end
	}
	return append(documents, data[start:]), append(lines, startLine)
}

// Parse reads one document, which begins at a line of its file. An empty one gives nil.
func Parse(data []byte, firstLine int) (root *Node, err error) {
	if len(data) > MaxBytes {
		return nil, failure.New(failure.Invalid, "Line %d: the document is longer than %d bytes", firstLine, MaxBytes)
	}
	if !utf8.Valid(data) || bytes.IndexByte(data, 0) >= 0 {
		return nil, failure.New(failure.Invalid, "Line %d: the document is not UTF-8 text", firstLine)
	}
	// The parser is somebody else's. If it panics, that is a document that cannot be read.
	defer func() {
		if r := recover(); r != nil {
			root, err = nil, failure.New(failure.Invalid, "Line %d: the document cannot be read", firstLine)
		}
	}()
	tokens := lexer.Tokenize(string(data))
	if line := tooDeep(tokens); line > 0 {
		return nil, failure.New(failure.Invalid, "Line %d: more than %d levels of nesting", line+firstLine-1, maxDepth)
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		line, message := 1, "not valid YAML"
		if se, ok := errors.AsType[yaml.Error](err); ok && se.GetToken() != nil {
			line, message = se.GetToken().Position.Line, message+": "+se.GetMessage()
		}
		return nil, failure.New(failure.Invalid, "Line %d: %s", line+firstLine-1, message)
	}
	b := &builder{first: firstLine}
	for _, d := range file.Docs {
		if _, comment := d.Body.(*ast.CommentGroupNode); d.Body == nil || comment {
			continue
		}
		if root != nil {
			return nil, failure.New(failure.Invalid, "Line %d: a second document", b.line(d.Body))
		}
		root = b.build(d.Body, 0)
	}
	return root, b.err
}

// tooDeep gives the line on which nesting exceeds what the recursive parser should see, 0 if none.
func tooDeep(tokens token.Tokens) int {
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
			return line
		}
	}
	return 0
}

type builder struct {
	first, count int
	err          error
}

func (b *builder) line(n ast.Node) int {
	if n == nil || n.GetToken() == nil || n.GetToken().Position == nil {
		return b.first
	}
	return n.GetToken().Position.Line + b.first - 1
}

func (b *builder) fail(line int, format string, args ...any) *Node {
	if b.err == nil {
		b.err = failure.New(failure.Invalid, "Line %d: "+format, append([]any{line}, args...)...)
	}
	return &Node{Line: line}
}

func (b *builder) build(n ast.Node, depth int) *Node {
	line := b.line(n)
	if b.count++; b.count > maxNodes || depth > maxDepth {
		return b.fail(line, "the document holds too many values")
	}
	out := &Node{Line: line}
	scalar := func(k Kind) *Node {
		out.Kind, out.Text = k, n.GetToken().Value
		return out
	}
	switch v := n.(type) {
	case nil, *ast.NullNode:
		return out
	case *ast.BoolNode:
		return scalar(Bool)
	case *ast.IntegerNode:
		return scalar(Int)
	case *ast.FloatNode:
		return scalar(Float)
	case *ast.StringNode:
		out.Kind, out.Text = Text, v.Value
		return out
	case *ast.LiteralNode:
		out.Kind, out.Text = Text, v.Value.Value
		return out
	case *ast.MappingNode:
		out.Kind = Map
		for _, mv := range v.Values {
			b.pair(out, mv, depth)
		}
		return out
	case *ast.MappingValueNode:
		out.Kind = Map
		b.pair(out, v, depth)
		return out
	case *ast.SequenceNode:
		out.Kind = List
		for _, item := range v.Values {
			out.Items = append(out.Items, b.build(item, depth+1))
		}
		return out
	}
	return b.fail(line, "anchors, aliases, tags and infinite numbers cannot be used here")
}

func (b *builder) pair(out *Node, v *ast.MappingValueNode, depth int) {
	key := ""
	switch k := v.Key.(type) {
	case *ast.StringNode:
		key = k.Value
	case *ast.MergeKeyNode, *ast.MappingKeyNode:
		b.fail(b.line(v), "keys must be plain text")
		return
	default:
		if v.Key == nil || v.Key.GetToken() == nil {
			b.fail(b.line(v), "a key is missing")
			return
		}
		key = v.Key.GetToken().Value // numbers and the like
	}
	line := b.line(v.Key)
	if slices.ContainsFunc(out.Fields, func(f Field) bool { return f.Key == key }) {
		b.fail(line, "the key %q is given twice", key)
		return
	}
	out.Fields = append(out.Fields, Field{Key: key, Line: line, Value: b.build(v.Value, depth+1)})
}
