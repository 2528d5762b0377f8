package intent

import (
	"fmt"
	"strings"
)

// checkOwners compares the workspace of an intent with those of the resources that the request is about. A place that
// ends in "?" may hold no resource; any other that holds none is refused, since Core always fills it.
func checkOwners(places []string, tree any, signed string) (Reason, string) {
	same, other := 0, 0
	for _, place := range places {
		path, optional := strings.CutSuffix(place, "?")
		docs, err := documentsAt(nil, tree, strings.Split(path, "."))
		if err != nil {
			return Payload, err.Error()
		}
		for _, doc := range docs {
			owner, present, err := ownerOf(doc)
			switch {
			case err != nil:
				return Payload, err.Error()
			case !present && !optional:
				return Payload, fmt.Sprintf("%s has no owner", path)
			case !present:
			case owner == signed:
				same++
			default:
				other++
			}
		}
	}
	return compared(same, other, signed)
}

// compared is the verdict about resources of which so many are in the signed workspace, and so many in others.
func compared(same, other int, signed string) (Reason, string) {
	switch {
	case other == 0:
		return OK, ""
	case same == 0:
		return Project, fmt.Sprintf("signed for workspace %.60q", signed)
	}
	// An honest client can do this: it signs for the workspace that is chosen, and moves a file to another one.
	return Workspaces, fmt.Sprintf("signed for workspace %.60q only", signed)
}

// wanted are the names of the documents among those that Core adds which hold owners.
func wanted(places []string) map[string]bool {
	keep := map[string]bool{}
	for _, place := range places {
		for _, step := range strings.Split(strings.TrimSuffix(place, "?"), ".") {
			keep[strings.TrimSuffix(step, "[]")] = true
		}
	}
	return keep
}

// documentsAt gives the documents at a place, such as items[].resolvedCollection; nil for each that is not there.
func documentsAt(out []any, v any, path []string) ([]any, error) {
	if len(path) == 0 {
		return append(out, v), nil
	}
	name, each := strings.CutSuffix(path[0], "[]")
	if name != "" {
		o, ok := v.(object)
		if !ok && v != nil {
			return nil, fmt.Errorf("%s is not in an object", name)
		}
		var err error
		if v, err = o.member(name); err != nil {
			return nil, err
		}
	}
	if !each {
		return documentsAt(out, v, path[1:])
	}
	list, ok := v.([]any)
	if !ok && v != nil {
		return nil, fmt.Errorf("%s is not a list", name)
	}
	for _, item := range list {
		var err error
		if out, err = documentsAt(out, item, path[1:]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// ownerOf gives the project that owns a resource, "" if a user does. Core writes a resource that is not there as one
// whose owner nobody is.
func ownerOf(doc any) (project string, present bool, err error) {
	resource, ok := doc.(object)
	if !ok {
		return "", false, nil
	}
	owner, err := resource.member("owner")
	if err != nil {
		return "", false, err
	}
	o, ok := owner.(object)
	if !ok {
		return "", false, nil
	}
	by, err := o.member("createdBy")
	if err != nil {
		return "", false, err
	}
	p, err := o.member("project")
	if err != nil {
		return "", false, err
	}
	switch p := p.(type) {
	case nil:
		by, _ := by.(string)
		return "", by != "", nil
	case string:
		return p, true, nil
	}
	return "", false, fmt.Errorf("a project is not a text")
}
