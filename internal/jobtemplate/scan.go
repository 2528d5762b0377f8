package jobtemplate

import (
	"slices"
	"sort"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// cleaned is a template as gonja's lexer gets it: string literals and raw text are numbers in quotes, there are no line breaks
// within delimiters, and every character there is one that the lexer knows.
type cleaned struct {
	text     strings.Builder
	literals []any // string, or Code for raw text
	// lines says from which offset of text on which line of the source begins.
	offsets []int
	numbers []int
}

// lineAt is the line of an offset of the cleaned text.
func (c *cleaned) lineAt(offset int) int {
	i := sort.SearchInts(c.offsets, offset+1) - 1
	if i < 0 {
		return 1
	}
	return c.numbers[i]
}

// scanner goes through the source once.
type scanner struct {
	cleaned
	m    *machine
	src  string
	pos  int
	line int
}

func (s *scanner) fail(format string, args ...any) { s.m.fail(s.line, format, args...) }

// mark notes that the text from here on stands on the current line.
func (s *scanner) mark() {
	s.offsets = append(s.offsets, s.text.Len())
	s.numbers = append(s.numbers, s.line)
}

// copy moves n bytes of the source to the text.
func (s *scanner) copy(n int) {
	for ; n > 0; n-- {
		c := s.src[s.pos]
		s.text.WriteByte(c)
		s.pos++
		if c == '\n' {
			s.line++
			s.mark()
		}
	}
}

// skip passes n bytes of the source.
func (s *scanner) skip(n int) {
	s.line += strings.Count(s.src[s.pos:s.pos+n], "\n")
	s.pos += n
	s.mark()
}

func (s *scanner) rest() string { return s.src[s.pos:] }

// clean prepares a template.
func (m *machine) clean(source string) *cleaned {
	source = strings.ReplaceAll(source, "\r\n", "\n")
	source = strings.ReplaceAll(source, "\r", "\n")
	s := &scanner{m: m, src: source, line: 1}
	s.mark()
	for s.pos < len(s.src) {
		i := strings.IndexByte(s.rest(), '{')
		if i < 0 {
			i = len(s.rest())
		}
		s.copy(i)
		switch rest := s.rest(); {
		case strings.HasPrefix(rest, "{#"):
			s.comment()
		case strings.HasPrefix(rest, "{{"):
			s.copy(2)
			s.region("}}")
		case strings.HasPrefix(rest, "{%"):
			if !s.raw() {
				s.copy(2)
				s.region("%}")
			}
		case rest != "":
			s.copy(1)
		}
	}
	return &s.cleaned
}

// comment writes an empty comment with the same control of white space.
func (s *scanner) comment() {
	end := strings.Index(s.rest()[2:], "#}")
	if end < 0 {
		s.fail("begins a comment that does not end")
	}
	body := s.rest()[2 : 2+end]
	left, right := strings.HasPrefix(body, "-"), strings.HasSuffix(body, "-")
	s.skip(end + 4)
	s.text.WriteString(map[bool]string{true: "{#-", false: "{#"}[left] + " " + map[bool]string{true: "-#}", false: "#}"}[right])
}

// tagAt takes {% name %} without arguments apart: its length, and whether it trims on either side.
func tagAt(text, name string) (length int, left, right, ok bool) {
	rest, found := strings.CutPrefix(text, "{%")
	if !found {
		return
	}
	rest, left = strings.CutPrefix(rest, "-")
	rest = strings.TrimPrefix(rest, "+")
	rest = strings.TrimLeft(rest, " \t\n")
	if rest, found = strings.CutPrefix(rest, name); !found {
		return
	}
	rest = strings.TrimLeft(rest, " \t\n")
	rest, right = strings.CutPrefix(rest, "-")
	rest = strings.TrimPrefix(rest, "+")
	if rest, found = strings.CutPrefix(rest, "%}"); !found {
		return
	}
	return len(text) - len(rest), left, right, true
}

// raw turns {% raw %} with its text into the output of a literal.
func (s *scanner) raw() bool {
	length, left, trimStart, ok := tagAt(s.rest(), "raw")
	if !ok {
		return false
	}
	body := s.rest()[length:]
	for at := 0; ; {
		i := strings.Index(body[at:], "{%")
		if i < 0 {
			s.fail("begins a raw block that does not end")
		}
		at += i
		endLength, trimEnd, right, ok := tagAt(body[at:], "endraw")
		if !ok {
			at += 2
			continue
		}
		text := body[:at]
		if trimStart {
			text = strings.TrimLeft(text, " \t\n")
		}
		if trimEnd {
			text = strings.TrimRight(text, " \t\n")
		}
		s.text.WriteString(map[bool]string{true: "{{-", false: "{{"}[left])
		s.literal(Code(text))
		s.text.WriteString(map[bool]string{true: "-}}", false: "}}"}[right])
		s.skip(length + at + endLength)
		return true
	}
}

// literal writes a reference to a literal.
func (s *scanner) literal(value any) {
	s.text.WriteString(" '" + strconv.Itoa(len(s.literals)) + "' ")
	s.literals = append(s.literals, value)
}

// operators are the characters of expressions besides names, numbers, strings and brackets.
const operators = "+-*/%~|.,:<>=!"

// region goes through an expression or a statement up to its end.
func (s *scanner) region(end string) {
	started := s.line
	if c := s.rest(); c != "" && (c[0] == '-' || c[0] == '+' && end == "%}") {
		s.copy(1)
	}
	var brackets []byte
	for {
		rest := s.rest()
		if rest == "" {
			s.m.fail(started, "has a %s without its end", map[string]string{"}}": "{{", "%}": "{%"}[end])
		}
		inBrace := len(brackets) > 0 && brackets[len(brackets)-1] == '}' && rest[0] == '}'
		if !inBrace {
			if strings.HasPrefix(rest, end) {
				break
			}
			if strings.HasPrefix(rest, "-"+end) || end == "%}" && strings.HasPrefix(rest, "+"+end) {
				s.copy(1)
				break
			}
		}
		c := rest[0]
		switch {
		case c == '\n':
			s.pos++
			s.line++
			s.text.WriteByte(' ')
			s.mark()
		case c == ' ' || c == '\t':
			s.copy(1)
		case c == '"' || c == '\'':
			s.stringLiteral(c)
		case strings.IndexByte("([{", c) >= 0:
			brackets = append(brackets, map[byte]byte{'(': ')', '[': ']', '{': '}'}[c])
			if len(brackets) > maxBrackets {
				s.fail("has more than %d nested brackets", maxBrackets)
			}
			s.copy(1)
		case strings.IndexByte(")]}", c) >= 0:
			if len(brackets) == 0 || brackets[len(brackets)-1] != c {
				s.fail("has an unexpected %q", c)
			}
			brackets = brackets[:len(brackets)-1]
			s.copy(1)
		case strings.IndexByte(operators, c) >= 0:
			if c == '!' && !strings.HasPrefix(rest, "!=") {
				s.fail("has an unexpected %q", c)
			}
			s.copy(1)
		default:
			s.word()
		}
	}
	if len(brackets) > 0 {
		s.fail("lacks a %q", brackets[len(brackets)-1])
	}
	s.copy(len(end))
}

// maxBrackets bounds the recursion of the parser.
const maxBrackets = 40

// word copies a name or number. Tests that take keyword arguments, which gonja's parser does not know, become filters.
func (s *scanner) word() {
	n := 0
	for n < len(s.rest()) {
		r, size := utf8.DecodeRuneInString(s.rest()[n:])
		if r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r) || r == utf8.RuneError && size == 1 {
			break
		}
		n += size
	}
	if n == 0 {
		r, _ := utf8.DecodeRuneInString(s.rest())
		s.fail("has an unexpected %q", r)
	}
	if s.rest()[:n] == "is" {
		if length, filter, ok := keywordTest(s.rest()[n:]); ok {
			s.text.WriteString("|" + filter)
			s.skip(n + length)
			return
		}
	}
	s.copy(n)
}

