package config

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml/token"
)

// source is one file as far as it is needed to show where something stands. Lines of a file with secrets are cut after
// the key when they are stored, so no secret can be printed from here, whatever the problem is.
type source struct {
	doc    string // "config", "server" or "secrets"
	name   string // as shown: base name of the file
	path   string // absolute
	secret bool
	lines  []string
}

func newSource(name, path string, secret bool, data []byte) *source {
	s := &source{name: name, path: path, secret: secret}
	s.lines = strings.Split(strings.ReplaceAll(string(data), "\r\n", "\n"), "\n")
	if secret {
		for i, l := range s.lines {
			s.lines[i] = keyOnly(l)
		}
	}
	return s
}

// keyOnly keeps indentation and key of a line and drops the rest. A line without a key, such as the middle of a block of
// text, is dropped whole.
func keyOnly(line string) string {
	trimmed := strings.TrimLeft(line, " -")
	key, rest, ok := strings.Cut(trimmed, ":")
	if !ok || key == "" || strings.ContainsAny(key, "\"'{}[]#&*!|>%@` ") || (rest != "" && !strings.HasPrefix(rest, " ")) || len(key) > 64 {
		return ""
	}
	if strings.TrimSpace(rest) == "" {
		return line
	}
	return line[:len(line)-len(trimmed)] + key + ": …"
}

// tokenPos is the position of a token.
func (s *source) tokenPos(t *token.Token) position {
	if t == nil || t.Position == nil {
		return position{src: s, line: 1, column: 1, len: 1}
	}
	p := position{src: s, line: max(t.Position.Line, 1), column: max(t.Position.Column, 1)}
	p.len = max(utf8.RuneCountInString(t.Value), 1)
	switch t.Type {
	case token.SingleQuoteType, token.DoubleQuoteType:
		p.len += 2
	}
	return p
}

func (position) text(t *token.Token) string {
	if t == nil {
		return ""
	}
	return t.Value
}

// excerpt shows the line of a position with a caret below it. It is empty where there is no such line, and for the file as
// a whole.
func (s *source) excerpt(p position) string {
	if p.len < 1 || p.line < 1 || p.line > len(s.lines) {
		return ""
	}
	line := []rune(strings.TrimRight(strings.ReplaceAll(s.lines[p.line-1], "\t", " "), " "))
	if len(line) == 0 {
		return ""
	}
	from := min(p.column-1, len(line))
	width := max(min(p.len, len(line)-from), 1)
	// A very long line is cut around the place that matters.
	const most = 120
	cut := 0
	if len(line) > most {
		cut = max(0, min(from-most/4, len(line)-most))
		line = line[cut:min(len(line), cut+most)]
		from, width = from-cut, min(width, most-(from-cut))
	}
	for i, r := range line {
		if !unicode.IsPrint(r) {
			line[i] = '?' // a terminal must not act on what stands in a file
		}
	}
	number := fmt.Sprint(p.line)
	return fmt.Sprintf("%s | %s\n%s | %s%s", number, string(line), strings.Repeat(" ", len(number)),
		strings.Repeat(" ", max(from, 0)), "^"+strings.Repeat("~", max(width-1, 0)))
}

func validText(data []byte) bool { return utf8.Valid(data) }
