package files

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
)

// modelNode is a file or folder of the model of a drive.
type modelNode struct {
	text string
	kids map[string]*modelNode // nil for a file
}

// model does what the calls that change files are meant to do, on a tree in memory.
type model struct {
	root  *modelNode
	moved map[recentKey]string // the name a move has given
	nodes map[recentKey]*modelNode
}

func (m *model) at(rel string) *modelNode {
	n := m.root
	for part := range strings.SplitSeq(rel, "/") {
		if n == nil {
			return nil
		}
		n = n.kids[part]
	}
	return n
}

// parent gives the folder that holds rel, nil if there is none.
func (m *model) parent(rel string) (*modelNode, string) {
	i := strings.LastIndexByte(rel, '/')
	n := m.root
	if i >= 0 {
		n = m.at(rel[:i])
	}
	if n == nil || n.kids == nil {
		return nil, ""
	}
	return n, rel[i+1:]
}

func (m *model) move(from, to string, policy providerapi.ConflictPolicy) failure.Kind {
	return m.moveAs(recentKey{from, to}, from, to, policy)
}

func (m *model) moveAs(key recentKey, from, to string, policy providerapi.ConflictPolicy) failure.Kind {
	source, name := m.parent(from)
	target, newName := m.parent(to)
	if source == nil || target == nil {
		return failure.NotFound
	}
	node := source.kids[name]
	if node == nil {
		if before, ok := m.moved[key]; ok && target.kids[before] == m.nodes[key] {
			return 0
		}
		return failure.NotFound
	}
	if source == target && name == newName {
		return 0
	}
	if node.kids != nil && strings.HasPrefix(to+"/", from+"/") {
		return failure.Invalid
	}
	there := target.kids[newName]
	final := newName
	switch {
	case there == nil:
	case policy == providerapi.ConflictReject:
		return failure.Conflict
	case policy == providerapi.ConflictReplace:
		if (there.kids == nil) != (node.kids == nil) || len(there.kids) > 0 {
			return failure.Conflict
		}
	case policy == providerapi.ConflictMergeRename && there.kids != nil && node.kids != nil:
		merge(node, there)
		delete(source.kids, name)
		return 0
	default:
		for n := 1; target.kids[final] != nil; n++ {
			final = drives.Numbered(newName, n)
		}
	}
	delete(source.kids, name)
	target.kids[final] = node
	m.moved[key], m.nodes[key] = final, node
	return 0
}

// merge moves what is in a folder into another one.
func merge(from, to *modelNode) {
	for name, kid := range from.kids {
		there := to.kids[name]
		if there != nil && there.kids != nil && kid.kids != nil {
			merge(kid, there)
			continue
		}
		to.kids[to.free(name)] = kid
	}
}

// free is the name that something new gets.
func (n *modelNode) free(name string) string {
	final := name
	for i := 1; n.kids[final] != nil; i++ {
		final = drives.Numbered(name, i)
	}
	return final
}

func (n *modelNode) clone() *modelNode {
	c := &modelNode{text: n.text}
	if n.kids != nil {
		c.kids = map[string]*modelNode{}
		for name, kid := range n.kids {
			c.kids[name] = kid.clone()
		}
	}
	return c
}

// copy gives what the call says, and how many files the task cannot copy.
func (m *model) copy(from, to string, policy providerapi.ConflictPolicy) (want failure.Kind, failed int) {
	source, name := m.parent(from)
	target, newName := m.parent(to)
	if source == nil || target == nil || source.kids[name] == nil {
		return failure.NotFound, 0
	}
	node, there := source.kids[name], target.kids[newName]
	replaces := policy == providerapi.ConflictReplace
	switch {
	case node.kids != nil && strings.HasPrefix(to+"/", from+"/") && to != from:
		return failure.Invalid, 0
	case there == nil:
		target.kids[newName] = node.clone()
	case policy == providerapi.ConflictReject:
		return failure.Conflict, 0
	case node.kids != nil && there.kids != nil && policy != providerapi.ConflictRename:
		if node == there {
			return failure.Invalid, 0
		}
		return 0, mergeCopy(node, there, policy)
	case replaces && node == there:
	case replaces && (node.kids == nil) != (there.kids == nil):
		return failure.Conflict, 0
	case replaces:
		target.kids[newName] = node.clone()
	default:
		target.kids[target.free(newName)] = node.clone()
	}
	return 0, 0
}

