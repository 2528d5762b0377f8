package doctest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"ucloud-im/internal/testkit"
	"ucloud-im/packaging"
)

// directives reads a unit: values by name, of all sections.
func directives(unit string) map[string][]string {
	out := map[string][]string{}
	for line := range strings.Lines(unit) {
		line = strings.TrimSpace(line)
		name, value, ok := strings.Cut(line, "=")
		if ok && !strings.HasPrefix(line, "#") {
			out[name] = append(out[name], value)
		}
	}
	return out
}

// TestUnits: what the units must say, and what would break the service without a message.
func TestUnits(t *testing.T) {
	t.Parallel()
	units := packaging.Units()
	for name, role := range map[string]string{"ucloud-server.service": "server", "ucloud-gateway.service": "gateway"} {
		d := directives(units[name])
		for key, want := range map[string]string{
			"Type": "notify", "User": "ucloud", "Group": "ucloud", "ExecStart": "/usr/bin/ucloud " + role + " $UCLOUD_IM_OPTS",
			"ExecReload": "/bin/kill -HUP $MAINPID", "WantedBy": "multi-user.target",
		} {
			if !slices.Equal(d[key], []string{want}) {
				t.Errorf("%s: %s=%q, want %q", name, key, d[key], want)
			}
		}
	}
	server := directives(units["ucloud-server.service"])
	for key, want := range map[string]string{"KillMode": "process", "RuntimeDirectoryPreserve": "yes"} {
		if !slices.Equal(server[key], []string{want}) {
			t.Errorf("ucloud-server.service: %s=%q, want %q", key, server[key], want)
		}
	}
	for key := range server {
		// systemd.exec(5): these imply NoNewPrivileges for a service that has a User, so that sudo fails, or they set
		// up a mount namespace, which the instances would inherit.
		for _, prefix := range []string{
			"NoNewPrivileges", "Protect", "Private", "Restrict", "SystemCall", "LockPersonality", "MemoryDenyWriteExecute", "ReadWritePaths",
			"ReadOnlyPaths", "InaccessiblePaths", "BindPaths", "DynamicUser", "TemporaryFileSystem", "RootDirectory",
		} {
			if strings.HasPrefix(key, prefix) {
				t.Errorf("ucloud-server.service: %s would reach the instances or keep sudo from working", key)
			}
		}
	}
	gateway := directives(units["ucloud-gateway.service"])
	if !slices.Equal(gateway["NotifyAccess"], []string{"all"}) {
		t.Error("ucloud-gateway.service: a successor could not tell that it is the main process")
	}
	if !slices.Equal(gateway["NoNewPrivileges"], []string{"yes"}) {
		t.Error("ucloud-gateway.service: the gateway needs no privileges")
	}
}

// TestUnitsVerify asks systemd itself, where it is installed.
func TestUnitsVerify(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed; TestUnits checks what matters most")
	}
	dir := t.TempDir()
	var files []string
	for name, text := range packaging.Units() {
		// The program is not installed here.
		text = strings.ReplaceAll(text, "/usr/bin/ucloud ", "/bin/true ")
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	cmd := exec.CommandContext(t.Context(), program, append([]string{"verify", "--man=no"}, files...)...)
	out, err := cmd.CombinedOutput()
	// Units of the machine itself are loaded too; only what is said about ours counts.
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "ucloud-") {
			t.Errorf("systemd: %s", line)
		}
	}
	if err != nil {
		t.Logf("systemd-analyze: %v\n%s", err, out)
	}
}

// TestPackage: the description of the package names files that are there, or are built, and puts them where the program
// and the guide expect them.
func TestPackage(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(filepath.Join(root, "packaging/nfpm.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var p struct {
		Contents []struct {
			Src, Dst string
			Info     struct{ Mode int } `yaml:"file_info"`
		}
		Scripts map[string]string
	}
	if err := yaml.Unmarshal(data, &p); err != nil {
		t.Fatal(err)
	}
	placed := map[string]string{}
	for _, c := range p.Contents {
		placed[c.Src] = c.Dst
		if strings.HasPrefix(c.Src, "bin/") {
			continue
		}
		if _, err := os.Stat(filepath.Join(root, c.Src)); err != nil {
			t.Error(err)
		}
	}
	for src, dst := range map[string]string{"bin/ucloud": "/usr/bin/ucloud", "bin/ucloud-user": "/usr/libexec/ucloud/ucloud-user"} {
		if placed[src] != dst {
			t.Errorf("%s is installed as %q, want %q", src, placed[src], dst)
		}
	}
	for src := range placed {
		if strings.Contains(src, "ucloud-dev") {
			t.Error("the development program must not be packaged")
		}
	}
	for name := range packaging.Units() {
		if placed["packaging/systemd/"+name] == "" {
			t.Errorf("the package lacks %s", name)
		}
	}
	for _, script := range p.Scripts {
		if out, err := exec.CommandContext(t.Context(), "/bin/sh", "-n", filepath.Join(root, script)).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", script, err, out)
		}
	}
}

