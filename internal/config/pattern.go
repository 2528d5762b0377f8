package config

import (
	"fmt"
	"slices"
	"strings"
)

// Pattern is a text with variables, #{name}; ##{ stands for a literal #{ (contract 40 section 2). It is parsed when the
// configuration is loaded, so an unknown variable or an open brace never shows up at run time.
type Pattern struct {
	text  string
	parts []patternPart
}

type patternPart struct {
	text     string // literal text, or the name of the variable
	variable bool
}

func parsePattern(text string, allowed []string) (Pattern, error) {
	p := Pattern{text: text}
	literal := func(s string) {
		if s == "" {
			return
		}
		if n := len(p.parts); n > 0 && !p.parts[n-1].variable {
			p.parts[n-1].text += s
			return
		}
		p.parts = append(p.parts, patternPart{text: s})
	}
	if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return Pattern{}, bad("write it on one line", "the pattern contains a control character")
	}
	for rest := text; rest != ""; {
		at := strings.Index(rest, "#{")
		if at < 0 {
			literal(rest)
			break
		}
		if at > 0 && rest[at-1] == '#' {
			literal(rest[:at-1] + "#{")
			rest = rest[at+2:]
			continue
		}
		literal(rest[:at])
		name, after, ok := strings.Cut(rest[at+2:], "}")
		if !ok {
			return Pattern{}, bad("close the variable with }, or write ##{ for the two characters themselves", "variable without } in %s", quote(text))
		}
		if allowed != nil && !slices.Contains(allowed, name) {
			remedy := "known here: " + strings.Join(allowed, ", ")
			if s := suggest(name, allowed); s != "" {
				remedy = fmt.Sprintf("did you mean %q? %s", s, remedy)
			}
			return Pattern{}, bad(remedy, "unknown variable %s", quote(name))
		}
		p.parts = append(p.parts, patternPart{text: name, variable: true})
		rest = after
	}
	return p, nil
}

// MustPattern parses a pattern that stands in the program itself. It panics if the text is wrong.
func MustPattern(text string) Pattern {
	p, err := parsePattern(text, nil)
	if err != nil {
		panic(err)
	}
	return p
}

// String is the text as written.
func (p Pattern) String() string { return p.text }

// IsSet tells whether there is a pattern.
func (p Pattern) IsSet() bool { return p.text != "" }

// Variables are the names of the variables, each once, in order of first use.
func (p Pattern) Variables() []string {
	var names []string
	for _, part := range p.parts {
		if part.variable && !slices.Contains(names, part.text) {
			names = append(names, part.text)
		}
	}
	return names
}

// FixedPrefix is the literal text before the first variable.
func (p Pattern) FixedPrefix() string {
	if len(p.parts) == 0 || p.parts[0].variable {
		return ""
	}
	return p.parts[0].text
}

// Expand puts values in for the variables, for results that become paths, account names or arguments. It is one pass:
// a value that looks like a variable stays what it is. A variable without a value is an error, and so is a value that
// is empty, is "." or contains "/", "..", NUL or a line break, or starts with "-": such a value could leave the
// directory or become an option. The variable home alone is a path itself and must be absolute and clean.
func (p Pattern) Expand(values map[string]string) (string, error) {
	return p.expand(values, func(name, value string) error {
		if name == "home" {
			clean, err := parsePath(value, "")
			if err != nil || string(clean) != value {
				return fmt.Errorf("the value %q of variable home is not a clean absolute path", value)
			}
			return nil
		}
		if !safeValue(value) {
			return fmt.Errorf("the value %q of variable %s cannot be used in a name or path", value, name)
		}
		return nil
	})
}

// ExpandText puts values in for the variables, for results that are only shown to people. Control characters become
// blanks; everything else is kept.
func (p Pattern) ExpandText(values map[string]string) (string, error) {
	out, err := p.expand(values, func(string, string) error { return nil })
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, out), err
}

func (p Pattern) expand(values map[string]string, check func(name, value string) error) (string, error) {
	var b strings.Builder
	for _, part := range p.parts {
		if !part.variable {
			b.WriteString(part.text)
			continue
		}
		value, ok := values[part.text]
		if !ok {
			return "", fmt.Errorf("no value for variable %s of pattern %q", part.text, p.text)
		}
		if err := check(part.text, value); err != nil {
			return "", err
		}
		b.WriteString(value)
	}
	return b.String(), nil
}

func safeValue(value string) bool {
	return value != "" && value != "." && !strings.HasPrefix(value, "-") &&
		!strings.Contains(value, "..") && !strings.ContainsAny(value, "/\x00\n\r")
}

// The variables of each place (contract 40 sections 6, 7 and 8).
var (
	locatorAlways  = []string{"locatorName", "categoryName", "providerId"}
	locatorUser    = []string{"ucloudUsername", "localUsername", "localPrimaryGroup", "uid"}
	locatorProject = []string{"ucloudProjectId", "ucloudProjectTitle", "localGroupName", "gid"}
	accountMore    = []string{"partition", "qos", "productCategory", "entityType"}
)

// patternVariables gives the variables for a place that a field's tag names.
func patternVariables(place string) []string {
	switch place {
	case "locator":
		return slices.Concat(locatorAlways, locatorUser, locatorProject)
	case "accountUser":
		return slices.Concat(locatorAlways, locatorUser, accountMore)
	case "accountProject":
		return slices.Concat(locatorAlways, locatorProject, accountMore)
	case "ssh":
		return []string{"home", "localUsername", "uid"}
	case "userNaming":
		return []string{"firstName", "lastName", "firstInitial", "ucloudUsername"}
	}
	return nil
}
