// Package applications reads application documents, YAML v2, and makes of them what UCloud/Core sends to providers (contract 24 section 8).
// Real applications are uploaded to Core and arrive normalised with each job; this package serves the built-in applications, "ucloud
// apps render" and the simulated Core of the demo. Instances do not link it.
//
// It normalises as Core does, with one exception: parts of environment and sbatch that hold templates become parts of type jinja, which
// is what their authors mean. The text of workflows is kept apart, see [Document.Workflows].
package applications

import (
	"embed"
	"encoding/json"
	"path"
	"slices"
	"strings"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/jobtemplate"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/shell"
	"ucloud-im/internal/yamlnode"
)

// Document is an application with what Core does not pass on.
type Document struct {
	Application providerapi.Application
	// Workflows are the default texts of parameters of type Workflow, by name.
	Workflows map[string]string
}

// Parse reads one document.
func Parse(data []byte) (*Document, error) {
	root, err := yamlnode.Parse(data, 1)
	if err != nil {
		return nil, err
	}
	if root == nil {
		return nil, failure.New(failure.Invalid, "The document is empty")
	}
	r := &reader{o: root.Object(), doc: &Document{Workflows: map[string]string{}}}
	r.metadata()
	r.software()
	r.parameters()
	r.invocation()
	r.interfaces()
	if err := r.o.Err(); err != nil {
		return nil, err
	}
	return r.doc, nil
}

// reader is the state of Parse.
type reader struct {
	o   *yamlnode.Object
	doc *Document
}

func (r *reader) app() *providerapi.ApplicationInvocation { return &r.doc.Application.Invocation }

// line is a text that must be one line.
func line(o *yamlnode.Object, what, s string) string {
	const longest = 250
	if len(s) > longest || shell.CheckLine("", s) != nil {
		o.Fail("%s must be one short line", what)
	}
	return s
}

func (r *reader) metadata() {
	o, m := r.o, &r.doc.Application.Metadata
	if v := o.Required("application"); v != "v2" && v != "" {
		o.Fail("application must be v2")
	}
	m.Name, m.Version = line(o, "name", o.Required("name")), line(o, "version", o.Required("version"))
	m.Title, m.Description = line(o, "title", o.Text("title")), o.Text("description")
	if m.Title == "" {
		m.Title = m.Name
	}
	if website := o.Text("documentation"); website != "" {
		m.Website = &website
	}
	m.Authors, m.Public = []string{"UCloud"}, true
}

var backends = map[string]string{"Native": providerapi.BackendNative, "Container": "DOCKER", "VirtualMachine": "VIRTUAL_MACHINE", "UCX": "UCX"}

func (r *reader) software() {
	m := r.doc.Application.Metadata
	d := providerapi.ToolDescription{
		Info: m.Reference(), DefaultNumberOfNodes: 1, DefaultTimeAllocation: providerapi.SimpleDuration{Hours: 1}, Authors: m.Authors,
		Title: m.Title, Description: m.Description, License: r.o.Text("license"), RequiredModules: []string{}, SupportedProviders: []string{},
	}
	if _, ok := r.o.Child("software"); !ok {
		r.o.Fail("software is missing")
	}
	r.o.Object("software", func(o *yamlnode.Object) {
		var ok bool
		if d.Backend, ok = backends[o.Text("type")]; !ok {
			o.Fail("type must be Native, Container, VirtualMachine or UCX")
		}
		if image := o.Text("image"); image != "" {
			d.Image = &image
		}
		var load []providerapi.ApplicationReference
		o.Objects("load", func(o *yamlnode.Object) {
			load = append(load, providerapi.ApplicationReference{Name: line(o, "name", o.Required("name")), Version: line(o, "version", o.Text("version"))})
		})
		if len(load) > 0 {
			d.LoadInstructions = &providerapi.LoadInstructions{Type: "Native", Applications: load}
		}
	})
	r.app().Tool = providerapi.ToolReference{Name: m.Name, Version: m.Version, Tool: &providerapi.Tool{Owner: "_ucloud", Description: d}}
	r.o.Object("features", func(o *yamlnode.Object) {
		flag := func(key string) *bool {
			if _, ok := o.Child(key); !ok {
				return nil
			}
			v := o.Bool(key, false)
			return &v
		}
		a := r.app()
		a.AllowMultiNode, a.AllowPublicLink = flag("multiNode"), flag("links")
		a.AdditionalMounts, a.AdditionalPeers = flag("folders"), flag("jobLinking")
		flag("ipAddresses")
		flag("jobAuditLog")
	})
}

