// Package jobscript puts a batch script together: the directives that sbatch reads, the variables that the job sees, and the body.
//
// sbatch reads lines that begin with #SBATCH until the first line that is neither blank nor a comment. [Script.Text] therefore
// writes a command right after the directives, before anything that contains text from outside; from there on a #SBATCH line, even
// one at the beginning of a line within a quoted value, is text (a test asks the real sbatch). Directives and variables are sorted, so
// that two scripts can be compared (contract 24 section 10.7).
package jobscript

import (
	"maps"
	"slices"
	"strings"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/shell"
)

// MaxSize is the largest script. slurmctld refuses more than its MaxScriptSize, by default 4 MB.
const MaxSize = 2 << 20

// Script is what a batch script is made of.
type Script struct {
	Directives Directives
	// Exports are bound to data. Names and values are checked by Text.
	Exports map[string]string
	// Code are lines of bash that come from this module, after the exports.
	Code []string
	// Environment is bound after Code. The values are bash words, made with package shell.
	Environment map[string]string
	// Body is bash text.
	Body string
}

// Text writes the script.
func (s *Script) Text() ([]byte, error) {
	var b strings.Builder
	b.WriteString("#!/usr/bin/env -S bash --login\n")
	for _, line := range s.Directives.Lines() {
		b.WriteString(line + "\n")
	}
	// The command that ends sbatch's reading. It must stay the first one.
	b.WriteString("\n:  # sbatch reads no further\n")
	// sbatch --export=NONE sets it, and then srun would start programs without what this script exports and loads.
	b.WriteString("unset SLURM_EXPORT_ENV\n\n")
	for _, name := range slices.Sorted(maps.Keys(s.Exports)) {
		line, err := shell.Export(name, s.Exports[name])
		if err != nil {
			return nil, err
		}
		b.WriteString(line + "\n")
	}
	for _, line := range s.Code {
		b.WriteString(line + "\n")
	}
	if len(s.Environment) > 0 {
		b.WriteByte('\n')
	}
	for _, name := range slices.Sorted(maps.Keys(s.Environment)) {
		if !shell.IsName(name) {
			return nil, failure.New(failure.Invalid, "%q cannot be the name of an environment variable", name)
		}
		b.WriteString("export " + name + "=" + s.Environment[name] + "\n")
	}
	if strings.IndexByte(s.Body, 0) >= 0 {
		return nil, failure.New(failure.Invalid, "The script contains a NUL byte")
	}
	// Package shell leaves no carriage return in a word; what is left comes from files with DOS line breaks, which sbatch refuses.
	body := strings.ReplaceAll(s.Body, "\r\n", "\n")
	b.WriteString("\n" + body)
	if !strings.HasSuffix(body, "\n") {
		b.WriteByte('\n')
	}
	if b.Len() > MaxSize {
		return nil, failure.New(failure.Invalid, "The script would have %d bytes; at most %d are possible", b.Len(), MaxSize)
	}
	return []byte(b.String()), nil
}
