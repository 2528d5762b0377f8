package signingkeys

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/signkey"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/usermap/ticket"
)

// crashFiles are where the child leaves what the parent needs, and where it says that it is in the transaction.
func crashFiles(dir string) (ticketFile, keyFile, mark string) {
	return filepath.Join(dir, "ticket"), filepath.Join(dir, "key"), filepath.Join(dir, "mark")
}

func openCrashed(ctx context.Context, dir string) (*store.Store, error) {
	return store.Open(ctx, store.Options{Driver: "sqlite", Path: filepath.Join(dir, "im.db"), Log: slog.New(slog.DiscardHandler)})
}

// crashChild is a server that uploads a key, and stops in the middle of the transaction that would make it active.
func crashChild(dir string) {
	ticketFile, keyFile, mark := crashFiles(dir)
	check := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	ctx := context.Background()
	s, err := openCrashed(ctx, dir)
	check(err)
	w, err := newWorld(ctx, s, func(string) { testkit.AtMark(mark) })
	check(err)
	session, err := w.session(ctx, alice)
	check(err)
	k := newKey()
	to, err := w.method.Receive(ctx, session, k.PEM())
	check(err)
	check(os.WriteFile(ticketFile, []byte(to), 0o600))
	check(os.WriteFile(keyFile, []byte(k.PEM()), 0o600))
	_, text, _ := strings.Cut(to, "?ticket=")
	tk, err := ticket.Parse(text)
	check(err)
	check(w.complete(tk, alice, "alice", k.Fingerprint()))
	os.Exit(1) // it should not come this far
}

// TestKilledBetweenUploadAndLink: a key whose proof was cut off is pending, as if the proof had not been begun, and the
// proof can be given again.
func TestKilledBetweenUploadAndLink(t *testing.T) {
	t.Parallel()
	dir := testkit.PrivateDir(t)
	ticketFile, keyFile, mark := crashFiles(dir)
	testkit.KillChild(t, dir, mark)
	s, err := openCrashed(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w := testWorld(t, s)
	if err := w.users.Repair(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.keys.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := w.active(t, alice, 2001); len(got) != 0 {
		t.Errorf("active keys %q", got)
	}
	if _, err := w.users.Mapping(t.Context(), alice); !failure.Is(err, failure.NotFound) {
		t.Errorf("mapping: %v", err)
	}
	if got := w.of(t, alice); len(got) != 1 || got[0].State != store.SigningKeyPending {
		t.Fatalf("on record: %v", got)
	}
	to, err := os.ReadFile(ticketFile)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	key := w.of(t, alice)[0]
	if k, err := signkey.Parse(string(pem)); err != nil || k.Fingerprint() != key.Fingerprint {
		t.Fatalf("another key is on record: %v", err)
	}
	if err := w.complete(ticketIn(t, string(to)), alice, "alice", key.Fingerprint); err != nil {
		t.Fatal(err)
	}
	if got := w.active(t, alice, 2001); len(got) != 1 || got[0] != key.Fingerprint {
		t.Errorf("active keys %q", got)
	}
}
