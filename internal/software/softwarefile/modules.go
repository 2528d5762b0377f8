package softwarefile

import (
	"encoding/json"
	"os"
	"strings"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/shell"
)

// Bounds of the list of modules, which every instance has.
const (
	maxModules      = 5000
	maxDescription  = 1000
	maxDependencies = 50
	shortLength     = 120
)

// LoadModules reads the file that Lmod's spider tool writes (contract 22 section 9). Versions that follow one another with the same
// full name are one module with several sets of dependencies.
func LoadModules(path string) ([]providerapi.SupportedModule, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, failure.Wrap(err, failure.Invalid, "The list of modules %s cannot be read: %s", path, cause(err))
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, failure.New(failure.Invalid, "The list of modules %s is not a file of at most %d bytes", path, maxFile)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, failure.Wrap(err, failure.Invalid, "The list of modules %s cannot be read: %s", path, cause(err))
	}
	list, err := ParseModules(data)
	if err != nil {
		return nil, failure.Wrap(err, failure.Invalid, "The list of modules %s: %s", path, failure.Why(err))
	}
	return list, nil
}

// ParseModules reads the contents of such a file.
func ParseModules(data []byte) ([]providerapi.SupportedModule, error) {
	var packages []struct {
		URL         string `json:"url"`
		Description string `json:"description"`
		Versions    []struct {
			Full   string     `json:"full"`
			Help   string     `json:"help"`
			Parent [][]string `json:"parent"`
		} `json:"versions"`
	}
	if err := json.Unmarshal(data, &packages); err != nil {
		return nil, failure.Wrap(err, failure.Invalid, "it is not the JSON of Lmod's spider")
	}
	var out []providerapi.SupportedModule
	for _, p := range packages {
		for i, v := range p.Versions {
			if shell.CheckLine("", v.Full) != nil || v.Full == "" || len(v.Full) > maxDescription {
				return nil, failure.New(failure.Invalid, "a module has the name %q", v.Full)
			}
			parents := v.Parent[:min(len(v.Parent), maxDependencies)]
			if n := len(out); i > 0 && n > 0 && out[n-1].Name == v.Full {
				out[n-1].DependsOn = append(out[n-1].DependsOn, parents...)
				continue
			}
			if len(out) == maxModules {
				return nil, failure.New(failure.Invalid, "there are more than %d modules", maxModules)
			}
			help := v.Help
			if help == "" {
				help = p.Description
			}
			help = cut(strings.TrimSpace(help), maxDescription)
			out = append(out, providerapi.SupportedModule{
				Name: v.Full, Description: help, ShortDescription: firstSentence(help), DependsOn: append([][]string{}, parents...), DocumentationURL: p.URL,
			})
		}
	}
	return out, nil
}

// firstSentence is the beginning of a text, for lists.
func firstSentence(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if i := strings.Index(s, ". "); i >= 0 {
		s = s[:i+1]
	}
	return cut(s, shortLength)
}

// cut shortens a text without leaving half a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n-len("…")], "") + "…"
}
