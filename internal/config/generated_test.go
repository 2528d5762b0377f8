package config

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	yaml "github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

const referencePath = "../../docs/configuration.md"

// docs/configuration.md is what the structs say; -update writes it.
func TestReferenceIsFresh(t *testing.T) {
	t.Parallel()
	if *update {
		if err := os.WriteFile(referencePath, []byte(Reference()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(referencePath)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(have), Reference()); diff != "" {
		t.Errorf("run go test ./internal/config -run TestReferenceIsFresh -update (-have +want):\n%s", diff)
	}
}

// CFG-6: every key has a description, and every optional one a documented default.
func TestEveryKeyIsDocumented(t *testing.T) {
	t.Parallel()
	for _, root := range []reflect.Type{
		configType, reflect.TypeFor[ServerFile](), reflect.TypeFor[SecretsFile](), reflect.TypeFor[Exec](),
		reflect.TypeFor[hostForm](), reflect.TypeFor[secretForm](), reflect.TypeFor[fractionForm](),
	} {
		walkKeys(root, "", func(path string, k *keyInfo) {
			if len(k.doc) < 5 || !strings.HasSuffix(strings.TrimRight(k.doc, "…"), ".") && !strings.HasSuffix(k.doc, "…") {
				t.Errorf("%s %s: description %q", root, path, k.doc)
			}
			if !k.hasDefault && k.defaultDoc == "" && k.need == "" && !isSection(k) {
				t.Errorf("%s %s: neither default nor what it needs", root, path)
			}
			if k.hasDefault && k.need == "yes" {
				t.Errorf("%s %s: required and with a default", root, path)
			}
			if k.hasDefault {
				v := reflect.New(k.typ).Elem()
				(&decoder{dir: "/etc/ucloud", problems: &Problems{}, places: map[place]position{}, secrets: new([]string)}).setDefault(v, k)
			}
		})
	}
}

// The schema is valid, and accepts and refuses what the parser does as far as a schema can.
func TestSchema(t *testing.T) {
	t.Parallel()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema()))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("config.json", doc); err != nil {
		t.Fatal(err)
	}
	compile := func(ref string) *jsonschema.Schema {
		s, err := compiler.Compile("config.json" + ref)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	schemas := map[string]*jsonschema.Schema{
		"config.yml": compile(""), "server.yml": compile("#/$defs/server.yml"), "secrets.yml": compile("#/$defs/secrets.yml"),
	}
	validate := func(name string, data []byte) error {
		asJSON, err := yaml.YAMLToJSON(data)
		if err != nil {
			t.Fatal(err)
		}
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(asJSON))
		if err != nil {
			t.Fatal(err)
		}
		return schemas[name].Validate(v)
	}
	files, _ := filepath.Glob("testdata/examples/*/*.yml")
	ours, _ := filepath.Glob("../../examples/config/*.yml")
	if files = append(files, ours...); len(files) < 8 {
		t.Fatalf("only %d examples", len(files))
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate(filepath.Base(f), data); err != nil {
			t.Errorf("%s: %v", f, err)
		}
	}
	for _, wrong := range []string{
		strings.Replace(minimal, "id: demo", "idd: demo", 1), strings.Replace(minimal, "id: demo", "id: -demo", 1),
		strings.Replace(minimal, "unit: TiB", "unit: Tib", 1), minimal + "gateway: { hold: { timeout: 5 } }\n",
		minimal + "gateway: { listen: [] }\n", minimal + "tasks: { maxPerUser: 0 }\n", minimal + "logs: { level: verbose }\n",
	} {
		if validate("config.yml", []byte(wrong)) == nil {
			t.Errorf("the schema accepts:\n%s", wrong)
		}
	}
}

// What is printed can be loaded again and is the same, for each example and role.
func TestPrintRoundTrip(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"birch", "cedar", "elm"} {
		printAndReload(t, mustLoad(t, filepath.Join("testdata/examples", name), RoleGateway))
	}
}

func TestPrint(t *testing.T) {
	t.Parallel()
	c := mustLoad(t, "testdata/examples/birch", RoleServer)
	show := func(o PrintOptions) string {
		t.Helper()
		var b bytes.Buffer
		if err := c.Print(&b, o); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	if got, want := show(PrintOptions{KeyPath: "userInstances", Origin: true}), "group: ucloud_users # config.yml:13\n"; !strings.HasPrefix(got, want) {
		t.Errorf("got:\n%s", got)
	}
	if got := show(PrintOptions{KeyPath: "userInstances.startTimeout", Effective: true, Origin: true}); got != "15s # default\n" {
		t.Errorf("got %q", got)
	}
	if got := show(PrintOptions{KeyPath: "services.slurm.machines.birch-gpu.groups.h100.cpu[1]"}); got != "64\n" {
		t.Errorf("got %q", got)
	}
	if got := show(PrintOptions{KeyPath: "gateway.listen"}); got != "- \"10.20.0.5:8889\"\n" {
		t.Errorf("got %q", got)
	}
	if strings.Contains(show(PrintOptions{}), "startTimeout") || !strings.Contains(show(PrintOptions{Effective: true}), "startTimeout") {
		t.Error("defaults are shown in the wrong case")
	}
	if got := show(PrintOptions{KeyPath: "server.database.password"}); got != "file: /etc/ucloud/secrets.d/db-password\n" {
		t.Errorf("got %q", got)
	}
	var missing *ErrNoSuchKey
	if err := c.Print(new(bytes.Buffer), PrintOptions{KeyPath: "gateway.hold.timout"}); err == nil || !strings.Contains(err.Error(), "gateway.hold.timeout") {
		t.Errorf("error %v (%v)", err, missing)
	}
	for _, effective := range []bool{false, true} {
		var v map[string]any
		if err := json.Unmarshal([]byte(show(PrintOptions{JSON: true, Effective: effective})), &v); err != nil {
			t.Fatal(err)
		}
		provider, ok := v["provider"].(map[string]any)
		if !ok || provider["id"] != "birch" {
			t.Errorf("JSON: %v", v)
		}
	}
	if b, err := json.Marshal(c); err != nil || !bytes.Contains(b, []byte(`"birch"`)) {
		t.Errorf("json.Marshal: %s, %v", b, err)
	}
}
