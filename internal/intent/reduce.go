package intent

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
)

// The digest of form 2 is over what the user's browser has sent to Core. The provider gets another body: Core adds the
// documents of drives and jobs, and replaces ids by them. So the provider first undoes what Core does for the call, and
// then both sides reduce what they have to what it means. docs/protocol-intents.md is the specification, and
// TestReductionOfRecordings holds the two sides of real exchanges against each other.

// Digest gives the claim bdy for a request as a browser sends it to Core: its JSON body, or its query as an object.
func Digest(call string, body []byte) (string, error) {
	tree, err := readTree(body, nil)
	if err != nil {
		return "", err
	}
	return digestOf(call, asSent(call, tree))
}

// providerDigest gives the same for the body that has come from Core.
func providerDigest(call string, tree any) (string, error) {
	undone, err := undo(call, tree)
	if err != nil {
		return "", err
	}
	return digestOf(call, undone)
}

func digestOf(call string, tree any) (string, error) {
	canonical, err := canonicalOf(call, tree)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(canonical)
	return base64.RawURLEncoding.EncodeToString(sum[:]), nil
}

func canonicalOf(call string, tree any) ([]byte, error) {
	if root, ok := tree.(object); ok {
		tree = dropBulk(root)
	}
	if call == "jobs.create" {
		tree = dropJobExtras(tree)
	}
	reduced, err := reduce(tree, false)
	if err != nil {
		return nil, err
	}
	if reduced == nil {
		reduced = object{}
	}
	return appendCanonical(nil, reduced)
}

// reduce leaves out the members that Core adds, and those without content: whether a client leaves out what is empty,
// or writes null, false, 0, "", [] or {}, and what of that Core writes, differs and means the same. Items of lists stay.
// In a map the names are the user's.
func reduce(v any, isMap bool) (any, error) {
	switch v := v.(type) {
	case []any:
		out := make([]any, len(v))
		for i := range v {
			var err error
			if out[i], err = reduce(v[i], false); err != nil {
				return nil, err
			}
		}
		return out, nil
	case object:
		if !isMap {
			if err := v.checkSpelling(); err != nil {
				return nil, err
			}
		}
		out := make(object, 0, len(v))
		for _, f := range v {
			if !isMap && strings.HasPrefix(f.name, resolvedPrefix) {
				continue
			}
			value, err := reduce(f.value, !isMap && isMapName(f.name))
			if err != nil {
				return nil, err
			}
			if !empty(value) {
				out = append(out, field{f.name, value})
			}
		}
		return out, nil
	}
	return v, nil
}

// isMapName tells whether the members of an object with this name are named by users.
func isMapName(name string) bool { return name == "parameters" || name == "labels" }

func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case bool:
		return !v
	case string:
		return v == ""
	case json.Number:
		b, err := appendNumber(nil, string(v))
		return err == nil && string(b) == "0"
	case []any:
		return len(v) == 0
	case object:
		return len(v) == 0
	}
	return false
}

// dropBulk leaves out the type that the web client gives all bulk requests, and that Core does not pass on.
func dropBulk(root object) object {
	if kind, err := root.member("type"); err == nil && kind == "bulk" {
		return root.without("type")
	}
	return root
}

// dropJobExtras leaves out what Core takes out of, and puts into, the specification of a job.
func dropJobExtras(tree any) any {
	root, ok := tree.(object)
	if !ok {
		return tree
	}
	out := make(object, 0, len(root))
	for _, f := range root {
		list, ok := f.value.([]any)
		if f.name != "items" || !ok {
			out = append(out, f)
			continue
		}
		items := make([]any, 0, len(list))
		for _, item := range list {
			if o, ok := item.(object); ok {
				item = jobWithoutExtras(o)
			}
			items = append(items, item)
		}
		out = append(out, field{f.name, items})
	}
	return out
}

func jobWithoutExtras(job object) object {
	out := make(object, 0, len(job))
	for _, f := range job {
		if f.name == "sshEnabled" {
			continue
		}
		if parameters, ok := f.value.(object); ok && f.name == "parameters" {
			kept := make(object, 0, len(parameters))
			for _, p := range parameters {
				if p.name != "ucMetricSampleRate" {
					kept = append(kept, p)
				}
			}
			f.value = kept
		}
		out = append(out, f)
	}
	return out
}

// kind is what Core does with a call.
type kind int

const (
	same     kind = iota // passes the members on
	created              // items: the specification becomes a resource
	byID                 // items: the id becomes the resource
	jobByID              // items: id becomes job
	jobByJob             // items: jobId becomes job
	aclByID              // items: id becomes resource
	browsed              // the query goes into flags
	fetched              // the query goes into retrieve
	searched             // flags become complete
	followed             // id becomes job
	asked                // the name of the application becomes the application
	composed             // writes a body of its own
)

