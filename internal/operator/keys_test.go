package operator

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"strings"
	"testing"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/signingkeys"
	"ucloud-im/internal/signkey"
	"ucloud-im/internal/usermap/ticket"
)

// beginWithKey presses "Connect" in a browser with a signing key, and gives the ticket and the fingerprint.
func (w *world) beginWithKey(t *testing.T, u ident.UCloudUser) (text, fingerprint string) {
	t.Helper()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := signkey.FromPublic(public)
	if err != nil {
		t.Fatal(err)
	}
	method := &signingkeys.Method{Keys: w.keys, Next: w.method, URL: "https://im.example.org/redirect", Wanted: func(ident.UCloudUser) bool { return true }}
	to, err := w.users.Begin(t.Context(), method, u)
	if err != nil {
		t.Fatal(err)
	}
	_, session, _ := strings.Cut(to, "?session=")
	if to, err = method.Receive(t.Context(), session, key.PEM()); err != nil {
		t.Fatal(err)
	}
	_, text, _ = strings.Cut(to, "?ticket=")
	return text, key.Fingerprint()
}

// TestKeysOfTickets: what is said of a key before and after a ticket is completed, and what operators can bring about.
func TestKeysOfTickets(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tk, fingerprint := w.beginWithKey(t, alice)
	if info := must(t, w, ipcapi.TicketDescribe, ipcapi.TicketRef{Ticket: tk}); info.KeyFingerprint != fingerprint || info.KeyWithdrawn {
		t.Errorf("described as %+v", info)
	}
	approve := ipcapi.TicketApproval{Ticket: tk, User: alice, Local: "kay", WaitMs: 10_000, KeyFingerprint: "SHA256:x"}
	if _, err := invoke(t, w, ipcapi.TicketApprove, approve); !failure.Is(err, failure.Conflict) {
		t.Errorf("another key was confirmed: %v", err)
	}
	approve.KeyFingerprint, approve.DryRun = "", true
	if res := must(t, w, ipcapi.TicketApprove, approve); res.KeyUnused != fingerprint || res.KeyFingerprint != "" {
		t.Errorf("dry run without the key: %+v", res)
	}
	approve.KeyFingerprint, approve.DryRun = fingerprint, false
	if res := must(t, w, ipcapi.TicketApprove, approve); res.KeyFingerprint != fingerprint || res.KeyUnused != "" {
		t.Errorf("approved as %+v", res)
	}
	if !strings.Contains(w.audit.String(), fingerprint) {
		t.Error("the audit does not name the key")
	}
	// A key that was revoked while the ticket was open.
	tk, fingerprint = w.beginWithKey(t, alice)
	rec, err := ticket.Parse(tk)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := w.method.Describe(t.Context(), rec)
	if err != nil {
		t.Fatal(err)
	}
	if rep := must(t, w, ipcapi.KeyRevoke, ipcapi.SigningKeyRevocation{IDs: []string{stored.Key}}); rep.Results[0].Status != ipcapi.ResultOK {
		t.Errorf("revoked: %+v", rep)
	}
	if info := must(t, w, ipcapi.TicketDescribe, ipcapi.TicketRef{Ticket: tk}); info.KeyFingerprint != "" || !info.KeyWithdrawn {
		t.Errorf("described as %+v", info)
	}
	approve.Ticket, approve.KeyFingerprint = tk, fingerprint
	if _, err := invoke(t, w, ipcapi.TicketApprove, approve); !failure.Is(err, failure.Conflict) {
		t.Errorf("a revoked key was confirmed: %v", err)
	}
}

// TestKeysOfOthers: users see and revoke their own keys.
//
//attack:actor local user
//attack:does Revokes the keys of another user, whose ids it has seen, to keep that user from working.
//attack:control Users revoke keys of their own UCloud user only, which the kernel's uid decides.
//attack:remove internal/signingkeys/signingkeys.go: err != nil || r.User != "" && k.User != r.User { => err != nil {
func TestKeysOfOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for user, local := range map[ident.UCloudUser]string{alice: "kay", mary: "lee"} {
		tk, fingerprint := w.beginWithKey(t, user)
		approve := ipcapi.TicketApproval{Ticket: tk, User: user, Local: local, WaitMs: 10_000, KeyFingerprint: fingerprint}
		if res := must(t, w, ipcapi.TicketApprove, approve); res.State != "active" {
			t.Fatalf("connected as %+v", res)
		}
	}
	own := func(uid ident.UID) ipcapi.SigningKey {
		t.Helper()
		a := w.as(t, uid, request{Call: ipcapi.MeKeys.Name})[ipcapi.MeKeys.Name]
		var page ipcapi.SigningKeyPage
		if err := json.Unmarshal([]byte(a.Body), &page); err != nil || len(page.Items) != 1 {
			t.Fatalf("keys of uid %d: %+v", uid, a)
		}
		return page.Items[0]
	}
	key := own(uidKay)
	if key.User != alice || key.State != ipcapi.SigningKeyActive || own(uidLee).User != mary {
		t.Fatalf("kay has %+v, lee %+v", key, own(uidLee))
	}
	revoke := func(uid ident.UID) ipcapi.MutationResult {
		t.Helper()
		a := w.as(t, uid, request{Call: ipcapi.MeRevokeKey.Name, Ticket: key.ID})[ipcapi.MeRevokeKey.Name]
		var rep ipcapi.MutationReport
		if err := json.Unmarshal([]byte(a.Body), &rep); err != nil || len(rep.Results) != 1 {
			t.Fatalf("uid %d: %+v", uid, a)
		}
		return rep.Results[0]
	}
	if res := revoke(uidLee); res.Error == nil || res.Error.Status != failure.NotFound.Status() || own(uidKay).State != ipcapi.SigningKeyActive {
		t.Errorf("lee revoked kay's key: %+v", res)
	}
	if res := revoke(uidKay); res.Status != ipcapi.ResultOK || own(uidKay).State != ipcapi.SigningKeyRevoked {
		t.Errorf("kay's own: %+v", res)
	}
	if res := revoke(uidKay); res.Status != ipcapi.ResultSkipped {
		t.Errorf("once more: %+v", res)
	}
	if !strings.Contains(w.audit.String(), "action=me.key.revoke") {
		t.Error("nothing is in the audit")
	}
}
