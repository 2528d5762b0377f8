// Package softwarefile reads the provider's software from the directory "applications" of the configuration (contract 22 section 10).
// A bad document costs that document only: it is reported, and the others are read.
package softwarefile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/jobtemplate"
	"ucloud-im/internal/shell"
	"ucloud-im/internal/software"
	"ucloud-im/internal/yamlnode"
)

// Bounds of the directory. All of it goes to every instance.
const (
	maxFile         = 16 << 20
	maxFiles        = 2000
	maxApplications = 2000
	maxText         = 64 << 10 // of a load, unload or readme text
	maxVersions     = 200
	maxTotal        = 1 << 20 // of all texts
)

// Problem is something that was left out.
type Problem struct {
	File    string
	Message string // begins with the line, where there is one
}

func (p Problem) String() string { return p.File + ": " + p.Message }

// Load reads all files below dir whose names end in .yml or .yaml, in the order of their names. A directory that is not there holds
// no software. Symbolic links to directories are not followed.
func Load(dir string) (applications []software.Application, problems []Problem) {
	total, files := 0, 0
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) && path == dir {
				return fs.SkipAll
			}
			problems = append(problems, Problem{path, "cannot be read: " + cause(err)})
			return nil
		}
		if ext := strings.ToLower(filepath.Ext(path)); entry.IsDir() || ext != ".yml" && ext != ".yaml" {
			return nil
		}
		if files++; files > maxFiles {
			problems = append(problems, Problem{path, fmt.Sprintf("there are more than %d files; this and all later ones are left out", maxFiles)})
			return fs.SkipAll
		}
		found, bad := readFile(path)
		problems = append(problems, bad...)
		for _, a := range found {
			size := sizeOf(a)
			switch {
			case has(applications, a.Name):
				problems = append(problems, Problem{path, fmt.Sprintf("the application %q is defined twice; this one is left out", a.Name)})
			case total+size > maxTotal || len(applications) >= maxApplications:
				problems = append(problems, Problem{path, fmt.Sprintf("there is too much software; the application %q is left out", a.Name)})
			default:
				applications, total = append(applications, a), total+size
			}
		}
		return nil
	})
	if err != nil {
		problems = append(problems, Problem{dir, "cannot be read: " + cause(err)})
	}
	return applications, problems
}

// cause is an error without the path that it repeats.
func cause(err error) string {
	if pathError, ok := errors.AsType[*fs.PathError](err); ok {
		return pathError.Err.Error()
	}
	return err.Error()
}

func has(list []software.Application, name string) bool {
	for _, a := range list {
		if a.Name == name {
			return true
		}
	}
	return false
}

func sizeOf(a software.Application) int {
	size := len(a.Name)
	for _, c := range a.Configurations {
		size += len(c.Load) + len(c.Unload) + len(c.Readme)
		for _, v := range c.Versions {
			size += len(v)
		}
	}
	return size
}

func readFile(path string) (applications []software.Application, problems []Problem) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, []Problem{{path, "cannot be read: " + cause(err)}}
	case !info.Mode().IsRegular():
		return nil, []Problem{{path, "is not a file"}}
	case info.Size() > maxFile:
		return nil, []Problem{{path, fmt.Sprintf("is larger than %d bytes", maxFile)}}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, []Problem{{path, "cannot be read: " + cause(err)}}
	}
	documents, lines := yamlnode.Split(data)
	for i, d := range documents {
		a, ok, err := Parse(d, lines[i])
		if err != nil {
			problems = append(problems, Problem{path, failure.Why(err)})
		} else if ok {
			applications = append(applications, a)
		}
	}
	return applications, problems
}

// Parse reads one document that begins at a line of its file. ok is false for an empty document.
func Parse(data []byte, line int) (a software.Application, ok bool, err error) {
	root, err := yamlnode.Parse(data, line)
	if err != nil || root == nil || root.Kind == yamlnode.Null {
		return a, false, err
	}
	o := root.Object()
	a.Name = name(o, o.Required("name"))
	o.Objects("configurations", func(o *yamlnode.Object) {
		c := software.Configuration{
			Versions: o.Texts("versions"),
			Load:     template(o, "load"), Unload: template(o, "unload"), Readme: bounded(o, "readme"),
		}
		if len(c.Versions) == 0 || len(c.Versions) > maxVersions {
			o.Fail("versions must have between 1 and %d entries", maxVersions)
		}
		for _, v := range c.Versions {
			name(o, v)
		}
		o.Object("srun", func(o *yamlnode.Object) {
			c.Srun = &software.Srun{Command: o.Text("command"), Flags: o.Texts("flags")}
			if c.Srun.Command == "" {
				c.Srun.Command = "srun"
			}
			for _, word := range append([]string{c.Srun.Command}, c.Srun.Flags...) {
				if shell.CheckLine("", word) != nil {
					o.Fail("srun has a line break or control character")
				}
			}
		})
		a.Configurations = append(a.Configurations, c)
	})
	if len(a.Configurations) == 0 {
		o.Fail("configurations is missing")
	}
	return a, true, o.Err()
}

// name checks a name or version: one short line.
func name(o *yamlnode.Object, s string) string {
	const longest = 200
	if s == "" || len(s) > longest || shell.CheckLine("", s) != nil || strings.TrimSpace(s) != s {
		o.Fail("%q cannot be a name or version", s)
	}
	return s
}

func bounded(o *yamlnode.Object, key string) string {
	s := o.Text(key)
	if len(s) > maxText {
		o.Fail("%s is longer than %d bytes", key, maxText)
	}
	return s
}

// template checks the syntax of a text that becomes a part of templates.
func template(o *yamlnode.Object, key string) string {
	s := bounded(o, key)
	if err := jobtemplate.Check(s); err != nil {
		o.Fail("%s: %s", key, failure.Why(err))
	}
	return s
}
