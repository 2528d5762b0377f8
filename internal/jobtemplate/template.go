package jobtemplate

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"ucloud-im/internal/failure"
)

// Code is bash text, which is printed as it is. Everything else is data and is quoted.
type Code string

// Function is a function that templates can call. Arguments are nil, bool, int64, float64, json.Number, string, Code, []any or
// map[string]any; so is the result, which may also be an int.
type Function func(ctx context.Context, args []any) (any, error)

// Limits bound one rendering.
type Limits struct {
	Source int           // bytes of the template
	Output int           // bytes of the result
	Steps  int           // nodes evaluated, and elements visited
	Bytes  int           // allocated for values, all together
	Depth  int           // of nested expressions, blocks and macro calls
	Time   time.Duration // from the beginning of Render
}

// DefaultLimits are what a real application never comes near to.
var DefaultLimits = Limits{Source: 512 << 10, Output: 1 << 20, Steps: 1_000_000, Bytes: 32 << 20, Depth: 200, Time: 2 * time.Second}

// Options are the surroundings of a template.
type Options struct {
	// Variables are nil, bool, int, int64, float64, json.Number, string, Code, []string, []any and map[string]any.
	Variables map[string]any
	Functions map[string]Function
	// Raw turns automatic quoting off, for values that are quoted as a whole afterwards.
	Raw    bool
	Limits Limits // zero fields are those of DefaultLimits
	// Name is what the template is called in errors, "the template" if empty.
	Name string
	// Origin translates a line into where it comes from, for templates that were put together. Nil if they were not.
	Origin func(line int) (name string, original int)
}

// Render renders a template. Errors in it are of kind Invalid and name the line.
func Render(ctx context.Context, source string, o Options) (text string, err error) {
	l := o.Limits.withDefaults()
	timed, cancel := context.WithTimeout(ctx, l.Time)
	defer cancel()
	m := &machine{ctx: timed, caller: ctx, limits: l, options: o, quote: !o.Raw, undefined: map[string]bool{}}
	defer m.recovered(&err)
	m.load(source)
	m.globals()
	m.out = &strings.Builder{}
	m.nodes(m.root.Nodes)
	return m.out.String(), nil
}

// recovered is deferred; it turns what was thrown into an error.
func (m *machine) recovered(err *error) {
	switch r := recover().(type) {
	case nil:
	case stop:
		*err = m.explain(r)
	default:
		// A bug here or in the parser must not end the process: the template is a user's.
		*err = failure.Wrap(fmt.Errorf("panic: %v", r), failure.Invalid, "%s cannot be rendered", sentence(m.name()))
	}
}

// load reads the source.
func (m *machine) load(source string) {
	if len(source) > m.limits.Source {
		m.fail(0, "is longer than %d bytes", m.limits.Source)
	}
	m.parse(source)
}

func (l Limits) withDefaults() Limits {
	d := DefaultLimits
	set := func(v *int, def int) {
		if *v == 0 {
			*v = def
		}
	}
	set(&l.Source, d.Source)
	set(&l.Output, d.Output)
	set(&l.Steps, d.Steps)
	set(&l.Bytes, d.Bytes)
	set(&l.Depth, d.Depth)
	if l.Time == 0 {
		l.Time = d.Time
	}
	return l
}

// stop ends a rendering. It is thrown as a panic within the package, as in text/template.
type stop struct {
	line    int // 0 if none
	message string
	cause   error // an error of a function, passed on
}

// fail ends the rendering. The message continues a sentence that begins with the place.
func (m *machine) fail(line int, format string, args ...any) {
	panic(stop{line: line, message: fmt.Sprintf(format, args...)})
}

func (m *machine) name() string {
	if m.options.Name != "" {
		return m.options.Name
	}
	return "the template"
}

// explain makes the error for the user.
func (m *machine) explain(s stop) error {
	place, line := m.name(), s.line
	if line > 0 && m.options.Origin != nil {
		place, line = m.options.Origin(line)
	}
	where := sentence(place)
	message := s.message
	if line > 0 {
		where = fmt.Sprintf("Line %d of %s", line, place)
	}
	if s.cause != nil {
		message = "failed: " + failure.Why(s.cause)
	}
	if len(m.undefined) > 0 {
		const most = 10
		names := slices.Sorted(maps.Keys(m.undefined))
		message += " (undefined: " + strings.Join(names[:min(most, len(names))], ", ") + ")"
	}
	const longest = 600
	text := where + " " + message
	if len(text) > longest {
		text = strings.ToValidUTF8(text[:longest], "") + "…"
	}
	kind := failure.Invalid
	if s.cause != nil && failure.KindOf(s.cause) != failure.Internal {
		kind = failure.KindOf(s.cause)
	}
	if s.cause != nil {
		return failure.Wrap(s.cause, kind, "%s", text)
	}
	return failure.New(kind, "%s", text)
}

func sentence(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// True tells whether a value that a function got counts as true, as in {% if %}.
func True(v any) bool {
	switch v := v.(type) {
	case json.Number:
		f, err := v.Float64()
		return err != nil || f != 0
	case []any:
		return len(v) > 0
	case map[string]any:
		return len(v) > 0
	}
	return truth(v)
}

// Check reads a template without rendering it.
func Check(source string) (err error) {
	m := &machine{ctx: context.Background(), caller: context.Background(), limits: Limits{}.withDefaults(), undefined: map[string]bool{}}
	defer m.recovered(&err)
	m.load(source)
	return nil
}
