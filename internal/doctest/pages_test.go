package doctest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// root of the repository, seen from this package.
const root = "../.."

// page is one Markdown file.
type page struct {
	name   string // from the root
	text   string
	blocks []block
	prose  string // the text without blocks
}

// block is a fenced block.
type block struct {
	kind string // the word behind the fence
	line int    // of the fence
	text string
}

// pages reads all documents.
func pages(t *testing.T) []page {
	t.Helper()
	var out []page
	read := func(name string) {
		data, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, split(t, name, string(data)))
	}
	read("README.md")
	read("CONTRIBUTING.md")
	read("SECURITY.md")
	err := filepath.WalkDir(filepath.Join(root, "docs"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, ".md") {
			name, rel := filepath.Rel(root, path)
			if rel != nil {
				return rel
			}
			read(name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 10 {
		t.Fatalf("only %d pages found", len(out))
	}
	return out
}

// split takes blocks and prose apart.
func split(t *testing.T, name, text string) page {
	t.Helper()
	p := page{name: name, text: text}
	var prose strings.Builder
	var open *block
	number := 0
	for line := range strings.Lines(text) {
		number++
		kind, fence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case fence && open == nil:
			open = &block{kind: kind, line: number}
		case fence:
			p.blocks = append(p.blocks, *open)
			open = nil
		case open != nil:
			open.text += line
		default:
			prose.WriteString(line)
		}
	}
	if open != nil {
		t.Errorf("%s:%d: the block does not end", name, open.line)
	}
	p.prose = prose.String()
	return p
}

var (
	link     = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	codeSpan = regexp.MustCompile("`([^`\n]+)`")
)

// spans are the texts in `code`.
func (p page) spans() []string {
	var out []string
	for _, m := range codeSpan.FindAllStringSubmatch(p.prose, -1) {
		out = append(out, m[1])
	}
	return out
}

func TestLinks(t *testing.T) {
	t.Parallel()
	seen := 0
	for _, p := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(p.prose, -1) {
			target, _, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") || target == "" {
				continue
			}
			seen++
			if _, err := os.Stat(filepath.Join(root, filepath.Dir(p.name), target)); err != nil {
				t.Errorf("%s: link to %s: %v", p.name, m[1], err)
			}
		}
	}
	if seen < 10 {
		t.Errorf("only %d links found", seen)
	}
}

// TestIndex: every page can be found from the index.
func TestIndex(t *testing.T) {
	t.Parallel()
	index, err := os.ReadFile(filepath.Join(root, "docs/index.md"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(root, "docs/*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if name := filepath.Base(f); name != "index.md" && !strings.Contains(string(index), "("+name+")") {
			t.Errorf("docs/index.md does not mention %s", name)
		}
	}
	decisions, err := filepath.Glob(filepath.Join(root, "docs/decisions/0*.md"))
	if err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadFile(filepath.Join(root, "docs/decisions/README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range decisions {
		if !strings.Contains(string(list), "("+filepath.Base(f)+")") {
			t.Errorf("docs/decisions/README.md does not mention %s", filepath.Base(f))
		}
	}
}

// TestPaths: files of the repository that are named in code exist. What is installed elsewhere begins with a slash.
func TestPaths(t *testing.T) {
	t.Parallel()
	inRepository := regexp.MustCompile(`^(cmd|internal|docs|packaging|examples|scripts|test|\.ci)/[A-Za-z0-9_./-]+$`)
	below := regexp.MustCompile(`^[a-z]+/[a-z_]+\.go$`) // "launcher/doc.go" in the architecture
	for _, p := range pages(t) {
		for _, span := range p.spans() {
			name := strings.TrimSuffix(span, "/")
			switch {
			case inRepository.MatchString(name):
			case below.MatchString(name):
				name = "internal/" + name
			default:
				continue
			}
			if _, err := os.Stat(filepath.Join(root, name)); err != nil {
				t.Errorf("%s names %s: %v", p.name, span, err)
			}
		}
	}
}

// TestPackages: the table of packages has the rows that internal/archtest enforces, and the map of the repository names
// nothing that is not there.
func TestPackages(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(root, "docs/architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	rules, err := os.ReadFile(filepath.Join(root, "internal/archtest/archtest_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(rules), "var layers = [][]string{\n")
	layers, _, end := strings.Cut(rest, "\n}\n")
	if !found || !end {
		t.Fatal("archtest has no table of layers")
	}
	_, table, found := strings.Cut(string(text), "| Row | Package | Is |")
	if !found {
		t.Fatal("docs/architecture.md has no table of packages")
	}
	rows := strings.Split(table, "\n| ")
	row := ""
	rowOf := map[string]string{}
	for _, line := range rows {
		number, cells, _ := strings.Cut(line, "|")
		if n := strings.TrimSpace(number); n != "" {
			row = n
		}
		names, _, _ := strings.Cut(cells, "|")
		for _, m := range codeSpan.FindAllStringSubmatch(names, -1) {
			rowOf[m[1]] = row
		}
	}
	quoted := regexp.MustCompile(`"([a-z]+)"`)
	number := 0
	for line := range strings.Lines(layers) {
		number++
		for _, m := range quoted.FindAllStringSubmatch(line, -1) {
			if rowOf[m[1]] != strconv.Itoa(number) {
				t.Errorf("docs/architecture.md has the package %s in row %q, archtest in layer %d", m[1], rowOf[m[1]], number)
			}
		}
	}
	overview, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`internal/([a-z]+)`).FindAllStringSubmatch(string(overview), -1) {
		if matches, err := filepath.Glob(filepath.Join(root, "internal", m[1]+"*")); err != nil || len(matches) == 0 {
			t.Errorf("README.md names internal/%s, which does not exist", m[1])
		}
	}
}
