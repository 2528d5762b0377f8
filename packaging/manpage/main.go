// Command manpage prints the manual page ucloud(1), made from the help of the commands themselves:
//
//	go run ./packaging/manpage > ucloud.1
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"ucloud-im/internal/clitree"
)

func main() {
	root, err := clitree.Load(context.Background())
	if err == nil {
		err = write(os.Stdout, root)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "manpage:", err)
		os.Exit(1)
	}
}

// write prints the page in the language of man(7).
func write(w io.Writer, root *clitree.Command) error {
	var b strings.Builder
	b.WriteString(".\\\" Made by packaging/manpage from the help of the commands.\n.TH UCLOUD 1\n.SH NAME\n")
	b.WriteString("ucloud \\- gateway, server and operator commands of the UCloud Integration Module\n")
	b.WriteString(".SH SYNOPSIS\n.B ucloud\n.RI [ flags ]\n.I command\n.RI [ argument ...]\n.SH DESCRIPTION\n")
	paragraph(&b, root.Text)
	b.WriteString(".SH COMMANDS\n")
	root.Walk(func(c *clitree.Command) {
		if len(c.Path) == 0 || !c.Runs() {
			return
		}
		fmt.Fprintf(&b, ".SS %s\n", quote(escape(strings.TrimSuffix(c.Usage[0], " [flags]"))))
		paragraph(&b, c.Text)
		if len(c.Aliases) > 0 {
			paragraph(&b, "Also: "+strings.Join(c.Aliases, ", "))
		}
		flags(&b, own(c, root))
	})
	b.WriteString(".SH OPTIONS\nThese belong to every command.\n")
	flags(&b, root.Flags)
	b.WriteString(".SH EXIT STATUS\n")
	for _, e := range exitCodes {
		fmt.Fprintf(&b, ".TP\n.B %d\n%s\n", e.code, escape(e.text))
	}
	b.WriteString(`.SH FILES
.TP
.I /etc/ucloud
config.yml, server.yml and the public keys of UCloud/Core
.TP
.I /run/ucloud/ucloud.sock
socket on which the server answers commands
.SH ENVIRONMENT
.TP
.B UCLOUD_CONFIG_DIR
same as \-\-config\-dir
.TP
.B UCLOUD_LOG_LEVEL
overrides logs.level
.SH SEE ALSO
.BR sudo (8),
.BR systemd (1)
`)
	_, err := io.WriteString(w, b.String())
	return err
}

// exitCodes are those of package cli; TestExitCodes compares.
var exitCodes = []struct {
	code int
	text string
}{
	{0, "success; an empty list is success"},
	{1, "the operation failed"},
	{2, "wrong usage, or a confirmation is missing"},
	{3, "nothing matched"},
	{4, "several matched where one was needed"},
	{5, "conflict: it exists already, or has changed meanwhile"},
	{6, "some of several changes failed"},
	{7, "refused by policy"},
	{10, "status, doctor, config check: warnings"},
	{11, "status, doctor: errors"},
	{69, "the service cannot be reached, or is incompatible"},
	{75, "temporary failure: try again"},
	{77, "you may not do this"},
	{78, "the configuration is wrong"},
	{124, "no answer in time"},
	{130, "interrupted"},
}

// own are the flags that a command does not share with all others.
func own(c, root *clitree.Command) []clitree.Flag {
	var out []clitree.Flag
	for _, f := range c.Flags {
		if _, shared := root.Flag("--" + f.Long); !shared {
			out = append(out, f)
		}
	}
	return out
}

func flags(b *strings.Builder, list []clitree.Flag) {
	for _, f := range list {
		name := "--" + f.Long
		if f.Short != "" {
			name = "-" + f.Short + ", " + name
		}
		fmt.Fprintf(b, ".TP\n.B %s\n", strings.TrimSpace(escape(name+" "+f.Value)))
		b.WriteString(escape(f.Text) + "\n")
	}
}

// paragraph prints text whose indented lines stand as they are.
func paragraph(b *strings.Builder, text string) {
	b.WriteString(".PP\n")
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		switch {
		case line == "":
			b.WriteString(".PP\n")
		case strings.HasPrefix(line, " "):
			b.WriteString(".br\n" + escape(strings.TrimSpace(line)) + "\n")
		default:
			b.WriteString(escape(line) + "\n")
		}
	}
}

// escape keeps text from being read as a request or with typographic signs.
func escape(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`).Replace(s)
	if strings.HasPrefix(s, ".") {
		s = `\&` + s
	}
	return s
}

func quote(s string) string { return `"` + strings.ReplaceAll(s, `"`, `\(dq`) + `"` }
