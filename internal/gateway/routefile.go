package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
)

// The file of the last route table lets a gateway that starts while IM/Server is away serve the users whose instances
// run (design D5). It contains the keys of hop tokens and therefore lies in the state directory with mode 0600
// (contract 40 section 9).

// maxRouteFile bounds what is read; a route takes about 200 bytes.
const maxRouteFile = 16 << 20

// saveDelay collects the changes of a burst of launches into one write.
const saveDelay = 200 * time.Millisecond

type routeFile struct {
	Version int         `json:"version"`
	Routes  []fileRoute `json:"routes"`
}

type fileRoute struct {
	User       ident.UCloudUser `json:"user"`
	UID        ident.UID        `json:"uid"`
	Port       int              `json:"port"`
	Key        []byte           `json:"key"`
	ID         uint64           `json:"id"`
	Generation uint64           `json:"generation"`
}

// Load puts the routes of the file into the table, which should be empty. A missing file is not an error. A file that is
// not a regular file of our own with mode 0600 is refused: whoever can write it can redirect users.
func (t *Table) Load(path string) error {
	data, err := readPrivate(path)
	if data == nil || err != nil {
		return err
	}
	var doc routeFile
	if err := json.Unmarshal(data, &doc); err != nil {
		return fmt.Errorf("parse the route file: %w", err)
	}
	if doc.Version != 1 {
		return fmt.Errorf("route file has version %d, not 1", doc.Version)
	}
	u := Update{Full: true}
	for _, r := range doc.Routes {
		if len(r.Key) != len(hoptoken.Key{}) || r.Port <= 0 || r.Port > 65535 || r.User == "" {
			return fmt.Errorf("route file has a bad entry for port %d", r.Port)
		}
		u.Put = append(u.Put, Route{User: r.User, UID: r.UID, Port: r.Port, Key: hoptoken.Key(r.Key), ID: r.ID, Generation: r.Generation})
	}
	t.Apply(u)
	t.log.Info("last route table loaded", "routes", len(u.Put))
	return nil
}

// Save writes the table to the file, so that it is complete whenever it is visible.
func (t *Table) Save(path string) error {
	doc := routeFile{Version: 1, Routes: []fileRoute{}}
	for _, r := range t.Routes() {
		doc.Routes = append(doc.Routes, fileRoute{User: r.User, UID: r.UID, Port: r.Port, Key: r.Key[:], ID: r.ID, Generation: r.Generation})
	}
	data, err := json.Marshal(doc)
	if err != nil {
		return fmt.Errorf("encode the route file: %w", err)
	}
	return writePrivate(path, data)
}

// readPrivate reads a file of routes; nil if there is none.
func readPrivate(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the route file: %w", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("look at the route file: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o077 != 0 || int(st.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("route file %s must be a regular file of uid %d with mode 0600", path, os.Geteuid())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxRouteFile))
	if err != nil {
		return nil, fmt.Errorf("read the route file: %w", err)
	}
	return data, nil
}

func writePrivate(path string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // O_EXCL, mode 0600
	if err != nil {
		return fmt.Errorf("write the route file: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write the route file: %w", err)
	}
	return nil
}

// Keep writes the file after each change until ctx ends, and once more then. A failing write is logged and tried again
// with the next change: routing does not depend on it.
func (t *Table) Keep(ctx context.Context, path string) {
	keep(ctx, t.changed, func() {
		if err := t.Save(path); err != nil {
			t.log.Error("route table not saved", "error", err)
		}
	})
}

func keep(ctx context.Context, changed <-chan struct{}, save func()) {
	for {
		select {
		case <-changed:
		case <-ctx.Done():
			save()
			return
		}
		select {
		case <-time.After(saveDelay):
		case <-ctx.Done():
		}
		save()
	}
}

// webRouteFile is the file of the interfaces of jobs. It holds no secrets, only hashes of random values.
type webRouteFile struct {
	Version int        `json:"version"`
	Routes  []WebRoute `json:"routes"`
}

// Load is [Table.Load] for the interfaces of jobs.
func (t *WebTable) Load(path string) error {
	data, err := readPrivate(path)
	if data == nil || err != nil {
		return err
	}
	var doc webRouteFile
	if err := json.Unmarshal(data, &doc); err != nil {
		return fmt.Errorf("parse the route file: %w", err)
	}
	if doc.Version != 1 {
		return fmt.Errorf("route file has version %d, not 1", doc.Version)
	}
	t.Apply(WebUpdate{Full: true, Put: doc.Routes})
	return nil
}

// Save is [Table.Save] for the interfaces of jobs.
func (t *WebTable) Save(path string) error {
	data, err := json.Marshal(webRouteFile{Version: 1, Routes: t.Routes()})
	if err != nil {
		return fmt.Errorf("encode the route file: %w", err)
	}
	return writePrivate(path, data)
}

// Keep is [Table.Keep] for the interfaces of jobs.
func (t *WebTable) Keep(ctx context.Context, path string) {
	keep(ctx, t.changed, func() {
		if err := t.Save(path); err != nil {
			t.log.Error("table of interfaces not saved", "error", err)
		}
	})
}
