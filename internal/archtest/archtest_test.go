package archtest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "ucloud-im/"

// goList runs go list in the module's root and gives its lines.
func goList(t *testing.T, args ...string) []string {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list"}, args...)...)
	cmd.Dir = "../.."
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %s: %v", strings.Join(args, " "), err)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

// TestPrograms: what must never be linked into a program.
func TestPrograms(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		program   string
		forbidden map[string]string // package, or prefix ending in /..., and why
	}{
		{"./cmd/ucloud-user", map[string]string{
			module + "internal/store":       "an instance runs as a user and has no database",
			module + "internal/launcher":    "an instance starts no instances and must not know sudo",
			module + "internal/config":      "an instance reads no configuration (contract 40 CFG-8)",
			module + "internal/coreapi":     "an instance has no token of the provider (design D2)",
			module + "internal/auth":        "Core's token never reaches an instance (design D2)",
			module + "internal/gateway":     "the instance is behind the gateway",
			module + "internal/outbox":      "what must reach Core goes through the server (design D8)",
			module + "internal/devcore":     "the simulator is for ucloud-dev alone",
			module + "internal/testkit/...": "test code",
			"database/sql":                  "no database",
			"modernc.org/...":               "no database, and thousands of instances share the memory",
			"github.com/jackc/...":          "no database",
			"github.com/prometheus/...":     "0.4 MiB for each of thousands of instances",
			"github.com/spf13/...":          "the instance has no command line",
			"github.com/goccy/...":          "the instance reads no configuration",
			"github.com/golang-jwt/...":     "Core's token never reaches an instance",
			"testing":                       "test code",
		}},
		{"./cmd/ucloud", map[string]string{
			module + "internal/devcore":     "the simulator is for ucloud-dev alone",
			module + "internal/demo":        "the demo is for ucloud-dev alone",
			module + "internal/instance":    "instances are a program of their own",
			module + "internal/fileserver":  "instances are a program of their own",
			module + "internal/testkit/...": "test code",
			"testing":                       "test code",
		}},
	} {
		for _, dep := range goList(t, "-deps", tc.program) {
			for pattern, why := range tc.forbidden {
				if matches(pattern, dep) {
					t.Errorf("%s links %s: %s", tc.program, dep, why)
				}
			}
		}
	}
}

func matches(pattern, pkg string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "/..."); ok {
		return pkg == prefix || strings.HasPrefix(pkg, prefix+"/")
	}
	return pkg == pattern
}

// imports lists the direct imports of each package of the module, without those of tests.
func imports(t *testing.T) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	for _, line := range goList(t, "-f", `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}`, "./...") {
		fields := strings.Fields(line)
		out[fields[0]] = fields[1:]
	}
	return out
}

// TestImports: who may import what.
func TestImports(t *testing.T) {
	t.Parallel()
	for _, rule := range []struct {
		imported string
		allowed  []string // packages below the module, "…/..." for subtrees
		why      string
	}{
		{"os/exec", []string{
			"internal/launcher", "internal/localuser", "internal/instance", "internal/handover", "internal/driveplan",
			"internal/cli", "internal/demo", "internal/testkit/...", "internal/config", "internal/localengine", "internal/jobrunner", "internal/slurm",
			"internal/terminal",
		}, "programs are started in few, named places"},
		{"database/sql", []string{"internal/store/..."}, "nothing else knows SQL"},
		{"github.com/jackc/pgx/v5", []string{"internal/store/...", "internal/testkit/storetest"}, "nothing else knows SQL"},
		{module + "internal/devcore", []string{"cmd/ucloud-dev", "internal/demo", "internal/devcore/..."}, "the simulator is for development"},
		{module + "internal/config", []string{
			"cmd/ucloud", "internal/cli", "internal/operator", "internal/roleserver", "internal/rolegateway", "internal/jobsite",
		}, "packages take options; only roles and commands read the configuration"},
		{module + "internal/launcher", []string{"internal/roleserver", "internal/cli", "internal/demo", "internal/testkit/...", "internal/operator"}, "only the server starts instances"},
		{"github.com/coder/websocket", []string{
			"internal/websock", "internal/uploads", "internal/joblogs", "internal/terminal", "internal/fileserver", // see TestWebSockets
			"internal/events", "internal/uploads/client", // clients
			"internal/devcore", "internal/demo", "internal/testkit/...",
		}, "the bounds of WebSockets are in websock"},
		{"testing", []string{"internal/testkit/...", "internal/providerapi/apischema"}, "test code does not belong into programs"},
	} {
		for pkg, list := range imports(t) {
			short := strings.TrimPrefix(pkg, module)
			if slices.Contains(list, rule.imported) && !slices.ContainsFunc(rule.allowed, func(a string) bool { return matches(a, short) }) &&
				!strings.Contains(short, "/internal/") {
				t.Errorf("%s imports %s: %s", short, rule.imported, rule.why)
			}
		}
	}
}

