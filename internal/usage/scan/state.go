package scan

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Totals is what was found so far.
type Totals struct {
	Bytes      int64 `json:"bytes"` // allocated
	Files      int64 `json:"files"` // entries, directories included, the top one not
	Unreadable int64 `json:"unreadable"`
	Lost       int64 `json:"lost"` // directories that were moved away while the scan was in them
}

// State says where a scan is. It is what has to be kept to go on later.
type State struct {
	Totals Totals `json:"totals"`
	// Frames are the directories that the scan is in, from the top; empty before the beginning and after the end.
	Frames []Frame `json:"frames,omitempty"`
	Done   bool    `json:"done,omitempty"`
}

// Frame is a directory that the scan is in.
type Frame struct {
	Name   []byte `json:"name"` // in the directory above; empty for the top. Names are bytes
	Dev    uint64 `json:"dev"`
	Ino    uint64 `json:"ino"`
	Cursor int64  `json:"cursor"` // everything before it has been counted
}

// maxDepth bounds the levels of a scan; deeper directories count as unreadable. A path of 4096 bytes, which is all that
// most programs can use, has at most 2048 levels.
const maxDepth = 4096

// Encode gives the state as it is kept.
func (s State) Encode() ([]byte, error) { return json.Marshal(s) }

// Decode reads what Encode gave. Nothing is the beginning.
func Decode(data []byte) (s State, err error) {
	if len(data) == 0 {
		return s, nil
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return State{}, fmt.Errorf("decode the state of a scan: %w", err)
	}
	t := s.Totals
	if t.Bytes < 0 || t.Files < 0 || t.Unreadable < 0 || t.Lost < 0 || len(s.Frames) > maxDepth || (s.Done && len(s.Frames) > 0) {
		return State{}, errors.New("the state of a scan is not possible")
	}
	for i, f := range s.Frames {
		if !usableName(string(f.Name)) != (i == 0) || (i == 0 && len(f.Name) > 0) {
			return State{}, fmt.Errorf("level %d of a scan has an impossible name", i)
		}
	}
	return s, nil
}

func usableName(n string) bool {
	return n != "" && n != "." && n != ".." && len(n) <= 255 && !strings.ContainsAny(n, "/\x00")
}
