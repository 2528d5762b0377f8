package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
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
	remedy := "chown root and chmod go-w it"
	// Each component is looked at on its own, links included: who can replace a link or a directory in the middle decides
	// what is run.
	rest := strings.Split(strings.TrimPrefix(filepath.Clean(path), "/"), "/")
	at, links := "/", 0
	for {
		st, err := os.Lstat(at)
		if err != nil {
			return &badFile{shortError(err), "create it or correct the path"}
		}
		// Temporary directories are for test installations.
		if why := l.untrusted(st, l.config.Development.Enabled); why != "" {
			return &badFile{at + " " + why, remedy}
		}
		if st.Mode()&fs.ModeSymlink != 0 {
			if links++; links > 40 {
				return &badFile{path + " has too many symlinks", "correct the path"}
			}
			target, err := os.Readlink(at)
			if err != nil {
				return &badFile{shortError(err), "correct the path"}
			}
			if !filepath.IsAbs(target) {
				target = filepath.Join(filepath.Dir(at), target)
			}
			rest = append(strings.Split(strings.TrimPrefix(filepath.Clean(target), "/"), "/"), rest...)
			at = "/"
			continue
		}
		if len(rest) == 0 {
			return l.checkProgram(at, st, asUser)
		}
		if !st.IsDir() {
			return &badFile{at + " is not a directory", "correct the path"}
		}
		at, rest = filepath.Join(at, rest[0]), rest[1:]
	}
}

func (l *loader) checkProgram(path string, st fs.FileInfo, asUser bool) error {
	if !st.Mode().IsRegular() {
		return &badFile{path + " is not a regular file", "correct the path"}
	}
	mode := st.Mode().Perm()
	may := mode&0o001 != 0
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && !asUser {
		service := l.service()
		groups := append([]int{service.GID}, service.Groups...)
		may = may || int(sys.Uid) == service.UID && mode&0o100 != 0
		for _, g := range groups {
			may = may || int(sys.Gid) == g && mode&0o010 != 0
		}
	} else if asUser {
		may = mode&0o011 != 0 // the group may be the one of the users
	}
	if !may {
		return &badFile{fmt.Sprintf("%s has mode %04o and cannot be executed by the account that runs it", path, mode), "chmod 0755 " + path}
	}
	return nil
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
