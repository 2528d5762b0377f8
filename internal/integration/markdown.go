package integration

import (
	"html/template"
	"net/url"
	"regexp"
	"strings"
)

// The operator's instructions are written in a small part of Markdown: paragraphs, headings, lists, fenced code blocks,
// `code`, **bold** and [links](https://…). Everything else is text. HTML in it is text as well.
//
// Variables are put in after parsing and are escaped for where they stand, so that a user name such as
// "**[x](https://evil)**" shows as it is written.

// block is one block of a parsed text.
type block struct {
	kind  blockKind
	level int      // of a heading: 2 to 4; the page has its own level 1
	lines []string // inline text; of code: raw lines; of lists: one per item
}

type blockKind int

const (
	blockParagraph blockKind = iota
	blockHeading
	blockBullets
	blockNumbers
	blockCode
)

var (
	headingLine = regexp.MustCompile(`^(#{1,3})[ \t]+(.+?)[ \t]*#*$`)
	bulletLine  = regexp.MustCompile(`^[-*+][ \t]+(.+)$`)
	numberLine  = regexp.MustCompile(`^[0-9]{1,9}[.)][ \t]+(.+)$`)
	variable    = regexp.MustCompile(`#\{([A-Za-z]+)\}`)
	inlineMark  = regexp.MustCompile("`[^`]+`" + `|\*\*[^*]+\*\*|\[[^\]\[]+\]\([^()\s]+\)`)
)

// parseMarkdown splits a text into blocks.
func parseMarkdown(text string) []block {
	var out []block
	open := false // whether the next line may continue the last block
	add := func(kind blockKind, level int, line string) {
		if last := len(out) - 1; open && last >= 0 && out[last].kind == kind && kind != blockHeading {
			out[last].lines = append(out[last].lines, line)
			return
		}
		out, open = append(out, block{kind: kind, level: level, lines: []string{line}}), kind != blockHeading
	}
	lines := strings.Split(strings.ReplaceAll(text, "\r\n", "\n"), "\n")
	for i := 0; i < len(lines); i++ {
		line := strings.TrimSpace(lines[i])
		switch {
		case line == "":
			open = false
		case strings.HasPrefix(line, "```"):
			code := block{kind: blockCode}
			for i++; i < len(lines) && !strings.HasPrefix(strings.TrimSpace(lines[i]), "```"); i++ {
				code.lines = append(code.lines, lines[i])
			}
			out, open = append(out, code), false
		case headingLine.MatchString(line):
			m := headingLine.FindStringSubmatch(line)
			add(blockHeading, len(m[1])+1, m[2])
		case bulletLine.MatchString(line):
			add(blockBullets, 0, bulletLine.FindStringSubmatch(line)[1])
		case numberLine.MatchString(line):
			add(blockNumbers, 0, numberLine.FindStringSubmatch(line)[1])
		case open && (out[len(out)-1].kind == blockBullets || out[len(out)-1].kind == blockNumbers):
			item := &out[len(out)-1].lines[len(out[len(out)-1].lines)-1]
			*item += " " + line // a wrapped item
		default:
			add(blockParagraph, 0, line)
		}
	}
	return out
}

// renderMarkdown turns blocks into HTML. Each piece of text goes through an escaping function, which is what makes the
// result safe to be a template.HTML.
func renderMarkdown(blocks []block, vars map[string]string) template.HTML {
	var b strings.Builder
	for _, bl := range blocks {
		switch bl.kind {
		case blockHeading:
			tag := "h" + string(rune('0'+bl.level))
			b.WriteString("<" + tag + ">" + inline(bl.lines[0], vars) + "</" + tag + ">\n")
		case blockBullets, blockNumbers:
			tag := "ul"
			if bl.kind == blockNumbers {
				tag = "ol"
			}
			b.WriteString("<" + tag + ">\n")
			for _, item := range bl.lines {
				b.WriteString("<li>" + inline(item, vars) + "</li>\n")
			}
			b.WriteString("</" + tag + ">\n")
		case blockCode:
			code := expand(strings.Join(bl.lines, "\n"), vars)
			b.WriteString(`<pre tabindex="0"><code>` + template.HTMLEscapeString(code) + "</code></pre>\n")
		default:
			b.WriteString("<p>" + inline(strings.Join(bl.lines, "\n"), vars) + "</p>\n")
		}
	}
	return template.HTML(b.String())
}

// inline renders the text of a line. Marks do not nest.
func inline(text string, vars map[string]string) string {
	var b strings.Builder
	for text != "" {
		at := inlineMark.FindStringIndex(text)
		if at == nil {
			break
		}
		b.WriteString(plain(text[:at[0]], vars))
		b.WriteString(marked(text[at[0]:at[1]], vars))
		text = text[at[1]:]
	}
	b.WriteString(plain(text, vars))
	return b.String()
}

// marked renders one mark.
func marked(m string, vars map[string]string) string {
	switch m[0] {
	case '`':
		return "<code>" + plain(m[1:len(m)-1], vars) + "</code>"
	case '*':
		return "<strong>" + plain(m[2:len(m)-2], vars) + "</strong>"
	}
	label, target, _ := strings.Cut(m[1:len(m)-1], "](")
	// In a URL a variable is one value of it, and cannot change where the link goes; the contact is the operator's own.
	target = variable.ReplaceAllStringFunc(target, func(v string) string {
		name := v[2 : len(v)-1]
		if name == "contact" {
			return vars[name]
		}
		return strings.ReplaceAll(url.QueryEscape(vars[name]), "+", "%20")
	})
	u, err := url.Parse(target)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http" && u.Scheme != "mailto") {
		return plain(m, vars) // not a link that a page of ours may have
	}
	return `<a href="` + template.HTMLEscapeString(u.String()) + `">` + plain(label, vars) + "</a>"
}

// plain is text with its variables, escaped.
func plain(text string, vars map[string]string) string {
	return template.HTMLEscapeString(expand(text, vars))
}

// expand puts the variables in. Unknown ones stay as they are written.
func expand(text string, vars map[string]string) string {
	return variable.ReplaceAllStringFunc(text, func(v string) string {
		if val, ok := vars[v[2:len(v)-1]]; ok {
			return val
		}
		return v
	})
}
