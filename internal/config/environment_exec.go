package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"ucloud-im/internal/trustpath"
)

// checkPrograms applies the rules of type exec to everything that is run (X-11, SEC-S1): the extension scripts, and the
// programs that start an instance.
func (l *loader) checkPrograms() {
	l.eachValue(func(doc, path string, v reflect.Value, _ *keyInfo) {
		e, ok := v.Interface().(Exec)
		if !ok || !e.IsSet() {
			return
		}
		asUser := path == "services.slurm.hooks.onJobSubmit" || strings.HasPrefix(path, "services.slurm.templates.allowScripts")
		if err := l.checkExec(string(e.Path), asUser); err != nil {
			l.problems.add(l.config.problem(doc, Error, "X-11", path, err.Error(), remedyOf(err)))
		}
	})
	u := &l.config.UserInstances
	programs := map[string]Path{"userInstances.executable": u.Executable}
	if u.Launcher == LauncherSudo {
		programs["userInstances.sudo"] = u.Sudo
	}
	for key, path := range programs {
		if u.Launcher == LauncherSelf {
			// Development: the account of the server runs a program that it probably built itself, where it pleased.
			if st, err := os.Stat(string(path)); err != nil || !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
				l.errorf("X-11", key, "build it, or correct the path", "%s is not a program", path)
			}
			continue
		}
		if err := l.checkExec(string(path), true); err != nil {
			l.errorf("X-11", key, remedyOf(err), "%s", err)
		}
	}
}

// checkExec is type exec of contract 40 section 2: a regular file, executable by the account that runs it, owned by root
// or the service account, and neither it nor any directory or link on the way to it can be changed by somebody else.
//
// The result holds for this moment only. Whoever runs the program checks again, by descriptor where that is possible.
func (l *loader) checkExec(path string, asUser bool) error {
	f, err := l.trusted(path, true) // such as sudo, of which there may be several
	if err != nil {
		return err
	}
	f.Close()
	mode := f.Stat.Mode & 0o777
	may := mode&0o001 != 0
	if asUser {
		may = mode&0o011 != 0 // the group may be the one of the users
	} else {
		service := l.service()
		groups := append([]int{service.GID}, service.Groups...)
		may = may || int(f.Stat.Uid) == service.UID && mode&0o100 != 0 || slices.Contains(groups, int(f.Stat.Gid)) && mode&0o010 != 0
	}
	if !may {
		return &badFile{fmt.Sprintf("%s has mode %04o and cannot be executed by the account that runs it", f.Path, mode), "chmod 0755 " + f.Path}
	}
	return nil
}

// rules say who may change what the service relies on. With sticky, directories that everybody may write to are fine if they
// have the sticky bit.
func (l *loader) rules(sticky bool) trustpath.Rules {
	return trustpath.Rules{Account: l.service().UID, Temporary: sticky}
}

// trusted finds a regular file that nobody but root and the service account can change, nor anything on the way to it.
// Temporary directories are for test installations. link: the file may be a link.
func (l *loader) trusted(path string, link bool) (*trustpath.File, error) {
	rules := l.rules(l.config.Development.Enabled)
	rules.Link = link
	f, err := rules.Open(path)
	if bad, ok := errors.AsType[*trustpath.Untrusted](err); ok {
		return nil, &badFile{bad.Error(), "chown root and chmod go-w " + bad.Path}
	}
	if err != nil {
		return nil, &badFile{err.Error(), "create it or correct the path"}
	}
	return f, nil
}

// readFollowing reads a bounded regular file. Symlinks are followed: public files are often links to a package's.
func readFollowing(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, &badFile{path + " is not a regular file", "put a regular file there"}
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		return nil, &badFile{fmt.Sprintf("%s is larger than %s", path, Size(limit)), "this cannot be the right file"}
	}
	return data, err
}

// groupFile looks a group up in /etc/group alone (group(5)).
func groupFile(name string) (Group, bool, error) {
	data, err := readFollowing("/etc/group", 8<<20)
	if err != nil {
		return Group{}, false, errors.New(shortError(err))
	}
	for line := range strings.Lines(string(data)) {
		parts := strings.Split(strings.TrimRight(line, "\n"), ":")
		if len(parts) != 4 || parts[0] != name {
			continue
		}
		gid, err := strconv.Atoi(parts[2])
		if err != nil {
			return Group{}, false, fmt.Errorf("the line of group %s in /etc/group is damaged", name)
		}
		var members []string
		if parts[3] != "" {
			members = strings.Split(parts[3], ",")
		}
		return Group{GID: gid, Members: members}, true, nil
	}
	return Group{}, false, nil
}
