package jobrender

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/jobtemplate"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/shell"
	"ucloud-im/internal/software"
)

// templateTime bounds all templates of a job together: Core waits for five seconds.
const templateTime = 3 * time.Second

// maxTargets is the largest number of interfaces of a job.
const maxTargets = 64

// isTemplate tells whether the invocation is one template, rather than an argument list.
func (r *renderer) isTemplate() bool {
	parts := r.app.Invocation.Invocation
	return len(parts) == 1 && parts[0].Type == providerapi.PartJinja || len(parts) == 0 && len(r.params.workflows) > 0
}

// template renders an invocation that is a template, together with the text of the workflows.
func (r *renderer) template(ctx context.Context) error {
	var parts []jobtemplate.Part
	if list := r.app.Invocation.Invocation; len(list) > 0 && list[0].Template != "" {
		parts = append(parts, jobtemplate.Part{Name: "the application's template", Text: list[0].Template})
	}
	for _, w := range r.params.workflows {
		parts = append(parts, jobtemplate.Part{Name: "the workflow", Text: w})
	}
	expanded, err := jobtemplate.Expand(parts, r.snippets())
	if err != nil {
		return err
	}
	text, err := jobtemplate.Render(ctx, expanded.Text, jobtemplate.Options{
		Variables: r.variables(), Functions: r.functions(), Origin: expanded.Origin,
	})
	if err != nil {
		return err
	}
	if strings.TrimSpace(text) == "" {
		return failure.New(failure.Invalid, "The application's template gives an empty script")
	}
	r.script.Body = text
	r.out.Template = []byte(expanded.Text)
	r.out.Parameters, err = r.parameterFile()
	return err
}

// piece renders a template of one value without quoting; the caller quotes the result.
func (r *renderer) piece(ctx context.Context, name, text string) (string, error) {
	return jobtemplate.Render(ctx, text, jobtemplate.Options{Name: name, Variables: r.variables(), Functions: r.functions(), Raw: true})
}

// looksLikeTemplate tells whether a word is one by the rule of contract 24 section 8.
func looksLikeTemplate(word string) bool {
	return strings.Contains(word, "{{") || strings.Contains(word, "{%")
}

// variables are those of templates (contract 24 section 6.2).
func (r *renderer) variables() map[string]any {
	all := map[string]any{}
	for name, a := range r.params.values {
		if a.value != nil {
			all[name] = a.value
		}
	}
	ucloud := map[string]any{}
	for name, value := range r.description() {
		outer, inner, nested := strings.Cut(name, ".")
		if !nested {
			ucloud[name] = value
			continue
		}
		group, ok := ucloud[outer].(map[string]any)
		if !ok {
			group = map[string]any{}
			ucloud[outer] = group
		}
		group[inner] = value
	}
	all["ucloud"] = ucloud
	return all
}

// parameterFile writes the variables as YAML, of which JSON is a part.
func (r *renderer) parameterFile() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(r.variables()); err != nil {
		return nil, failure.Wrap(err, failure.Internal, "The parameters cannot be written down")
	}
	return b.Bytes(), nil
}

// functions are those of templates (contract 24 section 6.3).
func (r *renderer) functions() map[string]jobtemplate.Function {
	return map[string]jobtemplate.Function{
		"sbatch": r.sbatchFunction,
		"srun": func(context.Context, []any) (any, error) {
			return jobtemplate.Code(r.srun()), nil
		},
		"ternary": func(_ context.Context, args []any) (any, error) {
			if len(args) != 3 {
				return nil, failure.New(failure.Invalid, "ternary() needs a condition and two values")
			}
			if jobtemplate.True(args[0]) {
				return args[1], nil
			}
			return args[2], nil
		},
		"dynamicInterface": r.dynamicInterface,
		"script":           r.runScript,
	}
}