// mergeCopy copies what is in a folder into another one, and tells how much of it has no place there.
func mergeCopy(from, to *modelNode, policy providerapi.ConflictPolicy) (failed int) {
	for _, name := range slices.Sorted(maps.Keys(from.kids)) {
		kid, there := from.kids[name], to.kids[name]
		switch {
		case there == nil:
			to.kids[name] = kid.clone()
		case kid.kids == nil && policy == providerapi.ConflictReplace:
			if there.kids != nil {
				failed++
			} else {
				to.kids[name] = kid.clone()
			}
		case kid.kids == nil:
			to.kids[to.free(name)] = kid.clone()
		case there.kids != nil:
			failed += mergeCopy(kid, there, policy)
		case policy == providerapi.ConflictReplace:
			failed++
		default: // the first name that is free or a folder's
			final := name
			for i := 1; to.kids[final] != nil && to.kids[final].kids == nil; i++ {
				final = drives.Numbered(name, i)
			}
			if to.kids[final] == nil {
				to.kids[final] = kid.clone()
			} else {
				failed += mergeCopy(kid, to.kids[final], policy)
			}
		}
	}
	return failed
}

// folder makes a folder with what is missing above it.
func (m *model) folder(rel string, policy providerapi.ConflictPolicy) failure.Kind {
	n := m.root
	parts := strings.Split(rel, "/")
	for _, part := range parts[:len(parts)-1] {
		if n.kids[part] == nil {
			n.kids[part] = &modelNode{kids: map[string]*modelNode{}}
		}
		if n = n.kids[part]; n.kids == nil {
			return failure.NotFound
		}
	}
	name := parts[len(parts)-1]
	there := n.kids[name]
	switch {
	case there == nil:
	case policy == providerapi.ConflictRename:
		name = n.free(name)
	case policy == providerapi.ConflictReject || there.kids == nil:
		return failure.Conflict
	default:
		return 0
	}
	n.kids[name] = &modelNode{kids: map[string]*modelNode{}}
	return 0
}

func (m *model) trash(rel string) failure.Kind {
	if rel == trashName || strings.HasPrefix(rel, trashName+"/") {
		if m.at(rel) == nil {
			return failure.NotFound
		}
		return failure.Invalid
	}
	return m.moveAs(recentKey{from: rel}, rel, trashName+"/"+rel[strings.LastIndexByte(rel, '/')+1:], providerapi.ConflictRename)
}

func (m *model) remove(rel string) failure.Kind {
	parent, name := m.parent(rel)
	if parent == nil || parent.kids[name] == nil {
		return failure.NotFound
	}
	delete(parent.kids, name)
	return 0
}

func (m *model) emptyTrash(rel string) failure.Kind {
	if rel == trashName {
		m.root.kids[trashName] = &modelNode{kids: map[string]*modelNode{}}
		return 0
	}
	if m.at(rel) == nil {
		return failure.NotFound
	}
	return failure.Invalid
}

func (n *modelNode) walk(rel string, out map[string]string) {
	for name, kid := range n.kids {
		path := filepath.Join(rel, name)
		if kid.kids == nil {
			out[path] = kid.text
			continue
		}
		out[path] = "dir"
		kid.walk(path, out)
	}
}

// walkDisk is what is really there.
func walkDisk(t tester, base string) map[string]string {
	out := map[string]string{}
	check(t, filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.Name() == originsName {
			return filepath.SkipDir // see TestTrashNotesOrigins
		}
		if rel, _ := filepath.Rel(base, path); err == nil && rel != "." {
			out[rel] = content(base, rel)
		}
		return err
	}))
	return out
}

// ucloudPath is the path of a local one in the drive of the tests.
func ucloudPath(rel string) string { return "/5012/" + drives.Escape(rel) }

