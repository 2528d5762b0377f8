package providerapi

import "encoding/json"

// ApplicationReference names a version of an application.
type ApplicationReference struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// Application is the application of a job, whole (contract 24 section 1).
type Application struct {
	Metadata   ApplicationMetadata   `json:"metadata"`
	Invocation ApplicationInvocation `json:"invocation"`
}

// ApplicationMetadata says what the application is called.
type ApplicationMetadata struct {
	Name        string   `json:"name"`
	Version     string   `json:"version"`
	Authors     []string `json:"authors"`
	Title       string   `json:"title"`
	Description string   `json:"description"`
	Website     *string  `json:"website"`
	Public      bool     `json:"public"`
	FlavorName  *string  `json:"flavorName"`
	CreatedAt   Millis   `json:"createdAt"`
}

// Reference names the application.
func (m ApplicationMetadata) Reference() ApplicationReference {
	return ApplicationReference{Name: m.Name, Version: m.Version}
}

// Kinds of applications (ApplicationInvocation.ApplicationType).
const (
	ApplicationBatch = "BATCH"
	ApplicationWeb   = "WEB"
	ApplicationVNC   = "VNC"
)

// BackendNative is the backend of applications that run on Slurm.
const BackendNative = "NATIVE"

// ApplicationInvocation is how it is run (contract 24 section 1.2).
type ApplicationInvocation struct {
	Tool             ToolReference                  `json:"tool"`
	Invocation       []InvocationParameter          `json:"invocation"`
	Parameters       []ApplicationParameter         `json:"parameters"`
	Environment      map[string]InvocationParameter `json:"environment"`
	Sbatch           map[string]InvocationParameter `json:"sbatch"`
	ApplicationType  string                         `json:"applicationType"`
	VNC              *ApplicationVNCSettings        `json:"vnc"`
	Web              *ApplicationWebSettings        `json:"web"`
	SSH              *ApplicationMode               `json:"ssh"`
	OutputFileGlobs  []string                       `json:"outputFileGlobs"`
	FileExtensions   []string                       `json:"fileExtensions"`
	LicenseServers   []string                       `json:"licenseServers"`
	AllowMultiNode   *bool                          `json:"allowMultiNode"`
	AllowPublicLink  *bool                          `json:"allowPublicLink"`
	AdditionalMounts *bool                          `json:"allowAdditionalMounts"`
	AdditionalPeers  *bool                          `json:"allowAdditionalPeers"`
}

// ApplicationVNCSettings are those of a remote desktop.
type ApplicationVNCSettings struct {
	Password *string `json:"password"`
	Port     int     `json:"port"`
}

// ApplicationWebSettings are those of a web application.
type ApplicationWebSettings struct {
	Port int `json:"port"`
}

// ApplicationMode is a setting with a mode, such as ssh.
type ApplicationMode struct {
	Mode string `json:"mode"`
}

// ToolReference is the tool of an application.
type ToolReference struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Tool    *Tool  `json:"tool"`
}

// Tool is a tool with its description.
type Tool struct {
	Owner       string          `json:"owner"`
	CreatedAt   Millis          `json:"createdAt"`
	ModifiedAt  Millis          `json:"modifiedAt"`
	Description ToolDescription `json:"description"`
}

// ToolDescription says what a tool needs (contract 24 section 1.3).
type ToolDescription struct {
	Info                  ApplicationReference `json:"info"`
	DefaultNumberOfNodes  int                  `json:"defaultNumberOfNodes"`
	DefaultTimeAllocation SimpleDuration       `json:"defaultTimeAllocation"`
	RequiredModules       []string             `json:"requiredModules"`
	Authors               []string             `json:"authors"`
	Title                 string               `json:"title"`
	Description           string               `json:"description"`
	Backend               string               `json:"backend"`
	License               string               `json:"license"`
	Image                 *string              `json:"image"`
	SupportedProviders    []string             `json:"supportedProviders"`
	LoadInstructions      *LoadInstructions    `json:"loadInstructions"`
}

// LoadInstructions names software of the provider.
type LoadInstructions struct {
	Type         string                 `json:"type"` // "Native"
	Applications []ApplicationReference `json:"applications"`
}

// Types of invocation parts (contract 24 section 4).
const (
	PartWord     = "word"
	PartVariable = "var"
	PartFlag     = "bool_flag"
	PartEnv      = "env"
	PartJinja    = "jinja"
)

