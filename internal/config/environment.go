package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// environment checks what the configuration says about this machine (CFG-5). It reads and never writes; it binds no
// port and runs no program. Each role checks what it will use itself.
func (l *loader) environment() {
	l.logLevel()
	l.checkAccount()
	l.checkOwnFiles()
	l.checkCoreKeys()
	l.checkPaths()
	l.checkDirectories()
	l.resolveSecrets()
	l.checkCertificate()
	if l.options.Role.readsSecrets() {
		l.checkLaunchGroup()
		l.checkPrograms()
		l.checkDriveRoots()
		l.checkStaticFile()
		l.checkBrandingFiles()
	}
}

// logLevel applies UCLOUD_LOG_LEVEL. It is the only variable that changes a value of the configuration (contract 40
// section 14).
func (l *loader) logLevel() {
	switch level := l.options.Getenv("UCLOUD_LOG_LEVEL"); level {
	case "":
	case "error", "warn", "info", "debug":
		l.config.Logs.Level = level
	default:
		l.warnf("CFG-5", "logs.level", "use error, warn, info or debug", "UCLOUD_LOG_LEVEL has the unknown value %s and is ignored", quote(level))
	}
}

// ErrRoot is what the roles answer root with, before they read anything (SEC-5).
var ErrRoot = errors.New("the service refuses to run as root: start it as the service account")

// checkAccount refuses root as the service account (SEC-5).
func (l *loader) checkAccount() {
	if l.options.Role == RoleCheck && l.options.Service == nil {
		return // root checks for a service account that was not named
	}
	if l.service().UID == 0 {
		l.fileProblem(Error, "SEC-5", l.config.source("config").name, "the service refuses to run as root", "start it as the service account, usually ucloud")
	}
}

// checkOwnFiles makes sure that nobody but root and the service account decides what the configuration says.
func (l *loader) checkOwnFiles() {
	for _, path := range append([]string{l.config.Dir}, l.config.source("config").path) {
		st, err := os.Stat(path)
		if err != nil {
			l.fileProblem(Error, "CFG-1", l.config.source("config").name, shortError(err), "")
			continue
		}
		if why := l.untrusted(st, false); why != "" {
			l.fileProblem(Error, "SEC-1", l.config.source("config").name, path+" "+why, "chown root and chmod go-w "+path)
		}
	}
}

// untrusted tells why somebody else than root and the service account could change a file or directory, or "". With
// sticky, a directory that everybody may write to is fine if it has the sticky bit, since others cannot rename our files
// in it (inode(7)).
func (l *loader) untrusted(st fs.FileInfo, sticky bool) string {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return "has an unknown owner"
	}
	return l.rules(sticky).Why(&unix.Stat_t{Uid: sys.Uid, Mode: sys.Mode})
}

// maxKeyBytes bounds a file with public keys.
const maxKeyBytes = 64 << 10

func (l *loader) checkCoreKeys() {
	for i, path := range l.config.Provider.Core.KeyFiles() {
		key := fmt.Sprintf("provider.core.certificates[%d]", i)
		data, err := readFollowing(path, maxKeyBytes)
		if err != nil {
			remedy := "put the public key of UCloud/Core there (contract 01 section 2)"
			if errors.Is(err, fs.ErrNotExist) && len(l.config.Provider.Core.Certificates) == 0 {
				l.errorf("CFG-5", "provider.core.certificates", remedy, "there is neither ucloud_key.pub nor ucloud_crt.pem in %s", l.config.Dir)
				continue
			}
			l.errorf("CFG-5", key, remedy, "%s", shortError(err))
			continue
		}
		if st, err := os.Stat(path); err == nil {
			// Who can write this file decides whose requests we obey.
			if why := l.untrusted(st, false); why != "" {
				l.errorf("SEC-1", key, "chown root and chmod go-w "+path, "%s %s", path, why)
			}
		}
		if len(strings.TrimSpace(string(data))) == 0 {
			l.errorf("CFG-5", key, "put the public key of UCloud/Core there", "%s is empty", path)
			continue
		}
		if l.options.ParseKeys != nil {
			if err := l.options.ParseKeys(data); err != nil {
				l.errorf("CFG-5", key, "use an RSA public key of 2048 bits or more as PEM, DER or bare base64", "%s: %v", path, err)
			}
		}
	}
}