var types = map[string]string{
	"File": providerapi.ParameterInputFile, "Directory": providerapi.ParameterInputDirectory, "License": providerapi.ParameterLicenseServer, "Job": providerapi.ParameterPeer,
	"PublicIP": providerapi.ParameterNetworkIP, "Integer": providerapi.ParameterInteger, "FloatingPoint": providerapi.ParameterFloatingPoint, "Boolean": providerapi.ParameterBoolean,
	"Text": providerapi.ParameterText, "TextArea": providerapi.ParameterTextArea, "Enumeration": providerapi.ParameterEnumeration, "Workflow": providerapi.ParameterWorkflow,
}

func (r *reader) parameters() {
	const most = 200
	r.app().Parameters = []providerapi.ApplicationParameter{}
	r.o.Object("parameters", func(all *yamlnode.Object) {
		if len(all.Keys()) > most {
			all.Fail("there are more than %d parameters", most)
			return
		}
		for _, name := range all.Keys() {
			all.Object(name, func(o *yamlnode.Object) { r.parameter(line(o, "the name of a parameter", name), o) })
		}
	})
}

func (r *reader) parameter(name string, o *yamlnode.Object) {
	kind := o.Text("type")
	p := providerapi.ApplicationParameter{
		Type: types[kind], Name: name, Title: line(o, "title", o.Text("title")), Description: o.Text("description"), Optional: o.Bool("optional", false),
	}
	if p.Type == "" {
		o.Fail("the parameter %q has the unknown type %q", name, kind)
		return
	}
	if p.Title == "" {
		p.Title = name
	}
	switch kind {
	case "Integer", "FloatingPoint":
		p.DefaultValue = o.JSON("defaultValue")
		for _, limit := range []string{"min", "max", "step"} {
			o.Number(limit) // checked, and not carried over
		}
		if n := o.Number("defaultValue"); n != nil && kind == "Integer" && strings.ContainsAny(n.String(), ".eE") {
			o.Fail("the default of %q is not a whole number", name)
		}
	case "Boolean":
		p.TrueValue, p.FalseValue = "true", "false"
		if _, ok := o.Child("defaultValue"); ok {
			p.DefaultValue = json.RawMessage(map[bool]string{true: "true", false: "false"}[o.Bool("defaultValue", false)])
		}
	case "Text", "TextArea", "Enumeration":
		if s := o.Text("defaultValue"); s != "" {
			p.DefaultValue = text(s)
		}
		o.Objects("options", func(o *yamlnode.Object) {
			p.Options = append(p.Options, providerapi.EnumerationOption{Name: o.Required("title"), Value: o.Required("value")})
		})
		if kind == "Enumeration" {
			r.enumeration(name, p, o)
		}
	case "Workflow":
		job := o.Text("job")
		if err := jobtemplate.Check(job); err != nil {
			o.Fail("the workflow %q: %s", name, failure.Why(err))
		}
		if job != "" {
			r.doc.Workflows[name] = job
		}
		o.Text("init")
		o.Text("readme")
		o.Child("parameters")
	}
	r.app().Parameters = append(r.app().Parameters, p)
}

// text is a JSON string.
func text(s string) json.RawMessage {
	b, err := json.Marshal(s)
	if err != nil {
		return nil // a string has a JSON
	}
	return b
}

func (r *reader) enumeration(name string, p providerapi.ApplicationParameter, o *yamlnode.Object) {
	if len(p.Options) == 0 {
		o.Fail("the parameter %q has no options", name)
	}
	if d := o.Text("defaultValue"); d != "" && !slices.ContainsFunc(p.Options, func(e providerapi.EnumerationOption) bool { return e.Value == d || e.Name == d }) {
		o.Fail("the default of %q is none of its options", name)
	}
}

