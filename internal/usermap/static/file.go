package static

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/localuser"
	"ucloud-im/internal/trustpath"
	"ucloud-im/internal/yamlnode"
)

// table says who has which account. It is immutable.
type table map[ident.UCloudUser]string

// parse reads the content of a file. Errors name the line.
func parse(data []byte) (table, error) {
	root, err := yamlnode.Parse(data, 1)
	if err != nil {
		return nil, err
	}
	t := table{}
	if root == nil || root.Kind == yamlnode.Null {
		// A file that was cut off or never filled must not disconnect everybody.
		return nil, errors.New("there is nothing in the file: write {} if nobody is to be connected")
	}
	if root.Kind != yamlnode.Map {
		return nil, fmt.Errorf("line %d: lines of the form UCloudUser: localname are expected", root.Line)
	}
	users, locals := map[ident.UCloudUser]int{}, map[string]int{}
	for _, f := range root.Fields {
		user, err := ident.ParseUCloudUser(f.Key)
		if err != nil {
			return nil, fmt.Errorf("line %d: %q cannot be a UCloud user name", f.Line, f.Key)
		}
		// A number would be taken for a uid, and may change whom it means.
		if f.Value.Kind != yamlnode.Text || !localuser.ValidName(f.Value.Text) {
			return nil, fmt.Errorf("line %d: %q cannot be the name of a local account", f.Line, f.Value.Text)
		}
		if line, ok := users[user]; ok {
			return nil, fmt.Errorf("line %d: %q stands on line %d already", f.Line, user, line)
		}
		if line, ok := locals[f.Value.Text]; ok {
			return nil, fmt.Errorf("line %d: the local account %s belongs to the user on line %d already", f.Line, f.Value.Text, line)
		}
		users[user], locals[f.Value.Text], t[user] = f.Line, f.Line, f.Value.Text
	}
	return t, nil
}

// stamp tells whether a file has changed.
type stamp struct {
	inode      uint64
	size       int64
	mtim, ctim unix.Timespec
}

// read gives the file's table if it has changed since, and nil otherwise. What was checked is what is read.
func read(rules trustpath.Rules, path string, since stamp) (table, stamp, error) {
	found, err := rules.Open(path)
	if err != nil {
		return nil, since, err
	}
	defer found.Close()
	now := stamp{inode: found.Stat.Ino, size: found.Stat.Size, mtim: found.Stat.Mtim, ctim: found.Stat.Ctim}
	if now == since {
		return nil, since, nil
	}
	f, err := os.Open(found.Proc())
	if err != nil {
		return nil, since, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, yamlnode.MaxBytes+1))
	if err != nil {
		return nil, since, err
	}
	if len(data) > yamlnode.MaxBytes {
		return nil, since, fmt.Errorf("%s is larger than %s bytes", path, strconv.Itoa(yamlnode.MaxBytes))
	}
	t, err := parse(data)
	if err != nil {
		return nil, since, fmt.Errorf("%s: %w", path, err)
	}
	return t, now, nil
}
