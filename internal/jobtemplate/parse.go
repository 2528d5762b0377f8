package jobtemplate

import (
	"errors"
	"fmt"
	"strings"

	"github.com/nikolalohinski/gonja/v2/config"
	"github.com/nikolalohinski/gonja/v2/nodes"
	"github.com/nikolalohinski/gonja/v2/parser"
	"github.com/nikolalohinski/gonja/v2/tokens"
)

// maxBlocks bounds the nesting of statements, and with it the recursion of the parser.
const maxBlocks = 40

// parse makes the tree of the template.
func (m *machine) parse(source string) {
	m.source = m.clean(source)
	cfg := config.New()
	cfg.KeepTrailingNewline = true
	stream := tokens.LexAll(m.source.text.String(), cfg)
	// The parser takes an error of the lexer for the end of the template, so errors are looked for before.
	var list []*tokens.Token
	for ; !stream.EOF(); stream.Next() {
		t := stream.Current()
		if t.Type == tokens.Error {
			m.fail(m.source.lineAt(t.Pos), "cannot be read: %s", t.Val)
		}
		list = append(list, t)
	}
	list = append(list, stream.Current()) // the end, with its place
	p := parser.NewParser("", tokens.NewStream(list), cfg, nil, &statements{})
	root, err := parseTree(p)
	if err != nil {
		m.syntaxError(err, p)
	}
	m.root = root
}

// parseTree runs gonja's parser, which follows nil pointers in some texts that are no templates, such as {{ f(in=1) }}.
func parseTree(p *parser.Parser) (root *nodes.Template, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = problem(p, "an expression is incomplete")
		}
	}()
	return p.Parse()
}

// syntaxError words an error of the parser for a user.
func (m *machine) syntaxError(err error, p *parser.Parser) {
	line := 0
	if t := p.Current(); t != nil && t.Type != tokens.EOF {
		line = m.source.lineAt(t.Pos)
	}
	message := err.Error()
	if syntax, ok := errors.AsType[*parser.SyntaxError](err); ok {
		message = syntax.Message
		if syntax.Line > 0 {
			line = m.source.lineAt(m.source.offset(syntax.Line, syntax.Column))
		}
	} else if mine, ok := errors.AsType[*statementError](err); ok {
		message = mine.message
		line = m.source.lineAt(mine.pos)
	}
	m.fail(line, "cannot be read: %s", strings.TrimSuffix(message, "."))
}

// offset is the place of a line and column of the cleaned text.
func (c *cleaned) offset(line, column int) int {
	text := c.text.String()
	at := 0
	for ; line > 1; line-- {
		i := strings.IndexByte(text[at:], '\n')
		if i < 0 {
			break
		}
		at += i + 1
	}
	return min(len(text), at+max(0, column-1))
}

// statementError is an error of a parser of a statement here.
type statementError struct {
	message string
	pos     int
}

func (e *statementError) Error() string { return e.message }

// statements are the statements there are; depth is the nesting at the moment.
type statements struct{ depth int }

// Get gives the parser of a statement to gonja's.
func (s *statements) Get(name string) (parser.ControlStructureParser, bool) {
	parse, ok := map[string]func(p, args *parser.Parser) (nodes.ControlStructure, error){
		"if": parseIf, "for": parseFor, "set": parseSet, "with": parseWith, "macro": parseMacro, "filter": parseFilter, "autoescape": parseAutoescape,
	}[name]
	if !ok {
		return func(p, _ *parser.Parser) (nodes.ControlStructure, error) {
			return nil, problem(p, "there is no statement %q here", name)
		}, true
	}
	return func(p, args *parser.Parser) (nodes.ControlStructure, error) {
		s.depth++
		defer func() { s.depth-- }()
		if s.depth > maxBlocks {
			return nil, problem(p, "statements are nested more than %d deep", maxBlocks)
		}
		at := p.Current()
		n, err := parse(p, args)
		if mine, ok := errors.AsType[*statementError](err); ok && mine.pos == 0 && at != nil {
			mine.pos = at.Pos // at the end of the arguments there is no place
		}
		return n, err
	}, true
}

// node is what gonja's tree wants of a statement.
type node struct {
	at   *tokens.Token
	name string
}

func (n node) Position() *tokens.Token { return n.at }
func (n node) String() string          { return n.name }

