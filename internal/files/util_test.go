package files

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

const testProvider = "hpc"

// testDrive is a drive with the given base path, as Core sends it.
func testDrive(base string, permissions ...providerapi.Permission) providerapi.Drive {
	if permissions == nil {
		permissions = []providerapi.Permission{providerapi.PermissionRead, providerapi.PermissionEdit}
	}
	return providerapi.Drive{
		ID:                  "5012",
		Owner:               providerapi.ResourceOwner{CreatedBy: ident.SystemUser},
		Permissions:         &providerapi.Permissions{Myself: permissions},
		ProviderGeneratedID: testProvider + "-owner\n" + base,
		Specification: providerapi.DriveSpecification{
			Title: "Work", Product: providerapi.ProductReference{ID: "storage", Category: "storage", Provider: testProvider},
		},
	}
}

// newService makes a service that is closed when the test ends. change may be nil.
func newService(t testing.TB, change func(*Options)) *Service {
	t.Helper()
	o := Options{Provider: testProvider, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Timeout: time.Minute}
	if change != nil {
		change(&o)
	}
	s := New(o)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
		s.cache.mu.Lock()
		defer s.cache.mu.Unlock()
		if s.cache.used != 0 {
			t.Errorf("%d bytes of index memory were not given back", s.cache.used)
		}
	})
	return s
}

// browse builds a request; the path is relative to the drive.
func browseRequest(base, rel string, change func(*providerapi.BrowseParams)) *providerapi.FilesBrowse {
	path := filepath.Join("/5012", rel)
	yes := true
	req := &providerapi.FilesBrowse{
		ResolvedCollection: testDrive(base),
		Browse: providerapi.BrowseParams{
			ItemsPerPage: 250,
			Flags: providerapi.FileFlags{
				Path: &path, IncludeSizes: &yes, IncludeTimestamps: &yes, IncludeUnixInfo: &yes,
			},
		},
	}
	if change != nil {
		change(&req.Browse)
	}
	return req
}

// tester is what these functions need of *testing.T, *testing.B and *rapid.T.
type tester interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

func ptr[T any](v T) *T { return &v }

// must fails the test on an error.
func must[T any](v T, err error) func(tester) T {
	return func(t tester) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t tester, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// touch makes empty files.
func touch(t tester, dir string, names ...string) {
	t.Helper()
	for _, n := range names {
		check(t, os.WriteFile(filepath.Join(dir, n), nil, 0o644))
	}
}

// quietOptions are options for a service that a property test closes itself.
func quietOptions() Options {
	return Options{Provider: testProvider, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Timeout: time.Minute}
}

// unescape reads a name as it stands in JSON.
func unescape(t tester, text string) string {
	t.Helper()
	name, ok := drives.Unescape(text)
	if !ok {
		t.Fatalf("%q is not an escaped name", text)
	}
	return name
}
