package driveplan

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ucloud-im/internal/ident"
)

// expand is a pattern as the configuration has it: #{name}, one pass, an unknown variable is an error.
func expand(pattern string) func(Vars) (string, error) {
	return func(v Vars) (string, error) {
		var b strings.Builder
		for rest := pattern; ; {
			before, after, ok := strings.Cut(rest, "#{")
			b.WriteString(before)
			if !ok {
				return b.String(), nil
			}
			name, tail, _ := strings.Cut(after, "}")
			value, ok := v[name]
			if !ok {
				return "", errors.New("no value for " + name)
			}
			b.WriteString(value)
			rest = tail
		}
	}
}

func TestLocate(t *testing.T) {
	t.Parallel()
	user, project := ident.Owner{User: "Karin#2718"}, ident.Owner{Project: "p-1"}
	userVars := Vars{VarUCloudUsername: "Karin#2718", VarLocalUsername: "karin01", VarUID: "1000", VarLocalPrimaryGroup: "staff"}
	projectVars := Vars{VarUCloudProjectID: "p-1", VarProjectTitle: "Climate / Model\n", VarLocalGroupName: "climate", VarGID: "7"}
	for name, tc := range map[string]struct {
		owner    ident.Owner
		locator  Locator
		vars     Vars
		path     string
		title    string
		notYet   bool
		fails    bool
		readOnly bool
	}{
		"home": {
			owner: user, vars: userVars, path: "/home/karin01", title: "Home of Karin#2718",
			locator: Locator{Name: "home", Pattern: expand("/home/#{localUsername}"), Title: expand("Home of #{ucloudUsername}"), Needs: []string{VarLocalUsername}, AllowedRoots: []string{"/home"}},
		},
		"not mapped yet": {
			owner: user, vars: Vars{VarUCloudUsername: "Karin#2718"}, notYet: true,
			locator: Locator{Name: "home", Pattern: expand("/home/#{localUsername}"), Needs: []string{VarLocalUsername}, AllowedRoots: []string{"/home"}},
		},
		"title of a project is free text": {
			owner: project, vars: projectVars, path: "/projects/climate/data/storage-p", title: "Climate / Model",
			locator: Locator{Name: "p", Pattern: expand("/projects/#{localGroupName}/data/#{categoryName}-#{locatorName}"), Title: expand("#{ucloudProjectTitle}"), Needs: []string{VarLocalGroupName, VarProjectTitle}, AllowedRoots: []string{"/projects"}},
		},
		"and no part of a path": {
			owner: project, vars: projectVars, fails: true,
			locator: Locator{Name: "p", Pattern: expand("/projects/#{ucloudProjectTitle}"), AllowedRoots: []string{"/projects"}},
		},
		"climbing value": {
			owner: user, vars: Vars{VarLocalUsername: ".."}, fails: true,
			locator: Locator{Name: "home", Pattern: expand("/home/#{localUsername}"), AllowedRoots: []string{"/home", "/"}},
		},
		"option": {
			owner: user, vars: Vars{VarLocalUsername: "-rf"}, fails: true,
			locator: Locator{Name: "home", Pattern: expand("/home/#{localUsername}"), AllowedRoots: []string{"/home"}},
		},
		"variable in a value": {
			owner: user, vars: Vars{VarLocalUsername: "#{uid}", VarUID: "7"}, path: "/home/#{uid}", title: "home",
			locator: Locator{Name: "home", Pattern: expand("/home/#{localUsername}"), AllowedRoots: []string{"/home"}},
		},
		"script outside": {
			owner: user, vars: userVars, fails: true,
			locator: Locator{Name: "s", Script: answer("/etc/passwd"), AllowedRoots: []string{"/home"}},
		},
		"script newline": {
			owner: user, vars: userVars, fails: true,
			locator: Locator{Name: "s", Script: answer("/home/a\nb"), AllowedRoots: []string{"/home"}},
		},
		"script without answer": {
			owner: user, vars: userVars,
			locator: Locator{Name: "s", Script: answer(""), AllowedRoots: []string{"/home"}},
		},
		"script": {
			owner: user, vars: userVars, path: "/home/x", title: "s",
			locator: Locator{Name: "s", Script: answer("/home/x"), AllowedRoots: []string{"/home"}},
		},
		"script with title": {
			owner: user, vars: userVars, path: "/home/x", title: "Its own", readOnly: true,
			locator: Locator{
				Name: "s", Title: expand("Ours"), AllowedRoots: []string{"/home"},
				Script: func(context.Context, Vars) (Found, error) { return Found{"/home/x", "Its own", true}, nil },
			},
		},
		"long title": {
			owner: user, vars: userVars, path: "/home/x", title: strings.Repeat("ü", 100),
			locator: Locator{Name: "s", Script: answer("/home/x"), Title: expand(strings.Repeat("ü", 300)), AllowedRoots: []string{"/home"}},
		},
		"empty title": {
			owner: user, vars: userVars, path: "/home/x", title: "s",
			locator: Locator{Name: "s", Script: answer("/home/x"), Title: expand(" \t"), AllowedRoots: []string{"/home"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			vars := Vars{}
			for k, v := range tc.vars {
				vars[k] = v
			}
			got, err := locate(t.Context(), "hpc", tc.owner, Category{Name: "storage"}, &tc.locator, vars)
			if errors.Is(err, errNotYet) != tc.notYet || (err != nil) != (tc.fails || tc.notYet) {
				t.Fatalf("error %v", err)
			}
			if got.drive.Path != tc.path || got.drive.Title != tc.title || got.drive.ReadOnly != tc.readOnly {
				t.Fatalf("got %q, %q", got.drive.Path, got.drive.Title)
			}
			if tc.path != "" && got.drive.ProviderGeneratedID != "hpc-"+tc.owner.Reference()+"\n"+tc.path {
				t.Fatalf("id %q", got.drive.ProviderGeneratedID)
			}
		})
	}
}

func answer(path string) func(context.Context, Vars) (Found, error) {
	return func(context.Context, Vars) (Found, error) { return Found{Path: path}, nil }
}

func TestGroupWithoutName(t *testing.T) {
	t.Parallel()
	a := &fakeAccounts{users: map[ident.UCloudUser]Account{"u": {Name: "u1", UID: 7}}}
	v, err := Variables(t.Context(), a, ident.Owner{User: "u"}, nil)
	if _, ok := v[VarLocalPrimaryGroup]; ok || err != nil || v[VarUID] != "7" {
		t.Fatalf("variables %v, %v", v, err)
	}
}

func TestCheckPath(t *testing.T) {
	t.Parallel()
	roots := []string{"/home", "/home/special/", "/"}
	for path, root := range map[string]string{
		"/home/a": "/home", "/home": "/home", "/home/a/b,c": "/home", "/home/special/x": "/home/special",
		"/": "", "/homes/a": "", "/etc": "", "home/a": "", "/home/../etc": "", "/home//a": "", "/home/a/": "", "": "",
		"/home/a\x00b": "", "/home/a\x7fb": "", "/home/\xff": "", "/home/" + strings.Repeat("a", 5000): "",
	} {
		got, err := checkPath(path, roots)
		if got != root || (err == nil) != (root != "") {
			t.Errorf("checkPath(%q) = %q, %v", path, got, err)
		}
	}
}

func FuzzCheckPath(f *testing.F) {
	f.Add("/home/a")
	f.Add("/home/../a")
	f.Add("/home/a\nb")
	f.Fuzz(func(t *testing.T, path string) {
		root, err := checkPath(path, []string{"/home", "/projects/x"})
		if err != nil {
			return
		}
		rel, relErr := filepath.Rel(root, path)
		if relErr != nil || slices.Contains(strings.Split(rel, "/"), "..") || !slices.Contains([]string{"/home", "/projects/x"}, root) {
			t.Fatalf("%q is below %q as %q", path, root, rel)
		}
		if strings.Count(GeneratedID("p", ident.Owner{User: "u"}, path), "\n") != 1 {
			t.Fatal("the id cannot be taken apart again")
		}
	})
}

func TestDirectoryRefusesSymlinks(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	root := filepath.Join(base, "root")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(root, "a/b"), 0o700),
		os.MkdirAll(filepath.Join(base, "outside/b"), 0o700),
		os.Symlink(filepath.Join(base, "outside"), filepath.Join(root, "link")),
		os.Symlink("a", filepath.Join(root, "inner")),
		os.Symlink(root, filepath.Join(base, "rootlink")),
		os.WriteFile(filepath.Join(root, "file"), nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]string{
		"": "ok", "/a": "ok", "/a/b": "ok", "/a/c": "missing", "/x/y": "missing",
		"/link": "refused", "/link/b": "refused", "/inner": "refused", "/inner/b": "refused", "/file": "refused", "/file/x": "refused",
	} {
		err := checkDirectory(root, root+path)
		got := "ok"
		if err != nil {
			got = "refused"
			if missing(err) {
				got = "missing"
			}
		}
		if got != want {
			t.Errorf("%q: %s (%v), want %s", path, got, err, want)
		}
	}
	// The root is the operator's word.
	if err := checkDirectory(base+"/rootlink", base+"/rootlink/a"); err != nil {
		t.Error(err)
	}
	if err := checkDirectory(base+"/nothing", base+"/nothing/a"); !missing(err) {
		t.Error(err)
	}
}
