// Package software is the software that a provider offers: which versions of which application there are, and the text that loads
// and unloads them (contract 22 section 10). The types are plain data, since instances get them with their start-up document; the files
// of the configuration directory are read by the subpackage softwarefile, which instances do not link.
package software

// Application is one application with all its versions.
type Application struct {
	Name           string          `json:"name"`
	Configurations []Configuration `json:"configurations"`
}

// Configuration is how some versions are loaded.
type Configuration struct {
	Versions []string `json:"versions"`
	Load     string   `json:"load,omitempty"`   // template text
	Unload   string   `json:"unload,omitempty"` // template text
	Srun     *Srun    `json:"srun,omitempty"`   // takes the place of the provider's, if that is not set
	Readme   string   `json:"readme,omitempty"`
}

// Srun is how srun is called.
type Srun struct {
	Command string   `json:"command"`
	Flags   []string `json:"flags,omitempty"`
}

// The policies of version resolution (contract 24 section 7).
const (
	Loose         = "loose"
	LooseForward  = "loose-forward"
	LooseBackward = "loose-backward"
	Strict        = "strict"
)

// Resolve finds the configuration for a requested version. An unknown policy stands for the version itself.
func Resolve(applications []Application, name, version, policy string) (configuration *Configuration, resolved string, ok bool) {
	for i := range applications {
		if applications[i].Name != name {
			continue
		}
		for j := range applications[i].Configurations {
			c := &applications[i].Configurations[j]
			for _, v := range c.Versions {
				if better(policy, version, v, resolved) {
					configuration, resolved = c, v
				}
			}
		}
	}
	return configuration, resolved, configuration != nil
}

// better tells whether candidate is a better choice than best, the best so far, or "" if there is none.
func better(policy, requested, candidate, best string) bool {
	rank := func(v string) int {
		if v == "" {
			return -1
		}
		return standing(policy, requested, v)
	}
	a, b := rank(candidate), rank(best)
	if a < 0 || a < b {
		return false
	}
	// Of two that stand the same the newer one; of two that compare as equal the first in the file.
	return a > b || Compare(candidate, best) > 0
}

// standing is how well a version serves a request: 2 if it matches, 1 if the policy accepts it else, -1 if it does not.
func standing(policy, requested, version string) int {
	matches := Matches(requested, version)
	switch policy {
	case "", Loose:
		if matches {
			return 2
		}
		return 1
	case LooseForward:
		if matches {
			return 2
		}
		if Compare(version, requested) > 0 {
			return 1
		}
	case LooseBackward:
		if matches {
			return 2
		}
		if Compare(version, requested) <= 0 {
			return 1
		}
	case Strict:
		if matches {
			return 2
		}
	default:
		// "Use exactly this version": the policy is the version.
		if version == policy {
			return 2
		}
	}
	return -1
}
