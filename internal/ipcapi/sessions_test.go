package ipcapi

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/ident"
)

// TestSessionsKeepTheirContent encodes and decodes the documents about sessions.
func TestSessionsKeepTheirContent(t *testing.T) {
	t.Parallel()
	for _, doc := range []any{
		&SessionCreation{Purpose: PurposeUpload, Items: []SessionItem{{
			Drive: "7", Owner: ident.Owner{Project: "p"}, Category: "c", Object: "/7/ü<&>", Data: []byte{0, 255},
		}}},
		&SessionTokens{Tokens: []string{"a", "b"}}, &SessionRef{Purpose: "p", Token: "t"},
		&Session{Object: "o", Data: []byte{1}, Note: []byte{2}, EndsAt: time.UnixMilli(1).UTC()},
		&SessionNote{Purpose: "p", Token: "t", Note: []byte{3}, Done: true},
		&LinkSettings{
			PublicURL: "https://a", Origins: []string{"https://b"}, UploadStreams: 1, UploadBytes: 2, UploadNoSync: true,
			NoDirectories: true, NoRanges: true,
		},
	} {
		raw, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		back := reflect.New(reflect.TypeOf(doc).Elem()).Interface()
		if err := json.Unmarshal(raw, back); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(doc, back); diff != "" {
			t.Errorf("%T: %s", doc, diff)
		}
	}
}

// TestSessionsFit: the largest creation fits into a request of 1 MiB.
func TestSessionsFit(t *testing.T) {
	t.Parallel()
	items := make([]SessionItem, MaxSessionItems)
	for i := range items {
		items[i] = SessionItem{Drive: "7", Object: strings.Repeat("\U0010feff", 4096), Data: make([]byte, MaxSessionData)}
	}
	raw, err := json.Marshal(SessionCreation{Items: items})
	if err != nil || len(raw) >= 1<<20 {
		t.Errorf("%d bytes, %v", len(raw), err)
	}
}
