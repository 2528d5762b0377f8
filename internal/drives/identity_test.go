package drives

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

func drive(id, pgid string) *providerapi.Drive {
	return &providerapi.Drive{
		ID: ident.DriveID(id), ProviderGeneratedID: pgid,
		Permissions:   &providerapi.Permissions{Myself: providerapi.List[providerapi.Permission]{"READ", "EDIT"}},
		Specification: providerapi.DriveSpecification{Product: providerapi.ProductReference{Provider: "hpc"}},
	}
}

func TestParseID(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, in, want string }{
		{"project", "hpc-3f1c9a52\n/projects/sandbox", "/projects/sandbox"},
		{"user with a dash", "hpc-Ka-rin#2718\n/home/karin01", "/home/karin01"},
		{"not clean", "hpc-x\n//data//./a/", "/data/a"},
		{"second newline belongs to the path", "hpc-x\n/a\nb", "/a\nb"},
		{"whole file system", "hpc-x\n/", "/"},
		{"legacy", "hpc-/home/karin01", "/home/karin01"},
		{"legacy with empty second line", "hpc-/home/karin01\n", "/home/karin01"},
		{"other provider, legacy", "abc-/home/karin01", ""},
		{"relative", "hpc-x\nhome/karin01", ""},
		{"legacy without path", "hpc-1001", ""},
		{"of another integration", "h-1001", ""},
		{"empty", "", ""},
		{"nul", "hpc-x\n/a\x00b", ""},
		{"too long", "hpc-x\n/" + strings.Repeat("x", 4096), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := ParseID("hpc", tc.in)
			if got != tc.want || (err == nil) != (tc.want != "") {
				t.Fatalf("got %q, %v", got, err)
			}
			if err != nil && !failure.Is(err, failure.NotFound) {
				t.Fatalf("kind %v", failure.KindOf(err))
			}
		})
	}
}

