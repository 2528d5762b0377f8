//go:build bench

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/testkit/accounts"
)

// useradd takes half a second for each account on a disk that syncs, so hundreds of users are written into the account
// files in one step, under the lock that useradd and its kind take as well (lckpwdf(3)).

const (
	siteTag = "bench"
	// marker begins the name of everything made here; the process id follows.
	marker = "imt-" + siteTag
	// maxUsers is how many accounts one run may have.
	maxUsers = 999
)

// firstUID is the first of the numbers of this run, the service account's; those of the users follow. No other process
// has the same ones, nor does a distribution give them out. With a private /etc nothing else would prevent that another
// program takes the same numbers at the same time, and ends "its" processes.
func firstUID() uint32 { return 100_000_000 + uint32(os.Getpid())*(maxUsers+1) }

// accountFiles are changed together. Lines of all four begin with the name and a colon.
var accountFiles = []string{"/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow"}

// withAccountFiles lets change edit the content of the account files, by path, and replaces the files that changed.
func withAccountFiles(change func(map[string][]byte) error) error {
	lock, err := os.OpenFile("/etc/.pwd.lock", os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := lockFile(lock); err != nil {
		return fmt.Errorf("lock the account files: %w", err)
	}
	before, after := map[string][]byte{}, map[string][]byte{}
	for _, path := range accountFiles {
		data, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // no gshadow on some systems
		}
		if err != nil {
			return err
		}
		before[path], after[path] = data, bytes.Clone(data)
	}
	if err := change(after); err != nil {
		return err
	}
	for path, data := range after {
		if !bytes.Equal(data, before[path]) {
			if err := replaceFile(path, data); err != nil {
				return fmt.Errorf("replace %s: %w", path, err)
			}
		}
	}
	return nil
}

// lockFile waits as long as other tools may hold the lock. It is the lock of lckpwdf(3): fcntl, whole file.
func lockFile(f *os.File) error {
	for deadline := time.Now().Add(15 * time.Second); ; {
		err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart})
		if err == nil || !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// replaceFile writes the file anew with the owner and mode it has, so that readers see the old or the new one.
func replaceFile(path string, data []byte) (err error) {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	owner := st.Sys().(*syscall.Stat_t)
	tmp := path + "." + marker
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chown(int(owner.Uid), int(owner.Gid)), f.Chmod(st.Mode()), f.Sync(), f.Close())
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Rename(tmp, path)
}

