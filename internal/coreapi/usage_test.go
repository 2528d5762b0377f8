package coreapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/providerapi/apischema"
)

func usageItem(owner ident.Owner, category, scope string, units int64) providerapi.UsageItem {
	return providerapi.UsageItem{
		Owner: providerapi.WalletOwnerOf(owner), CategoryIDV2: providerapi.CategoryReference{Name: category, Provider: "recprov"},
		Usage: units, Description: providerapi.UsageDescription{Scope: &scope},
	}
}

// TestUsageRecordings replays what a real Core was told and answered.
func TestUsageRecordings(t *testing.T) {
	t.Parallel()
	user := ident.Owner{User: "recuser"}
	for _, tc := range []struct {
		section int
		item    providerapi.UsageItem
		status  int // 0: none
		answer  bool
	}{
		{1, usageItem(user, "rec-storage", "scope-1", 100), 0, true},
		{4, usageItem(user, "rec-storage", "scope-1", 5000), 0, false},
		{6, usageItem(user, "rec-storage", "scope-1", 100), 0, false},
		{9, usageItem(ident.Owner{User: "nobody-here"}, "rec-storage", "scope-1", 1), 403, false},
		{10, usageItem(ident.Owner{Project: "<uuid-6>"}, "rec-storage", "scope-1", 1), 403, false},
		{11, usageItem(ident.Owner{User: "recadmin"}, "rec-storage", "scope-1", 1), 0, false},
	} {
		rec := recording(t, "12-usage.md", tc.section)
		records := []exchangeRecord{rec}
		c := replay(t, records...)
		got, err := c.ReportUsage(t.Context(), []providerapi.UsageItem{tc.item})
		if Status(err) != tc.status || (tc.status == 0) != (err == nil) {
			t.Errorf("section %d: %v", tc.section, err)
		}
		if tc.status == 0 && !slices.Equal(got, []bool{tc.answer}) {
			t.Errorf("section %d: %v", tc.section, got)
		}
	}
}

func TestUsageMatchesTheExample(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../providerapi/testdata/examples/core/accounting.v2.reportUsage--storage.json")
	if err != nil {
		t.Fatal(err)
	}
	var example struct{ Request, Response json.RawMessage }
	if err := json.Unmarshal(raw, &example); err != nil {
		t.Fatal(err)
	}
	var bulk providerapi.BulkRequest[providerapi.UsageItem]
	if err := json.Unmarshal(example.Request, &bulk); err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(bulk)
	if err != nil {
		t.Fatal(err)
	}
	apischema.Core(t).Request(t, "accounting.v2.reportUsage", out)
	if compact := string(example.Request); strings.Join(strings.Fields(compact), "") != strings.Join(strings.Fields(string(out)), "") {
		t.Errorf("%s\nis not\n%s", out, compact)
	}
}

// TestOnlyHarmlessReportsAreSent: a report that is repeated after an unknown outcome must change nothing.
func TestOnlyHarmlessReportsAreSent(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("sent: %s", r.URL)
	}))
	t.Cleanup(srv.Close)
	c := testClient(t, srv.URL, staticToken("t"))
	good := usageItem(ident.Owner{User: "a"}, "c", "s", 1)
	good.CategoryIDV2.Provider = c.provider
	delta, negative, foreign, empty := good, good, good, good
	delta.IsDeltaCharge, negative.Usage, foreign.CategoryIDV2.Provider = true, -1, "other"
	empty.Description.Scope = new(string)
	many := slices.Repeat([]providerapi.UsageItem{good}, MaxUsageItems+1)
	for name, items := range map[string][]providerapi.UsageItem{
		"none": nil, "many": many, "delta": {good, delta}, "negative": {negative}, "foreign": {foreign}, "empty scope": {empty},
	} {
		if _, err := c.ReportUsage(t.Context(), items); !errors.Is(err, ErrNotSent) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUsageAnswerOfAnotherLength(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"responses":[true]}`)) }))
	t.Cleanup(srv.Close)
	c := testClient(t, srv.URL, staticToken("t"))
	item := usageItem(ident.Owner{User: "a"}, "c", "s", 1)
	item.CategoryIDV2.Provider = c.provider
	if _, err := c.ReportUsage(t.Context(), []providerapi.UsageItem{item, item}); !errors.Is(err, ErrNoAnswer) {
		t.Error(err)
	}
}

// TestGift replays a Core without a handler, and compares with the documented request.
func TestGift(t *testing.T) {
	t.Parallel()
	c := replay(t, recording(t, "12-usage.md", 13))
	gift := providerapi.ProviderGift{OwnerUsername: "recuser", Category: providerapi.CategoryReference{Name: "rec-storage", Provider: "recprov"}, Quota: 3}
	if err := c.RegisterGift(t.Context(), gift); Status(err) != http.StatusNotFound {
		t.Error(err)
	}
	out, err := json.Marshal(providerapi.BulkRequest[providerapi.ProviderGift]{Items: []providerapi.ProviderGift{gift}})
	if err != nil {
		t.Fatal(err)
	}
	apischema.Core(t).Request(t, "accounting.v2.registerProviderGift", out)
}