// sbatchFunction sets a directive: sbatch(name, value), or sbatch(name) for an option without a value.
func (r *renderer) sbatchFunction(_ context.Context, args []any) (any, error) {
	name, ok := "", false
	if len(args) == 1 || len(args) == 2 {
		name, ok = args[0].(string)
	}
	if !ok {
		return nil, failure.New(failure.Invalid, "sbatch() needs the name of an option and a value")
	}
	value := ""
	if len(args) == 2 && args[1] != nil {
		switch v := args[1].(type) {
		case string, jobtemplate.Code, json.Number, int64:
			value = fmt.Sprint(v)
		case float64:
			value = strconv.FormatFloat(v, 'f', -1, 64)
		default:
			return nil, failure.New(failure.Invalid, "The value of sbatch(%q) is neither text nor a number", name)
		}
		if value = strings.TrimSpace(value); value == "" {
			return jobtemplate.Code(""), nil // an optional parameter without a value
		}
	} else if len(args) == 2 {
		return jobtemplate.Code(""), nil
	}
	return jobtemplate.Code(""), r.override(name, value)
}

// srun is the command with its flags and a space. It comes from the configuration and is not quoted.
func (r *renderer) srun() string {
	s := r.site.Srun
	own := s.Command != "" && (s.Command != defaultSrun || len(s.Flags) > 0)
	if !own && r.loadedSrun != nil {
		s = *r.loadedSrun
		own = true
	}
	if !own && r.site.JobEngine == EngineLocal {
		return "" // there is nothing to run it with
	}
	if s.Command == "" {
		s.Command = defaultSrun
	}
	return strings.Join(append([]string{s.Command}, s.Flags...), " ") + " "
}

const defaultSrun = "srun"

// dynamicInterface declares an interface. Wrong arguments give a comment, so that an older application still runs.
func (r *renderer) dynamicInterface(_ context.Context, args []any) (any, error) {
	wrong := func(why string) (any, error) {
		r.warn("An interface that the application declares is ignored: %s", why)
		return jobtemplate.Code("# dynamicInterface: " + why + "\n"), nil
	}
	if len(args) != 4 {
		return wrong("it needs a rank, WEB or VNC, a name and a port")
	}
	rank, ok1 := args[0].(int64)
	kind, ok2 := args[1].(string)
	target, ok3 := args[2].(string)
	port, ok4 := args[3].(int64)
	switch {
	case !ok1 || rank < 0 || rank >= int64(max(1, r.grant.Nodes)):
		return wrong("the rank is not one of the job")
	case !ok2 || kind != string(providerapi.SessionWeb) && kind != string(providerapi.SessionVNC):
		return wrong("the type is neither WEB nor VNC")
	case !ok3 || target == "" || len(target) > maxParameterName || shell.CheckLine("", target) != nil:
		return wrong("the name is not a short text")
	case !ok4 || port < 1024 || port > 65535:
		return wrong("the port is not between 1024 and 65535")
	case len(r.out.Targets) >= maxTargets:
		return wrong("there are too many")
	}
	r.out.Targets = append(r.out.Targets, Target{int(rank), kind, target, int(port)})
	return jobtemplate.Code(""), nil
}

// runScript starts a program of the site, as the user and on this host, and gives what it answers as code. Only programs that the
// configuration names can be started; the file with the variables is its only argument (contract 24 section 10.4).
func (r *renderer) runScript(ctx context.Context, args []any) (any, error) {
	program, ok := "", false
	if len(args) == 1 {
		program, ok = args[0].(string)
	}
	if !ok || !slices.Contains(r.site.AllowScripts, program) {
		return nil, failure.New(failure.Invalid, "script() can start only programs that the provider has allowed")
	}
	if r.grant.Run == nil {
		return nil, failure.New(failure.Invalid, "script() cannot be used here")
	}
	request, err := json.Marshal(r.variables())
	if err != nil {
		return nil, err
	}
	answer, err := r.grant.Run(ctx, program, request)
	if err != nil {
		return nil, failure.Wrap(err, failure.Invalid, "%s", failure.Why(err))
	}
	var reply struct {
		Output *string `json:"output"`
	}
	if json.Unmarshal(answer, &reply) != nil || reply.Output == nil {
		return nil, failure.New(failure.Invalid, "The program %s gave no output", path.Base(program))
	}
	return jobtemplate.Code(*reply.Output), shell.Check("The output of "+path.Base(program), *reply.Output)
}