//attack:actor compromised core
//attack:does Sends the drive of another provider, whose id means other files here.
//attack:control A drive must be one of this provider.
//attack:remove internal/drives/identity.go: if got := d.Specification.Product.Provider; got != s.provider { => if got := d.Specification.Product.Provider; got == "\x00" {
func TestDriveIsChecked(t *testing.T) {
	t.Parallel()
	set := New("hpc", FollowDrive)
	other := drive("1", "hpc-x\n/a")
	other.Specification.Product.Provider = "other"
	for name, d := range map[string]*providerapi.Drive{
		"other provider": other,
		"no id":          drive("", "hpc-x\n/a"),
		"slash in id":    drive("1/2", "hpc-x\n/a"),
		"dots as id":     drive("..", "hpc-x\n/a"),
	} {
		if _, err := set.Drive(d); !failure.Is(err, failure.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}

	for _, tc := range []struct {
		name string
		perm *providerapi.Permissions
		ok   bool
	}{
		{"none sent", nil, false},
		{"read", &providerapi.Permissions{Myself: providerapi.List[providerapi.Permission]{"READ"}}, false},
		{"edit", &providerapi.Permissions{Myself: providerapi.List[providerapi.Permission]{"READ", "EDIT"}}, true},
		{"admin", &providerapi.Permissions{Myself: providerapi.List[providerapi.Permission]{"ADMIN"}}, true},
	} {
		d := drive("1", "hpc-x\n/a")
		d.Permissions = tc.perm
		ref, err := set.Drive(d)
		if err != nil {
			t.Fatal(err)
		}
		if err := ref.RequireEdit(); (err == nil) != tc.ok || (err != nil && !failure.Is(err, failure.Forbidden)) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

//attack:actor compromised core
//attack:does Sends a path with enough ".." to leave the drive.
//attack:control A path cannot climb above its drive.
//attack:remove internal/drives/identity.go: if len(parts) <= 1 { => if len(parts) == 0 {
func TestPathRules(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 255)
	ref, err := New("hpc", FollowDrive).Drive(drive("1", "hpc-x\n/base"))
	if err != nil {
		t.Fatal(err)
	}
	deep := "/1" + strings.Repeat("/xxxxxxx", 511) + "/xxxxx"
	for _, tc := range []struct{ name, in, rel string }{
		{"root", "/1", ""},
		{"root with slash", "/1/", ""},
		{"doubled slash", "/1//x", "x"},
		{"leading doubled slash", "//1/x", "x"},
		{"dot", "/1/./x", "x"},
		{"inner dots", "/1/a/../x", "x"},
		{"back to the root", "/1/a/..", ""},
		{"trailing slash", "/1/x/", "x"},
		{"backslash", `/1/..\..\x`, `..\..\x`},
		{"percent", "/1/%2e%2e/x", "%2e%2e/x"},
		{"newline", "/1/a\nb", "a\nb"},
		{"three dots", "/1/...", "..."},
		{"255 bytes", "/1/" + long, long},
		{"4096 bytes", deep, deep[3:]},
		{"escaped", "/1/a\U0010FEFF", "a\xff"},
		{"255 bytes on disk", "/1/" + strings.Repeat("\U0010FEFF", 255), strings.Repeat("\xff", 255)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p, err := ref.Path(tc.in)
			if err != nil || p.rel != tc.rel {
				t.Fatalf("got %q, %v", p.rel, err)
			}
			if again, err := ref.Path(p.UCloud()); err != nil || again != p {
				t.Fatalf("%q is not read back: %v", p.UCloud(), err)
			}
		})
	}
	for name, in := range map[string]string{
		"empty":                  "",
		"slash":                  "/",
		"dot":                    "/.",
		"nul":                    "/1/a\x00b",
		"other drive":            "/2/x",
		"prefix of the id":       "/10/x",
		"climbs to a drive":      "/1/../2/x",
		"climbs and returns":     "/1/../1/x",
		"climbs later":           "/1/a/../../2",
		"climbs first":           "/../1/x",
		"256 bytes":              "/1/" + long + "x",
		"4097 bytes":             deep + "x",
		"256 bytes on disk":      "/1/" + strings.Repeat("\U0010FEFF", 256),
		"second form of a name":  "/1/\U0010FEC3\U0010FEA9",
		"not UTF-8":              "/1/\xff",
		"escape in the drive id": "/\U0010FE81/x",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if p, err := ref.Path(in); !failure.Is(err, failure.Invalid) {
				t.Fatalf("got %q, %v", p.rel, err)
			}
		})
	}
}

// coreDrive is how Core finds the drive of a path: clean the text, take the first component.
func coreDrive(path string) string {
	var parts []string
	for part := range strings.SplitSeq(path, "/") {
		switch part {
		case "", ".":
		case "..":
			parts = parts[:max(0, len(parts)-1)]
		default:
			parts = append(parts, part)
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return parts[0]
}

// TestPathNeverLeavesCoresDrive: whatever we accept, Core attributes to the same drive, and the result has no component
// that means something to the kernel.
func TestPathNeverLeavesCoresDrive(t *testing.T) {
	t.Parallel()
	ref, err := New("hpc", FollowDrive).Drive(drive("1", "hpc-x\n/base"))
	if err != nil {
		t.Fatal(err)
	}
	part := rapid.SampledFrom([]string{"", ".", "..", "1", "2", "a", `..\..`, "...", "\\", "x/../..", "\U0010FEAF", "\U0010FE80"})
	rapid.Check(t, func(t *rapid.T) {
		in := strings.Join(rapid.SliceOfN(part, 0, 8).Draw(t, "parts"), "/")
		if rapid.Bool().Draw(t, "slash") {
			in = "/" + in
		}
		p, err := ref.Path(in)
		if err != nil {
			return
		}
		if got := coreDrive(in); got != "1" {
			t.Fatalf("%q was accepted, for Core it belongs to %q", in, got)
		}
		for c := range strings.SplitSeq(p.rel, "/") {
			if p.rel != "" && (c == "" || c == "." || c == "..") {
				t.Fatalf("%q became %q", in, p.rel)
			}
		}
	})
}

func FuzzPath(f *testing.F) {
	for _, s := range []string{"/1/a", "/1/../2", "/1/\U0010FEFF", "/1/a//b/./c/..", "\\", "/1/\x00"} {
		f.Add(s)
	}
	ref, err := New("hpc", FollowDrive).Drive(drive("1", "hpc-x\n/base"))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in string) {
		p, err := ref.Path(in)
		if err != nil {
			if !failure.Is(err, failure.Invalid) {
				t.Fatalf("%q: %v", in, err)
			}
			return
		}
		if again, err := ref.Path(p.UCloud()); err != nil || again != p || coreDrive(in) != "1" || len(p.rel) > MaxPath {
			t.Fatalf("%q -> %q -> %v, %v", in, p.rel, again, err)
		}
	})
}