// checkStaticFile makes sure that nobody but root and the service account decides who has which account. Whoever reads the
// file checks again, by descriptor.
func (l *loader) checkStaticFile() {
	c := l.config.Services.Identity.Static
	if c == nil || c.File == "" {
		return
	}
	if _, err := os.Stat(string(c.File)); err != nil {
		return // reported as a file that is not there
	}
	f, err := l.trusted(string(c.File), false)
	if err != nil {
		l.errorf("SEC-1", "services.identityManagement.static.file", remedyOf(err), "%s", err)
		return
	}
	f.Close()
}

// checkPaths checks the files and directories that must exist, as their tags say.
func (l *loader) checkPaths() {
	check := func(doc, path string, v reflect.Value, k *keyInfo) {
		p, ok := v.Interface().(Path)
		if !ok || p == "" || k.exists == "" || strings.HasPrefix(path, "gateway.tls.") {
			return // the certificate has a rule of its own
		}
		st, err := os.Stat(string(p))
		switch {
		case err != nil:
			l.problems.add(l.config.problem(doc, Error, "CFG-5", path, shortError(err), "create it or correct the path"))
		case k.exists == "dir" && !st.IsDir():
			l.problems.add(l.config.problem(doc, Error, "CFG-5", path, string(p)+" is not a directory", "correct the path"))
		case k.exists == "file" && !st.Mode().IsRegular():
			l.problems.add(l.config.problem(doc, Error, "CFG-5", path, string(p)+" is not a regular file", "correct the path"))
		}
	}
	l.eachValue(func(doc, path string, v reflect.Value, k *keyInfo) { check(doc, path, v, k) })
}

// eachValue visits every leaf of all files that were read.
func (l *loader) eachValue(f func(doc, path string, v reflect.Value, k *keyInfo)) {
	c := l.config
	visit := func(doc string, root reflect.Value) {
		walkValues(root, "", func(path string, v reflect.Value, k *keyInfo, leaf bool) bool {
			if leaf {
				f(doc, path, v, k)
			}
			return true
		})
	}
	visit("config", reflect.ValueOf(c).Elem())
	if c.Server != nil {
		visit("server", reflect.ValueOf(c.Server).Elem())
	}
	if c.Secrets != nil {
		visit("secrets", reflect.ValueOf(c.Secrets).Elem())
	}
}

// checkDirectories checks directories of the service that exist already; the service makes those that are missing.
func (l *loader) checkDirectories() {
	c := l.config
	dirs := []struct {
		key, path string
		most      fs.FileMode // bits that may be set
	}{
		{"ipc.directory", string(c.IPC.Directory), 0o755},
		{"stateDirectory", string(c.StateDirectory), 0o700},
		{"scripts.spool", string(c.Scripts.Spool), 0o700},
	}
	if c.Logs.Destination == "file" {
		dirs = append(dirs, struct {
			key, path string
			most      fs.FileMode
		}{"logs.directory", string(c.Logs.Directory), 0o750})
	}
	for _, d := range dirs {
		st, err := os.Stat(d.path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			continue
		}
		switch {
		case err != nil:
			l.errorf("CFG-5", d.key, "correct the path", "%s", shortError(err))
		case !st.IsDir():
			l.errorf("CFG-5", d.key, "correct the path", "%s is not a directory", d.path)
		default:
			if why := l.untrusted(st, false); why != "" {
				l.errorf("CFG-5", d.key, fmt.Sprintf("chown the service account and chmod %04o %s", d.most, d.path), "%s %s", d.path, why)
			} else if more := st.Mode().Perm() &^ d.most; more != 0 {
				l.warnf("CFG-5", d.key, fmt.Sprintf("chmod %04o %s", d.most, d.path), "%s has mode %04o", d.path, st.Mode().Perm())
			}
		}
	}
}

