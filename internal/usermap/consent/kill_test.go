package consent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/onetime"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/usermap"
)

// The points at which the service is killed.
const (
	whileChecking = "checking" // the answer of the identity provider has been taken
	whileAgreeing = "agreeing" // in the transaction of the mapping, with everything written
)

func TestMain(m *testing.M) {
	if part, ok := testkit.Child(); ok {
		dir, point, _ := strings.Cut(part, "|")
		fmt.Fprintln(os.Stderr, childMain(context.Background(), dir, point))
		os.Exit(1) // it should have been killed
	}
	os.Exit(m.Run())
}

// openKilled is a service on the database of a directory. here is called in the transaction of the mapping.
func openKilled(ctx context.Context, dir string, here func()) (*store.Store, *Service, error) {
	log := slog.New(slog.DiscardHandler)
	st, err := store.Open(ctx, store.Options{Driver: "sqlite", Path: filepath.Join(dir, "im.db"), Log: log})
	if err != nil {
		return nil, nil, err
	}
	users, err := usermap.New(ctx, usermap.Options{
		Store: st, Core: core{}, Policy: policy{"2001": adaLocal}, Log: log,
		ActivateKey: func(*store.Tx, ident.UCloudUser, string, usermap.Account, string) error { here(); return nil },
	})
	if err != nil {
		return st, nil, err
	}
	s, err := New(Options{
		Store: st, Users: users, Tokens: onetime.New(st, onetime.Options{}), Log: log, PageURL: pageURL, Method: "test",
		Fingerprint: func(_ context.Context, _ ident.UCloudUser, key string) (string, error) { return "SHA256:" + key, nil },
	})
	return st, s, err
}

func childMain(ctx context.Context, dir, point string) error {
	stop := func() { testkit.AtMark(filepath.Join(dir, "there")) }
	st, s, err := openKilled(ctx, dir, stop)
	if err != nil {
		return err
	}
	if err := st.Update(ctx, func(tx *store.Tx) error { return tx.SeeUser(ada, time.Now()) }); err != nil {
		return err
	}
	to, err := s.Begin(ctx, usermap.Attempt{User: ada, Key: "key-1"})
	if err != nil {
		return err
	}
	started, err := s.Start(ctx, strings.TrimPrefix(to, pageURL+"?session="))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "cookie"), []byte(started.Cookie), 0o600); err != nil {
		return err
	}
	p, err := s.Claim(ctx, started.State, started.Cookie)
	if err != nil {
		return err
	}
	if point == whileChecking {
		stop()
	}
	if err := s.Prove(ctx, p, Proof{Issuer: issuer, Subject: "sub-ada", Account: adaLocal}); err != nil {
		return err
	}
	v, err := s.View(ctx, started.Cookie)
	if err != nil {
		return err
	}
	return s.Decide(ctx, started.Cookie, v.Form, true)
}

// TestKilled kills a service in the middle of a login. The next one knows how far it was: what was being checked is lost and
// says so, and an answer that was not stored can be given again.
func TestKilled(t *testing.T) {
	t.Parallel()
	for _, point := range []string{whileChecking, whileAgreeing} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			dir := testkit.PrivateDir(t)
			testkit.KillChild(t, dir+"|"+point, filepath.Join(dir, "there"))
			raw, err := os.ReadFile(filepath.Join(dir, "cookie"))
			if err != nil {
				t.Fatal(err)
			}
			cookie := string(raw)
			st, s, err := openKilled(t.Context(), dir, func() {})
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			if err := s.Recover(t.Context()); err != nil {
				t.Fatal(err)
			}
			v, err := s.View(t.Context(), cookie)
			if err != nil {
				t.Fatal(err)
			}
			if point == whileChecking {
				if v.Stage != StageFailed || !strings.Contains(v.Message, "restarted") {
					t.Errorf("%+v", v)
				}
				return
			}
			if v.Stage != StageAsk || v.LocalName != "ada" || v.Fingerprint != "SHA256:key-1" {
				t.Fatalf("%+v", v)
			}
			err = st.View(t.Context(), func(tx *store.Tx) error {
				_, mapping := tx.MappingByUser(ada)
				_, identity := tx.IdentityOfUser(ada)
				if !errors.Is(mapping, store.ErrNotFound) || !errors.Is(identity, store.ErrNotFound) {
					t.Errorf("half of it is kept: mapping %v, identity %v", mapping, identity)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Decide(t.Context(), cookie, v.Form, true); err != nil {
				t.Fatal(err)
			}
			if v, err := s.View(t.Context(), cookie); err != nil || v.Stage != StageConnecting {
				t.Errorf("answered again: %+v, %v", v, err)
			}
		})
	}
}
