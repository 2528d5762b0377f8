package rolegateway

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"ucloud-im/internal/config"
	"ucloud-im/internal/sandbox"
)

// stateDirectory is the gateway's own part of the state: what it may write to, and the server's database is not in it.
func stateDirectory(c *config.Config) string {
	return filepath.Join(c.Gateway.StateDirectory.String(), "gateway")
}

// moveRouteFile takes over the route file of versions that kept it beside the database, where a gateway in its sandbox
// cannot reach it. Usually there is none.
func (p *process) moveRouteFile() {
	earlier := filepath.Join(p.config.Gateway.StateDirectory.String(), routeFileName)
	if _, err := os.Lstat(p.routeFile()); errors.Is(err, fs.ErrNotExist) {
		_ = os.Rename(earlier, p.routeFile())
	} else {
		_ = os.Remove(earlier) // it has the keys of routes
	}
}

// enterSandbox takes the rights away that a gateway does not need, as gateway.sandbox says. When it does so the process
// begins anew, and the second time this only looks whether it has worked.
func (p *process) enterSandbox() error {
	if err := os.MkdirAll(stateDirectory(p.config), 0o700); err != nil {
		return fmt.Errorf("make the gateway's state directory: %w", err)
	}
	p.moveRouteFile()
	mode := p.config.Gateway.Sandbox
	if mode == "off" || !p.o.Sandbox {
		p.sandbox = "off"
		return nil
	}
	version, err := sandbox.ABI()
	if err == nil && !sandbox.Entered() {
		err = sandbox.Enter(sandboxRules(p.config, p.o), p.o.Program, append(os.Args[:1:1], p.o.Args...))
	}
	if err == nil {
		err = sandbox.Inside()
	}
	if err == nil {
		p.sandbox, p.confined = fmt.Sprintf("Landlock, version %d", version), true
		return nil
	}
	if mode == "require" {
		return fmt.Errorf("enter the sandbox, which gateway.sandbox demands: %w", err)
	}
	p.sandbox = "none: " + err.Error()
	if errors.Is(err, sandbox.ErrUnavailable) {
		p.sandbox = "none: the kernel has no Landlock"
	}
	p.log.Warn("the gateway runs without a sandbox", "error", err)
	return nil
}

// explain says what to do where the sandbox may be in the way. What a process has given up, neither it nor its successors get
// back.
func (p *process) explain(err error) error {
	if p.confined && errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w (the sandbox has the directories that were configured when the gateway was started, for others restart it: systemctl restart ucloud-gateway)", err)
	}
	return err
}

// What Go, its resolver and the metrics look at. Those that do not exist do no harm. Files that are replaced by others
// cannot be read any more then, except in the directories.
var systemFiles = []string{
	"/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/services", "/etc/protocols",
	"/etc/passwd", "/etc/group", "/etc/localtime", "/usr/share/zoneinfo",
	"/etc/ssl/certs", "/etc/pki/tls/certs", "/etc/pki/ca-trust/extracted", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates",
	"/proc", "/sys/fs/cgroup", "/sys/kernel/mm/transparent_hugepage",
}

// sandboxRules are the rights that are left.
func sandboxRules(c *config.Config, o Options) []sandbox.Rule {
	var rules []sandbox.Rule
	add := func(access sandbox.Access, paths ...string) {
		for _, p := range paths {
			if filepath.IsAbs(p) {
				rules = append(rules, sandbox.Rule{Path: p, Access: access})
			}
		}
	}
	if dir, err := filepath.Abs(o.ConfigDir); err == nil {
		add(sandbox.Read, dir)
	}
	add(sandbox.Read|sandbox.Write, stateDirectory(c), os.DevNull)
	add(sandbox.Read, systemFiles...)
	// Files that are replaced now and then: their directories. What a link in the configuration directory leads to is
	// elsewhere.
	files := c.Provider.Core.KeyFiles()
	if t := c.Gateway.TLS; t != nil {
		files = append(files, t.Certificate.String(), t.Key.File())
	}
	for _, f := range files {
		add(sandbox.Read, realDir(f), linkDir(f))
	}
	links, _ := os.ReadDir(o.ConfigDir)
	for _, e := range links {
		if e.Type()&os.ModeSymlink != 0 {
			add(sandbox.Read, realDir(filepath.Join(o.ConfigDir, e.Name())))
		}
	}
	for _, l := range append([]config.Listen{c.Gateway.RedirectHTTP, c.Gateway.MetricsListen}, c.Gateway.Listen...) {
		if l.IsSet() && l.Network() == "unix" {
			add(sandbox.Write, filepath.Dir(l.Address()))
		}
	}
	add(sandbox.Execute, filepath.Dir(o.Program), realDir(o.Program))
	return rules
}

// realDir is the directory of the file that a path leads to in the end; "" if there is none, or if it is the root.
func realDir(path string) string {
	p, err := filepath.EvalSymlinks(path)
	if dir := filepath.Dir(p); err == nil && dir != "/" {
		return dir
	}
	return ""
}

// linkDir is the directory of a path that is a link; "" for other paths. Below it is what the link may lead to next: those
// who mount secrets (Kubernetes, among others) lead it through a directory beside it that is another one each time.
func linkDir(path string) string {
	st, err := os.Lstat(path)
	if err != nil || st.Mode()&os.ModeSymlink == 0 {
		return ""
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil || dir == "/" {
		return ""
	}
	return dir
}