// resolveSecrets reads the secrets that the role uses. The gateway has no business with those of the server.
func (l *loader) resolveSecrets() {
	walk := func(doc string, root reflect.Value) {
		walkValues(root, "", func(path string, v reflect.Value, _ *keyInfo, _ bool) bool {
			s, ok := v.Addr().Interface().(*SecretRef)
			if !ok || !s.IsSet() || doc == "config" && !l.uses(path) {
				return true
			}
			if err := s.resolve(l.options.Getenv, l.secretFile); err != nil {
				rule, remedy := "SEC-2", "create it, or correct the reference"
				if b, ok := errors.AsType[*badFile](err); ok {
					rule, remedy = "SEC-1", b.remedy
				}
				l.problems.add(l.config.problem(doc, Error, rule, path, shortError(err), remedy))
				return true
			}
			l.secrets = append(l.secrets, s.Value().Reveal())
			return true
		})
	}
	c := l.config
	walk("config", reflect.ValueOf(c).Elem())
	if c.Server != nil {
		walk("server", reflect.ValueOf(c.Server).Elem())
	}
	if c.Secrets != nil {
		walk("secrets", reflect.ValueOf(c.Secrets).Elem())
	}
}

func (l *loader) uses(path string) bool {
	switch l.options.Role {
	case RoleCheck:
		return true
	case RoleGateway:
		return strings.HasPrefix(path, "gateway.")
	}
	return !strings.HasPrefix(path, "gateway.")
}

// checkLaunchGroup checks the group of users (X-04, X-19, SEC-5).
func (l *loader) checkLaunchGroup() {
	u := &l.config.UserInstances
	service := l.service()
	if u.Launcher == LauncherSelf {
		return
	}
	lookup := l.options.Group
	if lookup == nil {
		lookup = groupFile
	}
	g, ok, err := lookup(string(u.Group))
	switch {
	case err != nil:
		l.errorf("X-04", "userInstances.group", "try again when the name service answers", "looking up the group %q: %v", u.Group, err)
	case !ok:
		l.errorf("X-04", "userInstances.group", "groupadd "+string(u.Group)+", or name another group", "there is no group %q", u.Group)
	case service.GID == g.GID || slices.Contains(service.Groups, g.GID) || service.Name != "" && slices.Contains(g.Members, service.Name):
		l.errorf("SEC-5", "userInstances.group", "remove the service account from the group", "the service account is a member of %q, so it could have an instance itself", u.Group)
	}
	if service.UID >= u.MinUID && service.UID <= u.MaxUID && (service.Name == "" || !slices.Contains(u.DeniedUsers, service.Name)) && service.UID != 0 {
		l.warnf("X-19", "userInstances.minUid", "raise minUid, or add the account to deniedUsers", "uid %d of the service account lies in the range of users", service.UID)
	}
}

// checkDriveRoots warns of fixed directories that are not there: a file system that is not mounted yet.
func (l *loader) checkDriveRoots() {
	for name, fsys := range l.config.Services.FileSystems.All() {
		for locator, loc := range fsys.DriveLocators.All() {
			for _, root := range loc.AllowedRoots {
				st, err := os.Stat(string(root))
				key := fmt.Sprintf("services.fileSystems.%s.driveLocators.%s", name, locator)
				switch {
				case errors.Is(err, fs.ErrPermission):
				case err != nil:
					l.warnf("X-13", key, "mount the file system or create the directory", "%s", shortError(err))
				case !st.IsDir():
					l.errorf("X-13", key, "correct the path", "%s is not a directory", root)
				}
			}
		}
	}
}

// maxBrandingBytes bounds texts and images of the branding.
const maxBrandingBytes = 2 << 20

func (l *loader) checkBrandingFiles() {
	l.eachValue(func(doc, path string, v reflect.Value, _ *keyInfo) {
		p, ok := v.Interface().(Path)
		if !ok || p == "" || doc != "config" || !strings.HasPrefix(path, "provider.branding.") {
			return
		}
		if st, err := os.Stat(string(p)); err == nil && st.Size() > maxBrandingBytes {
			l.errorf("X-15", path, "make it smaller", "%s is larger than 2 MiB", p)
		}
		image := strings.HasSuffix(path, ".logo") || strings.HasSuffix(path, ".image")
		if image && !slices.ContainsFunc([]string{".png", ".jpg", ".jpeg", ".svg", ".webp"}, func(e string) bool { return strings.HasSuffix(strings.ToLower(string(p)), e) }) {
			l.errorf("X-15", path, "use png, jpeg, svg or webp", "%s is not one of the kinds of image that can be shown", p)
		}
	})
}
