package jobrender

import (
	"context"
	"encoding/json"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/shell"
)

// Names of parameters that the provider adds to an application (contract 22 section 9).
const (
	injected            = "_injected_"
	AccountParameter    = injected + "slurmAccount"
	ModulesParameter    = injected + "modules"
	maxParameters       = 1000
	maxParameterName    = 256
	maxWorkflowsAndText = 1 << 20
)

// argument is a parameter with its value.
type argument struct {
	text string // as an argument of a program
	// value is the variable of templates: string, bool, json.Number, []string, or nil if it is none.
	value any
	isSet bool // a boolean that is true
}

// parameters are all values of a job by name, and the texts of its workflows.
type parameters struct {
	values    map[string]argument
	workflows []string
}

// requires is the type of value that a type of parameter takes (contract 24 section 2).
var requires = map[string][]string{
	providerapi.ParameterInputFile:      {providerapi.ValueFile},
	providerapi.ParameterInputDirectory: {providerapi.ValueFile},
	providerapi.ParameterText:           {providerapi.ValueText},
	providerapi.ParameterTextArea:       {providerapi.ValueText},
	providerapi.ParameterInteger:        {providerapi.ValueInteger},
	providerapi.ParameterFloatingPoint:  {providerapi.ValueFloatingPoint, providerapi.ValueInteger},
	providerapi.ParameterBoolean:        {providerapi.ValueBoolean},
	providerapi.ParameterEnumeration:    {providerapi.ValueText},
	providerapi.ParameterPeer:           {providerapi.ValuePeer},
	providerapi.ParameterLicenseServer:  {providerapi.ValueLicenseServer},
	providerapi.ParameterNetworkIP:      {providerapi.ValueNetwork},
	providerapi.ParameterIngress:        {providerapi.ValueIngress},
	providerapi.ParameterWorkflow:       {providerapi.ValueWorkflow},
	providerapi.ParameterModules:        {providerapi.ValueModules},
	providerapi.ParameterPrivateNetwork: {providerapi.ValuePrivateNetwork},
}

// defaultType is the type of the value that a default stands for; other parameters have no defaults.
var defaultType = map[string]string{
	providerapi.ParameterText:          providerapi.ValueText,
	providerapi.ParameterTextArea:      providerapi.ValueText,
	providerapi.ParameterEnumeration:   providerapi.ValueText,
	providerapi.ParameterInteger:       providerapi.ValueInteger,
	providerapi.ParameterFloatingPoint: providerapi.ValueFloatingPoint,
	providerapi.ParameterBoolean:       providerapi.ValueBoolean,
}

// mustHave are the types of which a mandatory parameter without a value makes no sense on a cluster.
var mustHave = []string{
	providerapi.ParameterInputFile, providerapi.ParameterInputDirectory, providerapi.ParameterText, providerapi.ParameterTextArea,
	providerapi.ParameterInteger, providerapi.ParameterFloatingPoint, providerapi.ParameterBoolean, providerapi.ParameterEnumeration,
	providerapi.ParameterWorkflow,
}

// resolve finds the value of each parameter: defaults, then what the job says; values of the wrong type and with unknown names are dropped
// (contract 24 section 2).
func resolve(ctx context.Context, job *providerapi.Job, paths Paths) (*parameters, error) {
	given := job.Specification.Parameters
	definitions := slices.Clone(job.Status.ResolvedApplication.Invocation.Parameters)
	p := &parameters{values: map[string]argument{}}
	size := 0
	for _, d := range slices.Clone(definitions) {
		v, ok := given[d.Name]
		if !ok || d.Type != providerapi.ParameterWorkflow || v.Type != providerapi.ValueWorkflow || v.Specification == nil {
			continue
		}
		definitions = append(definitions, v.Specification.Inputs...)
		if v.Specification.Job != nil {
			size += len(*v.Specification.Job)
			p.workflows = append(p.workflows, *v.Specification.Job)
		}
	}
	if len(definitions) > maxParameters || size > maxWorkflowsAndText {
		return nil, failure.New(failure.Invalid, "The application has too many parameters or too long workflows")
	}
	for _, d := range definitions {
		if d.Type == providerapi.ParameterReadme {
			continue
		}
		if len(d.Name) > maxParameterName {
			return nil, failure.New(failure.Invalid, "The name of a parameter is longer than %d bytes", maxParameterName)
		}
		if err := shell.CheckLine("The name of a parameter", d.Name); err != nil {
			return nil, err
		}
		v, ok := given[d.Name]
		if ok && !slices.Contains(requires[d.Type], v.Type) {
			ok = false
		}
		if !ok {
			v, ok = defaultValue(d)
		}
		if !ok {
			if !d.Optional && slices.Contains(mustHave, d.Type) {
				return nil, failure.New(failure.Invalid, "The parameter %q has no value", d.Name)
			}
			continue
		}
		a, err := convert(ctx, d, v, paths)
		if err != nil {
			return nil, err
		}
		p.values[d.Name] = a
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if _, known := p.values[name]; known || !strings.HasPrefix(name, injected) {
			continue
		}
		a, err := convert(ctx, providerapi.ApplicationParameter{Name: name}, given[name], paths)
		if err != nil {
			return nil, err
		}
		p.values[name] = a
	}
	return p, nil
}

