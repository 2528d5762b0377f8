package jobtemplate

import (
	"slices"
	"sort"
	"strings"

	"ucloud-im/internal/failure"
)

// Part is a piece of template text with a name for errors, such as "the workflow".
type Part struct{ Name, Text string }

// Snippet is a function of the pre-processor: it gives template text. name says where that text comes from.
type Snippet func(args []string) (text, name string, err error)

// Expanded is a template put together from parts and snippets.
type Expanded struct {
	Text    string
	origins []origin
}

// origin says where the lines from a place on come from.
type origin struct {
	line     int // in Text
	name     string
	original int
}

// Origin translates a line of Text, for [Options].
func (e *Expanded) Origin(line int) (name string, original int) {
	i := sort.Search(len(e.origins), func(i int) bool { return e.origins[i].line > line }) - 1
	if i < 0 {
		return "the template", line
	}
	o := e.origins[i]
	return o.name, o.original + line - o.line
}

// Expand joins the parts with line breaks and replaces {- name -} and {- name("arg", "arg") -} (contract 24 section 6.1). What a
// snippet gives is not looked through again.
func Expand(parts []Part, snippets map[string]Snippet) (*Expanded, error) {
	e := &Expanded{}
	var b strings.Builder
	line := 1
	add := func(name, text string, original int) {
		e.origins = append(e.origins, origin{line, name, original})
		b.WriteString(text)
		line += strings.Count(text, "\n")
	}
	for i, part := range parts {
		text := strings.ReplaceAll(part.Text, "\r\n", "\n")
		if i > 0 && !strings.HasSuffix(b.String(), "\n") {
			b.WriteByte('\n')
			line++
		}
		original := 1
		for {
			at, length, name, args := nextCall(text)
			if at < 0 {
				add(part.Name, text, original)
				break
			}
			add(part.Name, text[:at], original)
			original += strings.Count(text[:at], "\n")
			snippet, ok := snippets[name]
			if !ok {
				return nil, failure.New(failure.Invalid, "Line %d of %s uses {- %s -}, which does not exist", original, part.Name, name)
			}
			inserted, from, err := snippet(args)
			if err != nil {
				return nil, failure.Wrap(err, failure.KindOf(err), "Line %d of %s: %s", original, part.Name, failure.Why(err))
			}
			add(from, inserted, 1)
			if b.Len() > DefaultLimits.Source {
				return nil, failure.New(failure.Invalid, "The template is longer than %d bytes", DefaultLimits.Source)
			}
			original += strings.Count(text[at:at+length], "\n")
			text = text[at+length:]
		}
	}
	e.Text = b.String()
	return e, nil
}

// nextCall finds the first call of the pre-processor. at is negative if there is none.
func nextCall(text string) (at, length int, name string, args []string) {
	for from := 0; ; {
		i := strings.Index(text[from:], "{- ")
		if i < 0 {
			return -1, 0, "", nil
		}
		at = from + i
		from = at + len("{- ")
		if at > 0 && text[at-1] == '{' {
			continue // {{- is Jinja's
		}
		rest := strings.TrimLeft(text[from:], " ")
		n := 0
		for n < len(rest) && (rest[n] == '_' || 'a' <= rest[n] && rest[n] <= 'z' || 'A' <= rest[n] && rest[n] <= 'Z' || '0' <= rest[n] && rest[n] <= '9') {
			n++
		}
		name, rest = rest[:n], strings.TrimLeft(rest[n:], " ")
		args = nil
		ok := name != ""
		if strings.HasPrefix(rest, "(") {
			args, rest, ok = literals(rest[1:])
		}
		rest = strings.TrimLeft(rest, " ")
		if after, found := strings.CutPrefix(rest, "-}"); ok && found {
			return at, len(text) - at - len(after), name, args
		}
	}
}

// literals reads double-quoted texts up to the closing parenthesis.
func literals(text string) (args []string, rest string, ok bool) {
	rest = strings.TrimLeft(text, " ")
	for !strings.HasPrefix(rest, ")") {
		var found bool
		if rest, found = strings.CutPrefix(rest, `"`); !found {
			return nil, text, false
		}
		arg, after, found := strings.Cut(rest, `"`)
		if !found || strings.Contains(arg, "\n") {
			return nil, text, false
		}
		args = append(args, arg)
		rest = strings.TrimLeft(after, " ")
		if after, found = strings.CutPrefix(rest, ","); found {
			rest = strings.TrimLeft(after, " ")
		} else if !strings.HasPrefix(rest, ")") {
			return nil, text, false
		}
	}
	return args, rest[1:], true
}

// Literal writes text as a string of the template language.
func Literal(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case slices.Contains([]rune(`"\`), r):
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