// kindOf is the table of docs/protocol-intents.md. What is not in it is passed on as it is.
func kindOf(call string) kind {
	switch call {
	case "files.browse":
		return browsed
	case "files.retrieve":
		return fetched
	case "files.streamingSearch", "files.search":
		return searched
	case "jobs.follow":
		return followed
	case "jobs.requestDynamicParameters":
		return asked
	case "jobs.terminate":
		return byID
	case "jobs.suspend", "jobs.unsuspend", "jobs.openInteractiveSession":
		return jobByID
	case "jobs.extend":
		return jobByJob
	case "files.transfer", "jobs.attachResource", "jobs.detachResource":
		return composed
	}
	last := call[strings.LastIndexByte(call, '.')+1:]
	switch {
	case strings.HasPrefix(call, "ssh_keys."), strings.HasPrefix(call, "shares."), last == "updateLabels", last == "onUpdatedLabels":
		return composed
	case last == "delete":
		return byID
	case last == "updateAcl":
		return aclByID
	case last == "create":
		return created
	}
	return same
}

// asSent gives what counts of a request as the browser sends it.
func asSent(call string, tree any) any {
	root, ok := tree.(object)
	switch k := kindOf(call); {
	case k == composed:
		return object{}
	case ok && k == browsed:
		return root.only("path")
	case ok && (k == fetched || k == followed):
		return root.only("id")
	case ok && k == searched:
		return root.only("query", "currentFolder")
	}
	return tree
}

// undo gives what counts of a request that has come from Core, in the shape in which the browser sent it.
func undo(call string, tree any) (any, error) {
	k := kindOf(call)
	if k == composed {
		return object{}, nil
	}
	root, ok := tree.(object)
	if !ok {
		return nil, fmt.Errorf("the document is not an object")
	}
	switch k {
	case browsed:
		return pick(root, []string{"browse", "flags"}, "path")
	case fetched:
		return pick(root, []string{"retrieve"}, "id")
	case searched:
		return pick(root, nil, "query", "currentFolder")
	case followed:
		return pick(root, []string{"job"}, "id")
	case asked:
		named, err := pick(root, []string{"application", "metadata"}, "name", "version")
		return object{{"application", named}}, err
	case created:
		return eachItem(root, func(item object) (any, error) {
			spec, err := item.member("specification")
			if _, ok := spec.(object); err == nil && !ok {
				err = fmt.Errorf("an item has no specification")
			}
			return spec, err
		})
	case byID:
		return eachItem(root, func(item object) (any, error) { return pick(item, nil, "id") })
	case jobByID:
		return eachItem(root, func(item object) (any, error) { return lift(item, "job", "id") })
	case jobByJob:
		return eachItem(root, func(item object) (any, error) { return lift(item, "job", "jobId") })
	case aclByID:
		return eachItem(root, func(item object) (any, error) { return lift(item, "resource", "id") })
	}
	return root, nil
}

// only gives the object with only the named members.
func (o object) only(names ...string) object {
	out := make(object, 0, len(names))
	for _, f := range o {
		for _, name := range names {
			if f.name == name {
				out = append(out, f)
			}
		}
	}
	return out
}

// pick gives an object of the named members of the object at path.
func pick(o object, path []string, names ...string) (object, error) {
	for _, step := range path {
		v, err := o.member(step)
		if err != nil {
			return nil, err
		}
		next, ok := v.(object)
		if !ok {
			return nil, fmt.Errorf("%s is not an object", step)
		}
		o = next
	}
	out := make(object, 0, len(names))
	for _, name := range names {
		v, err := o.member(name)
		if err != nil {
			return nil, err
		}
		out = append(out, field{name, v})
	}
	return out, nil
}

// lift replaces a resource in the member from by its id in the member to.
func lift(item object, from, to string) (any, error) {
	v, err := item.member(from)
	if err != nil {
		return nil, err
	}
	resource, ok := v.(object)
	if !ok {
		return nil, fmt.Errorf("%s is not an object", from)
	}
	id, err := resource.member("id")
	if err != nil {
		return nil, err
	}
	return append(item.without(from), field{to, id}), nil
}

// eachItem replaces the items of a bulk request.
func eachItem(root object, f func(object) (any, error)) (any, error) {
	v, err := root.member("items")
	if err != nil {
		return nil, err
	}
	list, ok := v.([]any)
	if !ok && v != nil {
		return nil, fmt.Errorf("items is not a list")
	}
	out := make([]any, 0, len(list))
	for _, item := range list {
		o, ok := item.(object)
		if !ok {
			return nil, fmt.Errorf("an item is not an object")
		}
		done, err := f(o)
		if err != nil {
			return nil, err
		}
		out = append(out, done)
	}
	return append(root.without("items"), field{"items", out}), nil
}
