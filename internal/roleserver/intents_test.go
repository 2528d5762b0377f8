package roleserver

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
	"ucloud-im/internal/usermap"
)

// TestIntentsOfTheConfiguration: what the operator writes is what instances are told.
func TestIntentsOfTheConfiguration(t *testing.T) {
	t.Parallel()
	s := &server{}
	s.use(loadText(t, base+unmanaged))
	if got := s.intentSettings("Ada#1815"); !intent.NewPolicy(got.Mode, got.Calls, got.Exempt).Off() || s.signing.Load().Wanted("Ada#1815") {
		t.Errorf("by default: %+v", got)
	}
	const policy = `  core:
    clockSkew: 0
    signedIntents:
      mode: log
      maxAge: 45s
      users: { "Ada#1815": require, "Grace#1906": "off" }
      calls: { jobs.create: require, files.browse: "off" }
      exempt: [files.copy]
`
	s.use(loadText(t, strings.TrimSuffix(base, "\n")+"\n"+policy+unmanaged))
	for _, tc := range []struct {
		user       ident.UCloudUser
		call, want string
	}{
		{"Ada#1815", "files.move", intent.ModeRequire},
		{"Ada#1815", "files.browse", intent.ModeRequire},
		{"Ada#1815", "files.copy", intent.ModeOff},
		{"Grace#1906", "files.move", intent.ModeOff},
		{"Grace#1906", "jobs.create", intent.ModeRequire},
		{"Mary#1", "files.move", intent.ModeLog},
		{"Mary#1", "files.browse", intent.ModeOff},
		{"Mary#1", "jobs.create", intent.ModeRequire},
	} {
		got := s.intentSettings(tc.user)
		if mode := intent.NewPolicy(got.Mode, got.Calls, got.Exempt).Mode(intent.Rule{Calls: []string{tc.call}}); mode != tc.want {
			t.Errorf("%s, %s: %s, want %s", tc.user, tc.call, mode, tc.want)
		}
		// A leeway of nothing must not become the usual one, which 0 means to instances.
		if got.MaxAgeMs != (45*time.Second).Milliseconds() || got.SkewMs != 1 {
			t.Errorf("limits: %+v", got)
		}
	}
}

// TestKeyless: a key counts for the account that the user has now, and only while it is active.
func TestKeyless(t *testing.T) {
	t.Parallel()
	now := time.Now().UTC().Truncate(time.Millisecond)
	s := &server{}
	s.store = storetest.SQLite(t)
	users := []ident.UCloudUser{"Good#1", "Other#2", "Over#3", "Pending#4", "None#5"}
	err := s.store.Update(t.Context(), func(tx *store.Tx) error {
		var errs []error
		for i, user := range users {
			uid := ident.UID(2001 + i)
			errs = append(errs, tx.InsertMapping(store.Mapping{
				User: user, UID: uid, LocalName: "x", State: store.MappingActive, Method: "test", CreatedAt: now, UpdatedAt: now,
			}))
			if user == "None#5" {
				continue
			}
			id := string(user)
			errs = append(errs, tx.InsertSigningKey(store.SigningKey{
				ID: id, User: user, PublicKey: []byte("x"), Fingerprint: id, Algorithm: "RS256", Session: [32]byte{byte(i)},
				State: store.SigningKeyPending, CreatedAt: now.Add(-time.Hour), ExpiresAt: now.Add(time.Hour),
			}))
			ends := now.Add(time.Hour)
			switch user {
			case "Other#2":
				uid++ // the account that the user had before
			case "Over#3":
				ends = now.Add(-time.Minute)
			case "Pending#4":
				continue
			}
			errs = append(errs, tx.ActivateSigningKey(id, uid, "test", now.Add(-time.Hour), ends))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		t.Fatal(err)
	}
	if s.users, err = usermap.New(t.Context(), usermap.Options{
		Store: s.store, Core: struct{ usermap.Core }{}, Policy: struct{ usermap.Policy }{}, Log: slog.New(slog.DiscardHandler),
	}); err != nil {
		t.Fatal(err)
	}
	got, err := s.keyless(t.Context())
	slices.Sort(got)
	if want := []ident.UCloudUser{"None#5", "Other#2", "Over#3", "Pending#4"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("without a key: %q, %v; want %q", got, err, want)
	}
}
