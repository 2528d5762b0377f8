package jobrender

import (
	"encoding/json"
	"slices"
	"strings"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/software"
)

// DynamicParameters are the parameters that the provider adds to an application (contract 22 section 9). choices are the Slurm
// accounts that the user may choose among in this workspace; none if the choice is not the user's.
func DynamicParameters(_ providerapi.ResourceOwner, app *providerapi.Application, site Site, choices []string) []providerapi.ApplicationParameter {
	list := []providerapi.ApplicationParameter{}
	if len(choices) > 0 {
		p := providerapi.ApplicationParameter{
			Type: providerapi.ParameterEnumeration, Name: AccountParameter, Title: "Slurm account", Description: "The account that the job is charged to.",
		}
		for _, c := range choices {
			p.Options = append(p.Options, providerapi.EnumerationOption{Name: c, Value: c})
		}
		list = append(list, p)
	}
	var missing []string
	var required []providerapi.ApplicationReference
	if t := app.Invocation.Tool.Tool; t != nil && t.Description.LoadInstructions != nil {
		required = t.Description.LoadInstructions.Applications
	}
	for _, a := range required {
		c, version, ok := software.Resolve(site.Software, a.Name, a.Version, software.Loose)
		if !ok {
			missing = append(missing, strings.TrimSpace(a.Name+" "+a.Version))
			continue
		}
		if c.Readme != "" {
			list = append(list, readme("_readme_"+a.Name, a.Name+" "+version, c.Readme))
		}
	}
	if len(missing) > 0 {
		list = append(list, readme("_readme_missing", "Software that is not available", "This provider does not have: "+strings.Join(missing, ", ")+"."))
	}
	if (len(required) == 0 || len(missing) > 0) && len(site.Modules) > 0 {
		list = append(list, providerapi.ApplicationParameter{
			Type: providerapi.ParameterModules, Name: ModulesParameter, Optional: true, Title: "Modules", Description: "Modules that are loaded before the job starts.",
			DefaultValue: json.RawMessage(`[]`), SupportedModules: site.Modules,
		})
	}
	return list
}

func readme(name, title, text string) providerapi.ApplicationParameter {
	return providerapi.ApplicationParameter{Type: providerapi.ParameterReadme, Name: name, Optional: true, Title: title, Description: text}
}

// checkModules refuses modules that the provider does not offer.
func (r *renderer) checkModules() error {
	for _, m := range r.modules() {
		if len(r.site.Modules) > 0 && !slices.ContainsFunc(r.site.Modules, func(s providerapi.SupportedModule) bool { return s.Name == m }) {
			return failure.New(failure.Invalid, "There is no module %q here", m)
		}
	}
	return nil
}

// ChosenAccount is the Slurm account that the user has chosen, "" if there is no choice in the job.
func ChosenAccount(job *providerapi.Job) (string, error) {
	v, ok := job.Specification.Parameters[AccountParameter]
	if !ok {
		return "", nil
	}
	var account string
	if v.Type != providerapi.ValueText || json.Unmarshal(v.Value, &account) != nil {
		return "", failure.New(failure.Invalid, "The parameter %q is not text", AccountParameter)
	}
	return account, nil
}