// keywordTest recognises the rest of "is match(" and of its kin.
func keywordTest(text string) (length int, filter string, ok bool) {
	rest := strings.TrimLeft(text, " \t\n")
	negated := ""
	if after, found := strings.CutPrefix(rest, "not"); found && after != strings.TrimLeft(after, " \t\n") {
		rest, negated = strings.TrimLeft(after, " \t\n"), "not"
	}
	for _, name := range []string{"match", "search"} {
		after, found := strings.CutPrefix(rest, name)
		if found && strings.HasPrefix(strings.TrimLeft(after, " \t\n"), "(") {
			return len(text) - len(after), testFilter + negated + name, true
		}
	}
	return 0, "", false
}

// testFilter is how the names of the filters begin that stand for tests.
const testFilter = "__is_"

// stringLiteral reads a string with Python's escapes.
func (s *scanner) stringLiteral(quote byte) {
	var b strings.Builder
	line := s.line
	i := 1
	rest := s.rest()
	for {
		if i >= len(rest) {
			s.m.fail(line, "has a string that does not end")
		}
		c := rest[i]
		if c == quote {
			break
		}
		if c != '\\' || i+1 >= len(rest) {
			b.WriteByte(c)
			i++
			continue
		}
		i++
		switch e := rest[i]; e {
		case 'n':
			b.WriteByte('\n')
		case 't':
			b.WriteByte('\t')
		case 'r':
			b.WriteByte('\r')
		case '\\', '\'', '"':
			b.WriteByte(e)
		case '\n': // a line break that is none
		case 'x', 'u', 'U':
			digits := map[byte]int{'x': 2, 'u': 4, 'U': 8}[e]
			if len(rest) <= i+digits {
				s.m.fail(line, "has an incomplete escape in a string")
			}
			n, err := strconv.ParseUint(rest[i+1:i+1+digits], 16, 32)
			if err != nil || n > unicode.MaxRune || n == 0 {
				s.m.fail(line, "has a wrong escape in a string")
			}
			b.WriteRune(rune(n))
			i += digits
		default: // as Python: the backslash stays
			b.WriteByte('\\')
			b.WriteByte(e)
		}
		i++
	}
	if slices.Contains([]byte(b.String()), 0) {
		s.m.fail(line, "has a NUL byte in a string")
	}
	s.literal(b.String())
	s.skip(i + 1)
}
