//go:build e2e

package e2e

import (
	"encoding/json"

	"ucloud-im/internal/providerapi"
)

// shellApp is an application that runs a line of shell.
func shellApp(kind string) providerapi.Application {
	name := map[string]string{providerapi.ApplicationBatch: "e2e-batch", providerapi.ApplicationWeb: "e2e-web", providerapi.ApplicationVNC: "e2e-vnc"}[kind]
	ref := providerapi.ApplicationReference{Name: name, Version: "1"}
	app := providerapi.Application{
		Metadata: providerapi.ApplicationMetadata{Name: ref.Name, Version: ref.Version, Authors: []string{"tests"}, Title: "Shell " + kind, Description: "Runs a line of shell.", Public: true},
		Invocation: providerapi.ApplicationInvocation{
			ApplicationType: kind,
			Tool: providerapi.ToolReference{Name: ref.Name, Version: ref.Version, Tool: &providerapi.Tool{Owner: "_ucloud", Description: providerapi.ToolDescription{
				Info: ref, DefaultNumberOfNodes: 1, DefaultTimeAllocation: providerapi.SimpleDuration{Minutes: 10}, Title: ref.Name, Backend: providerapi.BackendNative,
				LoadInstructions: &providerapi.LoadInstructions{Type: "Native"},
			}}},
			Invocation: []providerapi.InvocationParameter{
				{Type: providerapi.PartWord, Word: "bash"},
				{Type: providerapi.PartWord, Word: "-c"},
				{Type: providerapi.PartVariable, VariableNames: []string{"command"}},
			},
			Parameters: []providerapi.ApplicationParameter{
				{Type: providerapi.ParameterTextArea, Name: "command", Title: "Command", Description: "What to run."},
			},
			OutputFileGlobs: []string{"*"},
		},
	}
	switch kind {
	case providerapi.ApplicationWeb:
		app.Invocation.Web = &providerapi.ApplicationWebSettings{Port: 8080}
	case providerapi.ApplicationVNC:
		app.Invocation.VNC = &providerapi.ApplicationVNCSettings{Port: 5900}
	}
	return app
}

// textValue is a value of a text parameter.
func textValue(s string) providerapi.AppParameterValue {
	data, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string
	}
	return providerapi.AppParameterValue{Type: providerapi.ValueText, Value: data}
}