// TestNginx has nginx check the example of the guide.
func TestNginx(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Component("nginx"))
	program, err := testkit.Program("nginx")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			if b.kind != "nginx" {
				continue
			}
			seen++
			dir := t.TempDir()
			cert, key := selfSigned(t, dir)
			text := strings.NewReplacer(
				"/etc/ucloud/tls/fullchain.pem", cert, "/etc/ucloud/tls/privkey.pem", key,
				"listen 443 ssl", "listen unix:"+dir+"/s ssl", // no port of this machine is needed
			).Replace(b.text)
			conf := "error_log stderr;\npid " + dir + "/pid;\nevents {}\nhttp {\naccess_log off;\n"
			for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
				conf += kind + "_temp_path " + dir + "/" + kind + ";\n"
			}
			file := filepath.Join(dir, "nginx.conf")
			if err := os.WriteFile(file, []byte(conf+text+"}\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.CommandContext(t.Context(), program, "-t", "-q", "-p", dir, "-e", "stderr", "-c", file).CombinedOutput()
			if err != nil || strings.Contains(string(out), "[warn]") {
				t.Errorf("%s:%d: nginx: %v\n%s", p.name, b.line, err, out)
			}
		}
	}
	if seen == 0 {
		t.Error("no example for nginx found")
	}
}

// selfSigned makes a certificate for a moment.
func selfSigned(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"im.example.net"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// TestDependencies: the page lists the modules that our code imports, and no other ones.
func TestDependencies(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(root, "docs/dependencies.md"))
	if err != nil {
		t.Fatal(err)
	}
	goList := func(args ...string) []string {
		cmd := exec.CommandContext(t.Context(), "go", append([]string{"list"}, args...)...)
		cmd.Dir = root
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go list %v: %v", args, err)
		}
		return strings.Fields(string(out))
	}
	// Tools are used by their commands and imported nowhere.
	used := []string{"gotest.tools/gotestsum", "honnef.co/go/tools", "mvdan.cc/gofumpt"}
	modules := goList("-m", "-f", "{{.Path}}", "all")
	for _, imported := range goList("-tags", "e2e,bench", "-f",
		`{{join .Imports "\n"}}{{"\n"}}{{join .TestImports "\n"}}{{"\n"}}{{join .XTestImports "\n"}}`, "./...") {
		for _, m := range modules {
			if m != "ucloud-im" && (imported == m || strings.HasPrefix(imported, m+"/")) && !slices.Contains(used, m) {
				used = append(used, m)
			}
		}
	}
	var listed []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		listed = append(listed, m[1])
	}
	for _, m := range used {
		if !slices.Contains(listed, m) {
			t.Errorf("docs/dependencies.md lacks %s", m)
		}
	}
	for _, m := range listed {
		if !slices.Contains(used, m) {
			t.Errorf("docs/dependencies.md lists %s, which nothing imports", m)
		}
	}
}

// TestMetricsExist: the metrics that the guide names are those that the programs have.
func TestMetricsExist(t *testing.T) {
	t.Parallel()
	var source strings.Builder
	for _, file := range []string{"internal/gateway/metrics.go", "internal/roleserver/metrics.go"} {
		data, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		source.Write(data)
	}
	var existing []string
	for _, m := range regexp.MustCompile(`"(ucloud_gateway_[a-z_]+)"`).FindAllStringSubmatch(source.String(), -1) {
		existing = append(existing, m[1])
	}
	for _, m := range regexp.MustCompile(`counter\("([a-z_]+)"`).FindAllStringSubmatch(source.String(), -1) {
		existing = append(existing, "ucloud_instances_"+m[1])
	}
	for _, m := range regexp.MustCompile(`gauge\("([a-z]+)", "([a-z_]+)"`).FindAllStringSubmatch(source.String(), -1) {
		existing = append(existing, "ucloud_"+m[1]+"_"+m[2])
	}
	named := regexp.MustCompile(`ucloud_(?:gateway|instances|core|events|outbox|users)_[a-z_]+`)
	var mentioned []string
	for _, p := range pages(t) {
		for _, span := range p.spans() {
			if named.MatchString(span) && named.FindString(span) == span {
				mentioned = append(mentioned, span)
			}
		}
	}
	for _, m := range mentioned {
		if !slices.Contains(existing, m) {
			t.Errorf("the metric %s does not exist", m)
		}
	}
	for _, m := range existing {
		if !slices.Contains(mentioned, m) {
			t.Errorf("no page names the metric %s", m)
		}
	}
	if len(existing) < 20 {
		t.Errorf("only %d metrics found", len(existing))
	}
}
