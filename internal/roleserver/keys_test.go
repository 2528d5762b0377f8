package roleserver

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/onetime"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/signingkeys"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
	"ucloud-im/internal/usermap"
	"ucloud-im/internal/usermap/sitehooks"
)

// TestNothingOutlivesAMapping: whoever is disconnected or removed has no page, ticket or link left that connects them again.
//
//attack:actor local user
//attack:does Keeps the page of a login open until the operators have removed the connection, and then agrees.
//attack:control Logins and tickets of a user end in the transaction that ends the connection.
//attack:remove internal/roleserver/keys.go: tx.DeleteLoginsOf(was.User), => nil,
//attack:actor local user
//attack:does Keeps an open ticket until the operators have removed the connection, and then has it completed.
//attack:control Logins and tickets of a user end in the transaction that ends the connection.
//attack:remove internal/roleserver/keys.go: tx.ExpireTicketsOf(was.User, time.Now()), => nil,
func TestNothingOutlivesAMapping(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, st *store.Store) {
		log := slog.New(slog.DiscardHandler)
		s := &server{}
		s.log, s.store, s.tokens = log, st, onetime.New(st, onetime.Options{})
		var err error
		if s.keys, err = signingkeys.New(signingkeys.Options{Store: st, Tokens: s.tokens, Log: log}); err != nil {
			t.Fatal(err)
		}
		if s.siteHooks, err = sitehooks.New(sitehooks.Options{Store: st, Log: log, Hook: func(string) *scripts.Hook { return nil }}); err != nil {
			t.Fatal(err)
		}
		now := time.Now().UTC().Truncate(time.Millisecond)
		users := []ident.UCloudUser{"Alice#1234", "Mary#0001"}
		err = st.Update(t.Context(), func(tx *store.Tx) error {
			for i, user := range users {
				id := [32]byte{byte(i + 1)}
				_, err := s.tokens.IssueTx(tx, onetime.Spec{Purpose: onetime.PurposeLogin, User: user, Object: string(user)})
				err = errors.Join(err,
					tx.InsertTicket(store.Ticket{Hash: id, User: user, CreatedAt: now, ExpiresAt: now.Add(time.Hour)}, 1),
					tx.InsertLogin(store.Login{StateHash: id, CookieHash: id, Salt: []byte{1}, User: user, CreatedAt: now, ExpiresAt: now.Add(time.Hour)}))
				if err != nil {
					return err
				}
			}
			return s.mappingEnded(tx, store.Mapping{User: users[0], UID: 2001, LocalName: "alice", State: store.MappingActive}, usermap.CauseOperator)
		})
		if err != nil {
			t.Fatal(err)
		}
		err = st.View(t.Context(), func(tx *store.Tx) error {
			for i, user := range users {
				tokens, err := tx.CountTokens(user, onetime.PurposeLogin, now)
				logins, err2 := tx.LoginsOf(user)
				ticket, err3 := tx.TicketByHash([32]byte{byte(i + 1)})
				if err := errors.Join(err, err2, err3); err != nil {
					return err
				}
				if open := ticket.State == store.TicketOpen; tokens != i || len(logins) != i || open != (i == 1) {
					t.Errorf("%s: %d tokens, %d logins, ticket %s", user, tokens, len(logins), ticket.State)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
