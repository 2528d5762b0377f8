package launcher

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"ucloud-im/internal/ident"
)

// record is what the server must know about a running instance to accept it again after its own restart. It holds the
// key of the route, hence the private directory.
type record struct {
	Version    int              `json:"version"`
	User       ident.UCloudUser `json:"user"`
	UID        ident.UID        `json:"uid"`
	LocalName  string           `json:"localName"`
	Port       int              `json:"port"`
	Inode      uint64           `json:"inode"` // of the listening socket
	Route      uint64           `json:"route"`
	Generation uint64           `json:"generation"`
	HopKey     []byte           `json:"hopKey"`
	PID        int32            `json:"pid"`
	StartTime  uint64           `json:"startTime"` // field 22 of /proc/PID/stat, 0 if unknown
	Build      string           `json:"build"`
	Groups     []ident.GID      `json:"groups"`
	Since      time.Time        `json:"since"`
}

const (
	recordVersion = 1
	recordLimit   = 1 << 20 // 65,536 groups fit
	keyBytes      = 32
)

func (r record) valid() error {
	switch {
	case r.Version != recordVersion:
		return fmt.Errorf("version %d is unknown", r.Version)
	case r.User == "" || r.UID == 0 || r.LocalName == "":
		return errors.New("no account")
	case r.Port <= 0 || r.Port > 65535 || r.Inode == 0 || r.Route == 0 || len(r.HopKey) != keyBytes || r.PID <= 1:
		return errors.New("incomplete")
	}
	return nil
}

// registry keeps one file per running instance, <uid>.json.
type registry struct {
	dir *privateDir
	log *slog.Logger
}

func (g *registry) save(r record) error {
	r.Version = recordVersion
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("save instance record: %w", err)
	}
	if err := g.dir.replace(r.UID.String()+".json", data); err != nil {
		return fmt.Errorf("save instance record: %w", err)
	}
	return nil
}

func (g *registry) remove(uid ident.UID) {
	if err := g.dir.remove(uid.String() + ".json"); err != nil {
		g.log.Error("instance record cannot be removed", "uid", uid, "error", err)
	}
}

// load reads all records. A file that is damaged or not ours is reported and set aside: its instance will be refused
// when it reconnects, and ends.
func (g *registry) load() ([]record, error) {
	names, err := g.dir.names(".json")
	if err != nil {
		return nil, err
	}
	var out []record
	for _, name := range names {
		r, err := g.read(name)
		if err != nil {
			g.log.Warn("instance record is dropped", "file", name, "error", err)
			if err := g.dir.remove(name); err != nil {
				g.log.Error("instance record cannot be removed", "file", name, "error", err)
			}
			continue
		}
		out = append(out, r)
	}
	return out, nil
}

func (g *registry) read(name string) (record, error) {
	data, err := g.dir.read(name, recordLimit)
	if err != nil {
		return record{}, err
	}
	r, err := parseRecord(data)
	if err != nil {
		return record{}, err
	}
	if r.UID.String() != strings.TrimSuffix(name, ".json") {
		return record{}, fmt.Errorf("it is about uid %s", r.UID)
	}
	return r, nil
}

func parseRecord(data []byte) (record, error) {
	var r record
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields() // written by this version or not at all, see Version
	if err := dec.Decode(&r); err != nil {
		return record{}, fmt.Errorf("parse instance record: %w", err)
	}
	if err := r.valid(); err != nil {
		return record{}, fmt.Errorf("parse instance record: %w", err)
	}
	return r, nil
}