// TestChangesAgreeWithAModel makes folders, moves, copies, trashes and deletes at random, and compares the drive and its
// listing with a model after each: nothing is ever lost, replaced or in another place than it should be.
func TestChangesAgreeWithAModel(t *testing.T) {
	t.Parallel()
	part := rapid.SampledFrom([]string{"a", "b", "a(1)", "c.d", "\xff"})
	rapid.Check(t, func(t *rapid.T) {
		base := must(os.MkdirTemp("", "files-model-"))(t)
		defer os.RemoveAll(base)
		m := &model{
			root:  &modelNode{kids: map[string]*modelNode{trashName: {kids: map[string]*modelNode{}}}},
			moved: map[recentKey]string{}, nodes: map[recentKey]*modelNode{},
		}
		check(t, os.Mkdir(filepath.Join(base, trashName), 0o770))
		for i := range rapid.IntRange(1, 12).Draw(t, "entries") {
			dirs := []string{""}
			for p, text := range walkDisk(t, base) {
				if text == "dir" {
					dirs = append(dirs, p+"/")
				}
			}
			slices.Sort(dirs)
			rel := rapid.SampledFrom(dirs).Draw(t, "in") + part.Draw(t, "name")
			parent, name := m.parent(rel)
			if parent.kids[name] != nil {
				continue
			}
			if rapid.Bool().Draw(t, "folder") {
				parent.kids[name] = &modelNode{kids: map[string]*modelNode{}}
				check(t, os.Mkdir(filepath.Join(base, rel), 0o770))
			} else {
				parent.kids[name] = &modelNode{text: fmt.Sprint(i)}
				check(t, os.WriteFile(filepath.Join(base, rel), fmt.Append(nil, i), 0o660))
			}
		}
		work := &fakeTasks{}
		o := quietOptions()
		o.Tasks = work
		s := New(o)
		work.s = s
		defer func() { _ = s.Close(context.Background()) }()
		must(s.Browse(context.Background(), browseRequest(base, "", nil)))(t)
		anywhere := func(label string) string {
			all := map[string]string{}
			m.root.walk("", all)
			paths := slices.Sorted(maps.Keys(all))
			rel := part.Draw(t, label+" name")
			if in := rapid.SampledFrom(append(paths, "")).Draw(t, label); in != "" && (in == trashName || rapid.Bool().Draw(t, "below")) {
				rel = in + "/" + rel
			} else if in != "" {
				rel = in
			}
			return rel
		}
		for range rapid.IntRange(1, 25).Draw(t, "changes") {
			var err error
			var want failure.Kind
			var did string
			wantFailed := 0
			work.failed = nil
			from := anywhere("from")
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			default:
				to := anywhere("to")
				policy := rapid.SampledFrom([]providerapi.ConflictPolicy{"REJECT", "RENAME", "REPLACE", "MERGE_RENAME"}).Draw(t, "policy")
				if strings.HasPrefix(from, to+"/") {
					continue // a folder that is merged into one above is read and written at once
				}
				did = fmt.Sprintf("move %q to %q, %s", from, to, policy)
				item := moveItem(base, "", "", policy)
				item.OldID, item.NewID = ucloudPath(from), ucloudPath(to)
				want, err = m.move(from, to, policy), moveOne(s, item)
			case 0:
				did = fmt.Sprintf("trash %q", from)
				item := inDrive(base, "")
				item.ID = ucloudPath(from)
				want, err = m.trash(from), s.Trash(context.Background(), []providerapi.FileInDrive{item})
			case 1:
				did = fmt.Sprintf("delete %q", from)
				item := deleteItem("")
				item.ID = ucloudPath(from)
				want, err = m.remove(from), s.Delete(context.Background(), []providerapi.DeleteFile{item})
			case 7, 8:
				to := anywhere("to")
				policy := rapid.SampledFrom([]providerapi.ConflictPolicy{"REJECT", "RENAME", "REPLACE", "MERGE_RENAME"}).Draw(t, "policy")
				if strings.HasPrefix(from, to+"/") {
					continue
				}
				did = fmt.Sprintf("copy %q to %q, %s", from, to, policy)
				item := moveItem(base, "", "", policy)
				item.OldID, item.NewID = ucloudPath(from), ucloudPath(to)
				want, wantFailed = m.copy(from, to, policy)
				err = s.Copy(context.Background(), []providerapi.MoveFile{item})
			case 9:
				policy := rapid.SampledFrom([]providerapi.ConflictPolicy{"REJECT", "RENAME", "REPLACE", "MERGE_RENAME"}).Draw(t, "policy")
				did = fmt.Sprintf("make %q, %s", from, policy)
				item := folder(base, "", policy)
				item.ID = ucloudPath(from)
				want, err = m.folder(from, policy), s.CreateFolders(context.Background(), []providerapi.CreateFolder{item})
			case 2:
				if rapid.Bool().Draw(t, "trash") {
					from = trashName
				}
				did = fmt.Sprintf("empty trash %q", from)
				item := inDrive(base, "")
				item.ID = ucloudPath(from)
				want, err = m.emptyTrash(from), s.EmptyTrash(context.Background(), []providerapi.FileInDrive{item})
			}
			if (want == 0) != (err == nil) || (err != nil && failure.KindOf(err) != want) {
				t.Fatalf("%s: got %v, want kind %d", did, err, want)
			}
			switch {
			case (work.failed != nil) != (wantFailed > 0):
				t.Fatalf("%s: the task ended with %v, want %d failures", did, work.failed, wantFailed)
			case wantFailed > 0 && !strings.HasPrefix(failure.Why(work.failed), fmt.Sprint(wantFailed, " of ")):
				t.Fatalf("%s: the task ended with %v, want %d failures", did, work.failed, wantFailed)
			}
			expected := map[string]string{}
			m.root.walk("", expected)
			if d := cmp.Diff(expected, walkDisk(t, base)); d != "" {
				t.Fatalf("%s: -want +got:\n%s", did, d)
			}
			var listed []string
			for _, f := range must(s.Browse(context.Background(), browseRequest(base, "", nil)))(t).Items {
				listed = append(listed, strings.TrimPrefix(unescape(t, f.ID), "/5012/"))
			}
			slices.Sort(listed)
			if want := slices.Sorted(maps.Keys(m.root.kids)); !slices.Equal(listed, want) {
				t.Fatalf("%s: listed %q, want %q", did, listed, want)
			}
		}
	})
}
