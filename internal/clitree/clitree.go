// Package clitree describes the commands of ucloud as their own help does, so that the manual page and the tests of the
// documentation come from the definitions that run and cannot drift away from them. It is for tools and tests; no
// program of the service links it.
package clitree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"ucloud-im/internal/cli"
)

// Command is one command with what its help says.
type Command struct {
	Path    []string // words after "ucloud"; empty for ucloud itself
	Text    string   // what it does: the first lines of the help
	Usage   []string // forms, such as "ucloud users list [flags]"
	Aliases []string // other words for the last word of Path
	Flags   []Flag   // own flags, then those of all commands
	Sub     []*Command
}

// Flag is one flag of a command.
type Flag struct {
	Long  string // without dashes
	Short string // without dash, empty if there is none
	Value string // kind of value, empty for a switch
	Text  string
}

// Load reads the help of ucloud and of all commands below it.
func Load(ctx context.Context) (*Command, error) { return load(ctx, nil) }

func load(ctx context.Context, path []string) (*Command, error) {
	var out, errOut bytes.Buffer
	code := cli.Run(ctx, append(append([]string{}, path...), "--help"), func(string) string { return "" }, strings.NewReader(""), &out, &errOut,
		cli.Hooks{})
	if code != cli.ExitOK {
		return nil, fmt.Errorf("help of %q: exit code %d: %s", strings.Join(path, " "), code, errOut.String())
	}
	c, names := parse(out.String())
	if len(c.Usage) == 0 {
		return nil, errors.New("help of " + strings.Join(path, " ") + " shows no usage")
	}
	c.Path = path
	for _, name := range names {
		sub, err := load(ctx, append(append([]string{}, path...), name))
		if err != nil {
			return nil, err
		}
		c.Sub = append(c.Sub, sub)
	}
	return c, nil
}

// parse reads the text of one help: paragraphs under headings that end in a colon.
func parse(help string) (c *Command, subcommands []string) {
	c = &Command{}
	section := ""
	var text []string
	for line := range strings.Lines(help) {
		line = strings.TrimRight(line, "\n")
		heading := strings.HasSuffix(line, ":") && !strings.HasPrefix(line, " ")
		switch {
		case heading:
			section = strings.TrimSuffix(line, ":")
		case section == "":
			text = append(text, line)
		case strings.TrimSpace(line) == "" || !strings.HasPrefix(line, "  "):
		case section == "Usage":
			c.Usage = append(c.Usage, strings.TrimSpace(line))
		case section == "Aliases":
			// The first one is the command's own name.
			c.Aliases = strings.Split(strings.TrimSpace(line), ", ")[1:]
		case section == "Available Commands":
			name, _, _ := strings.Cut(strings.TrimSpace(line), " ")
			subcommands = append(subcommands, name)
		case section == "Flags" || section == "Global Flags":
			if f, ok := parseFlag(line); ok {
				c.Flags = append(c.Flags, f)
			}
		}
	}
	c.Text = strings.TrimSpace(strings.Join(text, "\n"))
	return c, subcommands
}

// parseFlag reads a line such as "  -o, --output string   what it does".
func parseFlag(line string) (f Flag, ok bool) {
	spec, text, _ := strings.Cut(strings.TrimSpace(line), "   ")
	f.Text = strings.TrimSpace(text)
	if short, rest, found := strings.Cut(spec, ", "); found {
		f.Short, spec = strings.TrimPrefix(short, "-"), rest
	}
	name, value, _ := strings.Cut(spec, " ")
	f.Long, ok = strings.CutPrefix(name, "--")
	f.Value = strings.TrimSpace(value)
	return f, ok
}

// Find follows words down the tree, aliases included, as far as they name commands. The rest are arguments.
func (c *Command) Find(words []string) (found *Command, rest []string) {
	for i, word := range words {
		next := c.child(word)
		if next == nil {
			return c, words[i:]
		}
		c = next
	}
	return c, nil
}

func (c *Command) child(word string) *Command {
	for _, s := range c.Sub {
		if s.Path[len(s.Path)-1] == word {
			return s
		}
		for _, alias := range s.Aliases {
			if alias == word {
				return s
			}
		}
	}
	return nil
}

// Flag finds a flag by its long or short name, as it is typed.
func (c *Command) Flag(typed string) (Flag, bool) {
	for _, f := range c.Flags {
		if typed == "--"+f.Long || f.Short != "" && typed == "-"+f.Short {
			return f, true
		}
	}
	return Flag{}, false
}

// Runs tells whether the command does something itself, and is not only a word before others. The help cannot say which
// of those with others below them do, so they are named here; TestGroups compares with what happens.
func (c *Command) Runs() bool {
	if len(c.Sub) == 0 {
		return true
	}
	name := strings.Join(c.Path, " ")
	return name == "gateway" || name == "me"
}

// Walk calls f for the command and all below it.
func (c *Command) Walk(f func(*Command)) {
	f(c)
	for _, s := range c.Sub {
		s.Walk(f)
	}
}
