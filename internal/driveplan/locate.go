package driveplan

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
)

// Entity is the kind of owner that a locator serves.
type Entity string

// The entities, spelled as in the configuration.
const (
	EntityUser    Entity = "User"
	EntityProject Entity = "Project"
	// EntityMemberFiles is a directory of each member of a project who is connected, for that member alone. Its drive
	// belongs to the project and takes from the project's allocation.
	EntityMemberFiles Entity = "MemberFiles"
	// EntityAny serves every owner for whom all variables are known; only where nothing is managed.
	EntityAny Entity = ""
)

func (e Entity) serves(o ident.Owner) bool {
	switch e {
	case EntityUser:
		return !o.IsProject()
	case EntityProject, EntityMemberFiles:
		return o.IsProject()
	case EntityAny:
		return true
	}
	return false
}

// Vars are the values of the variables of a locator (contract 40 section 7). A variable that is not known is absent.
type Vars map[string]string

// Names of the variables.
const (
	VarLocatorName       = "locatorName"
	VarCategoryName      = "categoryName"
	VarProviderID        = "providerId"
	VarUCloudUsername    = "ucloudUsername"
	VarLocalUsername     = "localUsername"
	VarLocalPrimaryGroup = "localPrimaryGroup"
	VarUID               = "uid"
	VarUCloudProjectID   = "ucloudProjectId"
	VarProjectTitle      = "ucloudProjectTitle"
	VarLocalGroupName    = "localGroupName"
	VarGID               = "gid"
)

// Locator says where the drive of an owner is. Exactly one of Pattern and Script is set.
type Locator struct {
	Name   string
	Entity Entity

	// Needs names the variables without which there is no drive yet: those of pattern, title and ownership, or those
	// that a script cannot do without.
	Needs []string
	// Pattern gives the path. It gets the values that can be part of a path and must fail for a variable without value.
	Pattern func(Vars) (string, error)
	// Script asks a program of the site, which may take long.
	Script func(ctx context.Context, v Vars) (Found, error)
	// Title gives the title. Nil means the locator's name.
	Title func(Vars) (string, error)

	AllowedRoots []string // absolute; the path must be one of them or lie below
	ReadOnly     bool     // members of a project may not write through UCloud

	// Ready tells whether whoever manages the storage has made the drive usable: its quota is set. Until then, and why is
	// what operators read, it is not registered. It is asked in each evaluation, and must not block for long. Nil: there
	// is nobody to wait for.
	Ready func(ctx context.Context, d store.Drive) (why string, err error)
	// Create makes the directory. Nil: somebody else does, and we wait until it is there.
	Create func(ctx context.Context, d Directory) error
	// Owned turns the names of owner and group into numbers. With it a directory is used only if a user's belongs to that
	// owner, and a project's to that group. Nil: whose it is does not matter.
	Owned func(ctx context.Context, owner, group string) (ident.UID, ident.GID, error)
	// Owner and Group give the names that the directory should have.
	Owner, Group func(Vars) (string, error)
	Mode         uint32 // permission bits that the directory should have
}

// Found is what a script says about a drive.
type Found struct {
	Path     string // empty: there is no such drive
	Title    string // empty: as Locator.Title says
	ReadOnly bool   // also if the locator is not
}

// Directory is what Create has to make. It must be harmless when the directory exists already.
type Directory struct {
	Path         string
	Root         string // the allowed root above it
	Owner, Group string
	Mode         uint32
	Vars         Vars
}

// Category is a storage product with its locators.
type Category struct {
	Name      string
	FreeToUse bool // drives do not depend on a quota
	Locators  []Locator
}

// located is the drive that a locator wants for an owner.
type located struct {
	drive   store.Drive
	root    string
	locator *Locator
	vars    Vars
}

// errNotYet tells that a drive cannot be located because a variable is not known yet.
var errNotYet = errors.New("not yet")

// locate evaluates one locator. errNotYet means no drive for now, an empty path of the result no drive at all.
func locate(ctx context.Context, provider string, owner ident.Owner, c Category, l *Locator, vars Vars) (located, error) {
	vars[VarLocatorName], vars[VarCategoryName], vars[VarProviderID] = l.Name, c.Name, provider
	for _, name := range l.Needs {
		if _, ok := vars[name]; !ok {
			return located{}, fmt.Errorf("%w: %s is not known", errNotYet, name)
		}
	}
	found, err := find(ctx, l, vars)
	if err != nil || found.Path == "" {
		return located{}, err
	}
	path := found.Path
	root, err := checkPath(path, l.AllowedRoots)
	if err != nil {
		return located{}, err
	}
	title := l.Name
	if l.Title != nil {
		if title, err = l.Title(vars); err != nil {
			return located{}, fmt.Errorf("title: %w", err)
		}
	}
	if found.Title != "" {
		title = found.Title
	}
	return located{
		drive: store.Drive{
			ProviderGeneratedID: GeneratedID(provider, owner, path), Owner: owner, Category: c.Name, Locator: l.Name,
			Title: cleanTitle(title, l.Name), Path: path, ReadOnly: l.ReadOnly || found.ReadOnly, State: store.DriveDesired,
		},
		root: root, locator: l, vars: vars,
	}, nil
}

func find(ctx context.Context, l *Locator, vars Vars) (Found, error) {
	if l.Script != nil {
		return l.Script(ctx, vars) // gets the values as data
	}
	// In a pattern values become part of a path, so it sees only those that can: for it the others do not exist.
	usable := maps.Clone(vars)
	maps.DeleteFunc(usable, func(_, v string) bool { return !usableInPath(v) })
	path, err := l.Pattern(usable)
	if err != nil && len(usable) < len(vars) {
		var dropped []string
		for name := range vars {
			if _, ok := usable[name]; !ok {
				dropped = append(dropped, name)
			}
		}
		slices.Sort(dropped)
		err = fmt.Errorf("%w (cannot be used in a path: %s)", err, strings.Join(dropped, ", "))
	}
	return Found{Path: path}, err
}

