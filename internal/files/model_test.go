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

// model does what move, trash and delete are meant to do, on a tree in memory.
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
		return failure.Conflict
	default:
		for n := 1; target.kids[final] != nil; n++ {
			final = candidate(newName, n)
		}
	}
	delete(source.kids, name)
	target.kids[final] = node
	m.moved[key], m.nodes[key] = final, node
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
	check(t, filepath.WalkDir(base, func(path string, _ fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(base, path); err == nil && rel != "." {
			out[rel] = content(base, rel)
		}
		return err
	}))
	return out
}

// ucloudPath is the path of a local one in the drive of the tests.
func ucloudPath(rel string) string { return "/5012/" + drives.Escape(rel) }

// TestChangesAgreeWithAModel moves, trashes and deletes at random, and compares the drive with a model after each:
// nothing is ever lost, replaced or in another place than it should be.
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
			from := anywhere("from")
			switch rapid.IntRange(0, 6).Draw(t, "what") {
			default:
				to := anywhere("to")
				policy := rapid.SampledFrom([]providerapi.ConflictPolicy{"REJECT", "RENAME", "REPLACE", "MERGE_RENAME"}).Draw(t, "policy")
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
			expected := map[string]string{}
			m.root.walk("", expected)
			if d := cmp.Diff(expected, walkDisk(t, base)); d != "" {
				t.Fatalf("%s: -want +got:\n%s", did, d)
			}
		}
	})
}
