package intent

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// Drive is what the provider itself knows of a drive.
type Drive struct {
	ProviderID string // the providerGeneratedId, which says where the drive is
	Project    string // "" if a user owns it
}

// checkDrives compares the documents of drives that Core has added to a request about files with what the provider knows.
// What the user signs has the ids of drives. Where a drive is stands in these documents, and a Core that may write
// anything into them could turn every signed path against another directory of the user.
//
// A drive that the provider does not know passes: it may be shared from a workspace that is not the user's.
func (v *Verifier) checkDrives(ctx context.Context, call string, places []string, tree any) (Reason, string, error) {
	if v.opts.Drive == nil || !strings.HasPrefix(call, "files.") || strings.HasSuffix(call, ".create") {
		return OK, "", nil
	}
	for _, place := range places {
		docs, err := documentsAt(nil, tree, strings.Split(strings.TrimSuffix(place, "?"), "."))
		if err != nil {
			return Payload, err.Error(), nil
		}
		for _, doc := range docs {
			if why, detail, err := v.checkDrive(ctx, doc); why != OK || err != nil {
				return why, detail, err
			}
		}
	}
	return OK, "", nil
}

func (v *Verifier) checkDrive(ctx context.Context, doc any) (Reason, string, error) {
	o, ok := doc.(object)
	if !ok {
		return OK, "", nil
	}
	id, err := o.text("id")
	if err != nil {
		return Payload, err.Error(), nil
	}
	if n, err := strconv.ParseInt(id, 10, 64); err != nil || n <= 0 {
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
	known, found, err := v.opts.Drive(ctx, id)
	switch {
	case err != nil:
		return "", "", err
	case found && (known.ProviderID != place || known.Project != project):
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