// addUsers makes n users, each with a group of the same name and a home (0700), who are members of the site's group.
func addUsers(site *accounts.Site, n int) ([]accounts.Account, error) {
	if n > maxUsers {
		return nil, fmt.Errorf("%d users are too many", n)
	}
	users := make([]accounts.Account, n)
	tag := strings.TrimSuffix(site.Group, "g")
	err := withAccountFiles(func(files map[string][]byte) error {
		names := make([]string, n)
		var passwd, shadow, group, gshadow bytes.Buffer
		for i := range users {
			uid := firstUID() + 1 + uint32(i)
			name := fmt.Sprintf("%su%d", tag, i+1)
			home := filepath.Join(site.Dir, "home", name)
			users[i] = accounts.Account{Name: name, UID: ident.UID(uid), GID: ident.GID(uid), Home: home}
			names[i] = name
			fmt.Fprintf(&passwd, "%s:x:%d:%d::%s:/bin/bash\n", name, uid, uid, home)
			fmt.Fprintf(&shadow, "%s:!:%d:0:99999:7:::\n", name, time.Now().Unix()/86400)
			fmt.Fprintf(&group, "%s:x:%d:\n", name, uid)
			fmt.Fprintf(&gshadow, "%s:!::\n", name)
		}
		for path, more := range map[string]*bytes.Buffer{"/etc/passwd": &passwd, "/etc/shadow": &shadow, "/etc/group": &group, "/etc/gshadow": &gshadow} {
			if old, ok := files[path]; ok {
				if strings.HasSuffix(path, "group") || strings.HasSuffix(path, "gshadow") {
					old = setMembers(old, site.Group, strings.Join(names, ","))
				}
				files[path] = append(old, more.Bytes()...)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, u := range users {
		if err := os.Mkdir(u.Home, 0o700); err != nil {
			return users, err
		}
		if err := os.Chown(u.Home, int(u.UID), int(u.GID)); err != nil {
			return users, err
		}
	}
	return users, nil
}

// setMembers gives the content of a group file with the last field of one line replaced.
func setMembers(data []byte, group, members string) []byte {
	var out bytes.Buffer
	for line := range bytes.Lines(data) {
		if bytes.HasPrefix(line, []byte(group+":")) {
			line = append(bytes.Clone(line[:bytes.LastIndexByte(line, ':')+1]), members+"\n"...)
		}
		out.Write(line)
	}
	return out.Bytes()
}

// renumber gives the service account of a fresh site, which owns nothing yet, the first number of this run.
func renumber(site *accounts.Site) error {
	number := strconv.FormatUint(uint64(firstUID()), 10)
	err := withAccountFiles(func(files map[string][]byte) error {
		for path, fields := range map[string][]int{"/etc/passwd": {2, 3}, "/etc/group": {2}} {
			var out bytes.Buffer
			for line := range strings.Lines(string(files[path])) {
				if strings.HasPrefix(line, site.Service.Name+":") {
					f := strings.Split(line, ":")
					for _, i := range fields {
						f[i] = number
					}
					line = strings.Join(f, ":")
				}
				out.WriteString(line)
			}
			files[path] = out.Bytes()
		}
		return nil
	})
	if err != nil {
		return err
	}
	site.Service.UID, site.Service.GID = ident.UID(firstUID()), ident.GID(firstUID())
	return nil
}

// removeAccounts takes all accounts and groups whose name begins with the prefix out of the files, after their processes
// have been ended, so that no process is left with a number that somebody else may get.
func removeAccounts(prefix string) error {
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		return err
	}
	uids := make(map[ident.UID]bool)
	for line := range strings.Lines(string(passwd)) {
		f := strings.Split(line, ":")
		if !strings.HasPrefix(line, prefix) || len(f) < 3 {
			continue
		}
		if uid, err := ident.ParseUID(f[2]); err == nil && uid > 100 { // never root, whatever the file says
			uids[uid] = true
		}
	}
	if err := killAll(uids); err != nil {
		return err
	}
	return withAccountFiles(func(files map[string][]byte) error {
		for path, data := range files {
			var out bytes.Buffer
			for line := range bytes.Lines(data) {
				if !bytes.HasPrefix(line, []byte(prefix)) {
					out.Write(line)
				}
			}
			files[path] = out.Bytes()
		}
		return nil
	})
}

// removeLeftovers removes what a run left behind that was killed.
func removeLeftovers(say func(string, ...any)) error {
	dirs, err := filepath.Glob("/opt/" + marker + "*")
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		tag := filepath.Base(dir)
		pid, err := strconv.Atoi(strings.TrimPrefix(tag, marker))
		if err != nil || syscall.Kill(pid, 0) == nil {
			continue // not one of ours, or its process lives
		}
		say("removing what an earlier run left behind: %s", tag)
		killPrograms(dir + "/")
		_ = os.Remove("/etc/sudoers.d/" + tag) // may not exist
		// The letter matters: imt-bench12 is not the beginning of imt-bench123's names.
		for _, kind := range []string{"u", "s", "g"} {
			errs = append(errs, removeAccounts(tag+kind))
		}
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// killPrograms ends the processes whose program lies below a directory, whoever runs them: the accounts of a killed run
// may have existed in its own /etc only.
func killPrograms(dir string) {
	exes, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, exe := range exes {
		if target, err := os.Readlink(exe); err == nil && strings.HasPrefix(target, dir) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(exe)))
			_ = syscall.Kill(pid, syscall.SIGKILL) // may be gone
		}
	}
}

// accountState changes whenever somebody changes the account files, on which the server looks at all its instances.
func accountState() (state string) {
	for _, path := range []string{"/etc/passwd", "/etc/group", "/etc/shadow", "/etc/nsswitch.conf"} {
		if st, err := os.Stat(path); err == nil {
			state += fmt.Sprintf("%d %d ", st.Sys().(*syscall.Stat_t).Ino, st.ModTime().UnixNano())
		}
	}
	return state
}
