package config

import (
	"os"
	"path/filepath"
	"testing"
)

// The examples of contract 40 section 15 load without errors on a machine that has none of what they name.
func TestExamplesOfTheContract(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"birch", "cedar", "elm"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, role := range []Role{RoleServer, RoleGateway, RoleCLI, RoleCheck} {
				c, problems := Load(filepath.Join("testdata", "examples", name), Options{Role: role, Getenv: noEnv})
				if problems.HasErrors() {
					problems.WriteText(os.Stderr, false)
					t.Fatalf("role %s: %v", role, problems.Err())
				}
				if string(c.Provider.ID) != name {
					t.Errorf("provider.id = %q", c.Provider.ID)
				}
			}
		})
	}
}

func noEnv(string) string { return "" }