func TestPathParts(t *testing.T) {
	t.Parallel()
	p := Path{drive: "1", rel: "a/b\xff"}
	if p.Name() != "b\xff" || p.Parent().rel != "a" || p.Parent().Parent().rel != "" || !p.Parent().Parent().IsRoot() {
		t.Fatalf("parts of %q", p.rel)
	}
	root := p.Parent().Parent().Parent()
	if root.UCloud() != "/1" || root.Name() != "" || root.Depth() != 0 || p.Depth() != 2 {
		t.Fatalf("root is %q", root.UCloud())
	}
	if got := root.Join("a").Join("b\xff"); got != p || got.UCloud() != "/1/a/b\U0010FEFF" {
		t.Fatalf("joined %q", got.rel)
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	table := NewTable([]Place{
		{"1", "/projects"}, {"2", "/projects/p1/"}, {"3", "/home/a b"}, {"4", "relative"}, {"5", "/projects/p1"}, {"6", "/x%_y"},
	})
	for local, want := range map[string]string{
		"/projects":          "/1",
		"/projects/":         "/1",
		"/projects/p10/x":    "/1/p10/x",
		"/projects/p1":       "/2",
		"/projects/p1/x":     "/2/x",
		"/projects//p1/./x":  "/2/x",
		"/projects/p1/../p2": "/1/p2",
		"/home/a b/c\xff":    "/3/c\U0010FEFF",
		"/projectsx":         "",
		"/x1_y":              "",
		"/":                  "",
		"projects/p1":        "",
		"/projects/\x00":     "",
	} {
		got, ok := table.UCloud(local)
		if got != want || ok != (want != "") {
			t.Errorf("UCloud(%q) = %q, %v, want %q", local, got, ok, want)
		}
	}
	if got, _ := NewTable([]Place{{"9", "/"}}).UCloud("/a/b"); got != "/9/a/b" {
		t.Errorf("drive of the whole file system: %q", got)
	}
}

// TestMappingRoundTrip: a local path below a drive becomes a UCloud path that the drive maps back to the same place.
func TestMappingRoundTrip(t *testing.T) {
	t.Parallel()
	ref, err := New("hpc", FollowDrive).Drive(drive("7", "hpc-x\n/base"))
	if err != nil {
		t.Fatal(err)
	}
	table := NewTable([]Place{{"7", "/base"}})
	rapid.Check(t, func(t *rapid.T) {
		rel := strings.Trim(anyName().Draw(t, "rel"), "/")
		ucloud, ok := table.UCloud("/base/" + rel)
		if !ok {
			return // NUL, or ".." out of the drive
		}
		p, err := ref.Path(ucloud)
		if err != nil {
			if len(rel) >= 255 {
				return
			}
			t.Fatalf("%q -> %q: %v", rel, ucloud, err)
		}
		back, ok := table.UCloud("/base/" + p.rel)
		if !ok || back != ucloud {
			t.Fatalf("%q -> %q -> %q", rel, ucloud, back)
		}
	})
}