// GeneratedID is the id by which Core and we know a drive before and after its registration. It depends on nothing but
// provider, owner and path, so that editing titles or locators never yields a second drive (contract 10 section 2).
func GeneratedID(provider string, owner ident.Owner, path string) string {
	return provider + "-" + owner.Reference() + "\n" + path
}

// usableInPath tells whether a value may become part of a path (contract 12, "Injection through names").
func usableInPath(v string) bool {
	return v != "" && v != "." && !strings.HasPrefix(v, "-") && !strings.Contains(v, "..") &&
		!strings.ContainsFunc(v, func(r rune) bool { return r == '/' || unicode.IsControl(r) })
}

// maxPath is the longest path in bytes (PATH_MAX of Linux, with the closing zero).
const maxPath = 4095

// CheckPath tells whether a path from a script may be that of a drive.
func CheckPath(path string, roots []string) error {
	_, err := checkPath(path, roots)
	return err
}

// checkPath is the last word about a path from a pattern or script. It returns the allowed root above it.
func checkPath(path string, roots []string) (root string, err error) {
	switch {
	case !filepath.IsAbs(path) || filepath.Clean(path) != path:
		return "", fmt.Errorf("path %q is not absolute and clean", path)
	case path == "/":
		return "", errors.New("the root directory cannot be a drive")
	case len(path) > maxPath:
		return "", fmt.Errorf("path is longer than %d bytes", maxPath)
	case !utf8.ValidString(path) || strings.ContainsFunc(path, unicode.IsControl):
		// The path becomes part of an id that ends at the first line break and travels as JSON.
		return "", fmt.Errorf("path %q has a control character or is not UTF-8", path)
	}
	// The longest root counts, so that roots inside one another make no difference.
	for _, r := range roots {
		if r = filepath.Clean(r); filepath.IsAbs(r) && r != "/" && len(r) > len(root) &&
			(path == r || strings.HasPrefix(path, r+"/")) {
			root = r
		}
	}
	if root == "" {
		return "", fmt.Errorf("path %q is not below an allowed root", path)
	}
	return root, nil
}

// maxTitle is the longest title in characters (contract 40 section 7).
const maxTitle = 100

func cleanTitle(s, fallback string) string {
	s = strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "")))
	if r := []rune(s); len(r) > maxTitle {
		s = string(r[:maxTitle])
	}
	if s == "" {
		return fallback
	}
	return s
}

// Account is the local account of a mapped user.
type Account struct {
	Name         string
	UID          ident.UID
	PrimaryGroup string // name; empty if the group has none
}

// Group is the Unix group of a project.
type Group struct {
	Name string
	GID  ident.GID
}

// Accounts tells who UCloud users and projects are on this machine.
type Accounts interface {
	// LocalAccount gives the account of a user with an active mapping; false: there is none.
	LocalAccount(ctx context.Context, u ident.UCloudUser) (Account, bool, error)
	// ProjectGroup gives the group of a project; false: it has none.
	ProjectGroup(ctx context.Context, p ident.ProjectID) (Group, bool, error)
}

// Variables collects what is known about an owner. project is nil for users.
func Variables(ctx context.Context, a Accounts, owner ident.Owner, project *store.Project) (Vars, error) {
	v := Vars{}
	if !owner.IsProject() {
		v[VarUCloudUsername] = string(owner.User)
		acc, ok, err := a.LocalAccount(ctx, owner.User)
		if err != nil {
			return nil, fmt.Errorf("look up the local account: %w", err)
		}
		if ok {
			v[VarLocalUsername], v[VarUID] = acc.Name, acc.UID.String()
			if acc.PrimaryGroup != "" {
				v[VarLocalPrimaryGroup] = acc.PrimaryGroup
			}
		}
		return v, nil
	}
	v[VarUCloudProjectID] = string(owner.Project)
	if project != nil {
		v[VarProjectTitle] = project.Document.Specification.Title
	}
	g, ok, err := a.ProjectGroup(ctx, owner.Project)
	if err != nil {
		return nil, fmt.Errorf("look up the group of the project: %w", err)
	}
	if ok {
		v[VarLocalGroupName], v[VarGID] = g.Name, strconv.FormatUint(uint64(g.GID), 10)
	}
	return v, nil
}

// memberVariables adds what is known about a member of a project.
func memberVariables(ctx context.Context, a Accounts, member ident.UCloudUser, v Vars) error {
	own, err := Variables(ctx, a, ident.Owner{User: member}, nil)
	maps.Copy(v, own)
	return err
}

// checkCategories finds mistakes of the caller.
func checkCategories(all []Category) error {
	for _, c := range all {
		var names []string
		for _, l := range c.Locators {
			switch {
			case c.Name == "" || l.Name == "" || slices.Contains(names, l.Name):
				return fmt.Errorf("drive locator %q of category %q: names must be there and unique", l.Name, c.Name)
			case (l.Pattern == nil) == (l.Script == nil):
				return fmt.Errorf("drive locator %s/%s: exactly one of pattern and script", c.Name, l.Name)
			case len(l.AllowedRoots) == 0:
				return fmt.Errorf("drive locator %s/%s: no allowed root", c.Name, l.Name)
			}
			names = append(names, l.Name)
		}
	}
	return nil
}