// snippets are the functions of the pre-processor (contract 24 section 6.5).
func (r *renderer) snippets() map[string]jobtemplate.Snippet {
	policy := map[string]string{} // by name of the application; "" for all others
	snippet := func(name, version string, unload bool) (string, string, error) {
		p, own := policy[name]
		if !own {
			p = policy[""]
		}
		c, resolved, ok := software.Resolve(r.site.Software, name, version, p)
		if !ok {
			return "", "", failure.New(failure.Invalid, "The application needs %s %s, which is not available here", name, version)
		}
		what, text := "the load text of ", c.Load
		if unload {
			what, text = "the unload text of ", c.Unload
		} else if r.loadedSrun == nil && c.Srun != nil {
			r.loadedSrun = c.Srun
		}
		// appVersion is set for the text and restored after it; both stand on the lines of the text.
		before := "{% set appVersionBefore = appVersion | default(none) %}{% set appVersion = " + jobtemplate.Literal(resolved) + " %}"
		return before + text + "{% set appVersion = appVersionBefore %}", what + name, nil
	}
	all := func(unload bool) jobtemplate.Snippet {
		return func(args []string) (string, string, error) {
			if len(args) > 0 {
				return "", "", failure.New(failure.Invalid, "applicationLoad and applicationUnload have no arguments")
			}
			list := r.instructions()
			if unload {
				list = slices.Clone(list)
				slices.Reverse(list)
			}
			var texts []string
			for _, a := range list {
				text, _, err := snippet(a.Name, a.Version, unload)
				if err != nil {
					return "", "", err
				}
				texts = append(texts, text)
			}
			return strings.Join(texts, "\n"), "the texts of the software", nil
		}
	}
	one := func(unload bool) jobtemplate.Snippet {
		return func(args []string) (string, string, error) {
			if len(args) != 2 {
				return "", "", failure.New(failure.Invalid, "loadApplication and unloadApplication need a name and a version")
			}
			return snippet(args[0], args[1], unload)
		}
	}
	return map[string]jobtemplate.Snippet{
		"systemLoad": func([]string) (string, string, error) {
			return r.systemLoad(), "systemLoad of the configuration", nil
		},
		"systemUnload": func([]string) (string, string, error) {
			return r.site.SystemUnload, "systemUnload of the configuration", nil
		},
		"applicationLoad": all(false), "applicationUnload": all(true),
		"loadApplication": one(false), "unloadApplication": one(true),
		"versionResolver": func(args []string) (string, string, error) {
			switch len(args) {
			case 1:
				policy = map[string]string{"": args[0]}
			case 2:
				policy[args[0]], policy[""] = args[1], software.Loose
			default:
				return "", "", failure.New(failure.Invalid, "versionResolver needs a policy, or a name and a policy")
			}
			return "", "versionResolver", nil
		},
	}
}

// systemLoad is the provider's text, and a line for each module that the user has chosen. The names stay data.
func (r *renderer) systemLoad() string {
	text := r.site.SystemLoad
	for i := range r.modules() {
		if text != "" && !strings.HasSuffix(text, "\n") {
			text += "\n"
		}
		text += fmt.Sprintf("module load {{ %s[%d] }}\n", ModulesParameter, i)
	}
	return text
}

// modules are those that the user has chosen.
func (r *renderer) modules() []string {
	list, _ := r.params.values[ModulesParameter].value.([]string)
	return list
}

func (r *renderer) instructions() []providerapi.ApplicationReference {
	if t := r.app.Invocation.Tool.Tool; t != nil && t.Description.LoadInstructions != nil {
		return t.Description.LoadInstructions.Applications
	}
	return nil
}