type ifNode struct {
	node
	conditions []nodes.Expression // one less than bodies if there is an else
	bodies     []*nodes.Wrapper
}

type forNode struct {
	node
	targets   []string
	list      nodes.Expression
	condition nodes.Expression // nil if none
	body      *nodes.Wrapper
	empty     *nodes.Wrapper // nil if none
}

type setNode struct {
	node
	name, attribute string         // attribute of a namespace, or ""
	value           conditional    // of the short form
	body            *nodes.Wrapper // of the long form
	filters         []*nodes.FilterCall
}

type withNode struct {
	node
	names  []string
	values []nodes.Expression
	body   *nodes.Wrapper
}

type macroNode struct {
	node
	name     string
	params   []string
	defaults []nodes.Expression // nil if none
	body     *nodes.Wrapper
}

type filterNode struct {
	node
	filters []*nodes.FilterCall
	body    *nodes.Wrapper
}

type autoescapeNode struct {
	node
	on   bool
	body *nodes.Wrapper
}

// conditional is "value if condition else alternative".
type conditional struct{ value, condition, alternative nodes.Expression }

func problem(p *parser.Parser, format string, args ...any) error {
	pos := 0
	if t := p.Current(); t != nil {
		pos = t.Pos
	}
	return &statementError{message: fmt.Sprintf(format, args...), pos: pos}
}

// expression reads one that must be there.
func expression(args *parser.Parser) (nodes.Expression, error) {
	e, err := args.ParseExpression()
	if err == nil && e == nil {
		err = problem(args, "an expression is missing")
	}
	return e, err
}

// end makes sure that nothing is left of the arguments.
func end(args *parser.Parser) error {
	if !args.End() {
		return problem(args, "%q is not expected here", args.Current().Val)
	}
	return nil
}

// until reads the body of a statement.
func until(p *parser.Parser, names ...string) (*nodes.Wrapper, *parser.Parser, error) {
	body, args, err := p.WrapUntil(names...)
	if err != nil && p.End() {
		err = problem(p, "the end of a statement is missing: %s", names[len(names)-1])
	}
	return body, args, err
}

func parseIf(p, args *parser.Parser) (nodes.ControlStructure, error) {
	n := &ifNode{node: node{args.Current(), "if"}}
	for {
		condition, err := expression(args)
		if err != nil {
			return nil, err
		}
		if err := end(args); err != nil {
			return nil, err
		}
		n.conditions = append(n.conditions, condition)
		body, tag, err := until(p, "elif", "else", "endif")
		if err != nil {
			return nil, err
		}
		n.bodies = append(n.bodies, body)
		if body.EndTag == "elif" {
			args = tag
			continue
		}
		if body.EndTag == "else" {
			if err := end(tag); err != nil {
				return nil, err
			}
			if body, tag, err = until(p, "endif"); err != nil {
				return nil, err
			}
			n.bodies = append(n.bodies, body)
		}
		return n, end(tag)
	}
}

func parseFor(p, args *parser.Parser) (nodes.ControlStructure, error) {
	n := &forNode{node: node{args.Current(), "for"}}
	parenthesis := args.Match(tokens.LeftParenthesis) != nil
	for {
		name := args.Match(tokens.Name)
		if name == nil {
			return nil, problem(args, "the name of a loop variable is missing")
		}
		n.targets = append(n.targets, name.Val)
		if args.Match(tokens.Comma) == nil {
			break
		}
	}
	if parenthesis && args.Match(tokens.RightParenthesis) == nil {
		return nil, problem(args, "a ) is missing")
	}
	if args.Match(tokens.In) == nil {
		return nil, problem(args, "the word in is missing")
	}
	var err error
	if n.list, err = expression(args); err != nil {
		return nil, err
	}
	if args.MatchName("if") != nil {
		if n.condition, err = expression(args); err != nil {
			return nil, err
		}
	}
	if err := end(args); err != nil {
		return nil, err
	}
	var tag *parser.Parser
	if n.body, tag, err = until(p, "else", "endfor"); err != nil {
		return nil, err
	}
	if err := end(tag); err != nil {
		return nil, err
	}
	if n.body.EndTag == "else" {
		if n.empty, tag, err = until(p, "endfor"); err != nil {
			return nil, err
		}
	}
	return n, end(tag)
}

