package intent

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"ucloud-im/internal/failure"
)

// Drive is what the provider itself knows of a drive.
type Drive struct {
	ProviderID string // the providerGeneratedId, which says where the drive is
	Project    string // "" if a user owns it
}

// maxDrives is how many drives one request may make the instance ask for. An honest one has one or two.
const maxDrives = 32

// lookup asks for the drives of one request, for each once.
type lookup struct {
	find  func(ctx context.Context, id string) (Drive, bool, error)
	known map[string]*Drive // nil: the provider does not know it
}

func (l *lookup) get(ctx context.Context, id string) (*Drive, error) {
	if d, ok := l.known[id]; ok {
		return d, nil
	}
	if len(l.known) >= maxDrives {
		return nil, failure.New(failure.TooLarge, "The request names too many drives at a time")
	}
	d, found, err := l.find(ctx, id)
	if err != nil {
		return nil, failure.Wrap(err, failure.Unavailable, "Drives cannot be checked at the moment. Try again")
	}
	l.known[id] = nil
	if found {
		l.known[id] = &d
	}
	return l.known[id], nil
}

// checkDrives compares what a request says of drives with what the provider knows.
//
// What the user signs has the ids of drives. Where a drive is stands in documents that Core has added to calls about files,
// and a Core that may write anything into them could turn every signed path against another directory of the user. Other
// calls have no document: there, the workspace of the drive is compared with the signed one.
//
// A drive that the provider does not know passes: it may be shared from a workspace that is not the user's.
func (v *Verifier) checkDrives(ctx context.Context, rule Rule, c claims, tree any) (Reason, string, error) {
	drives := &lookup{find: v.opts.Drive, known: map[string]*Drive{}}
	if strings.HasPrefix(c.Call, "files.") && !strings.HasSuffix(c.Call, ".create") {
		for _, place := range rule.Owners {
			docs, err := documentsAt(nil, tree, strings.Split(strings.TrimSuffix(place, "?"), "."))
			if err != nil {
				return Payload, err.Error(), nil
			}
			for _, doc := range docs {
				if why, detail, err := checkDrive(ctx, drives, doc); why != OK || err != nil {
					return why, detail, err
				}
			}
		}
	}
	same, other := 0, 0
	for _, place := range rule.Drives {
		path := strings.Split(place, ".")
		docs, err := documentsAt(nil, tree, path[:len(path)-1])
		if err != nil {
			return Payload, err.Error(), nil
		}
		for _, doc := range docs {
			o, _ := doc.(object)
			name, err := o.text(path[len(path)-1])
			if err != nil {
				return Payload, err.Error(), nil
			}
			id := driveNamed(name)
			if !isDriveID(id) {
				return Payload, fmt.Sprintf("%s names no drive", place), nil
			}
			switch known, err := drives.get(ctx, id); {
			case err != nil:
				return "", "", err
			case known == nil:
			case known.Project == c.workspace():
				same++
			default:
				other++
			}
		}
	}
	why, detail := compared(same, other, c.workspace())
	return why, detail, nil
}

// driveNamed gives the drive of a path as package drives finds it, or the id that stands there instead of a path.
func driveNamed(name string) string {
	for part := range strings.SplitSeq(name, "/") {
		if part != "" && part != "." {
			return part
		}
	}
	return ""
}

func isDriveID(id string) bool {
	n, err := strconv.ParseInt(id, 10, 64)
	return err == nil && n > 0
}

func checkDrive(ctx context.Context, drives *lookup, doc any) (Reason, string, error) {
	o, ok := doc.(object)
	if !ok {
		return OK, "", nil
	}
	id, err := o.text("id")
	if err != nil {
		return Payload, err.Error(), nil
	}
	if !isDriveID(id) {
		return OK, "", nil // a file, or nothing
	}
	place, err := o.text("providerGeneratedId")
	if err != nil {
		return Payload, err.Error(), nil
	}
	project, _, err := ownerOf(o)
	if err != nil {
		return Payload, err.Error(), nil
	}
	known, err := drives.get(ctx, id)
	if err != nil {
		return "", "", err
	}
	if known != nil && (known.ProviderID != place || known.Project != project) {
		return WrongDrive, fmt.Sprintf("drive %s is not what Core says it is", id), nil
	}
	return OK, "", nil
}

// text gives a member that is a text, or a number as it is written; "" if there is none.
func (o object) text(name string) (string, error) {
	v, err := o.member(name)
	if err != nil {
		return "", err
	}
	switch v := v.(type) {
	case nil:
		return "", nil
	case string:
		return v, nil
	case json.Number:
		return string(v), nil
	}
	return "", fmt.Errorf("%s is not a text", name)
}
