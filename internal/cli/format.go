package cli

import (
	"bytes"
	"cmp"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// formats are the values of --output.
var formats = []string{"table", "wide", "json", "jsonl", "yaml", "csv", "name"}

func validFormat(s string) bool { return slices.Contains(formats, s) }

// column is one column of a table.
type column[T any] struct {
	name string // as in --columns and --sort; the header is in capitals
	get  func(T) string
	less func(a, b T) int // nil: compare the texts
	wide bool             // only with --output wide, csv or --columns
}

// table describes how rows of a kind are printed.
type table[T any] struct {
	noun    string         // of the schema, such as "users"
	key     func(T) string // for --output name
	columns []column[T]
}

// listFlags are the flags that all lists have (contract 41 CLI-7).
type listFlags struct {
	limit    int
	sort     string
	columns  string
	noHeader bool
}

func addListFlags(cmd *cobra.Command) *listFlags {
	l := &listFlags{}
	f := cmd.Flags()
	f.IntVar(&l.limit, "limit", 200, "print at most this many rows; 0 = all")
	f.StringVar(&l.sort, "sort", "", "sort by a column, NAME or NAME:desc")
	f.StringVar(&l.columns, "columns", "", "print only these columns, separated by commas")
	f.BoolVar(&l.noHeader, "no-header", false, "no header line")
	return l
}

// envelope is the JSON of a list (contract 41 section 4).
type envelope[T any] struct {
	Schema      string    `json:"schema"`
	GeneratedAt time.Time `json:"generatedAt"`
	Total       int       `json:"total"`
	Truncated   bool      `json:"truncated"`
	Items       []T       `json:"items"`
}

// itemEnvelope is the JSON of one object.
type itemEnvelope[T any] struct {
	Schema string `json:"schema"`
	Item   T      `json:"item"`
}

func schemaName(noun, verb string) string { return "ucloud.cli/" + noun + "." + verb + "/1" }

// check refuses wrong list flags before anything is asked.
func (t table[T]) check(l *listFlags) error {
	if l.limit < 0 {
		return usagef("--limit must not be negative")
	}
	if name, _, _ := strings.Cut(l.sort, ":"); l.sort != "" {
		if t.find(name) == nil {
			return usagef("--sort: there is no column %q: use one of %s", name, strings.Join(t.names(), ", "))
		}
		if _, dir, ok := strings.Cut(l.sort, ":"); ok && dir != "desc" && dir != "asc" {
			return usagef("--sort: %q is neither asc nor desc", dir)
		}
	}
	for name := range strings.SplitSeq(l.columns, ",") {
		if l.columns != "" && t.find(name) == nil {
			return usagef("--columns: there is no column %q: use some of %s", name, strings.Join(t.names(), ", "))
		}
	}
	return nil
}

func (t table[T]) find(name string) *column[T] {
	for i := range t.columns {
		if strings.EqualFold(t.columns[i].name, strings.TrimSpace(name)) {
			return &t.columns[i]
		}
	}
	return nil
}

func (t table[T]) names() (names []string) {
	for _, c := range t.columns {
		names = append(names, c.name)
	}
	return names
}

// print prints a list. Filters have been applied; sorting comes before the limit.
func (t table[T]) print(a *app, l *listFlags, rows []T) error {
	if name, dir, _ := strings.Cut(l.sort, ":"); name != "" {
		c := t.find(name)
		less := c.less
		if less == nil {
			less = func(x, y T) int { return cmp.Compare(c.get(x), c.get(y)) }
		}
		slices.SortStableFunc(rows, func(x, y T) int {
			if dir == "desc" {
				return less(y, x)
			}
			return less(x, y)
		})
	}
	total := len(rows)
	if l.limit > 0 && total > l.limit {
		rows = rows[:l.limit]
	}
	if rows == nil {
		rows = []T{} // a list is never null
	}
	if len(rows) < total {
		a.note("%d of %d rows are shown; --limit 0 shows all", len(rows), total)
	}
	switch a.output {
	case "json", "yaml":
		return a.encode(envelope[T]{
			Schema: schemaName(t.noun, "list"), GeneratedAt: a.hooks.Now().UTC().Truncate(time.Second),
			Total: total, Truncated: len(rows) < total, Items: rows,
		})
	case "jsonl":
		enc := json.NewEncoder(a.stdout)
		for _, r := range rows {
			if err := enc.Encode(r); err != nil {
				return err
			}
		}
		return nil
	case "name":
		for _, r := range rows {
			if _, err := fmt.Fprintln(a.stdout, clean(t.key(r))); err != nil {
				return err
			}
		}
		return nil
	}
	return t.printColumns(a, l, rows)
}

func (t table[T]) printColumns(a *app, l *listFlags, rows []T) error {
	cols := t.chosen(a, l)
	var lines [][]string
	if !l.noHeader {
		var head []string
		for _, c := range cols {
			head = append(head, strings.ToUpper(c.name))
		}
		lines = append(lines, head)
	}
	for _, r := range rows {
		line := make([]string, len(cols))
		for i, c := range cols {
			line[i] = clean(c.get(r))
		}
		lines = append(lines, line)
	}
	if a.output == "csv" {
		w := csv.NewWriter(a.stdout)
		return w.WriteAll(lines)
	}
	return a.align(lines)
}

// chosen are the columns to print.
func (t table[T]) chosen(a *app, l *listFlags) (cols []column[T]) {
	if l.columns != "" {
		for name := range strings.SplitSeq(l.columns, ",") {
			cols = append(cols, *t.find(name))
		}
		return cols
	}
	for _, c := range t.columns {
		if !c.wide || a.output == "wide" || a.output == "csv" {
			cols = append(cols, c)
		}
	}
	return cols
}

// align prints lines as columns: padded for people, separated by tabs for programs (contract 41 CLI-8).
func (a *app) align(lines [][]string) error {
	if !isTerminal(a.stdout) {
		var b strings.Builder
		for _, l := range lines {
			b.WriteString(strings.Join(l, "\t") + "\n")
		}
		_, err := io.WriteString(a.stdout, b.String())
		return err
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, l := range lines {
		if _, err := fmt.Fprintln(w, strings.TrimRight(strings.Join(l, "\t"), "\t")); err != nil {
			return err
		}
	}
	return w.Flush()
}

// pairs prints names and values below each other.
func (a *app) pairs(lines [][2]string) error {
	out := make([][]string, 0, len(lines))
	for _, l := range lines {
		if l[1] != "" {
			out = append(out, []string{l[0], clean(l[1])})
		}
	}
	return a.align(out)
}

// item prints one object: as a document, or by text for people.
func item[T any](a *app, noun, verb string, key string, v T, text func() error) error {
	switch a.output {
	case "json", "yaml":
		return a.encode(itemEnvelope[T]{Schema: schemaName(noun, verb), Item: v})
	case "jsonl":
		return json.NewEncoder(a.stdout).Encode(v)
	case "name":
		_, err := fmt.Fprintln(a.stdout, clean(key))
		return err
	}
	return text()
}

// encode prints a document as JSON or YAML. YAML is made of the JSON, so that both have the same names and order.
func (a *app) encode(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if a.output == "yaml" {
		if raw, err = yaml.JSONToYAML(raw); err != nil {
			return err
		}
		_, err = a.stdout.Write(raw)
		return err
	}
	var b bytes.Buffer
	if isTerminal(a.stdout) {
		if err := json.Indent(&b, raw, "", "  "); err != nil {
			return err
		}
	} else {
		b.Write(raw)
	}
	b.WriteByte('\n')
	_, err = b.WriteTo(a.stdout)
	return err
}

// clean makes a text safe for a terminal and for a cell: no control characters, no line breaks, no characters that
// change the direction of what follows (a name could otherwise be made to look like another one).
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case unicode.IsControl(r), unicode.Is(unicode.Bidi_Control, r), r == unicode.ReplacementChar:
			return '?'
		}
		return r
	}, s)
}

// localTime shows a time in the local zone (contract 41 CLI-12).
func localTime(t *time.Time) string {
	if t == nil || t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04")
}

// isTerminal tells whether a stream is a terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// coloured tells whether a stream gets colours.
func (a *app) coloured(stream io.Writer) bool {
	return !a.noColor && a.getenv("NO_COLOR") == "" && a.getenv("TERM") != "dumb" && isTerminal(stream)
}

// colour wraps a text in a colour where colours are wanted.
func (a *app) colour(code, s string) string {
	if !a.coloured(a.stdout) {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}
