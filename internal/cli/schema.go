package cli

import (
	"maps"
	"slices"
	"strings"

	"github.com/invopop/jsonschema"
	"github.com/spf13/cobra"

	"ucloud-im/internal/ipcapi"
)

// documents are the JSON documents of the commands, as empty values of their types.
func documents() map[string]any {
	return map[string]any{
		"users list": envelope[ipcapi.UserInfo]{}, "users show": itemEnvelope[ipcapi.UserDetails]{},
		"users add": resultEnvelope{}, "users expire": resultEnvelope{}, "users remove": resultEnvelope{}, "users change": resultEnvelope{},
		"allocations list": envelope[ipcapi.AllocationInfo]{}, "allocations apply": resultEnvelope{},
		"projects list": envelope[ipcapi.ProjectInfo]{}, "projects show": itemEnvelope[ipcapi.ProjectDetails]{},
		"projects map": resultEnvelope{}, "projects remove": resultEnvelope{},
		"tickets list": envelope[ipcapi.TicketInfo]{}, "tickets approve": resultEnvelope{}, "tickets reject": resultEnvelope{},
		"keys list": envelope[ipcapi.SigningKey]{}, "keys revoke": resultEnvelope{},
		"connect self": resultEnvelope{}, "connect other": resultEnvelope{},
		"me show": itemEnvelope[ipcapi.Me]{}, "me connect": resultEnvelope{}, "me disconnect": resultEnvelope{},
		"instances list": envelope[ipcapi.InstanceInfo]{}, "instances stop": resultEnvelope{}, "instances restart": resultEnvelope{},
		"slurm-accounts list": envelope[ipcapi.SlurmAccountInfo]{}, "slurm-accounts evaluate": itemEnvelope[ipcapi.SlurmAccountEvaluation]{},
		"slurm-accounts re-evaluate": resultEnvelope{}, "slurm-accounts adopt": resultEnvelope{}, "slurm-accounts add": resultEnvelope{},
		"slurm-accounts remove": resultEnvelope{}, "slurm-accounts sync": resultEnvelope{},
		"jobs list": envelope[ipcapi.JobInfo]{}, "jobs show": itemEnvelope[ipcapi.JobInfo]{}, "jobs explain": itemEnvelope[ipcapi.JobExplanation]{},
		"jobs cancel": resultEnvelope{}, "jobs resync": resultEnvelope{}, "jobs register": resultEnvelope{},
		"tasks list": envelope[ipcapi.TaskInfo]{}, "tasks cancel": resultEnvelope{},
		"scripts list": envelope[ipcapi.ScriptInfo]{}, "scripts show": itemEnvelope[ipcapi.ScriptRecord]{},
		"scripts test": envelope[ipcapi.ScriptTrial]{}, "scripts run": itemEnvelope[ipcapi.ScriptTrial]{},
		"intents report": itemEnvelope[intentsReport]{},
		"drives list":    envelope[ipcapi.DriveInfo]{}, "gateway dump": itemEnvelope[ipcapi.GatewayState]{},
		"service status": itemEnvelope[ipcapi.StatusReport]{}, "version show": itemEnvelope[versions]{},
		"config check": itemEnvelope[checkReport]{}, "config reload": itemEnvelope[ipcapi.ReloadReport]{},
		"config diff": itemEnvelope[ipcapi.ReloadReport]{}, "apps list": envelope[appRow]{}, "apps render": itemEnvelope[renderReport]{}, "doctor run": itemEnvelope[doctorReport]{},
	}
}

// outputSchema is the schema of one command, which may be named by any of its aliases.
func outputSchema(root *cobra.Command, noun, verb string) (*jsonschema.Schema, error) {
	docs := documents()
	name := noun + " " + verb
	if _, ok := docs[name]; !ok {
		if c, rest, err := root.Find([]string{noun, verb}); err == nil && len(rest) == 0 {
			name = strings.TrimPrefix(c.CommandPath(), root.Name()+" ")
		}
	}
	doc, ok := docs[name]
	if !ok {
		e := exitf(ExitNoMatch, "NOT_FOUND", "there is no schema for %q", clean(name))
		return nil, withHint(e, "there are: %s", strings.Join(slices.Sorted(maps.Keys(docs)), ", "))
	}
	// New members may be added within a version (contract 41 section 4), so a reader must allow them.
	r := jsonschema.Reflector{DoNotReference: true, AllowAdditionalProperties: true, Anonymous: true}
	s := r.Reflect(doc)
	allowNull(s)
	return s, nil
}

// allowNull lets members be null that Go encodes so: pointers, and lists that nobody has filled. The reflector does not
// tell them apart, so every object and list below the top may be null.
func allowNull(s *jsonschema.Schema) {
	if s == nil {
		return
	}
	if s.Properties != nil {
		for p := s.Properties.Oldest(); p != nil; p = p.Next() {
			allowNull(p.Value)
			p.Value = &jsonschema.Schema{AnyOf: []*jsonschema.Schema{p.Value, {Type: "null"}}}
		}
	}
	allowNull(s.Items)
}