// InvocationParameter is a part of an invocation; Type says which fields count.
type InvocationParameter struct {
	Type                      string   `json:"type"`
	Word                      string   `json:"word"`
	Variable                  string   `json:"variable"`
	VariableNames             []string `json:"variableNames"`
	PrefixGlobal              string   `json:"prefixGlobal"`
	SuffixGlobal              string   `json:"suffixGlobal"`
	PrefixVariable            string   `json:"prefixVariable"`
	SuffixVariable            string   `json:"suffixVariable"`
	IsPrefixVariablePartOfArg bool     `json:"isPrefixVariablePartOfArg"`
	IsSuffixVariablePartOfArg bool     `json:"isSuffixVariablePartOfArg"`
	VariableName              string   `json:"variableName"`
	Flag                      string   `json:"flag"`
	Template                  string   `json:"template"`
}

// Types of application parameters (contract 24 section 2).
const (
	ParameterInputFile      = "input_file"
	ParameterInputDirectory = "input_directory"
	ParameterText           = "text"
	ParameterTextArea       = "textarea"
	ParameterInteger        = "integer"
	ParameterFloatingPoint  = "floating_point"
	ParameterBoolean        = "boolean"
	ParameterEnumeration    = "enumeration"
	ParameterPeer           = "peer"
	ParameterLicenseServer  = "license_server"
	ParameterNetworkIP      = "network_ip"
	ParameterIngress        = "ingress"
	ParameterWorkflow       = "workflow"
	ParameterModules        = "modules"
	ParameterPrivateNetwork = "private_network"
	ParameterReadme         = "readme"
)

// ApplicationParameter declares a parameter; Type says which fields count. Numbers are kept as they were written.
type ApplicationParameter struct {
	Type             string              `json:"type"`
	Name             string              `json:"name"`
	Optional         bool                `json:"optional"`
	DefaultValue     json.RawMessage     `json:"defaultValue"`
	Title            string              `json:"title"`
	Description      string              `json:"description"`
	Min              *json.Number        `json:"min"`
	Max              *json.Number        `json:"max"`
	Step             *json.Number        `json:"step"`
	UnitName         string              `json:"unitName"`
	TrueValue        string              `json:"trueValue"`
	FalseValue       string              `json:"falseValue"`
	Options          []EnumerationOption `json:"options"`
	Tagged           []string            `json:"tagged"`
	SupportedModules []SupportedModule   `json:"supportedModules"`
}

// EnumerationOption is a choice: Name is shown, Value is meant.
type EnumerationOption struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// SupportedModule is a module that the user may choose.
type SupportedModule struct {
	Name             string     `json:"name"`
	Description      string     `json:"description"`
	ShortDescription string     `json:"shortDescription"`
	DependsOn        [][]string `json:"dependsOn"`
	DocumentationURL string     `json:"documentationUrl"`
}

// Types of parameter values (contract 20 section 4.3).
const (
	ValueFile           = "file"
	ValueBoolean        = "boolean"
	ValueText           = "text"
	ValueInteger        = "integer"
	ValueFloatingPoint  = "floating_point"
	ValuePeer           = "peer"
	ValueLicenseServer  = "license_server"
	ValueBlockStorage   = "block_storage"
	ValueNetwork        = "network"
	ValueIngress        = "ingress"
	ValuePrivateNetwork = "private_network"
	ValueWorkflow       = "workflow"
	ValueModules        = "modules"
	ValueAPIServer      = "api_server" // carries a secret; never stored
)

// AppParameterValue is a value that the user gave; Type says which fields count. Value is kept as it was written: an integer
// above 2^53 must not go through floating point.
type AppParameterValue struct {
	Type          string                 `json:"type"`
	Value         json.RawMessage        `json:"value,omitempty"`
	Path          string                 `json:"path"`
	ReadOnly      bool                   `json:"readOnly"`
	MountPath     string                 `json:"mountPath"`
	Hostname      string                 `json:"hostname"`
	JobID         string                 `json:"jobId"`
	ID            string                 `json:"id"`
	Port          int                    `json:"port"`
	Specification *WorkflowSpecification `json:"specification,omitempty"`
	Modules       []string               `json:"modules"`
}

// WorkflowSpecification is a script that the user may have edited.
type WorkflowSpecification struct {
	ApplicationName string                 `json:"applicationName"`
	Language        string                 `json:"language"`
	Init            *string                `json:"init"`
	Job             *string                `json:"job"`
	Readme          *string                `json:"readme"`
	Inputs          []ApplicationParameter `json:"inputs"`
}