// defaultValue is the default of a parameter, which is a bare value or a document with a field value.
func defaultValue(d providerapi.ApplicationParameter) (providerapi.AppParameterValue, bool) {
	kind, ok := defaultType[d.Type]
	raw := d.DefaultValue
	if !ok || len(raw) == 0 || string(raw) == "null" {
		return providerapi.AppParameterValue{}, false
	}
	var document struct {
		Value json.RawMessage `json:"value"`
	}
	if raw[0] == '{' {
		if json.Unmarshal(raw, &document) != nil || len(document.Value) == 0 || string(document.Value) == "null" {
			return providerapi.AppParameterValue{}, false
		}
		raw = document.Value
	}
	return providerapi.AppParameterValue{Type: kind, Value: raw}, true
}

// convert makes an argument and a variable of a value (the table of contract 24 section 2).
func convert(ctx context.Context, d providerapi.ApplicationParameter, v providerapi.AppParameterValue, paths Paths) (argument, error) {
	wrong := func(want string) error {
		return failure.New(failure.Invalid, "The value of the parameter %q is not %s", d.Name, want)
	}
	text := func(s string) (argument, error) {
		if err := shell.Check("The value of the parameter "+strconv.Quote(d.Name), s); err != nil {
			return argument{}, err
		}
		return argument{text: s, value: s}, nil
	}
	switch v.Type {
	case providerapi.ValueFile:
		if paths == nil {
			return argument{}, failure.New(failure.Invalid, "The parameter %q is a file, and files cannot be found here", d.Name)
		}
		local, err := paths(ctx, v.Path)
		if err != nil {
			return argument{}, failure.Wrap(err, failure.KindOf(err), "The parameter %q cannot be used: %s", d.Name, failure.Why(err))
		}
		return text(local)
	case providerapi.ValueText:
		var s string
		if json.Unmarshal(v.Value, &s) != nil {
			return argument{}, wrong("text")
		}
		for _, o := range d.Options {
			if d.Type == providerapi.ParameterEnumeration && s == o.Name {
				s = o.Value
				break
			}
		}
		return text(s)
	case providerapi.ValueInteger, providerapi.ValueFloatingPoint:
		n, ok := number(string(v.Value), v.Type == providerapi.ValueInteger)
		if !ok {
			return argument{}, wrong("a number of the right kind")
		}
		return argument{text: n, value: json.Number(n)}, nil
	case providerapi.ValueBoolean:
		var b bool
		if json.Unmarshal(v.Value, &b) != nil {
			return argument{}, wrong("true or false")
		}
		a := argument{text: strconv.FormatBool(b), value: b, isSet: b}
		if word := map[bool]string{true: d.TrueValue, false: d.FalseValue}[b]; word != "" {
			a.text = word
		}
		return a, shell.Check("A word of the parameter "+strconv.Quote(d.Name), a.text)
	case providerapi.ValuePeer:
		return text(v.Hostname)
	case providerapi.ValueNetwork, providerapi.ValueIngress:
		return text(v.ID)
	case providerapi.ValueLicenseServer:
		return argument{}, failure.New(failure.Invalid, "The parameter %q is a license, and licenses cannot be used here", d.Name)
	case providerapi.ValueModules:
		for _, m := range v.Modules {
			if err := shell.CheckLine("The name of a module", m); err != nil {
				return argument{}, err
			}
		}
		return argument{value: v.Modules}, nil
	}
	return argument{}, nil // workflows and private networks are no variables
}

// plainNumber is the form of numbers that need no conversion.
var plainNumber = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?$`) })

// maxNumber is the longest number, in characters.
const maxNumber = 400

// number checks a JSON number and writes it without an exponent. An integer keeps all its digits.
func number(s string, integer bool) (string, bool) {
	if len(s) > maxNumber {
		return "", false
	}
	if plainNumber().MatchString(s) && (!integer || !strings.Contains(s, ".")) {
		return s, true
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsInf(f, 0) || math.IsNaN(f) || s[0] == '+' || strings.ContainsAny(s, "xXpP_") {
		return "", false
	}
	const exact = 1 << 53 // above it the digits are not those that the sender meant
	if integer && (f != math.Trunc(f) || math.Abs(f) > exact) {
		return "", false
	}
	return strconv.FormatFloat(f, 'f', -1, 64), true
}