// TestWebSockets: an instance accepts all its WebSockets through websock, where their bounds are. Others may use the
// library for its constants, and not to accept or to hold a connection.
func TestWebSockets(t *testing.T) {
	t.Parallel()
	for _, pkg := range []string{"uploads", "joblogs", "terminal", "fileserver"} {
		files, err := filepath.Glob("../" + pkg + "/*.go")
		if err != nil || len(files) == 0 {
			t.Fatal(pkg, err)
		}
		for _, name := range files {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, forbidden := range []string{"websocket.Accept", "websocket.Conn"} {
				if !strings.HasSuffix(name, "_test.go") && bytes.Contains(text, []byte(forbidden)) {
					t.Errorf("%s uses %s: take that of websock", name, forbidden)
				}
			}
		}
	}
}

// TestSimulatorStandsAlone: the simulator must not inherit a bug of the implementation.
func TestSimulatorStandsAlone(t *testing.T) {
	t.Parallel()
	allowed := []string{"internal/providerapi", "internal/ident", "internal/auth"}
	for _, dep := range imports(t)[module+"internal/devcore"] {
		if short, ours := strings.CutPrefix(dep, module); ours && !slices.Contains(allowed, short) {
			t.Errorf("internal/devcore imports %s", short)
		}
	}
}

// layers is the reading order of style and architecture: a package imports only from layers above its own, never from
// its own or from one below.
var layers = [][]string{
	{"ident", "failure", "observability", "signkey"},
	{"providerapi", "httpx", "ipc", "hoptoken", "intent", "auth", "sockdiag", "sandbox", "handover", "localuser", "shell", "software", "yamlnode", "nodump", "trustpath"},
	{"ipcapi", "config", "store", "coreapi", "jobscript", "jobtemplate", "slurm"},
	{"outbox", "onetime", "drives", "events", "products", "localengine", "jobrender", "slurmcheck", "applications", "tasks"},
	{"usermap", "launcher", "files", "driveplan", "drivelookup", "instance", "intentclient", "intentpolicy", "jobs", "jobsite", "signingkeys", "taskserver", "browserlink"},
	{"fileserver", "integration", "operator", "gateway", "jobrunner", "websession"},
	{"cli", "roleserver", "roleuser", "rolegateway"},
}

// TestLayers checks the direction of imports among the packages named in layers.
func TestLayers(t *testing.T) {
	t.Parallel()
	layerOf := map[string]int{}
	for i, layer := range layers {
		for _, name := range layer {
			layerOf[module+"internal/"+name] = i
		}
	}
	// Within a layer these follow one another.
	exceptions := []string{
		"failure -> ident", "observability -> ident", "signkey -> failure", "ipc -> failure", "usermap -> launcher", "signingkeys -> usermap", "jobrunner -> fileserver",
	}
	for pkg, list := range imports(t) {
		from, known := layerOf[pkg]
		if !known {
			continue
		}
		for _, dep := range list {
			to, ours := layerOf[dep]
			edge := strings.TrimPrefix(pkg, module+"internal/") + " -> " + strings.TrimPrefix(dep, module+"internal/")
			if ours && to >= from && !slices.Contains(exceptions, edge) {
				t.Errorf("%s is against the reading order", edge)
			}
		}
	}
}