func parseSet(p, args *parser.Parser) (nodes.ControlStructure, error) {
	n := &setNode{node: node{args.Current(), "set"}}
	name := args.Match(tokens.Name)
	if name == nil {
		return nil, problem(args, "the name of a variable is missing")
	}
	n.name = name.Val
	if args.Match(tokens.Dot) != nil {
		attribute := args.Match(tokens.Name)
		if attribute == nil {
			return nil, problem(args, "the name of an attribute is missing")
		}
		n.attribute = attribute.Val
	}
	if args.Match(tokens.Assign) == nil {
		for args.Match(tokens.Pipe) != nil {
			f, err := args.ParseFilter()
			if err != nil {
				return nil, err
			}
			n.filters = append(n.filters, f)
		}
		if err := end(args); err != nil {
			return nil, err
		}
		body, tag, err := until(p, "endset")
		if err != nil {
			return nil, err
		}
		n.body = body
		return n, end(tag)
	}
	var err error
	if n.value.value, err = expression(args); err != nil {
		return nil, err
	}
	if n.value.condition, n.value.alternative, err = args.ParseCondition(); err != nil {
		return nil, err
	}
	return n, end(args)
}

func parseWith(p, args *parser.Parser) (nodes.ControlStructure, error) {
	n := &withNode{node: node{args.Current(), "with"}}
	for !args.End() {
		name := args.Match(tokens.Name)
		if name == nil || args.Match(tokens.Assign) == nil {
			return nil, problem(args, "name=value is expected")
		}
		value, err := expression(args)
		if err != nil {
			return nil, err
		}
		n.names, n.values = append(n.names, name.Val), append(n.values, value)
		if args.Match(tokens.Comma) == nil {
			break
		}
	}
	if err := end(args); err != nil {
		return nil, err
	}
	body, tag, err := until(p, "endwith")
	if err != nil {
		return nil, err
	}
	n.body = body
	return n, end(tag)
}

func parseMacro(p, args *parser.Parser) (nodes.ControlStructure, error) {
	n := &macroNode{node: node{args.Current(), "macro"}}
	name := args.Match(tokens.Name)
	if name == nil || args.Match(tokens.LeftParenthesis) == nil {
		return nil, problem(args, "name(parameters) is expected")
	}
	n.name = name.Val
	for args.Match(tokens.RightParenthesis) == nil {
		param := args.Match(tokens.Name)
		if param == nil {
			return nil, problem(args, "the name of a parameter is missing")
		}
		var value nodes.Expression
		if args.Match(tokens.Assign) != nil {
			var err error
			if value, err = expression(args); err != nil {
				return nil, err
			}
		}
		n.params, n.defaults = append(n.params, param.Val), append(n.defaults, value)
		if args.Match(tokens.Comma) == nil {
			if args.Match(tokens.RightParenthesis) == nil {
				return nil, problem(args, "a ) is missing")
			}
			break
		}
	}
	if err := end(args); err != nil {
		return nil, err
	}
	body, tag, err := until(p, "endmacro")
	if err != nil {
		return nil, err
	}
	n.body = body
	return n, end(tag)
}

func parseFilter(p, args *parser.Parser) (nodes.ControlStructure, error) {
	n := &filterNode{node: node{args.Current(), "filter"}}
	for {
		f, err := args.ParseFilter()
		if err != nil {
			return nil, err
		}
		n.filters = append(n.filters, f)
		if args.Match(tokens.Pipe) == nil {
			break
		}
	}
	if err := end(args); err != nil {
		return nil, err
	}
	body, tag, err := until(p, "endfilter")
	if err != nil {
		return nil, err
	}
	n.body = body
	return n, end(tag)
}

func parseAutoescape(p, args *parser.Parser) (nodes.ControlStructure, error) {
	n := &autoescapeNode{node: node{args.Current(), "autoescape"}}
	mode := args.MatchName("true", "false", "True", "False")
	if mode == nil {
		return nil, problem(args, "true or false is expected")
	}
	n.on = strings.EqualFold(mode.Val, "true")
	if err := end(args); err != nil {
		return nil, err
	}
	body, tag, err := until(p, "endautoescape")
	if err != nil {
		return nil, err
	}
	n.body = body
	return n, end(tag)
}
