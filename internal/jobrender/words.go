package jobrender

import (
	"context"
	"maps"
	"slices"
	"strings"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/jobtemplate"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/shell"
)

// maxParts is the largest number of parts of an invocation or a value.
const maxParts = 2000

// body makes the bash text of the invocation: that of a template, or an argument list (contract 24 sections 5 and 6).
func (r *renderer) body(ctx context.Context) error {
	if r.isTemplate() {
		return r.template(ctx)
	}
	words, err := r.words(ctx, r.app.Invocation.Invocation)
	if err != nil {
		return err
	}
	if len(words) == 0 {
		return failure.New(failure.Invalid, "The application has no invocation")
	}
	r.script.Body = strings.Join(words, " ") + "\n"
	return nil
}

// words are bash words.
func (r *renderer) words(ctx context.Context, parts []providerapi.InvocationParameter) ([]string, error) {
	if len(parts) > maxParts {
		return nil, failure.New(failure.Invalid, "The invocation of the application has more than %d parts", maxParts)
	}
	var words []string
	for _, part := range parts {
		switch part.Type {
		case providerapi.PartWord:
			if err := shell.Check("A word of the invocation", part.Word); err != nil {
				return nil, err
			}
			words = append(words, shell.Quote(part.Word))
		case providerapi.PartEnv:
			if !shell.IsName(part.Variable) {
				return nil, failure.New(failure.Invalid, "The application uses the environment variable %q, which is not a valid name", part.Variable)
			}
			words = append(words, `"$`+part.Variable+`"`)
		case providerapi.PartFlag:
			if !r.params.values[part.VariableName].isSet {
				continue
			}
			if err := shell.Check("A flag of the invocation", part.Flag); err != nil {
				return nil, err
			}
			words = append(words, shell.Quote(part.Flag))
		case providerapi.PartVariable:
			list, err := r.variable(part)
			if err != nil {
				return nil, err
			}
			for _, w := range list {
				words = append(words, shell.Quote(w))
			}
		case providerapi.PartJinja:
			text, err := jobtemplate.Render(ctx, part.Template, jobtemplate.Options{Name: "a template in the invocation", Variables: r.variables(), Functions: r.functions()})
			if err != nil {
				return nil, err
			}
			words = append(words, text)
		default:
			return nil, failure.New(failure.Invalid, "The application has an invocation part of the unknown type %q", part.Type)
		}
	}
	return words, nil
}

// variable are the arguments of a part of type var, not quoted yet.
func (r *renderer) variable(part providerapi.InvocationParameter) ([]string, error) {
	var list []string
	found := false
	add := func(s string) {
		if s = strings.TrimSpace(s); s != "" {
			list = append(list, s)
		}
	}
	add(part.PrefixGlobal)
	for _, name := range part.VariableNames {
		v, ok := r.params.values[name]
		if !ok {
			continue
		}
		found = true
		value := v.text
		prefix, suffix := strings.TrimSpace(part.PrefixVariable), strings.TrimSpace(part.SuffixVariable)
		if part.IsPrefixVariablePartOfArg {
			value = prefix + value
		} else {
			add(prefix)
		}
		if part.IsSuffixVariablePartOfArg {
			value += suffix
		}
		list = append(list, value)
		if !part.IsSuffixVariablePartOfArg {
			add(suffix)
		}
	}
	if !found {
		return nil, nil
	}
	add(part.SuffixGlobal)
	for _, s := range list {
		if err := shell.Check("An argument of the application", s); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// environment binds the application's variables. A value is made of its parts, joined by spaces, and quoted once; only references
// to other variables stay for bash.
func (r *renderer) environment(ctx context.Context) error {
	r.script.Environment = map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(r.app.Invocation.Environment)) {
		if _, ours := r.script.Exports[name]; ours {
			r.warn("The application may not set the environment variable %s", name)
			continue
		}
		part := r.app.Invocation.Environment[name]
		var value string
		if part.Type == providerapi.PartEnv {
			words, err := r.words(ctx, []providerapi.InvocationParameter{part})
			if err != nil {
				return err
			}
			value = strings.Join(words, " ")
		} else {
			text, err := r.plain(ctx, "the environment variable "+name, part)
			if err != nil {
				return err
			}
			value = shell.Quote(text)
		}
		if !shell.IsName(name) {
			return failure.New(failure.Invalid, "%q cannot be the name of an environment variable", name)
		}
		r.script.Environment[name] = value
	}
	return nil
}

// overrides are the directives that the application sets.
func (r *renderer) overrides(ctx context.Context) error {
	for _, name := range slices.Sorted(maps.Keys(r.app.Invocation.Sbatch)) {
		value, err := r.plain(ctx, "the sbatch option "+name, r.app.Invocation.Sbatch[name])
		if err != nil {
			return err
		}
		if part := r.app.Invocation.Sbatch[name]; strings.TrimSpace(value) == "" && part.Type != providerapi.PartWord {
			continue // an optional parameter without a value
		}
		if err := r.override(name, strings.TrimSpace(value)); err != nil {
			return err
		}
	}
	return nil
}

func (r *renderer) override(name, value string) error {
	ignored, err := r.script.Directives.Override(name, value)
	if ignored {
		r.warn("The sbatch option --%s that the application sets was ignored", name)
	}
	return err
}

// plain is the text of a value that consists of one part, without quoting.
func (r *renderer) plain(ctx context.Context, what string, part providerapi.InvocationParameter) (string, error) {
	switch part.Type {
	case providerapi.PartWord:
		if r.site.RenderWords && looksLikeTemplate(part.Word) {
			return r.piece(ctx, what, part.Word)
		}
		return part.Word, shell.Check("A value of the application", part.Word)
	case providerapi.PartJinja:
		return r.piece(ctx, what, part.Template)
	case providerapi.PartFlag:
		if r.params.values[part.VariableName].isSet {
			return part.Flag, shell.Check("A value of the application", part.Flag)
		}
		return "", nil
	case providerapi.PartVariable:
		list, err := r.variable(part)
		return strings.Join(list, " "), err
	}
	return "", failure.New(failure.Invalid, "The application has a value of the unknown type %q", part.Type)
}
