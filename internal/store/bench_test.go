package store_test

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

func engines(b *testing.B, f func(b *testing.B, s *store.Store)) {
	b.Run("sqlite", func(b *testing.B) { f(b, storetest.SQLite(b)) })
	b.Run("postgres", func(b *testing.B) { f(b, storetest.Open(b, storetest.PostgresOptions(b))) })
}

// One durable change: what an approval or a usage report costs.
func BenchmarkUpdate(b *testing.B) {
	engines(b, func(b *testing.B, s *store.Store) {
		for i := 0; b.Loop(); i++ {
			if err := s.Update(b.Context(), func(tx *store.Tx) error {
				_, err := tx.Enqueue("k", strconv.Itoa(i%100), nil, day)
				return err
			}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// Who is this uid? Asked for each connection of an instance.
func BenchmarkMappingByUID(b *testing.B) {
	engines(b, func(b *testing.B, s *store.Store) {
		if err := s.Update(b.Context(), func(tx *store.Tx) error {
			for i := range 2000 {
				if err := tx.InsertMapping(mapping(ident.UCloudUser(fmt.Sprint("U#", i)), ident.UID(1000+i))); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if err := s.View(b.Context(), func(tx *store.Tx) error { _, err := tx.MappingByUID(1500); return err }); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// The dispatcher's question, with a long queue behind few keys.
func BenchmarkOutboxHeads(b *testing.B) {
	engines(b, func(b *testing.B, s *store.Store) {
		if err := s.Update(b.Context(), func(tx *store.Tx) error {
			for i := range 20_000 {
				if _, err := tx.Enqueue("k", strconv.Itoa(i%5), nil, day); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if err := s.View(b.Context(), func(tx *store.Tx) error {
				if _, err := tx.OutboxHeads(time.Now(), 8); err != nil {
					return err
				}
				_, _, err := tx.OutboxNextDue(time.Now())
				return err
			}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