// part is a value of environment or sbatch.
func part(s string) providerapi.InvocationParameter {
	if strings.Contains(s, "{{") || strings.Contains(s, "{%") {
		return providerapi.InvocationParameter{Type: providerapi.PartJinja, Template: s}
	}
	return providerapi.InvocationParameter{Type: providerapi.PartWord, Word: s}
}

func (r *reader) invocation() {
	a := r.app()
	a.Environment, a.Sbatch = map[string]providerapi.InvocationParameter{}, map[string]providerapi.InvocationParameter{}
	r.o.Object("environment", func(o *yamlnode.Object) {
		for _, name := range o.Keys() {
			if !shell.IsName(name) {
				o.Fail("%q cannot be the name of an environment variable", name)
			}
			a.Environment[name] = part(o.Text(name))
		}
	})
	r.o.Object("sbatch", func(o *yamlnode.Object) {
		for _, name := range o.Keys() {
			a.Sbatch[name] = part(o.Text(name))
		}
	})
	invocation := r.o.Text("invocation")
	if expanded, err := jobtemplate.Expand([]jobtemplate.Part{{Name: "the invocation", Text: invocation}}, noSnippets()); err != nil {
		r.o.Fail("%s", failure.Why(err))
	} else if err := jobtemplate.Check(expanded.Text); err != nil {
		r.o.Fail("invocation: %s", failure.Why(err))
	}
	a.Invocation = []providerapi.InvocationParameter{{Type: providerapi.PartJinja, Template: invocation}}
	a.FileExtensions = r.o.Texts("extensions")
}

// noSnippets stand for the functions of the pre-processor when only syntax counts.
func noSnippets() map[string]jobtemplate.Snippet {
	all := map[string]jobtemplate.Snippet{}
	for _, name := range []string{"systemLoad", "systemUnload", "applicationLoad", "applicationUnload", "loadApplication", "unloadApplication", "versionResolver"} {
		all[name] = func([]string) (string, string, error) { return "", name, nil }
	}
	return all
}

func (r *reader) interfaces() {
	a := r.app()
	a.ApplicationType = providerapi.ApplicationBatch
	const highest = 65535
	r.o.Object("vnc", func(o *yamlnode.Object) {
		if o.Bool("enabled", false) {
			a.ApplicationType = providerapi.ApplicationVNC
		}
		a.VNC = &providerapi.ApplicationVNCSettings{Port: o.Int("port", 5900, 1, highest)}
		if password := o.Text("password"); password != "" {
			a.VNC.Password = &password
		}
	})
	r.o.Object("web", func(o *yamlnode.Object) {
		o.Bool("enabled", false)
		a.ApplicationType = providerapi.ApplicationWeb // Core takes the presence for it
		a.Web = &providerapi.ApplicationWebSettings{Port: o.Int("port", 80, 1, highest)}
	})
	mode := func(key string) string {
		mode := ""
		r.o.Object(key, func(o *yamlnode.Object) { mode = o.Required("mode") })
		return strings.ToUpper(mode)
	}
	if m := mode("ssh"); m != "" {
		if !slices.Contains([]string{"DISABLED", "OPTIONAL", "MANDATORY"}, m) {
			r.o.Fail("the mode of ssh must be Disabled, Optional or Mandatory")
		}
		a.SSH = &providerapi.ApplicationMode{Mode: m}
	}
	mode("inference")
	r.o.Child("modules")
	r.o.Child("ucx")
}

//go:embed builtin/*.yml
var files embed.FS

// Builtin are the applications that come with the module, in the order of their names (docs/applications.md).
func Builtin() ([]*Document, error) {
	entries, err := files.ReadDir("builtin")
	if err != nil {
		return nil, failure.Wrap(err, failure.Internal, "The built-in applications cannot be read")
	}
	var all []*Document
	for _, e := range entries {
		data, err := files.ReadFile(path.Join("builtin", e.Name()))
		if err != nil {
			return nil, failure.Wrap(err, failure.Internal, "The built-in application %s cannot be read", e.Name())
		}
		d, err := Parse(data)
		if err != nil {
			return nil, failure.Wrap(err, failure.Internal, "The built-in application %s: %s", e.Name(), failure.Why(err))
		}
		all = append(all, d)
	}
	return all, nil
}
